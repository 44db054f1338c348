# SPDX-License-Identifier: Apache-2.0
"""Containers talk through xmasq links: in both set-ups, over several hosts, with plain VXLAN peers."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab import bridged_overlay, routed_overlay, tcp_transfer, udp_echo, xmasq, xmasq_json

from .observe import MARK, Receiver, flow, flows, kinds, meet, negotiate, seen, stats, watch

pytestmark = pytest.mark.e2e


def test_ping_tcp_and_udp_both_ways(lab, make):
    overlay = make(lab.hosts(2))
    a, b = overlay.containers
    for one, other in ((a, b), (b, a)):
        ping = one.ping(other, count=20)
        assert (ping.received, ping.duplicates) == (20, 0)
        assert tcp_transfer(one, other, 5_000_000).size == 5_000_000
        echo = udp_echo(one, other, count=200)
        assert (echo.lost, echo.duplicates) == (0, 0)
        report = one.iperf3(other, size=20_000_000)
        assert report["end"]["sum_sent"]["bytes"] >= 20_000_000
    for host in overlay.hosts:
        counted = stats(host)
        assert counted["fallback"] < counted["encoded"] / 5
        assert counted["bounced"] == counted["error"] == 0


def test_many_connections_at_a_time(lab, make):
    overlay = make(lab.hosts(2), containers=3)
    here = [one for one in overlay.containers if one.host is overlay.hosts[0]]
    there = [one for one in overlay.containers if one.host is overlay.hosts[1]]
    pairs = list(itertools.product(here, there)) + list(itertools.product(there, here))
    with ThreadPoolExecutor(36) as pool:
        jobs = [pool.submit(tcp_transfer, *pair, 300_000, timeout=30.0) for pair in pairs * 4]
        assert sum(job.result().size for job in jobs) == 72 * 300_000
    for host in overlay.hosts:
        # All connections of two containers are one flow.
        assert len({(one.source, one.destination) for one in flows(host)}) == 9
        assert stats(host)["bounced"] == 0


def test_three_hosts_at_a_time(lab, make):
    overlay = make(lab.hosts(3))
    pairs = list(itertools.permutations(overlay.containers, 2))
    with ThreadPoolExecutor(12) as pool:
        transfers = [pool.submit(tcp_transfer, *pair, 1_000_000, timeout=30.0) for pair in pairs]
        echoes = [pool.submit(udp_echo, *pair, count=100, wait=2.0) for pair in pairs]
        assert [job.result().size for job in transfers] == [1_000_000] * 6
        assert [(job.result().lost, job.result().duplicates) for job in echoes] == [(0, 0)] * 6
    for one, other in pairs:
        assert flow(one, other)
    for host in overlay.hosts:
        others = [other for other in overlay.hosts if other is not host]
        assert {one.peer for one in flows(host)} == {other.address for other in others}
        assert stats(host)["bounced"] == 0


def test_full_size_packets(lab, make):
    """An MTU of 1500 over an underlay of 1500: the first packets too, though VXLAN makes them longer."""
    overlay = make(lab.hosts(2))
    a, b = overlay.containers
    assert overlay.mtu == 1500
    first = a.ping(b, count=3, size=1472, df=True)
    assert (first.received, first.duplicates) == (3, 0)
    with watch(overlay.hosts[0]) as capture:
        assert a.ping(b, count=10, size=1472, df=True).received == 10
    requests = [
        packet for packet in seen(capture) if packet.source == a.host.address and packet.protocol == 1
    ]
    assert len(requests) >= 5  # one a second is for renewal
    assert {packet.kind for packet in requests} == {"encoded"}
    assert {packet.length for packet in requests} == {1500}
    assert {packet.flags for packet in requests} == {2}
    # No bigger ones: a container does not learn a smaller MTU on the way either.
    assert a.ping(b, count=1, size=1473, df=True, wait=0.2).received == 0
    assert "mtu" not in a.run(f"ip route get {b.address}").stdout


def test_plain_vxlan_peer(lab, make):
    """Among two xmasq hosts there is one with the kernel's vxlan alone."""
    hosts = lab.hosts(3)
    overlay = make(hosts, ["xmasq", "xmasq", "vxlan"])
    a, b, plain = overlay.containers
    meet(overlay)
    negotiate(a, b)
    with watch(hosts[2]) as at_plain, watch(hosts[1]) as at_b:
        for one, other in ((a, plain), (plain, a), (a, b), (b, plain), (plain, b)):
            ping = one.ping(other, count=5)
            assert (ping.received, ping.duplicates) == (5, 0)
            assert tcp_transfer(one, other, 500_000).size == 500_000
            assert udp_echo(one, other, count=50).lost == 0
    packets = [packet for packet in seen(at_plain) if packet.kind != "fragment"]
    # What comes from the plain one bears no mark, and all that it gets is VXLAN with ours.
    mine = {packet.kind for packet in packets if packet.source == plain.host.address}
    gets = kinds(packet for packet in packets if packet.source != plain.host.address)
    assert mine == {"vxlan"}
    assert set(gets) == {"fallback"}
    assert gets["fallback"] > 100
    between = kinds(packet for packet in seen(at_b) if packet.source == hosts[0].address)
    assert between["encoded"] > 50 > between["fallback"]
    for host in hosts[:2]:
        counted = stats(host)
        assert counted["bounced"] == counted["error"] == 0
        assert plain.host.address not in {one.peer for one in flows(host)}


def test_two_links_with_the_same_containers(lab):
    """Two networks between the same hosts have the same addresses inside, MAC addresses, too."""
    hosts = lab.hosts(2)
    one = bridged_overlay(hosts, vni=42, link="xm0", bridge="br0")
    two = bridged_overlay(hosts, vni=43, link="xm1", bridge="br1")
    (a1, b1), (a2, b2) = one.containers, two.containers
    assert (a1.address, b1.address) == (a2.address, b2.address)
    assert a1.ip_json("link show eth0")[0]["address"] == a2.ip_json("link show eth0")[0]["address"]
    negotiate(a1, b1, "xm0")
    negotiate(a2, b2, "xm1")
    given = [flow(a1, b1, "xm0"), flow(a2, b2, "xm1")]
    keys = {one.key for one in given if one}
    assert len(keys) == 2
    before = {link: stats(hosts[1], link)["decoded"] for link in ("xm0", "xm1")}
    with (
        watch(hosts[1], "udp") as capture,
        Receiver(b1, 7000) as at_b1,
        Receiver(b2, 7000) as at_b2,
        a1.socket() as from_a1,
        a2.socket() as from_a2,
    ):
        for number in range(200):
            from_a1.sendto(b"one %d" % number, (b1.address, 7000))
            from_a2.sendto(b"two %d" % number, (b2.address, 7000))
        for receiver, word in ((at_b1, b"one"), (at_b2, b"two")):
            got = [receiver.receive(2) for _ in range(200)]
            assert {item[0] for item in got if item} == {b"%s %d" % (word, n) for n in range(200)}
            assert receiver.receive(0) is None
    sent = [packet for packet in seen(capture) if packet.kind == "encoded"]
    assert {packet.key for packet in sent} == keys
    assert {packet.dscp for packet in sent} == {MARK}
    for link, count in before.items():
        assert stats(hosts[1], link)["decoded"] - count > 190
    with ThreadPoolExecutor(4) as pool:
        pairs = [(a1, b1), (a2, b2), (b1, a1), (b2, a2)]
        jobs = [pool.submit(tcp_transfer, *pair, 2_000_000, timeout=30.0) for pair in pairs]
        assert [job.result().size for job in jobs] == [2_000_000] * 4


@pytest.mark.parametrize("fastpath", ["on", "off"])
def test_totals_are_of_both_paths(lab, fastpath):
    """The same, whichever way the packets take."""
    overlay = routed_overlay(lab.hosts(2), "xmasq")
    a, b = overlay.containers
    negotiate(a, b)
    for host in overlay.hosts:
        xmasq(host, "link", "set", "xm0", "fastpath", fastpath)
    (before,) = xmasq_json(a.host, "-s", "link", "show")
    assert a.ping(b, count=20).lost == 0
    (after,) = xmasq_json(a.host, "-s", "link", "show")
    for side in ("rx", "tx"):
        more = {name: value - before["stats64"][side][name] for name, value in after["stats64"][side].items()}
        assert (more["packets"], more["bytes"]) == (20, 20 * 98)
        assert (more["errors"], more["dropped"]) == (0, 0)
        assert more["fast_packets"] >= 15 if fastpath == "on" else more["fast_packets"] == 0
        assert more["fast_bytes"] == 98 * more["fast_packets"]
    text = xmasq(a.host, "-s", "link", "show", "xm0").stdout
    for side in ("rx", "tx"):
        total = after["stats64"][side]
        assert f"    {side}           {total['packets']} packets, {total['bytes']} bytes: fast path " in text
