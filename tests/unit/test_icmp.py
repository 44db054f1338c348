# SPDX-License-Identifier: Apache-2.0
"""ICMP errors about encoded packets: what becomes of them, and of their flow."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from kmod_ebpf import maps as m
from tests.unit.harness import (
    DECODED,
    GUARD_MS,
    HOST,
    LEASE_MS,
    MS,
    REDIRECT,
    SEC,
    SHOT,
    UNSPEC,
    Bench,
    Node,
    negotiate,
    now,
)
from tests.unit.packets import (
    B_MAC,
    CONTAINER_MAC,
    DST,
    ENCODABLE,
    SRC,
    exact,
    frame,
    on_wire,
    rewritten,
    tcp,
    udp,
    with_checksum_zero,
)
from xmasq_link import _wire as wire

pytestmark = pytest.mark.root

ROUTER = "203.0.113.9"
FRAG_NEEDED = {"type": 3, "code": 4, "nexthopmtu": 1400}
HOST_UNREACHABLE = {"type": 3, "code": 1}
PROHIBITED = [{"type": 3, "code": code} for code in (2, 3, 9, 10, 13)]

#: What can be quoted: eight bytes behind the header at least.
QUOTABLE = {name: packet for name, packet in ENCODABLE.items() if len(packet) >= 14 + 28}


def error(
    node: Node,
    quoted: bytes,
    *,
    src: str = ROUTER,
    quote: int = 548,
    pad: int = 0,
    ip: dict[str, Any] | None = None,
    **icmp: Any,
) -> bytes:
    """An ICMP error about a packet (from its IP header on), as it arrives at a node.

    quote: so many bytes of it are quoted. ip: other fields of the error's own header.
    """
    message = ICMP(**(icmp or FRAG_NEEDED)) / Raw(quoted[:quote])
    head = IP(**{"src": src, "dst": node.local, "tos": 0xC0, "id": 4711, "ttl": 63, **(ip or {})})
    return node.arriving(bytes(14) + bytes(head / message)) + bytes(pad)


def about(node: Node, peer: Node, inner: bytes, key: int = 1, **fields: Any) -> bytes:
    """An ICMP error about a packet that node has encoded for peer; fields as for error()."""
    return error(node, on_wire(inner, node.local, peer.local, key), **fields)


def expected(inner: bytes, *, quote: int = 548, ttl: int = 63, **icmp: Any) -> bytes:
    """What the container is to get: the error as if about the packet that it has sent."""
    message = ICMP(**(icmp or FRAG_NEEDED)) / Raw(inner[14:][:quote])
    head = IP(src=DST, dst=SRC, flags="DF", id=0, ttl=ttl)
    return bytes(Ether(src=B_MAC, dst=CONTAINER_MAC) / head / message)


# --- to the container ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", QUOTABLE)
def test_the_container_gets_it_as_if_about_its_own_packet(a: Node, b: Node, kind: str) -> None:
    inner = QUOTABLE[kind]
    negotiate(a, b, inner)
    out = a.ingress(about(a, b, inner), mark=0xCAFE)
    assert (out.action, out.kind) == (REDIRECT, DECODED)
    assert out.packet == expected(exact(inner))
    assert (a.counters()["icmp_rx"], a.counters(HOST)) == (1, {})
    assert a.encode(inner).action == REDIRECT  # the grant lives on


@pytest.mark.parametrize("quote", [28, 29, 35, 36, 37, 38, 40, 47, 128, 548, 1300])
@pytest.mark.parametrize("make", [tcp, udp], ids=["tcp", "udp"])
def test_however_much_is_quoted(a: Node, b: Node, make: Any, quote: int) -> None:
    """A checksum of TCP is moved back only if the quote reaches so far."""
    inner = make(bytes(range(256)) * 5)
    negotiate(a, b, inner)
    out = a.ingress(about(a, b, inner, quote=quote))
    want = exact(inner)
    if make is tcp and quote < 38:  # so it does not get as far as the checksum
        want = want[:50] + on_wire(inner, a.local, b.local, 1)[36:]
    assert out.packet == expected(want, quote=quote)


@pytest.mark.parametrize(
    "icmp",
    [
        HOST_UNREACHABLE,
        {"type": 3, "code": 0},
        {"type": 3, "code": 4, "nexthopmtu": 0},
        {"type": 11, "code": 0},
        {"type": 11, "code": 1},
        {"type": 12, "code": 0, "ptr": 1},
    ],
    ids=str,
)
def test_kinds_of_errors(a: Node, b: Node, icmp: dict[str, Any]) -> None:
    negotiate(a, b, tcp())
    out = a.ingress(about(a, b, tcp(), **icmp))
    assert (out.action, out.packet) == (REDIRECT, expected(exact(tcp()), **icmp))


def test_dscp_ecn_and_hops(a: Node, b: Node) -> None:
    inner = rewritten(tcp(b"x"), tos=46 << 2 | 2)
    negotiate(a, b, inner)
    wired = on_wire(inner, a.local, b.local, 1, tos=wire.MARK << 2 | 3, ttl=60, id=64 + 17)
    out = a.ingress(error(a, wired, ip={"tos": 0, "ttl": 250, "id": 0}))
    assert out.packet == expected(exact(inner, tos=46 << 2 | 3, ttl=60), ttl=250)


def test_ethernet_padding_goes(a: Node, b: Node) -> None:
    negotiate(a, b, udp())
    out = a.ingress(about(a, b, udp(), pad=4))
    assert out.packet == expected(exact(udp()))


@pytest.mark.parametrize("make", [udp, tcp], ids=["udp", "tcp"])
def test_a_checksum_of_zero(a: Node, b: Node, make: Any) -> None:
    inner = with_checksum_zero(make)
    negotiate(a, b, inner)
    out = a.ingress(about(a, b, inner))
    # TCP's 0 may come back as ffff, the same number.
    got, want = out.packet, expected(exact(inner))
    if got != want:
        at = 14 + 20 + 8 + 20 + 16
        assert (got[at : at + 2], want[at : at + 2]) == (b"\xff\xff", b"\0\0")
        got = got[:at] + b"\0\0" + got[at + 2 :]
        # the ICMP checksum is the same in one's complement
    assert got == want


def test_a_wrong_checksum_stays_wrong(a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    packet = bytearray(about(a, b, tcp()))
    packet[36] ^= 0x40
    out = a.ingress(bytes(packet))
    assert out.packet[36:38] != expected(exact(tcp()))[36:38]
    assert out.packet[:36] + out.packet[38:] == expected(exact(tcp()))[:36] + expected(exact(tcp()))[38:]


@pytest.mark.parametrize("tos", [0xC0, 0xCC, 0x0C, 0x1C, 0xDC])
def test_whatever_dscp_the_router_gives_it(a: Node, b: Node, tos: int) -> None:
    """Linux routers keep the lower bits of the quoted one, so it can look like MARK (key-bits 3)."""
    for node in (a, b):
        node.conf(xbits=3)
    negotiate(a, b, tcp())
    out = a.ingress(about(a, b, tcp(), ip={"tos": tos}))
    assert out.packet == expected(exact(tcp()))


def test_an_error_of_a_container_is_its_own_affair(a: Node, b: Node) -> None:
    """Encoded itself, and quoting what it likes: our own keys, for example."""
    negotiate(a, b, tcp())  # key 1, at b
    forged = on_wire(tcp(), a.local, b.local, 1)
    inner = frame(ICMP(**FRAG_NEEDED) / Raw(forged), src=DST, dst=SRC, smac=B_MAC, dmac="02:00:00:00:00:03")
    negotiate(b, a, inner)
    sent = b.encode(inner)
    assert sent.action == REDIRECT
    out = a.ingress(a.arriving(sent.packet))
    assert (out.action, out.packet) == (REDIRECT, exact(inner))
    assert "icmp_rx" not in a.counters()


# --- not ours -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"tos": 0},
        {"tos": wire.BOUNCE << 2},
        {"src": "192.0.2.9"},
        {"flags": ""},
        {"flags": "DF+MF"},
        {"frag": 8},
        {"id": 0},
        {"id": 63},
    ],
    ids=str,
)
def test_quotes_that_encode_did_not_write_pass(a: Node, b: Node, change: dict[str, Any]) -> None:
    negotiate(a, b, tcp())
    source = change.get("src", a.local)
    packet = error(a, rewritten(bytes(12) + b"\x08\0" + on_wire(tcp(), source, b.local, 1), **change)[14:])
    out = a.ingress(packet, mark=0xCAFE)
    assert (out.action, out.packet, out.mark) == (UNSPEC, packet, 0xCAFE)
    assert a.counters(HOST) == {}


@pytest.mark.parametrize("src", [ROUTER, "192.0.2.2"])
def test_errors_about_the_tunnel_itself_pass(a: Node, b: Node, src: str) -> None:
    """Fallback packets have MARK too, control packets even a key; the host's stack may want to know."""
    hands = negotiate(a, b, tcp())
    control = a.ingress(hands.offer)
    for packet in (a.fallback(frame(TCP(), src="10.0.0.77"), b.local), control.packet):
        quoting = error(a, packet[14:], src=src, **PROHIBITED[1])
        out = a.ingress(quoting)
        assert (out.action, out.packet) == (UNSPEC, quoting)
    assert a.counters(HOST) == {}


@pytest.mark.parametrize(
    "icmp", [{"type": 0}, {"type": 8}, {"type": 5, "gw": "192.0.2.9"}, {"type": 4}], ids=str
)
def test_other_messages_pass(a: Node, b: Node, icmp: dict[str, Any]) -> None:
    negotiate(a, b, tcp())
    packet = about(a, b, tcp(), **icmp)
    out = a.ingress(packet)
    assert (out.action, out.packet) == (UNSPEC, packet)


@pytest.mark.parametrize(
    "fields",
    [
        {"quote": 27},
        {"quote": 8},
        {"ip": {"flags": "MF"}},
        {"ip": {"frag": 4}},
        {"ip": {"dst": "192.0.2.200"}},
        {"ip": {"options": [b"\x01\x01\x01\x01"]}},
        {"ip": {"chksum": 1}},
    ],
    ids=str,
)
def test_what_cannot_be_read_passes(a: Node, b: Node, fields: dict[str, Any]) -> None:
    negotiate(a, b, tcp())
    packet = about(a, b, tcp(), **fields)
    out = a.ingress(packet)
    assert (out.action, out.packet) == (UNSPEC, packet)
    assert a.counters(HOST) == {}


# --- forged -------------------------------------------------------------------------------------


@pytest.mark.parametrize("src", [ROUTER, "192.0.2.2"])
def test_a_key_that_is_not_in_use(a: Node, b: Node, src: str) -> None:
    negotiate(a, b, tcp())
    for key in (2, 9, 1023):
        assert a.ingress(about(a, b, tcp(), key=key, src=src)).action == SHOT
    assert a.counters(HOST) == {"icmp_stray": 3}
    assert a.encode(tcp()).action == REDIRECT


def test_a_key_of_another_peer(a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    wired = on_wire(tcp(), a.local, "192.0.2.77", 1)
    assert a.ingress(error(a, wired)).action == SHOT
    assert a.counters(HOST) == {"icmp_stray": 1}


def test_a_key_is_known_until_lease_and_guard_have_passed(a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    ((_, noted),) = a.items("txkeys")
    a.pass_time(noted.until - now() - 300 * MS)
    assert noted.until - now() > (LEASE_MS + GUARD_MS - 500) * MS
    assert a.ingress(about(a, b, tcp())).packet == expected(exact(tcp()))
    a.pass_time(320 * MS)
    assert a.ingress(about(a, b, tcp())).action == SHOT
    assert a.counters(HOST) == {"icmp_stray": 1}


def test_not_while_the_fast_path_is_off(a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    a.set_link(flags=0)
    assert a.ingress(about(a, b, tcp())).action == SHOT


def test_a_torn_note(a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    ((key, noted),) = a.items("txkeys")
    noted.flow.dip[3] ^= 1
    a.put("txkeys", key, noted)
    assert a.ingress(about(a, b, tcp())).action == SHOT
    assert a.counters(HOST) == {"icmp_stray": 1}


# --- the peer's own stack -----------------------------------------------------------------------


@pytest.mark.parametrize("icmp", [*PROHIBITED, HOST_UNREACHABLE, {"type": 12, "code": 0}], ids=str)
def test_an_error_of_the_peer_itself_ends_the_grants(
    net: Bench, a: Node, b: Node, icmp: dict[str, Any]
) -> None:
    other = frame(TCP(), src="10.0.0.77")
    negotiate(a, b, tcp())
    negotiate(a, b, other)
    assert a.ingress(about(a, b, tcp(), src=b.local, **icmp)).action == SHOT
    assert (a.counters()["peer_gone"], a.counters().get("icmp_rx")) == (1, None)
    for inner in (tcp(), other):
        assert a.encode(inner).action == UNSPEC
    assert a.counters()["fb_expired"] == 2
    net.pass_time(10 * MS)
    negotiate(a, b, tcp())  # it was a mistake: the peer is there
    assert a.encode(tcp()).action == REDIRECT


def test_a_second_one_puts_the_peer_into_the_fallback_for_a_minute(a: Node, b: Node) -> None:
    negotiate(a, b, udp())
    for _ in range(2):
        a.ingress(about(a, b, udp(), src=b.local, **PROHIBITED[1]))
    assert a.counters(HOST) == {"path_off": 1}
    _, pair = a.pair(b.local)
    assert abs(pair.off_until - now() - 60 * SEC) < SEC


def reset(a: Node, b: Node, **ip: Any) -> bytes:
    """What b's stack answers to an encoded segment for a port that nobody listens on."""
    head = IP(**{"src": b.local, "dst": a.local, "tos": wire.MARK << 2, "flags": "DF", "id": 0, **ip})
    return a.arriving(bytes(14) + bytes(head / TCP(sport=80, dport=33000, flags="RA")))


def test_a_reset_of_the_peer_itself_ends_the_grants(net: Bench, a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    packet = reset(a, b)
    out = a.ingress(packet)
    assert (out.action, out.packet) == (UNSPEC, packet)
    assert a.counters(HOST) == {"peer_gone": 1}
    assert a.encode(tcp()).action == UNSPEC
    net.pass_time(10 * MS)
    negotiate(a, b, tcp())
    a.ingress(packet)
    assert a.counters(HOST) == {"peer_gone": 2, "path_off": 1}


@pytest.mark.parametrize("dscp", [wire.MARK, wire.MARK + 8])
def test_a_reset_is_known_with_further_key_bits_too(a: Node, b: Node, dscp: int) -> None:
    for node in (a, b):
        node.conf(xbits=1)
    negotiate(a, b, tcp())
    packet = reset(a, b, tos=dscp << 2)
    out = a.ingress(packet)
    assert (out.action, out.packet) == (UNSPEC, packet)
    assert a.counters(HOST) == {"peer_gone": 1}
    assert a.encode(tcp()).action == UNSPEC


@pytest.mark.parametrize("ip", [{"tos": 0}, {"src": "192.0.2.77"}, {"flags": ""}], ids=str)
def test_resets_of_others_do_not(a: Node, b: Node, ip: dict[str, Any]) -> None:
    negotiate(a, b, tcp())
    packet = reset(a, b, **ip)
    out = a.ingress(packet)
    assert (out.action, out.packet) == (UNSPEC, packet)
    assert a.encode(tcp()).action == REDIRECT


# --- a path that takes the fallback only ---------------------------------------------------------


def offered(a: Node, b: Node, inner: bytes) -> int:
    """The action with which a answers b's OFFER for a flow."""
    offer = b.offer(b.arriving(a.fallback(inner, b.local)))
    assert offer is not None
    return a.ingress(a.arriving(offer)).action


@pytest.mark.parametrize("icmp", PROHIBITED, ids=str)
def test_refused_before_anything_has_arrived(a: Node, b: Node, icmp: dict[str, Any]) -> None:
    """As a firewall does that lets only VXLAN through: the container is not told, but served."""
    other = frame(TCP(), src="10.0.0.77")
    negotiate(a, b, other)
    negotiate(a, b, tcp())
    assert a.ingress(about(a, b, tcp(), key=2, **icmp)).action == SHOT
    assert a.counters()["icmp_refused"] == 1
    assert a.encode(tcp()).action == UNSPEC
    assert a.encode(other).action == REDIRECT  # that of another flow may pass


def test_it_stays_in_the_fallback_for_a_while_longer_each_time(net: Bench, a: Node, b: Node) -> None:
    lasted = []
    for _ in range(11):
        key = negotiate(a, b, tcp()).key
        a.ingress(about(a, b, tcp(), key=key, **PROHIBITED[0]))
        f, e = a.only_flow()
        lasted.append(round((e.off_until - now()) / SEC))
        net.pass_time((LEASE_MS + GUARD_MS) * MS)  # and b offers again
        a.change("flows", f, off_until=now() + SEC)
        assert offered(a, b, tcp()) == SHOT
        a.change("flows", f, off_until=1)
        net.pass_time(3 * SEC)
    assert lasted == [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]


def proven(net: Bench, a: Node, b: Node, inner: bytes) -> None:
    """A flow of which packets have arrived, as its renewal has told."""
    negotiate(a, b, inner)
    b.ingress(b.arriving(a.encode(inner).packet))
    net.pass_time(1100 * MS)
    negotiate(a, b, inner)


def test_refused_although_others_have_arrived(net: Bench, a: Node, b: Node) -> None:
    """A firewall that refuses some ports: as with plain routing, the container is told."""
    proven(net, a, b, tcp())
    out = a.ingress(about(a, b, tcp(), **PROHIBITED[0]))
    assert out.packet == expected(exact(tcp()), **PROHIBITED[0])
    assert a.encode(tcp()).action == REDIRECT


def test_what_arrived_forgives(net: Bench, a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    a.ingress(about(a, b, tcp(), **PROHIBITED[0]))
    f, _ = a.only_flow()
    a.change("flows", f, off_until=1)
    net.pass_time(2 * MS)  # the next OFFER is not made before
    proven(net, a, b, tcp())
    assert a.only_flow()[1].off_ms == 0


def test_a_late_error_does_not_end_a_newer_grant(net: Bench, a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    b.reset()
    net.pass_time(1100 * MS)
    b.offer(b.announced(frame(TCP(), src="10.0.0.77"), a.local))  # key 1, so that the flow gets key 2
    assert negotiate(a, b, tcp()).key == 2
    a.ingress(about(a, b, tcp(), key=1, **PROHIBITED[0]))
    assert a.encode(tcp()).action == REDIRECT


def test_df_was_clear_so_the_fallback_fragments(net: Bench, a: Node, b: Node) -> None:
    """The container is told, too: a sender that does not listen goes on without loss."""
    inner = rewritten(udp(bytes(1000)), flags="")
    proven(net, a, b, inner)
    icmp = {"type": 3, "code": 4, "nexthopmtu": 900}
    out = a.ingress(about(a, b, inner, **icmp))
    assert out.packet == expected(exact(inner), **icmp)
    assert a.encode(inner).action == UNSPEC
    net.pass_time(2 * MS)  # the next OFFER is not made before
    assert offered(a, b, inner) == SHOT


def test_sizes() -> None:
    """The hints of an entry are behind its seal."""
    assert m.Entry.off_until.offset > m.Entry.seal.offset


def test_udp_ports_are_not_the_tunnels(a: Node, b: Node) -> None:
    inner = udp(bytes(64), dport=4790)
    negotiate(a, b, inner)
    assert a.ingress(about(a, b, inner)).packet == expected(exact(inner))
    assert UDP in Ether(inner)
