# SPDX-License-Identifier: Apache-2.0
"""What entered encode comes out of decode, or took the fallback as it was (I3)."""

from __future__ import annotations

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.property.frames import frames, macs
from tests.unit.harness import (
    DECODED,
    ENCODED,
    FIELD,
    HELPER,
    REDIRECT,
    SHOT,
    UNSPEC,
    Bench,
    Node,
    checksum,
    mac,
    raw_mac,
)

pytestmark = pytest.mark.root

TCP, UDP, DCCP, UDPLITE = 6, 17, 33, 136


def grant(a: Node, b: Node, frame: bytes) -> bool:
    """Negotiates for the flow of a frame, if it has one."""
    b.set_link(mac=mac(frame[:6].hex(":")))
    out = a.encode(frame)
    assert out.action == UNSPEC
    sent = a.egress(a.vxlan(out.packet, b.local))
    offer = b.offer(b.arriving(sent.packet))
    if offer is None:
        return False
    accept = a.ingress(a.arriving(offer))
    if accept.action == SHOT:
        assert a.counters()["ctl_unsolicited"] == 1
        return False
    confirm = b.ingress(b.arriving(accept.packet))
    assert confirm.action == REDIRECT
    a.ingress(a.arriving(confirm.packet))
    return True


def restored(frame: bytes, ident: bytes) -> bytes:
    """What decode may give back: documented in docs/protocol.md, "What comes back"."""
    out = bytearray(frame)
    out[18:20] = ident
    out[24:26] = b"\0\0"
    out[24:26] = checksum(out[14:34]).to_bytes(2, "big")
    at = {TCP: 50, DCCP: 40, UDPLITE: 40}.get(out[23])
    if at is not None and len(out) >= at + 2 and out[at : at + 2] == b"\xff\xff":
        out[at : at + 2] = b"\0\0"
    return bytes(out)


def driver_sees(frame: bytes) -> list[bytes]:
    """What encode may hand to the vxlan driver: the frame, or, if it is large, one that may be cut."""
    if len(frame) - 14 + 50 <= 1500:
        return [frame]
    return [frame, with_reserved(frame)]


@settings(max_examples=300, deadline=None)
@given(frame=frames(), way=st.sampled_from([FIELD, HELPER]))
def test_any_frame(unentered_bench: Bench, frame: bytes, way: str) -> None:
    with unentered_bench.moving(way), unentered_bench.entered() as net:
        a, b = net.a, net.b
        if not grant(a, b, frame):
            event("never encoded")
            out = a.encode(frame)
            assert out.action == UNSPEC
            assert out.packet in driver_sees(frame)
            assert a.egress(a.vxlan(out.packet, b.local)).packet[50:] in (frame, without_reserved(frame))
            return
        out = a.encode(frame)
        if out.action == UNSPEC:
            event("flow granted, packet not encoded")
            assert out.packet == frame
            return
        assert (out.action, out.kind) == (REDIRECT, ENCODED)
        assert checksum(out.packet[14:34]) == checksum(frame[14:34])
        back = b.ingress(b.arriving(out.packet))
        if checksum(frame[14:34]) != 0:
            event("wrong header checksum")
            assert (back.action, back.packet) == (UNSPEC, b.arriving(out.packet))
            return
        event("encoded")
        assert (back.action, back.kind) == (REDIRECT, DECODED)
        df = frame[20] & 0x40
        assert back.packet == restored(frame, b"\0\0" if df else back.packet[18:20])


def with_reserved(frame: bytes) -> bytes:
    """A frame with the reserved bit set, and its header's checksum as right or wrong as it was."""
    out = bytearray(frame)
    out[20] |= 0x80
    out[24:26] = moved(frame[24:26], frame[20:22], bytes(out[20:22]))
    return bytes(out)


def moved(check: bytes, old: bytes, new: bytes) -> bytes:
    """A checksum after one word of what it is about has changed (RFC 1624, equation 3)."""
    total = sum(int.from_bytes(word, "big") for word in (inverted(check), inverted(old), new))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return inverted(total.to_bytes(2, "big"))


def inverted(word: bytes) -> bytes:
    return bytes(byte ^ 0xFF for byte in word)


def without_reserved(frame: bytes) -> bytes:
    """A frame whose reserved bit, beside DF, was taken for the one that encode sets."""
    if frame[12:15] != b"\x08\x00\x45" or frame[20:22] != b"\xc0\x00":
        return frame
    out = bytearray(frame)
    out[20] = 0x40
    out[24:26] = moved(frame[24:26], b"\xc0\x00", b"\x40\x00")
    return bytes(out)


@settings(max_examples=100, deadline=None)
@given(
    dst=macs.filter(lambda m: not m[0] & 1),
    payload=st.binary(min_size=1, max_size=1400),
    protocol=st.integers(0, 255),
    tos=st.integers(0, 255),
    pad=st.integers(0, 40),
    hops=st.integers(0, 15),
    mark=st.booleans(),
    segment=st.integers(0, 63),
    way=st.sampled_from([FIELD, HELPER]),
)
def test_any_packet_that_can_be_encoded_is(
    unentered_bench: Bench,
    dst: bytes,
    payload: bytes,
    protocol: int,
    tos: int,
    pad: int,
    hops: int,
    mark: bool,
    segment: int,
    way: str,
) -> None:
    """And comes back although routers, congestion, segmentation and padding have been at it."""
    if tos >> 2 & 3 == 3:
        return  # always in the fallback, as is the next
    if protocol in (4, 41, 47) or (protocol == UDP and (len(payload) < 4 or payload[2:4] == b"\x12\xb5")):
        return
    head = bytearray.fromhex("45000000000040004000000000000000" + "00000000")
    head[1], head[9] = tos, protocol
    head[2:4] = (20 + len(payload)).to_bytes(2, "big")
    head[12:20] = bytes([10, 0, 0, 1, 10, 0, 1, 1])
    head[10:12] = checksum(head).to_bytes(2, "big")
    frame = dst + raw_mac("02:aa:00:00:00:01") + b"\x08\x00" + head + payload
    with unentered_bench.moving(way), unentered_bench.entered() as net:
        a, b = net.a, net.b
        assert grant(a, b, frame)
        out = a.encode(frame)
        assert out.action == REDIRECT
        wire = bytearray(out.packet)
        wire[22] -= hops
        wire[18:20] = (int.from_bytes(wire[18:20], "big") + segment).to_bytes(2, "big")
        if mark:
            wire[15] |= 3
        wire[24:26] = b"\0\0"
        wire[24:26] = checksum(wire[14:34]).to_bytes(2, "big")
        back = b.ingress(b.arriving(bytes(wire) + bytes(pad)))
        expected = bytearray(frame)
        expected[22] -= hops
        if mark:
            expected[15] |= 3
        assert back.packet == restored(bytes(expected), b"\0\0")
