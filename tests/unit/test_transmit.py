# SPDX-License-Identifier: Apache-2.0
"""The programs on the hooks of devices: what really leaves, and where."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether

from kmod_ebpf import maps as m
from tests.unit.harness import (
    EGRESS,
    HOST,
    INGRESS,
    LEASE_MS,
    REDIRECT,
    SHOT,
    UNSPEC,
    VNI,
    Bench,
    Node,
    Tap,
    attached,
    negotiate,
    raw_mac,
)
from tests.unit.packets import A_MAC, CONTAINER_MAC, ENCODABLE, exact, frame, on_wire, rewritten, tcp, udp
from xmasq_link import _wire as wire
from xmasq_link.dissect import XmasqControl, classify, key_of

pytestmark = pytest.mark.root

NEIGHBOUR_MAC = "02:00:00:00:01:00"  # the other end of a's underlay device


def to_a(inner: bytes) -> bytes:
    """The packet, to the link's own address of a."""
    return raw_mac(A_MAC) + inner[6:]


@pytest.fixture(scope="module")
def hooks(unentered_bench: Bench) -> Iterator[None]:
    """All four hooks of a are in place. Making and removing them takes longer than most tests."""
    a = unentered_bench.a
    places = (
        ("xmasq_ingress", a.underlay, INGRESS),
        ("xmasq_egress", a.underlay, EGRESS),
        ("xmasq_encode", a.link, EGRESS),
        ("xmasq_arrive", a.link, INGRESS),
    )
    with contextlib.ExitStack() as stack:
        with unentered_bench.entered():
            stack.enter_context(attached(a, *places))
        yield


@pytest.fixture
def hooked(hooks: None, net: Bench) -> Iterator[tuple[Tap, Tap]]:
    """What is seen beyond the underlay and beyond the link of a."""
    with Tap("ul0p") as wire_end, Tap("xm0p") as driver:
        yield wire_end, driver


@pytest.mark.parametrize("hook", [True, False])
def test_encoded_packets_leave_by_a_device_with_our_hook_only(
    net: Bench, hooked: tuple[Tap, Tap], hook: bool
) -> None:
    """A link that was moved to another namespace finds other devices there."""
    a, b = net.a, net.b
    far, _ = hooked
    packet = tcp()
    negotiate(a, b, packet)
    if not hook:
        a.move_entry(net.other_underlay)
    a.set_link(hooked=m.Hooked())
    with Tap("ul2p") as other:
        out = a.encode(packet)
        if hook:
            assert (out.action, out.packet[14:]) == (REDIRECT, on_wire(packet, a.local, b.local, 1))
            assert a.encode(packet).action == REDIRECT
            assert other.quiet()
        else:
            # Once, by the wrong device, and nobody's there: not what was encoded.
            assert (out.action, out.packet, out.mark) == (UNSPEC, packet, 0)
            assert other.receive() == bytes(12) + packet[12:]
            for _ in range(3):
                out = a.encode(packet)
                assert (out.action, out.packet) == (UNSPEC, packet)
            assert other.quiet()
            assert a.counters()["fb_route"] == 1
            assert a.counters()["fb_expired"] == 3
            assert "encoded" not in a.counters()
        assert far.quiet()


def to_neighbour(ip: bytes) -> bytes:
    """The frame of a packet that leaves a's underlay device for b."""
    return raw_mac(NEIGHBOUR_MAC) + raw_mac("02:00:00:00:00:00") + b"\x08\x00" + ip


@pytest.mark.parametrize("kind", ENCODABLE)
def test_an_offer_leaves_beside_the_packet_that_it_was_made_of(
    a: Node, b: Node, hooked: tuple[Tap, Tap], kind: str
) -> None:
    far, _ = hooked
    inner = rewritten(to_a(ENCODABLE[kind]), tos=46 << 2)
    outer = a.announced(inner, b.local)
    with Tap("ul0") as stack:
        far.send(outer)
        assert stack.receive() == outer
    seen = Ether(far.receive())
    assert (seen.src, seen.dst) == ("02:00:00:00:00:00", NEIGHBOUR_MAC)
    assert (seen[IP].src, seen[IP].dst) == (a.local, b.local)
    assert (classify(seen), key_of(seen)) == ("control", 1)
    head = Ether(inner)[IP]
    expected = {
        "type": wire.OFFER,
        "version": 1,
        "used": 0,
        "xbits": 0,
        "seg_bits": 6,
        "vni": VNI,
        "smac": CONTAINER_MAC,
        "dmac": A_MAC,
        "sip": head.src,
        "dip": head.dst,
        "dscp": 46,
        "variant": 0,
        "key": 1,
        "lease_ms": LEASE_MS,
        "nonce_a": 0,
        "auth": 0,
    }
    assert {name: getattr(seen[XmasqControl], name) for name in expected} == expected
    assert seen[XmasqControl].nonce_b
    assert a.counters() == {"offer_tx": 1}
    assert far.quiet()


@pytest.mark.parametrize("size", [*range(0, 48, 5), 61, 100, 333, 1000, 1421])
def test_an_offer_fits_the_underlay(a: Node, b: Node, hooked: tuple[Tap, Tap], size: int) -> None:
    far, _ = hooked
    far.send(a.announced(to_a(udp(bytes(size))), b.local))
    offer = far.receive()
    assert len(offer) <= 14 + 1500
    assert len(offer) == 14 + Ether(offer)[IP].len
    assert wire.Control.unpack(offer[42:]).type == wire.OFFER


def test_a_whole_handshake_and_what_follows(a: Node, b: Node, hooked: tuple[Tap, Tap]) -> None:
    far, driver = hooked
    inner = tcp(b"hello")
    with Tap("xm0") as link:
        link.send(inner)
        assert driver.receive() == inner  # it is let go to the driver
        a.stamp(0)
        outer = a.egress(a.vxlan(inner, b.local)).packet
        offer = b.offer(b.arriving(outer))
        assert offer is not None
        far.send(a.arriving(offer))
        accept = far.receive()
        assert accept[:14] == to_neighbour(b"")
        confirm = b.ingress(b.arriving(accept))
        far.send(a.arriving(confirm.packet))
        assert far.quiet()
        link.send(inner)
    sent = far.receive()
    assert sent == to_neighbour(on_wire(inner, a.local, b.local, 1))
    assert b.ingress(b.arriving(sent)).packet == exact(inner)
    assert driver.quiet()
    assert a.counters(HOST) == {}  # nothing was sanitised


@pytest.mark.parametrize("kind", ENCODABLE)
def test_a_decoded_packet_comes_out_of_the_link(a: Node, b: Node, hooked: tuple[Tap, Tap], kind: str) -> None:
    far, _ = hooked
    inner = to_a(ENCODABLE[kind])
    negotiate(b, a, inner)
    packet = b.encode(inner).packet
    with Tap("xm0") as link:
        far.send(a.arriving(packet))
        assert link.receive() == exact(inner)
    assert a.counters()["decoded"] == 1


def test_a_confirm_leaves_through_the_device_where_the_accept_came_in(
    a: Node, b: Node, hooked: tuple[Tap, Tap]
) -> None:
    far, _ = hooked
    inner = to_a(tcp())
    offer = a.offer(a.arriving(b.fallback(inner, a.local)))
    assert offer is not None
    far.receive()  # the clone's OFFER
    accept = b.ingress(b.arriving(offer))
    far.send(a.arriving(accept.packet))
    confirm = far.receive()
    assert confirm[:14] == to_neighbour(b"")
    assert wire.Control.unpack(confirm[42:]).type == wire.CONFIRM
    assert b.ingress(b.arriving(confirm)).action == SHOT
    assert b.only_flow()[1].key == 1


def test_a_bounced_packet_goes_back(a: Node, b: Node, hooked: tuple[Tap, Tap]) -> None:
    far, _ = hooked
    inner = tcp(b"hello")
    far.send(a.arriving(bytes(14) + on_wire(inner, b.local, a.local, 9)))
    assert far.receive() == to_neighbour(on_wire(inner, a.local, b.local, 9, base=wire.BOUNCE))
    assert a.counters(HOST) == {"bounce_tx": 1}


def test_a_bounced_packet_leaves_the_link_once_more(a: Node, b: Node, hooked: tuple[Tap, Tap]) -> None:
    far, driver = hooked
    inner = tcp(b"hello")
    negotiate(a, b, inner)
    far.send(a.arriving(bytes(14) + on_wire(inner, b.local, a.local, 1, base=wire.BOUNCE)))
    assert driver.receive() == exact(inner)
    assert a.counters()["restored"] == 1
    assert a.counters()["fb_expired"] == 1
    assert far.quiet()


# --- where would our driver send? ---------------------------------------------------------------


def test_the_driver_is_asked_about_a_peer_that_it_has_not_sent_to(
    a: Node, b: Node, hooked: tuple[Tap, Tap]
) -> None:
    far, driver = hooked
    inner = to_a(tcp(bytes(100)))
    outer = a.announced(inner, b.local, told=False)
    far.send(outer)
    assert a.counters() == {"untold": 1}
    assert far.quiet()
    driver.send(inner)  # the driver takes it in; the link's ingress hook asks
    question = driver.receive()
    assert question[:14] == raw_mac(CONTAINER_MAC) + raw_mac(A_MAC) + b"\x88\xb5"
    assert len(question) == 64
    assert driver.quiet()
    a.stamp(0)
    answer = a.egress(a.vxlan(question, b.local))  # its FDB has the peer
    assert answer.action == SHOT
    far.send(outer)
    assert wire.Control.unpack(far.receive()[42:]).type == wire.OFFER


def test_the_driver_is_asked_once(a: Node, b: Node, hooked: tuple[Tap, Tap]) -> None:
    far, driver = hooked
    inner = to_a(tcp())
    far.send(a.announced(inner, b.local, told=False))
    driver.send(inner)
    driver.receive()
    driver.send(inner)
    assert driver.quiet()


def test_a_question_says_nothing_of_who_is_asked_about(a: Node, b: Node) -> None:
    """A frame of that type which is not ours is a frame like any other."""
    question = frame()[:12] + b"\x88\xb5" + bytes(50)
    outer = a.vxlan(question, b.local)
    out = a.egress(outer)
    assert out.action == UNSPEC
    assert out.packet[34:] == outer[34:]


# --- other traffic ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "packet",
    [
        bytes(Ether(src=CONTAINER_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(psrc="10.0.0.1", pdst="10.0.0.2")),
        frame(TCP(), ttl=1),
        frame(UDP(), dmac="ff:ff:ff:ff:ff:ff"),
        tcp(),
    ],
    ids=["ARP", "TTL", "broadcast", "no grant"],
)
def test_what_is_not_encoded_reaches_the_driver(a: Node, hooked: tuple[Tap, Tap], packet: bytes) -> None:
    _, driver = hooked
    with Tap("xm0") as link:
        link.send(packet)
    assert driver.receive() == packet


def test_marks_of_others_do_not_leave(net: Bench, a: Node, hooked: tuple[Tap, Tap]) -> None:
    far, _ = hooked
    packet = to_neighbour(frame(TCP(), src="192.0.2.1", dst="192.0.2.2", tos=wire.MARK << 2 | 1)[14:])
    with Tap("ul0") as device:
        device.send(packet)
    assert far.receive() == rewritten(packet, tos=1)
