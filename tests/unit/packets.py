# SPDX-License-Identifier: Apache-2.0
"""Packets for the tests, and what scapy says that they should look like on the wire."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP, in4_chksum
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkData
from scapy.packet import Packet, Raw

from xmasq_link import _wire as wire

#: A container behind a, and the MACs of the links of a and b.
CONTAINER_MAC, A_MAC, B_MAC = "02:aa:00:00:00:01", "02:00:00:00:00:03", "02:00:00:00:00:04"
SRC, DST = "10.0.0.1", "10.0.1.1"
DCCP, UDPLITE = 33, 136


def frame(
    payload: Packet | bytes = b"",
    *,
    src: str = SRC,
    dst: str = DST,
    smac: str = CONTAINER_MAC,
    dmac: str = B_MAC,
    flags: str = "DF",
    **ip: Any,
) -> bytes:
    """An IPv4 packet of a container. ip: further fields of scapy's IP."""
    head = bytes(Ether(src=smac, dst=dmac))[:12] + b"\x08\x00"
    packet = IP(src=src, dst=dst, flags=flags, **ip)
    return head + (bytes(packet / payload) if payload else bytes(packet))


def _checksummed(proto: int, head: bytes, data: bytes) -> bytes:
    """An L4 header whose checksum, over all and a pseudo header, stands at offset 6."""
    ip = IP(src=SRC, dst=DST, proto=proto)
    value = int(in4_chksum(proto, ip, head + data))
    return head[:6] + value.to_bytes(2, "big") + head[8:] + data


def tcp(data: bytes = b"", **fields: Any) -> bytes:
    """A TCP packet."""
    return frame(TCP(**{"sport": 33000, "dport": 80, "seq": 7, "flags": "PA", **fields}) / Raw(data))


def udp(data: bytes = b"", dport: int = 53, **fields: Any) -> bytes:
    """A UDP packet."""
    return frame(UDP(sport=33000, dport=dport, **fields) / Raw(data))


def with_checksum_zero(make: Callable[[bytes], bytes]) -> bytes:
    """A TCP or UDP packet whose data make its checksum 0, or ffff where 0 has a meaning (UDP)."""
    value = int(Ether(make(b"\0\0"))[IP].payload.chksum)
    return make(value.to_bytes(2, "big"))


#: One of each kind that is encoded.
ENCODABLE: dict[str, bytes] = {
    "tcp": tcp(b"hello, world"),
    "tcp, odd": tcp(b"hello"),
    "tcp, empty": tcp(),
    "tcp, options": tcp(b"x" * 99, options=[("MSS", 1460), ("Timestamp", (1, 2)), ("SAckOK", b"")]),
    "tcp, large": tcp(bytes(range(256)) * 5),
    "tcp, cut off": frame(b"\1\2\3\4\5\6\7\10\11\12\13\14\15\16\17\20\21", proto=6),
    "udp": udp(b"hello!"),
    "udp, odd": udp(b"hello"),
    "udp, empty": udp(),
    "udp, no checksum": udp(b"hello", chksum=0),
    "udp, checksum ffff": with_checksum_zero(udp),
    "udp, cut off": frame(b"\0\1\0\2\0", proto=17),
    "icmp": frame(ICMP(id=1, seq=2) / Raw(bytes(56))),
    "icmp, odd": frame(ICMP(id=1, seq=2) / Raw(b"odd")),
    "sctp": frame(SCTP(sport=1, dport=2) / SCTPChunkData(data=b"hello")),
    "dccp": frame(_checksummed(DCCP, bytes.fromhex("0001000204000000") + bytes(8), b"data"), proto=DCCP),
    "udp-lite": frame(_checksummed(UDPLITE, bytes.fromhex("0001000200000000"), b"data"), proto=UDPLITE),
    "esp": frame(b"\0\0\0\1\0\0\0\2secret", proto=50),
    "unknown, odd": frame(b"seven b", proto=253),
    "one byte": frame(b"1", proto=253),
    "ident": frame(UDP(sport=1, dport=2) / Raw(b"x"), id=0xBEEF),
}


def on_wire(
    inner: bytes,
    src: str,
    dst: str,
    key: int,
    *,
    base: int = wire.MARK,
    seg_bits: int = wire.SEG_BITS,
    **ip: Any,
) -> bytes:
    """What scapy makes of a container's packet between two VTEPs, from the IP header on."""
    ecn = Ether(inner)[IP].tos & 3
    fields = {
        "src": src,
        "dst": dst,
        "id": wire.wire_id(key, seg_bits),
        "tos": wire.wire_dscp(key, base, seg_bits) << 2 | ecn,
        "flags": "DF",
        **ip,
    }
    return rewritten(inner, **fields)[14:]


def rewritten(inner: bytes, **ip: Any) -> bytes:
    """A packet with other fields in its IP header, and checksums as scapy computes them."""
    packet = Ether(inner)
    head = packet[IP]
    for name, value in ip.items():
        setattr(head, name, value)
    del head.chksum
    if TCP in head and len(head.payload) >= 20:
        del head[TCP].chksum
    elif UDP in head and head[UDP].chksum:
        del head[UDP].chksum
    elif head.proto in (DCCP, UDPLITE):
        data = bytes(head.payload)
        zero = data[:6] + b"\0\0" + data[8:]
        value = in4_chksum(head.proto, head, zero)
        head.payload = Raw(data[:6] + value.to_bytes(2, "big") + data[8:])
    return bytes(packet)


def exact(inner: bytes, **ip: Any) -> bytes:
    """The packet after decode: the Identification of an atomic datagram comes back as 0."""
    return rewritten(inner, id=0, **ip)
