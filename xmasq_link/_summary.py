# SPDX-License-Identifier: Apache-2.0
"""A packet in a few words, as tcpdump has them: for people who want to see whether something passes."""

from __future__ import annotations

import ipaddress
import struct

_TCP_FLAGS = ((0x02, "S"), (0x01, "F"), (0x04, "R"), (0x08, "P"), (0x20, "U"), (0x10, "."))
_PROTOCOLS = {1: "ICMP", 2: "IGMP", 4: "IPIP", 41: "IPv6", 47: "GRE", 50: "ESP", 58: "ICMP6", 132: "SCTP"}
_TCP, _UDP, _ICMP, _ICMP6 = 6, 17, 1, 58
_ICMP_TYPES = {0: "echo reply", 3: "unreachable", 5: "redirect", 8: "echo request", 11: "time exceeded"}
_ICMP6_TYPES = {
    1: "unreachable",
    2: "packet too big",
    3: "time exceeded",
    128: "echo request",
    129: "echo reply",
    133: "router solicitation",
    134: "router advertisement",
    135: "neighbor solicitation",
    136: "neighbor advertisement",
}


def summary(data: bytes, length: int) -> str:
    """data: a frame from its Ethernet header on, as much as there is. length: of all of it, in bytes."""
    try:
        return _ethernet(data, length)
    except (struct.error, IndexError, ValueError):
        return f"[cut short], length {length}"


def _ethernet(data: bytes, length: int) -> str:
    (kind,) = struct.unpack_from(">H", data, 12)
    at, prefix = 14, ""
    while kind in (0x8100, 0x88A8):
        tci, kind = struct.unpack_from(">HH", data, at)
        prefix += f"vlan {tci & 0xFFF}, "
        at += 4
    rest = data[at:]
    match kind:
        case 0x0800:
            return prefix + _ipv4(rest, length - at)
        case 0x86DD:
            return prefix + _ipv6(rest, length - at)
        case 0x0806:
            return prefix + _arp(rest)
    return f"{prefix}{data[6:12].hex(':')} > {data[:6].hex(':')}, ethertype {kind:#06x}, length {length}"


def _ipv4(ip: bytes, length: int) -> str:
    source, destination = (str(ipaddress.IPv4Address(ip[i : i + 4])) for i in (12, 16))
    (frag,) = struct.unpack_from(">H", ip, 6)
    head = (ip[0] & 15) * 4
    if frag & 0x1FFF:
        return f"IP {source} > {destination}: fragment at {(frag & 0x1FFF) * 8}, length {length - head}"
    return "IP " + _transport(ip[9], source, destination, ip[head:], length - head)


def _ipv6(ip: bytes, length: int) -> str:
    source, destination = (str(ipaddress.IPv6Address(ip[i : i + 16])) for i in (8, 24))
    return "IP6 " + _transport(ip[6], source, destination, ip[40:], length - 40)


def _transport(protocol: int, source: str, destination: str, data: bytes, length: int) -> str:
    if protocol in (_TCP, _UDP):
        sport, dport = struct.unpack_from(">HH", data)
        ends = f"{source}.{sport} > {destination}.{dport}"
        if protocol == _UDP:
            return f"{ends}: UDP, length {length - 8}"
        sequence, acknowledged, offset, flags, window = struct.unpack_from(">IIBBH", data, 4)
        payload = length - (offset >> 4) * 4
        letters = "".join(letter for bit, letter in _TCP_FLAGS if flags & bit) or "none"
        numbers = f"seq {sequence}" if payload or flags & 7 else ""
        ack = f"ack {acknowledged}" if flags & 0x10 else ""
        words = ", ".join(filter(None, [numbers, ack, f"win {window}", f"length {payload}"]))
        return f"{ends}: Flags [{letters}], {words}"
    ends = f"{source} > {destination}"
    if protocol in (_ICMP, _ICMP6):
        names = _ICMP_TYPES if protocol == _ICMP else _ICMP6_TYPES
        what = names.get(data[0], f"type {data[0]}")
        if what.startswith("echo"):
            what += ", id {}, seq {}".format(*struct.unpack_from(">HH", data, 4))
        return f"{ends}: {_PROTOCOLS[protocol]} {what}, length {length}"
    return f"{ends}: {_PROTOCOLS.get(protocol, f'protocol {protocol}')}, length {length}"


def _arp(data: bytes) -> str:
    operation, _, sender, _, target = struct.unpack_from(">H6s4s6s4s", data, 6)
    sender, target = (str(ipaddress.IPv4Address(raw)) for raw in (sender, target))
    if operation == 1:
        return f"ARP, who has {target}, tell {sender}"
    return f"ARP, {sender} is at {data[8:14].hex(':')}"
