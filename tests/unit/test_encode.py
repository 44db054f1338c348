# SPDX-License-Identifier: Apache-2.0
"""Link egress: packets of granted flows, byte for byte as scapy says that they should leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from kmod_ebpf import maps as m
from tests.unit.harness import (
    CB_MARK,
    ENCODED,
    LEASE_MS,
    MAGIC,
    MS,
    REDIRECT,
    SEC,
    UNSPEC,
    Bench,
    Node,
    be32,
    negotiate,
    now,
)
from tests.unit.packets import ENCODABLE, frame, on_wire, rewritten, tcp, udp, with_checksum_zero

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("checksums")]


@pytest.mark.parametrize("kind", ENCODABLE)
def test_every_kind_byte_for_byte(a: Node, b: Node, kind: str) -> None:
    inner = ENCODABLE[kind]
    key = negotiate(a, b, inner).key
    out = a.encode(inner)
    assert (out.action, out.kind) == (REDIRECT, ENCODED)
    assert out.packet[:14] == inner[:14]  # the neighbour's address comes with the redirect
    assert out.packet[14:] == on_wire(inner, a.local, b.local, key)
    assert a.counters()["encoded"] == 1
    assert a.counters()["encoded_bytes"] == len(inner)


@pytest.mark.parametrize("ecn", range(4))
@pytest.mark.parametrize("dscp", [0, 1, 2, 4, 10, 46, 62])
def test_ecn_stays_and_dscp_gives_way(a: Node, b: Node, dscp: int, ecn: int) -> None:
    inner = rewritten(tcp(b"x"), tos=dscp << 2 | ecn)
    key = negotiate(a, b, inner).key
    out = a.encode(inner)
    assert out.packet[14:] == on_wire(inner, a.local, b.local, key)
    assert out.packet[15] == 3 << 2 | ecn


@pytest.mark.parametrize("ecn", range(4))
def test_one_grant_serves_all_ecn_values(a: Node, b: Node, ecn: int) -> None:
    key = negotiate(a, b, rewritten(tcp(), tos=46 << 2)).key
    inner = rewritten(tcp(), tos=46 << 2 | ecn)
    assert a.encode(inner).packet[14:] == on_wire(inner, a.local, b.local, key)


@pytest.mark.parametrize("ttl", [16, 17, 64, 255])
def test_ttl_is_the_inner_one(a: Node, b: Node, ttl: int) -> None:
    inner = rewritten(tcp(), ttl=ttl)
    key = negotiate(a, b, inner).key
    out = a.encode(inner)
    assert out.packet[14:] == on_wire(inner, a.local, b.local, key)
    assert Ether(out.packet)[IP].ttl == ttl


@pytest.mark.parametrize("size", [21, 576, 1280])
def test_df_clear_becomes_df_up_to_1280_bytes(a: Node, b: Node, size: int) -> None:
    inner = udp(bytes(size - 28)) if size > 28 else frame(bytes(1), proto=253)
    inner = rewritten(inner, flags="", id=0x1234)
    assert Ether(inner)[IP].len == size
    key = negotiate(a, b, inner).key
    assert a.encode(inner).packet[14:] == on_wire(inner, a.local, b.local, key)


def test_df_clear_is_a_flow_of_its_own(a: Node, b: Node) -> None:
    inner = udp(b"x")
    negotiate(a, b, inner)
    assert a.encode(rewritten(inner, flags="")).action == UNSPEC
    assert a.counters()["fb_no_grant"] == 2
    key = negotiate(a, b, rewritten(inner, flags="")).key
    assert key == 2
    assert a.encode(inner).packet[14:] == on_wire(inner, a.local, b.local, 1)


@pytest.mark.parametrize(
    "other",
    [
        tcp(dport=81),
        tcp(b"longer"),
        rewritten(tcp(), id=99),
        udp(),
        frame(b"x", proto=253),
    ],
    ids=["port", "length", "Identification", "UDP", "other"],
)
def test_ports_and_protocols_share_a_flow(a: Node, b: Node, other: bytes) -> None:
    key = negotiate(a, b, tcp()).key
    assert a.encode(other).packet[14:] == on_wire(other, a.local, b.local, key)


@pytest.mark.parametrize(
    "other",
    [
        frame(TCP(), src="10.0.0.9"),
        frame(TCP(), dst="10.0.1.9"),
        frame(TCP(), smac="02:aa:00:00:00:99"),
        frame(TCP(), dmac="02:aa:00:00:00:99"),
        frame(TCP(), tos=4),
        frame(TCP(), flags=""),
    ],
    ids=["source", "destination", "source MAC", "destination MAC", "DSCP", "DF"],
)
def test_another_flow_needs_a_grant_of_its_own(a: Node, b: Node, other: bytes) -> None:
    negotiate(a, b, frame(TCP()))
    out = a.encode(other)
    assert (out.action, out.packet) == (UNSPEC, other)
    assert a.counters()["fb_no_grant"] == 2


def test_another_link_needs_a_grant_of_its_own(a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    a.put("link_ids", b.link, 1)
    assert a.encode(tcp(), ifindex=b.link).action == UNSPEC


def test_the_mark_of_the_packet_is_kept_for_later(a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    out = a.encode(tcp(), mark=0xCAFE)
    assert out.kind == ENCODED
    assert out.cb[CB_MARK] == 0xCAFE
    # In tests the kernel finds the way of each packet, and not by our mark: ip rules might match that.
    assert (out.mark, out.priority) == (0, MAGIC | ENCODED)
    sent = a.egress(out.packet, **out.left)
    assert (sent.mark, sent.priority) == (0xCAFE, 0)


@pytest.mark.parametrize("priority", [0, 7])
def test_queueing_stays(a: Node, b: Node, priority: int) -> None:
    negotiate(a, b, tcp())
    out = a.encode(tcp(), priority=priority)
    assert out.kind == ENCODED
    assert a.egress(out.packet, **out.left).priority == priority


def test_wrong_checksums_stay_wrong_by_as_much(a: Node, b: Node) -> None:
    key = negotiate(a, b, tcp()).key
    right = tcp(b"hello")
    head = Ether(right)[IP]
    wrong = right[:24] + ((head.chksum + 0x100) % 0xFFFF).to_bytes(2, "big") + right[26:]
    wrong = wrong[:50] + ((head[TCP].chksum + 0x200) % 0xFFFF).to_bytes(2, "big") + wrong[52:]
    out = Ether(a.encode(wrong).packet)[IP]
    good = IP(on_wire(right, a.local, b.local, key))
    assert out.chksum == (good.chksum + 0x100) % 0xFFFF
    assert out[TCP].chksum == (good[TCP].chksum + 0x200) % 0xFFFF


def test_a_udp_checksum_never_becomes_none(a: Node, b: Node) -> None:
    """A checksum that comes out as 0 would say that there is none: it is sent as ffff (RFC 768)."""
    key = negotiate(a, b, udp()).key
    plain = Ether(udp(b"\0\0"))

    def wire_udp(data: bytes) -> bytes:
        return on_wire(udp(data), a.local, b.local, key)

    value = IP(wire_udp(bytes(plain[UDP].payload)))[UDP].chksum
    inner = udp(value.to_bytes(2, "big"))
    out = a.encode(inner).packet
    assert IP(out[14:])[UDP].chksum == 0xFFFF
    assert out[14:] == wire_udp(value.to_bytes(2, "big"))


def test_a_checksum_of_zero(a: Node, b: Node) -> None:
    inner = with_checksum_zero(tcp)
    assert Ether(inner)[TCP].chksum == 0
    key = negotiate(a, b, inner).key
    assert a.encode(inner).packet[14:] == on_wire(inner, a.local, b.local, key)


# --- segments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("segs", [2, 45, 63])
def test_segments_are_counted_by_gso_segs(a: Node, b: Node, segs: int) -> None:
    inner = tcp(bytes(1000))
    key = negotiate(a, b, inner).key
    out = a.encode(inner, gso_size=10, gso_segs=segs)
    assert (out.action, out.packet[14:]) == (REDIRECT, on_wire(inner, a.local, b.local, key))


def test_segments_are_computed_where_the_sender_did_not_say(a: Node, b: Node) -> None:
    inner = tcp(bytes(1000))
    negotiate(a, b, inner)
    assert a.encode(inner, gso_size=100, gso_segs=0).action == REDIRECT
    assert a.encode(inner, gso_size=10, gso_segs=0).action == UNSPEC
    assert a.counters()["fb_segments"] == 1


# --- lease --------------------------------------------------------------------------------------


def test_the_lease_runs_from_the_first_accept(a: Node, b: Node) -> None:
    inner = tcp()
    outer = a.fallback(inner, b.local)
    offer = b.offer(b.arriving(outer))
    assert offer is not None
    before = now()
    accept = a.ingress(a.arriving(offer))
    after = now()
    confirm = b.ingress(b.arriving(accept.packet))
    a.ingress(a.arriving(confirm.packet))
    _, entry = a.only_flow()
    assert before + LEASE_MS * MS <= entry.lease_end <= after + LEASE_MS * MS


@pytest.mark.parametrize("left", [200 * MS, -20 * MS])
def test_nothing_is_encoded_when_the_lease_has_ended(a: Node, b: Node, left: int) -> None:
    inner = tcp()
    negotiate(a, b, inner)
    flow, entry = a.only_flow()
    a.pass_time(entry.lease_end - now() - left)
    a.change("flows", flow, asked=now())  # no renewal at this moment
    out = a.encode(inner)
    if left > 0:
        assert out.action == REDIRECT
    else:
        assert (out.action, out.packet) == (UNSPEC, inner)
        assert a.counters()["fb_expired"] == 1


def test_one_packet_asks_for_renewal(net: Bench, a: Node, b: Node) -> None:
    inner = tcp()
    negotiate(a, b, inner)
    net.pass_time(900 * MS)
    assert a.encode(inner).action == REDIRECT
    net.pass_time(120 * MS)  # the first renewal comes after a second
    outer = a.fallback(inner, b.local)
    assert a.counters()["fb_renewal"] == 1
    assert b.offer(b.arriving(outer)) is not None
    for _ in range(3):
        assert a.encode(inner).action == REDIRECT
    a.pass_time(SEC + 20 * MS)
    assert a.encode(inner).action == UNSPEC
    assert a.counters()["fb_renewal"] == 2


def test_after_the_first_renewal_half_the_lease_passes(net: Bench, a: Node, b: Node) -> None:
    inner = tcp()
    negotiate(a, b, inner)
    net.pass_time(1100 * MS)
    negotiate(a, b, inner)
    _, entry = a.only_flow()
    assert entry.renew_ms == LEASE_MS // 2
    a.pass_time(LEASE_MS * MS // 2 - 200 * MS)
    assert a.encode(inner).action == REDIRECT
    a.pass_time(220 * MS)
    assert a.encode(inner).action == UNSPEC


def test_a_short_lease_is_renewed_at_half(a: Node, b: Node) -> None:
    b.set_link(lease_ms=1000)
    negotiate(a, b, tcp())
    _, entry = a.only_flow()
    assert entry.renew_ms == 500


def test_renewal_keeps_the_key_and_the_flow(net: Bench, a: Node, b: Node) -> None:
    inner = tcp()
    first = negotiate(a, b, inner)
    assert a.encode(inner).action == REDIRECT
    _, before = a.only_flow()
    net.pass_time(5 * SEC)
    assert negotiate(a, b, inner).key == first.key
    _, entry = a.only_flow()
    assert entry.lease_end > before.lease_end - 5 * SEC + 4 * SEC
    assert a.encode(inner).packet[14:] == on_wire(inner, a.local, b.local, first.key)


# --- vouching -----------------------------------------------------------------------------------


def test_the_fdb_chooses_another_peer(a: Node, b: Node) -> None:
    """When the packet that asks for renewal leaves for another VTEP, the flow follows it at once."""
    inner = tcp()
    negotiate(a, b, inner)
    a.pass_time(1100 * MS)
    a.fallback(inner, "192.0.2.77")
    for n in (1, 2):
        assert a.encode(inner).action == UNSPEC
        assert a.counters()["fb_unvouched"] == n
    a.fallback(inner, b.local)  # and back again
    assert a.encode(inner).action == REDIRECT


def test_another_generation_of_the_link_is_vouched_for_anew(a: Node, b: Node) -> None:
    inner = tcp()
    negotiate(a, b, inner)
    a.set_link(tx_gen=2)
    a.fallback(inner, b.local)
    assert a.counters()["fb_unvouched"] == 1
    assert a.encode(inner).action == REDIRECT


def test_a_confirm_vouches_for_the_time_of_its_solicit_only(a: Node, b: Node) -> None:
    inner = tcp()
    outer = b.arriving(a.fallback(inner, b.local))
    offer = b.offer(outer)
    assert offer is not None
    a.set_link(tx_gen=2)  # a MAC moved meanwhile
    accept = a.ingress(a.arriving(offer))
    confirm = b.ingress(b.arriving(accept.packet))
    a.ingress(a.arriving(confirm.packet))
    assert a.encode(inner).action == UNSPEC
    assert a.counters()["fb_unvouched"] == 1


# --- the entry ----------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["lease_end", "oif", "link", "wire", "renew_ms", "mtu", "seal"])
def test_a_torn_entry_is_not_used(a: Node, b: Node, field: str) -> None:
    inner = tcp()
    negotiate(a, b, inner)
    flow, entry = a.only_flow()
    a.change("flows", flow, **{field: getattr(entry, field) + 1})
    out = a.encode(inner)
    assert (out.action, out.packet) == (UNSPEC, inner)
    assert a.counters()["fb_torn"] == 1


@pytest.mark.parametrize("field", ["local", "peer"])
def test_an_entry_is_not_used_with_another_pairs_addresses(a: Node, b: Node, field: str) -> None:
    """They are read from the pair, whose place may be given to another one meanwhile."""
    inner = tcp()
    negotiate(a, b, inner)
    index, _ = a.pair(b.local)
    a.change("pairs", index, **{field: be32("192.0.2.77")})
    out = a.encode(inner)
    assert (out.action, out.packet) == (UNSPEC, inner)
    assert a.counters()["fb_torn"] == 1


def test_an_entry_under_another_flow_is_not_used(a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    flow, entry = a.only_flow()
    flow.dip = be32("10.0.1.99")
    a.put("flows", flow, entry)
    assert a.encode(frame(TCP(), dst="10.0.1.99")).action == UNSPEC
    assert a.counters()["fb_torn"] == 1


def test_the_number_sent_counts_to_sixteen(a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    for n in range(1, 20):
        a.encode(tcp())
        assert a.only_flow()[1].sent == min(n, 16)


@pytest.fixture
def forwarding(net: Bench) -> Iterator[None]:
    """The kernel tells the next hop only on a device that forwards."""
    Path("/proc/sys/net/ipv4/conf/ul0/forwarding").write_text("1")
    yield
    Path("/proc/sys/net/ipv4/conf/ul0/forwarding").write_text("0")


def test_without_forwarding_each_packet_is_routed(a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    _, entry = a.only_flow()
    assert (entry.route, entry.mtu, entry.oif) == (0, 1500, a.underlay)


@pytest.mark.usefixtures("forwarding")
def test_the_next_hop_is_kept(a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    _, entry = a.only_flow()
    assert (entry.route, bytes(entry.nexthop)) == (1, bytes(be32("192.0.2.2")))
    assert a.encode(tcp()).action == REDIRECT


@pytest.mark.usefixtures("forwarding")
def test_the_next_hop_may_be_a_gateway_and_a_route_have_a_locked_mtu(a: Node, b: Node) -> None:
    b.local = "198.51.100.9"
    b.reset()
    with IPRoute() as ipr:
        lock = 1 << 2  # RTAX_MTU: the kernel tells programs of no other route MTU
        ipr.route("add", dst="198.51.100.0/24", gateway="192.0.2.2", metrics={"lock": lock, "mtu": 1300})
        try:
            inner = tcp(bytes(1300 - 40))
            key = negotiate(a, b, inner).key
            _, entry = a.only_flow()
            assert (entry.route, bytes(entry.nexthop)) == (1, bytes(be32("192.0.2.2")))
            assert entry.mtu == 1300
            assert a.encode(inner).packet[14:] == on_wire(inner, a.local, "198.51.100.9", key)
        finally:
            ipr.route("del", dst="198.51.100.0/24")
            b.local = "192.0.2.2"


def test_an_underlay_without_hooks_is_never_used(a: Node, b: Node) -> None:
    """Nothing there would take our marks off again, and clear those of others."""
    a.dp.maps["underlays"].delete(a.underlay.to_bytes(4, "little"))
    negotiate(a, b, tcp())
    assert a.encode(tcp()).action == UNSPEC
    assert a.counters()["fb_mtu"] == 1


def test_the_flow_is_known_by_its_link(a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    flow, entry = a.only_flow()
    assert flow.ifindex == a.link
    assert (entry.link, entry.key, bytes(entry.peer)) == (1, 1, bytes(be32(b.local)))
    assert entry.pair == a.pair(b.local)[0]
    assert isinstance(entry, m.Entry)
