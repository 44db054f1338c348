# SPDX-License-Identifier: Apache-2.0
"""The demo as its user sees it: its output, its exit code, and what it leaves behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.demo.terminal import WIDTH
from tests.lab import ROOT, patience

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NETNS = Path("/run/netns")


def start(*args: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.demo", *args],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def leftovers(pid: int) -> list[str]:
    """Namespaces and files that carry the number of a process."""
    places = (NETNS, Path("/run/xmq-lab"), Path("/tmp"))
    return [path.name for place in places for path in place.glob(f"xmq-{pid}-*")]


def section(report: str, title: str) -> str:
    """The lines below a headline."""
    return report.split(f"── {title} ")[1].split("\n\n──", 1)[0]


def test_report():
    demo = start("--rounds", "1", LC_ALL="C.UTF-8")
    report, said = demo.communicate(timeout=patience(120))
    assert (demo.returncode, leftovers(demo.pid)) == (0, []), said
    assert "failed" not in said
    assert "\033" not in report
    assert max(len(line) for line in report.splitlines()) <= WIDTH
    shares = re.findall(r"([\d.]+) %$", section(report, "How much is encoded"), re.MULTILINE)
    assert len(shares) == 2
    assert min(map(float, shares)) >= 99
    gets = section(report, "What the containers get")
    assert re.search(r"MTU +1500 +1500 +1450\n", gets)
    assert re.search(r"1472 .*passes +passes +too long\n", gets)
    assert re.search(r"added .* 0 +0 +50\n", gets)
    first = section(report, "The first packets of a new connection")
    assert re.search(r"VXLAN +SYN .*(\n.*)+OFFER.*(\n.*)+ACCEPT.*(\n.*)+CONFIRM(.*\n)+.*encoded", first)
    assert re.search(r"key \d+ lease", section(report, "Flows and keys"))
    assert len(re.findall(r"(native|xmasq|vxlan) +█+.? +\d+\.\d", report)) == 6
    assert "✗" not in report
    assert report.splitlines()[-1].startswith("Next: README.md")


def test_interrupted():
    demo = start("--rounds", "1", LC_ALL="C")
    end = time.monotonic() + patience(60)
    while not list(NETNS.glob(f"xmq-{demo.pid}-1-*")):  # the second of the three networks
        assert time.monotonic() < end
        time.sleep(0.01)
    demo.send_signal(signal.SIGINT)
    report, said = demo.communicate(timeout=patience(30))
    assert (demo.returncode, report, leftovers(demo.pid)) == (130, "", [])
    assert said.splitlines()[-1] == "demo: stopped; everything that it had made is removed"


def test_reader_goes_away():
    with start("--rounds", "1") as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        demo.stdout.readline()
        demo.stdout.close()
        said = demo.stderr.read()
    assert (demo.returncode, leftovers(demo.pid)) == (128 + signal.SIGPIPE, [])
    assert said.count("\n") == said.count("demo: "), said
