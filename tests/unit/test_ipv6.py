# SPDX-License-Identifier: Apache-2.0
"""IPv6: what is encoded comes back as it was, with right checksums on the wire; the rest is left alone."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, IPv6, IPv6ExtHdrDestOpt, in6_chksum
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.unit.harness import REDIRECT, UNSPEC, Bench
from tests.unit.harness6 import DST, ENCODED, KEY, A, B, Host, frame
from xmasq_link import _wire as wire

pytestmark = pytest.mark.root

LEFT_ALONE = {
    "extension header": frame(IPv6ExtHdrDestOpt() / UDP(dport=1)),
    "fragment": frame(bytes(8), nh=44),
    "hop-by-hop": frame(bytes(8), nh=0),
    "neighbour solicitation": frame(ICMPv6ND_NS(tgt=DST), hlim=255),
    "IPv4 within": frame(bytes(20), nh=4),
    "IPv6 within": frame(bytes(40), nh=41),
    "GRE": frame(bytes(8), nh=47),
    "hop limit": frame(UDP(dport=1), hlim=15),
    "group": frame(UDP(dport=1), dst="ff05::1"),
    "empty": frame(b"", nh=59),
    "tunnel's port": frame(UDP(dport=4789) / Raw(b"x")),
    "wrong length": frame(b"12345678", nh=253, plen=4),
    "our DSCP": frame(UDP(dport=1), tc=wire.MARK << 2),
    "another flow": frame(UDP(dport=1), src="2001:db8:1::2"),
}


@pytest.mark.parametrize("packet", ENCODED.values(), ids=ENCODED.keys())
@pytest.mark.parametrize("ecn", range(4))
def test_round_trip(host: Host, packet: bytes, ecn: int) -> None:
    packet = packet[:15] + bytes([packet[15] & 0x0F | ecn << 4]) + packet[16:]
    action, out = host.encode(packet)
    assert action == REDIRECT
    on_wire = Ether(out)[IPv6]
    assert (on_wire.src, on_wire.dst, on_wire.fl) == (A, B, KEY)
    assert (on_wire.tc, on_wire.hlim) == (wire.MARK << 2 | ecn, 64)
    expected = Ether(packet)[IPv6]
    expected.src, expected.dst, expected.fl, expected.tc = A, B, KEY, on_wire.tc
    for layer, name in ((TCP, "chksum"), (UDP, "chksum"), (ICMPv6EchoRequest, "cksum")):
        if layer in expected and getattr(expected[layer], name):
            delattr(expected[layer], name)
    if expected.nh in (33, 136):
        zero = bytes(expected.payload)[:6] + b"\0\0" + bytes(expected.payload)[8:]
        value = int(in6_chksum(expected.nh, expected, zero))
        expected.payload = Raw(zero[:6] + value.to_bytes(2, "big") + zero[8:])
    assert bytes(on_wire) == bytes(expected)
    action, back = host.ingress(out)
    assert action == REDIRECT
    label_gone = packet[:15] + bytes([packet[15] & 0xF0, 0, 0]) + packet[18:]
    assert back == label_gone


@pytest.mark.parametrize("packet", LEFT_ALONE.values(), ids=LEFT_ALONE.keys())
def test_left_alone(host: Host, packet: bytes) -> None:
    assert host.encode(packet) == (UNSPEC, packet)


def test_an_unknown_key_is_bounced_whole(host: Host) -> None:
    _, out = host.encode(ENCODED["tcp"])
    for key in (wire.key6(0x124), KEY ^ 1, KEY ^ 0x10, KEY ^ 0xF0000):
        bent = out[:14] + struct.pack("!I", wire.first_word(key)) + out[18:]
        action, back = host.ingress(bent)
        assert action == REDIRECT
        bounced = Ether(back)[IPv6]
        assert (bounced.src, bounced.dst, bounced.tc, bounced.fl) == (B, A, wire.BOUNCE << 2, key)
        assert back[54:] == out[54:]


@settings(max_examples=200, deadline=None)
@given(
    payload=st.binary(min_size=1, max_size=1400),
    protocol=st.sampled_from([6, 17, 58, 33, 136, 132, 50, 253, 89]),
    tc=st.integers(0, 255).filter(lambda tc: tc >> 2 & 3 != 3),
    hops=st.integers(16, 255),
    label=st.integers(0, 0xFFFFF),
)
def test_any_payload(
    host: Host, unentered_bench: Bench, payload: bytes, protocol: int, tc: int, hops: int, label: int
) -> None:
    """Encoded and given back, or left alone: never anything else."""
    packet = frame(payload, nh=protocol, tc=tc & 3, hlim=hops, fl=label)
    action, out = host.encode(packet)
    if action == UNSPEC:
        assert out == packet
        first = payload[0]
        assert (protocol == 58 and 133 <= first <= 137) or (
            protocol == 17 and (len(payload) < 4 or payload[2:4] == b"\x12\xb5")
        )
        return
    assert action == REDIRECT
    action, back = host.ingress(out)
    if protocol == 17 and len(payload) < 4:
        return
    assert action == REDIRECT
    expected = packet[:15] + bytes([packet[15] & 0xF0, 0, 0]) + packet[18:]
    at = {6: 16, 58: 2, 33: 6, 136: 6}.get(protocol)
    if at is not None and expected[54 + at : 56 + at] == b"\xff\xff":
        expected = expected[: 54 + at] + b"\0\0" + expected[56 + at :]
    assert back == expected
