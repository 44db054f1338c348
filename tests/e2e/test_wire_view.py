# SPDX-License-Identifier: Apache-2.0
"""What passes over the underlay, seen from the fabric, and what of it the containers see."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.lab import Host, Overlay, routed_overlay, tcp_transfer, udp_echo
from xmasq_link.dissect import classify, key_of

from .observe import (
    MARK,
    SEGMENT_BITS,
    TCP,
    UDP,
    Receiver,
    Seen,
    counter,
    flows,
    meet,
    negotiate,
    renew,
    seen,
    stats,
    until,
    watch,
)

pytestmark = pytest.mark.e2e


def software(overlay: Overlay) -> None:
    """Underlay NICs without offloads: all is segmented, and has its checksum, before it is captured."""
    for host in overlay.hosts:
        host.offloads(tx=False, tso=False, gso=False)


def from_a(packets: list[Seen]) -> list[Seen]:
    return [packet for packet in packets if packet.source == "192.0.2.1"]


@pytest.mark.parametrize("segmented", [False, True])
def test_share_of_vxlan_in_a_tcp_transfer(lab, make, segmented):
    overlay = make(lab.hosts(2))
    if segmented:
        software(overlay)
    a, b = overlay.containers
    meet(overlay)
    with watch(overlay.hosts[0]) as capture:
        tcp_transfer(a, b, 8_000_000 if segmented else 40_000_000)
    # In bytes: a buffer of 64 KB that takes the fallback for a renewal leaves in 90 fragments, and one that
    # is encoded is a single packet here, if it is not segmented.
    size: Counter[str] = Counter()
    for packet in seen(capture):
        size[packet.kind] += packet.length
    assert set(size) - {"fragment"} == {"encoded", "fallback", "control"}
    in_vxlan = size["fallback"] + size["fragment"]
    assert 0 < in_vxlan < 0.01 * (in_vxlan + size["encoded"])


def test_a_new_connection_is_encoded_from_its_fourth_packet_on(lab, make):
    overlay = make(lab.hosts(2))
    a, b = overlay.containers
    meet(overlay)
    with watch(overlay.hosts[0]) as capture:
        tcp_transfer(a, b, 20_000)
    way = [
        packet.kind
        for packet in seen(capture)
        if (inner := packet.inner) is not None and inner.protocol == TCP
    ]
    assert way[:2] == ["fallback"] * 2  # SYN and SYN-ACK
    assert len(way) > 8
    assert set(way[3:]) == {"encoded"}


def test_encoded_packets_are_well_formed(lab, make):
    overlay = make(lab.hosts(2))
    software(overlay)
    a, b = overlay.containers
    negotiate(a, b)
    with watch(overlay.hosts[0], snaplen=2000) as capture:
        tcp_transfer(a, b, 300_000)
        udp_echo(a, b, count=50, size=1001)
        assert a.ping(b, count=10, df=True).received == 10
        assert a.ping(b, count=10).received == 10
    packets = seen(capture)
    encoded = [packet for packet in packets if packet.kind == "encoded"]
    count = Counter(packet.protocol for packet in encoded)
    assert count[TCP] > 200
    assert 96 <= count[UDP] <= 100  # the others ask for a renewal
    assert count[socket.IPPROTO_ICMP] >= 30
    for packet in encoded:
        assert packet.flags == 2
        assert packet.offset == 0
        assert packet.length == len(packet.data) <= 1500
        assert packet.key > 0
        assert {packet.source, packet.destination} == {"192.0.2.1", "192.0.2.2"}
        assert packet.ttl == (63 if overlay.mode == "routed" else 64)  # as it left the sender's host
        assert_checksums(packet)
    # Scapy with our dissector says the same.
    dissected = capture.packets()
    names = Counter("other" if packet.kind == "fragment" else packet.kind for packet in packets)
    assert Counter(classify(packet) for packet in dissected if packet.haslayer("IP")) == names
    assert {key_of(packet) for packet in dissected if classify(packet) == "encoded"} == {
        packet.key for packet in encoded
    }


def assert_checksums(packet: Seen) -> None:
    from scapy.layers.inet import IP

    old = IP(packet.data)
    new = old.copy()
    for layer in (new, new.payload):
        del layer.chksum
    new = IP(bytes(new))
    assert old.chksum == new.chksum
    assert old.payload.chksum == new.payload.chksum


def test_a_datagram_without_checksum_stays_so(lab):
    overlay = routed_overlay(lab.hosts(2), options=["lease", "60s"])
    software(overlay)
    a, b = overlay.containers
    negotiate(a, b)
    renew(overlay.hosts[:1], lambda: a.ping(b, count=1, df=True), lambda one: one.dscp == 0 and one.df)
    with watch(overlay.hosts[0], "udp") as capture, Receiver(b) as receiver, a.socket() as sender:
        sender.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK
        sender.sendto(b"none", receiver.address)
        assert receiver.receive(2) == (b"none", 0)
    (packet,) = [packet for packet in seen(capture) if packet.kind == "encoded"]
    assert packet.payload[6:8] == bytes(2)


def test_ecn_bits_pass_untouched(lab, make):
    overlay = make(lab.hosts(2))
    a, b = overlay.containers
    negotiate(a, b)
    for ecn in range(4):
        with watch(overlay.hosts[0], "udp") as capture, Receiver(b) as receiver, a.socket() as sender:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, ecn)
            for _ in range(10):
                sender.sendto(b"x", receiver.address)
            assert [receiver.receive(2) for _ in range(10)] == [(b"x", ecn)] * 10
        encoded = [packet for packet in seen(capture) if packet.kind == "encoded"]
        assert len(encoded) >= 9
        assert {packet.ecn for packet in encoded} == {ecn}


def test_congestion_marks_reach_the_containers(lab, make):
    overlay = make(lab.hosts(2))
    a, b = overlay.containers
    for container in (a, b):
        container.sysctl({"ipv4/tcp_ecn": 1})
    negotiate(a, b)
    rule = lab.fabric.mark_ce(host=overlay.hosts[0], only="ip protocol tcp ip dscp 3")
    with watch(overlay.hosts[1], "tcp") as wire, watch(b, "tcp") as inside:
        tcp_transfer(a, b, 3_000_000)
    marked = [packet for packet in from_a(seen(wire)) if packet.ecn == 3]
    assert rule.packets == len(marked) > 20
    assert {packet.kind for packet in marked} == {"encoded"}
    arrived = [packet for packet in seen(inside) if packet.source == a.address and packet.ecn == 3]
    assert sum(packet.length - 40 for packet in arrived) > 2_500_000
    assert {packet.dscp for packet in arrived} == {0}
    assert counter(b, "IpExt", "InCEPkts") >= len(arrived)
    # The sender was told by the receiver, so the whole loop works.
    assert counter(a, "TcpExt", "TCPDeliveredCE") > 20


def test_every_dscp_is_restored(lab, make):
    """Those for local use, MARK and BOUNCE among them, in VXLAN; the others with MARK alone on the wire."""
    overlay = make(lab.hosts(2), options=["lease", "60s"])
    a, b = overlay.containers
    with Receiver(b) as receiver, a.socket() as sender:

        def send(dscp: int, ecn: int = 0) -> None:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, dscp << 2 | ecn)
            sender.sendto(bytes([dscp]), receiver.address)

        encodable = {dscp for dscp in range(64) if dscp & 3 != 3}

        def pass_on(dscps: Iterable[int]) -> None:
            for dscp in dscps:
                send(dscp)
                assert receiver.receive(2) == (bytes([dscp]), dscp << 2)

        missing = set(encodable)

        def granted() -> bool:
            pass_on(missing)
            missing.difference_update(one.dscp for one in flows(overlay.hosts[0]))
            return not missing

        until(granted, "all 48 are encoded")
        renew(overlay.hosts[:1], lambda: pass_on(encodable), lambda one: one.source == a.address and one.df)
        with watch(overlay.hosts[0], "udp") as capture:
            for dscp in range(64):
                for ecn in (1, 0):
                    send(dscp, ecn)
                    assert receiver.receive(2) == (bytes([dscp]), dscp << 2 | ecn)
    encoded = [packet for packet in seen(capture) if packet.kind == "encoded"]
    assert 88 < len(encoded) <= 96  # but for renewals
    assert {packet.dscp for packet in encoded} == {MARK}
    assert len({packet.key for packet in encoded}) >= 45


def joined(source: Host, target: Host) -> bool:
    """Whether the target's GRO joins plain TCP segments between the hosts: a veth's does since Linux 5.13."""

    def received() -> int:
        text = target.inside(Path("/proc/thread-self/net/snmp").read_text)
        names, values = (line.split() for line in text.splitlines() if line.startswith("Ip: "))
        return int(dict(zip(names, values, strict=True))["InReceives"])

    before = received()
    tcp_transfer(source, target, 4_000_000)
    return received() - before < 4_000_000 / 1448 / 3


def test_segments_made_in_software(lab, make):
    """The key has room below it for the number of a segment, and the receiver's GRO joins them."""
    overlay = make(lab.hosts(2))
    for host in overlay.hosts:
        host.offloads(tso=False, gso=False, gro=True)
    a, b = overlay.containers
    negotiate(a, b)
    sender, receiver = overlay.hosts
    before = stats(sender)["encoded"], stats(receiver)["decoded"]
    with watch(sender) as capture:
        tcp_transfer(a, b, 8_000_000)
    packets = [packet for packet in from_a(seen(capture)) if packet.kind == "encoded"]
    data = [packet for packet in packets if packet.length == 1500]
    assert len(data) > 5000
    assert max(packet.length for packet in packets) == 1500
    assert len({packet.key for packet in packets}) == 1
    # The segments of each buffer are numbered from 0 without a gap; buffers of two CPUs may mix.
    numbers = Counter(packet.id & ((1 << SEGMENT_BITS) - 1) for packet in packets)
    assert max(numbers) > 20
    assert all(numbers[n] <= numbers[n - 1] for n in range(1, 1 << SEGMENT_BITS))
    given, taken = (
        stats(sender)["encoded"] - before[0],
        stats(receiver)["decoded"] - before[1],
    )
    print(f"{len(packets)} packets on the wire: {given} buffers encoded, {taken} decoded")
    assert given < len(packets) / 5
    if joined(sender, receiver):
        assert taken < len(packets) / 3
    assert udp_echo(a, b, count=100).lost == 0
    assert tcp_transfer(b, a, 2_000_000).size == 2_000_000
    for host in overlay.hosts:
        counted = stats(host)
        assert counted["bounced"] == counted["bounce_tx"] == counted["bounce_rx"] == 0
