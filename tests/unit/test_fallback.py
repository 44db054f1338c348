# SPDX-License-Identifier: Apache-2.0
"""Link egress: what is not encoded goes on to the vxlan driver unmodified, and is counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

from kmod_ebpf import maps as m
from tests.unit.harness import (
    DECODED,
    EGRESS,
    HOST,
    INGRESS,
    LINK,
    MAGIC,
    REDIRECT,
    UNSPEC,
    Bench,
    Node,
    Tap,
    attached,
    be16,
    negotiate,
    raw_mac,
)
from tests.unit.packets import B_MAC, CONTAINER_MAC, frame, on_wire, rewritten, tcp, udp

pytestmark = pytest.mark.root

HEAD = raw_mac(B_MAC) + raw_mac(CONTAINER_MAC)


def eth(payload: object) -> bytes:
    """An Ethernet frame of the container to b."""
    return bytes(Ether(src=CONTAINER_MAC, dst=B_MAC) / payload)


ALWAYS: dict[str, tuple[str, bytes]] = {
    "ARP": ("not_ip", eth(ARP(psrc="10.0.0.1", pdst="10.0.1.1"))),
    "IPv6": ("not_ip", eth(IPv6(src="2001:db8::1", dst="2001:db8::2") / TCP())),
    "VLAN tag in the frame": ("not_ip", eth(Dot1Q(vlan=5) / IP(flags="DF") / TCP())),
    "LLC": ("not_ip", bytes(HEAD + b"\x00\x26" + bytes(38))),
    "options": ("options", frame(TCP(), options=[IPOption_NOP()] * 4)),
    "version 5": ("options", frame(TCP(), version=5, ihl=5)),
    "header of 16 bytes": ("options", frame(TCP(), ihl=4)),
    "first fragment": ("fragment", frame(UDP() / Raw(bytes(64)), flags="MF")),
    "last fragment": ("fragment", frame(b"\0" * 64, flags="", frag=8, proto=17)),
    "DF and MF": ("fragment", frame(TCP(), flags="DF+MF")),
    "DF and an offset": ("fragment", frame(TCP(), flags="DF", frag=1)),
    "reserved bit": ("fragment", frame(TCP(), flags="DF+evil")),
    "DF clear, 1281 bytes": ("df_clear", rewritten(udp(bytes(1281 - 28)), flags="")),
    "TTL 15": ("ttl", frame(TCP(), ttl=15)),
    "TTL 1": ("ttl", frame(TCP(), ttl=1)),
    "multicast": ("multicast", frame(UDP(), dmac="01:00:5e:00:00:01", dst="224.0.0.1")),
    "broadcast": ("multicast", frame(UDP(), dmac="ff:ff:ff:ff:ff:ff", dst="10.0.1.255")),
    "padded": ("length", tcp() + bytes(6)),
    "cut off": ("length", tcp(b"hello")[:-1]),
    "length under 20": ("length", frame(b"", len=19)),
    "header only": ("length", frame(proto=253)),
    "BIG TCP": ("length", frame(TCP(), len=0)),
    "DSCP 3": ("dscp", rewritten(tcp(b"x"), tos=3 << 2 | 1)),
    "DSCP 7": ("dscp", rewritten(udp(b"x"), tos=7 << 2)),
    "DSCP 63": ("dscp", rewritten(tcp(b"x"), tos=63 << 2 | 2)),
    "IP in IP": ("tunnel_proto", frame(IP() / TCP(), proto=4)),
    "IPv6 in IP": ("tunnel_proto", frame(IPv6() / TCP(), proto=41)),
    "GRE": ("tunnel_proto", frame(b"\0\0\x08\0" + bytes(IP()), proto=47)),
}


@pytest.mark.parametrize("what", ALWAYS)
def test_always(a: Node, b: Node, what: str) -> None:
    reason, packet = ALWAYS[what]
    negotiate(a, b, tcp())
    a.clear_counters()
    out = a.encode(packet, mark=0xCAFE)
    assert (out.action, out.packet, out.mark) == (UNSPEC, packet, 0xCAFE)
    assert a.counters() == {f"fb_{reason}": 1}
    assert a.counters(HOST) == {}
    assert a.missed() is None  # the packet does not solicit


@pytest.mark.parametrize("size", [0, 1, 19])
def test_no_room_for_a_header(a: Node, size: int) -> None:
    packet = HEAD + b"\x08\x00" + frame()[14 : 14 + size]
    with attached(a, ("xmasq_encode", a.link, EGRESS)), Tap("xm0") as near, Tap("xm0p") as far:
        near.send(packet)
        assert far.receive() == packet
    assert a.counters() == {"fb_header": 1}


@pytest.mark.parametrize(
    ("packet", "reason", "change"),
    [(udp(dport=4789), "tunnel_port", {}), (tcp(bytes(1461)), "mtu", {"flags": "DF+evil"})],
    ids=["tunnel port", "MTU"],
)
def test_by_packet_although_the_flow_has_a_grant(
    a: Node, b: Node, packet: bytes, reason: str, change: dict[str, str]
) -> None:
    inner = udp()
    key = negotiate(a, b, inner).key
    a.clear_counters()
    out = a.encode(packet)
    assert (out.action, out.packet) == (UNSPEC, rewritten(packet, **change))
    assert a.counters()[f"fb_{reason}"] == 1
    assert a.missed() is None
    assert a.encode(inner).packet[14:] == on_wire(inner, a.local, b.local, key)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_udp_without_a_port_is_not_told_from_the_tunnel(a: Node, b: Node, size: int) -> None:
    packet = frame(bytes(size), proto=17)
    negotiate(a, b, udp())
    assert a.encode(packet).packet == packet
    assert a.counters()["fb_header"] == 1


def test_the_tunnel_port_is_the_links(a: Node, b: Node) -> None:
    for node in (a, b):
        node.set_link(port=be16(8472))
    negotiate_at(a, b, 8472)
    assert a.encode(udp(dport=8472)).action == UNSPEC
    assert a.counters()["fb_tunnel_port"] == 1
    assert a.encode(udp(dport=4789)).action == REDIRECT


def negotiate_at(a: Node, b: Node, port: int) -> None:
    """A handshake through another UDP port."""
    for node in (a, b):
        node.put(
            "vteps", int.from_bytes(bytes(node.get("links", LINK).local), "little"), m.Vtep(port=be16(port))
        )
    inner = udp()
    a.encode(inner)
    outer = a.egress(a.vxlan(inner, b.local, port=port)).packet
    offer = b.offer(b.arriving(outer))
    assert offer is not None
    accept = a.ingress(a.arriving(offer)).packet
    confirm = b.ingress(b.arriving(accept)).packet
    a.ingress(a.arriving(confirm))
    assert a.only_flow()[1].key == 1


@pytest.mark.parametrize(
    ("segs", "size", "action"),
    [(63, 10, REDIRECT), (64, 10, UNSPEC), (65, 10, UNSPEC), (1000, 10, UNSPEC)],
)
def test_more_segments_than_the_identification_can_number(
    a: Node, b: Node, segs: int, size: int, action: int
) -> None:
    """63 of 64: receivers' GRO joins consecutive IDs, so one is left free before the next key."""
    inner = tcp(bytes(900))
    negotiate(a, b, inner)
    out = a.encode(inner, gso_size=size, gso_segs=segs)
    assert out.action == action
    assert a.counters().get("fb_segments", 0) == (action == UNSPEC)


@pytest.mark.parametrize(
    ("make", "size", "action"),
    [
        # Header and data of one segment against the underlay's MTU of 1500.
        (tcp, 1460, REDIRECT),
        (tcp, 1461, UNSPEC),
        (udp, 1472, REDIRECT),
        (udp, 1473, UNSPEC),
    ],
)
def test_segments_that_do_not_fit_the_underlay(
    a: Node, b: Node, make: Callable[[bytes], bytes], size: int, action: int
) -> None:
    inner = make(bytes(3000))
    negotiate(a, b, make(b""))
    assert a.encode(inner, gso_size=size, gso_segs=3).action == action
    assert a.counters().get("fb_mtu", 0) == (action == UNSPEC)


def test_segments_with_tcp_options_that_do_not_fit(a: Node, b: Node) -> None:
    inner = frame(TCP(options=[("Timestamp", (1, 2)), ("NOP", None), ("NOP", None)]) / Raw(bytes(3000)))
    negotiate(a, b, tcp())
    assert a.encode(inner, gso_size=1448, gso_segs=3).action == REDIRECT
    assert a.encode(inner, gso_size=1449, gso_segs=3).action == UNSPEC


def test_segments_cannot_have_df_clear(a: Node, b: Node) -> None:
    inner = rewritten(tcp(bytes(600)), flags="")
    negotiate(a, b, inner)
    assert a.encode(inner).action == REDIRECT
    assert a.encode(inner, gso_size=100, gso_segs=6).action == UNSPEC
    assert a.counters()["fb_df_clear"] == 1


@pytest.mark.parametrize(("size", "action"), [(1500, REDIRECT), (1501, UNSPEC)])
def test_the_underlays_mtu(a: Node, b: Node, size: int, action: int) -> None:
    negotiate(a, b, tcp())
    assert a.encode(tcp(bytes(size - 40))).action == action


def test_a_vlan_tag_beside_the_frame(net: Bench, a: Node, b: Node) -> None:
    """The kernel takes tags out of frames; programs then see IPv4."""
    negotiate(a, b, tcp())
    a.clear_counters()
    inner = tcp()
    with attached(a, ("xmasq_encode", a.link, INGRESS)), Tap("xm0p") as tap:
        tap.send(inner[:12] + b"\x81\x00\x00\x05" + inner[12:])
    assert a.counters() == {"fb_vlan": 1}


# --- switched off, not ours ---------------------------------------------------------------------


def test_fast_path_off(a: Node, b: Node) -> None:
    inner = tcp()
    negotiate(a, b, inner)
    a.set_link(flags=0)
    a.clear_counters()
    for packet in (inner, frame(TCP(), ttl=1), eth(ARP())):
        out = a.encode(packet)
        assert (out.action, out.packet) == (UNSPEC, packet)
    assert a.counters() == {"fb_off": 3}


def test_a_device_that_is_no_link(a: Node, b: Node) -> None:
    inner = tcp()
    out = a.encode(inner, ifindex=b.link)
    assert (out.action, out.packet) == (UNSPEC, inner)
    assert a.counters() == {}
    assert a.items("macs") == []


# --- what the fallback notes --------------------------------------------------------------------


def test_no_grant_notes_the_flow(a: Node) -> None:
    a.encode(rewritten(tcp(), tos=46 << 2))
    assert a.counters() == {"fb_no_grant": 1}
    flow = a.missed()
    assert flow is not None
    assert (flow.ifindex, bytes(flow.sip), bytes(flow.dip)) == (
        a.link,
        bytes([10, 0, 0, 1]),
        bytes([10, 0, 1, 1]),
    )
    assert (bytes(flow.smac), bytes(flow.dmac)) == (raw_mac(CONTAINER_MAC), raw_mac(B_MAC))
    assert (flow.dscp, flow.variant) == (46, 0)


@pytest.mark.parametrize("packet", [tcp(), eth(ARP()), frame(TCP(), ttl=1)], ids=["TCP", "ARP", "TTL"])
def test_a_source_is_owned(a: Node, packet: bytes) -> None:
    a.encode(packet)
    ((key, seen),) = a.items("macs")
    assert (bytes(key.mac), key.link, bytes(seen.peer)) == (raw_mac(CONTAINER_MAC), LINK, bytes(4))


def test_a_group_address_is_no_source(a: Node) -> None:
    a.encode(frame(TCP(), smac="03:00:00:00:00:01"))
    assert a.items("macs") == []


def test_a_mac_that_was_at_a_peer_comes_to_us(a: Node) -> None:
    a.ingress(a.announced(frame(TCP(), smac=CONTAINER_MAC, dmac="02:aa:00:00:00:77"), "192.0.2.2"))
    ((_, seen),) = a.items("macs")
    assert bytes(seen.peer) == bytes([192, 0, 2, 2])
    a.encode(tcp())
    ((_, seen),) = a.items("macs")
    assert bytes(seen.peer) == bytes(4)


# --- link ingress -------------------------------------------------------------------------------


def test_what_arrives_through_the_tunnel_is_not_ours(a: Node) -> None:
    a.encode(tcp())
    packet = frame(TCP(), smac=CONTAINER_MAC, dmac="02:aa:00:00:00:77")
    out = a.arrive(packet, mark=0xCAFE)
    assert (out.action, out.packet, out.mark) == (UNSPEC, packet, 0xCAFE)
    assert a.items("macs") == []


def test_what_arrives_from_elsewhere_leaves_others_alone(a: Node) -> None:
    a.encode(tcp())
    a.arrive(frame(TCP(), smac="02:aa:00:00:00:77"))
    assert len(a.items("macs")) == 1


def test_decoded_packets_get_their_mark_back(a: Node) -> None:
    a.encode(tcp())
    out = a.arrive(tcp(), mark=MAGIC | DECODED, cb=(0xCAFE,))
    assert (out.action, out.packet, out.mark) == (UNSPEC, tcp(), 0xCAFE)
    assert len(a.items("macs")) == 1


# --- oversize packets on their way through the vxlan driver -------------------------------------


def big(size: int = 1451) -> bytes:
    """A packet that fits the underlay, but not with VXLAN around it."""
    return tcp(bytes(size - 40))


def test_an_oversize_packet_is_made_fragmentable_for_the_driver_only(a: Node, b: Node) -> None:
    inner = big()
    out = a.encode(inner)
    assert out.action == UNSPEC
    assert out.packet == rewritten(inner, flags="DF+evil")
    sent = a.egress(a.vxlan(out.packet, b.local))
    assert sent.packet[50:] == inner
    assert len(a.items("solicits")) == 1


def test_a_packet_that_fits_needs_no_help(a: Node) -> None:
    assert a.encode(big(1450)).packet == big(1450)


def test_a_granted_flows_renewal_passes_the_driver(a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    a.pass_time(1100_000_000)
    assert a.encode(big()).packet == rewritten(big(), flags="DF+evil")
    assert a.counters()["fb_renewal"] == 1


def test_a_containers_own_reserved_bit_is_taken_off_too(a: Node, b: Node) -> None:
    """It cannot be told from ours; RFC 791 wants it 0."""
    inner = frame(TCP(), flags="DF+evil")
    out = a.encode(inner)
    assert out.packet == inner
    sent = a.egress(a.vxlan(out.packet, b.local))
    assert sent.packet[50:] == frame(TCP())
