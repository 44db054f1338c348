# SPDX-License-Identifier: Apache-2.0
"""IPv6 underlays: IPv6 inside is encoded, by the flow label; mixed families take the fallback."""

from __future__ import annotations

import socket
import threading
from collections import Counter

import pytest

from tests.lab import (
    Host,
    Overlay,
    bridged_overlay,
    routed_overlay,
    tcp_transfer,
    udp_echo,
    xmasq,
    xmasq_json,
)
from xmasq_link import flows as list_flows
from xmasq_link import flush, set_link
from xmasq_link._datapath import Datapath

from .observe import (
    BOUNCE,
    MARK,
    TCP,
    Receiver,
    Stream,
    flow,
    flows,
    kinds,
    meet,
    need_big_tcp,
    negotiate,
    programs,
    seen,
    stats,
    until,
    watch,
)

pytestmark = pytest.mark.e2e

ICMPV6 = 58


def wipe(host: Host) -> int:
    """Has a host forget all keys that it has given, as if its tables had been lost; returns how many."""

    def work() -> int:
        from pyroute2 import IPRoute

        with IPRoute() as ipr, Datapath.find(ipr, family=6) as dp:
            given = 0
            for idx, block in list(dp.values("blocks")):
                if block.owner:
                    given += sum(slot.valid != 0 for slot in block.slots)
                    dp.maps["blocks"].update(idx.to_bytes(4, "little"), bytes(dp.maps["blocks"].value_size))
            return given

    return host.inside(work)


def ready(lab, make, **kwargs) -> Overlay:
    """Two hosts with a container each, whose DF packets are encoded both ways."""
    overlay = make(lab.hosts(2, family=6), **kwargs)
    meet(overlay)
    negotiate(*overlay.containers)
    return overlay


def test_ping_tcp_and_udp_both_ways(lab, make):
    overlay = make(lab.hosts(2, family=6))
    a, b = overlay.containers
    for one, other in ((a, b), (b, a)):
        ping = one.ping(other, count=20)
        assert (ping.received, ping.duplicates) == (20, 0)
        assert tcp_transfer(one, other, 5_000_000).size == 5_000_000
        echo = udp_echo(one, other, count=200)
        assert (echo.lost, echo.duplicates) == (0, 0)
        assert one.iperf3(other, size=20_000_000)["end"]["sum_sent"]["bytes"] >= 20_000_000
    for host in overlay.hosts:
        counted = stats(host)
        assert counted["fallback"] < counted["encoded"] / 5
        assert counted["bounced"] == counted["ctl_bad"] == 0
        assert counted["error"] == 0


@pytest.mark.parametrize("other", [None, b"another one, 16B"], ids=["none", "another"])
def test_only_hosts_with_the_secret_get_keys(lab, other):
    overlay = routed_overlay(lab.hosts(3, family=6))
    secrets = (b"sixteen bytes...", b"sixteen bytes...", other)
    for host, secret in zip(overlay.hosts, secrets, strict=True):
        if secret:
            host.inside(lambda secret=secret: set_link("xm0", secret=secret))
    meet(overlay)
    a, b, outsider = overlay.containers
    negotiate(a, b)
    before = stats(overlay.hosts[0])
    assert tcp_transfer(a, b, 1_000_000).size == 1_000_000
    assert stats(overlay.hosts[0])["encoded"] > before["encoded"]
    for one in (a, b):
        ping = one.ping(outsider, count=20)
        assert (ping.received, ping.duplicates) == (20, 0)
        with Stream(outsider, one, rate=500) as stream:
            stream.wait_for(100)
        assert (stream.lost, stream.duplicates) == (0, 0)
        assert stats(one.host)["ctl_auth"] > 0
        assert {each.peer for each in flows(one.host)} == {(b if one is a else a).host.address}
    assert flows(outsider.host) == []
    assert stats(outsider.host)["ctl_auth"] > 0
    assert stats(outsider.host)["encoded"] == stats(outsider.host)["decoded"] == 0


def test_what_is_on_the_wire(lab, make):
    overlay = ready(lab, make)
    a, b = overlay.containers
    here, there = overlay.hosts
    for host in overlay.hosts:
        host.offloads(tx=False, tso=False, gso=False)
    with watch(here) as capture, watch(b) as inside:
        assert a.ping(b, count=3, size=1452).received == 3
        assert tcp_transfer(a, b, 1_000_000).size == 1_000_000
        packets, arrived = seen(capture), seen(inside)
    sent = [x for x in packets if x.kind == "encoded" and x.source == here.address]
    assert {(x.destination, x.dscp, x.ttl) for x in sent} <= {
        (there.address, MARK, hops) for hops in (63, 64)
    }
    assert {x.protocol for x in sent} == {ICMPV6, TCP}
    # One flow, one key, in all segments: 16 bits of index, and a check of them.
    one = flow(a, b)
    assert one is not None
    assert {x.key for x in sent} == {one.key}
    index = one.key >> 4
    assert one.key & 15 == (index ^ index >> 4 ^ index >> 8 ^ index >> 12) & 15
    assert max(x.length for x in sent) == 1500
    # What arrives is the container's, with a flow label of 0.
    back = [x for x in arrived if x.source == a.address and x.protocol in (ICMPV6, TCP) and x.dscp == 0]
    assert {x.destination for x in back} == {b.address}
    assert Counter(x.key == 0 for x in back)[True] >= len(sent)
    assert stats(here)["error"] == stats(there)["error"] == 0


def test_both_families_at_the_same_time(lab):
    hosts = lab.hosts(2, ipv6=True)
    old = routed_overlay(hosts)
    new = bridged_overlay(hosts, family=6, vni=43, link="xm1", bridge="br1")
    pairs = [overlay.containers for overlay in (old, new)]
    threads = [
        threading.Thread(target=lambda p=pair: sizes.append(tcp_transfer(*p, 5_000_000).size))
        for pair in pairs
    ]
    sizes: list[int] = []
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [5_000_000] * 2
    for host in hosts:
        assert {one.link for one in flows(host)} == {"xm0"}
        every = host.inside(lambda: list(list_flows()))
        assert {one.link for one in every} == {"xm0", "xm1"}
        assert {one.peer for one in every} == {
            other.addresses[family] for other in hosts if other is not host for family in (4, 6)
        }
        assert len(xmasq_json(host, "peer", "show")) == 2
        found = programs(host, "eth0")
        assert {"xmasq_ingress", "xmasq_egress", "xmasq6_ingress", "xmasq6_egress"} <= set(found)
        for link in ("xm0", "xm1"):
            assert stats(host, link)["encoded"] > 20
    # One goes, the other stays.
    for host in hosts:
        xmasq(host, "link", "del", "xm0")
    assert tcp_transfer(*new.containers, 1_000_000).size == 1_000_000
    for host in hosts:
        assert set(programs(host, "eth0")) == {"xmasq6_ingress", "xmasq6_egress"}
        assert xmasq(host, "flush").returncode == 0
        xmasq(host, "link", "del", "xm1")
        assert programs(host, "eth0") == {}


@pytest.mark.parametrize(("family", "inner"), [(6, 4), (4, 6)])
def test_mixed_families_take_the_fallback(lab, make, family, inner):
    overlay = make(lab.hosts(2, ipv6=True, family=family), inner=inner)
    a, b = overlay.containers
    assert a.ping(b, count=5).received == 5
    assert udp_echo(a, b, count=100).lost == 0
    for one, other in ((a, b), (b, a)):
        assert tcp_transfer(one, other, 2_000_000).size == 2_000_000
    for host in overlay.hosts:
        counted = stats(host)
        assert counted["encoded"] == counted["decoded"] == 0
        assert counted["fb_not_ip"] > 20


@pytest.mark.parametrize("inner", [4, 6])
def test_transfers_that_the_fallback_has_to_carry(lab, make, inner):
    """Full-size packets without a grant: over IPv6 the vxlan driver drops what does not fit."""
    overlay = make(lab.hosts(2, family=6), ["xmasq", "vxlan"], inner=inner)
    for host in overlay.hosts:
        host.ip(f"link set {overlay.link} mtu 1500")
        if overlay.bridge:
            host.ip(f"link set {overlay.bridge} mtu 1500")
        for container in host.containers.values():
            host.ip(f"link set {container.veth} mtu 1500")
            container.ip("link set eth0 mtu 1500")
    a, b = overlay.containers
    assert tcp_transfer(a, b, 3_000_000).size == 3_000_000
    for segmentation in ("on", "off"):
        a.run(f"ethtool -K eth0 tso {segmentation} gso {segmentation}")
        assert tcp_transfer(a, b, 1_000_000, timeout=30).size == 1_000_000


def test_a_flow_of_full_size_packets_keeps_its_grant(lab, make):
    """Nothing of it fits the fallback, so probes renew its lease."""
    overlay = ready(lab, make, options=["lease", "2s"])
    a, b = overlay.containers
    for one in (a, b):
        one.run("ethtool -K eth0 tso off gso off")
    a.run("ip -6 route flush cache")
    with Stream(a, b, rate=200, size=1452) as stream:
        until(lambda: len(stream.numbers) > 1400, "seven seconds of it", timeout=20)
    assert (stream.lost, stream.duplicates) == (0, 0)
    counted = stats(overlay.hosts[0])
    assert counted["confirm_rx"] >= 4
    assert counted["too_big_tx"] == 0


def test_keys_wiped_in_mid_stream_cost_nothing(lab, make):
    overlay = ready(lab, make)
    a, b = overlay.containers
    wiped = 0
    with watch(overlay.hosts[0]) as capture, Stream(a, b, rate=2000) as stream:
        for number in range(1, 6):
            stream.wait_for(400 * number)
            wiped += wipe(overlay.hosts[1])
    assert wiped > 2
    assert (stream.lost, stream.duplicates) == (0, 0)
    counted = kinds(seen(capture))
    assert counted["bounced"] > 0
    assert counted["encoded"] > stream.sent * 0.5
    host = stats(overlay.hosts[0])
    assert host["bounced"] > 0
    assert host["stray"] == host["path_off"] == host["error"] == 0


def test_deleting_a_link_takes_its_keys_back(lab, make):
    overlay = ready(lab, make)
    a, b = overlay.containers
    here, there = overlay.hosts
    assert flow(a, b) is not None
    with watch(here) as capture:
        xmasq(there, "link", "del", "xm0")
        until(lambda: flow(a, b) is None, "the sender has stopped")
        taken = [x for x in seen(capture) if x.kind == "bounced"]
    assert {(x.source, x.dscp, x.length) for x in taken} == {(there.address, BOUNCE, 40)}


def test_loss_of_control_packets_costs_no_data(lab, make):
    overlay = make(lab.hosts(2, family=6))
    a, b = overlay.containers
    meet(overlay)
    # All that is UDP to the tunnel's port without the I flag: control packets. There are so few that by
    # chance all could come through, so it is the first of each four of a host.
    control = "meta protocol ip6 udp dport 4789 @th,64,8 0"
    rule = lab.fabric.rule("drop", match=f"{control} numgen inc mod 4 0", direction="from")
    with Stream(a, b, rate=500) as stream:
        until(lambda: flow(a, b) is not None, "encoded all the same", timeout=20)
        stream.wait_for(len(stream.numbers) + 500)
    assert (stream.lost, stream.duplicates) == (0, 0)
    assert rule.packets > 0


def test_a_path_that_rewrites_the_flow_label_gets_nothing_encoded(lab, make):
    overlay = make(lab.hosts(2, family=6))
    a, b = overlay.containers
    lab.fabric.rule("ip6 flowlabel set 0x54321", match="meta protocol ip6", direction="from")
    assert a.ping(b, count=20).received == 20
    assert tcp_transfer(a, b, 500_000).size == 500_000
    for host in overlay.hosts:
        assert stats(host)["encoded"] == 0
    assert sum(stats(host)["ctl_path"] for host in overlay.hosts) > 0


def test_a_label_that_is_spoilt_later_reaches_nobody_else(lab, make):
    overlay = ready(lab, make)
    a, b = overlay.containers
    other = overlay.add_container(overlay.hosts[1])
    negotiate(a, other)
    with Receiver(other, 7777) as receiver:
        # One bit of each encoded packet's label: the check says that it is nobody's.
        lab.fabric.rule(
            "ip6 flowlabel set 0x00031", match="meta protocol ip6 ip6 dscp 3 udp dport 7777", direction="from"
        )
        with a.socket() as client:
            for _ in range(20):
                client.sendto(b"for b alone", (b.address, 7777))
        assert receiver.receive(0.5) is None
    assert stats(overlay.hosts[0])["stray"] > 0


def test_nothing_else_bears_our_dscp(lab):
    overlay = ready(lab, routed_overlay)
    here, there = overlay.hosts
    with watch(here) as capture:
        for tos in (MARK << 2, BOUNCE << 2):
            with here.socket(socket.AF_INET6) as client:
                client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, tos | 1)
                client.sendto(b"not ours", (there.address, 9))
        packets = [x for x in seen(capture) if x.payload[8:] == b"not ours"]
    assert [(x.dscp, x.ecn) for x in packets] == [(0, 1), (0, 1)]
    assert stats(here)["sanitised"] >= 2


def test_congestion_marks_reach_the_container(lab):
    overlay = ready(lab, routed_overlay)
    a, b = overlay.containers
    lab.fabric.rule("ip6 ecn set ce", match="meta protocol ip6 ip6 dscp 3 ip6 ecn ect0", direction="from")
    with Receiver(b) as receiver, a.socket() as client:
        client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 2)
        client.sendto(b"x", receiver.address)
        got = receiver.receive(3)
    assert got == (b"x", 3)


def test_a_next_hop_with_a_link_local_address(lab):
    """Peers behind a router, as its fe80:: address; the VTEP addresses are on lo."""
    hosts = lab.hosts(2, family=6)
    local = {}
    for host in hosts:
        addresses = host.ip_json("addr show eth0")[0]["addr_info"]
        local[host.name] = next(x["local"] for x in addresses if x["scope"] == "link")
        host.addresses[6] = host.address = f"2001:db8:ffff::{host.number}"
        host.ip(f"addr add {host.address}/128 dev lo")
    for host, other in (hosts, hosts[::-1]):
        host.ip(f"route add {other.address}/128 via {local[other.name]} dev eth0 src {host.address}")
    overlay = routed_overlay(hosts)
    a, b = overlay.containers
    negotiate(a, b)
    assert tcp_transfer(a, b, 2_000_000).size == 2_000_000
    for source, target in ((a, b), (b, a)):
        one = flow(source, target)
        assert one is not None
        assert one.nexthop == local[target.host.name]
        assert stats(source.host)["encoded"] > 20


@pytest.mark.parametrize(
    ("words", "argument"),
    [
        ("id 1 local fe80::1", "local"),
        ("id 1 local ::ffff:192.0.2.1", "local"),
        ("id 1 local ::1", "local"),
        ("id 1 local 2001:db8::77", "local"),
        ("id 1 local 2001:db8::1 remote 192.0.2.2", "remote"),
        ("id 1 local 192.0.2.1 remote 2001:db8::2", "remote"),
        ("id 1 local 2001:db8::1 segment-bits 6", "segment-bits"),
        ("id 1 local 2001:db8::1 key-bits 1", "key-bits"),
        ("id 1 local 2001:db8::1 dev nosuch", "dev"),
    ],
)
def test_bad_input(lab, words, argument):
    host = lab.host(family=6)
    result = xmasq(host, "link", "add", "xm0", *words.split(), check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"xmasq: {argument}: ")
    assert "Traceback" not in result.stderr
    assert programs(host, "eth0") == {}
    assert xmasq_json(host, "link", "show") == []


def test_an_underlay_with_big_tcp_is_refused(lab):
    """More than 64 KB come with a hop-by-hop header, behind which decode does not find the checksum."""
    host = lab.host(family=6)
    need_big_tcp(host, "eth0")
    host.ip("link set eth0 gro_max_size 150000")
    result = xmasq(host, "link", "add", "xm0", "id", "1", "local", host.address, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("xmasq: dev: eth0 has gro_max_size 150000")
    assert programs(host, "eth0") == {}
    host.ip("link set eth0 gro_max_size 65536")
    xmasq(host, "link", "add", "xm0", "id", "1", "local", host.address)


def test_flush_ends_keys(lab):
    overlay = ready(lab, routed_overlay)
    a, b = overlay.containers
    here, there = overlay.hosts
    assert flow(a, b) is not None
    assert {one["state"] for one in xmasq_json(there, "key", "show")} == {"granted"}
    xmasq(there, "flush")
    assert "granted" not in {one["state"] for one in xmasq_json(there, "key", "show")}

    def bounced() -> bool:
        """The packet after a flush bounces, unless it is one that renews the key."""
        there.inside(flush)
        stream.wait_for(len(stream.numbers) + 20)
        return stats(here)["bounced"] > 0

    with Stream(a, b, rate=200) as stream:
        until(bounced, "a packet is bounced")
    assert (stream.lost, stream.duplicates) == (0, 0)


def test_flush_takes_addresses_of_either_family(lab):
    overlay = ready(lab, routed_overlay)
    a, b = overlay.containers
    host = overlay.hosts[0]
    assert xmasq(host, "flush", "peer", "192.0.2.2").returncode == 0
    assert flow(a, b) is not None
    assert xmasq(host, "flush", "destination", b.address).returncode == 0
    assert flow(a, b) is None
