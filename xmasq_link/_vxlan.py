# SPDX-License-Identifier: Apache-2.0
"""The options of the vxlan device under a link: one table for the API, the command line and `ip`.

Words, ranges and meanings are those of `ip link help vxlan` (iproute2, ip/iplink_vxlan.c). Left out
are id, local, remote and group, dev, dstport and learning, which the datapath has to know, too.
The command line imports this for every command, so pyroute2 is not imported here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ._attr import reader
from ._errors import InputError

U32, U64 = (1 << 32) - 1, (1 << 64) - 1
_DF = {"unset": 0, "set": 1, "inherit": 2}
_UDP_PORT = Path("/sys/module/vxlan/parameters/udp_port")
_BTF = Path("/sys/kernel/btf")

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Option(NamedTuple):
    """An option of a vxlan device.

    name: the word of `ip`. attribute: pyroute2's name for it. read: turns a value that the API takes
    into the kernel's, raises InputError. default: the kernel's value if nothing is said. shown: its
    key in `ip -j -d link show`. takes: its values in words; "": a switch, with "no" in front for off.
    running: it can be changed in a link that exists (vxlan_core.c, vxlan_nl2conf). refused: why a
    link that has it would not work. also: further spellings.
    """

    name: str
    attribute: str
    read: Callable[[str, Any], Any]
    default: Any
    shown: str
    takes: str = ""
    running: bool = False
    refused: str = ""
    also: tuple[str, ...] = ()


def _number(low: int, high: int, **words: int) -> Callable[[str, Any], int]:
    def read(name: str, value: Any) -> int:
        if isinstance(value, str) and value in words:
            return words[value]
        if type(value) is not int or not low <= value <= high:
            named = "".join(f" or {word}" for word in words)
            raise InputError(name, f"{value!r} is not allowed, allowed is {low} to {high}{named}")
        return value

    return read


def _switch(name: str, value: Any) -> int:
    if type(value) is not bool:
        raise InputError(name, f"{value!r} is not allowed, allowed is True or False")
    return int(value)


def _tos(name: str, value: Any) -> int:
    if isinstance(value, str) and value != "inherit":
        from pyroute2.netlink.rt_files import RtDsfieldFile

        number = RtDsfieldFile().name2id.get(value)
        if number is None:
            raise InputError(name, f'"{value}" is no TOS byte, and no name of /etc/iproute2/rt_dsfield')
        return int(number)
    return _number(0, 255, inherit=1)(name, value)


def _df(name: str, value: Any) -> int:
    if value not in _DF:
        raise InputError(name, f"{value!r} is not allowed, allowed is {' or '.join(_DF)}")
    return _DF[value]


def _ports(name: str, value: Any) -> dict[str, int]:
    low, high = value
    for port in (low, high):
        if not 0 <= port <= 65535:
            raise InputError(name, f"{port} is out of range, allowed is 0 to 65535")
    if high < low:
        raise InputError(name, f"{low} to {high} is no range: the lower port comes first")
    return {"low": low, "high": high}


_GPE = "its packets have no inner Ethernet header, and an xmasq link carries Ethernet frames"
_GBP = "an encoded packet has no room for the group policy id, so the policy would not hold for it"
_EXTERNAL = "the device would have no VNI and no VTEP address of its own, which a key belongs to"

OPTIONS: tuple[Option, ...] = (
    Option(
        "ttl",
        "vxlan_ttl",
        _number(0, 255, auto=0),
        0,
        "ttl",
        "1 to 255, auto or inherit",
        True,
        also=("hoplimit",),
    ),
    Option(
        "tos",
        "vxlan_tos",
        _tos,
        0,
        "tos",
        "00 to ff, a name or inherit",
        True,
        also=("dsfield",),
    ),
    Option("df", "vxlan_df", _df, 0, "df", "unset, set or inherit", True),
    Option(
        "flowlabel",
        "vxlan_label",
        _number(0, (1 << 20) - 1),
        0,
        "label",
        "0 to 1048575 (IPv6 only)",
        True,
        also=("label",),
    ),
    Option(
        "srcport",
        "vxlan_port_range",
        _ports,
        {"low": 0, "high": 0},
        "port_range",
        "MIN MAX (0 to 65535)",
        also=("port",),
    ),
    Option("ageing", "vxlan_ageing", _number(0, U32, none=0), 300, "ageing", f"0 to {U32} or none", True),
    Option("maxaddress", "vxlan_limit", _number(0, U32, unlimited=0), 0, "limit", f"0 to {U32} or unlimited"),
    Option("reserved_bits", "vxlan_reserved_bits", _number(0, U64), None, "reserved_bits", f"0 to {U64:#x}"),
    Option("proxy", "vxlan_proxy", _switch, 0, "proxy"),
    Option("rsc", "vxlan_rsc", _switch, 0, "rsc"),
    Option("l2miss", "vxlan_l2miss", _switch, 0, "l2miss"),
    Option("l3miss", "vxlan_l3miss", _switch, 0, "l3miss"),
    Option("udpcsum", "vxlan_udp_csum", _switch, 1, "udp_csum"),
    Option("udp6zerocsumtx", "vxlan_udp_zero_csum6_tx", _switch, 0, "udp_zero_csum6_tx"),
    Option("udp6zerocsumrx", "vxlan_udp_zero_csum6_rx", _switch, 0, "udp_zero_csum6_rx"),
    Option("remcsumtx", "vxlan_remcsum_tx", _switch, 0, "remcsum_tx"),
    Option("remcsumrx", "vxlan_remcsum_rx", _switch, 0, "remcsum_rx"),
    Option("localbypass", "vxlan_localbypass", _switch, 1, "localbypass", running=True),
    Option("mcroute", "vxlan_mc_route", _switch, 0, "mcroute"),
    Option("external", "vxlan_collect_metadata", _switch, 0, "external", refused=_EXTERNAL),
    Option("vnifilter", "vxlan_vnifilter", _switch, 0, "vnifilter", refused=_EXTERNAL),
    Option("gbp", "vxlan_gbp", _switch, 0, "gbp", refused=_GBP),
    Option("gpe", "vxlan_gpe", _switch, 0, "gpe", refused=_GPE),
)
_BY_NAME = {option.name: option for option in OPTIONS}


def attributes(options: Mapping[str, Any], local: IpAddress, *, running: bool = False) -> dict[str, Any]:
    """Options by their names, as pyroute2 wants them. running: for a link that exists.

    Raises InputError.
    """
    found: dict[str, Any] = {}
    for name, value in options.items():
        option = _BY_NAME.get(name)
        if option is None:
            raise InputError(name, f"unknown; allowed are {', '.join(_BY_NAME)}")
        if running and (not option.running or (name, value) == ("ttl", "inherit")):
            raise InputError(name, "can be given when a link is made only: the kernel cannot change it")
        if (name, value) == ("ttl", "inherit"):
            found["vxlan_ttl_inherit"] = True
            continue
        number = option.read(name, value)
        if option.refused and number:
            raise InputError(name, f"not for an xmasq link: {option.refused}")
        if name == "flowlabel" and number and local.version == 4:
            raise InputError(name, f"is for an IPv6 local only, and {local} is an IPv4 address")
        if option.attribute not in ("vxlan_gbp", "vxlan_gpe", "vxlan_collect_metadata", "vxlan_vnifilter"):
            found[option.attribute] = number
    return found


def check(asked: Mapping[str, Any], data: Any) -> None:
    """Compares what was asked for with what the device says it has.

    data: its IFLA_INFO_DATA. A kernel that does not know an attribute passes over it without a word.
    Raises InputError.
    """
    for option in OPTIONS:
        want = asked.get(option.attribute)
        have = _value(option, data.get_attr)
        if want is None or have == want:
            continue
        if option.name == "ageing" and not want:  # "none" makes the kernel take its default
            continue
        if have is None and (want == option.default or _in_btf(option.attribute)):
            continue  # Linux 6.17 and 6.18 have mcroute, and do not tell
        raise InputError(option.name, "this kernel does not know it")
    if asked.get("vxlan_ttl_inherit") and not data.get_attr("IFLA_VXLAN_TTL_INHERIT"):
        raise InputError("ttl", 'this kernel does not know "inherit"')


def known(asked: Mapping[str, Any], data: Any) -> dict[str, Any]:
    """Of a change that is asked for, what the kernel can be told: it refuses one of nothing that it knows.

    data: the device's IFLA_INFO_DATA, which has all that can be changed. Raises InputError for what is
    not the default of a kernel that does not know it.
    """
    found = dict(asked)
    for option in OPTIONS:
        want = asked.get(option.attribute)
        if want is None or _value(option, data.get_attr) is not None or _in_btf(option.attribute):
            continue
        if want != option.default:
            raise InputError(option.name, "this kernel does not know it")
        del found[option.attribute]
    return found


def present(data: Any, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What a device has for these attributes now: to go back to it. data: its IFLA_INFO_DATA."""
    found = {name: data.get_attr(f"IFLA_{name.upper()}") for name in attributes}
    for name, none in (("vxlan_group", "0.0.0.0"), ("vxlan_group6", "::")):
        if name in found and found[name] is None:
            found[name] = none
    return {name: value for name, value in found.items() if value is not None}


def _in_btf(attribute: str) -> bool:
    """Whether the running kernel has an attribute, by its type data, or that of its vxlan module."""
    name = f"\0IFLA_{attribute.upper()}\0".encode()
    files = (_BTF / "vmlinux", _BTF / "vxlan")
    return any(name in file.read_bytes() for file in files if file.exists())


def _value(option: Option, attr: Callable[[str], Any]) -> Any:
    value = attr(f"IFLA_{option.attribute.upper()}")
    if option.name == "srcport" and value is not None:
        return {"low": value["low"], "high": value["high"]}
    return value


def shown(data: Any) -> dict[str, Any]:
    """The options that a device has, by the keys of `ip -j -d link show`.

    data: its IFLA_INFO_DATA. Two differ from `ip`, which leaves them out: "ttl" may be "inherit".
    """
    attr = reader(data)
    found: dict[str, Any] = {}
    for option in OPTIONS:
        value = _value(option, attr)
        if value is None:
            continue
        if option.name == "ttl" and attr("IFLA_VXLAN_TTL_INHERIT"):
            value = "inherit"
        elif option.name == "df":
            value = next((word for word, number in _DF.items() if number == value), value)
        elif not option.takes:
            value = bool(value)
        found[option.shown] = value
    return found


def default_port() -> int:
    """The UDP port that Linux takes where none is given (dstport 0)."""
    try:
        return int(_UDP_PORT.read_text())
    except (OSError, ValueError):
        return 8472
