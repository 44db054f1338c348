# SPDX-License-Identifier: Apache-2.0
"""xmasq top: true rates of both paths, by link, peer and flow, with and without a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest

import xmasq_link
from tests.e2e.observe import meet, negotiate, on_hook
from tests.lab import ROOT, Host, Lab, Overlay, patience, routed_overlay, xmasq

pytestmark = pytest.mark.e2e
XMASQ = [sys.executable, "-m", "xmasq_link"]


@pytest.fixture(scope="module")
def overlay() -> Iterator[Overlay]:
    with Lab() as lab:
        overlay = routed_overlay(lab.hosts(2))
        meet(overlay)
        negotiate(*overlay.containers)
        yield overlay


def guests(host: Host) -> int:
    """How many programs of lookers are on the link."""
    sides = [on_hook(host, "xm0", side) for side in ("ingress", "egress")]
    return sum(name.startswith("xmshow") for side in sides for name, _ in side)


def test_rates_are_what_went_through(overlay):
    a, b = overlay.containers
    with xmasq_link.meter("xm0", netns=a.host.name) as meter:
        assert guests(a.host) == 2
        meter.read()
        assert a.ping(b, count=50).lost == 0
        rates = meter.read()
    assert guests(a.host) == 0
    (link,) = rates.links
    for fast, slow in ((link.tx_fast, link.tx_fallback), (link.rx_fast, link.rx_fallback)):
        assert (fast + slow).packets * rates.seconds == pytest.approx(50, abs=rates.seconds + 2)
        assert (fast + slow).bytes * rates.seconds == pytest.approx(50 * 98, rel=0.1)
    found = {(f.direction, f.source, f.destination): f for f in rates.flows}
    for key in (("tx", a.address, b.address), ("rx", b.address, a.address)):
        assert found[key].peer == b.host.address
        assert found[key].rate.packets * rates.seconds == pytest.approx(50, abs=rates.seconds + 2)


def test_the_fallback_counts_as_well(overlay):
    a, b = overlay.containers
    xmasq(a.host, "link", "set", "xm0", "fastpath", "off")
    try:
        with xmasq_link.meter(netns=a.host.name) as meter:
            assert a.ping(b, count=20).lost == 0
            rates = meter.read()
    finally:
        xmasq(a.host, "link", "set", "xm0", "fastpath", "on")
        negotiate(a, b)
    (link,) = rates.links
    assert link.tx_fast.packets == 0
    assert link.tx_fallback.packets > 0
    assert {(f.direction, f.peer) for f in rates.flows if f.source == a.address} == {("tx", None)}


def test_lines(overlay):
    a, b = overlay.containers
    words = ["-n", a.host.name, "top", "-b", "interval", "0.5", "count", "4"]
    with subprocess.Popen([*XMASQ, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            a.ping(b, count=5)
        out = process.stdout.read()
    assert process.returncode == 0
    assert len(re.findall(r"^LINK +RX +FAST +TX +FAST$", out, re.MULTILINE)) == 4
    assert re.search(rf"^{re.escape(b.host.address)} +[0-9.]+ k?bit/s +[0-9]+ pps ", out, re.MULTILINE)
    assert re.search(rf"^{re.escape(a.address)} > {re.escape(b.address)} +tx +xm0 ", out, re.MULTILINE)
    assert guests(a.host) == 0


def test_json(overlay):
    host = overlay.hosts[0]
    out = xmasq(host, "-j", "top", "interval", "0.1", "count", "2").stdout
    looks = [json.loads(line) for line in out.splitlines()]
    assert len(looks) == 2
    assert {link["link"] for look in looks for link in look["links"]} == {"xm0"}


def test_a_screen(overlay):
    """On a terminal: a screen that is left as it was, and Ctrl-C is the way out."""
    a, b = overlay.containers
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen(
        [*XMASQ, "-n", a.host.name, "top", "interval", "0.3"],
        cwd=ROOT,
        stdin=follower,
        stdout=follower,
        stderr=subprocess.PIPE,
        env=os.environ | {"TERM": "xterm-256color"},
    )
    os.close(follower)
    seen = b""
    deadline = time.monotonic() + patience(20)
    while b.address.encode() not in seen and time.monotonic() < deadline:
        a.ping(b, count=5)
        while select.select([leader], [], [], 0.05)[0]:
            seen += os.read(leader, 65536)
    assert b.address.encode() in seen
    assert b"LINK" in seen
    process.send_signal(signal.SIGINT)
    while True:
        try:
            data = os.read(leader, 65536)
        except OSError:  # the other side is closed
            break
        if not data:
            break
        seen += data
    assert process.wait(20) == 0
    assert process.stderr.read() == b""
    process.stderr.close()
    os.close(leader)
    assert seen.count(b"\x1b[?1049h") == seen.count(b"\x1b[?1049l") == 1
    assert guests(a.host) == 0


def test_links_that_come_and_go():
    with Lab() as lab:
        host = lab.host()
        with xmasq_link.meter(netns=host.name) as meter:
            assert meter.read().links == ()
            xmasq(host, "link", "add", "xm0", "up", "id", "42", "local", host.address)
            assert [link.link for link in meter.read().links] == ["xm0"]
            assert guests(host) == 2
            xmasq(host, "link", "del", "xm0")
            assert meter.read().links == ()


BAD = {
    "an unknown link": ("top link nosuch", "name"),
    "no xmasq link": ("top link eth0", "name"),
    "interval 0": ("top interval 0", "interval"),
    "interval no number": ("top interval often", "interval"),
    "count 0": ("top count 0", "count"),
    "an unknown word": ("top now", "now"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(overlay, case):
    text, argument = BAD[case]
    result = xmasq(overlay.hosts[0], *text.split(), check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"xmasq: {argument}: ")
    assert result.stderr.count("\n") == 1
    assert guests(overlay.hosts[0]) == 0
