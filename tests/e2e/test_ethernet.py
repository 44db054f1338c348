# SPDX-License-Identifier: Apache-2.0
"""A link as a bridge port: frames of all kinds pass as through vxlan, or are dropped as there."""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, LLC, STP, Dot1AD, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

import xmasq_link
from tests.e2e.observe import kinds, meet, negotiate, seen, stats, watch
from tests.lab import Container, Lab, Overlay, bridged_overlay, patience, tcp_transfer, udp_echo, xmasq

pytestmark = pytest.mark.e2e

COPIES = 6
ETH_P_ALL, SOL_PACKET = 3, 263
BROADCAST = "ff:ff:ff:ff:ff:ff"
#: Of the frames that a test sends, so that no other traffic counts.
SOURCE = "02:5e:00:00:00:01"
#: In ARP, so that no container takes the frames' source for another container.
NOBODY = "198.51.100.77"


@dataclass(frozen=True)
class Pair:
    """Two containers on two hosts, over xmasq and, beside it, over vxlan."""

    xmasq: Overlay
    vxlan: Overlay


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Lab() as lab:
        hosts = lab.hosts(2)
        fast = bridged_overlay(hosts)
        plain = bridged_overlay(hosts, "vxlan", vni=43, link="vx0", bridge="br1", dstport=4790)
        for overlay in (fast, plain):
            meet(overlay)
            assert overlay.containers[0].ping(overlay.containers[1]).lost == 0
        negotiate(*fast.containers)
        yield Pair(fast, plain)


def address(container: Container) -> str:
    """The container's MAC address."""
    return str(container.ip_json("link show eth0")[0]["address"])


def across(overlay: Overlay, frames: list[bytes]) -> list[bytes]:
    """Sends frames out of the first container; returns what the second one saw of them, in order."""
    a, b = overlay.containers[:2]
    with (
        b.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as receiver,
        a.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender,
    ):
        receiver.bind(("eth0", ETH_P_ALL))
        receiver.setsockopt(SOL_PACKET, 8, 1)  # PACKET_AUXDATA: a VLAN tag is there, not in the data
        sender.bind(("eth0", 0))
        for frame in frames:
            sender.send(frame)
            time.sleep(0.003)
        got: list[bytes] = []
        # Until all have come, or for longer than any frame takes.
        end = time.monotonic() + patience(1)
        while len(got) < len(frames) and (left := end - time.monotonic()) > 0:
            if not select.select([receiver], [], [], left)[0]:
                break
            data, ancillary, _, _ = receiver.recvmsg(65535, 256)
            if data[6:12] != bytes.fromhex(SOURCE.replace(":", "")):
                continue
            for _, kind, value in ancillary:
                # struct tpacket_auxdata (linux/if_packet.h): status, …, vlan_tci and vlan_tpid at 16 and 18.
                status = int.from_bytes(value[:4], "little")
                if kind == 8 and status & 0x10:
                    tci = int.from_bytes(value[16:18], "little")
                    tpid = int.from_bytes(value[18:20], "little") if status & 0x40 else 0x8100
                    data = data[:12] + tpid.to_bytes(2, "big") + tci.to_bytes(2, "big") + data[12:]
            got.append(data)
        return got


Make = Callable[[Container, Container], Packet]


def ether(target: str, kind: int | None = None) -> Packet:
    return Ether(src=SOURCE, dst=target) if kind is None else Ether(src=SOURCE, dst=target, type=kind)


def ip(a: Container, b: Container, **fields: object) -> Packet:
    return IP(**{"src": a.address, "dst": b.address, "flags": "DF", "id": 0, **fields})


def dhcp(message: str, target: str, source: str, ports: tuple[int, int]) -> Packet:
    return (
        IP(src=source, dst="255.255.255.255", id=1)
        / UDP(sport=ports[0], dport=ports[1])
        / BOOTP(chaddr=bytes.fromhex(SOURCE.replace(":", "")), yiaddr=target)
        / DHCP(options=[("message-type", message), "end"])
    )


#: What passes.
PASS: dict[str, Make] = {
    "ARP request": lambda a, b: ether(BROADCAST) / ARP(op=1, hwsrc=SOURCE, psrc=NOBODY, pdst=b.address),
    "ARP reply": lambda a, b: ether(address(b)) / ARP(op=2, hwsrc=SOURCE, psrc=NOBODY, pdst=b.address),
    "gratuitous ARP": lambda a, b: ether(BROADCAST) / ARP(op=1, hwsrc=SOURCE, psrc=NOBODY, pdst=NOBODY),
    "neighbour solicitation": lambda a, b: (
        ether("33:33:ff:00:00:02")
        / IPv6(src="fe80::1", dst="ff02::1:ff00:2", hlim=255)
        / ICMPv6ND_NS(tgt="fe80::2")
        / ICMPv6NDOptSrcLLAddr(lladdr=SOURCE)
    ),
    "router advertisement": lambda a, b: (
        ether("33:33:00:00:00:01") / IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_RA()
    ),
    "DHCP discover": lambda a, b: ether(BROADCAST) / dhcp("discover", "0.0.0.0", "0.0.0.0", (68, 67)),
    "DHCP offer": lambda a, b: ether(BROADCAST) / dhcp("offer", b.address, a.address, (67, 68)),
    "multicast IPv4": lambda a, b: (
        ether("01:00:5e:00:00:fb") / ip(a, b, dst="224.0.0.251", ttl=255) / UDP(sport=5353, dport=5353)
    ),
    "IGMP": lambda a, b: (
        ether("01:00:5e:00:00:16")
        / ip(a, b, dst="224.0.0.22", ttl=1, proto=2)
        / Raw(bytes.fromhex("2200f9020000000104000000e00000fb"))
    ),
    "IPv6 unicast": lambda a, b: (
        ether(address(b)) / IPv6(src="2001:db8::a", dst="2001:db8::b") / ICMPv6EchoRequest(data=b"x" * 32)
    ),
    "IPv6 with destination options": lambda a, b: (
        ether(address(b))
        / IPv6(src="2001:db8::a", dst="2001:db8::b")
        / IPv6ExtHdrDestOpt()
        / UDP(sport=1, dport=2)
        / Raw(b"x")
    ),
    "IPv6 fragment": lambda a, b: (
        ether(address(b))
        / IPv6(src="2001:db8::a", dst="2001:db8::b", nh=44)
        / IPv6ExtHdrFragment(m=1, id=7, nh=17)
        / Raw(bytes(32))
    ),
    "IPv4, unicast to a group's MAC": lambda a, b: ether("03:00:00:00:00:01") / ip(a, b) / UDP() / Raw(b"x"),
    "IPv4, limited broadcast": lambda a, b: (
        ether(BROADCAST) / ip(a, b, dst="255.255.255.255") / UDP(sport=9, dport=9) / Raw(b"x")
    ),
    "first fragment": lambda a, b: ether(address(b)) / ip(a, b, flags="MF", id=7, proto=17) / Raw(bytes(64)),
    "last fragment": lambda a, b: (
        ether(address(b)) / ip(a, b, flags=0, frag=8, id=7, proto=17) / Raw(bytes(64))
    ),
    "DF and reserved bit": lambda a, b: (
        ether(address(b)) / ip(a, b, flags="evil", id=7) / UDP() / Raw(b"reserved bit alone")
    ),
    "TTL 1": lambda a, b: ether(address(b)) / ip(a, b, ttl=1) / UDP(sport=1, dport=2) / Raw(b"x"),
    "IPv4, wrong TCP checksum": lambda a, b: (
        ether(address(b)) / ip(a, b) / TCP(sport=1, dport=2, chksum=0x1234) / Raw(b"x")
    ),
    "IPv4, header alone": lambda a, b: ether(address(b)) / ip(a, b, proto=17),
    "VLAN tag": lambda a, b: ether(address(b)) / Dot1Q(vlan=5, prio=3) / ip(a, b) / UDP() / Raw(b"tagged"),
    "priority tag": lambda a, b: ether(address(b)) / Dot1Q(vlan=0, prio=5) / ip(a, b) / UDP() / Raw(b"x"),
    "two VLAN tags": lambda a, b: (
        ether(address(b)) / Dot1AD(vlan=7) / Dot1Q(vlan=5) / ip(a, b) / UDP() / Raw(b"x")
    ),
    "MPLS": lambda a, b: ether(address(b), 0x8847) / Raw(bytes.fromhex("0001014045") + bytes(40)),
    "PPPoE": lambda a, b: ether(address(b), 0x8864) / Raw(bytes.fromhex("110000010006002145") + bytes(40)),
    "unknown EtherType": lambda a, b: ether(address(b), 0x88B6) / Raw(os.urandom(100)),
    "802.3 length": lambda a, b: ether(address(b), 46) / LLC(dsap=0xAA, ssap=0xAA) / Raw(bytes(43)),
    # With STP off, a bridge passes these on (net/bridge/br_input.c).
    "STP": lambda a, b: Ether(src=SOURCE, dst="01:80:c2:00:00:00", type=38) / LLC() / STP(),
    "VXLAN of the same port": lambda a, b: (
        ether(address(b))
        / ip(a, b)
        / UDP(sport=5000, dport=4789, chksum=0)
        / VXLAN(vni=42, flags=8)
        / Ether(src=SOURCE, dst=BROADCAST)
        / Raw(bytes(46))
    ),
    "what looks like a control packet": lambda a, b: (
        ether(address(b)) / ip(a, b, tos=12, id=64) / UDP(sport=4789, dport=4789, chksum=0) / Raw(bytes(64))
    ),
    "what looks like an encoded packet": lambda a, b: (
        ether(address(b))
        / IP(src="192.0.2.1", dst="192.0.2.2", tos=12, id=64, flags="DF")
        / UDP()
        / Raw(b"x")
    ),
    "what looks like a bounced packet": lambda a, b: (
        ether(address(b))
        / IP(src="192.0.2.1", dst="192.0.2.2", tos=28, id=64, flags="DF")
        / UDP()
        / Raw(b"x")
    ),
}
#: A bridge with netfilter hooks drops such a packet on its way in. Else it is encoded as it is, and the other
#: host drops it, as a damaged key could be another flow's.
DAMAGED = "IPv4, wrong header checksum"
#: What a bridge with netfilter hooks drops or trims (net/bridge/br_netfilter_hooks.c), and others pass.
MALFORMED: dict[str, Make] = {
    DAMAGED: lambda a, b: ether(address(b)) / ip(a, b, chksum=0x1234) / UDP(sport=1, dport=2) / Raw(b"x"),
    "IPv4, trailing bytes": lambda a, b: ether(address(b)) / ip(a, b, len=30) / Raw(os.urandom(64)),
    "IPv4, length beyond the frame": lambda a, b: ether(address(b)) / ip(a, b, len=500) / Raw(bytes(64)),
    "IPv4, header cut off": lambda a, b: ether(address(b), 0x0800) / Raw(bytes.fromhex("4500001400004000")),
    "IPv4, header length 4": lambda a, b: ether(address(b), 0x0800) / Raw(b"\x44" + bytes(40)),
    "version 6 as IPv4": lambda a, b: ether(address(b), 0x0800) / Raw(b"\x65" + bytes(40)),
    "Ethernet header alone": lambda a, b: ether(address(b), 0x0800),
    "one byte": lambda a, b: ether(address(b), 0x0800) / Raw(b"\x45"),
}
DROP: dict[str, Make] = {
    # A bridge keeps 01:80:c2:00:00:0X to itself (IEEE 802.1D; net/bridge/br_input.c).
    "LLDP": lambda a, b: ether("01:80:c2:00:00:0e", 0x88CC) / Raw(bytes(60)),
}


@pytest.mark.parametrize("case", [*PASS, *MALFORMED, *DROP])
def test_frame_passes_as_through_vxlan(pair, case):
    # The containers of both have the same addresses.
    frame = bytes((PASS | MALFORMED | DROP)[case](*pair.xmasq.containers[:2]))
    got, expected = (
        [blind(one) for one in across(overlay, [frame] * COPIES)] for overlay in (pair.xmasq, pair.vxlan)
    )
    # Before the flow has a key, a damaged one arrives by VXLAN.
    assert got == (expected[: len(got)] if case == DAMAGED else expected)
    if case not in MALFORMED:
        assert expected == ([] if case in DROP else [blind(frame)] * COPIES)


def blind(frame: bytes) -> bytes:
    """Without what an encoded packet does not bring back: the identification, if it means nothing."""
    if frame[12:14] != b"\x08\x00" or len(frame) < 34 or frame[20] & 0xBF or frame[21]:
        return frame
    packet = bytearray(frame)
    packet[18:20] = packet[24:26] = bytes(2)
    return bytes(packet)


def test_frames_longer_than_the_mtu_are_dropped_by_the_bridge(pair):
    for overlay in (pair.xmasq, pair.vxlan):
        a, b = overlay.containers[:2]
        for host, container in zip(overlay.hosts, (a, b), strict=True):
            host.ip(f"link set {container.veth} mtu 4000")
            container.ip("link set eth0 mtu 4000")
        try:
            frame = bytes(ether(address(b)) / ip(a, b) / UDP(sport=1, dport=2) / Raw(bytes(2000)))
            assert across(overlay, [frame] * 3) == []
        finally:
            for host, container in zip(overlay.hosts, (a, b), strict=True):
                container.ip(f"link set eth0 mtu {overlay.mtu}")
                host.ip(f"link set {container.veth} mtu {overlay.mtu}")
        assert a.ping(b).lost == 0


def test_a_broadcast_is_flooded_once_to_each_host_and_offers_nothing():
    """A storm is no worse than with vxlan: a copy for each other host, and no negotiation."""
    with Lab() as lab:
        overlay = bridged_overlay(lab.hosts(3))
        a = overlay.containers[0]
        meet(overlay)
        assert a.ping(overlay.containers[1]).lost == 0
        assert a.ping(overlay.containers[2]).lost == 0
        time.sleep(0.3)  # for what the pings have started
        before = [stats(host)["offer_tx"] for host in overlay.hosts]
        frame = bytes(ether(BROADCAST) / ip(a, a, dst="255.255.255.255") / UDP(sport=9, dport=9) / Raw(b"x"))
        with watch(overlay.hosts[0]) as capture, a.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind(("eth0", 0))
            for _ in range(500):
                sender.send(frame)
        count = Counter(
            (one.kind, one.destination)
            for one in seen(capture)
            if one.inner is not None and one.inner.destination == "255.255.255.255"
        )
        assert count == {("fallback", "192.0.2.2"): 500, ("fallback", "192.0.2.3"): 500}
        assert [stats(host)["offer_tx"] for host in overlay.hosts] == before


def test_vlans_of_containers_talk_through_the_link(pair):
    """Containers with VLAN devices of their own: tagged frames take the fallback, and all arrives."""
    a, b = pair.xmasq.containers[:2]
    made = a.run("ip link add link eth0 name eth0.7 mtu 1400 type vlan id 7", check=False)
    if "Unknown device type" in made.stderr:
        pytest.skip("this kernel has no VLAN devices (CONFIG_VLAN_8021Q)")
    b.ip("link add link eth0 name eth0.7 mtu 1400 type vlan id 7")
    before = stats(pair.xmasq.hosts[0])["fb_vlan"]
    try:
        for number, one in enumerate((a, b), 1):
            one.ip(f"addr add 203.0.113.{number}/24 dev eth0.7", "link set eth0.7 up")
        assert a.ping("203.0.113.2", count=10).received == 10
    finally:
        for one in (a, b):
            one.ip("link del eth0.7")
    assert stats(pair.xmasq.hosts[0])["fb_vlan"] >= before + 10


def test_dhcp_gives_a_container_its_address(pair):
    """A whole exchange: discover, offer, request, acknowledgement, with the client's address still 0."""
    a, b = pair.xmasq.containers[:2]
    client_mac = address(a)
    raw = bytes.fromhex(client_mac.replace(":", ""))
    with b.socket() as server, a.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)) as client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        server.bind(("0.0.0.0", 67))
        server.settimeout(patience(3))
        client.bind(("eth0", 0x0800))
        client.settimeout(patience(3))
        for asks, answers in (("discover", "offer"), ("request", "ack")):
            packet = (
                IP(src="0.0.0.0", dst="255.255.255.255")
                / UDP(sport=68, dport=67)
                / BOOTP(chaddr=raw, xid=77, flags=0x8000)
                / DHCP(options=[("message-type", asks), "end"])
            )
            client.sendto(bytes(packet), ("eth0", 0x0800, 0, 0, b"\xff" * 6))
            data, _ = server.recvfrom(2000)
            heard = BOOTP(data)
            assert heard.xid == 77
            assert dict(o for o in heard[DHCP].options if isinstance(o, tuple))["message-type"] in (1, 3)
            reply = BOOTP(op=2, xid=77, chaddr=raw, yiaddr="198.51.100.99", flags=0x8000) / DHCP(
                options=[("message-type", answers), ("server_id", b.address), "end"]
            )
            server.sendto(bytes(reply), ("255.255.255.255", 68))
            while True:
                got = IP(client.recv(2000))
                if UDP in got and got[UDP].dport == 68:
                    break
            assert got[BOOTP].yiaddr == "198.51.100.99"


def test_a_bridges_spanning_tree_ends_a_loop_through_two_links():
    """Two links between two bridges: with STP on, one of them is blocked, and nothing goes round."""
    with Lab() as lab:
        hosts = lab.hosts(2)
        overlay = bridged_overlay(hosts)
        for host, other in zip(hosts, reversed(hosts), strict=True):
            host.ip("link set br0 type bridge stp_state 1 forward_delay 200 hello_time 100")
            xmasq(host, "link", "add", "xm1", "type", "xmasq", "id", "43", "local", host.address)
            host.ip("link set xm1 master br0", "link set xm1 up")
            host.bridge(f"fdb append 00:00:00:00:00:00 dev xm1 dst {other.address} self permanent")
        deadline = time.monotonic() + patience(20)
        while True:
            states = [
                port["state"]
                for host in hosts
                for port in json.loads(host.run("bridge -j link show").stdout)
                if port["ifname"] in ("xm0", "xm1")
            ]
            if sorted(states).count("forwarding") == 3:
                break
            assert time.monotonic() < deadline, states
            time.sleep(0.1)
        assert sorted(states) == ["blocking", "forwarding", "forwarding", "forwarding"]
        a, b = overlay.containers
        assert a.ping(b, count=5, wait=3).received >= 1
        negotiate(a, b)
        tcp_transfer(a, b, 1_000_000)
        assert udp_echo(a, b).lost == 0


@pytest.mark.parametrize("port", [4789, 4790], ids=["the same port", "another port"])
def test_xmasq_in_xmasq(port):
    """Containers that are hosts of a link of their own, as in a nested cluster.

    The inner link's encoded and control packets mean something by their identification, so the outer one
    carries them in VXLAN.
    """
    with Lab() as lab:
        overlay = bridged_overlay(lab.hosts(2))
        a, b = overlay.containers
        for container, other, number in ((a, b, 1), (b, a, 2)):
            container.sysctl({"ipv4/ip_forward": 1})
            words = f"id 9 local {container.address} dev eth0 dstport {port}".split()
            xmasq(container, "link", "add", "xn0", "type", "xmasq", *words)
            container.ip(f"addr add 203.0.113.{number}/24 dev xn0", "link set xn0 up")
            container.bridge(f"fdb append 00:00:00:00:00:00 dev xn0 dst {other.address} self permanent")
        first = a.ping("203.0.113.2", count=20, wait=3)
        assert first.lost == 0
        assert "DIFFERENT ADDRESS" not in first.output
        with watch(overlay.hosts[0]) as capture:
            result = a.ping("203.0.113.2", count=100, interval=0.002, df=True)
        assert result.lost == 0
        assert "DIFFERENT ADDRESS" not in result.output  # it was the inner link that answered
        # Small requests and answers, within the path MTU that two tunnels leave.
        transfer(a, b, "203.0.113.2")
        inner = [one.inside(lambda: xmasq_link.links("xn0")[0].stats) for one in (a, b)]
        for stat in inner:
            assert stat["encoded"] >= 90
            assert stat["bounced"] == stat["path_off"] == 0
        for host in overlay.hosts:
            assert stats(host)["fb_dscp"] >= 90
            assert stats(host)["bounced"] == 0
        assert kinds(seen(capture))["fallback"] >= 180


def transfer(source: Container, target: Container, address: str, size: int = 1_000_000) -> None:
    """A TCP transfer to another address of the target, with its content compared."""
    data = os.urandom(size)
    with source.socket(kind=socket.SOCK_STREAM) as client, target.socket(kind=socket.SOCK_STREAM) as listener:
        listener.bind((address, 0))
        listener.listen(1)
        client.settimeout(patience(5))
        client.connect(listener.getsockname())
        connection, _ = listener.accept()
        client.setblocking(False)
        received, left = bytearray(), memoryview(data)
        end = time.monotonic() + patience(20)
        with connection:
            while len(received) < size and time.monotonic() < end:
                readable, writable, _ = select.select([connection], [client] if left else [], [], 1)
                if writable:
                    left = left[client.send(left[:65536]) :]
                if readable:
                    received += connection.recv(1 << 18)
        assert bytes(received) == data
