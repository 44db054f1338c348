# SPDX-License-Identifier: Apache-2.0
"""What the API returns."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Traffic:
    """So many packets with so many bytes, Ethernet headers included.

    A buffer that leaves, or came, as several segments (TSO, GRO) is one packet.
    """

    packets: int = 0
    bytes: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.packets + other.packets, self.bytes + other.bytes)


@dataclass(frozen=True, slots=True)
class Statistics:
    """What went through a link since it was made: fast path and fallback.

    rx_fast: decoded. tx_fast: encoded. The fallback, errors and drops are the vxlan device's own; a
    frame that is flooded to several peers counts once for each. fallback_reasons: packets that encode
    left to the fallback, by why (docs/cli.md, Counters); only those that are not 0.
    """

    rx_fast: Traffic
    rx_fallback: Traffic
    rx_errors: int
    rx_dropped: int
    tx_fast: Traffic
    tx_fallback: Traffic
    tx_errors: int
    tx_dropped: int
    fallback_reasons: dict[str, int]

    @property
    def rx(self) -> Traffic:
        """All that was received."""
        return self.rx_fast + self.rx_fallback

    @property
    def tx(self) -> Traffic:
        """All that was sent."""
        return self.tx_fast + self.tx_fallback


@dataclass(frozen=True, slots=True)
class Link:
    """An xmasq link.

    attached: the device was made by others, and attach_link made a link of it.
    info: the same as a dictionary shaped like an element of `ip -j -d link show`.
    stats: counters of the datapath, by name (docs/cli.md). traffic: the totals.
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
    traffic: Statistics | None = field(default=None, repr=False)


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
    """A remote VTEP.

    heard_ms_ago: None if it was never heard to speak xmasq. verdict: "ok"; "path" while nothing is
    encoded towards it because the path was seen to spoil or swallow encoded packets, which lasts for
    another off_for_ms; "vxlan" if this host sends to it, and it has not been heard to speak xmasq.
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


@dataclass(frozen=True, slots=True)
class Condition:
    """One of the things that have to be so for a flow to be encoded.

    met: whether it is; None where this host cannot know. text: what was found. hint: what to do about
    it, if it is not met.
    """

    name: str
    met: bool | None
    text: str
    hint: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a flow is encoded, or is not.

    peer: the VTEP that its packets go to, if it is known. encoded: whether the next packet that can be
    encoded is (docs/protocol.md says which can).
    """

    link: str
    source: str
    destination: str
    peer: str | None
    encoded: bool
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a look at this host has found.

    about: the link, device, peer or part of the system. level: "ok", "info", "warning" (slower, or not
    for all packets) or "fault" (xmasq cannot work). hint: what to do about it, if something.
    """

    about: str
    level: str
    text: str
    hint: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A value of a metric, and what it is of."""

    labels: dict[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Metric:
    """Something to measure. name, kind ("counter" or "gauge") and help as Prometheus has them."""

    name: str
    kind: str
    help: str
    samples: tuple[Sample, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of its labels."""
        return tuple(self.samples[0].labels) if self.samples else ()

    def __str__(self) -> str:
        """In the text format, version 0.0.4."""
        lines = [f"# HELP {self.name} {self.help}", f"# TYPE {self.name} {self.kind}"]
        for sample in self.samples:
            labels = ",".join(f'{name}="{_quoted(value)}"' for name, value in sample.labels.items())
            lines.append(f"{self.name}{{{labels}}} {sample.value}")
        return "\n".join(lines)


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that has happened; what does not belong to its kind is None.

    time_ns: since the epoch. kind: docs/cli.md lists them. duration_ms: of the lease, or for how long
    nothing is encoded towards a peer. count: how many events were lost.
    """

    time_ns: int
    kind: str
    link: str | None = None
    source: str | None = None
    destination: str | None = None
    source_mac: str | None = None
    destination_mac: str | None = None
    dscp: int | None = None
    df: bool | None = None
    local: str | None = None
    peer: str | None = None
    key: int | None = None
    duration_ms: int | None = None
    reason: str | None = None
    count: int | None = None

    def replace(self, **changes: Any) -> Event:
        """The same event but for some fields."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class LinkRate:
    """What goes through a link in a second."""

    link: str
    rx_fast: Traffic
    rx_fallback: Traffic
    tx_fast: Traffic
    tx_fallback: Traffic


@dataclass(frozen=True, slots=True)
class FlowRate:
    """What goes from one address to another in a second, on the fast path or beside it.

    direction: "rx" or "tx". peer: the VTEP, if the flow is encoded or decoded now.
    """

    link: str
    direction: str
    source: str
    destination: str
    peer: str | None
    rate: Traffic


@dataclass(frozen=True, slots=True)
class Rates:
    """What went through links in so many seconds: averages, a second. flows: the busiest first."""

    seconds: float
    links: tuple[LinkRate, ...]
    flows: tuple[FlowRate, ...]
