# SPDX-License-Identifier: Apache-2.0
"""xmasq link: the links themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import xmasq_link as api

from .._errors import InputError
from .command import Command
from .output import Options, show
from .secret import read_secret
from .words import Word, choice, either, hex_byte, lease_ms, number, parse, require, text

if TYPE_CHECKING:
    from xmasq_link import Link

_U32 = (1 << 32) - 1
_NAME = Word("name", "name", text, "NAME (1 to 15 bytes)")
_DEVICE = Word("name", "name", text, "NAME (of an xmasq link)", also=("dev",))
_TYPE = Word("type", "type", choice({"xmasq": "xmasq"}), "xmasq")
_UP = Word("up", "up", value=True)
_DOWN = Word("down", "up", value=False)
_MTUS = "68 to the underlay's MTU"
_MTU = Word("mtu", "mtu", number(68, None, _MTUS), f"MTU ({_MTUS})")
_LEASE = Word("lease", "lease_ms", lease_ms, "TIME (1s to 60s)")
_SECRET = Word("secret-file", "secret_file", text, "PATH (of a file that only you can read)")

#: dest of a word that is an attribute of the vxlan device: with this prefix.
_VXLAN = "vxlan_"

ADD = (
    _NAME,
    _MTU,
    Word("address", "address", text, "LLADDR (such as 02:00:00:00:00:01)"),
    _UP,
    _DOWN,
    _TYPE,
    Word("id", "vni", number(0, 16777215), "VNI (0 to 16777215)", also=("vni",)),
    Word("local", "local", text, "ADDR (an IPv4 address of this host)"),
    Word("dev", "dev", text, "DEVICE (that reaches the peers)"),
    Word("remote", "remote", text, "ADDR (an IPv4 address)"),
    Word("dstport", "port", number(1, 65535), "PORT (1 to 65535)", also=("port",)),
    Word("learning", "learning", value=True),
    Word("nolearning", "learning", value=False),
    Word(
        "ttl", "ttl", either({"auto": 0, "inherit": "inherit"}, number(1, 255)), "1 to 255, auto or inherit"
    ),
    Word("tos", "vxlan_tos", either({"inherit": 1}, hex_byte), "00 to ff or inherit", also=("dsfield",)),
    Word("ageing", "vxlan_ageing", number(0, _U32), f"SECONDS (0 to {_U32})"),
    Word(
        "maxaddress",
        "vxlan_limit",
        either({"unlimited": 0}, number(0, _U32)),
        f"0 to {_U32} or unlimited",
    ),
    Word("udpcsum", "vxlan_udp_csum", value=1),
    Word("noudpcsum", "vxlan_udp_csum", value=0),
    _LEASE,
    _SECRET,
    Word("segment-bits", "seg_bits", number(4, 8), "4 to 8"),
    Word("key-bits", "key_bits", number(0, 3), "0 to 3"),
)
DELETE = (_DEVICE, _TYPE)
SHOW = (_DEVICE, _UP, _TYPE)
SET = (
    _DEVICE,
    _TYPE,
    _UP,
    _DOWN,
    _MTU,
    Word("fastpath", "fastpath", choice({"on": True, "off": False}), "on or off"),
    _LEASE,
    _SECRET,
)

USAGE = """\
Usage: xmasq link add [ name ] NAME [ mtu MTU ] [ address LLADDR ] [ up | down ]
                      [ type xmasq ] id VNI local ADDR [ dev DEVICE ]
                      [ remote ADDR ] [ dstport PORT ] [ [no]learning ]
                      [ ttl TTL ] [ tos TOS ] [ ageing SECONDS ]
                      [ maxaddress NUMBER ] [ [no]udpcsum ] [ lease TIME ]
                      [ secret-file PATH ] [ segment-bits BITS ]
                      [ key-bits BITS ]
       xmasq link delete [ dev ] NAME
       xmasq link set [ dev ] NAME [ up | down ] [ mtu MTU ]
                      [ fastpath { on | off } ] [ lease TIME ]
                      [ secret-file PATH ]
       xmasq link [ show [ [ dev ] NAME ] [ up ] ]

Where: VNI  := 0 to 16777215
       MTU  := 68 to the underlay's, which is the default
       ADDR := an IPv4 address; that of local is one of this host's
       TTL  := { 1 to 255 | auto | inherit }
       TOS  := { 00 to ff | inherit }
       TIME := 1s to 60s, for example 10s (the default) or 1500ms
       segment-bits := 4 to 8 (default 6), key-bits := 0 to 3 (default 0)
"""

#: Counters by what they are about; what has no place here is shown under "other".
_GROUPS: dict[str, tuple[str, ...]] = {
    "negotiation": (
        "announced",
        "offer_tx",
        "offer_rx",
        "accept_tx",
        "accept_rx",
        "confirm_tx",
        "confirm_rx",
        "not_owner",
        "untold",
        "held",
        "exhausted",
        "moved",
    ),
    "bounces": ("bounce_tx", "bounce_rx", "restored", "stray", "path_off"),
    "defence": (
        "sanitised",
        "ctl_bad",
        "ctl_version",
        "ctl_path",
        "ctl_unsolicited",
        "ctl_nonce",
        "ctl_auth",
        "ctl_params",
        "ctl_conflict",
    ),
}
_FALLBACK = "fb_"
_ALONE = {"encoded", "encoded_bytes", "decoded", "decoded_bytes", "fallback", "bounced"}


def add(words: Sequence[str], options: Options) -> None:
    """xmasq link add"""
    found = parse(words, ADD, "link add", bare="name")
    require(found, ADD, "link add", "name", "vni", "local")
    found.pop("type", None)
    vxlan = {key: found.pop(key) for key in list(found) if key.startswith(_VXLAN)}
    match found.pop("ttl", None):
        case "inherit":
            vxlan["vxlan_ttl_inherit"] = True
        case int(ttl):
            vxlan["vxlan_ttl"] = ttl
    if (path := found.pop("secret_file", None)) is not None:
        found["secret"] = read_secret(path)
    api.create_link(found.pop("name"), **found, vxlan=vxlan or None)


def delete(words: Sequence[str], options: Options) -> None:
    """xmasq link delete"""
    found = parse(words, DELETE, "link delete", bare="name")
    require(found, DELETE, "link delete", "name")
    api.delete_link(found["name"])


def set_(words: Sequence[str], options: Options) -> None:
    """xmasq link set"""
    found = parse(words, SET, "link set", bare="name")
    require(found, SET, "link set", "name")
    name = found.pop("name")
    found.pop("type", None)
    if not found:
        raise InputError("link set", "nothing to change; allowed are " + ", ".join(w.name for w in SET[2:]))
    if (path := found.pop("secret_file", None)) is not None:
        found["secret"] = read_secret(path)
    api.set_link(name, **found)


def show_(words: Sequence[str], options: Options) -> None:
    """xmasq link show"""
    found = parse(words, SHOW, "link show", bare="name")
    links = api.links(found.get("name"))
    if "up" in found:
        links = [link for link in links if link.up]

    def as_dict(link: Link) -> dict[str, Any]:
        return link.info | {"xmasq": link.stats} if options.stats else link.info

    show(links, lambda link: as_text(link, options), options, as_dict)


def as_text(link: Link, options: Options) -> str:
    """A link in the lines of `ip -d link show`, and its counters if they are wanted."""
    lines = [_device_line(link), _address_line(link, options.details), _type_line(link, options.details)]
    if options.stats:
        lines += counter_lines(link.stats)
    return "\n    ".join(lines)


def _device_line(link: Link) -> str:
    info = link.info
    words = [f"{link.index}: {link.name}: <{','.join(info['flags'])}> mtu {link.mtu}"]
    for key, name in (
        ("qdisc", "qdisc"),
        ("master", "master"),
        ("operstate", "state"),
        ("linkmode", "mode"),
        ("group", "group"),
        ("txqlen", "qlen"),
    ):
        if info.get(key) is not None:
            words.append(f"{name} {info[key]}")
    return " ".join(words)


def _address_line(link: Link, details: bool) -> str:
    info = link.info
    words = [f"link/{info.get('link_type', 'ether')} {link.address}"]
    names = [("broadcast", "brd")]
    if details:
        names += [
            ("promiscuity", "promiscuity"),
            ("allmulti", "allmulti"),
            ("min_mtu", "minmtu"),
            ("max_mtu", "maxmtu"),
        ]
    words += [f"{name} {info[key]}" for key, name in names if info.get(key) is not None]
    return " ".join(words)


def _type_line(link: Link, details: bool) -> str:
    data = dict(link.info["linkinfo"]["info_data"])
    words = [f"xmasq id {data.pop('id', link.vni)}"]
    if data.pop("remote", link.remote):
        words.append(f"remote {link.remote}")
    words.append(f"local {data.pop('local', link.local)} dev {data.pop('dev', link.dev)}")
    words.append(f"dstport {data.pop('port', link.port)}")
    if not data.pop("learning", link.learning):
        words.append("nolearning")
    data.pop("lease", None)
    words.append(f"lease {link.lease_ms / 1000:g}s")
    data.pop("fastpath", None)
    words.append(f"fastpath {'on' if link.fastpath else 'off'}")
    if data.pop("secret", link.secret):
        words.append("secret")
    if data.pop("attached", link.attached):
        words.append("attached")
    if details:
        if data.get("ttl") == 0:
            data["ttl"] = "auto"
        for key, value in data.items():
            name = key.replace("_", "")
            if isinstance(value, bool):
                words.append(name if value else f"no{name}")
            elif value is not None:
                words.append(f"{name} {value}")
    return " ".join(words)


def counter_lines(stats: Mapping[str, int]) -> list[str]:
    """Counters, grouped; of most groups only those that are not 0."""

    def some(names: Sequence[str], cut: int = 0) -> str:
        return ", ".join(f"{n[cut:].replace('_', ' ')} {stats[n]}" for n in names if stats.get(n)) or "none"

    reasons = [name for name in stats if name.startswith(_FALLBACK)]
    lines = [
        f"{name:<12} {stats.get(name, 0)} packets, {stats.get(name + '_bytes', 0)} bytes"
        for name in ("encoded", "decoded")
    ]
    fallback = f"{'fallback':<12} {stats.get('fallback', 0)} packets"
    lines.append(fallback + (f": {some(reasons, len(_FALLBACK))}" if stats.get("fallback") else ""))
    lines += [f"{group:<12} {some(names)}" for group, names in _GROUPS.items()]
    placed = {*_ALONE, *reasons, *(name for names in _GROUPS.values() for name in names)}
    other = [name for name in stats if name not in placed and stats[name]]
    if other:
        lines.append(f"{'other':<12} {some(other)}")
    return lines


COMMANDS = (
    Command("add", add, changes=True),
    Command("set", set_, changes=True, whole=True),
    Command("delete", delete, changes=True, whole=True),
    Command("show", show_, also=("list", "lst")),
)
