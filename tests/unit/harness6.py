# SPDX-License-Identifier: Apache-2.0
"""A datapath over IPv6 for the unit tests, and packets for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, in6_chksum
from scapy.packet import Packet, Raw

from kmod_ebpf import bpf, loader, summed
from kmod_ebpf import maps as m
from tests.unit.harness import (
    CLOCK,
    FIELD,
    GATEWAY_MAC,
    HELPER,
    MAGIC,
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

    def run(self, program: str, packet: bytes, ifindex: int, flags: int = 0) -> tuple[int, bytes]:
        out = bpf.prog_test_run(self.dp.programs[program], packet, context(ifindex=ifindex), flags=flags)
        return out.retval, out.data

    def encode(self, packet: bytes, flags: int = 0) -> tuple[int, bytes]:
        return self.run("xmasq_encode", packet, self.link, flags)

    def ingress(self, packet: bytes, flags: int = 0) -> tuple[int, bytes]:
        """As it arrives: in a frame for the underlay device."""
        head = raw_mac(self.underlay_mac) + raw_mac(GATEWAY_MAC)
        return self.run("xmasq_ingress", head + packet[12:], self.underlay, flags)


@pytest.fixture(scope="module", params=[FIELD, HELPER])
def host(unentered_bench: Bench, request: pytest.FixtureRequest) -> Iterator[Host]:
    """Such a host, with either form of the programs that move checksums (harness.py, checksums)."""
    if request.param == FIELD and summed.field() is None:
        pytest.skip("this kernel does not let programs see skb->ip_summed")
    cache = getattr(request.config, "cache", None)
    where = Path(cache.mkdir("xmasq-datapath")) if cache else None
    obj = loader.compile_object(where, family=6, clock=CLOCK)
    sizes = {str(spec["name"]): 1024 for spec in obj.maps if spec["type"] == 9}
    with unentered_bench.entered() as bench:
        dp = loader.load(obj, sizes, read_summed=request.param == FIELD)
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
