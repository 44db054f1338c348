# SPDX-License-Identifier: Apache-2.0
"""xmasq monitor: tells what happens, when it happens, and costs nothing while nobody listens."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

import xmasq_link
from kmod_ebpf import bpf, perf
from tests.e2e.observe import flows, maps_of, meet, negotiate, programs, until
from tests.lab import ROOT, Host, Overlay, bridged_overlay, routed_overlay, xmasq

pytestmark = pytest.mark.e2e


class Listener:
    """`xmasq -j monitor` on a host; what it has said so far is in ``events``."""

    def __init__(self, host: Host, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "xmasq_link", "-n", host.name, "-j", "monitor", *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        assert self.process.stderr.readline() == "listening\n"
        self.events: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def wait(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The first event of a kind with these fields; waits for it."""

        def find() -> dict[str, Any] | None:
            for event in list(self.events):
                if event["kind"] == kind and all(event.get(k) == v for k, v in fields.items()):
                    return event
            return None

        return until(find, f"{kind} {fields} among {self.events}", timeout=15)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(20)
        self._thread.join()
        rest = self.process.stderr.read()
        self.process.stdout.close()
        self.process.stderr.close()
        assert (code, rest) == (130, "")


@pytest.fixture
def overlay(lab) -> Overlay:
    overlay = routed_overlay(lab.hosts(2))
    meet(overlay)
    return overlay


def test_a_flow_from_its_first_key_to_its_end(overlay):
    a, b = overlay.containers
    with Listener(a.host) as here, Listener(b.host) as there:
        began = time.time()
        negotiate(a, b)
        same = {"source": a.address, "destination": b.address, "df": True, "dscp": 0}
        encoded = here.wait("flow_encoded", **same, link="xm0", peer=b.host.address, local=a.host.address)
        granted = there.wait("key_granted", **same, link="xm0", peer=a.host.address)
        assert encoded["key"] == granted["key"]
        assert encoded["duration_ms"] == granted["duration_ms"] == 10_000
        assert began - 1 <= granted["time"] <= encoded["time"] + 0.1 <= time.time() + 1
        time.sleep(1.1)  # the first renewal comes after a second
        assert a.ping(b, count=1).lost == 0
        negotiate(a, b)
        here.wait("flow_renewed", **same)
        there.wait("key_renewed", **same)
        with a.socket() as s:
            xmasq(b.host, "flush")
            s.sendto(b"?", (b.address, 9))
            here.wait("flow_ended", **same, reason="bounced")
            there.wait("key_unknown", peer=a.host.address, key=encoded["key"])


def test_a_lease_that_runs_out(lab):
    overlay = routed_overlay(lab.hosts(2), options=["lease", "1s"])
    a, b = overlay.containers
    meet(overlay)
    with Listener(a.host, "flow") as events:
        negotiate(a, b)
        event = events.wait("flow_ended", source=a.address, reason="expired")
        assert abs(event["time"] - time.time()) < 2
        assert {e["kind"] for e in events.events} <= {"flow_encoded", "flow_renewed", "flow_ended"}


def test_a_link_that_goes_takes_its_keys_back(overlay):
    a, b = overlay.containers
    negotiate(a, b)
    with Listener(a.host) as events:
        xmasq(b.host, "link", "del", "xm0")
        events.wait("flow_ended", source=a.address, reason="withdrawn")


def test_a_peer_whose_path_spoils_keys(overlay):
    """Its host bounces keys that were never used: made here with a raw socket."""
    import socket
    import struct

    a, b = overlay.containers
    negotiate(a, b)

    def bounce(key: int) -> None:
        packet = struct.pack(
            ">BBHHHBBH4s4s8s",
            0x45,
            7 << 2,
            28,
            key << 6,
            0x4000,
            64,
            17,
            0,
            socket.inet_aton(b.host.address),
            socket.inet_aton(a.host.address),
            bytes(8),
        )
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
            s.sendto(packet, (a.host.address, 0))

    xmasq(b.host, "link", "del", "xm0")  # or its egress hook would clear the mark
    for program in list(programs(b.host, "eth0")):
        pytest.fail(f"{program} is still on the underlay")
    with Listener(a.host, "peer") as events:
        b.host.inside(lambda: bounce(900))
        events.wait("peer_stray", peer=b.host.address, key=900)
        b.host.inside(lambda: bounce(901))
        off = events.wait("peer_off", peer=b.host.address)
        assert off["duration_ms"] == 60_000


def test_a_container_that_moves(lab):
    overlay = bridged_overlay(lab.hosts(3), containers=0)
    hosts = overlay.hosts
    a = overlay.add_container(hosts[0])
    b = overlay.add_container(hosts[1], ip="198.51.100.100")
    meet(overlay)
    negotiate(a, b)
    with Listener(hosts[0]) as events:
        overlay.remove_container(b)
        b = overlay.add_container(hosts[2], ip="198.51.100.100")
        b.announce()
        moved = events.wait("mac_moved", link="xm0", peer=hosts[2].address)
        assert moved["source_mac"].startswith("02:01:")

        with a.socket() as s:
            s.sendto(b"?", (b.address, 9))
            events.wait("flow_ended", source=a.address, reason="the FDB sends it elsewhere")


def test_links_come_and_go(lab):
    host = lab.host()
    with Listener(host) as events:
        xmasq(host, "link", "add", "xm0", "id", "42", "local", host.address)
        events.wait("link_added", link="xm0", local=host.address)
        host.ip("link set xm0 up")
        events.wait("link_changed", link="xm0", reason="up true")
        host.ip("link set xm0 mtu 1400")
        events.wait("link_changed", link="xm0", reason="mtu 1400")
        host.ip("link del xm0")
        events.wait("link_removed", link="xm0")
        # A new datapath: it is listened to as well.
        xmasq(host, "link", "add", "xm1", "id", "43", "local", host.address)
        events.wait("link_added", link="xm1")


def listen_map(host: Host) -> bpf.Map:
    for number in maps_of(programs(host, "eth0")["xmasq_ingress"]):
        opened = bpf.Map.from_fd(bpf.map_fd(number))
        if opened.name == "listen":
            return opened
        opened.close()
    raise AssertionError("there is no map of that name")


def test_four_may_listen_and_a_killed_one_makes_room(overlay):
    host = overlay.hosts[0]
    listen = listen_map(host)
    try:
        four = [xmasq_link.monitor(netns=host.name) for _ in range(4)]
        assert listen.lookup(bytes(4)) == bytes([15, 0, 0, 0])
        with pytest.raises(xmasq_link.XmasqError, match="4 others listen"):
            xmasq_link.monitor(netns=host.name)
        for one in four:
            one.close()
        assert listen.lookup(bytes(4)) == bytes(4)
        process = subprocess.Popen(
            [sys.executable, "-m", "xmasq_link", "-n", host.name, "monitor"],
            cwd=ROOT,
            stderr=subprocess.PIPE,
        )
        assert process.stderr.readline() == b"listening\n"
        assert listen.lookup(bytes(4)) == bytes([1, 0, 0, 0])
        process.kill()
        process.communicate()
        with xmasq_link.monitor(netns=host.name):
            assert listen.lookup(bytes(4)) == bytes([1, 0, 0, 0])
        assert listen.lookup(bytes(4)) == bytes(4)
    finally:
        listen.close()


def test_what_is_not_read_in_time_is_counted(overlay, monkeypatch):
    import xmasq_link._monitor as private

    monkeypatch.setattr(private, "_RING", 4096)
    a, b = overlay.containers
    room = len(perf.online_cpus()) * 4096 // 112

    def many_flows() -> None:
        """One flow for each DSCP that is not ours, both ways: an event for each key, and for each flow."""
        for dscp in range(64):
            for one, other in ((a, b), (b, a)):
                with one.socket() as s:
                    s.setsockopt(0, 1, dscp << 2)  # IP_TOS
                    s.sendto(b"?", (other.address, 9))

    with xmasq_link.monitor(netns=b.host.name) as events:
        many_flows()
        until(lambda: len(flows(b.host)) + len(flows(a.host)) > room, "more flows than there is room")
        assert len([e for e in events.read(1) if e.kind != "lost"]) <= room
        xmasq_link.flush(netns=a.host.name)
        xmasq_link.flush(netns=b.host.name)

        def told() -> bool:
            """What has no room is told with the next event that has."""
            many_flows()
            return any(e.kind == "lost" and e.count for e in events.read(0.1)) and events.lost > 0

        until(told, "the loss is told")


def test_closed_pipe(overlay):
    host = overlay.hosts[0]
    process = subprocess.Popen(
        [sys.executable, "-m", "xmasq_link", "-n", host.name, "monitor"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr.readline() == b"listening\n"
    process.stdout.close()
    negotiate(*overlay.containers)
    assert process.wait(20) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize("words", ["nosuch", "flow nosuch", "flow key xm0"])
def test_bad_input(words):
    result = xmasq(None, "monitor", *words.split(), check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"xmasq: {words.split()[-1]}: ")
    assert result.stderr.count("\n") == 1
