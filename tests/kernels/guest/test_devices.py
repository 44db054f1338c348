# SPDX-License-Identifier: Apache-2.0
"""Next to devices that many kernels are built without: geneve, dummy, netkit."""

from __future__ import annotations

import pytest

from tests.e2e.observe import flow, flows, kinds, meet, negotiate, seen, stats, until, watch
from tests.lab import Container, Host, Lab, Overlay, routed_overlay, tcp_transfer, udp_echo, xmasq

from .conftest import need

pytestmark = pytest.mark.e2e

GENEVE_PORT = 6081


def geneve(host: Host, other: Host, number: int) -> None:
    """A geneve link of its own between two hosts, with 203.0.113.<number> on it."""
    need(
        host,
        "geneve",
        f"ip link add gnv0 mtu 1450 type geneve id 7 remote {other.address} dstport {GENEVE_PORT}",
    )
    host.ip(f"addr add 203.0.113.{number}/24 dev gnv0", "link set gnv0 up")


@pytest.fixture
def overlay(lab: Lab) -> Overlay:
    """Two hosts with a container each."""
    return routed_overlay(lab.hosts(2))


def test_a_geneve_link_on_the_same_underlay(overlay: Overlay) -> None:
    """Neither disturbs the other: geneve's packets pass the underlay's hooks as they are."""
    one, other = overlay.hosts
    geneve(one, other, 1)
    geneve(other, one, 2)
    meet(overlay)
    with watch(one, f"udp port {GENEVE_PORT}") as wire:
        assert one.ping("203.0.113.2", count=20).lost == 0
    packets = seen(wire)
    assert len(packets) >= 40
    assert {packet.dscp for packet in packets} == {0}

    a, b = overlay.containers
    negotiate(a, b)
    tcp_transfer(a, b, 500_000)
    assert udp_echo(a, b, count=50).lost == 0
    assert one.ping("203.0.113.2", count=20).lost == 0
    until(lambda: flow(a, b), "the flow is still encoded")


def test_bytes_on_the_wire_beside_geneve(overlay: Overlay) -> None:
    """The same datagram, once over each: geneve adds 50 bytes, xmasq none."""
    one, other = overlay.hosts
    geneve(one, other, 1)
    geneve(other, one, 2)
    a, b = overlay.containers
    negotiate(a, b)
    negotiate(b, a)
    size = 200  # of the payload; 8 bytes of ICMP and 20 of IPv4 come on top

    def pinged() -> bool:
        """Until requests and answers, both without DF, have keys as well."""
        assert a.ping(b, count=1, size=size).lost == 0
        return all(any(not f.df for f in flows(host)) for host in overlay.hosts)

    until(pinged, "pings are encoded both ways")
    with watch(one, "ip proto 1") as wire:
        assert a.ping(b, count=10, size=size).lost == 0
    encoded = [packet for packet in seen(wire) if packet.kind == "encoded"]
    with watch(one, f"udp port {GENEVE_PORT}") as wire:
        assert one.ping("203.0.113.2", count=10, size=size).lost == 0
    assert {packet.source for packet in encoded} == {one.address, other.address}
    assert {packet.length for packet in encoded} == {size + 28}
    assert {packet.length for packet in seen(wire) if packet.length > 150} == {size + 28 + 50}


def test_geneve_between_containers(overlay: Overlay) -> None:
    """A container's own geneve tunnel is a UDP flow like any other, and is encoded."""
    a, b = overlay.containers
    for number, (container, peer) in enumerate(((a, b), (b, a)), start=1):
        need(container, "geneve", f"ip link add gnv0 mtu 1400 type geneve id 9 remote {peer.address}")
        container.ip(f"addr add 203.0.113.{number}/24 dev gnv0", "link set gnv0 up")
    meet(overlay)

    def pinged() -> bool:
        assert a.ping("203.0.113.2", df=True).lost == 0
        return all(flows(host) for host in overlay.hosts)

    until(pinged, "the inner tunnel is encoded both ways")
    with watch(overlay.hosts[0], "udp dst port 6081") as wire:
        assert a.ping("203.0.113.2", count=30, df=True).lost == 0
    lengths = {packet.length for packet in seen(wire) if packet.kind == "encoded"}
    # IPv4, UDP, geneve and Ethernet around a ping of 84 bytes, or around ARP's 28.
    assert 20 + 8 + 8 + 14 + 84 in lengths
    assert lengths <= {20 + 8 + 8 + 14 + 84, 20 + 8 + 8 + 14 + 28}


@pytest.mark.parametrize("named", [True, False], ids=["dev eth0", "by the routes"])
def test_a_vtep_address_on_a_dummy_device(lab: Lab, named: bool) -> None:
    """As routed fabrics have it: the address is the host's own, not the NIC's."""
    hosts = lab.hosts(2)
    vteps = [f"203.0.113.{host.number}" for host in hosts]
    for host, other, vtep in zip(hosts, hosts[::-1], vteps, strict=True):
        need(host, "dummy", "ip link add vtep0 type dummy")
        host.ip(
            f"addr add {vtep}/32 dev vtep0",
            "link set vtep0 up",
            f"route add 203.0.113.{other.number}/32 via {other.address} dev eth0 src {vtep}",
        )
    for host, vtep in zip(hosts, vteps, strict=True):
        host.address = host.addresses[4] = vtep
    overlay = routed_overlay(hosts, underlay="eth0" if named else "")
    a, b = overlay.containers
    negotiate(a, b)
    with watch(hosts[0]) as wire:
        tcp_transfer(a, b, 500_000)
        assert udp_echo(a, b, count=50).lost == 0
    encoded = [packet for packet in seen(wire) if packet.kind == "encoded"]
    assert len(encoded) > 50
    assert {packet.source for packet in encoded} == set(vteps)
    assert stats(hosts[0])["decoded"] > 0


def test_a_dummy_device_is_no_underlay(lab: Lab) -> None:
    """Nothing leaves by it, so a link with its hooks there would never encode."""
    host = lab.host()
    need(host, "dummy", "ip link add vtep0 type dummy")
    host.ip("addr add 203.0.113.1/32 dev vtep0", "link set vtep0 up")
    words = ["type", "xmasq", "id", "42", "local", "203.0.113.1"]
    for more, why in (
        (["dev", "vtep0"], "vtep0 is a dummy device: no packet leaves by it; "),
        ([], "203.0.113.1 is on vtep0, and no route leads to a gateway; "),
    ):
        done = xmasq(host, "link", "add", "xm0", *words, *more, check=False)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert f"dev: {why}" in done.stderr
    assert not host.ip_json("link show type vxlan")


def test_containers_on_netkit(overlay: Overlay) -> None:
    """A pair of netkit devices in layer 3 mode in the place of a container's veth."""
    made: list[Container] = []
    for host in overlay.hosts:
        need(host, "netkit", "ip link add outer0 type netkit")
        (peer,) = {one["ifname"] for one in host.ip_json("link show type netkit")} - {"outer0"}
        address = overlay.container_address(host, 9)
        container = Container(host, "netkit", address)
        host.ip(
            f"link set {peer} netns {container.name}",
            "link set outer0 up",
            f"route add {address}/32 dev outer0 src {host.address}",
        )
        container.ip(
            "link set lo up",
            f"addr add {address}/32 dev {peer}",
            f"link set {peer} up",
            f"route add default dev {peer}",
        )
        made.append(container)
    a, b = made
    negotiate(a, b)
    negotiate(b, a)
    with watch(overlay.hosts[0]) as wire:
        tcp_transfer(a, b, 1_000_000)
        assert udp_echo(a, b, count=50).lost == 0
        assert a.ping(overlay.containers[1], count=5).lost == 0
    assert kinds(seen(wire))["encoded"] > 50
