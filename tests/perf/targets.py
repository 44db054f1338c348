# SPDX-License-Identifier: Apache-2.0
"""What the project wants to reach, and whether it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from . import figures, latency, packets, stream
from .programs import Cost
from .regimes import REGIMES, USUAL
from .results import Results
from .scale_flows import ManyFlows
from .scale_links import Links


@dataclass(frozen=True)
class Target:
    """`want` and `got` are words; `reached` compares the figures themselves."""

    name: str
    want: str
    got: str
    reached: bool


def _versus(
    results: Results, where: str, workload: str, metric: str, reference: str, limit: float, *, more: bool
) -> Iterator[Target]:
    table = results.get(where, {}).get(workload, {}).get(metric, {})
    if "xmasq" not in table or reference not in table:
        return
    r = figures.ratio(table["xmasq"], table[reference])
    yield Target(
        f"{workload}, {metric}: {where}",
        f"{'≥' if more else '≤'} {limit:g} x {reference}",
        f"{r.value:.3f} ({r.low:.3f} to {r.high:.3f})",
        r.value >= limit if more else r.value <= limit,
    )


def traffic(results: Results) -> Iterator[Target]:
    """Against plain routing and VXLAN."""
    rate, cpu = stream.GBIT.name, stream.CPU.name
    for regime in REGIMES:
        for flows in (1, 8):
            name = stream.Stream(flows).name
            limit = 1.2 if regime.udp_tunnel else 2.5
            yield from _versus(results, regime.name, name, rate, "plain", 0.97, more=True)
            yield from _versus(results, regime.name, name, rate, "vxlan", limit, more=True)
            yield from _versus(results, regime.name, name, cpu, "plain", 1.03, more=False)
    trip, median = latency.RoundTrip.name, latency.MEDIAN.name
    yield from _versus(results, USUAL.name, trip, median, "plain", 1.05, more=False)
    yield from _versus(results, USUAL.name, trip, median, "vxlan", 1.0, more=False)
    yield from _versus(results, USUAL.name, "connect, request, close", "requests", "plain", 0.97, more=True)
    packet = packets.Packets.name, packets.RATE.name
    yield from _versus(results, USUAL.name, *packet, "plain", 0.97, more=True)


def programs(costs: dict[str, Cost]) -> Iterator[Target]:
    """ns per run, without the kernel's clock readings."""
    limits = {
        "encode": 150,
        "decode": 150,
        "underlay egress, foreign": 40,
        "underlay ingress, foreign": 40,
    }
    for name, limit in limits.items():
        if name in costs:
            cost = costs[name]
            got = f"{cost.net:.0f} ns ({cost.raw:.0f} with the measuring)"
            yield Target(name, f"≤ {limit} ns", got, cost.net <= limit)


def new_flow(found: list[tuple[int, int]]) -> Iterator[Target]:
    """Packets in the fallback, each way."""
    worst = max(max(pair) for pair in found)
    yield Target("new flow: packets each way in the fallback", "≤ 2", str(worst), worst <= 2)


def many_flows(found: ManyFlows) -> Iterator[Target]:
    """60,000 flows."""
    floor = found.one["empty"], found.many["empty"]
    for name in ("encode", "decode"):
        one, many = found.one[name] - floor[0], found.many[name] - floor[1]
        got = f"{many / one:.2f} x ({one:.0f} and {many:.0f} ns)"
        yield Target(f"{found.flows} flows: {name}", "≤ 1.3 x one flow", got, many <= 1.3 * one)
    packet = found.rate_one / found.rate_many
    got = f"{packet:.2f} x ({1e6 / found.rate_one:.1f} and {1e6 / found.rate_many:.1f} µs)"
    yield Target(f"{found.flows} flows: a packet's whole way", "≤ 1.3 x one flow", got, packet <= 1.3)
    yield _listing(f"flow show, {found.shown.lines} flows", found.shown.first, found.shown.total)


def _listing(name: str, first: float, total: float) -> Target:
    got = f"{total:.2f} s, first line after {first:.2f} s"
    return Target(name, "< 2 s, streaming", got, total < 2 and first < total)


def tables(sizes: dict[str, int]) -> Iterator[Target]:
    """Memory."""
    total = sum(sizes.values()) / (1 << 20)
    yield Target("memory of all tables", "≤ 64 MiB", f"{total:.1f} MiB", total <= 64)


def links(found: Links) -> Iterator[Target]:
    """Adding and listing links."""
    yield Target("link add, the first link", "< 0.3 s", f"{found.add:.2f} s", found.add < 0.3)
    yield Target("link add, the second", "< 0.3 s", f"{found.add_second:.2f} s", found.add_second < 0.3)
    last = found.add_last
    yield Target(f"link add, number {found.links}", "< 0.3 s", f"{last:.2f} s", last < 0.3)
    yield _listing(f"link show, {found.shown.lines} lines", found.shown.first, found.shown.total)
