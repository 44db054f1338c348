# SPDX-License-Identifier: Apache-2.0
"""The laboratory does what the other tests rely on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import (
    ROOT,
    Host,
    Lab,
    LabError,
    UdpService,
    bridged_overlay,
    patience,
    routed_overlay,
    tcp_transfer,
    udp_echo,
)

pytestmark = pytest.mark.e2e

NETNS = Path("/run/netns")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture
def pair(lab: Lab) -> list[Host]:
    return lab.hosts(2)


@pytest.mark.parametrize("make", [routed_overlay, bridged_overlay])
@pytest.mark.parametrize(("kind", "mtu"), [("vxlan", 1450), ("native", 1500)])
def test_overlay_carries_traffic(pair, make, kind, mtu):
    overlay = make(pair, kind)
    a, b = overlay.containers
    ping = a.ping(b, count=5, size=mtu - 28, df=True)
    assert (ping.received, ping.duplicates, len(ping.rtts)) == (5, 0, 5)
    too_big = a.ping(b, count=1, size=mtu - 27, df=True, wait=0.2)
    assert too_big.received == 0
    assert tcp_transfer(a, b, 3_000_000).size == 3_000_000
    for one, other in ((a, b), (b, a)):
        assert udp_echo(one, other, count=50).lost == 0
    assert a.iperf3(b, size=1 << 20)["end"]["sum_sent"]["bytes"] >= 1 << 20


@pytest.mark.parametrize("make", [routed_overlay, bridged_overlay])
@pytest.mark.parametrize(
    ("kind", "inner", "mtu"), [("vxlan", 6, 1430), ("vxlan", 4, 1430), ("native", 6, 1500)]
)
def test_an_ipv6_underlay_carries_traffic(lab, make, kind, inner, mtu):
    overlay = make(lab.hosts(2, family=6), kind, inner=inner)
    a, b = overlay.containers
    header = 48 if inner == 6 else 28
    assert a.ping(b, count=3, size=mtu - header, df=True).received == 3
    assert a.ping(b, count=1, size=mtu - header + 1, df=True, wait=0.2).received == 0
    assert tcp_transfer(a, b, 1_000_000).size == 1_000_000
    assert udp_echo(b, a, count=50).lost == 0


def test_both_families_on_the_same_hosts(lab):
    hosts = lab.hosts(2, ipv6=True)
    old = routed_overlay(hosts, "vxlan")
    new = bridged_overlay(hosts, "vxlan", family=6, inner=6, vni=43, link="xm1")
    for overlay in (old, new):
        a, b = overlay.containers
        assert a.ping(b).received == 3


def test_an_ipv6_container_moves_and_announces_itself(lab):
    hosts = lab.hosts(2, family=6)
    overlay = bridged_overlay(hosts, "vxlan")
    here, there = overlay.containers
    assert here.ping(there).received == 3
    overlay.remove_container(there)
    moved = overlay.add_container(hosts[0], ip=there.address, mac="02:01:00:00:00:99")
    moved.announce()
    assert here.ping(moved).received == 3


def test_three_hosts_with_two_containers_each(lab):
    overlay = bridged_overlay(lab.hosts(3), "vxlan", containers=2)
    assert len({container.address for container in overlay.containers}) == 6
    for a in overlay.containers:
        for b in overlay.containers:
            assert a.ping(b, count=1).received == 1


def test_a_container_moves_to_another_host(pair):
    overlay = bridged_overlay(pair, "vxlan")
    here, there = overlay.containers
    assert here.ping(there).received == 3
    overlay.remove_container(there)
    moved = overlay.add_container(pair[0], ip=there.address)
    assert moved.host is here.host
    moved.announce()
    assert here.ping(moved).received == 3


@pytest.mark.parametrize(("kind", "packets"), [("vxlan", 8), ("native", 0)])
def test_what_is_on_the_wire(pair, kind, packets):
    a, b = routed_overlay(pair, kind).containers
    with pair[0].lab.fabric.capture(pair[1]) as capture:
        assert a.ping(b, count=4).received == 4
    seen = [packet for packet in capture.packets() if packet.haslayer("IP")]
    assert len(seen) == 8
    assert sum(packet.haslayer("UDP") and packet["UDP"].dport == 4789 for packet in seen) == packets


def test_a_capture_is_complete_however_late_tcpdump_gets_to_run(pair):
    """All that was sent before it is stopped is in it."""
    one, two = pair
    with one.lab.fabric.capture(two, "icmp") as capture:
        tcpdump = capture._pid()
        os.kill(tcpdump, signal.SIGSTOP)
        assert one.ping(two, count=50).received == 50
        late = threading.Timer(0.5, os.kill, (tcpdump, signal.SIGCONT))
        late.start()
        capture.stop()
    late.join()
    assert len(capture.packets()) == 100


def test_loss_loses_and_clear_ends_it(lab, pair):
    one, two = pair
    assert one.ping(two, count=20).lost == 0
    rule = lab.fabric.loss(30, host=one, direction="from")
    result = udp_echo(one, two, count=1000, interval=0.0002, wait=0.2)
    assert 200 < result.lost < 400
    assert rule.packets >= result.lost
    lab.fabric.clear()
    assert one.ping(two, count=20).lost == 0


def test_loss_only_of_what_matches(lab, pair):
    one, two = pair
    try:
        rule = lab.fabric.loss(100, only="udp dport 7000", host=two, direction="to")
    except LabError as error:
        if "Operation not supported" not in str(error):
            raise
        pytest.skip("nftables of this kernel see nothing that leaves by a device (Linux 5.16)")
    with UdpService(two, port=7000, echo=False) as lost, UdpService(two, port=7001, echo=False) as kept:
        with one.socket() as sender:
            for _ in range(10):
                sender.sendto(b"x", (two.address, 7000))
                sender.sendto(b"x", (two.address, 7001))
        end = time.monotonic() + patience(2)
        while kept.datagrams < 10 and time.monotonic() < end:
            time.sleep(0.01)
        assert (lost.datagrams, kept.datagrams, rule.packets) == (0, 10, 10)


def _wire(pair: list[Host], *, tos: int, count: int = 20):
    """UDP packets with this TOS from one host as they reach the other, captured."""
    one, two = pair
    one.offloads(tx=False)
    one.ping(two, count=1)
    with one.lab.fabric.capture(two, "udp") as capture, one.socket() as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        with UdpService(two, echo=False) as sink:
            for _ in range(count):
                sender.sendto(os.urandom(100), (two.address, sink.port))
    packets = capture.packets()
    assert len(packets) == count
    for packet in packets:
        assert _checksums_are_right(packet)
    return packets


def _checksums_are_right(packet) -> bool:
    again = packet.copy()
    del again["IP"].chksum, again["UDP"].chksum
    again = type(packet)(bytes(again))
    return (again["IP"].chksum, again["UDP"].chksum) == (packet["IP"].chksum, packet["UDP"].chksum)


def test_middlebox_bleaches_dscp_and_leaves_ecn(lab, pair):
    assert {packet["IP"].tos for packet in _wire(pair, tos=3 << 2 | 1)} == {3 << 2 | 1}
    rule = lab.fabric.dscp_bleach(host=pair[0])
    assert {packet["IP"].tos for packet in _wire(pair, tos=3 << 2 | 1)} == {1}
    assert rule.packets > 0


def test_middlebox_rewrites_ids(lab, pair):
    # Unconnected UDP with DF and no fragments has Identification 0 or counts up: both are orderly.
    before = [packet["IP"].id for packet in _wire(pair, tos=0)]
    lab.fabric.id_rewrite(host=pair[0])
    after = [packet["IP"].id for packet in _wire(pair, tos=0)]
    assert max(before) - min(before) < 20 or len(set(before)) == 1
    assert len(set(after)) > 15
    assert max(after) - min(after) > 20_000


def test_some_ids_are_rewritten(lab, pair):
    rule = lab.fabric.id_rewrite(percent=50, only="ip dscp 5", host=pair[0])
    _wire(pair, tos=0, count=40)
    assert rule.packets == 0
    _wire(pair, tos=5 << 2, count=40)
    assert 5 < rule.packets < 35


@pytest.mark.parametrize(("tos", "arrives"), [(0, 0), (1, 3), (2, 3), (3, 3), (5 << 2 | 2, 5 << 2 | 3)])
def test_middlebox_marks_ce(lab, pair, tos, arrives):
    lab.fabric.mark_ce(host=pair[0])
    assert {packet["IP"].tos for packet in _wire(pair, tos=tos, count=3)} == {arrives}


@pytest.mark.parametrize("on", [True, False])
def test_offloads_decide_the_size_of_packets_on_the_wire(lab, pair, on):
    for host in pair:
        host.offloads(tso=on, gso=on, gro=False, tx=on, udp_tunnel=on)
    with lab.fabric.capture(pair[0], "tcp", snaplen=96) as capture:
        tcp_transfer(pair[0], pair[1], 1_000_000)
    largest = max(packet["IP"].len for packet in capture.packets())
    assert (largest > 1500) == on


def test_bad_rule_is_an_error(lab, pair):
    with pytest.raises(LabError, match="nft"):
        lab.fabric.loss(10, only="no such thing", host=pair[0])
    with pytest.raises(LabError, match="percent 101: 0 to 100 are allowed"):
        lab.fabric.loss(101)


def test_commands_inside(pair):
    host = pair[0]
    assert host.python("import socket; print(socket.if_nametoindex('eth0') > 0)") == "True\n"
    assert host.ip_json("addr show eth0")[0]["addr_info"][0]["local"] == host.address
    assert host.run("false", check=False).returncode == 1
    with pytest.raises(LabError, match="exit code 1"):
        host.run("false")
    with pytest.raises(LabError, match=r"still running after"):
        host.run("sleep 20", timeout=0.1)


def test_everything_is_gone_afterwards():
    lab = Lab()
    sleepers = []

    def work() -> None:
        with lab:
            host = lab.host()
            sleepers.append(host.popen("sleep 60").pid)
            # This one has left the process group of what was started.
            sleepers.append(int(host.run(["sh", "-c", "setsid sleep 60 >&- 2>&- & echo $!"]).stdout))
            (lab.tmp / "file").touch()
            assert len(list(NETNS.glob(f"{lab.prefix}-*"))) == 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    for pid in sleepers:
        _wait_until_ended(pid)
    assert not list(NETNS.glob(f"{lab.prefix}-*"))
    assert not list(Path(tempfile.gettempdir()).glob(f"{lab.prefix}-*"))


def test_two_labs_at_a_time():
    with Lab() as first:
        one = first.host()
        with Lab() as second:
            assert second.host().name != one.name
        assert one.run("true").returncode == 0


_VICTIM = """
import sys, time
from tests.lab import Lab
with Lab() as lab:
    host = lab.host()
    sleeper = host.popen(["sh", "-c", "echo inside; exec sleep 60"])
    sleeper.stdout.readline()
    print(lab.prefix, sleeper.pid, flush=True)
    time.sleep(60)
"""


def _start_victim() -> tuple[subprocess.Popen[str], str, int]:
    victim = subprocess.Popen([sys.executable, "-c", _VICTIM], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert victim.stdout is not None
    prefix, sleeper = victim.stdout.readline().split()
    assert len(list(NETNS.glob(f"{prefix}-*"))) == 2
    return victim, prefix, int(sleeper)


def _is_running(pid: int) -> bool:
    # A killed orphan may stay a zombie for a while: nothing of it is left but its number.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait_until_ended(pid: int) -> None:
    end = time.monotonic() + patience(5)
    while _is_running(pid):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_leftovers_of_a_killed_lab_are_removed_by_the_next():
    victim, prefix, sleeper = _start_victim()
    with victim:
        victim.kill()
        victim.wait(patience(10))
    assert _is_running(sleeper)
    assert len(list(NETNS.glob(f"{prefix}-*"))) == 2
    with Lab():
        assert not list(NETNS.glob(f"{prefix}-*"))
        _wait_until_ended(sleeper)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_lab_cleanly(number):
    victim, prefix, sleeper = _start_victim()
    with victim:
        victim.send_signal(number)
        assert victim.wait(patience(10)) != 0
    assert not list(NETNS.glob(f"{prefix}-*"))
    _wait_until_ended(sleeper)


def test_building_is_quick():
    # About 0.1 s was measured; the bound leaves room for a busy machine.
    begin = time.monotonic()
    with Lab() as lab:
        routed_overlay(lab.hosts(2), "vxlan")
    assert time.monotonic() - begin < patience(3)
