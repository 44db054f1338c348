# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.perf [PART…]`: runs the suite, or some parts of it."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.lab import LabError
from tests.lab.process import ROOT
from xmasq_link import XmasqError

from . import machine, new_flow, plots, programs, report, scale_flows, scale_links, traffic
from .results import Report

TOOLS = ("ethtool", "iperf3", "nginx", "redis-benchmark", "redis-server", "sockperf", "taskset", "wrk")


def _memory() -> dict[str, int]:
    from kmod_ebpf.memory import table_bytes

    return table_bytes()


def _parts(options: argparse.Namespace) -> dict[str, Callable[[Report, Callable[[str], None]], None]]:
    rounds, loads = options.rounds, options.workload

    def all_traffic(found: Report, say: Callable[[str], None]) -> None:
        traffic.measure(found.traffic, rounds, say, loads)

    def all_programs(found: Report, say: Callable[[str], None]) -> None:
        found.programs = programs.measure(max(3, rounds // 2), say)
        found.instructions = programs.instructions()

    def connection(found: Report, say: Callable[[str], None]) -> None:
        found.new_flow = new_flow.measure(max(3, rounds // 2), say)

    def flows(found: Report, say: Callable[[str], None]) -> None:
        found.many_flows = scale_flows.measure(3, say)

    def tables(found: Report, say: Callable[[str], None]) -> None:
        say("memory of the tables")
        found.tables = _memory()

    def links(found: Report, say: Callable[[str], None]) -> None:
        found.links = scale_links.measure(5, say)

    return {
        "traffic": all_traffic,
        "programs": all_programs,
        "new-flow": connection,
        "flows": flows,
        "tables": tables,
        "links": links,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests.perf", description="Measures xmasq beside plain routing, VXLAN, and what else there is."
    )
    names = list(_parts(argparse.Namespace(rounds=1, workload=[])))
    parser.add_argument("part", nargs="*", help=f"only these parts: {', '.join(names)}")
    parser.add_argument("--rounds", type=int, default=6, help="how often each candidate has its turn (6)")
    loads = [w.name for w in traffic.STREAMS + traffic.OTHERS]
    parser.add_argument(
        "--workload", action="append", default=[], choices=loads, help="of traffic, only this"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build/bench", help="directory for the results")
    options = parser.parse_args()
    if unknown := [part for part in options.part if part not in names]:
        parser.error(f"part {unknown[0]!r}: allowed are {', '.join(names)}")
    if options.rounds < 1:
        parser.error(f"argument --rounds: {options.rounds} is too few, 1 is the least")
    return options


def main() -> int:
    """Runs what was asked for, prints the tables, and writes results.json, results.txt and pictures."""
    options = _arguments()
    if os.geteuid() != 0:
        print("bench: needs root: it makes network namespaces and loads programs", file=sys.stderr)
        return 2
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        print(f'bench: "make bench" installs what is missing: {", ".join(missing)}', file=sys.stderr)
        return 2
    begin = time.monotonic()

    def say(line: str) -> None:
        print(f"bench: {time.monotonic() - begin:4.0f} s  {line}", file=sys.stderr, flush=True)

    parts = _parts(options)
    found = Report(machine.describe())
    failed = 0
    for name in options.part or parts:
        try:
            parts[name](found, say)
        except (LabError, XmasqError) as error:  # the other parts may still do
            print(f"bench: {name}: {error}", file=sys.stderr)
            failed = 1
    found.seconds = time.monotonic() - begin
    options.out.mkdir(parents=True, exist_ok=True)
    text = report.text(found)
    (options.out / "results.json").write_text(json.dumps(found.as_json(), indent=1) + "\n")
    (options.out / "results.txt").write_text(text)
    files = list(plots.draw(found.traffic, options.out)) if found.traffic else []
    print(text)
    print("Written:", options.out / "results.json", options.out / "results.txt", *files)
    return failed


if __name__ == "__main__":
    sys.exit(main())
