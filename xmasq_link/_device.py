# SPDX-License-Identifier: Apache-2.0
"""What `ip link` sets on any device: words, ranges and meanings are its own (iproute2, ip/iplink.c).

The command line imports this for every command, so pyroute2 is imported only where it is used.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ._errors import InputError

if TYPE_CHECKING:
    from pyroute2 import IPRoute

U32 = (1 << 32) - 1
_ALIAS_MAX = 254  # of the kernel's 255, pyroute2 takes one for a zero byte
_ALTNAME_MAX = 127
_LOOPBACK = 1  # lo's index in every namespace (LOOPBACK_IFINDEX, net/flow.h)
_GEN_MODES = {"eui64": 0, "none": 1, "stable_secret": 2, "random": 3}
#: Bits of a device (linux/if.h) by their words: the bit, and what "on" makes of it.
_BITS = {
    "up": (0x1, True),
    "arp": (0x80, False),
    "promisc": (0x100, True),
    "allmulticast": (0x200, True),
    "multicast": (0x1000, True),
    "dynamic": (0x8000, True),
    "trailers": (0x20, False),
}


class Setting(NamedTuple):
    """A setting of a device.

    name: the word of `ip`. read: makes pyroute2's arguments of a value that the API takes; called
    with the namespace's IPRoute, name and value, raises InputError. takes: its values in words.
    creation: it can be given when the device is made only. also: further spellings.
    """

    name: str
    read: Callable[[IPRoute, str, Any], dict[str, Any]]
    takes: str
    creation: bool = False
    also: tuple[str, ...] = ()


def lladdr(argument: str, text: str, *, unicast: bool = True) -> str:
    """An Ethernet address. Raises InputError."""
    if not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", text):
        raise InputError(argument, f'"{text}" is not a link layer address such as 02:00:00:00:00:01')
    if unicast and (int(text[:2], 16) & 1 or int(text.replace(":", ""), 16) == 0):
        raise InputError(argument, f"{text} is not a unicast link layer address")
    return text.lower()


def check_name(argument: str, name: str) -> str:
    """A device name as the kernel wants it (net/core/dev.c, dev_valid_name)."""
    if not 1 <= len(name.encode()) <= 15 or name in (".", "..") or re.search(r"[\s/:]", name):
        raise InputError(argument, f'"{name}" is not a device name: 1 to 15 bytes without "/", ":" or space')
    return name


def find(ipr: IPRoute, name: str) -> Any | None:
    """The device of a name, which may be one of its altnames, or None."""
    from pyroute2.netlink.exceptions import NetlinkError

    size = len(name.encode())
    if not 1 <= size <= _ALTNAME_MAX:
        return None
    try:
        return ipr.link("get", **{"ifname" if size <= 15 else "altname": name})[0]
    except NetlinkError as e:
        if e.code == errno.ENODEV:
            return None
        raise


def _bit(name: str) -> Setting:
    bit, on = _BITS[name]

    def read(ipr: IPRoute, argument: str, value: Any) -> dict[str, Any]:
        return {"flags": bit if bool(value) == on else 0, "change": bit}

    return Setting(name, read, "on or off")


def _number(name: str, attribute: str, low: int, high: int, *also: str, creation: bool = False) -> Setting:
    def read(ipr: IPRoute, argument: str, value: Any) -> dict[str, Any]:
        if type(value) is not int or not low <= value <= high:
            raise InputError(argument, f"{value!r} is out of range, allowed is {low} to {high}")
        return {attribute: value}

    return Setting(name, read, f"{low} to {high}", creation, also)


def _told(name: str, attribute: str, low: int, high: int) -> Setting:
    """A number that devices tell of where it is known; other kernels would pass over it without a word."""
    number = _number(name, attribute, low, high)

    def read(ipr: IPRoute, argument: str, value: Any) -> dict[str, Any]:
        wanted = number.read(ipr, argument, value)
        if ipr.link("get", index=_LOOPBACK)[0].get_attr(attribute) is None:
            raise InputError(argument, "this kernel does not know it")
        return wanted

    return number._replace(read=read)


def _index(ipr: IPRoute, argument: str, value: Any) -> dict[str, Any]:
    if type(value) is not int or not 1 <= value < 1 << 31:
        raise InputError(argument, f"{value!r} is out of range, allowed is 1 to {(1 << 31) - 1}")
    for device in ipr.get_links():
        if device["index"] == value:
            raise InputError(argument, f"{value} is {device.get_attr('IFLA_IFNAME')}'s already")
    return {"index": value}


def _alias(ipr: IPRoute, argument: str, value: Any) -> dict[str, Any]:
    size = len(str(value).encode())
    if size > _ALIAS_MAX:
        raise InputError(argument, f"has {size} bytes, allowed are {_ALIAS_MAX}")
    return {"IFLA_IFALIAS": value}


def _altname(ipr: IPRoute, argument: str, value: Any) -> dict[str, Any]:
    size = len(value.encode())
    if not 1 <= size <= _ALTNAME_MAX or re.search(r"[\s/]", value):
        raise InputError(argument, f'"{value}" is not a name: 1 to {_ALTNAME_MAX} bytes without "/" or space')
    if find(ipr, value) is not None:
        raise InputError(argument, f'a device "{value}" exists already')
    return {"altname": value}


def _group(ipr: IPRoute, argument: str, value: Any) -> dict[str, Any]:
    text = str(value)
    if re.fullmatch(r"[0-9]{1,10}|0[xX][0-9a-fA-F]{1,8}", text) and int(text, 0) <= U32:
        return {"IFLA_GROUP": int(text, 0)}
    from pyroute2.netlink.rt_files import GroupFile

    number = GroupFile().name2id.get(text, 0 if text == "default" else None)
    if number is None:
        raise InputError(argument, f'"{text}" is no group: a number, or a name of /etc/iproute2/group')
    return {"IFLA_GROUP": number}


def _master(ipr: IPRoute, argument: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {"IFLA_MASTER": 0}
    device = find(ipr, value)
    if device is None:
        raise InputError(argument, f'there is no device "{value}"')
    return {"IFLA_MASTER": device["index"]}


def _broadcast(ipr: IPRoute, argument: str, value: Any) -> dict[str, Any]:
    return {"IFLA_BROADCAST": lladdr(argument, value, unicast=False)}


def _gen_mode(ipr: IPRoute, argument: str, value: Any) -> dict[str, Any]:
    if value not in _GEN_MODES:
        raise InputError(argument, f'"{value}" is unknown, allowed is {", ".join(_GEN_MODES)}')
    inet6 = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _GEN_MODES[value])]}
    return {"IFLA_AF_SPEC": {"attrs": [("AF_INET6", inet6)]}}


def _protodown(ipr: IPRoute, argument: str, value: Any) -> dict[str, Any]:
    return {"IFLA_PROTO_DOWN": int(bool(value))}


SETTINGS: tuple[Setting, ...] = (
    _number("txqueuelen", "IFLA_TXQLEN", 0, U32, "qlen", "txqlen"),
    Setting("broadcast", _broadcast, "LLADDR (such as ff:ff:ff:ff:ff:ff)", also=("brd",)),
    Setting("alias", _alias, f"TEXT (up to {_ALIAS_MAX} bytes)"),
    Setting("altname", _altname, f"NAME (up to {_ALTNAME_MAX} bytes)"),
    Setting("devgroup", _group, "GROUP (a number, or a name of /etc/iproute2/group)"),
    Setting("master", _master, "DEVICE", also=("vrf",)),
    *(_bit(name) for name in _BITS if name != "up"),
    Setting("addrgenmode", _gen_mode, ", ".join(_GEN_MODES)),
    Setting("protodown", _protodown, "on or off"),
    _number("gso_max_size", "IFLA_GSO_MAX_SIZE", 0, U32),
    _number("gso_max_segs", "IFLA_GSO_MAX_SEGS", 0, 65535),
    _told("gro_max_size", "IFLA_GRO_MAX_SIZE", 0, U32),  # Linux 5.17
    Setting("index", _index, f"1 to {(1 << 31) - 1}", creation=True),
    _number("numtxqueues", "IFLA_NUM_TX_QUEUES", 1, 4096, creation=True),
    _number("numrxqueues", "IFLA_NUM_RX_QUEUES", 1, 4096, creation=True),
)
_BY_NAME = {setting.name: setting for setting in (*SETTINGS, _bit("up"))}


class Attributes(NamedTuple):
    """Settings as pyroute2 wants them: for the request that makes the device, and for a later one."""

    creation: dict[str, Any]
    later: dict[str, Any]
    altname: str | None


def attributes(ipr: IPRoute, settings: Mapping[str, Any], *, exists: bool) -> Attributes:
    """Settings by their names. exists: the device does. Raises InputError."""
    creation: dict[str, Any] = {}
    later: dict[str, Any] = {}
    for name, value in settings.items():
        setting = _BY_NAME.get(name)
        if setting is None:
            raise InputError(name, f"unknown; allowed are {', '.join(_BY_NAME)}")
        if setting.creation and exists:
            raise InputError(name, "can be given when a link is made only")
        for key, number in setting.read(ipr, name, value).items():
            into = creation if setting.creation else later
            into[key] = into.get(key, 0) | number if key in ("flags", "change") else number
    return Attributes(creation, later, later.pop("altname", None))


def apply(ipr: IPRoute, index: int, wanted: Attributes) -> None:
    """Sets what can be set on a device that exists."""
    if wanted.later:
        ipr.link("set", index=index, **wanted.later)
    if wanted.altname is not None:
        ipr.link("property_add", index=index, altname=[wanted.altname])


def group_name(number: int) -> str:
    """The name of a device group, as `ip` prints it."""
    if not number:
        return "default"  # without a look at the file: most devices are in it
    from pyroute2.netlink.rt_files import GroupFile

    return str(GroupFile().id2name.get(number, number))


def kind(device: Any) -> str:
    """The type of a device, as `ip` calls it; empty for one that has none."""
    info = device.get_attr("IFLA_LINKINFO")
    return str(info.get_attr("IFLA_INFO_KIND") or "") if info else ""
