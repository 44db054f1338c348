# SPDX-License-Identifier: Apache-2.0
"""Takes captures of an underlay apart, with scapy.

Importing this module teaches scapy the control packets of xmasq (docs/protocol.md):

    >>> from scapy.utils import rdpcap
    >>> from xmasq_link.dissect import classify, key_of
    >>> for packet in rdpcap("underlay.pcap"):
    ...     print(classify(packet), key_of(packet), packet.summary())

The numbers are those of wire format version 1 with the default settings; networks that use other
ones pass them in a Wire.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from scapy.fields import (
    BitField,
    ByteEnumField,
    ByteField,
    FlagsField,
    IntField,
    IPField,
    MACField,
    MultipleTypeField,
    ShortField,
    XIntField,
    XLELongField,
    XStrFixedLenField,
)
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IP6Field, IPv6
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, bind_top_down

from . import _wire

__all__ = ["Kind", "Wire", "XmasqControl", "bind_port", "classify", "key_of"]

Kind = Literal["encoded", "bounced", "fallback", "control", "other"]


@dataclass(frozen=True, slots=True)
class Wire:
    """What the two ends of an underlay have agreed on.

    mark, bounce: DSCP of encoded and of bounced packets. seg_bits: S, the low bits of the IPv4
    Identification that number segments. xbits: further key bits in DSCP, 0 to 3. port: UDP port of
    the tunnel.
    """

    mark: int = _wire.MARK
    bounce: int = _wire.BOUNCE
    seg_bits: int = _wire.SEG_BITS
    xbits: int = 0
    port: int = _wire.PORT


DEFAULT = Wire()


def _is_control(payload: bytes) -> bool:
    return (
        len(payload) >= _wire.CTL_LEN
        and not payload[0] & _wire.VXLAN_FLAG_I
        and payload[_wire.CTL_OFFSETS["version"]] == _wire.VERSION
    )


def _over_ipv6(packet: Packet) -> bool:
    """Whether a control packet stands in an IPv6 one, so that its flow has IPv6 addresses."""
    udp = packet.underlayer
    return udp is not None and isinstance(udp.underlayer, IPv6)


class XmasqControl(Packet):  # type: ignore[misc]
    """A control packet: OFFER, ACCEPT or CONFIRM. What follows it in the datagram is padding.

    The fields stand in the order of the wire. `vni`, `smac`, `dmac`, `sip`, `dip`, `dscp` and
    `variant` are the flow; `lease_ms` is in milliseconds; `used` is the USED flag; `auth` is 0
    where no secret is configured.
    """

    name = "xmasq control"
    fields_desc = [  # noqa: RUF012 (scapy's way)
        FlagsField("vxlan_flags", 0, 8, ["b0", "b1", "b2", "I", "b4", "b5", "b6", "b7"]),
        XStrFixedLenField("vxlan_rest", bytes(7), 7),
        ByteField("version", _wire.VERSION),
        ByteEnumField("type", _wire.OFFER, _wire.TYPES),
        BitField("used", 0, 1),
        BitField("reserved_flags", 0, 5),
        BitField("xbits", 0, 2),
        ByteField("seg_bits", _wire.SEG_BITS),
        IntField("vni", 0),
        MACField("smac", "00:00:00:00:00:00"),
        MACField("dmac", "00:00:00:00:00:00"),
        MultipleTypeField([(IP6Field("sip", "::"), _over_ipv6)], IPField("sip", "0.0.0.0")),
        MultipleTypeField([(IP6Field("dip", "::"), _over_ipv6)], IPField("dip", "0.0.0.0")),
        ByteField("dscp", 0),
        FlagsField("variant", 0, 8, ["NODF"]),
        ShortField("reserved", 0),
        IntField("key", 0),
        IntField("lease_ms", 0),
        XIntField("nonce_a", 0),
        XIntField("nonce_b", 0),
        XLELongField("auth", 0),
    ]

    @classmethod
    def dispatch_hook(cls, _pkt: bytes | None = None, *_: Any, **__: Any) -> type[Packet]:
        """On the tunnel's port: a control packet, or VXLAN as ever."""
        if _pkt is None or _is_control(bytes(_pkt)):
            return cls
        return VXLAN  # type: ignore[no-any-return]

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        """All that follows."""
        return b"", s

    def mysummary(self) -> str:
        """One line for scapy's summary()."""
        return self.sprintf(  # type: ignore[no-any-return]
            "xmasq %XmasqControl.type% vni %XmasqControl.vni% key %XmasqControl.key% "
            "%XmasqControl.sip% > %XmasqControl.dip%"
        )


def bind_port(port: int) -> None:
    """Lets scapy look for VXLAN and control packets on another UDP port of a tunnel, too."""
    # The first that fits is taken, and scapy has bound VXLAN to some ports before.
    UDP.payload_guess = [({"dport": port}, XmasqControl), *UDP.payload_guess]


bind_port(_wire.PORT)
bind_top_down(UDP, XmasqControl, sport=_wire.PORT, dport=_wire.PORT)


def _ours(packet: Packet, wire: Wire) -> tuple[Kind, Any]:
    """Kind and outer IP header of a packet, without regard to the address."""
    ip = next((layer for layer in packet.iterpayloads() if isinstance(layer, IP | IPv6)), None)
    if ip is None:
        return "other", None
    if isinstance(ip, IPv6):
        return _ours6(ip, wire)
    dscp = ip.tos >> 2
    whole = int(ip.flags) == 2 and not ip.frag  # DF alone
    if ip.ihl not in (None, 5):
        return "other", None
    if _wire.dscp_is(dscp, wire.bounce, wire.xbits):
        return ("bounced", ip) if whole and _key(ip, wire.bounce, wire) else ("other", None)
    if not _wire.dscp_is(dscp, wire.mark, wire.xbits):
        return "other", None
    udp = ip.payload
    if isinstance(udp, UDP) and not ip.frag and udp.dport == wire.port:
        payload = bytes(udp.payload)
        if payload and payload[0] & _wire.VXLAN_FLAG_I:
            return "fallback", ip
        return ("control", ip) if _is_control(payload) else ("other", None)
    return ("encoded", ip) if whole and _key(ip, wire.mark, wire) else ("other", None)


def _ours6(ip: Any, wire: Wire) -> tuple[Kind, Any]:
    dscp, udp = ip.tc >> 2, ip.payload
    if dscp == wire.bounce:
        return ("bounced", ip) if ip.fl else ("other", None)
    if dscp != wire.mark:
        return "other", None
    if isinstance(udp, UDP) and udp.dport == wire.port:
        payload = bytes(udp.payload)
        if payload and payload[0] & _wire.VXLAN_FLAG_I:
            return "fallback", ip
        return ("control", ip) if _is_control(payload) else ("other", None)
    return ("encoded", ip) if ip.fl else ("other", None)


def _key(ip: Any, base: int, wire: Wire) -> int:
    if isinstance(ip, IPv6):
        return int(ip.fl)
    return _wire.wire_key(ip.id, ip.tos >> 2, base, wire.seg_bits)


def classify(packet: Packet, vteps: Collection[str] | None = None, wire: Wire = DEFAULT) -> Kind:
    """What a packet captured on an underlay is.

    packet: as scapy dissected it; its outermost IP header counts. vteps: VTEP addresses; a packet
    that is not from one of them to one of them is "other". Without, any address may be one, and a
    foreign packet with the DSCP of ours passes for one of ours.

    "encoded": a container's packet in its shape on the wire. "bounced": one that its receiver sent
    back. "fallback": VXLAN from a VTEP that speaks xmasq; VXLAN without that mark is "other".
    "control": key negotiation.
    """
    kind, ip = _ours(packet, wire)
    if ip is not None and vteps is not None and not (ip.src in vteps and ip.dst in vteps):
        return "other"
    return kind


def key_of(packet: Packet, wire: Wire = DEFAULT) -> int | None:
    """The key that an encoded, bounced or control packet bears; None for any other packet."""
    kind, ip = _ours(packet, wire)
    if kind in ("encoded", "control"):
        return _key(ip, wire.mark, wire)
    if kind == "bounced":
        return _key(ip, wire.bounce, wire)
    return None
