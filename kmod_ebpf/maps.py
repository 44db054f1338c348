# SPDX-License-Identifier: GPL-2.0-only
"""Python's view of the datapath's maps: the structures of src/maps.h, field by field.

Addresses and ports are kept as bytes in network order, as the kernel has them.
"""

from __future__ import annotations

import ctypes
from ctypes import c_uint8 as u8
from ctypes import c_uint16 as u16
from ctypes import c_uint32 as u32
from ctypes import c_uint64 as u64
from typing import Self

Secret = u64 * 2
Pad3 = u16 * 3
Pad7 = u8 * 7
Headers = u64 * 12
Mac = u8 * 6
Be32 = u8 * 4
Be16 = u8 * 2


class Struct(ctypes.LittleEndianStructure):
    """A C structure that converts from and to bytes."""

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """From the bytes of a key or value."""
        return cls.from_buffer_copy(raw)

    def raw(self) -> bytes:
        """The bytes of a key or value."""
        return bytes(self)


LINK_UP, LINK_SECRET, LINK_LEARNING, LINK_ATTACHED, LINK_HALF = 0x01, 0x02, 0x04, 0x08, 0x10
VAR_NODF = 0x01
BLOCK_KEYS, PAIR_BLOCKS = 64, 128


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
        ("underlay", u32),
        ("pad", u32),
        ("secret", Secret),
    ]


class VniKey(Struct):
    """Key of vnis."""

    _fields_ = [("local", Be32), ("vni", u32)]


class Vtep(Struct):
    """A local VTEP address."""

    _fields_ = [("port", Be16), ("pad", u16)]


class Underlay(Struct):
    """A device that carries the underlay hooks."""

    _fields_ = [("mtu", u32)]


class Flow(Struct):
    """A flow as the sender sees it at the link."""

    _fields_ = [
        ("ifindex", u32),
        ("sip", Be32),
        ("dip", Be32),
        ("smac", Mac),
        ("dmac", Mac),
        ("dscp", u8),
        ("variant", u8),
        ("zero", u16),
        ("peer", Be32),
    ]


class Entry(Struct):
    """Sender: how a flow is encoded."""

    _fields_ = [
        ("lease_end", u64),
        ("renew_at", u64),
        ("local", Be32),
        ("peer", Be32),
        ("oif", u32),
        ("pair_gen", u32),
        ("pair", u16),
        ("link", u16),
        ("wire_id", Be16),
        ("wire_tos", u8),
        ("route", u8),
        ("l4_diff", u32),
        ("port", Be16),
        ("mtu", u16),
        ("nexthop", Be32),
        ("key", u32),
        ("seal", u64),
        ("asked", u64),
        ("vouched", u64),
        ("sent_at", u64),
        ("gen", u32),
        ("sent", u32),
        ("off_until", u64),
        ("off_ms", u32),
        ("proven", u32),
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
        ("valid", u64),
        ("local", Be32),
        ("peer", Be32),
        ("key", u32),
        ("ifindex", u32),
        ("sip", Be32),
        ("dip", Be32),
        ("smac", Mac),
        ("dmac", Mac),
        ("dscp", u8),
        ("variant", u8),
        ("link", u16),
        ("rx_gen", u32),
        ("l4_diff", u32),
        ("seal", u64),
        ("until", u64),
        ("offered", u64),
        ("nonce_b", u32),
        ("used", u32),
    ]


class Block(Struct):
    """Receiver: the slots of 64 neighbouring keys of one pair."""

    _fields_ = [
        ("busy_until", u64),
        ("owner", u32),
        ("owner_gen", u32),
        ("base", u32),
        ("pad", u32),
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
    """Per CPU: the way to a peer, for a tick."""

    _fields_ = [
        ("tick", u64),
        ("gen", u32),
        ("oif", u32),
        ("pair", u16),
        ("state", u16),
        ("eth", Mac * 2),
    ]


class Scratch(Struct):
    """Per CPU: the flow that encode has just sent into the fallback, and the time of a tick."""

    _fields_ = [
        ("missed", Flow),
        ("missed_at", u64),
        ("let_go_at", u64),
        ("tx_gen", u32),
        ("stamp", u16),
        ("tc_index", u16),
        ("now", u64),
        ("tick", u64),
        ("headers", Headers),
    ]


class Pool(Struct):
    """The allocator's lock and hands."""

    _fields_ = [("lock", u32), ("block_hand", u32), ("pair_hand", u32), ("pad", u32)]


FRAME_IN, FRAME_OUT = 1, 2


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

#: Key and value structure of each map; None stands for a plain u32.
LAYOUT: dict[str, tuple[type[Struct] | None, type[Struct] | None]] = {
    "conf": (None, Conf),
    "pool": (None, Pool),
    "links": (None, Link),
    "link_ids": (None, None),
    "vnis": (VniKey, None),
    "vteps": (None, Vtep),
    "underlays": (None, Underlay),
    "pairs": (None, Pair),
    "pair_ids": (PairKey, None),
    "pair_hints": (None, None),
    "told": (PairKey, U64),
    "blocks": (None, Block),
    "flows": (Flow, Entry),
    "solicits": (Flow, Solicit),
    "pendings": (Flow, Pending),
    "txkeys": (TxkeyKey, Txkey),
    "grants": (Flow, Grant),
    "macs": (MacKey, MacSeen),
    "asked": (MacKey, U64),
    "bigs": (U64, Big),
    "hops": (None, Hop),
    "scratch": (None, Scratch),
}
