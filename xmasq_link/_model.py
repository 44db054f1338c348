# SPDX-License-Identifier: Apache-2.0
"""What the API returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Link:
    """An xmasq link.

    attached: the device was made by others, and attach_link made a link of it.
    info: the same as a dictionary shaped like an element of `ip -j -d link show`.
    stats: counters of the datapath, by name (docs/cli.md); empty unless asked for.
    """

    name: str
    index: int
    vni: int
    local: str
    dev: str
    remote: str | None
    port: int
    mtu: int
    address: str
    learning: bool
    lease_ms: int
    fastpath: bool
    secret: bool
    up: bool
    info: dict[str, Any] = field(repr=False)
    stats: dict[str, int] = field(default_factory=dict, repr=False)
    attached: bool = False


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow that this host encodes: who, to which peer, with which key, for how long."""

    link: str
    vni: int
    source_mac: str
    destination_mac: str
    source: str
    destination: str
    dscp: int
    df: bool
    peer: str
    local: str
    key: int
    lease_left_ms: int
    dev: str
    nexthop: str | None


@dataclass(frozen=True, slots=True)
class Key:
    """A key that this host has given.

    state: "granted" (packets decode), "offered" (no answer yet) or "reserved" (ended, but not yet
    free for another flow).
    """

    link: str
    vni: int
    source_mac: str
    destination_mac: str
    source: str
    destination: str
    dscp: int
    df: bool
    peer: str
    local: str
    key: int
    lease_left_ms: int
    used: bool
    state: str


@dataclass(frozen=True, slots=True)
class Peer:
    """A remote VTEP that speaks xmasq.

    verdict: "ok", or "path" while nothing is encoded towards it because the path was seen to spoil
    or swallow encoded packets; that lasts for another off_for_ms.
    """

    peer: str
    local: str
    heard_ms_ago: int | None
    flows: int
    keys: int
    verdict: str
    off_for_ms: int


@dataclass(frozen=True, slots=True)
class Frame:
    """A captured packet.

    time_ns: since the epoch. direction: "out" (into the link, before it is encoded) or "in" (out of
    it, after it was restored). length: in bytes, Ethernet header included; of a buffer that leaves
    as several segments, all of it. data: its first bytes, up to the snaplen.
    """

    time_ns: int
    direction: str
    length: int
    data: bytes = field(repr=False)

    def __str__(self) -> str:
        """In a few words, as tcpdump has them."""
        from ._summary import summary

        return summary(self.data, self.length)
