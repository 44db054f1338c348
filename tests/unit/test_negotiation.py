# SPDX-License-Identifier: Apache-2.0
"""The key negotiation: OFFER, ACCEPT, CONFIRM, and who takes none of them."""

from __future__ import annotations

import dataclasses

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from kmod_ebpf import maps as m
from tests.unit.harness import (
    CONTROL,
    DECODED,
    GUARD_MS,
    HOST,
    LEASE_MS,
    LINK,
    MAGIC,
    MS,
    REDIRECT,
    SEC,
    SHOT,
    UNSPEC,
    VNI,
    Bench,
    Node,
    be32,
    checksum,
    mac,
    negotiate,
    now,
    raw_mac,
)
from tests.unit.packets import B_MAC, CONTAINER_MAC, ENCODABLE, frame, rewritten, tcp, udp
from xmasq_link import _wire as wire
from xmasq_link.dissect import XmasqControl

pytestmark = pytest.mark.root


def control(packet: bytes) -> wire.Control:
    """The payload of a control packet in a frame."""
    return wire.Control.unpack(packet[42:])


def assert_well_formed(packet: bytes, src: str, dst: str, key: int = 1) -> wire.Control:
    """Checks the headers of a control packet; returns its payload."""
    ip = Ether(b"\0" * 12 + b"\x08\0" + packet[14:])[IP]
    assert (ip.version, ip.ihl, ip.src, ip.dst) == (4, 5, src, dst)
    assert (ip.tos, ip.id, str(ip.flags), ip.frag) == (wire.MARK << 2, key << 6, "DF", 0)
    assert (ip.ttl, ip.proto, ip.len) == (64, 17, len(packet) - 14)
    assert checksum(packet[14:34]) == 0
    udp_head = ip[UDP]
    assert (udp_head.sport, udp_head.dport, udp_head.chksum) == (wire.PORT, wire.PORT, 0)
    assert udp_head.len == len(packet) - 34
    assert isinstance(udp_head.payload, XmasqControl)
    seen = control(packet)
    assert (seen.vxlan_flags, seen.vxlan_rest, seen.reserved) == (0, bytes(7), 0)
    assert udp_head[XmasqControl].key == seen.key == key
    return seen


def changed(packet: bytes, **fields: object) -> bytes:
    """A control packet with other fields in its payload."""
    payload = dataclasses.replace(control(packet), **fields)  # type: ignore[arg-type]
    return packet[:42] + payload.pack() + packet[42 + wire.CTL_LEN :]


def offered(a: Node, b: Node, inner: bytes) -> bytes:
    """The OFFER for a flow of a, as it arrives there."""
    made = b.offer(b.arriving(a.fallback(inner, b.local)))
    assert made is not None
    return a.arriving(made)


def accepted(a: Node, b: Node, inner: bytes) -> bytes:
    """The ACCEPT for a flow of a, as it arrives at b."""
    out = a.ingress(offered(a, b, inner))
    assert out.action == REDIRECT
    return b.arriving(out.packet)


def confirmed(a: Node, b: Node, inner: bytes) -> bytes:
    """The CONFIRM for a flow of a, as it arrives there."""
    out = b.ingress(accepted(a, b, inner))
    assert out.action == REDIRECT
    return a.arriving(out.packet)


# --- OFFER --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ENCODABLE)
def test_an_offer_is_made_of_every_kind_of_packet(a: Node, b: Node, kind: str) -> None:
    inner = rewritten(ENCODABLE[kind], tos=46 << 2)
    seen = assert_well_formed(offered(a, b, inner), b.local, a.local)
    ip = Ether(inner)[IP]
    assert dataclasses.replace(seen, nonce_b=0) == wire.Control(
        type=wire.OFFER,
        vni=VNI,
        smac=CONTAINER_MAC,
        dmac=B_MAC,
        sip=ip.src,
        dip=ip.dst,
        dscp=46,
        key=1,
        lease_ms=LEASE_MS,
    )
    assert seen.nonce_b


@pytest.mark.parametrize("size", [*range(64), 99, 101, 300, 1001, 1400])
def test_an_offer_is_made_of_every_length_of_packet(a: Node, b: Node, size: int) -> None:
    offer = offered(a, b, udp(bytes(size)))
    assert_well_formed(offer, b.local, a.local)
    # A checksum that a device is still to write into the old packet lies in what follows.
    assert 14 + 28 + wire.CTL_LEN <= len(offer) <= 112 + 102


def test_an_offer_for_a_packet_with_df_clear(a: Node, b: Node) -> None:
    seen = control(offered(a, b, rewritten(udp(), flags="")))
    assert seen.variant == wire.VAR_NODF


def test_the_clones_own_mark_stays(a: Node, b: Node) -> None:
    outer = b.arriving(a.fallback(tcp(), b.local))
    b.tell(a.local)
    assert b.ingress(outer, mark=0xCAFE).mark == 0xCAFE
    assert b.counters()["offer_tx"] == 1


def test_an_offer_reserves_its_key_for_two_seconds(a: Node, b: Node) -> None:
    before = now()
    offered(a, b, rewritten(tcp(), tos=46 << 2))
    after = now()
    _, _, block, slot = b.slot(1)
    for until in (slot.until, block.busy_until):
        assert before + 2 * SEC <= until <= after + 2 * SEC
    assert (slot.valid, slot.used) == (0, 0)
    assert before <= slot.offered <= after
    assert (bytes(slot.local), bytes(slot.peer)) == (bytes(be32(b.local)), bytes(be32(a.local)))
    assert (bytes(slot.smac), bytes(slot.dmac)) == (raw_mac(CONTAINER_MAC), raw_mac(B_MAC))
    assert (bytes(slot.sip), bytes(slot.dip)) == (bytes([10, 0, 0, 1]), bytes([10, 0, 1, 1]))
    assert (slot.dscp, slot.variant, slot.ifindex, slot.link) == (46, 0, b.link, LINK)


@pytest.mark.parametrize(
    "inner",
    [
        frame(TCP(), ttl=15),
        frame(TCP(), flags="MF"),
        frame(TCP(), dmac="ff:ff:ff:ff:ff:ff"),
        bytes(60),
        rewritten(udp(bytes(1300)), flags=""),
    ],
    ids=["TTL", "fragment", "broadcast", "not IP", "DF clear"],
)
def test_no_offer_for_what_is_never_encoded(a: Node, b: Node, inner: bytes) -> None:
    outer = b.announced(inner, a.local)
    out = b.ingress(outer)
    assert (out.action, out.packet, out.mark) == (UNSPEC, outer, 0)
    assert "offer_tx" not in b.counters()


def test_no_offer_to_a_peer_that_does_not_announce(a: Node, b: Node) -> None:
    packet = b.arriving(a.vxlan(tcp(), b.local))
    assert b.offer(packet) is None
    assert b.counters() == b.counters(HOST) == {}


def test_no_offer_for_another_vni_port_or_address(a: Node, b: Node) -> None:
    for outer in (
        b.announced(tcp(), a.local, vni=VNI + 1),
        b.announced(tcp(), a.local, port=8472),
        b.arriving(bytes(14) + a.vxlan(tcp(), "192.0.2.3", tos=wire.MARK << 2)[14:]),
    ):
        out = b.ingress(outer)
        assert out.packet == outer
        assert out.action == UNSPEC or out.kind == CONTROL
    assert b.counters() == {}


def test_no_offer_where_the_fast_path_is_off(a: Node, b: Node) -> None:
    b.set_link(flags=0)
    assert b.offer(b.announced(tcp(), a.local)) is None
    assert b.counters() == {}


# --- ownership ----------------------------------------------------------------------------------

STRANGER = "02:bb:00:00:00:01"


def test_a_flooded_frame_is_not_answered_by_others(a: Node, b: Node) -> None:
    assert b.offer(b.announced(frame(TCP(), dmac=STRANGER), a.local)) is None
    assert b.counters() == {"not_owner": 1}


def test_the_links_own_address_is_owned(a: Node, b: Node) -> None:
    b.set_link(mac=mac(STRANGER))
    assert b.offer(b.announced(frame(TCP(), dmac=STRANGER), a.local)) is not None


@pytest.mark.parametrize(("wait", "owned"), [(0, True), (299 * SEC, True), (301 * SEC, False)])
def test_a_source_at_the_links_egress_is_owned_for_five_minutes(
    a: Node, b: Node, wait: int, owned: bool
) -> None:
    b.encode(frame(TCP(), smac=STRANGER))
    b.pass_time(wait)
    assert (b.offer(b.announced(frame(TCP(), dmac=STRANGER), a.local)) is not None) == owned


def test_a_source_is_noted_again_once_a_second(b: Node) -> None:
    def at() -> int:
        ((_, seen),) = b.items("macs")
        return int(seen.at)

    b.encode(frame(TCP(), smac=STRANGER))
    first = at()
    b.encode(frame(TCP(), smac=STRANGER))
    assert at() == first
    b.pass_time(1020 * MS)
    b.encode(frame(TCP(), smac=STRANGER))
    assert at() >= first


def test_a_mac_that_came_out_of_the_tunnel_is_no_more_owned(a: Node, b: Node) -> None:
    b.encode(frame(TCP(), smac=STRANGER))
    b.arrive(frame(TCP(), smac=STRANGER))
    assert b.offer(b.announced(frame(TCP(), dmac=STRANGER), a.local)) is None


def test_a_decoded_source_does_not_end_ownership(a: Node, b: Node) -> None:
    """Its flow was granted when it was not ours; if it has come here since, that counts."""
    b.encode(frame(TCP(), smac=STRANGER))
    b.arrive(frame(TCP(), smac=STRANGER), mark=MAGIC | DECODED)
    assert b.offer(b.announced(frame(TCP(), dmac=STRANGER), a.local)) is not None


def test_an_announced_source_does_not_end_ownership(a: Node, b: Node) -> None:
    """Anybody on the underlay can claim one; what vxlan took in counts."""
    b.encode(frame(TCP(), smac=STRANGER))
    b.ingress(b.announced(frame(TCP(), smac=STRANGER), a.local))
    assert b.offer(b.announced(frame(TCP(), dmac=STRANGER), a.local)) is not None


def test_a_mac_seen_at_a_peer_is_not_owned(a: Node, b: Node) -> None:
    b.ingress(b.announced(frame(TCP(), smac=STRANGER), a.local))
    assert b.offer(b.announced(frame(TCP(), dmac=STRANGER), a.local)) is None


# --- MACs that move -----------------------------------------------------------------------------


def moves(node: Node) -> tuple[int, int]:
    """How often a MAC was seen to move, and the link's generation."""
    return node.counters().get("moved", 0), node.get("links", LINK).tx_gen


def test_a_mac_that_moves_between_peers_makes_all_flows_vouch_anew(a: Node) -> None:
    """When the frame has come through the driver, whose FDB then knows the new place."""
    packet = frame(TCP(), smac=STRANGER)
    for peer, expected in (("192.0.2.2", (0, 1)), ("192.0.2.3", (1, 2)), ("192.0.2.3", (1, 2))):
        before = moves(a)
        a.ingress(a.announced(packet, peer))
        assert moves(a) == before
        for _ in range(2):
            out = a.arrive(packet)
            assert (out.action, out.packet) == (UNSPEC, packet)
            assert moves(a) == expected


def test_a_mac_that_was_ours_and_is_now_behind_a_peer_has_moved(a: Node) -> None:
    a.encode(frame(TCP(), smac=STRANGER))
    a.ingress(a.announced(frame(TCP(), smac=STRANGER), "192.0.2.2"))
    assert moves(a) == (0, 1)
    a.arrive(frame(TCP(), smac=STRANGER))
    assert moves(a) == (1, 2)


def test_without_learning_macs_do_not_move_between_peers(a: Node) -> None:
    a.set_link(flags=m.LINK_UP)
    for peer in ("192.0.2.2", "192.0.2.3"):
        a.ingress(a.announced(frame(TCP(), smac=STRANGER), peer))
        a.arrive(frame(TCP(), smac=STRANGER))
    assert moves(a) == (0, 1)


def test_a_group_address_does_not_move(a: Node) -> None:
    for peer in ("192.0.2.2", "192.0.2.3"):
        a.ingress(a.announced(frame(TCP(), smac="03:00:00:00:00:01"), peer))
        a.arrive(frame(TCP(), smac="03:00:00:00:00:01"))
    assert moves(a) == (0, 1)
    assert a.items("macs") == []


# --- whom our driver sends to -------------------------------------------------------------------


ANY = frame(UDP(), ttl=1)  # something that the driver sends


def test_no_key_for_a_host_that_our_own_driver_does_not_send_to(a: Node, b: Node) -> None:
    """Anybody may send VXLAN; whom the operator trusts is in the FDB."""
    outer = b.announced(tcp(), a.local, told=False)
    assert b.ingress(outer).packet == outer
    assert b.counters() == {"untold": 1}
    b.fallback(ANY, "192.0.2.77")
    b.ingress(outer)
    assert b.counters()["untold"] == 2
    b.fallback(ANY, a.local)
    b.ingress(outer)
    assert (b.counters()["untold"], b.counters()["offer_tx"]) == (2, 1)


def test_a_vxlan_packet_that_the_driver_did_not_send_does_not_count(a: Node, b: Node) -> None:
    b.egress(b.vxlan(ANY, a.local))
    b.ingress(b.announced(tcp(), a.local, told=False))
    assert b.counters()["untold"] == 1


def test_such_a_host_leaves_no_trace_but_a_question(a: Node, b: Node) -> None:
    before = tables(b)
    b.ingress(b.announced(frame(TCP(), smac=STRANGER), "192.0.2.77", told=False))
    assert tables(b) == before
    assert b.items("macs") == b.items("pair_ids") == b.items("grants") == []
    ((key, _),) = b.items("asked")
    assert (key.link, bytes(key.mac)) == (LINK, raw_mac(STRANGER))


@pytest.mark.parametrize(("wait", "trusted"), [(298 * SEC, True), (301 * SEC, False)])
def test_that_holds_for_five_minutes(a: Node, b: Node, wait: int, trusted: bool) -> None:
    b.fallback(ANY, a.local)
    b.pass_time(wait)
    b.ingress(b.announced(tcp(), a.local, told=False))
    assert ("offer_tx" in b.counters()) == trusted


# --- hold-down and back-off ---------------------------------------------------------------------


def test_no_key_is_given_while_held(a: Node, b: Node) -> None:
    b.conf(rx_hold=now() + SEC)
    outer = b.announced(tcp(), a.local)
    assert b.offer(outer) is None
    assert b.counters() == {"held": 1}
    b.pass_time(SEC)
    assert b.offer(outer) is not None


def test_no_key_is_accepted_while_held(a: Node, b: Node) -> None:
    a.conf(tx_hold=now() + SEC)
    offer = offered(a, b, tcp())
    assert a.ingress(offer).action == SHOT
    assert a.counters()["held"] == 1
    a.pass_time(SEC)
    assert a.ingress(offer).action == REDIRECT


def test_offers_become_rarer_while_nobody_answers(a: Node, b: Node) -> None:
    outer = b.announced(tcp(), a.local)
    following = []
    for _ in range(20):
        assert b.offer(outer) is not None
        after = now()
        ((_, grant),) = b.items("grants")
        assert grant.next_offer <= after + max(grant.backoff_ms // 2, 1) * MS or grant.backoff_ms == 60_000
        if grant.next_offer - now() > 500 * MS:
            assert b.offer(outer) is None  # not yet
        following.append(grant.backoff_ms)
        b.pass_time(max(grant.next_offer - now(), 0) + MS)
    assert following == [min(2**n, 60_000) for n in range(1, 21)]


@pytest.mark.parametrize("used", [False, True])
def test_an_accept_ends_the_back_off_if_its_confirm_bore_fruit(net: Bench, used: bool) -> None:
    """Else CONFIRMs get lost, and there shall not be one for every fallback packet."""
    a, b = net.a, net.b
    inner = tcp()
    negotiate(a, b, inner)
    if used:
        b.ingress(b.arriving(a.encode(inner).packet))
    net.pass_time(1100 * MS)
    for _ in range(3):
        b.pass_time(8 * MS)
        assert b.offer(b.announced(inner, a.local)) is not None
    ((_, grant),) = b.items("grants")
    assert grant.backoff_ms == 16
    net.pass_time(20 * MS)
    before = now()
    b.ingress(accepted(a, b, inner))
    after = now()
    ((_, grant),) = b.items("grants")
    expected = 1 if used else 32
    assert (grant.backoff_ms, grant.key) == (expected, 1)
    assert before + expected * MS <= grant.next_offer <= after + expected * MS


def test_without_fruit_a_flow_is_confirmed_once_a_second_at_least(a: Node, b: Node) -> None:
    accept = accepted(a, b, tcp())
    ((flow, grant),) = b.items("grants")
    grant.backoff_ms = 32_000
    b.put("grants", flow, grant)
    b.ingress(accept)
    ((_, grant),) = b.items("grants")
    assert grant.backoff_ms == 1000


def test_a_flow_whose_offers_are_not_answered_gets_another_key(b: Node) -> None:
    """Perhaps the sender has the key in use for another flow, from before we started."""
    outer = b.announced(tcp(), "192.0.2.1")
    keys = []
    for _ in range(10):
        made = b.offer(outer)
        assert made is not None
        keys.append(wire.Control.unpack(made[42:]).key)
        ((_, grant),) = b.items("grants")
        b.pass_time(max(grant.next_offer - now(), 0) + MS)
    assert keys == [1, 1, 1, 1, 1, 1, 2, 3, 4, 5]  # from 64 ms on


def test_each_flow_backs_off_by_itself(a: Node, b: Node) -> None:
    for _ in range(13):  # now it backs off for more than 4 s: long enough for the slowest machine
        b.pass_time(5 * SEC)
        assert b.offer(b.announced(tcp(), a.local)) is not None
    assert b.offer(b.announced(tcp(), a.local)) is None
    assert b.offer(b.announced(frame(TCP(), src="10.0.0.2"), a.local)) is not None


def test_a_repeated_offer_within_a_round_is_the_same(net: Bench, a: Node, b: Node) -> None:
    first = control(offered(a, b, tcp()))
    net.pass_time(SEC)
    assert control(offered(a, b, tcp())) == first
    net.pass_time(SEC + MS)
    second = control(offered(a, b, tcp()))
    assert second == dataclasses.replace(first, nonce_b=second.nonce_b)
    assert second.nonce_b != first.nonce_b


# --- ACCEPT -------------------------------------------------------------------------------------


def test_an_accept_is_the_offer_turned_round(a: Node, b: Node) -> None:
    offer = offered(a, b, tcp())
    out = a.ingress(offer, mark=0xCAFE)
    assert (out.action, out.kind, out.cb[0]) == (REDIRECT, CONTROL, 0xCAFE)
    seen = assert_well_formed(out.packet, a.local, b.local)
    assert seen.nonce_a
    assert seen == dataclasses.replace(control(offer), type=wire.ACCEPT, nonce_a=seen.nonce_a)
    assert out.packet[42 + wire.CTL_LEN :] == offer[42 + wire.CTL_LEN :]
    assert a.counters()["accept_tx"] == 1
    assert a.items("flows") == []


def test_a_repeated_offer_gets_the_same_accept(net: Bench, a: Node, b: Node) -> None:
    """And the lease counts from the first one."""
    offer = offered(a, b, tcp())
    first = control(a.ingress(offer).packet)
    ((_, before),) = a.items("pendings")
    net.pass_time(SEC)
    assert control(a.ingress(offer).packet) == first
    ((_, after),) = a.items("pendings")
    assert after.at == before.at - SEC


def test_a_new_round_gets_a_fresh_nonce(net: Bench, a: Node, b: Node) -> None:
    first = control(a.ingress(offered(a, b, tcp())).packet)
    net.pass_time(2100 * MS)
    second = control(a.ingress(offered(a, b, tcp())).packet)
    assert second.nonce_a != first.nonce_a
    assert second.nonce_b != first.nonce_b


def refused(node: Node, packet: bytes, counter: str, index: int = LINK) -> None:
    """The packet is dropped and counted, and nothing but counters changes."""
    before = tables(node)
    counted = node.counters(index).get(counter, 0)
    assert node.ingress(packet).action == SHOT
    assert node.counters(index)[counter] == counted + 1
    assert tables(node) == before


def tables(node: Node) -> dict[str, list[tuple[bytes, bytes]]]:
    """What the negotiation leaves behind."""
    return {
        name: [(k.raw(), v.raw()) for k, v in node.items(name)] for name in ("flows", "pendings", "txkeys")
    } | {"blocks": [(bytes([i]), block.raw()) for i, block in node.blocks()]}


def test_an_offer_without_a_solicit(a: Node, b: Node) -> None:
    made = b.offer(b.announced(tcp(), a.local))
    assert made is not None
    refused(a, a.arriving(made), "ctl_unsolicited")


@pytest.mark.parametrize(
    "fields",
    [
        {"sip": "10.9.9.9"},
        {"dip": "10.9.9.9"},
        {"smac": STRANGER},
        {"dmac": STRANGER},
        {"dscp": 1},
        {"variant": 1},
    ],
)
def test_an_offer_for_another_flow(a: Node, b: Node, fields: dict[str, object]) -> None:
    refused(a, changed(offered(a, b, tcp()), **fields), "ctl_unsolicited")


def test_an_offer_of_another_peer(a: Node, b: Node) -> None:
    refused(a, rewritten(offered(a, b, tcp()), src="192.0.2.77"), "ctl_unsolicited")


@pytest.mark.parametrize(("wait", "taken"), [(1900 * MS, True), (2100 * MS, False)])
def test_an_offer_must_follow_within_two_seconds(a: Node, b: Node, wait: int, taken: bool) -> None:
    offer = offered(a, b, tcp())
    a.pass_time(wait)
    if taken:
        assert a.ingress(offer).action == REDIRECT
    else:
        refused(a, offer, "ctl_unsolicited")


def test_a_torn_solicit(a: Node, b: Node) -> None:
    offer = offered(a, b, tcp())
    ((flow, solicit),) = a.items("solicits")
    solicit.oif += 1
    a.put("solicits", flow, solicit)
    refused(a, offer, "ctl_unsolicited")


@pytest.fixture(params=["offer", "accept", "confirm"])
def step(request: pytest.FixtureRequest, a: Node, b: Node) -> tuple[Node, bytes]:
    """A control packet that is about to arrive, and its receiver."""
    if request.param == "offer":
        return a, offered(a, b, tcp())
    if request.param == "accept":
        return b, accepted(a, b, tcp())
    return a, confirmed(a, b, tcp())


@pytest.mark.parametrize(
    ("fields", "counter", "index"),
    [
        ({"version": 0}, "ctl_version", HOST),
        ({"version": 2}, "ctl_version", HOST),
        ({"vni": VNI + 1}, "ctl_bad", HOST),
        ({"type": 0}, "ctl_bad", LINK),
        ({"type": 4}, "ctl_bad", LINK),
        ({"seg_bits": 5}, "ctl_params", LINK),
        ({"flags": 1}, "ctl_params", LINK),
        ({"key": 0}, "ctl_params", LINK),
        ({"key": 1024}, "ctl_params", LINK),
        ({"lease_ms": 999}, "ctl_params", LINK),
        ({"auth": 1}, "ctl_auth", LINK),
        ({"key": 2}, "ctl_path", LINK),
    ],
)
def test_a_wrong_field(step: tuple[Node, bytes], fields: dict[str, int], counter: str, index: int) -> None:
    node, packet = step
    refused(node, changed(packet, **fields), counter, index)


@pytest.mark.parametrize(
    "fields", [{"tos": 11 << 2}, {"id": 65}, {"id": 128}, {"flags": ""}, {"flags": "DF+MF"}]
)
def test_a_path_that_spoils_the_header(step: tuple[Node, bytes], fields: dict[str, object]) -> None:
    node, packet = step
    if "tos" in fields:  # a DSCP that could be ours, but with another key
        node.conf(xbits=1)
        packet = changed(packet, flags=1)
    refused(node, rewritten(packet, **fields), "ctl_path")


@pytest.mark.parametrize("ecn", range(4))
def test_ecn_of_a_control_packet_does_not_matter(step: tuple[Node, bytes], ecn: int) -> None:
    node, packet = step
    node.clear_counters()
    node.ingress(rewritten(packet, tos=wire.MARK << 2 | ecn))
    assert not any(name.startswith("ctl_") for name in node.counters())


def test_a_cleared_dscp_leaves_the_packet_to_the_kernel(step: tuple[Node, bytes]) -> None:
    node, packet = step
    before = tables(node)
    spoilt = rewritten(packet, tos=0)
    out = node.ingress(spoilt)
    assert (out.action, out.packet) == (UNSPEC, spoilt)
    assert tables(node) == before


def test_a_control_packet_that_is_cut_off(step: tuple[Node, bytes]) -> None:
    node, packet = step
    before = tables(node)
    for size in (42 + wire.CTL_LEN - 1, 42 + 8, 42 + 30):
        node.ingress(packet[:size])
    assert tables(node) == before


def test_a_control_packet_to_another_port(step: tuple[Node, bytes]) -> None:
    node, packet = step
    before = tables(node)
    node.ingress(packet[:36] + (4790).to_bytes(2, "big") + packet[38:])
    assert tables(node) == before


def test_a_link_that_is_switched_off_takes_none(step: tuple[Node, bytes]) -> None:
    node, packet = step
    node.set_link(flags=0)
    before = tables(node)
    assert node.ingress(packet).action == SHOT
    assert tables(node) == before


# --- authenticator ------------------------------------------------------------------------------

SECRET = bytes(range(16))


@pytest.fixture
def secret(a: Node, b: Node) -> None:
    """Both ends share a secret."""
    for node in (a, b):
        node.share_secret(SECRET)


@pytest.mark.usefixtures("secret")
def test_each_step_bears_an_authenticator(a: Node, b: Node) -> None:
    steps = negotiate(a, b, tcp())
    for packet, source, destination in (
        (steps.offer, b.local, a.local),
        (steps.accept, a.local, b.local),
        (steps.confirm, b.local, a.local),
    ):
        seen = control(packet)
        assert seen.auth == seen.authenticator(source, destination, SECRET) != 0
    assert a.encode(tcp()).action == REDIRECT


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize("auth", [0, 1, 0xFFFFFFFFFFFFFFFF])
def test_a_wrong_authenticator(a: Node, b: Node, step: tuple[Node, bytes], auth: int) -> None:
    node, packet = step
    refused(node, changed(packet, auth=auth), "ctl_auth")


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize(
    "fields",
    [{"nonce_a": 1}, {"nonce_b": 1}, {"lease_ms": 9000}, {"reserved": 1}, {"vxlan_rest": b"1234567"}],
)
def test_a_forged_field(a: Node, b: Node, step: tuple[Node, bytes], fields: dict[str, object]) -> None:
    node, packet = step
    refused(node, changed(packet, **fields), "ctl_auth")


@pytest.mark.usefixtures("secret")
def test_an_authenticator_made_here_is_taken(a: Node, b: Node) -> None:
    """Python and the datapath compute the same."""
    offer = offered(a, b, tcp())
    resealed = control(changed(offer, lease_ms=9000)).sealed(b.local, a.local, SECRET)
    assert a.ingress(offer[:42] + resealed.pack() + offer[42 + wire.CTL_LEN :]).action == REDIRECT


# --- keys and flows at the sender ---------------------------------------------------------------


def test_one_key_one_flow(a: Node, b: Node) -> None:
    """A receiver that has forgotten gives a key twice; its sender does not take it."""
    negotiate(a, b, tcp())
    other = frame(TCP(), src="10.0.0.2")
    for wait in (0, (LEASE_MS + GUARD_MS) * MS - 500 * MS):
        b.reset()
        a.pass_time(wait)
        offer = offered(a, b, other)
        assert control(offer).key == 1
        refused(a, offer, "ctl_conflict")
    a.pass_time(600 * MS)
    assert a.ingress(offer).action == REDIRECT


def test_the_same_key_for_the_same_flow_is_fine(net: Bench, a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    b.reset()
    a.pass_time(1100 * MS)
    assert negotiate(a, b, tcp()).key == 1


def test_a_key_of_another_peer_is_another_key(a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    b.local = "192.0.2.3"
    try:
        b.reset()
        assert negotiate(a, b, frame(TCP(), src="10.0.0.2")).key == 1
    finally:
        b.local = "192.0.2.2"


def test_the_shortest_lease_counts(a: Node, b: Node) -> None:
    a.set_link(lease_ms=3000)
    negotiate(a, b, tcp())
    _, entry = a.only_flow()
    assert abs(entry.lease_end - now() - 3 * SEC) < 300 * MS
    ((_, noted),) = a.items("txkeys")
    assert abs(noted.until - now() - (3000 + GUARD_MS) * MS) < 300 * MS


def test_a_confirm_may_shorten_the_lease_but_not_lengthen_it(a: Node, b: Node) -> None:
    for lease_ms, expected in ((4000, 4000), (20000, LEASE_MS)):
        a.reset()
        b.reset()
        a.ingress(changed(confirmed(a, b, tcp()), lease_ms=lease_ms))
        _, entry = a.only_flow()
        assert abs(entry.lease_end - now() - expected * MS) < 300 * MS


# --- CONFIRM ------------------------------------------------------------------------------------


def test_a_confirm_is_the_accept_turned_round(a: Node, b: Node) -> None:
    accept = accepted(a, b, tcp())
    before = now()
    out = b.ingress(accept)
    after = now()
    assert (out.action, out.kind) == (REDIRECT, CONTROL)
    seen = assert_well_formed(out.packet, b.local, a.local)
    assert seen == dataclasses.replace(control(accept), type=wire.CONFIRM)
    assert b.counters()["confirm_tx"] == 1
    _, _, block, slot = b.slot(1)
    for until in (slot.valid, slot.until, block.busy_until, b.pair(a.local)[1].busy_until):
        assert before <= until - (LEASE_MS + GUARD_MS) * MS <= after
    assert (slot.offered, slot.nonce_b, slot.used) == (0, 0, 0)


def test_a_confirm_says_the_lease_of_this_moment(a: Node, b: Node) -> None:
    accept = accepted(a, b, tcp())
    b.set_link(lease_ms=5000)
    assert control(b.ingress(accept).packet).lease_ms == 5000


def test_an_accept_is_good_once(a: Node, b: Node) -> None:
    accept = accepted(a, b, tcp())
    assert b.ingress(accept).action == REDIRECT
    refused(b, accept, "ctl_nonce")


@pytest.mark.parametrize(
    "fields",
    [
        {"nonce_b": 1},
        {"sip": "10.9.9.9"},
        {"dip": "10.9.9.9"},
        {"smac": STRANGER},
        {"dmac": STRANGER},
        {"dscp": 1},
        {"variant": 1},
    ],
)
def test_an_accept_of_something_else(a: Node, b: Node, fields: dict[str, object]) -> None:
    refused(b, changed(accepted(a, b, tcp()), **fields), "ctl_nonce")


def test_an_accept_of_another_key(a: Node, b: Node) -> None:
    accept = accepted(a, b, tcp())
    offered(a, b, frame(TCP(), src="10.0.0.2"))
    refused(b, rewritten(changed(accept, key=2), id=128), "ctl_nonce")
    refused(b, rewritten(changed(accept, key=700), id=700 << 6), "ctl_nonce")


def test_an_accept_of_another_peer(a: Node, b: Node) -> None:
    refused(b, rewritten(accepted(a, b, tcp()), src="192.0.2.77"), "ctl_nonce")


@pytest.mark.parametrize(("wait", "taken"), [(1900 * MS, True), (2100 * MS, False)])
def test_an_accept_must_follow_within_two_seconds(a: Node, b: Node, wait: int, taken: bool) -> None:
    accept = accepted(a, b, tcp())
    b.pass_time(wait)
    if taken:
        assert b.ingress(accept).action == REDIRECT
    else:
        refused(b, accept, "ctl_nonce")


def test_an_accept_to_another_generation(a: Node, b: Node) -> None:
    accept = accepted(a, b, tcp())
    b.set_link(rx_gen=2)
    refused(b, accept, "ctl_nonce")


def test_a_confirm_is_good_once(a: Node, b: Node) -> None:
    confirm = confirmed(a, b, tcp())
    assert a.ingress(confirm).action == SHOT
    a.only_flow()
    assert a.items("pendings") == []
    refused(a, confirm, "ctl_nonce")


@pytest.mark.parametrize(
    "fields",
    [
        {"nonce_a": 1},
        {"nonce_b": 1},
        {"sip": "10.9.9.9"},
        {"dmac": STRANGER},
        {"dscp": 1},
        {"variant": 1},
    ],
)
def test_a_confirm_of_something_else(a: Node, b: Node, fields: dict[str, object]) -> None:
    refused(a, changed(confirmed(a, b, tcp()), **fields), "ctl_nonce")


def test_a_confirm_of_another_key_or_peer(a: Node, b: Node) -> None:
    confirm = confirmed(a, b, tcp())
    refused(a, rewritten(changed(confirm, key=2), id=128), "ctl_nonce")
    refused(a, rewritten(confirm, src="192.0.2.77"), "ctl_nonce")


def test_a_confirm_of_a_former_round(net: Bench, a: Node, b: Node) -> None:
    former = confirmed(a, b, tcp())
    net.pass_time(2100 * MS)
    confirm = confirmed(a, b, tcp())
    refused(a, former, "ctl_nonce")
    a.ingress(confirm)
    a.only_flow()


@pytest.mark.parametrize("left", [300 * MS, -20 * MS])
def test_a_confirm_that_comes_when_the_lease_has_ended(a: Node, b: Node, left: int) -> None:
    confirm = confirmed(a, b, tcp())
    a.pass_time(LEASE_MS * MS - left)
    if left > 0:
        a.ingress(confirm)
        _, entry = a.only_flow()
        assert entry.lease_end - now() <= left
    else:
        refused(a, confirm, "ctl_nonce")


def test_a_torn_pending(a: Node, b: Node) -> None:
    confirm = confirmed(a, b, tcp())
    ((flow, pending),) = a.items("pendings")
    pending.at += 1
    a.put("pendings", flow, pending)
    refused(a, confirm, "ctl_nonce")


def test_confirms_do_not_answer_confirms(a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    assert (a.counters()["offer_rx"], a.counters()["accept_tx"], a.counters()["confirm_rx"]) == (1, 1, 1)
    assert (b.counters()["offer_tx"], b.counters()["accept_rx"], b.counters()["confirm_tx"]) == (1, 1, 1)


# --- a path that eats encoded packets -----------------------------------------------------------


def renewal(net: Bench, inner: bytes, confirm_lost: bool = False) -> wire.Control:
    """The next renewal, a second after the last one at least; returns the CONFIRM."""
    _, entry = net.a.only_flow()
    net.pass_time(max(entry.lease_end - entry.renew_ms * MS - now(), SEC) + 100 * MS)
    confirm = confirmed(net.a, net.b, inner)
    if not confirm_lost:
        net.a.ingress(confirm)
    return control(confirm)


@pytest.mark.parametrize(
    ("sent", "decoded", "off"), [(15, False, False), (16, False, True), (16, True, False)]
)
def test_sixteen_packets_and_none_decoded(net: Bench, sent: int, decoded: bool, off: bool) -> None:
    inner = tcp()
    negotiate(net.a, net.b, inner)
    for _ in range(sent):
        out = net.a.encode(inner)
    if decoded:
        net.b.ingress(net.b.arriving(out.packet))
    confirm = renewal(net, inner)
    assert bool(confirm.flags & wire.CTL_USED) == decoded
    assert ("path_off" in net.a.counters()) == off
    out = net.a.encode(inner)
    assert (out.action == UNSPEC) == off


def test_the_used_flag_is_of_the_present_round(net: Bench, a: Node, b: Node) -> None:
    inner = tcp()
    negotiate(a, b, inner)
    b.ingress(b.arriving(a.encode(inner).packet))
    assert renewal(net, inner).flags == wire.CTL_USED
    assert renewal(net, inner).flags == 0


def test_packets_that_may_still_be_under_way_are_no_verdict(net: Bench, a: Node, b: Node) -> None:
    """A fallback packet overtook sixteen encoded ones."""
    inner = tcp()
    negotiate(a, b, inner)
    begin = now()
    net.pass_time(700 * MS)
    for _ in range(16):
        assert a.encode(inner).action == REDIRECT
    net.pass_time(320 * MS - (now() - begin))
    a.ingress(confirmed(a, b, inner))
    assert "path_off" not in a.counters()
    assert a.encode(inner).action == REDIRECT


def test_a_lost_confirm_is_no_verdict(net: Bench, a: Node, b: Node) -> None:
    """It bore the news that packets were decoded; the next one does not repeat it."""
    inner = tcp()
    negotiate(a, b, inner)
    for _ in range(20):
        b.ingress(b.arriving(a.encode(inner).packet))
    assert renewal(net, inner, confirm_lost=True).flags == wire.CTL_USED
    assert renewal(net, inner).flags == 0
    assert "path_off" not in a.counters()
    assert a.encode(inner).action == REDIRECT
