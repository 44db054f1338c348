# SPDX-License-Identifier: Apache-2.0
"""Captured packets by themselves: their lines, and their file."""

from __future__ import annotations

import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.utils import PcapNgReader

from kmod_ebpf import maps as m
from xmasq_link import Frame
from xmasq_link._capture import Capture
from xmasq_link._pcapng import Writer

MACS = {"src": "02:00:00:00:00:01", "dst": "02:00:00:00:00:02"}
ADDRESSES = {"src": "198.51.100.2", "dst": "198.51.100.18"}
ENDS = "198.51.100.2 > 198.51.100.18"


def line(packet) -> str:
    data = bytes(packet)
    return str(Frame(0, "out", len(data), data))


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (
            IP(**ADDRESSES) / TCP(sport=1234, dport=80, flags="S", seq=7, window=100),
            "IP 198.51.100.2.1234 > 198.51.100.18.80: Flags [S], seq 7, win 100, length 0",
        ),
        (
            IP(**ADDRESSES) / TCP(sport=1, dport=2, flags="PA", seq=7, ack=9, window=1) / b"hello",
            "IP 198.51.100.2.1 > 198.51.100.18.2: Flags [P.], seq 7, ack 9, win 1, length 5",
        ),
        (
            IP(**ADDRESSES) / UDP(sport=53, dport=4000) / b"abc",
            "IP 198.51.100.2.53 > 198.51.100.18.4000: UDP, length 3",
        ),
        (
            IP(**ADDRESSES) / ICMP(id=3, seq=4) / bytes(56),
            f"IP {ENDS}: ICMP echo request, id 3, seq 4, length 64",
        ),
        (IP(**ADDRESSES) / ICMP(type=3, code=4), f"IP {ENDS}: ICMP unreachable, length 8"),
        (IP(**ADDRESSES, proto=132) / bytes(12), f"IP {ENDS}: SCTP, length 12"),
        (IP(**ADDRESSES, proto=200) / bytes(12), f"IP {ENDS}: protocol 200, length 12"),
        (IP(**ADDRESSES, proto=17, frag=185) / bytes(8), f"IP {ENDS}: fragment at 1480, length 8"),
        (
            IPv6(src="2001:db8::1", dst="2001:db8::2") / ICMPv6EchoRequest(id=1, seq=2),
            "IP6 2001:db8::1 > 2001:db8::2: ICMP6 echo request, id 1, seq 2, length 8",
        ),
        (
            IPv6(src="2001:db8::1", dst="2001:db8::2") / ICMPv6ND_NS(tgt="2001:db8::2"),
            "IP6 2001:db8::1 > 2001:db8::2: ICMP6 neighbor solicitation, length 24",
        ),
        (
            ARP(op=1, psrc="198.51.100.2", pdst="198.51.100.18"),
            "ARP, who has 198.51.100.18, tell 198.51.100.2",
        ),
        (
            ARP(op=2, psrc="198.51.100.2", hwsrc="02:00:00:00:00:01", pdst="198.51.100.18"),
            "ARP, 198.51.100.2 is at 02:00:00:00:00:01",
        ),
        (
            Dot1Q(vlan=7) / IP(**ADDRESSES) / UDP(sport=1, dport=2),
            f"vlan 7, IP {ENDS}".replace(" >", ".1 >") + ".2: UDP, length 0",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_line(packet, expected):
    assert line(Ether(**MACS) / packet) == expected


def test_an_unknown_ethertype():
    assert line(Ether(**MACS, type=0x88CC) / b"12345678") == (
        "02:00:00:00:00:01 > 02:00:00:00:00:02, ethertype 0x88cc, length 22"
    )


@given(data=st.binary(max_size=80))
def test_whatever_comes_is_one_line(data):
    text = str(Frame(0, "in", len(data), data))
    assert text
    assert text.isprintable()


@given(kind=st.sampled_from([b"\x08\0\x45", b"\x86\xdd\x60", b"\x08\x06\0"]), data=st.binary(max_size=80))
def test_whatever_is_cut_short_is_one_line(kind, data):
    assert str(Frame(0, "in", 1500, bytes(12) + kind + data)).isprintable()


FRAMES = [
    Frame(1_700_000_000_123_456_789, "out", 60, bytes(range(60))),
    Frame(1_700_000_001_000_000_001, "in", 9000, bytes(61)),
]


def test_scapy_reads_the_file():
    file = io.BytesIO()
    writer = Writer(file, "xm0", 61)
    writer.packets(FRAMES)
    writer.end(1_700_000_002_000_000_000, 2, 5)
    file.seek(0)
    packets = list(PcapNgReader(file))
    assert [bytes(packet) for packet in packets] == [frame.data for frame in FRAMES]
    assert [packet.wirelen for packet in packets] == [60, 9000]
    assert [int(packet.time * 1_000_000_000) for packet in packets] == [f.time_ns for f in FRAMES]


def test_the_blocks_are_as_the_draft_has_them():
    file = io.BytesIO()
    writer = Writer(file, "xm0", 61)
    writer.packets(FRAMES)
    writer.end(0, 2, 5)
    data, blocks = file.getvalue(), []
    while data:
        kind, size = struct.unpack_from("=II", data)
        assert size % 4 == 0
        assert struct.unpack_from("=I", data, size - 4) == (size,)
        blocks.append((kind, data[8 : size - 4]))
        data = data[size:]
    assert [kind for kind, _ in blocks] == [0x0A0D0D0A, 1, 6, 6, 5]
    flags = [
        body[20 + (len(f.data) + 3) // 4 * 4 :] for (_, body), f in zip(blocks[2:4], FRAMES, strict=True)
    ]
    flags = [struct.unpack_from("=HHI", options) for options in flags]
    assert flags == [(2, 4, 2), (2, 4, 1)]
    assert blocks[4][1][12:] == struct.pack("=HHQHHQI", 4, 8, 2, 5, 8, 5, 0)


def test_a_tag_beside_the_packet_is_put_back():
    cut = Capture.__new__(Capture)
    cut.snaplen, cut._wall = 50, 1_000
    data = bytes(Ether(**MACS) / IP(**ADDRESSES) / UDP(sport=1, dport=2) / bytes(20))
    head = m.Frame(at=5, len=len(data), caplen=50, vlan_tci=7, direction=m.FRAME_OUT)
    head.vlan_proto = m.Be16(0x81, 0)
    frame = cut._frame(bytes(head) + data[:50] + bytes(6))
    assert (frame.time_ns, frame.direction, frame.length, len(frame.data)) == (
        1_005,
        "out",
        len(data) + 4,
        50,
    )
    assert str(frame) == f"vlan 7, IP {ENDS}".replace(" >", ".1 >") + ".2: UDP, length 20"
