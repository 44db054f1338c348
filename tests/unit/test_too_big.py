# SPDX-License-Identifier: Apache-2.0
"""Full-size packets that stay in the fallback: their sender is told of the smaller MTU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, in4_chksum
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, in6_chksum
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from kmod_ebpf import maps as m
from tests.unit.harness import (
    EGRESS,
    INGRESS,
    LINK,
    MAGIC,
    MS,
    REDIRECT,
    SEC,
    TOO_BIG,
    UNSPEC,
    Node,
    Tap,
    attached,
    checksum,
    negotiate,
    raw_mac,
)
from tests.unit.packets import B_MAC, CONTAINER_MAC, DST, SRC, frame, rewritten, tcp, udp

pytestmark = pytest.mark.root

ROOM = 1500 - 50
PATIENCE = 500 * MS
SRC6, DST6 = "2001:db8:1::1", "2001:db8:2::1"


def big(size: int = ROOM + 1) -> bytes:
    """A packet that fits the underlay, but not with VXLAN around it."""
    return tcp(bytes(size - 40))


def big6(size: int = ROOM + 1, payload: Packet | None = None) -> bytes:
    """The same in IPv6, which an IPv4 underlay never encodes."""
    head = IPv6(src=SRC6, dst=DST6)
    packet = head / (payload or TCP(sport=33000, dport=80, seq=7))
    packet /= Raw(bytes(size - len(packet)))
    return bytes(Ether(src=CONTAINER_MAC, dst=B_MAC) / packet)


@pytest.fixture
def hooked(a: Node) -> Iterator[tuple[Node, Tap]]:
    """The node with its programs on the link, and a socket that sees what comes out of the link."""
    hooks = [("xmasq_encode", a.link, EGRESS), ("xmasq_arrive", a.link, INGRESS)]
    with attached(a, *hooks), Tap("xm0") as tap:
        yield a, tap


def told(hooked: tuple[Node, Tap], packet: bytes) -> bytes | None:
    """What the sender of a packet gets to hear; None for nothing."""
    node, tap = hooked
    before = node.counters().get("too_big_tx", 0)
    tap.send(packet)
    if node.counters().get("too_big_tx", 0) == before:
        return None
    clone = tap.receive()  # a tap sees it before our program does
    assert clone == packet
    return tap.receive()


def answer(packet: bytes, mtu: int = ROOM) -> bytes:
    """What scapy says that it should be."""
    inner = Ether(packet)
    eth = Ether(src=inner.dst, dst=inner.src)
    if IP in inner:
        head = IP(src=inner[IP].dst, dst=inner[IP].src, flags="DF", id=0, ttl=64)
        return bytes(eth / head / ICMP(type=3, code=4, nexthopmtu=mtu) / Raw(packet[14:54]))
    head6 = IPv6(src=inner[IPv6].dst, dst=inner[IPv6].src, hlim=64)
    return bytes(eth / head6 / ICMPv6PacketTooBig(mtu=mtu) / Raw(packet[14:74]))


NEVER = {
    "GRE": frame(b"\0\0\x88\xb5" + bytes(1440), proto=47),
    "TTL": rewritten(big(), ttl=4),
    "IPv6": big6(),
    "IPv6 UDP": big6(payload=UDP(sport=1, dport=2)),
    "local DSCP": rewritten(big(), tos=3 << 2),
}


@pytest.mark.parametrize("kind", NEVER)
def test_what_is_never_encoded_is_told_at_once(hooked: tuple[Node, Tap], kind: str) -> None:
    assert told(hooked, NEVER[kind]) == answer(NEVER[kind])


def test_a_flow_has_half_a_second_to_get_a_grant(hooked: tuple[Node, Tap]) -> None:
    node, _ = hooked
    assert told(hooked, big()) is None
    node.pass_time(PATIENCE - 200 * MS)
    assert told(hooked, big()) is None
    node.pass_time(300 * MS)
    assert told(hooked, big()) == answer(big())


def test_told_once_a_second_for_each_pair_of_addresses(hooked: tuple[Node, Tap]) -> None:
    node, _ = hooked
    other = big6()[:-1] + b"\1"
    elsewhere = big6().replace(bytes.fromhex("20010db8000200000000000000000001"), bytes(15) + b"\x09")
    assert told(hooked, big6()) is not None
    assert told(hooked, other) is None
    assert told(hooked, elsewhere) is not None
    node.pass_time(1100 * MS)
    assert told(hooked, other) is not None


def test_with_the_fast_path_off(hooked: tuple[Node, Tap]) -> None:
    node, _ = hooked
    node.set_link(flags=0)
    assert told(hooked, big()) == answer(big())


def test_a_granted_flow_is_not_told_when_it_renews(hooked: tuple[Node, Tap], b: Node) -> None:
    node, _ = hooked
    negotiate(node, b, tcp())
    for _ in range(3):
        node.pass_time(1100 * MS)
        assert told(hooked, big()) is None
        if node.counters().get("fb_renewal"):
            return
    pytest.fail("no renewal")


def test_what_can_be_encoded_only_up_to_a_length_is_told_that(hooked: tuple[Node, Tap], b: Node) -> None:
    node, _ = hooked
    node.put("underlays", node.underlay, m.Underlay(mtu=1460))
    negotiate(node, b, tcp())
    node.put("underlays", node.underlay, m.Underlay(mtu=1500))
    assert told(hooked, big(1461)) == answer(big(1461), 1460)
    assert node.counters()["fb_mtu"] == 1


@pytest.mark.parametrize(
    "packet",
    [
        big(ROOM),
        big6(ROOM),
        rewritten(udp(bytes(1472)), flags=""),
        rewritten(big(), flags="MF"),
        frame(UDP() / Raw(bytes(1450)), dmac="01:00:5e:00:00:01", dst="224.0.0.1"),
        frame(ICMP(type=3, code=1) / Raw(bytes(1450)), ttl=4),
        big6(payload=ICMPv6PacketTooBig()),
        bytes(Ether(src=CONTAINER_MAC, dst=B_MAC, type=0x88B5) / Raw(bytes(1486))),
    ],
    ids=["fits", "IPv6 fits", "DF clear", "MF", "multicast", "error", "IPv6 error", "not IP"],
)
def test_others_are_not_told(hooked: tuple[Node, Tap], packet: bytes) -> None:
    hooked[0].set_link(flags=0)
    assert told(hooked, packet) is None


def test_ipv6_is_not_told_of_less_than_it_must_carry(hooked: tuple[Node, Tap]) -> None:
    node, _ = hooked
    for mtu, heard in ((1329, False), (1330, True)):
        node.put("underlays", node.underlay, m.Underlay(mtu=mtu))
        assert (told(hooked, big6(1300)) is not None) == heard


@pytest.mark.parametrize("size", [ROOM + 1, 1500])
def test_the_packet_itself_goes_on(hooked: tuple[Node, Tap], size: int) -> None:
    with Tap("xm0p") as far:
        for packet in (big6(size), rewritten(big(size), ttl=9)):
            told(hooked, packet)
            got = far.receive()
            if packet[12:14] == b"\x08\x00":
                assert got == rewritten(packet, flags="DF+evil")  # so that the driver fragments it
            else:
                assert got == packet


# --- segments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("gso", "times"), [(ROOM - 40, 0), (ROOM - 39, 1)])
def test_a_buffer_counts_by_its_segments(a: Node, gso: int, times: int) -> None:
    a.set_link(flags=0)
    out = a.encode(tcp(bytes(3600)), gso_size=gso)
    assert out.action == UNSPEC
    # The kernel lets no clone out of a test run that has segments without a type.
    assert a.counters().get("error", 0) == times


# --- a checksum that a device has still to write ------------------------------------------------


def unfinished(packet: bytes) -> bytes:
    """As a stack hands it to a device with checksum offload: with the pseudo header's sum."""
    at = 14 + (20 if packet[12:14] == b"\x08\x00" else 40)
    inner = Ether(packet)
    head = inner[IP] if IP in inner else inner[IPv6]
    proto = packet[23] if at == 34 else packet[20]
    chksum = in4_chksum if at == 34 else in6_chksum
    place = at + (16 if proto == 6 else 6)
    data = packet[at:place] + b"\0\0" + packet[place + 2 :]
    body = checksum(data + bytes(len(data) % 2))
    whole = int(chksum(proto, head, data))
    # whole = ~(pseudo + data), body = ~data: so pseudo = ~whole - ~body
    pseudo = ((~whole & 0xFFFF) + body) % 0xFFFF
    return packet[:place] + pseudo.to_bytes(2, "big") + packet[place + 2 :]


@pytest.mark.parametrize(
    "packet",
    [
        rewritten(big(), ttl=4),
        rewritten(udp(bytes(1450)), ttl=4),
        big6(),
        big6(payload=UDP(sport=1, dport=2)),
    ],
    ids=["tcp", "udp", "tcp6", "udp6"],
)
def test_an_unfinished_checksum_in_the_quote(a: Node, packet: bytes) -> None:
    """A device that writes it makes the ICMP checksum right; before that nobody looks at it."""
    out = a.arrive(unfinished(packet), mark=MAGIC | TOO_BIG, cb=(0, ROOM))
    assert out.action == REDIRECT
    made = bytearray(out.packet)
    v4 = packet[12:14] == b"\x08\x00"
    l4 = 34 + 8 + 20 if v4 else 54 + 8 + 40
    proto = packet[23] if v4 else packet[20]
    place = l4 + (16 if proto == 6 else 6)
    made[place : place + 2] = checksum(made[l4:]).to_bytes(2, "big")  # over what is left
    icmp = bytes(made[34:] if v4 else made[54:])
    if v4:
        assert checksum(icmp) == 0
    else:
        assert in6_chksum(58, Ether(bytes(made))[IPv6], icmp) in (0, 0xFFFF)


def test_the_mark_of_the_packet_does_not_come_back(a: Node) -> None:
    out = a.arrive(big(), mark=MAGIC | TOO_BIG, cb=(0xCAFE, ROOM))
    assert out.mark & 0xF == 4
    assert out.cb[0] == 0
    assert out.packet == answer(big())
    assert raw_mac(CONTAINER_MAC) == out.packet[:6]
    assert (Ether(out.packet)[IP].dst, Ether(out.packet)[IP].src) == (SRC, DST)
    assert a.counters(LINK) == {}
    assert SEC
