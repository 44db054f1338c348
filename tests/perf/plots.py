# SPDX-License-Identifier: Apache-2.0
"""The figures as pictures."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

from . import figures
from .results import Results
from .traffic import METRICS

_COLOURS = {"host": "#9e9e9e", "plain": "#4c78a8", "xmasq": "#e45756", "vxlan": "#72b7b2"}
_OTHER = ("#f2cf5b", "#b279a2", "#ff9da6")


def draw(results: Results, where: Path) -> Iterator[Path]:
    """One picture for the streams of all regimes, and one for everything else; returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    streams = {
        _label(regime, load): loads[load]["throughput"]
        for regime, loads in results.items()
        for load in loads
        if load.startswith("TCP stream")
    }
    if streams:
        yield _bars(streams, "TCP stream, Gbit/s", where / "streams.png")
        cpu = {
            _label(regime, load): loads[load]["cpu"]
            for regime, loads in results.items()
            for load in loads
            if load.startswith("TCP stream")
        }
        yield _bars(cpu, "CPU time of both ends, ms per GB", where / "cpu.png")
    others = {
        f"{load}\n{metric}\n{'more' if METRICS[load, metric].better == 'more' else 'less'} is better": {
            candidate: [v / statistics.median(by["plain"]) for v in values]
            for candidate, values in by.items()
        }
        for loads in results.values()
        for load, metrics in loads.items()
        if not load.startswith("TCP stream")
        for metric, by in metrics.items()
        if "plain" in by and metric in ("median", "packets", "requests")
    }
    if others:
        yield _bars(others, "plain routing = 1", where / "others.png")


def _label(regime: str, load: str) -> str:
    return f"{regime}\n{load.removeprefix('TCP stream, ')}".replace(", ", "\n")


def _bars(groups: dict[str, dict[str, list[float]]], label: str, file: Path) -> Path:
    """Medians, with the quartiles as a line."""
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    other = iter(_OTHER * len(names))
    figure, axes = pyplot.subplots(figsize=(max(6.0, 1.25 * len(groups) + 2), 4.5))
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        at, middle, low, high = [], [], [], []
        for number, group in enumerate(groups.values()):
            if name in group:
                values = group[name]
                m = statistics.median(values)
                at.append(number + (place - (len(names) - 1) / 2) * width)
                middle.append(m)
                low.append(m - figures.quantile(values, 0.25))
                high.append(figures.quantile(values, 0.75) - m)
        colour = _COLOURS.get(name) or next(other)
        axes.bar(at, middle, width * 0.92, yerr=(low, high), label=name, color=colour, ecolor="#333333")
    axes.set_xticks(range(len(groups)), list(groups), fontsize=7)
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(names), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return file
