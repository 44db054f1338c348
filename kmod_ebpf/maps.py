# SPDX-License-Identifier: GPL-2.0-only
"""Python's view of the datapath's maps: the structures of src/maps.h, field by field.

Addresses and ports are kept as bytes in network order, as the kernel has them. The structures are those of
the datapath for an IPv4 underlay; those that have addresses in them exist for IPv6, too, with a 6 behind
their names. TYPES has both sets by family.
"""

from __future__ import annotations

import ctypes
import ipaddress
import struct
from collections.abc import Callable, Mapping
from ctypes import c_uint8 as u8
from ctypes import c_uint16 as u16
from ctypes import c_uint32 as u32
from ctypes import c_uint64 as u64
from dataclasses import dataclass
from typing import Any, Self

Secret = u64 * 2
LINK_UNDERLAYS = 8
Underlays = u32 * LINK_UNDERLAYS
Hooked = u64 * LINK_UNDERLAYS
Pad3 = u16 * 3
Pad7 = u8 * 7
Mac = u8 * 6
Be32 = u8 * 4
Be128 = u8 * 16
Be16 = u8 * 2


_WORDS = {1: "B", 2: "H", 4: "I", 8: "Q"}


class Struct(ctypes.LittleEndianStructure):
    """A C structure that converts from and to bytes."""

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """From the bytes of a key or value."""
        return cls.from_buffer_copy(raw)

    def raw(self) -> bytes:
        """The bytes of a key or value."""
        return bytes(self)

    @classmethod
    def reader(cls, *names: str) -> Callable[[bytes], tuple[Any, ...]]:
        """A function that takes only these fields out of the bytes, faster than parse() for many.

        names: in the order in which they lie. Numbers are ints, everything else is bytes.
        """
        types = {field[0]: field[1] for field in cls._fields_}
        words, at = "<", 0
        for name in names:
            place = getattr(cls, name)
            number = issubclass(types[name], ctypes._SimpleCData)
            words += f"{place.offset - at}x" + (_WORDS[place.size] if number else f"{place.size}s")
            at = place.offset + place.size
        return struct.Struct(words).unpack_from


LINK_UP, LINK_SECRET, LINK_LEARNING, LINK_ATTACHED, LINK_HALF = 0x01, 0x02, 0x04, 0x08, 0x10
LINK_EXTERNAL = 0x20
VNI_ANY, MAX_EXTERNAL, WHERE_EXTERNAL = 0xFFFFFFFF, 128, 1 << 31


def link_of(where: int, links: Mapping[int, Any]) -> tuple[Any | None, int]:
    """The link that a flow or key is of (Flow.ifindex, Slot.ifindex), and its VNI; None if it is gone.

    links: by index. See src/state.h, flow_where.
    """
    if where & WHERE_EXTERNAL:
        link = links.get(where >> 24 & (MAX_EXTERNAL - 1))
        return (link if link and link.flags & LINK_EXTERNAL else None), where & 0xFFFFFF
    link = next((x for x in links.values() if x.ifindex == where), None)
    return link, link.vni if link else 0


VAR_NODF = 0x01
BLOCK_KEYS, PAIR_BLOCKS, PAIR_BLOCKS6 = 64, 128, 256
HOPS = 256


class Conf(Struct):
    """Settings of the datapath."""

    _fields_ = [
        ("magic", u32),
        ("mark", u8),
        ("bounce", u8),
        ("seg_bits", u8),
        ("xbits", u8),
        ("salt", u64),
        ("tag", u64),
        ("stamp", u16),
        ("pad", Pad3),
        ("rx_hold", u64),
        ("tx_hold", u64),
        ("ports", u64),
    ]


class Link(Struct):
    """One link; its index is the key."""

    _fields_ = [
        ("ifindex", u32),
        ("vni", u32),
        ("local", Be32),
        ("port", Be16),
        ("mac", Mac),
        ("flags", u32),
        ("lease_ms", u32),
        ("guard_ms", u32),
        ("tx_gen", u32),
        ("rx_gen", u32),
        ("there_at", u64),
        ("underlays", Underlays),
        ("secret", Secret),
        ("hooked", Hooked),
        ("away_at", u64),
        ("pad", u64 * 3),
    ]


class VniKey(Struct):
    """Key of vnis."""

    _fields_ = [("local", Be32), ("vni", u32)]


class Address6(Struct):
    """Key of vteps, which for IPv4 is a plain u32."""

    _fields_ = [("addr", Be128)]


class Vtep(Struct):
    """A local VTEP address."""

    _fields_ = [("port", Be16), ("pad", u16)]


class Underlay(Struct):
    """A device that carries the underlay hooks."""

    _fields_ = [("mtu", u32)]


class Flow(Struct):
    """A flow as the sender sees it at the link."""

    _fields_ = [
        ("smac", Mac),
        ("dscp", u8),
        ("variant", u8),
        ("dmac", Mac),
        ("zero", u16),
        ("sip", Be32),
        ("dip", Be32),
        ("ifindex", u32),
        ("peer", Be32),
    ]


class Entry(Struct):
    """Sender: how a flow is encoded."""

    _fields_ = [
        ("seal", u64),
        ("lease_end", u64),
        ("oif", u32),
        ("pair_gen", u32),
        ("pair", u16),
        ("link", u16),
        ("wire", u32),
        ("renew_ms", u32),
        ("mtu", u16),
        ("sent", u16),
        ("gen", u32),
        ("way", u32),
        ("local", Be32),
        ("peer", Be32),
        ("nexthop", Be32),
        ("key", u32),
        ("off_ms", u32),
        ("proven", u8),
        ("route", u8),
        ("zero", u16),
        ("asked", u64),
        ("sent_at", u64),
        ("off_until", u64),
        ("pad", u64 * 2),
    ]


class Solicit(Struct):
    """Sender: a fallback packet of the flow has left for flow.peer."""

    _fields_ = [
        ("local", Be32),
        ("oif", u32),
        ("link", u32),
        ("tx_gen", u32),
        ("at", u64),
        ("seal", u64),
    ]


class Pending(Struct):
    """Sender: ACCEPT was sent."""

    _fields_ = [
        ("peer", Be32),
        ("key", u32),
        ("nonce_a", u32),
        ("nonce_b", u32),
        ("oif", u32),
        ("lease_ms", u32),
        ("tx_gen", u32),
        ("sent", u32),
        ("at", u64),
        ("seal", u64),
    ]


class TxkeyKey(Struct):
    """Key of txkeys."""

    _fields_ = [("local", Be32), ("peer", Be32), ("key", u32), ("pad", u32)]


class Txkey(Struct):
    """Sender: what a key at a peer stands for."""

    _fields_ = [("flow", Flow), ("until", u64), ("seal", u64)]


class Slot(Struct):
    """Receiver: one key."""

    _fields_ = [
        ("seal", u64),
        ("valid", u64),
        ("local", Be32),
        ("peer", Be32),
        ("sip", Be32),
        ("dip", Be32),
        ("smac", Mac),
        ("dscp", u8),
        ("variant", u8),
        ("dmac", Mac),
        ("link", u16),
        ("key", u32),
        ("ifindex", u32),
        ("rx_gen", u32),
        ("used", u32),
        ("until", u64),
        ("offered", u64),
        ("nonce_b", u32),
        ("zero", u32),
        ("pad", u64 * 5),
    ]


class Block(Struct):
    """Receiver: the slots of 64 neighbouring keys of one pair."""

    _fields_ = [
        ("busy_until", u64),
        ("owner", u32),
        ("owner_gen", u32),
        ("base", u32),
        ("zero", u32),
        ("pad", u64 * 5),
        ("slots", Slot * BLOCK_KEYS),
    ]


class PairKey(Struct):
    """Key of pair_ids."""

    _fields_ = [("local", Be32), ("peer", Be32)]


class Pair(Struct):
    """A local and a remote VTEP."""

    _fields_ = [
        ("local", Be32),
        ("peer", Be32),
        ("gen", u32),
        ("own_gen", u32),
        ("cursor", u32),
        ("strays", u32),
        ("strays_since", u64),
        ("off_until", u64),
        ("off_for", u64),
        ("busy_until", u64),
        ("heard", u64),
        ("block", u16 * PAIR_BLOCKS),
    ]


class Grant(Struct):
    """Receiver: the key of a flow, and when it may be offered again."""

    _fields_ = [("key", u32), ("backoff_ms", u32), ("next_offer", u64)]


class MacKey(Struct):
    """Key of macs."""

    _fields_ = [("link", u32), ("mac", Mac), ("pad", u16)]


class MacSeen(Struct):
    """Where a MAC was last seen as a source."""

    _fields_ = [("peer", Be32), ("moved", u32), ("at", u64)]


class U64(Struct):
    """A time in ns since boot."""

    _fields_ = [("at", u64)]


class Big(Struct):
    """Full-size packets between two addresses take the fallback: since when, and when that was told."""

    _fields_ = [("first", u64), ("told", u64)]


class Hop(Struct):
    """The way to a peer by a device, for a tick."""

    _fields_ = [
        ("at", u64),
        ("out", u64),
        ("way", u32),
        ("by", u16),
        ("state", u16),
        ("to", u64),
        ("from", u64),
    ]


class Scratch(Struct):
    """Per CPU: the time of a tick, the flow that encode has just sent into the fallback, ways to peers."""

    _fields_ = [
        ("tick", u64),
        ("now", u64),
        ("missed", Flow),
        ("missed_at", u64),
        ("let_go_at", u64),
        ("tx_gen", u32),
        ("stamp", u16),
        ("tc_index", u16),
        ("hook", u32),
        ("zero", u32),
        ("headers", u64 * 12),
        ("text", u64 * 8),
        ("flow", Flow),
        ("solicit", Solicit),
        ("txkey", Txkey),
        ("pending", Pending),
        ("entry", Entry),
        ("hops", Hop * HOPS),
    ]


class Pool(Struct):
    """The allocator's lock and hands."""

    _fields_ = [("lock", u32), ("block_hand", u32), ("pair_hand", u32), ("pad", u32)]


#: What happens: names of enum event_kind in maps.h, which counts from 1.
EVENT_KINDS = (
    "flow_encoded",
    "flow_renewed",
    "flow_bounced",
    "flow_withdrawn",
    "flow_elsewhere",
    "flow_refused",
    "key_granted",
    "key_renewed",
    "key_unknown",
    "peer_off",
    "peer_stray",
    "peer_gone",
    "mac_moved",
    "exhausted",
    "conflict",
    "ctl_refused",
)
#: How many may listen to a datapath at once.
EVENT_LISTENERS = 4


class Event(Struct):
    """Something that happened (src/event.h). Addresses are in the first bytes of their fields."""

    _fields_ = [
        ("at", u64),
        ("kind", u32),
        ("link", u32),
        ("ifindex", u32),
        ("key", u32),
        ("value", u32),
        ("dscp", u8),
        ("variant", u8),
        ("has_flow", u8),
        ("pad", u8),
        ("smac", Mac),
        ("dmac", Mac),
        ("pad2", u32),
        ("sip", Be128),
        ("dip", Be128),
        ("local", Be128),
        ("peer", Be128),
    ]


FRAME_IN, FRAME_OUT = 1, 2


class CountedKey(Struct):
    """What a count is of (src/count.c)."""

    _fields_ = [
        ("ifindex", u32),
        ("direction", u8),
        ("family", u8),
        ("pad", u16),
        ("src", Be128),
        ("dst", Be128),
    ]


class Frame(Struct):
    """What a capture shows in front of a packet's bytes (src/capture.c)."""

    _fields_ = [
        ("at", u64),
        ("len", u32),
        ("caplen", u32),
        ("ifindex", u32),
        ("vlan_tci", u16),
        ("vlan_proto", Be16),
        ("direction", u8),
        ("pad", Pad7),
    ]


#: Names of the counters of a link, in the order of enum counter in maps.h.
COUNTERS = (
    "encoded",
    "encoded_bytes",
    "decoded",
    "decoded_bytes",
    "fb_off",
    "fb_not_ip",
    "fb_vlan",
    "fb_options",
    "fb_fragment",
    "fb_df_clear",
    "fb_ttl",
    "fb_multicast",
    "fb_length",
    "fb_tunnel_port",
    "fb_segments",
    "fb_mtu",
    "fb_no_grant",
    "fb_expired",
    "fb_renewal",
    "fb_unvouched",
    "fb_torn",
    "fb_header",
    "fb_tunnel_proto",
    "fb_dscp",
    "fb_route",
    "announced",
    "offer_tx",
    "offer_rx",
    "accept_tx",
    "accept_rx",
    "confirm_tx",
    "confirm_rx",
    "bounce_tx",
    "bounce_rx",
    "restored",
    "stray",
    "exhausted",
    "not_owner",
    "untold",
    "no_room",
    "held",
    "ctl_bad",
    "ctl_version",
    "ctl_path",
    "ctl_unsolicited",
    "ctl_nonce",
    "ctl_auth",
    "ctl_params",
    "ctl_conflict",
    "path_off",
    "peer_gone",
    "icmp_rx",
    "icmp_refused",
    "icmp_stray",
    "too_big_tx",
    "sanitised",
    "moved",
    "error",
)


def _six(four: type[Struct], **other: Any) -> list[tuple[str, Any]]:
    """The fields of a structure for IPv6: longer addresses, and padding (ADDR_PAD) after the one named.

    other: fields of another type, None if there is no such field; `addr_pad` is the name of a field and a
    number of words.
    """
    fields: list[tuple[str, Any]] = []
    after, words = other.pop("addr_pad", ("", 0))
    for name, kind, *_ in four._fields_:
        if other.get(name, kind) is not None:
            fields.append((name, other.get(name, Be128 if kind is Be32 else kind)))
        if name == after:
            fields.append(("addr_pad", u32 * words))
    return fields


class Link6(Struct):
    """Link."""

    _fields_ = _six(Link, addr_pad=("rx_gen", 1), pad=u64 * 1)


class VniKey6(Struct):
    """VniKey."""

    _fields_ = _six(VniKey)


class Flow6(Struct):
    """Flow."""

    _fields_ = _six(Flow, addr_pad=("peer", 1))


class Entry6(Struct):
    """Entry."""

    _fields_ = _six(Entry, addr_pad=("zero", 1), pad=None)


class Solicit6(Struct):
    """Solicit."""

    _fields_ = _six(Solicit, addr_pad=("tx_gen", 1))


class Pending6(Struct):
    """Pending."""

    _fields_ = _six(Pending, addr_pad=("sent", 1))


class TxkeyKey6(Struct):
    """TxkeyKey."""

    _fields_ = _six(TxkeyKey)


class Txkey6(Struct):
    """Txkey."""

    _fields_ = _six(Txkey, flow=Flow6)


class Slot6(Struct):
    """Slot."""

    _fields_ = _six(Slot, pad=None)


class Block6(Struct):
    """Block."""

    _fields_ = _six(Block, slots=Slot6 * BLOCK_KEYS, pad=None)


class PairKey6(Struct):
    """PairKey."""

    _fields_ = _six(PairKey)


class Pair6(Struct):
    """Pair."""

    _fields_ = _six(Pair, block=u16 * PAIR_BLOCKS6)


class MacSeen6(Struct):
    """MacSeen."""

    _fields_ = _six(MacSeen)


class Scratch6(Struct):
    """Scratch."""

    _fields_ = _six(
        Scratch,
        missed=Flow6,
        headers=u64 * 17,
        text=u64 * 14,
        flow=Flow6,
        solicit=Solicit6,
        txkey=Txkey6,
        pending=Pending6,
        entry=Entry6,
    )


@dataclass(frozen=True)
class Types:
    """The structures of one family of the underlay. family: 4 or 6."""

    family: int
    Addr: Any
    Link: type[Struct]
    VniKey: type[Struct]
    Flow: type[Struct]
    Entry: type[Struct]
    Solicit: type[Struct]
    Pending: type[Struct]
    TxkeyKey: type[Struct]
    Txkey: type[Struct]
    Slot: type[Struct]
    Block: type[Struct]
    PairKey: type[Struct]
    Pair: type[Struct]
    MacSeen: type[Struct]
    Scratch: type[Struct]

    def address(self, text: str) -> Any:
        """An address as the maps have it. Raises ValueError if it is not one of this family."""
        address = ipaddress.ip_address(text)
        if address.version != self.family:
            raise ValueError(f"{text} is an IPv{address.version} address")
        return self.Addr(*address.packed)

    def layout(self) -> dict[str, tuple[type[Struct] | None, type[Struct] | None]]:
        """Key and value structure of each map; None stands for a plain u32."""
        return {
            "conf": (None, Conf),
            "pool": (None, Pool),
            "links": (None, self.Link),
            "link_ids": (None, None),
            "vnis": (self.VniKey, None),
            "vteps": (None if self.family == 4 else Address6, Vtep),
            "underlays": (None, Underlay),
            "pairs": (None, self.Pair),
            "pair_ids": (self.PairKey, None),
            "block_hints": (None, None),
            "told": (self.PairKey, U64),
            "blocks": (None, self.Block),
            "flows": (self.Flow, self.Entry),
            "solicits": (self.Flow, self.Solicit),
            "pendings": (self.Flow, self.Pending),
            "txkeys": (self.TxkeyKey, self.Txkey),
            "grants": (self.Flow, Grant),
            "macs": (MacKey, self.MacSeen),
            "asked": (MacKey, U64),
            "bigs": (U64, Big),
            "scratch": (None, self.Scratch),
            "listen": (None, None),
            "event_buf": (None, Event),
            "events": (None, None),
        }


TYPES = {
    4: Types(
        4,
        Be32,
        Link,
        VniKey,
        Flow,
        Entry,
        Solicit,
        Pending,
        TxkeyKey,
        Txkey,
        Slot,
        Block,
        PairKey,
        Pair,
        MacSeen,
        Scratch,
    ),
    6: Types(
        6,
        Be128,
        Link6,
        VniKey6,
        Flow6,
        Entry6,
        Solicit6,
        Pending6,
        TxkeyKey6,
        Txkey6,
        Slot6,
        Block6,
        PairKey6,
        Pair6,
        MacSeen6,
        Scratch6,
    ),
}

#: Key and value structure of each map, by family.
LAYOUTS = {family: types.layout() for family, types in TYPES.items()}
#: Those for an IPv4 underlay.
LAYOUT = LAYOUTS[4]
