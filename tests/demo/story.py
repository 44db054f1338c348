# SPDX-License-Identifier: Apache-2.0
"""One new connection, watched in both containers and on the underlay between the hosts."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from scapy.layers.inet import IP, TCP

import xmasq_link
from tests.lab import Capture, LabError, TransferResult, tcp_transfer
from xmasq_link._wire import OFFER
from xmasq_link.dissect import Kind, XmasqControl, classify

from .stage import LINK, Network

SIZE = 4_000_000
PORT = 5000
#: What the containers' own captures keep: enough to contain the first encoded packets.
_KEPT = 600


@dataclass(frozen=True)
class Seen:
    """A packet on the underlay.

    ``ms`` counts from the first one; ``forward``: from host 1 to host 2.
    """

    kind: Kind
    packet: Any
    ms: float
    forward: bool

    @property
    def inner(self) -> Any:
        """The container's packet in it, from its IPv4 header on; None for a control packet."""
        return {"encoded": self.packet.getlayer(IP), "fallback": self.packet.getlayer(IP, 2)}.get(self.kind)


@dataclass(frozen=True)
class Share:
    """How many container packets crossed the underlay, and how many of them encoded."""

    encoded: int
    total: int

    @property
    def percent(self) -> float:
        """Of all, those that were encoded."""
        return 100 * self.encoded / self.total if self.total else 0.0


@dataclass(frozen=True)
class Story:
    """What was seen. ``sent``, ``wire``, ``received``: the same packet in three places, from IPv4 on."""

    transfer: TransferResult
    seen: list[Seen]
    counted: Share
    captured: Share
    sent: Any
    wire: Any
    received: Any

    def first(self, kind: Kind) -> Seen:
        """The first packet of a kind. Raises :class:`LabError`."""
        for one in self.seen:
            if one.kind == kind:
                return one
        raise LabError(f"no packet on the underlay is of the kind {kind}")

    def offer(self) -> Seen:
        """The OFFER for A's packets. Raises :class:`LabError`."""
        for one in self.seen:
            control = one.packet.getlayer(XmasqControl)
            if control and (control.type, control.sip) == (OFFER, self.sent.src):
                return one
        raise LabError("no OFFER was seen on the underlay")

    def first_encoded(self, forward: bool) -> Seen | None:
        """The first encoded packet of a direction."""
        return next((one for one in self.seen if one.kind == "encoded" and one.forward is forward), None)

    def encoded_from(self, forward: bool) -> int:
        """Which one of a direction's container packets, counted from 1, was the first to be encoded."""
        kinds = [one.kind for one in self.seen if one.forward is forward and one.kind != "control"]
        return kinds.index("encoded") + 1


def watch(network: Network) -> Story:
    """Transfers over TCP from container to container, as the first traffic of all between them.

    Nothing is segmented by NICs meanwhile, so that what is captured is what a wire would carry.
    """
    network.offloads(False)
    a, b = network.a, network.b
    with contextlib.ExitStack() as stack:
        underlay = stack.enter_context(network.hosts[0].ports[0].capture("ip"))
        at_a = stack.enter_context(Capture(a, "eth0", "tcp", count=_KEPT))
        at_b = stack.enter_context(Capture(b, "eth0", "tcp", count=_KEPT))
        before = _counters(network)
        transfer = tcp_transfer(a, b, SIZE, port=PORT)
        packets = underlay.packets()
        after = _counters(network)
        sent, received = at_a.packets(), at_b.packets()
    seen = _sort(packets, network)
    crossed = [one.kind for one in seen if one.kind != "control"]
    encoded, fallback = (now - then for now, then in zip(after, before, strict=True))
    wire = next((one for one in seen if one.kind == "encoded" and one.forward and data_size(one.inner)), None)
    if wire is None:
        raise LabError("no data packet was encoded (see docs/architecture.md for what may prevent it)")
    return Story(
        transfer,
        seen,
        Share(encoded, encoded + fallback),
        Share(crossed.count("encoded"), len(crossed)),
        _same(wire.inner, sent),
        wire.inner,
        _same(wire.inner, received),
    )


def _counters(network: Network) -> tuple[int, int]:
    """Packets encoded, and packets given to the fallback, by both hosts."""
    encoded = fallback = 0
    for host in network.hosts:
        with xmasq_link.netns(host.name):
            stats = xmasq_link.links(LINK)[0].stats
        encoded += stats["encoded"]
        fallback += stats["fallback"]
    return encoded, fallback


def _sort(packets: list[Any], network: Network) -> list[Seen]:
    vteps = [host.address for host in network.hosts]
    seen = []
    for packet in packets:
        if packet[IP].frag:
            continue  # the rest of a fallback packet that was too long for the underlay
        kind = classify(packet, vteps)
        ms = float(packet.time - packets[0].time) * 1000
        seen.append(Seen(kind, packet, ms, packet[IP].src == vteps[0]))
    return seen


def data_size(packet: Any) -> int:
    """How many bytes TCP carries in a packet that begins with IPv4."""
    return int(packet.len - 4 * packet.ihl - 4 * packet[TCP].dataofs)


def _payload(packet: Any) -> bytes:
    return bytes(packet[TCP].payload)[: data_size(packet)]


def _same(wanted: Any, packets: list[Any]) -> Any:
    """The packet with the same place and content in the TCP stream."""
    for packet in packets:
        ip = packet.getlayer(IP)
        if ip[TCP].seq == wanted[TCP].seq and _payload(ip) == _payload(wanted):
            return ip
    raise LabError("a packet of the underlay was not seen in a container")
