# SPDX-License-Identifier: Apache-2.0
"""Underlay ingress: encoded packets come back as what they were, or are bounced."""

from __future__ import annotations

import struct

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from kmod_ebpf import loader
from tests.unit.harness import (
    CB_MARK,
    CONTROL,
    DECODED,
    GUARD_MS,
    HOST,
    INGRESS,
    LEASE_MS,
    MS,
    REDIRECT,
    UNSPEC,
    Node,
    Tap,
    attached,
    negotiate,
    now,
    raw_mac,
)
from tests.unit.packets import ENCODABLE, exact, frame, on_wire, rewritten, tcp, udp, with_checksum_zero
from xmasq_link import _wire as wire

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("checksums")]


def encoded(a: Node, b: Node, inner: bytes) -> bytes:
    """The packet, encoded, as it arrives at b after a handshake."""
    negotiate(a, b, inner)
    out = a.encode(inner)
    assert out.action == REDIRECT
    return b.arriving(out.packet)


def on_the_way(packet: bytes, **ip: object) -> bytes:
    """An encoded packet after a router changed its IP header."""
    return rewritten(packet, **ip)


# --- exact --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ENCODABLE)
def test_every_kind_byte_for_byte(a: Node, b: Node, kind: str) -> None:
    inner = ENCODABLE[kind]
    packet = encoded(a, b, inner)
    out = b.ingress(packet)
    assert (out.action, out.kind) == (REDIRECT, DECODED)
    assert out.packet == exact(inner)
    assert (b.counters()["decoded"], b.counters()["decoded_bytes"]) == (1, len(inner))


@pytest.mark.parametrize("ecn", range(4))
@pytest.mark.parametrize("dscp", [0, 1, 2, 4, 10, 13, 22, 34, 46, 48, 56, 61, 62])
def test_dscp_comes_back(a: Node, b: Node, dscp: int, ecn: int) -> None:
    inner = rewritten(tcp(b"x"), tos=dscp << 2 | ecn)
    assert b.ingress(encoded(a, b, inner)).packet == exact(inner)


@pytest.mark.parametrize("kind", ["tcp, odd", "udp, odd", "icmp", "udp, no checksum"])
def test_marks_and_hops_of_the_underlay_come_through(a: Node, b: Node, kind: str) -> None:
    inner = rewritten(ENCODABLE[kind], tos=46 << 2 | 2)
    packet = on_the_way(encoded(a, b, inner), tos=3 << 2 | 3, ttl=61)
    assert b.ingress(packet).packet == exact(inner, tos=46 << 2 | 3, ttl=61)


@pytest.mark.parametrize("segment", [0, 1, 31, 63])
def test_segments_have_consecutive_identifications(a: Node, b: Node, segment: int) -> None:
    inner = tcp(b"x")
    packet = encoded(a, b, inner)
    assert b.ingress(on_the_way(packet, id=64 + segment)).packet == exact(inner)


@pytest.mark.parametrize("kind", ["udp, odd", "icmp, odd", "tcp, empty", "one byte", "unknown, odd"])
@pytest.mark.parametrize("pad", [1, 2, 17])
def test_padding_is_cut_off(a: Node, b: Node, kind: str, pad: int) -> None:
    inner = ENCODABLE[kind]
    packet = encoded(a, b, inner)
    assert b.ingress(packet + b"\xff" * pad).packet == exact(inner)


@pytest.mark.parametrize("size", [21, 576, 1280])
def test_df_is_cleared_again_with_a_fresh_identification(a: Node, b: Node, size: int) -> None:
    inner = udp(bytes(size - 28)) if size > 28 else frame(bytes(1), proto=253)
    inner = rewritten(inner, flags="", id=0x1234)
    packet = encoded(a, b, inner)
    seen = set()
    for _ in range(8):
        out = b.ingress(packet).packet
        ident = Ether(out)[IP].id
        assert out == rewritten(inner, id=ident)
        seen.add(ident)
    assert len(seen) > 4  # it may be fragmented further on, so packets must differ


def test_checksums_of_zero_and_ffff(a: Node, b: Node) -> None:
    """The one thing that a checksum loses: ffff comes back as 0, the same number.

    It does not in UDP, where 0 says that there is none.
    """
    zero = with_checksum_zero(tcp)
    assert zero[50:52] == b"\0\0"
    packet = encoded(a, b, zero)
    assert b.ingress(packet).packet == exact(zero)
    ffff = zero[:50] + b"\xff\xff" + zero[52:]
    packet = b.arriving(a.encode(ffff).packet)
    assert b.ingress(packet).packet == exact(zero)


def test_an_ip_checksum_of_ffff_comes_back_as_zero(a: Node, b: Node) -> None:
    inner = exact(tcp())  # the Identification is 0, and will be again
    ttl_proto = struct.unpack_from("!H", inner, 22)[0]
    (check,) = struct.unpack_from("!H", inner, 24)
    # Another TTL and source, so that the header's sum is ffff.
    inner = rewritten(inner, ttl=64, src="10.0.0.1")
    assert (ttl_proto, check) == (0x4006, Ether(inner)[IP].chksum)
    tweak = check  # adding the checksum to the sum makes the checksum 0
    low = (0x0001 + tweak) % 0xFFFF
    inner = rewritten(inner, src=f"10.0.{low >> 8}.{low & 255}")
    assert Ether(inner)[IP].chksum in (0, 0xFFFF)
    negotiate(a, b, inner)
    wrong = inner[:24] + b"\xff\xff" + inner[26:]
    right = inner[:24] + b"\x00\x00" + inner[26:]
    assert b.ingress(b.arriving(a.encode(wrong).packet)).packet == right


def test_a_wrong_l4_checksum_comes_back_as_wrong(a: Node, b: Node) -> None:
    inner = bytearray(exact(tcp(b"hello")))
    inner[50] ^= 0xAA
    negotiate(a, b, bytes(inner))
    out = a.encode(bytes(inner))
    assert b.ingress(b.arriving(out.packet)).packet == bytes(inner)


@pytest.mark.parametrize("bit", range(0, 160, 3))
def test_a_header_that_was_damaged_is_left_to_the_stack(a: Node, b: Node, bit: int) -> None:
    """Its Identification may by now be another flow's key."""
    negotiate(a, b, tcp())
    negotiate(a, b, frame(TCP(), src="10.0.0.77"))
    packet = bytearray(b.arriving(a.encode(tcp()).packet))
    assert packet[18:20] == b"\x00\x40"
    packet[14 + bit // 8] ^= 1 << bit % 8
    out = b.ingress(bytes(packet))
    assert (out.action, out.packet) == (UNSPEC, bytes(packet))
    assert "decoded" not in b.counters()


def test_another_key_by_two_bit_errors_that_the_checksum_misses(a: Node, b: Node) -> None:
    """Beyond the checksum: then the packet comes out as the other flow's; L4 cannot tell either."""
    negotiate(a, b, tcp())
    negotiate(a, b, frame(TCP(), src="10.0.0.77"))
    packet = rewritten(b.arriving(a.encode(tcp()).packet), id=128)
    assert Ether(b.ingress(packet).packet)[IP].src == "10.0.0.77"


def test_the_mark_of_the_packet_is_kept_for_later(a: Node, b: Node) -> None:
    out = b.ingress(encoded(a, b, tcp()), mark=0xCAFE)
    assert (out.kind, out.cb[CB_MARK]) == (DECODED, 0xCAFE)
    assert b.arrive(out.packet, mark=out.mark, cb=out.cb).mark == 0xCAFE


def test_many_flows_at_once(a: Node, b: Node) -> None:
    inners = [frame(TCP(), src=f"10.0.2.{i}", tos=4 * (i % 16) << 2) for i in range(1, 100)]
    for inner in inners:
        negotiate(a, b, inner)
    packets = [b.arriving(a.encode(inner).packet) for inner in inners]
    assert len({p[18:20] for p in packets}) == len(inners)
    for inner, packet in zip(reversed(inners), reversed(packets), strict=True):
        assert b.ingress(packet).packet == exact(inner)


def test_the_first_packet_decoded_is_noted(a: Node, b: Node) -> None:
    packet = encoded(a, b, tcp())
    assert b.slot(1)[3].used == 0
    b.ingress(packet)
    assert b.slot(1)[3].used == 1


# --- time and generation ------------------------------------------------------------------------


def assert_bounced(b: Node, packet: bytes, padding: bytes = b"") -> bytes:
    """The packet is sent back whole; returns it."""
    before = b.counters(HOST).get("bounce_tx", 0)
    head = Ether(packet)[IP]
    expected = rewritten(
        packet,
        src=head.dst,
        dst=head.src,
        tos=head.tos + ((wire.BOUNCE - wire.MARK) << 2),
    )
    out = b.ingress(packet + padding)
    assert (out.action, out.kind) == (REDIRECT, CONTROL)
    assert out.packet[14:] == expected[14:] + padding
    assert b.counters(HOST)["bounce_tx"] == before + 1
    return out.packet


@pytest.mark.parametrize("kind", ENCODABLE)
def test_an_unknown_key_is_bounced_whole(a: Node, b: Node, kind: str) -> None:
    packet = encoded(a, b, ENCODABLE[kind])
    b.reset()
    assert_bounced(b, packet)


@pytest.mark.parametrize("ecn", range(4))
def test_a_bounce_keeps_ecn(a: Node, b: Node, ecn: int) -> None:
    packet = on_the_way(encoded(a, b, tcp()), tos=3 << 2 | ecn)
    b.reset()
    assert_bounced(b, packet)


def test_a_padded_packet_is_bounced(a: Node, b: Node) -> None:
    packet = encoded(a, b, udp())
    b.reset()
    assert_bounced(b, packet, bytes(18))


@pytest.mark.parametrize("key", [2, 64, 1023])
def test_a_key_that_was_not_given_is_bounced(a: Node, b: Node, key: int) -> None:
    assert_bounced(b, on_the_way(encoded(a, b, tcp()), id=key << 6))


def test_an_offered_key_does_not_decode_yet(a: Node, b: Node) -> None:
    inner = tcp()
    b.offer(b.arriving(a.fallback(inner, b.local)))
    assert_bounced(b, b.arriving(bytes(14) + on_wire(inner, a.local, b.local, 1)))


def test_another_peer_does_not_have_the_key(a: Node, b: Node) -> None:
    assert_bounced(b, on_the_way(encoded(a, b, tcp()), src="192.0.2.77"))


@pytest.mark.parametrize("left_ms", [500, -20])
def test_a_grant_ends_after_lease_and_guard(a: Node, b: Node, left_ms: int) -> None:
    inner = tcp()
    packet = encoded(a, b, inner)
    granted = b.slot(1)[3].valid - now()
    assert abs(granted - (LEASE_MS + GUARD_MS) * MS) < 500 * MS
    b.pass_time(granted - left_ms * MS)
    if left_ms > 0:
        assert b.ingress(packet).packet == exact(inner)
    else:
        assert_bounced(b, packet)


@pytest.mark.parametrize("change", [{"rx_gen": 2}, {"ifindex": 999}])
def test_a_link_of_another_generation(a: Node, b: Node, change: dict[str, int]) -> None:
    packet = encoded(a, b, tcp())
    b.set_link(**change)
    assert_bounced(b, packet)


@pytest.mark.parametrize(
    "field", ["sip", "dip", "smac", "dmac", "dscp", "variant", "ifindex", "rx_gen", "valid", "key"]
)
def test_a_torn_slot_does_not_decode(a: Node, b: Node, field: str) -> None:
    packet = encoded(a, b, tcp())
    at, _, block, slot = b.slot(1)
    value = getattr(slot, field)
    torn = value + 1 if isinstance(value, int) else type(value)(*bytes(value)[:-1], bytes(value)[-1] ^ 1)
    setattr(slot, field, torn)
    b.put("blocks", at, block)
    assert_bounced(b, packet)


def test_a_link_that_is_switched_off_still_decodes(a: Node, b: Node) -> None:
    inner = tcp()
    packet = encoded(a, b, inner)
    b.set_link(flags=0)
    assert b.ingress(packet).packet == exact(inner)


def test_user_space_can_end_a_key(a: Node, b: Node) -> None:
    """xmasq_flush, with the slot's seal; the key stays reserved."""
    packet = encoded(a, b, tcp())
    at, place, _, slot = b.slot(1)
    stale = bytes(14) + struct.pack("<IIQ", at, place, slot.seal ^ 1) + bytes(34)
    assert b.run(loader.FLUSH, stale).action == 0
    assert b.ingress(packet).kind == DECODED
    request = bytes(14) + struct.pack("<IIQ", at, place, slot.seal) + bytes(34)
    assert b.run(loader.FLUSH, request).action == 1
    assert b.run(loader.FLUSH, request).action == 0
    assert_bounced(b, packet)
    assert b.slot(1)[3].until == slot.until


# --- not ours -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"dst": "192.0.2.3"},
        {"flags": ""},
        {"flags": "DF+MF"},
        {"flags": "DF+evil"},
        {"frag": 1},
        {"tos": 0},
        {"tos": 2 << 2},
        {"tos": 11 << 2},
    ],
)
def test_what_is_not_encoded_passes(a: Node, b: Node, change: dict[str, object]) -> None:
    packet = on_the_way(encoded(a, b, tcp(b"hello")), **change)
    b.clear_counters()
    out = b.ingress(packet, mark=0xCAFE)
    assert (out.action, out.packet, out.mark) == (UNSPEC, packet, 0xCAFE)
    assert b.counters() == b.counters(HOST) == {}


@pytest.mark.parametrize("identification", [0, 63])
def test_key_0_is_bounced_to_a_peer(a: Node, b: Node, identification: int) -> None:
    """Encode never uses it, so the path has wiped it out; to the host's stack it would be misdelivered."""
    assert_bounced(b, on_the_way(encoded(a, b, tcp(b"hello")), id=identification))


@pytest.mark.parametrize("identification", [0, 63])
def test_key_0_of_a_host_that_is_no_peer_passes(a: Node, b: Node, identification: int) -> None:
    packet = on_the_way(encoded(a, b, tcp(b"hello")), id=identification, src="192.0.2.77")
    b.clear_counters()
    out = b.ingress(packet, mark=0xCAFE)
    assert (out.action, out.packet, out.mark) == (UNSPEC, packet, 0xCAFE)
    assert b.counters() == b.counters(HOST) == {}


def test_ip_options_pass(a: Node, b: Node) -> None:
    packet = encoded(a, b, tcp())
    packet = packet[:14] + b"\x46" + packet[15:34] + b"\1\1\1\1" + packet[34:]
    assert b.ingress(packet).packet == packet


@pytest.mark.parametrize("length", [0, 19, 100, 65535])
def test_a_length_that_cannot_be_passes(a: Node, b: Node, length: int) -> None:
    packet = on_the_way(encoded(a, b, tcp(b"hello")), len=length)
    out = b.ingress(packet)
    assert (out.action, out.packet) == (UNSPEC, packet)


def test_a_tagged_frame_belongs_to_another_device(a: Node, b: Node) -> None:
    """The kernel takes the tag out before this hook; still it is no frame of this device."""
    packet = encoded(a, b, tcp())
    with attached(b, ("xmasq_ingress", b.underlay, INGRESS)), Tap("ul1p") as tap:
        tap.send(packet[:12] + b"\x81\x00\x00\x05" + packet[12:])
        assert (b.counters().get("decoded", 0), b.counters(HOST)) == (0, {})
        tap.send(packet)
        assert b.counters()["decoded"] == 1


def test_a_frame_for_another_machine_is_not_ours(a: Node, b: Node) -> None:
    """As a switch floods it, while another machine takes the VTEP address over."""
    packet = encoded(a, b, tcp())
    packet = raw_mac("02:00:00:00:00:99") + packet[6:]
    with attached(b, ("xmasq_ingress", b.underlay, INGRESS)), Tap("ul1p") as tap:
        tap.send(packet)
    assert (b.counters().get("decoded", 0), b.counters(HOST)) == (0, {})


def test_a_datagram_to_the_tunnels_port_is_the_tunnels(a: Node, b: Node) -> None:
    """Encode never sends one, so what looks like one is not decoded."""
    inner = udp(b"hello")
    packet = encoded(a, b, inner)
    tunnel = Ether(packet)
    tunnel[UDP].dport = wire.PORT
    b.clear_counters()
    out = b.ingress(bytes(tunnel))
    assert out.packet == bytes(tunnel)
    assert b.counters() == {}
