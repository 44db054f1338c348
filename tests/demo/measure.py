# SPDX-License-Identifier: Apache-2.0
"""What the containers get from each network: size of packets, round trips, throughput."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scapy.layers.inet import IP

from tests.lab import LabError, PingResult
from tests.lab.overlay import Kind
from xmasq_link.dissect import classify

from .stage import Network
from .terminal import Screen, bar

#: What fills a packet of 1500 bytes: 20 of IPv4 and 8 of ICMP come on top.
BIG_PING = 1472
_SMALL_PING = 1000
_EACH, _PING_ROUNDS = 50, 3
PINGS = _EACH * _PING_ROUNDS
SECONDS = 1


@dataclass(frozen=True)
class Fit:
    """``mtu`` of the containers; ``big``: whether 1500-byte packets get through, all of them.

    ``added`` is what the network adds to a packet on the wire, in bytes. ``whole``: how many of the
    ``pings`` big requests were on the wire encoded and in one piece; ``in_pieces``: how many of the
    answers were on the wire in fragments.
    """

    mtu: int
    big: bool
    added: int
    pings: int
    whole: int
    in_pieces: int


def fit(network: Network) -> Fit:
    """How large the packets are that a container may send, and become on the wire."""
    a, b = network.a, network.b
    mtu = int(a.ip_json("link show eth0")[0]["mtu"])
    port = network.hosts[0].ports[0]

    def ping(size: int) -> tuple[PingResult, list[Any], list[Any]]:
        with port.capture("ip") as capture:
            result = a.ping(b, count=10, size=size, df=True)
            packets = capture.packets()
        here = (network.hosts[0].address, a.address)
        sent = [p for p in packets if p[IP].src in here]
        return result, sent, [p for p in packets if p[IP].src not in here]

    result, sent, _ = ping(_SMALL_PING)
    if result.lost or not sent:
        raise LabError(f"{network.kind}: {result.lost} of {result.sent} pings got no answer")
    # The most frequent size: now and then a packet takes the fallback to renew a key.
    added = statistics.mode(p[IP].len for p in sent if p[IP].len > _SMALL_PING) - (_SMALL_PING + 28)
    result, sent, answers = ping(BIG_PING)
    whole = sum(classify(p) == "encoded" and p[IP].len == BIG_PING + 28 for p in sent)
    in_pieces = sum("MF" in p[IP].flags for p in answers)
    return Fit(mtu, result.lost == 0, added, result.sent, whole, in_pieces)


def round_trips(networks: Mapping[Kind, Network]) -> dict[Kind, float]:
    """The median round-trip time of small pings in milliseconds; the networks take turns."""
    times: dict[Kind, list[float]] = {kind: [] for kind in networks}
    for _ in range(_PING_ROUNDS):
        for kind, network in networks.items():
            times[kind] += network.a.ping(network.b, count=_EACH, df=True, interval=0.002).rtts
    if not all(times.values()):
        raise LabError("no ping comes back")
    return {kind: statistics.median(of_kind) for kind, of_kind in times.items()}


@dataclass(frozen=True)
class Runs:
    """Throughput of several runs, in Gbit/s."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)


def throughput(networks: Mapping[Kind, Network], rounds: int, screen: Screen) -> dict[bool, dict[Kind, Runs]]:
    """One TCP stream, with (True) and without (False) NICs that segment inside of UDP tunnels.

    The networks take turns, so that a slow moment of the machine strikes all of them.
    """
    values: dict[bool, dict[Kind, list[float]]] = {
        on: {kind: [] for kind in networks} for on in (True, False)
    }
    done, total = 0, rounds * 2 * len(networks)
    last = ""
    for network in networks.values():
        network.offloads(True)
    for _ in range(rounds):
        for udp_tunnel in (True, False):
            for network in networks.values():
                for host in network.hosts:
                    host.offloads(udp_tunnel=udp_tunnel)
            for kind, network in networks.items():
                filled = bar(done, total, 30)
                screen.progress(
                    f"measuring throughput, {total * SECONDS} s", f"{filled:░<30} {kind:<6} {last}"
                )
                end = network.a.iperf3(network.b, seconds=SECONDS)["end"]
                gbits = end["sum_received"]["bits_per_second"] / 1e9
                values[udp_tunnel][kind].append(gbits)
                last = f"({kind} {gbits:.1f} Gbit/s)"
                done += 1
    return {on: {kind: Runs(tuple(v)) for kind, v in kinds.items()} for on, kinds in values.items()}
