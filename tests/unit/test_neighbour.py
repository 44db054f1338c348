# SPDX-License-Identifier: Apache-2.0
"""Good neighbour: what is not ours passes all hooks bit for bit, and goes on to other programs."""

from __future__ import annotations

import pytest
from scapy.contrib.mpls import MPLS
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

from tests.unit.harness import HOST, UNSPEC, Node
from tests.unit.packets import frame
from xmasq_link import _wire as wire

pytestmark = pytest.mark.root

MARKED = wire.MARK << 2
# With addresses, or scapy would ask the network for them.
ETHER = Ether(src="02:00:00:00:00:fe", dst="02:00:00:00:00:ff")


def eth(payload: Packet, dst: str = "02:00:00:00:00:00") -> bytes:
    """In an Ethernet frame to a's underlay device."""
    return bytes(Ether(src="02:00:00:00:00:fe", dst=dst) / payload)


OTHERS = {
    "ARP": eth(ARP(psrc="192.0.2.2", pdst="192.0.2.1")),
    "IPv6": eth(IPv6(src="2001:db8::1", dst="2001:db8::2", tc=MARKED, fl=64) / TCP()),
    "IPv6 neighbour": eth(IPv6(src="fe80::1", dst="ff02::1") / ICMPv6ND_NS(tgt="fe80::2")),
    "IPv6 VXLAN": eth(IPv6(tc=MARKED) / UDP(dport=4789) / VXLAN(vni=42) / ETHER / IP()),
    "VLAN": eth(Dot1Q(vlan=5) / IP(dst="192.0.2.1", tos=MARKED, id=64, flags="DF") / TCP()),
    "QinQ": eth(Dot1AD(vlan=5) / Dot1Q(vlan=6) / IP(dst="192.0.2.1", tos=MARKED) / TCP()),
    "MPLS": eth(MPLS(label=3) / IP(tos=MARKED)),
    "LLC": bytes.fromhex("0180c2000000020000000001") + b"\x00\x26" + bytes(38),
    "LLDP": bytes.fromhex("0180c200000e020000000001") + b"\x88\xcc" + bytes(20),
    "no payload": bytes.fromhex("02000000000002000000fe0188b6") + b"",
    "one byte": bytes.fromhex("02000000000002000000fe0188b6") + b"x",
    "jumbo": eth(IP(src="192.0.2.2", dst="192.0.2.1") / ICMP() / bytes(3000)),
    "TCP": eth(IP(src="192.0.2.2", dst="192.0.2.1") / TCP()),
    "plain VXLAN of another": eth(IP(src="192.0.2.2", dst="192.0.2.3") / UDP(dport=4789) / VXLAN() / ETHER),
    "marked, of others": eth(IP(src="192.0.2.2", dst="192.0.2.3", tos=MARKED, id=64, flags="DF") / TCP()),
}


@pytest.mark.parametrize("what", OTHERS)
def test_the_underlays_ingress(a: Node, what: str) -> None:
    out = a.ingress(OTHERS[what], mark=0xCAFE)
    assert (out.action, out.packet, out.mark) == (UNSPEC, OTHERS[what], 0xCAFE)
    assert a.counters() == a.counters(HOST) == {}


@pytest.mark.parametrize("what", [x for x in OTHERS if x != "marked, of others"])
def test_the_underlays_egress(a: Node, what: str) -> None:
    out = a.egress(OTHERS[what], mark=0xCAFE)
    assert (out.action, out.packet, out.mark) == (UNSPEC, OTHERS[what], 0xCAFE)
    assert a.counters() == a.counters(HOST) == {}


@pytest.mark.parametrize("what", OTHERS)
def test_the_link(a: Node, what: str) -> None:
    for out in (a.encode(OTHERS[what], mark=0xCAFE), a.arrive(OTHERS[what], mark=0xCAFE)):
        assert (out.action, out.packet, out.mark) == (UNSPEC, OTHERS[what], 0xCAFE)
    assert a.counters(HOST) == {}


@pytest.mark.parametrize("what", OTHERS)
def test_a_device_that_is_no_link(a: Node, b: Node, what: str) -> None:
    for program in ("xmasq_encode", "xmasq_arrive"):
        out = a.run(program, OTHERS[what], ifindex=b.link, mark=0xCAFE)
        assert (out.action, out.packet, out.mark) == (UNSPEC, OTHERS[what], 0xCAFE)
    assert a.counters() == a.counters(HOST) == {}
    assert a.items("macs") == []


@pytest.mark.parametrize("priority", [0, 7])
def test_queueing_stays(a: Node, priority: int) -> None:
    out = a.ingress(frame(TCP()), priority=priority, mark=1)
    assert (out.action, out.mark) == (UNSPEC, 1)
