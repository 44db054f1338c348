# SPDX-License-Identifier: Apache-2.0
"""xmasq link: the links themselves."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import xmasq_link as api

from .._errors import InputError
from .._vxlan import OPTIONS
from . import linkwords
from .command import Command
from .counters import counter_lines, stats64, traffic_lines
from .linkwords import ADD, DELETE, PRUNE, SET, SHOW, gather
from .output import Options, one_line, show
from .secret import read_secret
from .words import parse, require

if TYPE_CHECKING:
    from xmasq_link import Link

USAGE = linkwords.USAGE


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


def prune(words: Sequence[str], options: Options) -> None:
    """xmasq link prune"""
    parse(words, PRUNE, "link prune")
    show([api.prune_links()], lambda n: f"{n} pruned", options, lambda n: {"pruned": n})


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
    links = api.iter_links(found.get("name"))
    if "up" in found:
        links = (link for link in links if link.up)
    wanted = {key: found[key] for key in ("master", "group") if key in found}
    if wanted:
        links = (link for link in links if wanted == {key: link.info.get(key) for key in wanted})

    def as_dict(link: Link) -> dict[str, Any]:
        if options.brief:
            return {key: link.info[key] for key in ("ifname", "operstate", "address", "flags")}
        if not options.stats:
            return link.info
        return link.info | {"stats64": stats64(link.traffic), "xmasq": link.stats}

    show(links, lambda link: as_text(link, options), options, as_dict)


def as_text(link: Link, options: Options) -> str:
    """A link in the lines of `ip -d link show`, and its counters if they are wanted."""
    info = link.info
    if options.brief:
        state = options.paint(str(info["operstate"]).lower(), f"{info['operstate']:<14}")
        name, address = options.paint("name", f"{link.name:<16}"), options.paint("lladdr", link.address)
        return f"{name} {state} {address} <{','.join(info['flags'])}> "
    lines = [_device_line(link, options), _address_line(link, options), _type_line(link, options)]
    if info.get("ifalias"):
        lines.append(f"alias {one_line(info['ifalias'])}")
    lines += [f"altname {name}" for name in info.get("altnames", ())]
    if options.stats:
        lines += traffic_lines(link.traffic) + counter_lines(link.stats)
    return "\n    ".join(lines)


def _device_line(link: Link, options: Options) -> str:
    info = link.info
    words = [f"{link.index}: {options.paint('name', link.name)}: <{','.join(info['flags'])}> mtu {link.mtu}"]
    for key, name in (
        ("qdisc", "qdisc"),
        ("master", "master"),
        ("operstate", "state"),
        ("linkmode", "mode"),
        ("group", "group"),
        ("txqlen", "qlen"),
    ):
        if info.get(key) is not None:
            value = str(info[key])
            words.append(f"{name} {options.paint(value.lower(), value) if name == 'state' else value}")
    return " ".join(words)


def _address_line(link: Link, options: Options) -> str:
    info = link.info
    words = [f"link/{info.get('link_type', 'ether')} {options.paint('lladdr', link.address)}"]
    names = [("broadcast", "brd")]
    if options.details:
        names += [
            ("promiscuity", "promiscuity"),
            ("allmulti", "allmulti"),
            ("min_mtu", "minmtu"),
            ("max_mtu", "maxmtu"),
        ]
    words += [f"{name} {info[key]}" for key, name in names if info.get(key) is not None]
    return " ".join(words)


def _type_line(link: Link, options: Options) -> str:
    data = dict(link.info["linkinfo"]["info_data"])
    words = ["xmasq external" if data.pop("external", False) else f"xmasq id {data.pop('id', link.vni)}"]
    if remote := data.pop("remote", None) or data.pop("remote6", None):
        word = "group" if ipaddress.ip_address(remote).is_multicast else "remote"
        words.append(f"{word} {_paint(remote, options)}")
    local = data.pop("local", None) or data.pop("local6", link.local)
    words.append(f"local {_paint(local, options)} dev {data.pop('dev', link.dev)}")
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
    if options.details:
        words += _detail_words(data)
    return " ".join(words)


def _paint(address: str, options: Options) -> str:
    return options.paint("address6" if ":" in address else "address", address)


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


COMMANDS = (
    Command("add", add, changes=True, grammar=ADD),
    Command("set", set_, also=("change",), changes=True, whole=True, grammar=SET, bare="name"),
    Command("delete", delete, changes=True, whole=True, grammar=DELETE, bare="name"),
    Command("prune", prune, changes=True, whole=True, grammar=PRUNE),
    Command("show", show_, also=("list", "lst"), grammar=SHOW, bare="name"),
)
