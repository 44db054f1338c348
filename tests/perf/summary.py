# SPDX-License-Identifier: Apache-2.0
"""The figures of docs/benchmarks.md: `python -m tests.perf.summary build/bench/results.json` prints them."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import figures, report
from .programs import Cost
from .results import Report, Results
from .scale_flows import Listing, ManyFlows
from .scale_links import Links
from .traffic import METRICS

_SHOWN = ("throughput", "cpu", "median", "p99", "requests", "packets")


def load(text: str) -> Report:
    """A report, as its JSON has it."""
    data: dict[str, Any] = json.loads(text)
    found = Report(**data)
    if found.programs:
        found.programs = {name: Cost(**cost) for name, cost in found.programs.items()}
    if found.many_flows:
        found.many_flows = ManyFlows(**{**found.many_flows, "shown": Listing(**found.many_flows["shown"])})
    if found.links:
        found.links = Links(**{**found.links, "shown": Listing(**found.links["shown"])})
    return found


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for number, row in enumerate(rows):
        yield f"| {' | '.join(row)} |"
        if number == 0:
            yield f"|{'---|' * len(row)}"


def _traffic(results: Results) -> Iterator[str]:
    names = list(dict.fromkeys(c for loads in results.values() for m in loads.values() for c in m["cpu"]))
    head = ("regime", "workload", "", *names, "xmasq / plain", "xmasq / vxlan")
    rows: list[Sequence[str]] = [head]
    for regime, loads in results.items():
        for workload, metrics in loads.items():
            for metric, by in metrics.items():
                if metric not in _SHOWN:
                    continue
                kind = METRICS[workload, metric]
                cells = [f"{statistics.median(by[name]):.{kind.digits}f}" for name in names]
                cells += [_ratio(by, "plain"), _ratio(by, "vxlan")]
                rows.append((regime, workload, f"{metric}, {kind.unit}", *cells))
    yield from _table(rows)


def _ratio(by: dict[str, list[float]], reference: str) -> str:
    r = figures.ratio(by["xmasq"], by[reference])
    return f"**{r.value:.2f}** ({r.low:.2f}-{r.high:.2f})"


def main() -> None:
    """Prints the tables in Markdown."""
    for path in sys.argv[1:]:
        found = load(Path(path).read_text())
        print(f"{found.machine['date']}; {found.machine['cpu']}; Linux {found.machine['kernel']}.\n")
        if found.traffic:
            print("\n".join(_traffic(found.traffic)), end="\n\n")
        if found.programs:
            rows = [("program", "ns per run", "net"), *_costs(found.programs)]
            print("\n".join(_table(rows)), end="\n\n")
        judged = report.all_targets(found)
        rows = [(t.name, t.want, t.got, "reached" if t.reached else "**missed**") for t in judged]
        print("\n".join(_table([("target", "wanted", "measured", ""), *rows])), end="\n\n")


def _costs(costs: dict[str, Cost]) -> Iterator[tuple[str, str, str]]:
    for name, cost in costs.items():
        yield name, f"{cost.raw:.0f}", f"{cost.net:.0f}"


if __name__ == "__main__":
    main()
