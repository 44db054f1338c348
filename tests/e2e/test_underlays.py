# SPDX-License-Identifier: Apache-2.0
"""What can be between the hosts: kinds of devices, several of them, ways that change."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Literal

import pytest

from tests.e2e.observe import Stream, flow, meet, negotiate, programs, seen, stats, until
from tests.lab import Capture, Host, Lab, LabError, Overlay, routed_overlay, tcp_transfer, xmasq
from xmasq_link import flows, flush, links

pytestmark = pytest.mark.e2e

HOOKS = {"xmasq_ingress", "xmasq_egress"}


def second_network(hosts: list[Host]) -> None:
    """Gives each host eth1, on a network of its own, where they know each other already."""
    for host in hosts:
        host.plug("eth1", f"203.0.113.{host.number}/24")
        host.lab.fabric.part(host, "br1", ifname="eth1")
    for host in hosts:
        for other in hosts:
            assert host.ping(f"203.0.113.{other.number}", count=1).received == 1


def rehouse(overlay_hosts: list[Host], build: Callable[[Host], None]) -> None:
    """Moves each host's address from eth0 to a device that ``build`` makes on top of it."""
    for host in overlay_hosts:
        host.ip(f"addr del {host.address}/24 dev eth0")
        build(host)
        host.ip(f"addr add {host.address}/24 dev ul0", "link set ul0 up")


def bridge(host: Host) -> None:
    host.ip("link add ul0 type bridge stp_state 0 forward_delay 0", "link set eth0 master ul0")


def vlan(host: Host) -> None:
    try:
        host.ip("link add link eth0 name ul0 type vlan id 7")
    except LabError as error:
        pytest.skip(f"this kernel has no VLAN devices: {error}")


def macvlan(host: Host) -> None:
    # Or eth0 answers ARP for ul0's address, too, and packets arrive at whichever answers first.
    host.sysctl({"ipv4/conf/eth0/arp_ignore": 1})
    host.ip("link add link eth0 name ul0 type macvlan mode bridge")


def bond(host: Host) -> None:
    try:
        host.ip("link add ul0 type bond mode active-backup")
    except LabError as error:
        pytest.skip(f"this kernel has no bonds: {error}")
    host.ip("link set eth0 down", "link set eth0 master ul0")


def encoded_both_ways(overlay: Overlay, device: str = "ul0") -> None:
    """Traffic between the first two containers is encoded, arrives, and leaves by this device."""
    a, b = overlay.containers[:2]
    negotiate(a, b)
    for one, other in ((a, b), (b, a)):
        before = stats(one.host)["encoded"]
        tcp_transfer(one, other, 500_000)
        assert stats(one.host)["encoded"] > before
        found = flow(one, other)
        assert found is not None
        assert found.dev == device
    assert stats(a.host)["bounce_rx"] == stats(a.host)["peer_gone"] == stats(a.host)["error"] == 0


@pytest.mark.parametrize("build", [vlan, bridge, macvlan, bond], ids=lambda one: one.__name__)
def test_kinds_of_devices(lab: Lab, build: Callable[[Host], None]) -> None:
    hosts = lab.hosts(2)
    rehouse(hosts, build)
    overlay = routed_overlay(hosts, underlay="")
    assert programs(hosts[0], "ul0").keys() >= HOOKS
    assert not HOOKS & programs(hosts[0], "eth0").keys()
    meet(overlay)
    encoded_both_ways(overlay)


def test_a_port_of_a_bridge_is_refused(lab: Lab) -> None:
    """It has no routes: packets would leave by it that nobody could answer."""
    (host,) = lab.hosts(1)
    rehouse([host], bridge)
    words = ["link", "add", "xm0", "id", "42", "local", host.address]
    refused = xmasq(host, *words, "dev", "eth0", check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert refused.stderr.startswith("xmasq: dev: eth0 is a port of ul0")
    assert host.ip_json("link show type vxlan") == []


def test_a_device_without_ethernet_is_refused(lab: Lab) -> None:
    (host,) = lab.hosts(1)
    host.ip("tuntap add tun0 mode tun", "addr add 192.0.2.77/32 dev tun0", "link set tun0 up")
    for words in (["dev", "tun0"], []):
        local = "192.0.2.77"
        refused = xmasq(host, "link", "add", "xm0", "id", "42", "local", local, *words, check=False)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "dev: tun0 has no Ethernet header" in refused.stderr
    assert host.ip_json("link show type vxlan") == []


def test_two_underlays_with_an_address_each(lab: Lab) -> None:
    """A link for each: their traffic stays apart, and each device has its own hooks."""
    hosts = lab.hosts(2)
    second_network(hosts)
    first = routed_overlay(hosts, link="xm0", vni=42)
    for host in hosts:
        assert programs(host, "eth0").keys() >= HOOKS
        xmasq(host, "link", "add", "xm1", "id", "43", "local", f"203.0.113.{host.number}", "nolearning")
        assert programs(host, "eth1").keys() >= HOOKS
        host.ip("link set xm1 up", f"addr add 198.51.100.{200 + host.number}/24 dev xm1")
    for host in hosts:
        mac = {other: other.ip_json("link show xm1")[0]["address"] for other in hosts}
        for other in hosts:
            if other is not host:
                host.bridge(f"fdb append {mac[other]} dev xm1 dst 203.0.113.{other.number}")
                host.ip(f"neigh add 198.51.100.{200 + other.number} lladdr {mac[other]} dev xm1")
    meet(first)
    encoded_both_ways(first, "eth0")
    h1, h2 = hosts
    assert h1.ping(f"198.51.100.{200 + h2.number}", count=20, df=True).received == 20
    second = h1.inside(lambda: list(flows("xm1")))
    assert {(one.peer, one.dev, one.local) for one in second} == {("203.0.113.2", "eth1", "203.0.113.1")}
    xmasq(h1, "link", "del", "xm1")
    assert not HOOKS & programs(h1, "eth1").keys()
    assert programs(h1, "eth0").keys() >= HOOKS


# --- one address, two devices ---------------------------------------------------------------------------


@pytest.fixture
def fork(lab: Lab) -> Overlay:
    """Two hosts whose VTEP addresses are on lo, with two ways at the same cost between them."""
    hosts = lab.hosts(2)
    second_network(hosts)
    for host in hosts:
        host.ip(f"addr del {host.address}/24 dev eth0", f"addr add 192.0.2.{100 + host.number}/24 dev eth0")
        host.ip(f"addr add {host.address}/32 dev lo")
        host.sysctl({"ipv4/fib_multipath_hash_policy": 1, "ipv4/conf/all/arp_announce": 2})
    for host, other in (hosts, hosts[::-1]):
        host.ip(
            f"route add {other.address}/32 src {host.address} "
            f"nexthop via 192.0.2.{100 + other.number} dev eth0 "
            f"nexthop via 203.0.113.{other.number} dev eth1"
        )
    overlay = routed_overlay(hosts, containers=4, underlay="")
    meet(overlay)
    return overlay


def test_one_address_over_two_devices(fork: Overlay) -> None:
    for host in fork.hosts:
        for device in ("eth0", "eth1"):
            assert programs(host, device).keys() >= HOOKS
        (shown,) = host.inside(lambda: links("xm0"))
        assert shown.dev == "eth0,eth1"
    h1, h2 = fork.hosts
    for a in fork.containers:
        for b in fork.containers:
            if (a.host, b.host) == (h1, h2):
                with Stream(a, b, rate=200) as stream:
                    until(lambda a=a, b=b: flow(a, b), "the flow is encoded")
                    stream.wait_for(60)
                assert stream.lost == 0
                found = flow(a, b)
                assert found is not None
                assert found.dev in ("eth0", "eth1")  # the vxlan driver takes one for all, on each CPU
    for host in fork.hosts:
        assert stats(host)["peer_gone"] == stats(host)["bounce_rx"] == 0


def test_one_of_two_devices_goes_down(fork: Overlay) -> None:
    """What used it takes the other one, as with vxlan: only what the dead device had taken is lost."""
    a = next(one for one in fork.containers if one.host is fork.hosts[0])
    b = next(one for one in fork.containers if one.host is fork.hosts[1])
    with Stream(a, b, rate=500) as stream:
        found = until(lambda: flow(a, b), "the flow is encoded")
        stream.wait_for(100)
        other = {"eth0": "eth1", "eth1": "eth0"}[found.dev]
        begin = time.monotonic()
        a.host.ip(f"link set {found.dev} down")
        end = time.monotonic()
        until(lambda: (now := flow(a, b)) and now.dev == other, "it is encoded on the other device")
        stream.wait_for(len(stream.numbers) + 100)
    # The kernel takes a device down in steps, and the way out is looked up once a tick.
    assert all(begin < stream.times[number] < end + 0.02 for number in stream.missing)
    assert stats(a.host)["fb_route"] >= 1


def test_deletion_takes_the_hooks_off_both(fork: Overlay) -> None:
    host = fork.hosts[0]
    xmasq(host, "link", "del", "xm0")
    for device in ("eth0", "eth1"):
        assert not HOOKS & programs(host, device).keys()


def test_devices_may_be_named(lab: Lab) -> None:
    (host,) = lab.hosts(1)
    host.plug("eth1", "203.0.113.1/24", mtu=1400)
    add = ["link", "add", "xm0", "id", "42", "local", host.address]
    xmasq(host, *add, "dev", "eth0,eth1")
    (shown,) = host.inside(lambda: links("xm0"))
    assert (shown.dev, shown.mtu) == ("eth0,eth1", 1400)
    assert "dev eth0,eth1" in xmasq(host, "link", "show", "xm0").stdout
    xmasq(host, "link", "del", "xm0")
    for wrong, said in (
        ("eth0,", "dev: "),
        ("eth0,eth9", 'dev: there is no device "eth9"'),
        ("a,b,c,d,e,f,g,h,i", "dev: has 9 devices, 8 are allowed"),
    ):
        refused = xmasq(host, *add, "dev", wrong, check=False)
        assert refused.returncode == 2
        assert said in refused.stderr
        assert host.ip_json("link show type vxlan") == []


def test_an_address_on_lo_needs_a_way_to_somewhere(lab: Lab) -> None:
    (host,) = lab.hosts(1)
    host.ip("addr add 198.51.100.250/32 dev lo")
    refused = xmasq(host, "link", "add", "xm0", "id", "42", "local", "198.51.100.250", check=False)
    assert refused.returncode == 2
    assert "dev: 198.51.100.250 is on lo, and no route leads to a gateway" in refused.stderr


# --- ways that change ------------------------------------------------------------------------------------


@pytest.fixture
def twofold(lab: Lab) -> Overlay:
    """Two hosts with a second network between them; the VTEP address, of eth0, is known there, too."""
    hosts = lab.hosts(2)
    second_network(hosts)
    overlay = routed_overlay(hosts, underlay="eth0,eth1")
    meet(overlay)
    return overlay


def test_a_route_that_moves_to_another_device_in_mid_flow(twofold: Overlay) -> None:
    h1, h2 = twofold.hosts
    a, b = twofold.containers
    with Stream(a, b, rate=500) as stream:
        until(lambda: flow(a, b), "the flow is encoded")
        for dev, via in (("eth1", "via 203.0.113.2 dev eth1"), ("eth0", "dev eth0")) * 2:
            stream.wait_for(len(stream.numbers) + 100)
            h1.ip(f"route replace {h2.address}/32 {via} src {h1.address}")
            until(lambda dev=dev: (now := flow(a, b)) and now.dev == dev, f"it is encoded on {dev}")
    assert stream.lost == 0
    assert stats(h1)["fb_route"] >= 4


def test_a_route_that_moves_to_a_device_without_hooks(lab: Lab) -> None:
    """From then on it is VXLAN, which is not lost either."""
    hosts = lab.hosts(2)
    second_network(hosts)
    overlay = routed_overlay(hosts)
    meet(overlay)
    h1, h2 = hosts
    a, b = overlay.containers
    with Stream(a, b, rate=500) as stream:
        until(lambda: flow(a, b), "the flow is encoded")
        stream.wait_for(100)
        h1.ip(f"route replace {h2.address}/32 via 203.0.113.2 dev eth1 src {h1.address}")
        stream.wait_for(len(stream.numbers) + 500)
        before = stats(h1)["encoded"]
        stream.wait_for(len(stream.numbers) + 100)
        assert stats(h1)["encoded"] == before
    assert stream.lost == 0


def test_the_next_hop_is_a_gateway(lab: Lab) -> None:
    hosts = lab.hosts(2)
    lab.row(*hosts, mtu=1500)
    overlay = routed_overlay(hosts)
    meet(overlay)
    encoded_both_ways(overlay, "eth0")


@pytest.mark.parametrize("same", [True, False], ids=["same next hop", "another device"])
def test_policy_routing_by_mark(lab: Lab, same: bool) -> None:
    """Containers' packets bear a mark, by which they are routed outside: what is encoded must not go
    another way than what is not."""
    hosts = lab.hosts(2)
    second_network(hosts)
    h1, h2 = hosts
    overlay = routed_overlay(hosts, underlay="eth0,eth1")
    way = "dev eth0" if same else "via 203.0.113.2 dev eth1"
    h1.ip("rule add fwmark 7 lookup 77", f"route add {h2.address}/32 {way} src {h1.address} table 77")
    rules = "add table ip m; add chain ip m f { type filter hook forward priority 0; }; "
    h1.run(["nft", rules + 'add rule ip m f oifname "xm0" meta mark set 7'])
    meet(overlay)
    a, b = overlay.containers
    used, other = ("eth0", "eth1") if same else ("eth1", "eth0")
    with Capture(h1, other, f"dst host {h2.address} and (udp port 4789 or ip[1] & 0xfc == 12)") as wrong:
        with Stream(a, b, rate=500) as stream:
            stream.wait_for(500)
        assert stream.lost == 0
    assert [packet for packet in seen(wrong) if packet.data[16:20] == socket.inet_aton(h2.address)] == []
    assert (flow(a, b) is not None) == same
    assert used


@pytest.mark.parametrize("family", [4, 6])
def test_rules_for_marks_do_not_match_ours(lab: Lab, family: Literal[4, 6]) -> None:
    """Between our programs packets bear a random mark. Here any mark whatever is a reason not to route."""
    hosts = lab.hosts(2, family=family)
    overlay = routed_overlay(hosts)
    meet(overlay)
    h1, h2 = hosts
    a, b = overlay.containers
    for host in hosts:
        host.run(f"ip -{family} rule add pref 7 not fwmark 0/0xffffffff prohibit")
    refused = h1.run(f"ip -{family} route get {h2.address} mark 1", check=False)
    assert refused.returncode != 0
    negotiate(a, b)
    with Stream(a, b, rate=1000) as stream:
        until(lambda: stats(h1)["encoded"] > 500, "it is encoded")

        def bounced() -> bool:
            h2.inside(flush)
            stream.wait_for(len(stream.numbers) + 100)
            return stats(h1)["bounced"] > 0

        until(bounced, "a packet is bounced")
        until(lambda: flow(a, b), "it is encoded again")
    assert (stream.lost, stream.duplicates) == (0, 0)
    xmasq(h2, "link", "del", "xm0")
    until(lambda: flow(a, b) is None, "the key is taken back")


def test_a_route_that_moves_to_where_the_peer_has_no_hooks(lab: Lab) -> None:
    """Its OFFERs do not come, so it is VXLAN from then on."""
    hosts = lab.hosts(2)
    second_network(hosts)
    overlay = routed_overlay(hosts, underlay=["eth0,eth1", "eth0"], options=["lease", "30s"])
    meet(overlay)
    h1, h2 = hosts
    a, b = overlay.containers
    negotiate(a, b)
    with Stream(a, b, rate=200) as stream:
        stream.wait_for(100)
        h1.ip(f"route replace {h2.address}/32 via 203.0.113.2 dev eth1 src {h1.address}")
        stream.wait_for(len(stream.numbers) + 400)
    assert stream.lost == 0


def test_a_peer_that_gets_our_packets_by_a_device_without_hooks(lab: Lab) -> None:
    """The network brings them by another device than before. The host's own stack answers the first ones.

    That ends encoding towards it, long before the lease does; what is VXLAN arrives there, too.
    """
    hosts = lab.hosts(2)
    overlay = routed_overlay(hosts, options=["lease", "60s"])
    meet(overlay)
    h1, h2 = hosts
    a, b = overlay.containers
    h2.plug("eth1", "203.0.113.2/24")
    mac = h2.ip_json("link show eth1")[0]["address"]
    negotiate(a, b)
    by_eth1 = Capture(h2, "eth1", "ip[1] & 0xfc == 12 and not udp port 4789")
    with by_eth1 as arriving, Stream(a, b, rate=200) as stream:
        until(lambda: stats(h1)["encoded"] > 50, "it is encoded")
        h1.ip(f"neigh replace {h2.address} lladdr {mac} dev eth0 nud permanent")
        until(lambda: stats(h1)["peer_gone"] > 0, "the peer's stack has answered")
        encoded, sent = stats(h1)["encoded"], stream.sent
        stream.wait_for(len(stream.numbers) + 400)
        assert stats(h1)["encoded"] == encoded
    packets = [packet for packet in seen(arriving) if packet.kind == "encoded"]
    assert stream.lost == len(packets) > 0
    assert max(stream.missing) < sent
    assert flow(a, b) is None
