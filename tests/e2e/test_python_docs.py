# SPDX-License-Identifier: Apache-2.0
"""Runs the code of docs/python.md, from top to bottom, in one process on a host."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.lab import ROOT, Lab, patience, xmasq

pytestmark = pytest.mark.e2e


def test_the_tutorial_runs():
    text = (ROOT / "docs" / "python.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 8
    # Line numbers in a traceback are those of the page.
    code = ""
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        code += "\n" * (text[: match.start(1)].count("\n") - code.count("\n")) + match[1]
    with Lab() as lab:
        here, there = lab.hosts(2)
        options = ["id", "42", "local", there.address, "nolearning", "up"]
        xmasq(there, "link", "add", "xm0", "address", "02:00:00:00:2a:02", *options)
        there.bridge(f"fdb append 02:00:00:00:2a:01 dev xm0 dst {here.address}")
        there.ip(
            "addr add 198.51.100.33/32 dev xm0",
            "neigh add 198.51.100.17 lladdr 02:00:00:00:2a:01 dev xm0 nud permanent",
            "route add 198.51.100.17/32 dev xm0 src 198.51.100.33",
        )
        done = subprocess.run(
            ["ip", "netns", "exec", here.name, sys.executable, "-"],
            input=code,
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=patience(60),
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert "xm0 42 eth0 1500\n" in done.stdout
        assert "id: 16777216 is out of range" in done.stdout
        assert "198.51.100.17 > 198.51.100.33 by key " in done.stdout
        assert "out 47 IP 198.51.100.17." in done.stdout
        assert "# TYPE xmasq_packets_total counter" in done.stdout
