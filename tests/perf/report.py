# SPDX-License-Identifier: Apache-2.0
"""The figures as text."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence

from . import figures, targets
from .results import Report, Results
from .traffic import METRICS


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows in columns, the first one left, the others right; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join([row[0].ljust(widths[0]), *cells]).rstrip()
        if number == 0:
            yield "  ".join("-" * w for w in widths)


def _traffic(results: Results) -> Iterator[str]:
    for regime, loads in results.items():
        yield f"\n## {regime}\n"
        rows = [("", "candidate", "median", "unit", "spread", "x plain", "95 %", "x vxlan", "95 %")]
        for load, metrics in loads.items():
            for metric, by_candidate in metrics.items():
                unit, digits = METRICS[load, metric].unit, METRICS[load, metric].digits
                for candidate, values in by_candidate.items():
                    rows.append(
                        (
                            f"{load}: {metric}",
                            candidate,
                            f"{statistics.median(values):.{digits}f}",
                            unit,
                            f"{100 * figures.spread(values):.0f} %",
                            *_ratio(values, by_candidate.get("plain")),
                            *_ratio(values, by_candidate.get("vxlan")),
                        )
                    )
        yield from table(rows)


def _ratio(values: list[float], reference: list[float] | None) -> tuple[str, str]:
    if reference is None or reference is values or min(reference) <= 0:
        return "", ""
    r = figures.ratio(values, reference)
    return f"{r.value:.3f}", f"{r.low:.2f}-{r.high:.2f}"


def all_targets(report: Report) -> list[targets.Target]:
    """Those whose figures were measured."""
    found: list[targets.Target] = list(targets.traffic(report.traffic))
    for part, judge in (
        (report.programs, targets.programs),
        (report.new_flow, targets.new_flow),
        (report.many_flows, targets.many_flows),
        (report.tables, targets.tables),
        (report.links, targets.links),
    ):
        if part:
            found += judge(part)  # type: ignore[operator]
    return found


def text(report: Report) -> str:
    """All of it."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterable[str]:
    yield "# xmasq benchmarks\n"
    for name, value in report.machine.items():
        yield f"{name}: {value}"
    yield from _traffic(report.traffic)
    if report.programs:
        yield "\n## The programs, ns per run (64-byte frames; net: without what an empty program takes)\n"
        rows = [("program", "raw", "net")]
        rows += [(name, f"{cost.raw:.0f}", f"{cost.net:.0f}") for name, cost in report.programs.items()]
        yield from table(rows)
    if report.instructions:
        yield ""
        rows = [("program", "BPF instructions", "bytes of machine code")]
        rows += [(name, str(insns), str(size)) for name, (insns, size) in report.instructions.items()]
        yield from table(rows)
    if report.tables:
        yield "\n## Memory of the tables\n"
        sizes = sorted(report.tables.items(), key=lambda item: -item[1])
        yield from table(
            [("table", "MiB"), *((n, f"{size / (1 << 20):.2f}") for n, size in sizes if size >= 1 << 16)]
        )
    rows = [("target", "wanted", "measured", "")]
    rows += [(t.name, t.want, t.got, "reached" if t.reached else "MISSED") for t in all_targets(report)]
    if len(rows) > 1:
        yield "\n## Targets\n"
        yield from table(rows)
    yield f"\nThe run took {report.seconds / 60:.1f} minutes."
