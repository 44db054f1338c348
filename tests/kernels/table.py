# SPDX-License-Identifier: Apache-2.0
"""Writes the table of kernels into docs/compatibility.md: ``python -m tests.kernels.table``.

It is made of the reports that ``make test-kernels`` has left: the last result of each test, if there still
is such a test. A feature that no report of a kernel is about keeps what the table said of it there.
"""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from .job import REPORTS, ROOT, SUITES

PAGE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- kernels: made by tests/kernels/table.py -->", "<!-- kernels: end -->"

#: What a row is called, and the tests that it stands for, as regular expressions.
FEATURES = (
    ("All programs load", r"tests\.kernels\.guest\.test_machine::.*takes"),
    ("Unit tests: verdicts of the programs on single packets, input, output", r"tests\.unit\."),
    ("Links: traffic, negotiation, renewal, deletion", r"tests\.e2e\.test_(link|keys|lifecycle|wire_view)::"),
    ("IPv6 underlay", r"tests\.e2e\.test_ipv6::"),
    ("Every protocol, frame and option", r"tests\.e2e\.test_(protocols|ethernet|nested|options)::"),
    ("Offloads, segments, many flows", r"tests\.e2e\.test_(offloads|segments|many_flows)::"),
    ("Routes, neighbours, path MTU, ICMP errors", r"tests\.e2e\.test_(routes|neighbours|pmtu)::"),
    ("Kinds of underlays; devices that go and come", r"tests\.e2e\.test_(underlays|gone)::"),
    ("Firewalls, address translation, policy routing", r"tests\.e2e\.test_policy::"),
    (
        "Commands, `ip` plugin, Python API",
        r"tests\.e2e\.test_(cli|api|iproute2|explain|doctor|metrics|watch|monitor|top|observe_both)::",
    ),
    ("Capture", r"tests\.e2e\.test_capture::"),
    ("Attach to links that others made", r"tests\.e2e\.test_(attach|external)::"),
    ("CNI plugin and agents", r"tests\.e2e\.test_(cni|cni_authors|agent_\w+|flannel|podman)::"),
    ("Next to geneve; geneve inside", r"tests\.kernels\.guest\.test_devices::.*(geneve)"),
    ("VTEP address on a dummy device", r"tests\.kernels\.guest\.test_devices::.*dummy"),
    ("Containers on netkit", r"tests\.kernels\.guest\.test_devices::.*netkit"),
    ("Loss, reordering, duplication by netem", r"tests\.kernels\.guest\.test_netem::"),
    ("Two CPUs", r"tests\.kernels\.guest\.test_machine::.*cpus"),
    ("Full preemption", r"tests\.kernels\.guest\.test_machine::.*preemption"),
    (
        "The other end runs the newest or the oldest, by virtio-net or e1000e",
        r"tests\.kernels\.guest\.pair\.",
    ),
)


@dataclass(frozen=True)
class Result:
    """How a test ended: ``passed``, ``failed`` or ``skipped``, and why it was skipped."""

    outcome: str
    why: str = ""


def present() -> set[str]:
    """The names of the tests that there are, as reports have them. Those of a pair are not among them."""
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", *SUITES]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True)
    lines = (line.partition("::") for line in done.stdout.splitlines())
    return {f"{file.removesuffix('.py').replace('/', '.')}::{name}" for file, mark, name in lines if mark}


def read(reports: Path, there: Container[str] | None = None) -> dict[str, dict[str, Result]]:
    """The last result of each test, for each kernel release. there: names of those that count; None: all.

    Those of a pair always count.
    """
    found: dict[str, dict[str, Result]] = defaultdict(dict)
    for file in sorted(reports.glob("*/*.xml"), key=lambda path: (path.stat().st_mtime, path.name)):
        for case in ElementTree.parse(file).iter("testcase"):
            tag = file.stem.partition("-")[2]
            name = f"{case.get('classname')}::{case.get('name')}{tag}"
            if there is not None and not tag and name not in there:
                continue
            skipped = case.find("skipped")
            if skipped is not None:
                result = Result("skipped", skipped.get("message") or "")
            elif case.find("failure") is not None or case.find("error") is not None:
                result = Result("failed")
            else:
                result = Result("passed")
            for release in file.parent.name.split(","):
                found[release][name] = result
    return found


@dataclass(frozen=True)
class Cell:
    """What a kernel did with a feature's tests, short; and why some were skipped."""

    text: str
    skipped: tuple[str, ...] = ()


NOT_RUN = Cell("not run")
#: Cells by feature and release.
Table = dict[tuple[str, str], Cell]


def _cell(results: list[Result]) -> Cell:
    count = {kind: sum(one.outcome == kind for one in results) for kind in ("passed", "failed", "skipped")}
    text = f"{count['passed']} passed" if count["passed"] else ""
    if count["failed"]:
        text += f"{', ' if text else ''}**{count['failed']} failed**"
    return Cell(text or "none", tuple(sorted({one.why for one in results if one.outcome == "skipped"})))


def summary(found: dict[str, dict[str, Result]]) -> Table:
    """The cells that there are results for."""
    cells: Table = {}
    for feature, pattern in FEATURES:
        for release, results in found.items():
            about = [result for name, result in results.items() if re.match(pattern, name)]
            if about:
                cells[feature, release] = _cell(about)
    return cells


def parse(text: str) -> Table:
    """The cells of a table that :func:`render` has made; none of other text."""
    rows = [
        [word.strip() for word in line.strip("|").split(" | ")]
        for line in text.splitlines()
        if line[:1] == "|"
    ]
    notes = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    cells: Table = {}
    for feature, *row in rows[2:]:
        for release, cell in zip(rows[0][1:], row, strict=True):
            said, _, marks = cell.removesuffix("</sup>").partition(" <sup>")
            if said != NOT_RUN.text:
                cells[feature, release] = Cell(said, tuple(notes[mark] for mark in re.findall(r"\d+", marks)))
    return cells


def render(cells: Table) -> str:
    """The table, and the reasons of what was skipped."""
    releases = sorted(
        {release for _, release in cells}, key=lambda name: [int(n) for n in re.findall(r"\d+", name)[:3]]
    )
    lines = [f"| | {' | '.join(releases)} |", f"|---|{'---|' * len(releases)}"]
    notes: list[str] = []
    for feature, _ in FEATURES:
        words = []
        for release in releases:
            cell = cells.get((feature, release), NOT_RUN)
            notes += [why for why in cell.skipped if why not in notes]
            marks = ", ".join(str(notes.index(why) + 1) for why in cell.skipped)
            words.append(cell.text + (f" <sup>{marks}</sup>" if marks else ""))
        lines.append(f"| {feature} | {' | '.join(words)} |")
    if notes:
        lines += ["", *(f"{number}. {why}" for number, why in enumerate(notes, start=1))]
    return "\n".join(lines)


def main() -> int:
    """Exit status: 0, or 2 when there are no reports."""
    found = read(REPORTS, present()) if REPORTS.exists() else None
    if not found:
        print("table: no reports: run make test-kernels first", file=sys.stderr)
        return 2
    text = PAGE.read_text()
    before, begin, rest = text.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not begin or not end:
        print(f"table: {PAGE.name} has no place for it: {BEGIN} … {END}", file=sys.stderr)
        return 2
    cells = parse(old) | summary(found)
    PAGE.write_text(f"{before}{BEGIN}\n\n{render(cells)}\n\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
