# SPDX-License-Identifier: Apache-2.0
"""Underlay egress: what announces us, what solicits, and what is cleared from others' packets."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from kmod_ebpf import maps as m
from tests.unit.harness import (
    CONTROL,
    DECODED,
    ENCODED,
    HOST,
    MAGIC,
    MS,
    UNSPEC,
    VNI,
    Bench,
    Node,
    be16,
    be32,
    checksum,
    mac,
    now,
)
from tests.unit.packets import (
    B_MAC,
    CONTAINER_MAC,
    DST,
    ENCODABLE,
    SRC,
    frame,
    rewritten,
    tcp,
)
from xmasq_link import _wire as wire

pytestmark = pytest.mark.root

MARKED = wire.MARK << 2
# With addresses, or scapy would ask the network for them.
ETHER = Ether(src="02:00:00:00:00:fe", dst="02:00:00:00:00:ff")


def passes(node: Node, packet: bytes, **ctx: int) -> None:
    """The packet leaves as it is, and nothing is counted."""
    node.clear_counters()
    out = node.egress(packet, mark=0xCAFE, **ctx)
    assert (out.action, out.packet, out.mark) == (UNSPEC, packet, 0xCAFE)
    assert node.counters() == node.counters(HOST) == {}


# --- announce -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ecn", range(4))
@pytest.mark.parametrize("dscp", [0, 3, 7, 46])
def test_a_fallback_packet_announces_us(a: Node, b: Node, dscp: int, ecn: int) -> None:
    outer = a.vxlan(tcp(), b.local, tos=dscp << 2 | ecn)
    out = a.egress(outer, mark=0xCAFE)
    assert (out.action, out.mark) == (UNSPEC, 0xCAFE)
    assert out.packet == outer_with(outer, tos=MARKED | ecn)
    assert a.counters() == {"announced": 1}
    assert a.counters(HOST) == {}


def outer_with(outer: bytes, **ip: int) -> bytes:
    """A VXLAN packet with other fields in its outer IP header."""
    packet = Ether(outer[:34])
    for name, value in ip.items():
        setattr(packet[IP], name, value)
    del packet[IP].chksum
    return bytes(packet) + outer[34:]


@pytest.mark.parametrize(
    "inner",
    [ENCODABLE["icmp"], frame(TCP(), ttl=1), bytes(60), frame(UDP(), dmac="ff:ff:ff:ff:ff:ff")],
    ids=["ICMP", "TTL", "not IP", "broadcast"],
)
def test_any_fallback_packet_announces_us(a: Node, b: Node, inner: bytes) -> None:
    outer = a.vxlan(inner, b.local)
    assert a.egress(outer).packet == outer_with(outer, tos=MARKED)


def test_a_first_fragment_announces_us(a: Node, b: Node) -> None:
    outer = outer_with(a.vxlan(tcp(), b.local), flags=1)
    assert a.egress(outer).packet == outer_with(outer, tos=MARKED)


def test_what_is_not_our_tunnels_passes(a: Node, b: Node) -> None:
    inner = tcp()
    a.encode(inner)
    for other in (
        a.vxlan(inner, b.local, vni=VNI + 1),
        a.vxlan(inner, b.local, port=8472),
        a.vxlan(inner, b.local, flags=0),
        b.vxlan(inner, a.local),  # another host's
        outer_with(a.vxlan(inner, b.local), frag=1),
        bytes(ETHER / IP(src=a.local, dst=b.local) / UDP(dport=wire.PORT) / Raw(b"short")),
        bytes(ETHER / IP(src=a.local, dst=b.local) / TCP(dport=wire.PORT)),
    ):
        passes(a, other)
    passes(a, a.vxlan(inner, b.local), ingress_ifindex=a.link)  # a tenant's, on its way through
    assert a.items("solicits") == []


def test_a_foreign_packet_that_looks_like_ours_is_cleared(a: Node, b: Node) -> None:
    outer = a.vxlan(tcp(), b.local, tos=MARKED)
    out = a.egress(outer, ingress_ifindex=a.link)
    assert out.packet == outer_with(outer, tos=0)
    assert a.counters(HOST) == {"sanitised": 1}
    assert a.counters() == {}


def test_a_link_that_is_switched_off_announces_nothing(a: Node, b: Node) -> None:
    a.set_link(flags=0)
    a.encode(tcp())
    passes(a, a.vxlan(tcp(), b.local))
    assert a.items("solicits") == []


def test_the_port_is_the_vteps(a: Node, b: Node) -> None:
    a.set_link(port=be16(8472))
    a.dp.maps["vteps"].update(bytes(be32(a.local)), m.Vtep(port=be16(8472)).raw())
    passes(a, a.vxlan(tcp(), b.local))
    outer = a.vxlan(tcp(), b.local, port=8472)
    assert a.egress(outer).packet == outer_with(outer, tos=MARKED)


# --- solicit ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [0, 1])
def test_a_flow_that_encode_missed_is_solicited(a: Node, b: Node, variant: int) -> None:
    inner = rewritten(tcp(), tos=46 << 2, flags="" if variant else "DF")
    before = now()
    a.fallback(inner, b.local)
    after = now()
    ((flow, solicit),) = a.items("solicits")
    assert (
        flow.raw()
        == a.flow(
            sip=be32(SRC),
            dip=be32(DST),
            smac=mac(CONTAINER_MAC),
            dmac=mac(B_MAC),
            dscp=46,
            variant=variant,
            peer=be32(b.local),
        ).raw()
    )
    assert (bytes(solicit.local), solicit.oif, solicit.link) == (bytes(be32(a.local)), a.underlay, 1)
    assert before <= solicit.at <= after


def test_nobody_elses_packet_solicits(a: Node, b: Node) -> None:
    """A VXLAN packet that some process sends, without a container's packet before it."""
    a.egress(a.vxlan(tcp(), b.local))
    assert a.counters() == {"announced": 1}
    assert a.items("solicits") == []


def test_another_packet_of_the_flow_does_not_solicit(a: Node, b: Node) -> None:
    """Not even one that looks the same: the packet that encode let go bears a stamp."""
    a.encode(tcp())
    a.stamp(7)
    a.egress(a.vxlan(tcp(), b.local))
    assert a.items("solicits") == []


@pytest.mark.parametrize(
    "other",
    [
        frame(TCP(), src="10.0.0.99"),
        frame(TCP(), dst="10.0.0.99"),
        frame(TCP(), smac="02:aa:00:00:00:99"),
        frame(TCP(), dmac="02:aa:00:00:00:99"),
        frame(TCP(), tos=4),
        frame(TCP(), flags=""),
    ],
    ids=["source", "destination", "source MAC", "destination MAC", "DSCP", "DF"],
)
def test_only_the_very_flow_is_solicited(a: Node, b: Node, other: bytes) -> None:
    a.encode(frame(TCP()))
    a.egress(a.vxlan(other, b.local))
    assert a.items("solicits") == []


@pytest.mark.parametrize("last", [frame(TCP(), ttl=1), bytes(60)], ids=["TTL", "not IP"])
def test_only_what_was_missed_last_is_solicited(a: Node, b: Node, last: bytes) -> None:
    a.encode(tcp())
    a.encode(last)
    a.egress(a.vxlan(tcp(), b.local))
    assert a.items("solicits") == []


@pytest.mark.parametrize(("wait", "solicited"), [(70 * MS, True), (120 * MS, False)])
def test_it_must_have_been_just_now(a: Node, b: Node, wait: int, solicited: bool) -> None:
    a.encode(tcp())
    a.pass_time(wait)
    a.egress(a.vxlan(tcp(), b.local))
    assert bool(a.items("solicits")) == solicited


@pytest.mark.parametrize(
    "inner",
    [frame(TCP(), ttl=15), frame(TCP(), flags="MF"), frame(TCP(), dmac="ff:ff:ff:ff:ff:ff")],
    ids=["TTL", "fragment", "broadcast"],
)
def test_what_can_never_be_encoded_is_not_solicited(a: Node, b: Node, inner: bytes) -> None:
    a.fallback(inner, b.local)
    assert a.items("solicits") == []


# --- sanitise -----------------------------------------------------------------------------------


def plain(dscp: int, ecn: int = 0) -> bytes:
    """Some packet of this host."""
    return frame(TCP() / Raw(b"hello"), src="192.0.2.1", dst="192.0.2.9", tos=dscp << 2 | ecn, flags="")


@pytest.mark.parametrize("ecn", range(4))
@pytest.mark.parametrize("xbits", range(4))
def test_only_mark_and_bounce_are_cleared(a: Node, xbits: int, ecn: int) -> None:
    a.conf(xbits=xbits)
    ours = {base + 8 * x for base in (wire.MARK, wire.BOUNCE) for x in range(1 << xbits)}
    for dscp in range(64):
        packet = plain(dscp, ecn)
        if dscp not in ours:
            passes(a, packet)
            continue
        a.clear_counters()
        out = a.egress(packet, mark=0xCAFE)
        assert (out.action, out.packet, out.mark) == (UNSPEC, plain(0, ecn), 0xCAFE), dscp
        assert a.counters(HOST) == {"sanitised": 1}


@pytest.mark.parametrize(("mark", "bounce"), [(1, 5), (11, 15), (59, 63)])
def test_mark_and_bounce_are_those_configured(a: Node, mark: int, bounce: int) -> None:
    a.conf(mark=mark, bounce=bounce)
    for dscp in range(64):
        expected = plain(0) if dscp in (mark, bounce) else plain(dscp)
        assert a.egress(plain(dscp)).packet == expected


@pytest.mark.parametrize("kind", [ENCODED, CONTROL, DECODED])
def test_what_our_programs_made_is_left_alone(a: Node, kind: int) -> None:
    for dscp in range(64):
        out = a.egress(plain(dscp), mark=MAGIC | kind, cb=(0xCAFE,))
        assert (out.action, out.packet, out.mark) == (UNSPEC, plain(dscp), 0xCAFE)
    assert a.counters(HOST) == {}


@pytest.mark.parametrize("mark", [MAGIC ^ 0x10 | ENCODED, MAGIC ^ 0x80000000 | ENCODED, ENCODED])
def test_another_mark_does_not_help(a: Node, mark: int) -> None:
    out = a.egress(plain(wire.MARK), mark=mark)
    assert (out.packet, out.mark) == (plain(0), mark)


def test_the_mark_alone_does_not_help(a: Node) -> None:
    """A socket can set it; not so skb->tc_index, which bears our stamp besides."""
    a.conf(stamp=7)
    for kind in (ENCODED, CONTROL, DECODED):
        assert a.egress(plain(wire.MARK), priority=MAGIC | kind).packet == plain(0)
        assert a.egress(plain(wire.MARK), mark=MAGIC | kind).packet == plain(0)
        assert a.egress(plain(wire.BOUNCE), mark=MAGIC | kind).packet == plain(0)


@pytest.mark.parametrize(
    ("dscp", "data", "kind", "kept"),
    [
        (wire.BOUNCE, b"", CONTROL, True),
        (wire.BOUNCE, b"x", CONTROL, False),
        (wire.BOUNCE, b"", ENCODED, False),
        (wire.MARK, b"", CONTROL, False),
    ],
)
def test_but_a_key_may_be_taken_back(a: Node, dscp: int, data: bytes, kind: int, kept: bool) -> None:
    """User space has a socket only; what it sends has no payload."""
    a.conf(stamp=7)
    packet = frame(data, proto=59, tos=dscp << 2)
    out = a.egress(packet, priority=MAGIC | kind)
    assert (out.packet == packet) == kept
    assert out.priority == (0 if kept else MAGIC | kind)


@pytest.mark.parametrize(
    "packet",
    [
        frame(UDP() / Raw(b"x"), tos=MARKED),
        frame(UDP(dport=wire.PORT) / Raw(b"x"), tos=MARKED),
        frame(ICMP(), tos=MARKED),
        frame(tos=MARKED, proto=253),
        frame(b"1234567", tos=MARKED, proto=253),
        frame(TCP(), tos=MARKED, options=[IPOption_NOP()] * 8),
        frame(b"fragment", tos=MARKED, proto=17, flags="", frag=100),
        frame(UDP() / Raw(b"x"), tos=MARKED, flags="MF"),
        frame(TCP(), tos=MARKED, src="192.0.2.1", dst="192.0.2.2"),
        frame(b"\0\1", tos=MARKED, proto=17),
    ],
    ids=range(10),
)
def test_every_kind_of_packet_is_cleared(a: Node, packet: bytes) -> None:
    out = a.egress(packet)
    assert out.packet[15] == 0
    assert out.packet[:15] + out.packet[16:24] + out.packet[26:] == packet[:15] + packet[16:24] + packet[26:]
    ihl = (packet[14] & 15) * 4
    assert checksum(out.packet[14 : 14 + ihl]) == 0
    assert a.counters(HOST) == {"sanitised": 1}


# --- router -------------------------------------------------------------------------------------


def transit(src: str = "203.0.113.1") -> bytes:
    """An encoded packet of other hosts."""
    return frame(TCP(), src=src, dst="203.0.113.2", tos=MARKED)


def test_between_two_underlays_packets_of_others_pass(net: Bench, a: Node) -> None:
    a.put("underlays", net.other_underlay, m.Underlay(mtu=1500))
    passes(a, transit(), ingress_ifindex=net.other_underlay)
    passes(a, outer_with(transit(), tos=wire.BOUNCE << 2), ingress_ifindex=net.other_underlay)


def test_what_comes_from_no_underlay_is_cleared(net: Bench, a: Node) -> None:
    assert a.egress(transit(), ingress_ifindex=net.other_underlay).packet[15] == 0
    assert a.egress(transit(), ingress_ifindex=a.link).packet[15] == 0


def test_what_claims_to_be_ours_is_cleared(net: Bench, a: Node) -> None:
    a.put("underlays", net.other_underlay, m.Underlay(mtu=1500))
    assert a.egress(transit(a.local), ingress_ifindex=net.other_underlay).packet[15] == 0
