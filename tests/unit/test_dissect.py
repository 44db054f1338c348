# SPDX-License-Identifier: Apache-2.0
"""The scapy layer, and telling what is what in a capture."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Padding, Raw

from tests.unit.test_wire import EXAMPLE, EXAMPLE6
from xmasq_link import _wire as wire
from xmasq_link.dissect import Wire, XmasqControl, bind_port, classify, key_of

A, B = "192.0.2.1", "192.0.2.2"
VTEPS = {A, B}
MARKED = wire.MARK << 2
# With addresses, or scapy would ask the network for them.
ETHER = Ether(src="02:00:00:00:00:fe", dst="02:00:00:00:00:ff")


def seen(packet: Packet) -> Packet:
    """As it comes out of a capture."""
    return Ether(bytes(packet))


def underlay(**ip: object) -> Packet:
    """Headers of a packet from a to b."""
    return ETHER / IP(**{"src": A, "dst": B, "flags": "DF", "tos": MARKED, "id": 64, **ip})


CONTROL = underlay() / UDP(sport=4789, dport=4789) / Raw(EXAMPLE.pack())
FALLBACK = underlay(flags="", id=7) / UDP(dport=4789) / VXLAN(vni=5) / ETHER / IP() / TCP()


def test_all_fields_of_a_control_packet() -> None:
    layer = seen(CONTROL)[XmasqControl]
    fields = {f.name: getattr(layer, f.name) for f in layer.fields_desc}
    assert fields == {
        "vxlan_flags": 0,
        "vxlan_rest": bytes(7),
        "version": 1,
        "type": wire.ACCEPT,
        "used": 1,
        "reserved_flags": 0,
        "xbits": 2,
        "seg_bits": 6,
        "vni": EXAMPLE.vni,
        "smac": EXAMPLE.smac,
        "dmac": EXAMPLE.dmac,
        "sip": EXAMPLE.sip,
        "dip": EXAMPLE.dip,
        "dscp": EXAMPLE.dscp,
        "variant": wire.VAR_NODF,
        "reserved": 0,
        "key": EXAMPLE.key,
        "lease_ms": EXAMPLE.lease_ms,
        "nonce_a": EXAMPLE.nonce_a,
        "nonce_b": EXAMPLE.nonce_b,
        "auth": EXAMPLE.auth,
    }
    assert str(layer.variant) == "NODF"


def test_fields_stand_where_the_wire_module_says() -> None:
    offset = 0.0
    places = {}
    for field in XmasqControl.fields_desc:
        places[field.name] = int(offset)
        plain = field.dflt if field.name in ("sip", "dip") else field  # IPv4's
        offset += plain.i2len(None, plain.default) if field.name == "vxlan_rest" else plain.sz
    assert offset == wire.CTL_LEN
    assert {k: v for k, v in places.items() if k in wire.CTL_OFFSETS} == {
        k: v for k, v in wire.CTL_OFFSETS.items() if k != "flags"
    }


def test_building_is_the_inverse() -> None:
    assert bytes(seen(CONTROL)) == bytes(CONTROL)
    made = IP() / UDP() / XmasqControl(type="OFFER", key=5, vni=7, used=1)
    assert (made[UDP].sport, made[UDP].dport) == (4789, 4789)
    control = wire.Control.unpack(bytes(made[XmasqControl]))
    assert (control.type, control.key, control.vni, control.flags) == (wire.OFFER, 5, 7, wire.CTL_USED)
    assert (control.version, control.seg_bits) == (wire.VERSION, wire.SEG_BITS)


A6, B6 = "2001:db8::1", "2001:db8::2"


def underlay6(**ip: object) -> Packet:
    """Headers of an IPv6 packet from a to b."""
    return ETHER / IPv6(**{"src": A6, "dst": B6, "tc": MARKED, "fl": 17, **ip})


CONTROL6 = underlay6() / UDP(sport=4789, dport=4789, chksum=0) / Raw(EXAMPLE6.pack())


def test_a_control_packet_over_ipv6() -> None:
    layer = seen(CONTROL6)[XmasqControl]
    assert (layer.sip, layer.dip, layer.key) == (EXAMPLE6.sip, EXAMPLE6.dip, EXAMPLE6.key)
    assert bytes(layer) == EXAMPLE6.pack()
    assert bytes(seen(CONTROL6)) == bytes(CONTROL6)


@pytest.mark.parametrize(
    ("packet", "kind", "key"),
    [
        (CONTROL6, "control", 17),
        (underlay6() / TCP(), "encoded", 17),
        (underlay6(tc=MARKED | 3) / UDP(dport=53), "encoded", 17),
        (underlay6(tc=wire.BOUNCE << 2) / TCP(), "bounced", 17),
        (underlay6(fl=5) / UDP(dport=4789) / VXLAN(vni=5, flags=8) / ETHER / IP() / TCP(), "fallback", None),
        (underlay6(tc=0) / TCP(), "other", None),
        (underlay6(fl=0) / TCP(), "other", None),
        (underlay6(src="2001:db8::3") / TCP(), "other", 17),
    ],
)
def test_what_is_what_over_ipv6(packet: Packet, kind: str, key: int | None) -> None:
    assert classify(seen(packet), {A6, B6}) == kind
    assert key_of(seen(packet)) == key


def test_what_follows_is_padding() -> None:
    packet = seen(CONTROL / Raw(b"the rest of what it was made of"))
    assert packet[XmasqControl].payload == packet[Padding]
    assert packet[Padding].load == b"the rest of what it was made of"


def test_summary() -> None:
    assert seen(CONTROL).summary().endswith("xmasq ACCEPT vni 11259375 key 16909060 10.1.2.3 > 10.4.5.6")


def test_real_vxlan_stays_vxlan() -> None:
    packet = seen(FALLBACK)
    assert packet[VXLAN].vni == 5
    assert packet[VXLAN].payload.name == "Ethernet"
    assert XmasqControl not in packet
    built = IP() / UDP() / VXLAN(vni=9) / ETHER
    assert (built[UDP].dport, IP(bytes(built))[VXLAN].vni) == (4789, 9)


@pytest.mark.parametrize(
    "payload",
    [
        EXAMPLE.pack()[:-1],
        bytes([wire.VXLAN_FLAG_I]) + EXAMPLE.pack()[1:],
        EXAMPLE.pack()[:8] + b"\x02" + EXAMPLE.pack()[9:],
        b"",
    ],
    ids=["cut off", "I set", "version 2", "empty"],
)
def test_what_is_not_a_control_packet(payload: bytes) -> None:
    packet = seen(underlay() / UDP(sport=4789, dport=4789) / Raw(payload))
    assert XmasqControl not in packet
    assert classify(packet) != "control"


ENCODED = underlay() / TCP(sport=1, dport=2) / Raw(b"hello")

KINDS: dict[str, tuple[str, Packet, int | None]] = {
    "encoded": ("encoded", ENCODED, 1),
    "encoded, a later segment": ("encoded", underlay(id=64 + 63) / TCP(), 1),
    "encoded, last key": ("encoded", underlay(id=0xFFC0) / TCP(), 1023),
    "encoded, CE": ("encoded", underlay(tos=MARKED | 3) / TCP(), 1),
    "encoded, ICMP": ("encoded", underlay() / ICMP(), 1),
    "encoded, UDP": ("encoded", underlay() / UDP(dport=53), 1),
    "encoded, from the tunnel's port": ("encoded", underlay() / UDP(sport=4789, dport=53), 1),
    "bounced": ("bounced", underlay(tos=wire.BOUNCE << 2, id=128) / TCP(), 2),
    "fallback": ("fallback", FALLBACK, None),
    "control": ("control", CONTROL, 1),
    "not announced": ("other", underlay(tos=0) / UDP(dport=4789) / VXLAN(vni=5) / ETHER, None),
    "another DSCP": ("other", underlay(tos=11 << 2) / TCP(), None),
    "DF clear": ("other", underlay(flags="") / TCP(), None),
    "a fragment": ("other", underlay(flags="DF+MF") / TCP(), None),
    "an offset": ("other", underlay(flags="", frag=3) / Raw(b"12345678"), None),
    "options": ("other", underlay(options=b"\1\1\1\1") / TCP(), None),
    "key 0": ("other", underlay(id=63) / TCP(), None),
    "bounced, DF clear": ("other", underlay(tos=wire.BOUNCE << 2, flags="") / TCP(), None),
    "ARP": ("other", ETHER / ARP(), None),
    "IPv6": ("other", ETHER / IPv6(tc=MARKED) / TCP(), None),
    "tunnel, no payload": ("other", underlay() / UDP(dport=4789), None),
}


@pytest.mark.parametrize("what", KINDS)
def test_classify(what: str) -> None:
    kind, packet, key = KINDS[what]
    assert classify(seen(packet)) == kind
    assert key_of(seen(packet)) == key


@pytest.mark.parametrize("what", ["encoded", "bounced", "fallback", "control"])
def test_only_between_vteps(what: str) -> None:
    kind, packet, _ = KINDS[what]
    assert classify(seen(packet), VTEPS) == kind
    for change in ({"src": "203.0.113.1"}, {"dst": "203.0.113.1"}):
        other = packet.copy()
        for name, value in change.items():
            setattr(other[IP], name, value)
        assert classify(seen(other), VTEPS) == "other"


def test_a_container_packet_inside_vxlan_does_not_count() -> None:
    inner = ETHER / IP(tos=MARKED, flags="DF", id=64) / TCP()
    packet = seen(underlay(tos=0) / UDP(dport=4789) / VXLAN(vni=5) / inner)
    assert classify(packet) == "other"


def test_other_settings() -> None:
    settings = Wire(mark=1, bounce=5, seg_bits=8, xbits=2, port=8472)
    packet = seen(underlay(tos=(1 + 2 * 8) << 2, id=0x0300) / TCP())
    assert (classify(packet, wire=settings), key_of(packet, settings)) == ("encoded", 2 << 8 | 3)
    packet = seen(underlay(tos=(5 + 8) << 2, id=0x0300) / TCP())
    assert (classify(packet, wire=settings), key_of(packet, settings)) == ("bounced", 1 << 8 | 3)
    packet = seen(underlay(tos=1 << 2) / UDP(dport=8472) / Raw(bytes([8, 0, 0, 0, 0, 0, 5, 0])))
    assert classify(packet, wire=settings) == "fallback"
    packet = seen(underlay(tos=1 << 2) / UDP(dport=8472) / Raw(EXAMPLE.pack()))
    assert classify(packet, wire=settings) == "control"
    assert classify(seen(ENCODED), wire=settings) == "other"


def test_another_port_is_dissected_on_request() -> None:
    packet = underlay() / UDP(sport=7777, dport=7777) / Raw(EXAMPLE.pack())
    tunnel = underlay() / UDP(dport=7777) / Raw(bytes(VXLAN(vni=6) / ETHER))
    before = UDP.payload_guess
    try:
        assert XmasqControl not in seen(packet)
        bind_port(7777)
        assert XmasqControl in seen(packet)
        assert seen(tunnel)[VXLAN].vni == 6
        assert (IP() / UDP() / VXLAN())[UDP].dport == 4789
    finally:
        UDP.payload_guess = before
