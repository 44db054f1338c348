# SPDX-License-Identifier: Apache-2.0
"""Runs the real programs on packets, without a network (BPF_PROG_TEST_RUN).

A Bench is a network namespace with two nodes, a (192.0.2.1) and b (192.0.2.2): each a datapath of
its own with one link. Nothing is attached to a device unless a test does that; packets go from
program to program in the test's hands.

Programs and namespaces belong to threads, and some maps to CPUs, so a test runs within
`with bench.entered():` on one CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute
from pyroute2.netns import setns

from kmod_ebpf import bpf, loader, summed
from kmod_ebpf import maps as m
from xmasq_link import _wire as wire

# Actions of the programs (linux/pkt_cls.h).
UNSPEC, SHOT, REDIRECT = -1, 2, 7
# enum kind in src/state.h
ENCODED, CONTROL, OFFER, DECODED, ASK, TOO_BIG = 1, 2, 3, 4, 5, 6
CB_MARK, CB_KEY, CB_NONCE, CB_LINK, CB_FLAGS = range(5)

SEC = 1_000_000_000
MS = 1_000_000
MAGIC = 0x5EA1ED00
VNI = 42
LEASE_MS, GUARD_MS = 10_000, 5_000
HOST = 0  # index of the counters that belong to no link
LINK = 1  # index of a node's link

GATEWAY_MAC = "02:00:00:00:00:fe"  # of whatever is at the other end of an underlay device

# Hooks of a device, and all protocols (linux/pkt_sched.h, linux/if_ether.h).
INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
_ETH_P_ALL = 3
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


#: Where the programs' clock stands, in ns: a week and more after boot. So nothing depends on how slow the
#: machine is, and time passes by pass_time() only.
CLOCK = 1_000_000 * SEC


def now() -> int:
    """The programs' clock, in ns."""
    return CLOCK


def shown(underlay: int) -> Any:
    """What a link has when the hook of its underlay device was seen (src/route.h, way_hooked), for good.

    Test runs send nothing, and no hook is there.
    """
    hooked = m.Hooked()
    hooked[underlay % m.LINK_UNDERLAYS] = underlay << 32 | (now() >> 20) + (1 << 28) & 0xFFFFFFFF
    return hooked


#: The programs that move checksums, which they do in two ways (src/csum.h, ip_summed).
MOVERS = ("xmasq_encode", "xmasq_ingress")
FIELD, HELPER = "field", "helper"


def u32(value: int) -> bytes:
    """A key or value that is a plain number."""
    return value.to_bytes(4, "little")


def raw_mac(text: str) -> bytes:
    """A MAC as on the wire."""
    return bytes.fromhex(text.replace(":", ""))


def mac(text: str) -> m.Mac:  # type: ignore[valid-type]
    """A MAC as the maps have it."""
    return m.Mac(*raw_mac(text))


def be32(text: str) -> m.Be32:  # type: ignore[valid-type]
    """An address as the maps have it."""
    return m.Be32(*ipaddress.IPv4Address(text).packed)


def be16(value: int) -> m.Be16:  # type: ignore[valid-type]
    """A port as the maps have it."""
    return m.Be16(*value.to_bytes(2, "big"))


# --- seals (src/seal.h) -------------------------------------------------------------------------

_WORD = (1 << 64) - 1
_ONE = 0x27D4EB2F165667C5
#: For an entry's own words, what stands behind them, two addresses, and a flow.
_OWN = (
    *(0x6C8E9CF5, 0x5BD1E995, 0x38495AB5, 0x7FEB352D, 0x1B873593, 0x2C1B3C6D),
    *(0x297A2D39, 0x4F4C574B, 0x6B43A9B5, 0x45D9F3B3, 0x3C6EF363, 0x52DCE729),
)
_LAST = 0x2545F491
_ENDS = (0x5851F42D, 0x4C957F2D, 0x14057B7F, 0x369DEA0F)
_FLOW = (
    *(0x165667B1, 0x27D4EB2F, 0x1A85EC53, 0x4CF5AD43, 0x58996501),
    *(0x44CCAB45, 0x3B9B1111, 0x73A3D4E7, 0x6659FD93),
)


def _sum(raw: bytes, constants: tuple[int, ...]) -> int:
    words = struct.unpack(f"<{len(raw) // 8}Q", raw)
    return sum(w * c for w, c in zip(words, constants[: len(words)], strict=True))


def _last(raw: bytes) -> int:
    """What is less than a word counts as its upper bytes."""
    return int.from_bytes(raw, "little") << 8 * (8 - len(raw)) & _WORD


def seal_entry(f: m.Struct, e: Any) -> int:
    """The seal of a sender's entry of either family: from lease_end up to mtu, the addresses, the flow."""
    own = e.raw()[type(e).lease_end.offset : type(e).sent.offset]
    ends = _sum(bytes(e.local) + bytes(e.peer), _ENDS)
    return (_ONE + _sum(own[:24], _OWN) + _last(own[24:]) * _LAST + ends + _sum(f.raw(), _FLOW)) & _WORD


def seal_slot(s: Any) -> int:
    """The seal of a receiver's slot of either family: over all from valid up to rx_gen."""
    own = s.raw()[type(s).valid.offset : type(s).used.offset]
    return (_ONE + _sum(own[:-4], _OWN) + _last(own[-4:]) * _LAST) & _WORD


def seal_solicit(f: m.Flow, s: m.Solicit) -> int:
    """The seal of a solicit."""
    return (_ONE + _sum(s.raw()[:24], _OWN) + _sum(f.raw(), _FLOW)) & _WORD


def seal_pending(f: m.Flow, p: m.Pending) -> int:
    """The seal of a pending."""
    return (_ONE + _sum(p.raw()[:40], _OWN) + _sum(f.raw(), _FLOW)) & _WORD


def seal_txkey(k: m.TxkeyKey, t: m.Txkey) -> int:
    """The seal of a sender's note of a key."""
    return (_ONE + _sum(k.raw(), _OWN) + t.until * _LAST + _sum(t.flow.raw(), _FLOW)) & _WORD


# --- nodes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What a program did: its action, the packet after it, and what it left in the context."""

    action: int
    packet: bytes
    mark: int
    cb: tuple[int, ...]
    priority: int = 0

    @property
    def kind(self) -> int:
        """The kind that the mark says, or the priority where that waits; 0 if it is none of ours."""
        for value in (self.mark, self.priority):
            if value & ~0xF == MAGIC:
                return value & 0xF
        return 0

    @property
    def left(self) -> dict[str, Any]:
        """What the next program finds in the context."""
        return {"mark": self.mark, "cb": self.cb, "priority": self.priority}


def context(**fields: Any) -> bytes:
    """A struct __sk_buff (uapi/linux/bpf.h) with these fields."""
    offsets = {
        "mark": 8,
        "priority": 32,
        "ingress_ifindex": 36,
        "ifindex": 40,
        "wire_len": 160,
        "gso_segs": 164,
        "gso_size": 176,
    }
    raw = bytearray(192)
    for word, value in enumerate(fields.pop("cb", ())):
        struct.pack_into("<I", raw, 48 + 4 * word, value)
    for name, value in fields.items():
        struct.pack_into("<I", raw, offsets[name], value)
    return bytes(raw)


def _result(out: bpf.Run) -> Result:
    return Result(
        out.retval,
        out.data,
        int.from_bytes(out.ctx[8:12], "little"),
        struct.unpack_from("<5I", out.ctx, 48),
        int.from_bytes(out.ctx[32:36], "little"),
    )


class Node:
    """A host: a loaded datapath with one link, LINK, and one underlay device.

    by_helper: those of its programs that move checksums, in the form for kernels that do not let them see
    skb->ip_summed.
    """

    def __init__(
        self,
        dp: loader.Loaded,
        local: str,
        link: tuple[int, str],
        underlay: tuple[int, str],
        by_helper: dict[str, int],
    ) -> None:
        self.dp = dp
        self.by_helper = by_helper
        self.local = local
        self.link, self.link_mac = link
        self.underlay, self.underlay_mac = underlay
        self._zeros: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return f"Node({self.local})"

    # Programs

    def run(self, program: str, packet: bytes, *, flags: int = 0, **ctx: Any) -> Result:
        """Runs a program once. flags: bpf.TEST_COMPLETE. ctx: fields of struct __sk_buff."""
        try:
            out = bpf.prog_test_run(self.dp.programs[program], bytes(packet), context(**ctx), flags=flags)
        except OSError as e:
            if e.errno == errno.EINVAL and ctx.pop("ingress_ifindex", None):
                self.run(program, packet, flags=flags, **ctx)  # or something else is wrong
                pytest.skip("this kernel's test runs cannot set ingress_ifindex")
            raise
        return _result(out)

    def encode_at_once(self, packets: list[bytes]) -> list[Result]:
        """As :meth:`encode`, with as little time as can be from one packet to the next."""
        fd, ctx = self.dp.programs["xmasq_encode"], context(ifindex=self.link)
        runs = [bpf.prepare_test_run(fd, packet, ctx) for packet in packets]
        done = [run() for run in runs]
        self.stamp(0)
        return [_result(out) for out in done]

    def encode(self, packet: bytes, **ctx: Any) -> Result:
        """A packet leaves through the link.

        If it is let go, egress is to know the packet again by a stamp in skb->tc_index. A test run
        can neither show that nor set it, so the stamp is taken off: it is 0, as in all test runs.
        """
        out = self.run("xmasq_encode", packet, **{"ifindex": self.link, **ctx})
        self.stamp(0)
        return out

    def stamp(self, value: int) -> None:
        """Makes this the stamp of the packet that encode let go last."""
        scratch = self.scratch()
        for cpu in scratch:
            cpu.stamp = value
        self.put_scratch(scratch)

    def arrive(self, packet: bytes, **ctx: Any) -> Result:
        """A packet comes out of the link."""
        return self.run("xmasq_arrive", packet, **{"ifindex": self.link, **ctx})

    def ingress(self, packet: bytes, **ctx: Any) -> Result:
        """A packet comes in from the underlay."""
        return self.run("xmasq_ingress", packet, **{"ifindex": self.underlay, **ctx})

    def egress(self, packet: bytes, **ctx: Any) -> Result:
        """A packet leaves through the underlay."""
        return self.run("xmasq_egress", packet, **{"ifindex": self.underlay, **ctx})

    # Maps

    def get(self, name: str, key: Any) -> Any:
        """A value, as a structure or a number; None if it is not there."""
        _, value_type = m.LAYOUT[name]
        raw = self.dp.maps[name].lookup(key.raw() if isinstance(key, m.Struct) else u32(key))
        if raw is None:
            return None
        return value_type.parse(raw) if value_type else int.from_bytes(raw, "little")

    def put(self, name: str, key: Any, value: Any) -> None:
        """Sets a value."""
        self.dp.maps[name].update(
            key.raw() if isinstance(key, m.Struct) else u32(key),
            value.raw() if isinstance(value, m.Struct) else u32(value),
        )

    def items(self, name: str) -> list[tuple[Any, Any]]:
        """All keys and values."""
        key_type, value_type = m.LAYOUT[name]
        return [
            (
                key_type.parse(k) if key_type else int.from_bytes(k, "little"),
                value_type.parse(v) if value_type else int.from_bytes(v, "little"),
            )
            for k, v in self.dp.maps[name].items()
        ]

    def change(self, name: str, key: Any, /, **fields: Any) -> None:
        """Sets fields of a value."""
        value = self.get(name, key)
        for field_name, new in fields.items():
            setattr(value, field_name, new)
        self.put(name, key, value)

    def conf(self, **fields: Any) -> None:
        """Changes settings of the datapath."""
        self.change("conf", 0, **fields)

    def set_link(self, **fields: Any) -> None:
        """Changes settings of the link."""
        self.change("links", LINK, **fields)

    def share_secret(self, secret: bytes) -> None:
        """Control packets of the link must bear an authenticator from now on. secret: 16 bytes."""
        link = self.get("links", LINK)
        link.flags |= m.LINK_SECRET
        link.secret = m.Secret.from_buffer_copy(secret)
        self.put("links", LINK, link)

    def counters(self, index: int = LINK) -> dict[str, int]:
        """The counters of a link (or of HOST) that are not 0."""
        raw = self.dp.maps["stats"].lookup(u32(index))
        assert raw is not None
        total = [sum(c) for c in zip(*struct.iter_unpack(f"<{len(m.COUNTERS)}Q", raw), strict=True)]
        return {name: n for name, n in zip(m.COUNTERS, total, strict=True) if n}

    def clear_counters(self) -> None:
        """Sets all counters to 0."""
        for index in (HOST, LINK):
            self._zero("stats", index)

    def flow(self, **fields: Any) -> m.Flow:
        """The key of a flow of this link; ifindex is filled in."""
        return m.Flow(ifindex=self.link, **fields)

    def scratch(self) -> list[m.Scratch]:
        """What each CPU has."""
        raw = self.dp.maps["scratch"].lookup(u32(0))
        assert raw is not None
        size = ctypes.sizeof(m.Scratch)
        return [m.Scratch.parse(raw[i : i + size]) for i in range(0, len(raw), size)]

    def put_scratch(self, scratch: list[m.Scratch]) -> None:
        """Sets what each CPU has."""
        self.dp.maps["scratch"].update(u32(0), b"".join(cpu.raw() for cpu in scratch))

    def missed(self) -> m.Flow | None:
        """The flow that encode noted when it let a packet go, if the last one was of such a kind."""
        return next((x.missed for x in self.scratch() if x.missed_at), None)

    def only_flow(self) -> tuple[m.Flow, m.Entry]:
        """The only flow that this node encodes."""
        ((f, e),) = self.items("flows")
        return f, e

    def move_entry(self, underlay: int) -> None:
        """Has the only flow that this node encodes leave by another device."""
        f, e = self.only_flow()
        e.oif = underlay
        e.seal = seal_entry(f, e)
        self.put("flows", f, e)

    def slot(self, key: int) -> tuple[int, int, m.Block, m.Slot]:
        """Where a key lies that this node has given: block index, place, block and slot."""
        for at, block in self.blocks():
            place = key % m.BLOCK_KEYS
            if block.base == key // m.BLOCK_KEYS and block.slots[place].key == key:
                return at, place, block, block.slots[place]
        raise LookupError(key)

    def blocks(self) -> list[tuple[int, m.Block]]:
        """The blocks that were ever handed out."""
        hand = min(self.get("pool", 0).block_hand, self.dp.maps["blocks"].max_entries)
        return [(i, self.get("blocks", i)) for i in range(hand)]

    def pair(self, peer: str) -> tuple[int, m.Pair]:
        """Index and state of the pair with a peer."""
        index = self.get("pair_ids", m.PairKey(local=be32(self.local), peer=be32(peer)))
        assert index
        return index, self.get("pairs", index)

    # Time

    def pass_time(self, ns: int) -> None:
        """As if so much time had passed: all times in the maps become older."""
        for name, times in _TIMES.items():
            for key, value in self._used(name):
                for t in times:
                    _earlier(value, t, ns)
                if name == "blocks":
                    raw, size = bytes(value.slots), ctypes.sizeof(m.Slot)
                    for i in range(m.BLOCK_KEYS):
                        if any(raw[i * size : (i + 1) * size]):
                            s = value.slots[i]
                            for t in ("valid", "until", "offered"):
                                _earlier(s, t, ns)
                            if s.seal:
                                s.seal = seal_slot(s)
                elif name in _SEALS:
                    value.seal = _SEALS[name](key, value)
                self.put(name, key, value)
        scratch = self.scratch()
        for cpu in scratch:
            for t in ("missed_at", "let_go_at"):
                _earlier(cpu, t, ns)
        self.put_scratch(scratch)

    def _used(self, name: str) -> list[tuple[Any, Any]]:
        if name == "blocks":
            return self.blocks()
        if name == "pairs":
            return [(i, self.get("pairs", i)) for i in range(1, self.get("pool", 0).pair_hand + 1)]
        return self.items(name)

    # State

    def reset(self) -> None:
        """Back to the state after link creation."""
        pool = self.get("pool", 0)
        for i in range(min(pool.block_hand, self.dp.maps["blocks"].max_entries)):
            self._zero("blocks", i)
        for i in range(1, min(pool.pair_hand + 1, self.dp.maps["pairs"].max_entries)):
            self._zero("pairs", i)
        self._zero("pool", 0)
        self._zero("scratch", 0)
        self.clear_counters()
        for name, opened in self.dp.maps.items():
            if opened.type in (1, 9):  # hash, LRU hash
                self._empty(name)
        self.put(
            "conf",
            0,
            m.Conf(
                magic=MAGIC,
                mark=wire.MARK,
                bounce=wire.BOUNCE,
                seg_bits=wire.SEG_BITS,
                salt=0x1234,
                tag=0x5678,
                ports=(1 << 64) - 1,
            ),
        )
        self.put(
            "links",
            LINK,
            m.Link(
                ifindex=self.link,
                vni=VNI,
                local=be32(self.local),
                port=be16(wire.PORT),
                mac=mac(self.link_mac),
                flags=m.LINK_UP | m.LINK_LEARNING,
                lease_ms=LEASE_MS,
                guard_ms=GUARD_MS,
                tx_gen=1,
                rx_gen=1,
                underlays=m.Underlays(self.underlay),
                hooked=shown(self.underlay),
            ),
        )
        self.put("link_ids", self.link, LINK)
        self.put("vnis", m.VniKey(local=be32(self.local), vni=VNI), LINK)
        self.dp.maps["vteps"].update(bytes(be32(self.local)), m.Vtep(port=be16(wire.PORT)).raw())
        self.put("underlays", self.underlay, m.Underlay(mtu=1500))

    def tell(self, peer: str) -> None:
        """As if a fallback packet had just left for this peer: only such a one gets keys."""
        self.put("told", m.PairKey(local=be32(self.local), peer=be32(peer)), m.U64(at=now()))

    def _zero(self, name: str, index: int) -> None:
        zero = self._zeros.get(name)
        opened = self.dp.maps[name]
        if zero is None:
            copies = bpf.possible_cpus() if opened.percpu else 1
            zero = self._zeros[name] = bytes((opened.value_size + 7) // 8 * 8 * copies)
        opened.update(u32(index), zero[: len(zero) if opened.percpu else opened.value_size])

    def _empty(self, name: str) -> None:
        opened = self.dp.maps[name]
        for key in [k for k, _ in opened.items()]:
            opened.delete(key)

    # Parts of the negotiation

    def arriving(self, packet: bytes) -> bytes:
        """The packet, from its IP header on, in a frame that arrives at the underlay device."""
        return raw_mac(self.underlay_mac) + raw_mac(GATEWAY_MAC) + b"\x08\x00" + packet[14:]

    def vxlan(self, inner: bytes, peer: str, **fields: Any) -> bytes:
        """The frame that the vxlan driver makes of a packet to a peer; fields as for vxlan_ip."""
        packet = vxlan_ip(inner, self.local, peer, **fields)
        return raw_mac(GATEWAY_MAC) + raw_mac(self.underlay_mac) + b"\x08\x00" + packet

    def announced(self, inner: bytes, peer: str, told: bool = True, **fields: Any) -> bytes:
        """The frame in which a peer's announced fallback packet arrives.

        told: our driver has lately sent something to that peer.
        """
        if told:
            self.tell(peer)
        return self.arriving(bytes(14) + vxlan_ip(inner, peer, self.local, tos=wire.MARK << 2, **fields))

    def fallback(self, inner: bytes, peer: str, **ctx: Any) -> bytes:
        """Sends a packet that is expected to take the fallback; returns the announced frame."""
        out = self.encode(inner, **ctx)
        assert (out.action, out.packet) == (UNSPEC, inner)
        sent = self.egress(self.vxlan(inner, peer))
        assert sent.action == UNSPEC
        return sent.packet

    def offer(self, outer: bytes) -> bytes | None:
        """Takes a fallback packet in; returns the OFFER that it is answered with, or None.

        The packet's sender is one that our driver sends to. ingress clones the packet to the egress
        hook, which is not attached here: so that is run by hand, on what the clone is.
        """
        self.tell(str(ipaddress.IPv4Address(outer[26:30])))
        before = self.counters().get("offer_tx", 0)
        out = self.ingress(outer)
        assert (out.action, out.packet, out.mark) == (UNSPEC, outer, 0)
        if self.counters().get("offer_tx", 0) == before:
            return None
        made = self.egress(outer, mark=MAGIC | OFFER, cb=out.cb)
        assert (made.action, made.kind) == (REDIRECT, CONTROL)
        return made.packet


@dataclass(frozen=True)
class Handshake:
    """The packets of a negotiation, each as a frame that arrives at its receiver."""

    fallback: bytes
    offer: bytes
    accept: bytes
    confirm: bytes

    @property
    def key(self) -> int:
        """The key that it was about."""
        return wire.Control.unpack(self.confirm[42:]).key


def negotiate(sender: Node, receiver: Node, inner: bytes) -> Handshake:
    """The whole handshake for the flow of a packet, which the receiver must own."""
    fallback = receiver.arriving(sender.fallback(inner, receiver.local))
    made = receiver.offer(fallback)
    assert made is not None, receiver.counters()
    offer = sender.arriving(made)
    answer = sender.ingress(offer)
    assert (answer.action, answer.kind) == (REDIRECT, CONTROL), sender.counters()
    accept = receiver.arriving(answer.packet)
    answer = receiver.ingress(accept)
    assert (answer.action, answer.kind) == (REDIRECT, CONTROL), receiver.counters()
    confirm = sender.arriving(answer.packet)
    assert sender.ingress(confirm).action == SHOT
    return Handshake(fallback, offer, accept, confirm)


def checksum(data: bytes | bytearray) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total = int(sum(struct.unpack(f"!{len(data) // 2}H", data)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(src: str, dst: str, proto: int, length: int, tos: int = 0, ident: int = 1) -> bytes:
    """An IPv4 header. length: of what follows it."""
    ends = ipaddress.IPv4Address(src).packed + ipaddress.IPv4Address(dst).packed
    head = struct.pack("!BBHHHBBH", 0x45, tos, 20 + length, ident, 0, 64, proto, 0) + ends
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:]


def vxlan_ip(
    inner: bytes,
    src: str,
    dst: str,
    tos: int = 0,
    vni: int = VNI,
    port: int = wire.PORT,
    flags: int = wire.VXLAN_FLAG_I,
) -> bytes:
    """A VXLAN packet as Linux makes it, from the outer IP header on."""
    udp = struct.pack("!HHHH", 49152, port, 16 + len(inner), 0)
    header = struct.pack("!II", flags << 24, vni << 8)
    return ipv4(src, dst, 17, 16 + len(inner), tos) + udp + header + inner


_TIMES: dict[str, tuple[str, ...]] = {
    "conf": ("rx_hold", "tx_hold"),
    "pairs": ("strays_since", "off_until", "busy_until", "heard"),
    "blocks": ("busy_until",),
    "flows": ("lease_end", "asked", "sent_at"),
    "solicits": ("at",),
    "pendings": ("at",),
    "txkeys": ("until",),
    "grants": ("next_offer",),
    "macs": ("at",),
    "asked": ("at",),
    "bigs": ("first", "told"),
    "told": ("at",),
}
_SEALS: dict[str, Callable[[Any, Any], int]] = {
    "flows": seal_entry,
    "solicits": seal_solicit,
    "pendings": seal_pending,
    "txkeys": seal_txkey,
}


def _earlier(value: Any, name: str, ns: int) -> None:
    at = getattr(value, name)
    if at:  # 0 often stands for "never"
        setattr(value, name, max(1, at - ns))


# --- the namespace ------------------------------------------------------------------------------


class Bench:
    """The namespace and its nodes."""

    def __init__(self, a: Node, b: Node, other_underlay: int, ns: int, cpu: int) -> None:
        self.a, self.b = a, b
        self.other_underlay = other_underlay
        self._ns, self._cpu = ns, cpu

    def __repr__(self) -> str:
        return "Bench()"

    @contextlib.contextmanager
    def entered(self) -> Iterator[Bench]:
        """In the namespace, on one CPU, with both nodes as new."""
        cpus = os.sched_getaffinity(0)
        back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.sched_setaffinity(0, {self._cpu})
            setns(self._ns)
            self.reset()
            yield self
        finally:
            setns(back)
            os.close(back)
            os.sched_setaffinity(0, cpus)

    @contextlib.contextmanager
    def moving(self, way: str) -> Iterator[None]:
        """Both nodes with programs that move checksums in one way, FIELD or HELPER, while it lasts."""
        usual = [dict(node.dp.programs) for node in (self.a, self.b)]
        try:
            for node in (self.a, self.b):
                if way == HELPER:
                    node.dp.programs |= node.by_helper
            yield
        finally:
            for node, programs in zip((self.a, self.b), usual, strict=True):
                node.dp.programs |= programs

    def pass_time(self, ns: int) -> None:
        """As if so much time had passed on both nodes."""
        self.a.pass_time(ns)
        self.b.pass_time(ns)

    def reset(self) -> None:
        """Both nodes as new."""
        self.a.reset()
        self.b.reset()


def _devices() -> dict[str, tuple[int, str]]:
    """Makes the devices; returns index and MAC of each."""
    with IPRoute() as ipr:
        for i, name in enumerate(("ul0", "ul1", "ul2", "xm0", "xm1")):
            peer = {"ifname": f"{name}p", "address": f"02:00:00:00:01:{i:02x}"}
            ipr.link("add", ifname=name, kind="veth", address=f"02:00:00:00:00:{i:02x}", peer=peer)
        found = {
            msg.get_attr("IFLA_IFNAME"): (msg["index"], msg.get_attr("IFLA_ADDRESS"))
            for msg in ipr.get_links()
        }
        for name, (index, _) in found.items():
            with contextlib.suppress(OSError):  # IPv6 may not be there
                Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
            ipr.link("set", index=index, state="up")
        ipr.addr("add", index=found["ul0"][0], address="192.0.2.1", prefixlen=24)
        ipr.neigh("add", dst="192.0.2.2", lladdr=found["ul0p"][1], ifindex=found["ul0"][0], state="permanent")
    return found


@contextlib.contextmanager
def bench(cache: Path | None) -> Iterator[Bench]:
    """Makes a bench. cache: where the compiled datapath is kept."""
    obj = loader.compile_object(cache, clock=CLOCK)
    sizes = {str(spec["name"]): 8192 for spec in obj.maps if spec["type"] == 9}
    with contextlib.ExitStack() as stack:
        back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, back)
        if _libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "cannot make a network namespace")
        try:
            ns = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, ns)
            dev = _devices()
            # In the place of the vxlan driver's: else the stack answers "port unreachable".
            tunnel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            stack.callback(tunnel.close)
            tunnel.bind(("0.0.0.0", wire.PORT))
        finally:
            setns(back)
        nodes: list[Node] = []
        for i, local in ((0, "192.0.2.1"), (1, "192.0.2.2")):
            dp = loader.load(obj, sizes)
            stack.callback(dp.close)
            dp.programs[loader.FLUSH] = loader.load_program(obj, loader.FLUSH, dp.maps)
            by_helper = {name: loader.load_program(obj, name, dp.maps, read_summed=False) for name in MOVERS}
            stack.callback(loader.Loaded(programs=by_helper).close)
            nodes.append(Node(dp, local, dev[f"xm{i}"], dev[f"ul{i}"], by_helper))
        cpus = sorted(os.sched_getaffinity(0))
        yield Bench(nodes[0], nodes[1], dev["ul2"][0], ns, cpus[os.getpid() % len(cpus)])


# --- fixtures -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def unentered_bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """The bench of this process; a test enters it itself."""
    if os.geteuid() != 0:
        pytest.skip("only root can load programs")
    cache = getattr(request.config, "cache", None)  # pytest can be told to do without
    with bench(Path(cache.mkdir("xmasq-datapath")) if cache else None) as made:
        yield made


@pytest.fixture
def net(unentered_bench: Bench) -> Iterator[Bench]:
    """The bench, entered, as new."""
    with unentered_bench.entered():
        yield unentered_bench


@pytest.fixture
def a(net: Bench) -> Node:
    """The node at 192.0.2.1, whose underlay device has a route and a neighbour to b."""
    return net.a


@pytest.fixture
def b(net: Bench) -> Node:
    """The node at 192.0.2.2."""
    return net.b


@pytest.fixture(params=[FIELD, HELPER])
def checksums(request: pytest.FixtureRequest, unentered_bench: Bench) -> Iterator[str]:
    """The test runs twice: with programs that read skb->ip_summed, and with those for other kernels."""
    if request.param == FIELD and summed.field() is None:
        pytest.skip("this kernel does not let programs see skb->ip_summed")
    with unentered_bench.moving(request.param):
        yield request.param


# --- devices ------------------------------------------------------------------------------------


class Tap:
    """A device of the present namespace, to send through and to see what arrives at it."""

    def __init__(self, device: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.bind((device, _ETH_P_ALL))
        self._socket.settimeout(3)

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, frame: bytes) -> None:
        """Sends a frame out of the device."""
        self._socket.send(frame)

    def receive(self) -> bytes:
        """The next frame that arrives at the device. Raises TimeoutError after 3 s."""
        while True:
            frame, address = self._socket.recvfrom(1 << 16)
            if address[2] != socket.PACKET_OUTGOING:
                return frame

    def quiet(self) -> bool:
        """Whether nothing has arrived. What veth carries has arrived when send() returns."""
        self._socket.setblocking(False)
        try:
            self.receive()
        except BlockingIOError:
            return True
        finally:
            self._socket.settimeout(3)
        return False


@contextlib.contextmanager
def attached(node: Node, *hooks: tuple[str, int, int]) -> Iterator[None]:
    """Programs on hooks of devices: (program, ifindex, INGRESS or EGRESS).

    Only entering must happen within the bench: the netlink socket stays in its namespace.
    """
    with IPRoute() as ipr:
        devices = {ifindex for _, ifindex, _ in hooks}
        for ifindex in devices:
            ipr.tc("add", "clsact", ifindex)
        try:
            for program, ifindex, parent in hooks:
                ipr.tc(
                    "add-filter",
                    "bpf",
                    ifindex,
                    fd=node.dp.programs[program],
                    name=program,
                    parent=parent,
                    direct_action=True,
                    prio=1,
                )
            yield
        finally:
            for ifindex in devices:
                ipr.tc("del", "clsact", ifindex)
