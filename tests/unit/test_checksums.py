# SPDX-License-Identifier: Apache-2.0
"""What the kernel notes of a packet's checksum (skb->ip_summed, linux/skbuff.h) stays right.

All other tests of the programs have CHECKSUM_NONE, as test runs have: the checksum is in the packet.
"""

from __future__ import annotations

import errno
import ipaddress
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from kmod_ebpf import bpf
from tests.unit.harness import (
    EGRESS,
    INGRESS,
    REDIRECT,
    Node,
    Tap,
    attached,
    checksum,
    negotiate,
    raw_mac,
)
from tests.unit.harness6 import DST as DST6
from tests.unit.harness6 import ENCODED as ENCODABLE6
from tests.unit.harness6 import SRC as SRC6
from tests.unit.harness6 import A, B, Host
from tests.unit.packets import DST, ENCODABLE, SRC, tcp, udp

pytestmark = pytest.mark.root
in_both_ways = pytest.mark.usefixtures("checksums")  # the fixture host is, by itself


# --- CHECKSUM_COMPLETE: a NIC has summed up all that is behind the link layer's header ------------


@contextmanager
def complete() -> Iterator[int]:
    """Flags for test runs whose packet comes with such a sum; the kernel compares it afterwards."""
    try:
        yield bpf.TEST_COMPLETE
    except OSError as e:
        if e.errno == errno.EINVAL:
            pytest.skip("this kernel's test runs cannot have CHECKSUM_COMPLETE")
        if e.errno == errno.EBADMSG:
            pytest.fail("skb->csum is not the packet's sum any more")
        raise


@in_both_ways
@pytest.mark.parametrize("kind", ENCODABLE)
def test_a_nics_sum_stays_that_of_the_packet(a: Node, b: Node, kind: str) -> None:
    inner = ENCODABLE[kind]
    negotiate(a, b, inner)
    with complete() as flags:
        out = a.encode(inner, flags=flags)
        assert out == a.encode(inner)
        packet = b.arriving(out.packet)
        back = b.ingress(packet, flags=flags)
        assert (back.action, back) == (REDIRECT, b.ingress(packet))


@pytest.mark.parametrize("kind", ENCODABLE6)
def test_a_nics_sum_stays_that_of_the_packet_over_ipv6(host: Host, kind: str) -> None:
    inner = ENCODABLE6[kind]
    with complete() as flags:
        out = host.encode(inner, flags)
        assert out == host.encode(inner)
        assert out[0] == REDIRECT
        assert host.ingress(out[1], flags) == host.ingress(out[1])


# --- CHECKSUM_PARTIAL: a device is to write it, and goes on from the pseudo header's sum ----------


_SOL_PACKET, _PACKET_VNET_HDR = 263, 15  # linux/socket.h, linux/if_packet.h
_HEAD = struct.Struct("<BBHHHH")  # struct virtio_net_hdr
_NEEDS_CSUM = 1
TCP, UDP = 6, 17
AT = {TCP: 16, UDP: 6}


class OwingTap(Tap):
    """A tap that sees, and says, which checksums a device is still to write."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)

    def owe(self, packet: bytes, start: int, offset: int) -> None:
        """Sends a packet whose checksum, from start on, is to be written there."""
        self.send(_HEAD.pack(_NEEDS_CSUM, 0, 0, 0, start, offset) + packet)

    def owed(self) -> tuple[bytes, int, int]:
        """The next packet that owes a checksum, and where that begins and is to be written."""
        while True:
            raw = self.receive()
            flags, _, _, _, start, offset = _HEAD.unpack_from(raw)
            packet = raw[_HEAD.size :]
            if flags & _NEEDS_CSUM:
                return packet, start, offset


def head_len(packet: bytes) -> int:
    return 54 if packet[12:14] == b"\x86\xdd" else 34


def protocol(packet: bytes) -> int:
    return packet[20 if head_len(packet) == 54 else 23]


def pseudo(packet: bytes, src: str, dst: str) -> bytes:
    """The sum of the pseudo header between two addresses, as a device wants it (not inverted)."""
    ends = ipaddress.ip_address(src).packed + ipaddress.ip_address(dst).packed
    rest = struct.pack("!HH", protocol(packet), len(packet) - head_len(packet))
    return (checksum(ends + rest) ^ 0xFFFF).to_bytes(2, "big")


def with_checksum(packet: bytes, value: bytes) -> bytes:
    at = head_len(packet) + AT[protocol(packet)]
    return packet[:at] + value + packet[at + 2 :]


def owing(packet: bytes, src: str, dst: str) -> bytes:
    """The packet before a device has written its checksum."""
    return with_checksum(packet, pseudo(packet, src, dst))


@contextmanager
def on_devices(node: Node | Host) -> Iterator[None]:
    """A node's programs on its hooks."""
    places = (
        ("xmasq_ingress", node.underlay, INGRESS),
        ("xmasq_egress", node.underlay, EGRESS),
        ("xmasq_encode", node.link, EGRESS),
        ("xmasq_arrive", node.link, INGRESS),
    )
    with attached(node, *places):
        yield


PARTIAL = {
    "tcp": tcp(b"hello"),
    "tcp, long": tcp(bytes(range(256)) * 5),
    "udp": udp(b"hello"),
    "udp, empty": udp(),
}


@in_both_ways
@pytest.mark.parametrize("kind", PARTIAL)
def test_a_checksum_that_is_owed_stays_owed(a: Node, b: Node, kind: str) -> None:
    inner = PARTIAL[kind]
    at = head_len(inner), AT[protocol(inner)]
    negotiate(a, b, inner)
    plain = a.encode(inner).packet[14:]
    with on_devices(a), OwingTap("xm0") as link, OwingTap("ul0p") as far:
        link.owe(owing(inner, SRC, DST), *at)
        packet, *place = far.owed()
    assert packet[14:] == owing(bytes(14) + plain, a.local, b.local)[14:]
    assert tuple(place) == at


@in_both_ways
@pytest.mark.parametrize("kind", PARTIAL)
def test_it_is_still_owed_when_it_comes_back(a: Node, b: Node, kind: str) -> None:
    inner = raw_mac(a.link_mac) + PARTIAL[kind][6:]
    at = head_len(inner), AT[protocol(inner)]
    negotiate(b, a, inner)
    wire = a.arriving(b.encode(inner).packet)
    with on_devices(a), OwingTap("xm0") as link, OwingTap("ul0p") as far:
        far.owe(owing(wire, b.local, a.local), *at)
        packet, *place = link.owed()
    back = a.ingress(wire).packet
    assert packet == owing(back, SRC, DST)
    assert tuple(place) == at


def tunnel() -> tuple[bytes, tuple[int, int]]:
    """A container's own tunnel: its UDP checksum is written, one within is owed."""
    return udp(bytes(range(40)), dport=6081), (34 + 8 + 20, 6)


@in_both_ways
def test_a_tunnels_checksum_is_moved_although_one_within_is_owed(a: Node, b: Node) -> None:
    inner, at = tunnel()
    negotiate(a, b, inner)
    plain = a.encode(inner).packet[14:]
    with on_devices(a), OwingTap("xm0") as link, OwingTap("ul0p") as far:
        link.owe(inner, *at)
        packet, *place = far.owed()
    assert packet[14:] == plain
    assert tuple(place) == at


@in_both_ways
def test_and_moved_back(a: Node, b: Node) -> None:
    inner, at = tunnel()
    inner = raw_mac(a.link_mac) + inner[6:]
    negotiate(b, a, inner)
    wire = a.arriving(b.encode(inner).packet)
    with on_devices(a), OwingTap("xm0") as link, OwingTap("ul0p") as far:
        far.owe(wire, *at)
        packet, *place = link.owed()
    assert packet == a.ingress(wire).packet
    assert tuple(place) == at


@in_both_ways
def test_udp_without_a_checksum_gets_none(a: Node, b: Node) -> None:
    """Although one within is owed."""
    inner, at = tunnel()
    inner = with_checksum(inner, bytes(2))
    negotiate(a, b, inner)
    plain = a.encode(inner).packet[14:]
    assert plain[26:28] == bytes(2)
    with on_devices(a), OwingTap("xm0") as link, OwingTap("ul0p") as far:
        link.owe(inner, *at)
        assert far.owed()[0][14:] == plain


@contextmanager
def ipv6_on(device: str) -> Iterator[None]:
    """The device has VTEP A, and VTEP B for its neighbour."""
    setting = Path(f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6")
    if not setting.exists():
        pytest.skip("this kernel has no IPv6")
    with IPRoute() as ipr:
        index = ipr.link_lookup(ifname=device)[0]
        setting.write_text("0")
        try:
            ipr.addr("add", index=index, address=A, prefixlen=64, flags=2)  # IFA_F_NODAD
            ipr.neigh("add", dst=B, lladdr="02:00:00:00:01:00", ifindex=index, state="permanent")
            yield
        finally:
            setting.write_text("1")


PARTIAL6 = {kind: ENCODABLE6[kind] for kind in ("tcp", "udp", "full size")}


@pytest.mark.parametrize("kind", PARTIAL6)
def test_it_is_owed_both_ways_over_ipv6(host: Host, kind: str) -> None:
    inner = PARTIAL6[kind]
    at = head_len(inner), AT[protocol(inner)]
    with on_devices(host), ipv6_on("ul0"), OwingTap("xm0") as link, OwingTap("ul0p") as far:
        link.owe(owing(inner, SRC6, DST6), *at)
        wire, *place = far.owed()
        assert wire[14:] == owing(host.encode(inner)[1], A, B)[14:]
        assert tuple(place) == at
        far.owe(raw_mac(host.underlay_mac) + wire[6:], *at)
        back, *place = link.owed()
    assert back == owing(host.ingress(host.encode(inner)[1])[1], SRC6, DST6)
    assert tuple(place) == at
