# SPDX-License-Identifier: Apache-2.0
"""xmasq link: the links themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import xmasq_link as api

from .._errors import InputError
from .._vxlan import OPTIONS
from . import linkwords
from .command import Command
from .linkwords import ADD, DELETE, SET, SHOW, gather
from .output import Options, show
from .secret import read_secret
from .words import parse, require

if TYPE_CHECKING:
    from xmasq_link import Link

USAGE = linkwords.USAGE

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
    "bounces": (
        "bounce_tx",
        "bounce_rx",
        "restored",
        "stray",
        "path_off",
        "peer_gone",
        "icmp_rx",
        "icmp_refused",
    ),
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
        "icmp_stray",
    ),
}
_FALLBACK = "fb_"
_ALONE = {"encoded", "encoded_bytes", "decoded", "decoded_bytes", "fallback", "bounced"}


def add(words: Sequence[str], options: Options) -> None:
    """xmasq link add"""
    if list(words[:1]) == ["dev"]:  # `ip` takes this for the name, too
        words = ["name", *words[1:]]
    found = parse(words, ADD, "link add", bare="name")
    require(found, ADD, "link add", "name", "vni", "local")
    found.pop("type", None)
    if (path := found.pop("secret_file", None)) is not None:
        found["secret"] = read_secret(path)
    api.create_link(found.pop("name"), **gather(found))


def delete(words: Sequence[str], options: Options) -> None:
    """xmasq link delete"""
    found = parse(words, DELETE, "link delete", bare="name")
    require(found, DELETE, "link delete", "name")
    api.delete_link(found["name"])


def set_(words: Sequence[str], options: Options) -> None:
    """xmasq link set"""
    found = parse(words, SET, "link set", bare="dev")
    require(found, SET, "link set", "name")
    name = found.pop("name")
    found.pop("type", None)
    if not found:
        raise InputError("link set", "nothing to change; allowed are " + ", ".join(w.name for w in SET[2:]))
    if (path := found.pop("secret_file", None)) is not None:
        found["secret"] = read_secret(path)
    api.set_link(name, **gather(found))


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
        words += _detail_words(data)
    return " ".join(words)


def _detail_words(data: Mapping[str, Any]) -> list[str]:
    """The rest, in the words that link add takes."""
    spelled = {option.shown: option.name for option in OPTIONS}
    words = []
    for key, value in data.items():
        name = spelled.get(key, key)
        match key, value:
            case "ttl", 0:
                words.append("ttl auto")
            case "tos", 1:
                words.append("tos inherit")
            case "tos", int():
                words.append(f"tos {value:#x}")
            case (("label" | "reserved_bits"), int()):
                words.append(f"{name} {value:#x}")
            case "port_range", _:
                words.append(f"{name} {value['low']} {value['high']}")
            case "limit", 0:
                words.append(f"{name} unlimited")
            case _, bool():
                words.append(name if value else f"no{name}")
            case _, None:
                pass
            case _:
                words.append(f"{name} {value}")
    return words


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
    Command("set", set_, also=("change",), changes=True, whole=True),
    Command("delete", delete, changes=True, whole=True),
    Command("show", show_, also=("list", "lst")),
)
