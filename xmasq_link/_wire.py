# SPDX-License-Identifier: Apache-2.0
"""Wire format, version 1 (docs/protocol.md), without any packet library.

The same numbers stand in kmod_ebpf/src/wire.h; tests/unit/test_wire.py compares them.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, replace

VERSION = 1

#: Types of control packets.
OFFER, ACCEPT, CONFIRM = 1, 2, 3
TYPES = {OFFER: "OFFER", ACCEPT: "ACCEPT", CONFIRM: "CONFIRM"}

#: Flag bits of a control packet: further key bits in DSCP (0 to 3); in a CONFIRM: a packet with
#: this key has been decoded since the last one.
CTL_XBITS, CTL_USED = 0x03, 0x80

#: Variants of a flow: DF was clear.
VAR_NODF = 0x01
#: Longest packet with DF clear that is encoded, in bytes, IPv4 header included.
NODF_MAX = 1280
#: Packets with a lower TTL take the fallback.
MIN_TTL = 16

#: Default DSCP of ours and of bounced packets (pool 2 of RFC 2474, local use).
MARK, BOUNCE = 3, 7
#: Default S: how many low bits of the Identification number segments.
SEG_BITS = 6
#: Default UDP port of the tunnel (RFC 7348).
PORT = 4789
#: "A VNI follows" in the first byte of a VXLAN header (RFC 7348, section 5).
VXLAN_FLAG_I = 0x08
#: Don't Fragment in the IPv4 flags and fragment offset field (RFC 791).
IP_DF = 0x4000

_LAYOUT = struct.Struct("!B7sBBBBI6s6s4s4sBBHIIIIQ")
_LAYOUT6 = struct.Struct("!B7sBBBBI6s6s16s16sBBHIIIIQ")
#: Bytes of a control payload: the first so many of the UDP payload. Over IPv6 the addresses are longer.
CTL_LEN = _LAYOUT.size
CTL_LEN6 = _LAYOUT6.size
#: Offset of each field in the control payload, in bytes.
CTL_OFFSETS = {
    "vxlan_flags": 0,
    "vxlan_rest": 1,
    "version": 8,
    "type": 9,
    "flags": 10,
    "seg_bits": 11,
    "vni": 12,
    "smac": 16,
    "dmac": 22,
    "sip": 28,
    "dip": 32,
    "dscp": 36,
    "variant": 37,
    "reserved": 38,
    "key": 40,
    "lease_ms": 44,
    "nonce_a": 48,
    "nonce_b": 52,
    "auth": 56,
}

#: The same over IPv6.
CTL_OFFSETS6 = {
    name: at + (0 if at <= CTL_OFFSETS["sip"] else 12 if name == "dip" else 24)
    for name, at in CTL_OFFSETS.items()
}

_WORD = (1 << 64) - 1


def key_bits(seg_bits: int = SEG_BITS, xbits: int = 0) -> int:
    """How many bits a key has. seg_bits: S. xbits: further key bits in DSCP, 0 to 3."""
    return 16 - seg_bits + xbits


def wire_id(key: int, seg_bits: int = SEG_BITS) -> int:
    """The IPv4 Identification of an encoded packet with this key."""
    return key << seg_bits & 0xFFFF


def wire_dscp(key: int, base: int = MARK, seg_bits: int = SEG_BITS) -> int:
    """The DSCP of a packet with this key. base: MARK or BOUNCE as configured."""
    return base + (key >> (16 - seg_bits) << 3)


def wire_key(ident: int, dscp: int, base: int = MARK, seg_bits: int = SEG_BITS) -> int:
    """The key in a packet. ident: IPv4 Identification. base: MARK or BOUNCE, whichever dscp is."""
    return (dscp - base) >> 3 << (16 - seg_bits) | ident >> seg_bits


def first_word(key: int, base: int = MARK, ecn: int = 0) -> int:
    """The first 32 bits of an IPv6 header with this key: version, traffic class, flow label."""
    return 6 << 28 | (base << 2 | ecn) << 20 | key


def key6(index: int) -> int:
    """The key with this index over IPv6: 16 bits of index, and 4 that check it. index: 1 to 65,535."""
    check = index ^ index >> 8
    return index << 4 | (check ^ check >> 4) & 15


def dscp_is(dscp: int, base: int = MARK, xbits: int = 0) -> bool:
    """Whether this DSCP is base (MARK or BOUNCE), with any upper key bits."""
    high, low = divmod(dscp - base, 8)
    return low == 0 and 0 <= high < 1 << xbits


def siphash(data: bytes, key: bytes) -> int:
    """SipHash-2-4 (Aumasson and Bernstein, 2012). key: 16 bytes. Returns 64 bits.

    Raises ValueError for a key of another length.
    """
    if len(key) != 16:
        raise ValueError(f"a SipHash key has 16 bytes, not {len(key)}")
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v0, v1 = k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D
    v2, v3 = k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573

    def rounds(n: int) -> None:
        nonlocal v0, v1, v2, v3
        for _ in range(n):
            v0 = v0 + v1 & _WORD
            v2 = v2 + v3 & _WORD
            v1 = _rotate(v1, 13) ^ v0
            v3 = _rotate(v3, 16) ^ v2
            v0 = _rotate(v0, 32)
            v2 = v2 + v1 & _WORD
            v0 = v0 + v3 & _WORD
            v1 = _rotate(v1, 17) ^ v2
            v3 = _rotate(v3, 21) ^ v0
            v2 = _rotate(v2, 32)

    tail = len(data) % 8
    last = data[len(data) - tail :] + bytes(7 - tail) + bytes([len(data) & 0xFF])
    for (word,) in struct.iter_unpack("<Q", data[: len(data) - tail] + last):
        v3 ^= word
        rounds(2)
        v0 ^= word
    v2 ^= 0xFF
    rounds(4)
    return v0 ^ v1 ^ v2 ^ v3


def _rotate(x: int, bits: int) -> int:
    return (x << bits | x >> (64 - bits)) & _WORD


def _mac(text: str) -> bytes:
    raw = bytes.fromhex(text.replace(":", ""))
    if len(raw) != 6:
        raise ValueError(f'"{text}" is not a link layer address')
    return raw


@dataclass(frozen=True, slots=True)
class Control:
    """The payload of a control packet.

    vni: 24 bits. smac, dmac, sip, dip, dscp (6 bits) and variant: the flow. key: in its own right,
    as the headers carry it too. lease_ms: milliseconds. nonce_a: 32 bits, of the flow's sender, 0 in
    an OFFER. nonce_b: 32 bits, of its receiver. auth: 64 bits, 0 without a secret.
    """

    type: int
    vni: int
    smac: str
    dmac: str
    sip: str
    dip: str
    key: int
    lease_ms: int
    dscp: int = 0
    variant: int = 0
    nonce_a: int = 0
    nonce_b: int = 0
    auth: int = 0
    flags: int = 0
    seg_bits: int = SEG_BITS
    version: int = VERSION
    reserved: int = 0
    vxlan_flags: int = 0
    vxlan_rest: bytes = bytes(7)

    def pack(self) -> bytes:
        """The bytes on the wire: CTL_LEN, or CTL_LEN6 with IPv6 addresses.

        Raises ValueError if a field does not fit its place.
        """
        ends = [ipaddress.ip_address(text) for text in (self.sip, self.dip)]
        if ends[0].version != ends[1].version:
            raise ValueError(f"{self.sip} and {self.dip} are of different families")
        try:
            return (_LAYOUT if ends[0].version == 4 else _LAYOUT6).pack(
                self.vxlan_flags,
                self.vxlan_rest,
                self.version,
                self.type,
                self.flags,
                self.seg_bits,
                self.vni,
                _mac(self.smac),
                _mac(self.dmac),
                *(end.packed for end in ends),
                self.dscp,
                self.variant,
                self.reserved,
                self.key,
                self.lease_ms,
                self.nonce_a,
                self.nonce_b,
                int.from_bytes(self.auth.to_bytes(8, "little"), "big"),
            )
        except (struct.error, OverflowError) as e:
            raise ValueError(f"no control packet can say that: {e}") from e

    @classmethod
    def unpack(cls, payload: bytes, family: int = 4) -> Control:
        """From a UDP payload; what follows the control payload is ignored. family: of the underlay.

        Any version is taken. Raises ValueError if the payload is too short.
        """
        layout = _LAYOUT if family == 4 else _LAYOUT6
        if len(payload) < layout.size:
            raise ValueError(f"a control payload has {layout.size} bytes, this one {len(payload)}")
        (
            vxlan_flags,
            vxlan_rest,
            version,
            type_,
            flags,
            seg_bits,
            vni,
            smac,
            dmac,
            sip,
            dip,
            dscp,
            variant,
            reserved,
            key,
            lease_ms,
            nonce_a,
            nonce_b,
            auth,
        ) = layout.unpack_from(payload)
        return cls(
            type=type_,
            vni=vni,
            smac=smac.hex(":"),
            dmac=dmac.hex(":"),
            sip=str(ipaddress.ip_address(sip)),
            dip=str(ipaddress.ip_address(dip)),
            key=key,
            lease_ms=lease_ms,
            dscp=dscp,
            variant=variant,
            nonce_a=nonce_a,
            nonce_b=nonce_b,
            auth=int.from_bytes(auth.to_bytes(8, "big"), "little"),
            flags=flags,
            seg_bits=seg_bits,
            version=version,
            reserved=reserved,
            vxlan_flags=vxlan_flags,
            vxlan_rest=vxlan_rest,
        )

    def authenticator(self, source: str, destination: str, secret: bytes) -> int:
        """What auth must be in a packet between these VTEP addresses. secret: 16 bytes.

        SipHash-2-4 over the payload up to the authenticator, then the destination's and the
        source's address.
        """
        head = self.pack()[:-8]
        ends = ipaddress.ip_address(destination).packed + ipaddress.ip_address(source).packed
        return siphash(head + ends, secret)

    def sealed(self, source: str, destination: str, secret: bytes) -> Control:
        """The same with its authenticator."""
        return replace(self, auth=self.authenticator(source, destination, secret))
