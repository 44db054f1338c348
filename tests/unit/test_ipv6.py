# SPDX-License-Identifier: Apache-2.0
"""IPv6: what is encoded comes back as it was, with right checksums on the wire; the rest is left alone."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, IPv6, IPv6ExtHdrDestOpt, in6_chksum
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from kmod_ebpf import bpf, loader
from kmod_ebpf import maps as m
from tests.unit.harness import (
    CLOCK,
    GATEWAY_MAC,
    MAGIC,
    REDIRECT,
    UNSPEC,
    Bench,
    Node,
    context,
    mac,
    now,
    raw_mac,
    seal_entry,
    seal_slot,
    shown,
    u32,
)
from xmasq_link import _wire as wire

pytestmark = pytest.mark.root

T = m.TYPES[6]
A, B = "2001:db8::a", "2001:db8::b"
SRC, DST = "2001:db8:1::1", "2001:db8:2::1"
SMAC, DMAC = "02:aa:00:00:00:01", "02:aa:00:00:00:02"
KEY = wire.key6(0x123)
LINK, VNI = 1, 42


class Host:
    """One datapath that is both ends: it sends from A to B, and receives at B from A."""

    def __init__(self, dp: loader.Loaded, like: Node) -> None:
        self.dp, self.link, self.underlay = dp, like.link, like.underlay
        self.underlay_mac = like.underlay_mac
        link, underlay = self.link, self.underlay
        until = now() + 60_000_000_000
        conf = m.Conf(magic=MAGIC, mark=wire.MARK, bounce=wire.BOUNCE, salt=1, tag=2)
        self.put("conf", u32(0), conf)
        entry: Any = T.Link(ifindex=link, vni=VNI, local=T.address(A), flags=m.LINK_UP, underlay=underlay)
        entry.port, entry.mac = m.Be16(*(4789).to_bytes(2, "big")), mac(SMAC)
        entry.hooked = shown(underlay)
        self.put("links", u32(LINK), entry)
        self.put("link_ids", u32(link), u32(LINK))
        for at in (A, B):
            self.put("vteps", bytes(T.address(at)), m.Vtep(port=m.Be16(0x12, 0xB5)))
        self.put("underlays", u32(underlay), m.Underlay(mtu=1500))
        for index, ends in ((1, (A, B)), (2, (B, A))):
            local, peer = map(T.address, ends)
            pair: Any = T.Pair(local=local, peer=peer, gen=7, own_gen=3)
            pair.block[(KEY >> 4) // 64] = 1
            self.put("pairs", u32(index), pair)
            self.put("pair_ids", T.PairKey(local=local, peer=peer).raw(), u32(index))
        flow: Any = T.Flow(ifindex=link, sip=T.address(SRC), dip=T.address(DST))
        flow.smac, flow.dmac = mac(SMAC), mac(DMAC)
        live: Any = T.Entry(
            lease_end=until, local=T.address(A), peer=T.address(B), oif=underlay, pair_gen=7, pair=1,
            link=LINK, wire=wire.first_word(KEY, wire.MARK), mtu=1500, key=KEY,
        )  # fmt: skip
        live.seal = seal_entry(flow, live)
        self.put("flows", flow.raw(), live)
        slot: Any = T.Slot(
            valid=until, until=until, local=T.address(B), peer=T.address(A), key=KEY, ifindex=link,
            sip=T.address(SRC), dip=T.address(DST), smac=mac(SMAC), dmac=mac(DMAC), link=LINK,
        )  # fmt: skip
        slot.seal = seal_slot(slot)
        block: Any = T.Block(busy_until=until, owner=3, owner_gen=3, base=(KEY >> 4) // 64)
        block.slots[(KEY >> 4) % 64] = slot
        self.put("blocks", u32(0), block)

    def put(self, name: str, key: bytes, value: Any) -> None:
        self.dp.maps[name].update(key, value if isinstance(value, bytes) else value.raw())

    def run(self, program: str, packet: bytes, ifindex: int) -> tuple[int, bytes]:
        out = bpf.prog_test_run(self.dp.programs[program], packet, context(ifindex=ifindex))
        return out.retval, out.data

    def encode(self, packet: bytes) -> tuple[int, bytes]:
        return self.run("xmasq_encode", packet, self.link)

    def ingress(self, packet: bytes) -> tuple[int, bytes]:
        """As it arrives: in a frame for the underlay device."""
        head = raw_mac(self.underlay_mac) + raw_mac(GATEWAY_MAC)
        return self.run("xmasq_ingress", head + packet[12:], self.underlay)


@pytest.fixture(scope="module")
def host(unentered_bench: Bench, request: pytest.FixtureRequest) -> Iterator[Host]:
    from pathlib import Path

    cache = getattr(request.config, "cache", None)
    where = Path(cache.mkdir("xmasq-datapath")) if cache else None
    obj = loader.compile_object(where, family=6, clock=CLOCK)
    with unentered_bench.entered() as bench:
        dp = loader.load(obj, {str(spec["name"]): 1024 for spec in obj.maps if spec["type"] == 9})
        yield Host(dp, bench.a)
        dp.close()


def frame(payload: Packet | bytes, **ip: Any) -> bytes:
    fields = {"src": SRC, "dst": DST, "fl": 0xABCDE, **ip}
    body = IPv6(**fields) / (Raw(payload) if isinstance(payload, bytes) else payload)
    return raw_mac(DMAC) + raw_mac(SMAC) + b"\x86\xdd" + bytes(body)


def _checksummed(proto: int, head: bytes, data: bytes) -> bytes:
    value = int(in6_chksum(proto, IPv6(src=SRC, dst=DST), head + data))
    return head[:6] + value.to_bytes(2, "big") + head[8:] + data


ENCODED = {
    "tcp": frame(TCP(sport=1, dport=2) / Raw(b"hello")),
    "udp": frame(UDP(sport=1, dport=53) / Raw(b"odd")),
    "udp, no checksum": frame(UDP(sport=1, dport=53, chksum=0) / Raw(b"data")),
    "icmp": frame(ICMPv6EchoRequest(id=1, data=b"x" * 33)),
    "dccp": frame(_checksummed(33, bytes.fromhex("0001000204000000") + bytes(8), b"data"), nh=33),
    "udp-lite": frame(_checksummed(136, bytes.fromhex("0001000200000000"), b"data"), nh=136),
    "sctp": frame(bytes(12), nh=132),
    "esp": frame(bytes(24), nh=50),
    "unknown": frame(b"seven b", nh=253),
    "one byte": frame(b"1", nh=253),
    "full size": frame(TCP(sport=1, dport=2) / Raw(bytes(1440))),
}
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
