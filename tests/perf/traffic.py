# SPDX-License-Identifier: Apache-2.0
"""The rounds: each candidate has its turn at each workload, over and over.

So a slow minute of the machine strikes all candidates; and they begin in another order each time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from . import network
from .http import Http
from .latency import RoundTrip
from .packets import Packets
from .redis import Redis
from .regimes import REGIMES, USUAL, Regime
from .results import Results
from .stream import Stream
from .workload import Metric, Workload

STREAMS: tuple[Workload, ...] = (Stream(1), Stream(8))
OTHERS: tuple[Workload, ...] = (
    RoundTrip(),
    Http(16, keep_alive=False),
    Packets(),
    Http(16, keep_alive=True),
    Redis(),
)


#: By names of workload and metric.
METRICS: dict[tuple[str, str], Metric] = {
    (load.name, metric.name): metric for load in STREAMS + OTHERS for metric in load.metrics
}


def workloads(regime: Regime) -> tuple[Workload, ...]:
    """What is measured in a regime."""
    return STREAMS + OTHERS if regime == USUAL else STREAMS


def measure(
    results: Results,
    rounds: int,
    say: Callable[[str], None],
    wanted: Sequence[str] = (),
    regimes: Sequence[Regime] = REGIMES,
) -> None:
    """All rounds, into `results`. `wanted`: names of workloads, all if empty. Raises LabError."""
    names = network.candidates()
    with contextlib.ExitStack() as stack:
        say("building the networks")
        networks = {mtu: network.build(stack, names, mtu) for mtu in dict.fromkeys(r.mtu for r in regimes)}
        for number in range(rounds):
            turn = names[number % len(names) :] + names[: number % len(names)]
            for regime in regimes:
                todo = [w for w in workloads(regime) if not wanted or w.name in wanted]
                if not todo:
                    continue
                for one in networks[regime.mtu].values():
                    regime.apply(one)
                for workload in todo:
                    say(f"round {number + 1} of {rounds}: {regime.name}: {workload.name}")
                    _turns(results, regime, workload, [networks[regime.mtu][name] for name in turn])


def _turns(results: Results, regime: Regime, workload: Workload, turn: list[network.Network]) -> None:
    found = {one.candidate: workload.run(one) for one in turn}  # all of a round, or nothing
    table = results.setdefault(regime.name, {}).setdefault(workload.name, {})
    for candidate, values in found.items():
        for metric, value in values.items():
            table.setdefault(metric, {}).setdefault(candidate, []).append(value)
