# SPDX-License-Identifier: Apache-2.0
"""xmasq capture: what it shows, what it leaves in peace, and what it leaves behind."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import IO

import pytest

import xmasq_link
from tests.e2e.observe import meet, negotiate, on_hook, stats
from tests.lab import ROOT, Host, Lab, Overlay, patience, routed_overlay, tcp_transfer, xmasq

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def overlay() -> Iterator[Overlay]:
    """Two hosts whose containers' packets are encoded."""
    with Lab() as lab:
        overlay = routed_overlay(lab.hosts(2), "xmasq")
        meet(overlay)
        negotiate(*overlay.containers)
        yield overlay


def start(host: Host, *words: str, stdout: int | IO[bytes] = subprocess.PIPE) -> subprocess.Popen[bytes]:
    """A capture that listens already."""
    process = subprocess.Popen(
        [sys.executable, "-m", "xmasq_link", "-n", host.name, *words],
        cwd=ROOT,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith(b"listening on xm0, snaplen ")
    return process


def end(process: subprocess.Popen[bytes], signum: int | None = None) -> tuple[int, str, str]:
    """Exit status, standard output, and the rest of standard error."""
    if signum is not None:
        process.send_signal(signum)
    out, err = process.communicate(timeout=patience(20))
    return process.returncode, (out or b"").decode(), err.decode()


def shown(host: Host) -> int:
    """How many of a capture's programs are on the link."""
    sides = [on_hook(host, "xm0", side) for side in ("ingress", "egress")]
    return sum(name.startswith("xmshow") for side in sides for name, _ in side)


def test_both_directions_as_containers_have_them(overlay):
    a, b = overlay.containers
    before = stats(a.host)
    process = start(a.host, "capture", "xm0")
    assert a.ping(b, count=5).lost == 0
    after = stats(a.host)
    status, out, err = end(process, signal.SIGINT)
    assert status == 0
    lines = [line.split(" ", 2)[1:] for line in out.splitlines()]
    requests = [rest for direction, rest in lines if direction == "out"]
    replies = [rest.strip() for direction, rest in lines if direction == "in"]
    assert [re.sub("id [0-9]+", "id 0", line) for line in requests] == [
        f"IP {a.address} > {b.address}: ICMP echo request, id 0, seq {n}, length 64" for n in range(1, 6)
    ]
    assert [re.sub("id [0-9]+", "id 0", line) for line in replies] == [
        f"IP {b.address} > {a.address}: ICMP echo reply, id 0, seq {n}, length 64" for n in range(1, 6)
    ]
    assert err == "10 packets captured, 0 dropped\n"
    # It was the fast path that was looked at.
    assert after["encoded"] - before["encoded"] >= 4
    assert after["decoded"] - before["decoded"] >= 4
    assert shown(a.host) == 0


def test_tcpdump_reads_it(overlay, tmp_path):
    a, b = overlay.containers
    file = tmp_path / "x.pcapng"
    process = start(a.host, "capture", "dev", "xm0", "count", "4", "-w", str(file))
    assert a.ping(b, count=4).lost == 0
    assert end(process) == (0, "", "4 packets captured, 0 dropped\n")
    read = subprocess.run(["tcpdump", "-nevr", file], capture_output=True, text=True, timeout=patience(20))
    assert read.returncode == 0, read.stderr
    assert read.stdout.count("ICMP echo request") == read.stdout.count("ICMP echo reply") == 2
    assert f"{overlay.lladdr(a.host)} > {overlay.lladdr(b.host)}" in read.stdout
    assert "bad cksum" not in read.stdout
    assert file.stat().st_mode & 0o777 == 0o600


def test_through_a_pipe(overlay):
    a, b = overlay.containers
    pipe = subprocess.PIPE
    with subprocess.Popen(
        ["tcpdump", "-nr", "-"], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
    ) as reader:
        process = start(a.host, "capture", "xm0", "-w", "-", "count", "2", stdout=reader.stdin)
        reader.stdin.close()
        assert a.ping(b, count=1).lost == 0
        assert end(process)[0] == 0
        assert "ICMP echo request" in reader.stdout.read()


def test_long_segments_are_cut_and_counted_whole(overlay):
    a, b = overlay.containers
    with xmasq_link.capture("xm0", snaplen=60, netns=a.host.name) as packets:
        tcp_transfer(a, b, 1_000_000)
        frames = packets.read(1)
        assert packets.dropped == 0
    assert {len(frame.data) for frame in frames} == {60} or min(len(frame.data) for frame in frames) >= 54
    assert max(len(frame.data) for frame in frames) == 60
    sent = sum(frame.length - 66 for frame in frames if frame.direction == "out" and frame.length > 1000)
    assert sent == pytest.approx(1_000_000, abs=5000)
    assert max(frame.length for frame in frames) > 1514


def test_what_is_not_taken_in_time_is_counted(overlay, monkeypatch):
    import xmasq_link._capture as private

    monkeypatch.setattr(private, "_RING_ALL", 1 << 18)
    monkeypatch.setattr(private, "_RING_LEAST", 1 << 17)
    a, b = overlay.containers
    before = stats(a.host)
    with xmasq_link.capture("xm0", netns=a.host.name) as packets:
        tcp_transfer(a, b, 10_000_000)
        after = stats(a.host)
        frames = packets.read(1)
        assert packets.dropped > 0
        fast = sum(after[name] - before[name] for name in ("encoded", "decoded"))
        assert len(frames) + packets.dropped >= fast
    assert len(frames) == packets.received


def test_two_at_once(overlay):
    a, b = overlay.containers
    with (
        xmasq_link.capture("xm0", netns=a.host.name) as one,
        xmasq_link.capture("xm0", netns=a.host.name, count=1) as other,
    ):
        assert shown(a.host) == 4
        assert a.ping(b, count=1).lost == 0
        assert [frame.direction for frame in other] == ["out"]
        assert [frame.direction for frame in one.read(1)] == ["out", "in"]
    assert shown(a.host) == 0


def test_a_killed_one_does_no_harm_and_the_next_cleans_up(overlay):
    a, b = overlay.containers
    process = start(a.host, "capture", "xm0")
    end(process, signal.SIGKILL)
    assert shown(a.host) == 2
    before = stats(a.host)["encoded"]
    assert a.ping(b, count=10).lost == 0
    assert stats(a.host)["encoded"] - before >= 9
    with xmasq_link.capture("xm0", netns=a.host.name):
        assert shown(a.host) == 2
    assert shown(a.host) == 0


def test_what_bounces_is_shown_once(overlay):
    a, b = overlay.containers
    for _ in range(20):
        assert a.ping(b, count=3).lost == 0
        assert xmasq_link.flush(netns=b.host.name) > 0
        before = stats(a.host)["restored"]
        with xmasq_link.capture("xm0", netns=a.host.name) as packets:
            assert a.ping(b, count=1).lost == 0
            frames = packets.read(1)
        # If it was time for a renewal, the packet took the fallback for that.
        if stats(a.host)["restored"] > before:
            break
    else:
        pytest.fail("no packet was bounced")
    assert [frame.direction for frame in frames] == ["out", "in"]
    negotiate(a, b)


def test_json_has_the_bytes(overlay):
    a, b = overlay.containers
    process = start(a.host, "-j", "capture", "xm0", "count", "1", "snaplen", "34")
    a.ping(b, count=1)
    status, out, _ = end(process)
    assert status == 0
    frame = json.loads(out)
    assert (frame["direction"], frame["length"], len(frame["data"])) == ("out", 98, 68)


def test_nobody_reads(overlay):
    a, b = overlay.containers
    process = start(a.host, "capture", "xm0")
    process.stdout.close()
    process.stdout = None
    a.ping(b, count=3)
    assert end(process) == (141, "", "")
    assert shown(a.host) == 0


def test_it_ends_with_the_link():
    with Lab() as lab:
        host = lab.host()
        xmasq(host, "link", "add", "xm0", "up", "id", "42", "local", host.address)
        process = start(host, "capture", "xm0")
        xmasq(host, "link", "del", "xm0")
        assert end(process) == (0, "", "0 packets captured, 0 dropped\n")


BAD = {
    "no link": ("capture", "name"),
    "an unknown link": ("capture nosuch", "name"),
    "no xmasq link": ("capture eth0", "name"),
    "two links": ("capture xm0 xm1", "xm1"),
    "count 0": ("capture xm0 count 0", "count"),
    "count no number": ("capture xm0 count many", "count"),
    "count missing": ("capture xm0 count", "count"),
    "snaplen too small": ("capture xm0 snaplen 13", "snaplen"),
    "snaplen too big": ("capture xm0 snaplen 65001", "snaplen"),
    "no such directory": ("capture xm0 -w /nonexistent/x", "-w"),
    "a directory": ("capture xm0 -w /", "-w"),
    "an unknown word": ("capture xm0 filter icmp", "filter"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_leaves_no_trace(overlay, case):
    host = overlay.hosts[0]
    text, argument = BAD[case]
    result = xmasq(host, *text.split(), check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"xmasq: {argument}: ")
    assert result.stderr.count("\n") == 1
    assert shown(host) == 0


def test_no_file_for_a_link_that_is_not_there(overlay, tmp_path):
    file = tmp_path / "x.pcapng"
    assert xmasq(overlay.hosts[0], "capture", "nosuch", "-w", str(file), check=False).returncode == 2
    assert not file.exists()


def test_a_terminal_gets_no_binary(overlay):
    """script(1) is not everywhere: a pseudo-terminal of our own."""
    import os
    import pty

    leader, follower = pty.openpty()
    process = subprocess.run(
        [sys.executable, "-m", "xmasq_link", "-n", overlay.hosts[0].name, "capture", "xm0", "-w", "-"],
        cwd=ROOT,
        stdout=follower,
        stderr=subprocess.PIPE,
        text=True,
        timeout=patience(20),
    )
    os.close(leader)
    os.close(follower)
    assert process.returncode == 2
    assert process.stderr.startswith("xmasq: -w: standard output is a terminal")
