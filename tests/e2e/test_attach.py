# SPDX-License-Identifier: Apache-2.0
"""A vxlan device that somebody else has made becomes a link in place, and a plain device again."""

from __future__ import annotations

import contextlib
import random
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import Host, Lab, Overlay, patience, routed_overlay, tcp_transfer, xmasq, xmasq_json
from xmasq_link import _hooks, attach_link, detach_link

from .observe import Stream, flow, kinds, make_hookable, negotiate, programs, seen, stats, strip, until, watch

pytestmark = pytest.mark.e2e

#: Datagrams a second: no more than the machine can carry.
RATE = round(5000 / patience(1))

LINK_HOOKS, UNDERLAY_HOOKS = {"xmasq_encode", "xmasq_arrive"}, {"xmasq_ingress", "xmasq_egress"}


def about(host: Host, device: str) -> list[Any]:
    """All that `ip` and `bridge` tell of a device."""
    return [
        host.ip_json(f"-d link show {device}"),
        host.ip_json(f"address show {device}"),
        host.ip_json(f"neigh show dev {device}"),
        host.ip_json(f"route show dev {device}"),
        host.run(f"bridge fdb show dev {device}").stdout,
    ]


def hooks(host: Host, device: str) -> set[str]:
    return set(programs(host, device))


@pytest.fixture
def plain(lab, make) -> Overlay:
    """A container network over plain vxlan devices, in the set-ups of flannel and of one subnet."""
    overlay: Overlay = make(lab.hosts(2), kind="vxlan")
    return overlay


@pytest.fixture(params=["tcx", "clsact"])
def tcx(request) -> bool:
    """Whether a test is about hooks by tcx, or by filters as on kernels before 6.6."""
    if request.param == "tcx" and not _hooks.has_tcx():
        pytest.skip("this kernel has no tcx (Linux 6.6)")
    return bool(request.param == "tcx")


def test_the_device_stays_as_it_is(plain):
    a, b = plain.containers
    host = plain.hosts[0]
    assert a.ping(b, count=1).received == 1
    before = about(host, "xm0")
    for one in plain.hosts:
        xmasq(one, "attach", "xm0")
    assert about(host, "xm0") == before
    negotiate(a, b)
    assert tcp_transfer(a, b, 1_000_000).size == 1_000_000
    assert stats(host)["encoded"] > 10
    assert about(host, "xm0") == before
    for one in plain.hosts:
        xmasq(one, "detach", "xm0")
        assert hooks(one, "xm0") == hooks(one, "eth0") == set()
    assert about(host, "xm0") == before
    with watch(host, "udp") as capture:
        assert a.ping(b, count=3).received == 3
    assert set(kinds(seen(capture))) == {"vxlan"}


def test_without_tcx(plain, monkeypatch):
    """As on kernels before 6.6: with filters."""
    monkeypatch.setattr(_hooks, "has_tcx", lambda: False)
    a, b = plain.containers
    for host in plain.hosts:
        attach_link("xm0", netns=host.name)
        assert "xmasq_encode" in host.run("tc filter show dev xm0 egress").stdout
    negotiate(a, b)
    assert tcp_transfer(a, b, 1_000_000).size == 1_000_000
    for host in plain.hosts:
        detach_link("xm0", netns=host.name)
        assert hooks(host, "xm0") == hooks(host, "eth0") == set()


def test_nothing_is_lost(plain, monkeypatch, tcx):
    """Not while a device becomes a link or a plain device again, and not of the underlay's own traffic."""
    monkeypatch.setattr(_hooks, "has_tcx", lambda: tcx)
    for host in plain.hosts:
        make_hookable(host, "xm0", "eth0")
    a, b = plain.containers
    with (
        Stream(a, b, rate=RATE) as there,
        Stream(b, a, rate=RATE) as back,
        Stream(*plain.hosts, rate=RATE) as own,
    ):
        streams = (there, back, own)

        def go_on() -> None:
            for one in streams:
                one.wait_for(len(one.numbers) + 500)

        for change in (attach_link, detach_link):
            for host in plain.hosts:
                go_on()
                change("xm0", netns=host.name)
            go_on()
            if change is attach_link:
                until(lambda: flow(a, b) and flow(b, a), "both directions are encoded")
                go_on()
    assert [(one.lost, one.duplicates) for one in streams] == [(0, 0)] * 3


def test_shown_as_attached(plain):
    host = plain.hosts[0]
    xmasq(host, "attach", "xm0", "lease", "5s")
    (link,) = xmasq_json(host, "link", "show")
    data = link["linkinfo"]["info_data"]
    assert data.items() >= {
        "attached": True, "id": 42, "local": "192.0.2.1", "dev": "eth0", "lease": 5.0
    }.items()  # fmt: skip
    assert "attached" in xmasq(host, "link", "show", "xm0").stdout
    xmasq(host, "link", "add", "xm1", "id", "7", "local", "192.0.2.1")
    assert "attached" not in xmasq(host, "link", "show", "xm1").stdout


def test_detaching_stops_the_peers(plain):
    """Of what a peer still encodes nothing is lost, and nothing reaches the host's own services."""
    a, b = plain.containers
    sender, receiver = plain.hosts
    for host in plain.hosts:
        xmasq(host, "attach", "xm0")
    negotiate(a, b)
    with Stream(a, b, rate=RATE) as stream:
        stream.wait_for(500)
        xmasq(receiver, "detach", "xm0")
        stream.wait_for(len(stream.numbers) + 500)
        with watch(receiver, "udp") as capture:
            stream.wait_for(len(stream.numbers) + 500)
    assert (stream.lost, stream.duplicates) == (0, 0)
    late = [packet.kind for packet in seen(capture) if packet.source == sender.address]
    assert len(late) > 100
    assert set(late) == {"fallback"}


def test_only_detaching_ends_an_attached_link(plain):
    host = plain.hosts[0]
    xmasq(host, "attach", "xm0")
    refused = xmasq(host, "link", "del", "xm0", check=False)
    assert refused.returncode == 2
    assert "xmasq detach xm0" in refused.stderr
    assert hooks(host, "xm0") == LINK_HOOKS
    host.ip("link del xm0")  # the device's owner may
    assert xmasq_json(host, "link", "show") == []
    host.ip("link add xm0 type vxlan id 42 local 192.0.2.1 dstport 4789")
    xmasq(host, "attach", "xm0")
    assert len(xmasq_json(host, "link", "show")) == 1


def test_attached_again_when_others_took_the_hooks_off(plain, monkeypatch, tcx):
    host = plain.hosts[0]
    for device in ("xm0", "eth0"):
        with monkeypatch.context() as patch:
            patch.setattr(_hooks, "has_tcx", lambda: tcx)
            attach_link("xm0", netns=host.name)
        assert bool(host.run(f"tc filter show dev {device} egress").stdout) is not tcx
        if tcx:
            strip(host, device)
        else:
            for side in ("ingress", "egress"):
                host.run(f"tc filter del dev {device} {side}")
        assert hooks(host, device) == set()
        xmasq(host, "attach", "xm0")
        assert hooks(host, "xm0") == LINK_HOOKS
        assert hooks(host, "eth0") == UNDERLAY_HOOKS
        xmasq(host, "detach", "xm0")
        assert hooks(host, "xm0") == hooks(host, "eth0") == set()


def test_devices_without_an_address_and_with_a_lower_device(lab):
    host = lab.host()
    host.ip(
        "link add bare type vxlan id 1 dstport 4789",
        "link add lower type vxlan id 2 dev eth0 local 192.0.2.1 dstport 4789",
    )
    xmasq(host, "attach", "bare", "local", "192.0.2.1", "dev", "eth0")
    xmasq(host, "attach", "lower")
    found = {link["ifname"]: link for link in xmasq_json(host, "link", "show")}
    assert [found[name]["linkinfo"]["info_data"]["local"] for name in ("bare", "lower")] == ["192.0.2.1"] * 2
    assert found["lower"]["mtu"] == 1450
    xmasq(host, "detach", "bare")
    assert hooks(host, "eth0") == UNDERLAY_HOOKS
    xmasq(host, "detach", "lower")
    assert hooks(host, "eth0") == set()


# What is refused

BAD = {
    "no name": ("attach", "name"),
    "unknown word": ("attach plain0 mtu 1400", "mtu"),
    "two names": ("attach plain0 name xm0", "name"),
    "bad name": ("attach a/b", "name"),
    "no such device": ("attach nope", "name"),
    "no vxlan device": ("attach eth0", "name"),
    "a bridge": ("attach taken", "name"),
    "a link": ("attach xm0", "name"),
    "gbp": ("attach gbp0", "name"),
    "IPv6 underlay": ("attach six0", "local"),
    "no local": ("attach bare0", "local"),
    "local no address": ("attach bare0 local here", "local"),
    "local IPv6": ("attach bare0 local 2001:db8::1", "local"),
    "local not here": ("attach bare0 local 192.0.2.77", "local"),
    "local not the device's": ("attach plain0 local 192.0.2.2", "local"),
    "local of the device not here": ("attach away0", "local"),
    "dev unknown": ("attach plain0 dev nope", "dev"),
    "dev without Ethernet": ("attach plain0 dev lo", "dev"),
    "dev not the lower device": ("attach lower0 dev taken", "dev"),
    "other port than the VTEP address's": ("attach port0", "dstport"),
    "lease": ("attach plain0 lease 61s", "lease"),
    "secret-file": ("attach plain0 secret-file /nonexistent", "secret-file"),
    "segment-bits": ("attach plain0 segment-bits 3", "segment-bits"),
    "segment-bits not the host's": ("attach plain0 segment-bits 5", "segment-bits"),
    "key-bits": ("attach plain0 key-bits 4", "key-bits"),
    "detach: no name": ("detach", "name"),
    "detach: no such device": ("detach nope", "name"),
    "detach: plain device": ("detach plain0", "name"),
    "detach: no vxlan device": ("detach eth0", "name"),
    "detach: made as a link": ("detach xm0", "name"),
}


@pytest.fixture(scope="module")
def crowd() -> Iterator[Host]:
    """A host with a link and with devices that cannot become links."""
    with Lab() as lab:
        host = lab.host()
        host.ip(
            "link add taken type bridge",
            "link add plain0 type vxlan id 1 local 192.0.2.1 dstport 4789",
            "link add gbp0 type vxlan id 2 local 192.0.2.1 dstport 4790 gbp",
            "link add six0 type vxlan id 3 local 2001:db8::1 dstport 4791",
            "link add bare0 type vxlan id 4 dstport 4789",
            "link add away0 type vxlan id 5 local 192.0.2.99 dstport 4789",
            "link add lower0 type vxlan id 6 local 192.0.2.1 dev eth0 dstport 4789",
            "link add port0 type vxlan id 7 local 192.0.2.1 dstport 8472",
        )
        xmasq(host, "link", "add", "xm0", "id", "42", "local", "192.0.2.1")
        yield host


@pytest.mark.parametrize(("words", "argument"), BAD.values(), ids=BAD.keys())
def test_bad_input(crowd, words, argument):
    before = everything(crowd)
    result = xmasq(crowd, *shlex.split(words), check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"xmasq: {argument}: ")
    assert result.stderr.count("\n") == 1
    assert everything(crowd) == before


def everything(host: Host) -> Any:
    """Devices, their qdiscs and our programs on them, and the links."""
    devices = host.ip_json("-d link show")
    return (
        devices,
        host.run("tc qdisc show").stdout,
        {device["ifname"]: programs(host, device["ifname"]) for device in devices},
        xmasq_json(host, "link", "show"),
    )


# Killed

#: Runs a command in a fork of itself that is killed before its n-th line of our code or pyroute2's requests.
KILLER = """
import os, signal, sys
from xmasq_link._cli.main import main
import xmasq_link._attach

OURS = ("/_attach.py", "/_link.py", "/_datapath.py", "/_hooks.py", "/bpf.py", "/_hold.py", "/nlsocket.py")

def run(step, words):
    seen = 0
    def watch(frame, event, arg):
        nonlocal seen
        if event == "line":
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)
        elif not frame.f_code.co_filename.endswith(OURS):
            return None
        return watch
    sys.settrace(watch)
    main(words)
    sys.settrace(None)
    return seen

for line in sys.stdin:
    step, *words = line.split()
    r, w = os.pipe()
    if not (pid := os.fork()):
        os.write(w, str(run(int(step), words)).encode())
        os._exit(0)
    os.close(w)
    _, status = os.waitpid(pid, 0)
    print(os.read(r, 64).decode() or -1, flush=True)
    os.close(r)
"""


@contextlib.contextmanager
def killer(host: Host) -> Iterator[Any]:
    process = host.popen([sys.executable, "-c", KILLER], stdin=subprocess.PIPE, stderr=None)

    def run(step: int, *words: str) -> int:
        """Steps taken, or -1 if it was killed before."""
        assert process.stdin
        assert process.stdout
        process.stdin.write(f"{step} {' '.join(words)}\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield run
    process.stdin.close()
    process.wait(patience(10))


@pytest.mark.parametrize("count", [3, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", ["attach", "detach"])
def test_killed_half_way(lab, command, count):
    """What is left never stands in the way: the device works, and attaching and detaching it, too."""
    overlay = routed_overlay(lab.hosts(2), kind="vxlan")
    a, b = overlay.containers
    host = overlay.hosts[0]
    assert a.ping(b, count=1).received == 1
    with killer(host) as run:
        total = run(0, "attach", "xm0")
        if command == "attach":
            assert run(0, "detach", "xm0") > 0
        else:
            total = run(0, "detach", "xm0")
        assert total > 100
        killed = 0
        for step in sorted(random.sample(range(1, total), count)):
            if command == "detach":
                assert run(0, "attach", "xm0") > 0
            killed += run(step, command, "xm0") < 0
            assert a.ping(b, count=1).received == 1, step
            assert len(xmasq_json(host, "link", "show")) <= 1, step
            # A command that was killed at its end has done its work.
            if not (
                hooks(host, "xm0") == LINK_HOOKS and xmasq(host, "detach", "xm0", check=False).returncode == 0
            ):
                xmasq(host, "attach", "xm0")
                xmasq(host, "detach", "xm0")
            assert hooks(host, "xm0") == hooks(host, "eth0") == set(), step
            assert xmasq_json(host, "link", "show") == [], step
        assert killed > 0


def test_interrupted_attaching_is_undone(lab):
    host = lab.host()
    host.ip("link add xm0 type vxlan id 42 local 192.0.2.1 dstport 4789")
    xmasq(host, "attach", "xm0")
    xmasq(host, "detach", "xm0")
    before = everything(host)
    for wait in (0.15, 0.35):
        process = host.popen([sys.executable, "-m", "xmasq_link", "attach", "xm0"])
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience(wait))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=patience(10))
        assert process.returncode in (0, 128 + signal.SIGTERM, -signal.SIGTERM)
        if everything(host) != before:
            assert process.returncode in (0, 128 + signal.SIGTERM)
            assert hooks(host, "xm0") == LINK_HOOKS
            xmasq(host, "detach", "xm0")
            assert everything(host) == before
