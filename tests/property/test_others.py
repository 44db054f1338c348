# SPDX-License-Identifier: Apache-2.0
"""What is not ours passes all hooks bit for bit (I7), and nothing forged changes what we know (I1)."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.property.frames import frames, ipv4_packets
from tests.unit.harness import HOST, SHOT, UNSPEC, Bench, Node, checksum, negotiate
from tests.unit.packets import tcp
from xmasq_link import _wire as wire

pytestmark = pytest.mark.root

OURS = (wire.MARK, wire.BOUNCE)
VTEPS = (bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2]))
MARKED = wire.MARK << 2


def dscp_is_ours(frame: bytes) -> bool:
    """Whether this is IPv4 with MARK or BOUNCE."""
    return frame[12:14] == b"\x08\x00" and frame[15] >> 2 in OURS


@settings(max_examples=200, deadline=None)
@given(frame=frames(), ingress=st.booleans())
def test_foreign_frames_pass_the_underlay(unentered_bench: Bench, frame: bytes, ingress: bool) -> None:
    assume(not (dscp_is_ours(frame) and (not ingress or frame[30:34] == VTEPS[0])))
    tunnel = frame[26:30] == VTEPS[0] and frame[23] == 17 and frame[36:38] == b"\x12\xb5"
    assume(ingress or not tunnel)
    with unentered_bench.entered() as net:
        run = net.a.ingress if ingress else net.a.egress
        out = run(frame, mark=0xCAFE)
        assert (out.action, out.packet, out.mark) == (UNSPEC, frame, 0xCAFE)
        assert net.a.counters() == net.a.counters(HOST) == {}


@settings(max_examples=200, deadline=None)
@given(frame=frames())
def test_frames_pass_the_link(unentered_bench: Bench, frame: bytes) -> None:
    assume(len(frame) <= 14 + 1450)
    with unentered_bench.entered() as net:
        for out in (net.a.encode(frame, mark=0xCAFE), net.a.arrive(frame, mark=0xCAFE)):
            assert (out.action, out.packet, out.mark) == (UNSPEC, frame, 0xCAFE)
        assert net.a.counters(HOST) == {}


@settings(max_examples=200, deadline=None)
@given(packet=ipv4_packets(tos=st.sampled_from([x << 2 | ecn for x in OURS for ecn in range(4)])))
def test_marks_of_others_are_cleared_and_nothing_else(unentered_bench: Bench, packet: bytes) -> None:
    assume(packet[12:16] != VTEPS[0] or packet[9] != 17)
    frame = bytes(12) + b"\x08\x00" + packet
    with unentered_bench.entered() as net:
        out = net.a.egress(frame)
    assert out.action == UNSPEC
    assert out.packet[15] == frame[15] & 3
    assert out.packet[:15] + out.packet[16:24] + out.packet[26:] == frame[:15] + frame[16:24] + frame[26:]
    # Right stays right, wrong stays wrong by as much; 0 and ffff are the same number.
    before, after = (checksum(x[14:34]) % 0xFFFF for x in (frame, out.packet))
    assert before == after


def known(node: Node) -> list[object]:
    """What the node knows of flows and keys, but for hints that every packet may write."""
    blocks = []
    for i, block in node.blocks():
        for slot in block.slots:
            slot.used = 0
        blocks.append((i, block.raw()))
    tables = [[(k.raw(), v.raw()) for k, v in node.items(name)] for name in ("flows", "txkeys", "pendings")]
    return [*tables, blocks]


@settings(max_examples=200, deadline=None)
@given(
    packet=ipv4_packets(
        src=st.sampled_from([VTEPS[1], bytes([192, 0, 2, 77])]),
        dst=st.just(VTEPS[0]),
        tos=st.sampled_from([x << 2 | ecn for x in OURS for ecn in range(4)]),
        right=True,
    )
)
def test_forged_encoded_and_bounced_packets_change_nothing(unentered_bench: Bench, packet: bytes) -> None:
    """But a bounced packet with a key in use, from the peer that gave it: that ends the flow."""
    with unentered_bench.entered() as net:
        negotiate(net.a, net.b, tcp())
        negotiate(net.b, net.a, tcp()[6:12] + tcp()[:6] + tcp()[12:])
        assume(packet[15 - 14] >> 2 == wire.MARK or int.from_bytes(packet[4:6], "big") >> 6 != 1)
        before = known(net.a)
        net.a.ingress(net.a.arriving(bytes(14) + packet))
        assert known(net.a) == before


def control_packet(payload: bytes, key: int, src: bytes) -> bytes:
    """A packet to a's tunnel port with MARK and a key."""
    head = bytearray(28)
    head[0], head[1], head[8], head[9] = 0x45, MARKED, 64, 17
    head[2:4] = (28 + len(payload)).to_bytes(2, "big")
    head[4:6] = wire.wire_id(key).to_bytes(2, "big")
    head[6] = 0x40
    head[12:20] = src + VTEPS[0]
    head[10:12] = checksum(head[:20]).to_bytes(2, "big")
    head[20:24] = b"\x12\xb5\x12\xb5"
    head[24:26] = (8 + len(payload)).to_bytes(2, "big")
    return bytes(head) + payload


payload_bytes = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda kind, rest: bytes(8) + bytes([1, kind, 0, 6, 0, 0, 0, 42]) + rest,
        st.integers(0, 4),
        st.binary(min_size=48, max_size=80),
    ),
)


@settings(max_examples=200, deadline=None)
@given(
    payload=payload_bytes,
    key=st.integers(0, 1023),
    src=st.sampled_from([VTEPS[1], bytes([192, 0, 2, 77])]),
    says_so=st.booleans(),
)
def test_any_bytes_as_a_control_packet_change_nothing(
    unentered_bench: Bench, payload: bytes, key: int, src: bytes, says_so: bool
) -> None:
    if says_so and len(payload) >= 48:
        payload = payload[:40] + key.to_bytes(4, "big") + (10_000).to_bytes(4, "big") + payload[48:]
        payload = payload[:56] + bytes(8) + payload[64:] if len(payload) >= 64 else payload
    with unentered_bench.entered() as net:
        net.a.tell("192.0.2.2")
        negotiate(net.a, net.b, tcp())
        net.a.encode(tcp())
        before = known(net.a)
        net.a.ingress(net.a.arriving(bytes(14) + control_packet(payload, key, src)))
        assert known(net.a) == before


@settings(max_examples=200, deadline=None)
@given(
    step=st.sampled_from(["offer", "accept", "confirm"]),
    at=st.integers(0, wire.CTL_LEN - 1),
    flip=st.integers(1, 255),
)
def test_a_changed_byte_is_refused_where_there_is_a_secret(
    unentered_bench: Bench, step: str, at: int, flip: int
) -> None:
    assume((at, flip & wire.VXLAN_FLAG_I) != (0, wire.VXLAN_FLAG_I))  # that would be VXLAN
    with unentered_bench.entered() as net:
        for node in (net.a, net.b):
            node.share_secret(bytes(range(16)))
        a, b = net.a, net.b
        offer = b.offer(b.arriving(a.fallback(tcp(), b.local)))
        assert offer is not None
        receiver, packet = a, a.arriving(offer)
        if step != "offer":
            receiver, packet = b, b.arriving(a.ingress(packet).packet)
        if step == "confirm":
            receiver, packet = a, a.arriving(b.ingress(packet).packet)
        before = known(receiver)
        changed = bytearray(packet)
        changed[42 + at] ^= flip
        assert receiver.ingress(bytes(changed)).action == SHOT
        assert known(receiver) == before
        receiver.ingress(packet)
        assert known(receiver) != before


@settings(max_examples=100, deadline=None)
@given(
    st.builds(
        wire.Control,
        type=st.integers(0, 255),
        vni=st.integers(0, 0xFFFFFFFF),
        smac=st.binary(min_size=6, max_size=6).map(lambda x: x.hex(":")),
        dmac=st.binary(min_size=6, max_size=6).map(lambda x: x.hex(":")),
        sip=st.ip_addresses(v=4).map(str),
        dip=st.ip_addresses(v=4).map(str),
        key=st.integers(0, 0xFFFFFFFF),
        lease_ms=st.integers(0, 0xFFFFFFFF),
        dscp=st.integers(0, 255),
        variant=st.integers(0, 255),
        nonce_a=st.integers(0, 0xFFFFFFFF),
        nonce_b=st.integers(0, 0xFFFFFFFF),
        auth=st.integers(0, (1 << 64) - 1),
        flags=st.integers(0, 255),
        seg_bits=st.integers(0, 255),
        version=st.integers(0, 255),
        reserved=st.integers(0, 0xFFFF),
        vxlan_flags=st.integers(0, 255),
        vxlan_rest=st.binary(min_size=7, max_size=7),
    )
)
def test_control_payloads_survive_packing(control: wire.Control) -> None:
    assert wire.Control.unpack(control.pack()) == control
    assert dataclasses.replace(control, key=0).pack()[44:] == control.pack()[44:]
