# SPDX-License-Identifier: Apache-2.0
"""The words of xmasq link: those of `ip link`, of `ip link … type vxlan`, and its own."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any

from .. import _device, _vxlan
from .._errors import InputError
from .words import Word, choice, either, hex_byte, lease_ms, number, pair, text

#: The dest of an option of the vxlan device, and of a setting of any device, begins with these.
VXLAN, DEVICE = "vxlan.", "device."

_ON_OFF = choice({"on": True, "off": False})
_MTUS = "68 to the underlay's MTU"
_U64 = (1 << 64) - 1


def _name_or_byte(name: str, word: str) -> Any:
    """A TOS byte, or a name of one, which the API looks up."""
    return word if re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{2,}", word) else hex_byte(name, word)


#: How a word of each option is read; the API checks again what comes out.
_READ: dict[str, Callable[[str, str], Any]] = {
    "ttl": either({"auto": "auto", "inherit": "inherit"}, number(1, 255)),
    "tos": either({"inherit": "inherit"}, _name_or_byte),
    "df": choice({"unset": "unset", "set": "set", "inherit": "inherit"}),
    "flowlabel": number(0, (1 << 20) - 1),
    "srcport": pair(number(0, 65535)),
    "ageing": either({"none": "none"}, number(0, _vxlan.U32)),
    "maxaddress": either({"unlimited": "unlimited"}, number(0, _vxlan.U32)),
    "reserved_bits": number(0, _U64),
}
_SETTING: dict[str, Callable[[str, str], Any]] = {
    "alias": text,
    "altname": text,
    "devgroup": text,
    "broadcast": text,
    "master": text,
    "addrgenmode": text,
    **{setting.name: _ON_OFF for setting in _device.SETTINGS if setting.takes == "on or off"},
}
_U32_SETTING = number(0, _vxlan.U32)


def _vxlan_words() -> tuple[Word, ...]:
    words: list[Word] = []
    for option in _vxlan.OPTIONS:
        dest = VXLAN + option.name
        if option.takes:
            follow = 2 if option.name == "srcport" else 1
            words.append(
                Word(option.name, dest, _READ[option.name], option.takes, also=option.also, follow=follow)
            )
        else:
            words.append(Word(option.name, dest, value=True))
            if option.name not in ("gbp", "gpe"):
                words.append(Word("no" + option.name, dest, value=False))
    return tuple(words)


def _device_words(creation: bool) -> tuple[Word, ...]:
    words = [
        Word(
            setting.name,
            DEVICE + setting.name,
            _SETTING.get(setting.name, _U32_SETTING),
            setting.takes,
            also=setting.also,
        )
        for setting in _device.SETTINGS
        if creation or not setting.creation
    ]
    return (*words, Word("nomaster", DEVICE + "master", value=None))


def refuse(why: str) -> Callable[[str, str], Any]:
    """For a word that `ip` has, and that cannot be."""

    def read(name: str, word: str) -> Any:
        raise InputError(name, why)

    return read


_NETNS_ADD = (
    "a link works in the namespace of its underlay only, since encoded packets cannot cross to another; "
    'allowed is "xmasq -n NAME link add"'
)
_NETNS_SET = (
    "a link cannot leave its namespace: encoded packets could not follow it; allowed is to delete it, "
    "and to add one there"
)
_NO_LINK = 'an xmasq link names its underlay by "dev", behind "type xmasq"'
_FIXED = "cannot be changed: it is part of what peers know the link by; allowed is to delete and add the link"

NAME = Word("name", "name", text, "NAME (1 to 15 bytes)")
TYPE = Word("type", "type", choice({"xmasq": "xmasq"}), "xmasq")
UP, DOWN = Word("up", "up", value=True), Word("down", "up", value=False)
_MTU = Word("mtu", "mtu", number(68, None, _MTUS), f"MTU ({_MTUS})")
_ADDRESS = Word("address", "address", text, "LLADDR (such as 02:00:00:00:00:01)")
_REMOTE = Word("remote", "remote", text, "ADDR (of a host)")
_GROUP = Word("group", "group", text, "ADDR (a multicast group) or GROUP (a device group)")
_LEARNING = (Word("learning", "learning", value=True), Word("nolearning", "learning", value=False))
_FASTPATH = Word("fastpath", "fastpath", _ON_OFF, "on or off")
_LEASE = Word("lease", "lease_ms", lease_ms, "TIME (1s to 60s)")
_SECRET = Word("secret-file", "secret_file", text, "PATH (of a file that only you can read)")
_DSCP = "DSCP (3, 7, 11 and so on to 63)"
_NETNS_TAKES = "NAME"

ADD = (
    NAME,
    _MTU,
    _ADDRESS,
    UP,
    DOWN,
    TYPE,
    Word("id", "vni", number(0, 16777215), "VNI (0 to 16777215)", also=("vni",)),
    Word("local", "local", text, "ADDR (an address of this host)"),
    Word("dev", "dev", text, "DEVICE[,DEVICE…] (that reach the peers)"),
    _REMOTE,
    _GROUP,
    Word("dstport", "port", number(0, 65535), "PORT (0 to 65535)"),
    *_LEARNING,
    *_vxlan_words(),
    *_device_words(True),
    Word("netns", "netns", refuse(_NETNS_ADD), _NETNS_TAKES),
    Word("link", "link", refuse(_NO_LINK), "DEVICE"),
    _LEASE,
    _SECRET,
    _FASTPATH,
    Word("segment-bits", "seg_bits", number(4, 8), "4 to 8"),
    Word("key-bits", "key_bits", number(0, 3), "0 to 3"),
    Word("mark", "mark", number(0, 63), _DSCP),
    Word("bounce", "bounce", number(0, 63), _DSCP),
    Word("flows", "flows", number(1024, 1 << 20), "1024 to 1048576"),
)
_LINK = Word("dev", "name", text, "NAME (of an xmasq link)")
DELETE = (Word("name", "name", text, "NAME (of an xmasq link)", also=("dev",)), TYPE)
PRUNE: tuple[Word, ...] = ()
SHOW = (
    DELETE[0],
    UP,
    TYPE,
    Word("master", "master", text, "DEVICE", also=("vrf",)),
    Word("group", "group", text, "GROUP (a device group)"),
)
SET = (
    _LINK,
    TYPE,
    Word("name", "new_name", text, "NAME (1 to 15 bytes)"),
    UP,
    DOWN,
    _MTU,
    _ADDRESS,
    _REMOTE,
    _GROUP,
    *_LEARNING,
    *_vxlan_words(),
    *_device_words(False),
    _FASTPATH,
    _LEASE,
    _SECRET,
    Word("netns", "netns", refuse(_NETNS_SET), _NETNS_TAKES),
    *(
        Word(name, name, refuse(_FIXED), "a value", also=also)
        for name, also in (
            ("id", ("vni",)),
            ("local", ()),
            ("dstport", ()),
            ("segment-bits", ()),
            ("key-bits", ()),
            ("mark", ()),
            ("bounce", ()),
            ("flows", ()),
        )
    ),
)


def gather(found: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the API: options of the vxlan device and settings of the device in their places.

    `ip` has the word group for two things: a multicast group of a vxlan device is an IP address.
    """
    vxlan = {key.removeprefix(VXLAN): found.pop(key) for key in list(found) if key.startswith(VXLAN)}
    device = {key.removeprefix(DEVICE): found.pop(key) for key in list(found) if key.startswith(DEVICE)}
    if (group := found.pop("group", None)) is not None:
        try:
            ipaddress.ip_address(group)
        except ValueError:
            if "devgroup" in device:
                raise InputError("group", f'given twice: "{group}" is the second value') from None
            device["devgroup"] = group
        else:
            if "remote" in found:
                raise InputError("group", "given twice: group and remote exclude each other")
            found["remote"] = group
    return found | ({"vxlan": vxlan} if vxlan else {}) | ({"device": device} if device else {})


USAGE = """\
Usage: xmasq link add [ name ] NAME [ DEVICE SETTINGS ] [ type xmasq ] id VNI local ADDR
                      [ dev DEVICE[,…] ] [ { remote | group } ADDR ] [ dstport PORT ]
                      [ srcport MIN MAX ] [ [no]learning ] [ ageing SECONDS ]
                      [ maxaddress NUMBER ] [ ttl TTL ] [ tos TOS ] [ df DF ]
                      [ flowlabel LABEL ] [ reserved_bits BITS ] [ [no]proxy ] [ [no]rsc ]
                      [ [no]l2miss ] [ [no]l3miss ] [ [no]udpcsum ] [ [no]udp6zerocsumtx ]
                      [ [no]udp6zerocsumrx ] [ [no]remcsumtx ] [ [no]remcsumrx ]
                      [ [no]localbypass ] [ [no]mcroute ] [ noexternal ] [ novnifilter ]
                      [ lease TIME ] [ fastpath { on | off } ] [ secret-file PATH ]
                      [ segment-bits BITS ] [ key-bits BITS ] [ mark DSCP ] [ bounce DSCP ]
                      [ flows NUMBER ]
       xmasq link delete [ dev ] NAME
       xmasq link set [ dev ] NAME [ name NEWNAME ] [ DEVICE SETTINGS ] [ type xmasq ]
                      [ { remote | group } ADDR ] [ [no]learning ] [ ageing SECONDS ] [ ttl TTL ]
                      [ tos TOS ] [ df DF ] [ flowlabel LABEL ] [ [no]localbypass ]
                      [ lease TIME ] [ fastpath { on | off } ] [ secret-file PATH ]
       xmasq link prune
       xmasq link [ show [ [ dev ] NAME ] [ up ] [ master DEVICE ] [ group GROUP ] ]

DEVICE SETTINGS are those of ip link: [ up | down ] [ mtu MTU ] [ address LLADDR ]
       [ broadcast LLADDR ] [ txqueuelen PACKETS ] [ alias TEXT ] [ altname NAME ]
       [ { group | devgroup } GROUP ] [ master DEVICE | nomaster ] [ addrgenmode MODE ]
       [ { arp | multicast | allmulticast | promisc | dynamic | trailers | protodown } { on | off } ]
       [ gso_max_size BYTES ] [ gso_max_segs PACKETS ] [ gro_max_size BYTES ]
       and for link add: [ index IDX ] [ numtxqueues NUMBER ] [ numrxqueues NUMBER ]

Refused, with the reason: external, vnifilter, gbp, gpe, netns, link.

Where: VNI   := 0 to 16777215
       MTU   := 68 to the underlay's, which is the default
       ADDR  := an IPv4 or IPv6 address; that of local is one of this host's
       TTL   := { 1 to 255 | auto | inherit }
       TOS   := { 00 to ff | NAME | inherit }
       DF    := { unset | set | inherit }
       LABEL := 0 to 1048575 (IPv6 only)
       TIME  := 1s to 60s, for example 10s (the default) or 1500ms
       DSCP  := { 3 | 7 | 11 | ... | 63 }, the same on all hosts (default: mark 3, bounce 7)
       segment-bits := 4 to 8 (default 6), key-bits := 0 to 3 (default 0)
       flows := 1024 to 1048576 (default 65536)
"""
