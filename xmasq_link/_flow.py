# SPDX-License-Identifier: Apache-2.0
"""What is encoded and decoded at this moment, and ending it before its time."""

from __future__ import annotations

import functools
import ipaddress
import os
import socket
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pyroute2 import IPRoute

from kmod_ebpf import bpf, loader
from kmod_ebpf import maps as m

from . import _hold
from ._datapath import Datapath, api, api_iterator, require_root
from ._errors import InputError, XmasqError
from ._link import device_names, find_links
from ._model import Flow, Key, Peer
from ._netns import Netns, locked

#: So long a host that we have sent to may ask for keys (XM_OWN_AGE in kmod_ebpf/src/parse.h).
_TOLD_NS = 300 * 1_000_000_000


@functools.lru_cache(maxsize=4096)
def _ip(raw: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def ip(raw: Any) -> str:
    """An address as text. There may be a hundred thousand to print, most of them a few peers'."""
    return _ip(bytes(raw))


def mac(raw: Any) -> str:
    """A link layer address as text."""
    return bytes(raw).hex(":")


@api_iterator
def flows(link: str | None = None, *, netns: Netns | None = None) -> Iterator[Flow]:
    """The flows that this host encodes now. Raises InputError for an unknown link."""
    with IPRoute() as ipr, find_links(ipr, link) as found:
        names = device_names(ipr) if found else {}
        for dp, links in found:
            yield from _flows(dp, links, names)


def _flows(dp: Datapath, links: Mapping[int, Any], names: Mapping[int, str]) -> Iterator[Flow]:
    by_index = {x.ifindex: x for x in links.values()}
    pairs = {idx: p.gen for idx, p in dp.values("pairs") if any(p.local)}
    now = _hold.now_ns()
    key_type, value_type = m.LAYOUTS[dp.family]["flows"]
    assert key_type is not None
    assert value_type is not None
    read_key = key_type.reader("smac", "dscp", "variant", "dmac", "sip", "dip", "ifindex")
    read_value = value_type.reader(
        *("lease_end", "oif", "pair_gen", "pair", "local", "peer", "nexthop", "key", "route")
    )
    for raw_key, raw_value in dp.maps["flows"].items():
        smac, dscp, variant, dmac, sip, dip, ifindex = read_key(raw_key)
        end, oif, pair_gen, pair, local, peer, nexthop, key, route = read_value(raw_value)
        at = by_index.get(ifindex)
        vni = at.vni if at is not None else 0
        if ifindex & m.WHERE_EXTERNAL:
            at, vni = m.link_of(ifindex, links)
        if at is not None and at.flags & m.LINK_UP and now < end and pairs.get(pair) == pair_gen:
            yield Flow(
                names.get(at.ifindex) or f"if{at.ifindex}",
                vni,
                smac.hex(":"),
                dmac.hex(":"),
                _ip(sip),
                _ip(dip),
                dscp,
                not variant & m.VAR_NODF,
                _ip(peer),
                _ip(local),
                key,
                (end - now) // 1_000_000,
                names.get(oif) or f"if{oif}",
                _ip(nexthop) if route else None,
            )


@api_iterator
def keys(link: str | None = None, *, netns: Netns | None = None) -> Iterator[Key]:
    """The keys that this host has given and not yet taken back. Raises InputError."""
    with IPRoute() as ipr, find_links(ipr, link) as found:
        names = device_names(ipr) if found else {}
        for dp, links in found:
            yield from _keys(dp, links, names, all_links=link is None)


def _keys(
    dp: Datapath, links: Mapping[int, Any], names: Mapping[int, str], *, all_links: bool
) -> Iterator[Key]:
    now = _hold.now_ns()
    for _, _, s in dp.slots(now):
        at = links.get(s.link)
        state, left = "reserved", 0
        of, vni = m.link_of(s.ifindex, links)
        if of is at and of is not None and of.rx_gen == s.rx_gen:
            if s.valid > now:
                state, left = "granted", max(0, s.valid - now - of.guard_ms * 1_000_000)
            elif s.offered:
                state = "offered"
        if at or all_links:
            yield Key(
                names.get(at.ifindex if at else s.ifindex) or f"if{s.ifindex}",
                vni,
                mac(s.smac),
                mac(s.dmac),
                ip(s.sip),
                ip(s.dip),
                s.dscp,
                not s.variant & m.VAR_NODF,
                ip(s.peer),
                ip(s.local),
                s.key,
                left // 1_000_000,
                bool(s.used),
                state,
            )


@api
def peers(*, netns: Netns | None = None) -> list[Peer]:
    """The remote VTEPs that speak xmasq, and those that this host has sent to in the last minutes and
    that have not been heard to."""
    with IPRoute() as ipr, find_links(ipr) as found:
        return [peer for dp, _ in found for peer in _peers(dp)]


def _peers(dp: Datapath) -> Iterator[Peer]:
    now = _hold.now_ns()
    encoded: Counter[tuple[str, str]] = Counter()
    decoded: Counter[tuple[str, str]] = Counter()
    for _, e in dp.values("flows"):
        if now < e.lease_end:
            encoded[ip(e.local), ip(e.peer)] += 1
    for _, _, s in dp.slots(now):
        if s.valid > now:
            decoded[ip(s.local), ip(s.peer)] += 1
    seen = set()
    for _, p in dp.values("pairs"):
        if any(p.local):
            pair = ip(p.local), ip(p.peer)
            seen.add(pair)
            off = max(0, p.off_until - now)
            yield Peer(
                pair[1],
                pair[0],
                (now - p.heard) // 1_000_000 if p.heard else None,
                encoded[pair],
                decoded[pair],
                "path" if off else "ok" if p.heard else "vxlan",
                off // 1_000_000,
            )
    for k, told in dp.values("told"):
        pair = ip(k.local), ip(k.peer)
        if pair not in seen and now - told.at < _TOLD_NS:
            yield Peer(pair[1], pair[0], None, 0, 0, "vxlan", 0)


def _address(argument: str, text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        return ipaddress.ip_address(text).packed
    except ValueError:
        raise InputError(argument, f'"{text}" is not an IP address') from None


@api
def flush(
    link: str | None = None,
    peer: str | None = None,
    source: str | None = None,
    destination: str | None = None,
    *,
    netns: Netns | None = None,
) -> int:
    """Ends flows and keys before their time; returns how many. All that match, or all.

    The flows' next packets take the fallback and negotiate anew; packets under way with a key of
    ours bounce. The keys stay reserved for as long as their leases would have run. Raises InputError.
    """
    require_root()
    want = {"sip": _address("source", source), "dip": _address("destination", destination)}
    at_peer = _address("peer", peer)
    with locked(), IPRoute() as ipr, find_links(ipr, link) as found:
        return sum(_flush(dp, links, want, at_peer) for dp, links in found)


def _flush(
    dp: Datapath, links: Mapping[int, Any], want: Mapping[str, bytes | None], at_peer: bytes | None
) -> int:
    ended = 0
    now = _hold.now_ns()
    if at_peer is not None and len(at_peer) == len(dp.types.Addr()):
        for x in links.values():
            # A peer that the FDB has no entry for any more must not be offered keys by habit.
            dp.maps["told"].delete(bytes(x.local) + at_peer)

    def matches(flow: Any, of_peer: Any) -> bool:
        return (
            m.link_of(flow.ifindex, links)[0] is not None
            and (at_peer is None or bytes(of_peer) == at_peer)
            and all(v is None or bytes(getattr(flow, k)) == v for k, v in want.items())
        )

    for f, e in list(dp.values("flows")):
        if now < e.lease_end and matches(f, e.peer):
            # Not deleted: memory of a deleted element may be taken for another flow at once.
            e.lease_end = 0
            dp.maps["flows"].update(f.raw(), e.raw())
            ended += 1
    return ended + _end_keys(dp, now, matches)


def _end_keys(dp: Datapath, now: int, matches: Any) -> int:
    """Ends the keys that match, one by one, in the kernel, where the lock can be held."""
    hits = [(b, at, s.seal) for b, at, s in dp.slots(now) if s.valid > now and matches(s, s.peer)]
    if not hits:
        return 0
    try:
        fd = loader.load_program(loader.compile_object(family=dp.family), loader.FLUSH, dp.maps)
    except (loader.CompileError, loader.LoadError) as e:
        raise XmasqError(str(e)) from e
    try:
        return sum(
            bpf.prog_test_run(fd, bytes(14) + struct.pack("<IIQ", *hit) + bytes(34)).retval for hit in hits
        )
    finally:
        os.close(fd)
