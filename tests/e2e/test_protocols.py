# SPDX-License-Identifier: Apache-2.0
"""Every IP protocol through a link: what arrives is what was sent, and the wire shows which way it took."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from tests.e2e.observe import Receiver, kinds, negotiate, seen, stats, watch
from tests.lab import Container, Lab, Overlay, routed_overlay

pytestmark = pytest.mark.e2e

UDP_SEGMENT = 103
SCTP, GRE, ESP, IPIP, IPV6, DCCP, UDPLITE = 132, 47, 50, 4, 41, 33, 136


@pytest.fixture(scope="module", params=[4, 6], ids=["IPv4", "IPv6"])
def overlay(request: pytest.FixtureRequest) -> Iterator[Overlay]:
    with Lab() as lab:
        made = routed_overlay(lab.hosts(2, family=request.param))
        for host in made.hosts:
            host.offloads(tx=False)
        negotiate(*made.containers)
        yield made


def pseudo(a: Container, b: Container, proto: int, length: int) -> bytes:
    """What a checksum covers beside the packet (RFC 768, RFC 8200 section 8.1)."""
    ends = b"".join(socket.inet_pton(one.family, one.address) for one in (a, b))
    return ends + struct.pack("!BBH", 0, proto, length)


def csum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def with_pseudo_checksum(a: Container, b: Container, proto: int, head: bytes, size: int) -> bytes:
    """A packet of DCCP or UDP-Lite with random data; the checksum stands at offset 6 and covers all."""
    packet = head + os.urandom(size)
    value = csum(pseudo(a, b, proto, len(packet)) + packet[:6] + bytes(2) + packet[8:])
    return packet[:6] + struct.pack("!H", value) + packet[8:]


def dccp(a: Container, b: Container, size: int) -> bytes:
    # Type DATA with short sequence numbers; data offset in words (RFC 4340, section 5.1).
    return with_pseudo_checksum(a, b, DCCP, bytes.fromhex("000100020300000004000001"), size)


def udp_lite(a: Container, b: Container, size: int) -> bytes:
    return with_pseudo_checksum(a, b, UDPLITE, bytes.fromhex("0001000200000000"), size)


#: Protocol number, and how its packets travel once the flow has a key, in IPv4 and IPv6.
CASES: dict[str, tuple[int, str]] = {
    "SCTP": (SCTP, "encoded"),
    "ESP": (ESP, "encoded"),
    "AH": (51, "encoded, fallback"),
    "OSPF": (89, "encoded"),
    "L2TP": (115, "encoded"),
    "unassigned": (200, "encoded"),
    "experimental": (253, "encoded"),
    "DCCP": (DCCP, "encoded"),
    "UDP-Lite": (UDPLITE, "encoded"),
    "GRE": (GRE, "fallback"),
    "IP in IP": (IPIP, "fallback"),
    "IPv6 in IP": (IPV6, "fallback"),
}


@pytest.mark.parametrize("size", [1, 37, 1000, 1360])  # in VXLAN over IPv6, too, in one piece
@pytest.mark.parametrize("case", CASES)
def test_a_protocol_arrives_as_it_was_sent(overlay, case, size):
    proto, ways = CASES[case]
    way = ways.split(", ")[-1 if overlay.inner == 6 else 0]
    a, b = overlay.containers
    make = {DCCP: dccp, UDPLITE: udp_lite}.get(proto)
    packets = [make(a, b, size) if make else os.urandom(size) for _ in range(20)]
    with (
        watch(overlay.hosts[0], snaplen=0) as capture,
        b.socket(kind=socket.SOCK_RAW, proto=proto) as receiver,
        a.socket(kind=socket.SOCK_RAW, proto=proto) as sender,
    ):
        got = []
        for packet in packets:
            sender.sendto(packet, (b.address, 0))
            assert select.select([receiver], [], [], 2)[0], f"packet {len(got) + 1} is lost"
            got.append(receiver.recv(65535)[0 if overlay.inner == 6 else 20 :])
    assert got == packets
    wire = [one for one in seen(capture) if (inner := one.inner) is not None and inner.protocol == proto]
    assert len(wire) == len(packets)
    count = kinds(wire)
    if way == "fallback":
        assert count == {"fallback": len(packets)}
        return
    assert count["encoded"] >= len(packets) - 3  # but for a renewal
    for one in wire:
        if one.kind == "encoded" and proto in (DCCP, UDPLITE):
            l4 = one.payload
            ends = b"".join(socket.inet_pton(a.family, end) for end in (one.source, one.destination))
            assert csum(ends + struct.pack("!BBH", 0, proto, len(l4)) + l4) == 0


@pytest.mark.parametrize(
    ("segments", "df", "way"),
    [
        (2, True, "encoded"),
        (45, True, "encoded"),
        (63, True, "encoded"),
        (64, True, "fb_segments"),
        (100, True, "fb_segments"),
        (128, True, "fb_segments"),
        (20, False, "fb_df_clear"),
    ],
)
def test_udp_segmentation_offload(overlay, segments, df, way):
    """A train of datagrams in one call, as QUIC stacks send it: with DF, which else is clear for a train."""
    a, b = overlay.containers
    size = 500 if segments * 500 < 65000 else 400
    if "tx-udp-segmentation: on" not in a.run("ethtool -k eth0").stdout:
        pytest.skip("a veth takes trains of datagrams since Linux 5.11: none reaches a link here")
    negotiate(a, b)
    before = stats(overlay.hosts[0])
    with Receiver(b) as receiver, a.socket() as sender:
        if overlay.inner == 4:
            sender.setsockopt(socket.IPPROTO_IP, 10, 2 if df else 1)  # IP_MTU_DISCOVER: do, want
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
        for _ in range(5):
            data = os.urandom(segments * size - 7)
            try:
                sender.sendto(data, receiver.address)
            except OSError as error:
                if error.errno == errno.EINVAL and segments > 64:
                    pytest.skip("this kernel sends no more than 64 datagrams at once")
                raise
            got = []
            while sum(map(len, got)) < len(data) and (one := receiver.receive(2)):
                got.append(one[0])
            assert b"".join(got) == data
            assert {len(one) for one in got[:-1]} <= {size}
    if overlay.inner == 6:
        way = "encoded"  # the flow label is that of all segments, and there is no DF
    assert stats(overlay.hosts[0])[way] - before[way] >= 4  # but for a renewal


def test_udp_without_checksum_and_of_every_length(overlay):
    a, b = overlay.containers
    negotiate(a, b)
    with Receiver(b) as receiver, a.socket() as sender:
        for bare in (0, 1):
            if overlay.inner == 6:
                receiver.socket.setsockopt(socket.IPPROTO_UDP, 102, bare)  # UDP_NO_CHECK6_RX
                sender.setsockopt(socket.IPPROTO_UDP, 101, bare)  # UDP_NO_CHECK6_TX
            else:
                sender.setsockopt(socket.SOL_SOCKET, 11, bare)  # SO_NO_CHECK
            for size in (0, 1, 2, 3, 17, 18, 19, 511, 1451, 1452):
                data = os.urandom(size)
                sender.sendto(data, receiver.address)
                assert receiver.receive(2) == (data, 0)


def test_a_datagram_that_is_fragmented_takes_the_fallback_and_arrives(overlay):
    a, b = overlay.containers
    before = stats(overlay.hosts[0])["fb_fragment"]
    with Receiver(b) as receiver, a.socket() as sender:
        if overlay.inner == 4:
            sender.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: never
        else:
            # The driver drops what does not fit; the sender is told so, and makes smaller fragments then.
            sender.sendto(bytes(2000), receiver.address)
            receiver.receive(0.5)
        for size in (1473, 4000, 60000):
            data = os.urandom(size)
            sender.sendto(data, receiver.address)
            assert receiver.receive(2) == (data, 0)
    assert stats(overlay.hosts[0])["fb_fragment"] > before


def test_options_take_the_fallback_and_arrives(overlay):
    a, b = overlay.containers
    before = stats(overlay.hosts[0])["fb_options"]
    with Receiver(b) as receiver, a.socket() as sender:
        if overlay.inner == 6:
            # A destination options header that is all padding (RFC 8200, section 4.2).
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
        else:
            # Record Route, with room for three addresses (RFC 791).
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([7, 15, 4, *[0] * 12, 0]))
        for number in range(5):
            sender.sendto(bytes([number]), receiver.address)
            assert receiver.receive(2) == (bytes([number]), 0)
    assert stats(overlay.hosts[0])["fb_options"] >= before + 5


def test_to_the_tunnels_own_port_takes_the_fallback_and_arrives(overlay):
    """At the receiver it could not be told from the tunnel."""
    a, b = overlay.containers
    negotiate(a, b)
    before = stats(overlay.hosts[0])["fb_tunnel_port"]
    with Receiver(b, overlay.dstport) as receiver, a.socket() as sender:
        for number in range(10):
            sender.sendto(bytes([8, number]), receiver.address)
            assert receiver.receive(2) == (bytes([8, number]), 0)
            time.sleep(0.01)
    assert stats(overlay.hosts[0])["fb_tunnel_port"] >= before + 9
