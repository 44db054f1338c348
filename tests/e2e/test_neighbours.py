# SPDX-License-Identifier: Apache-2.0
"""What else passes the hooks: foreign programs, containers behind NAT, routed packets; they do not notice."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from kmod_ebpf import bpf
from tests.lab import Container, Host, routed_overlay, tcp_transfer, udp_echo, xmasq
from xmasq_link._hooks import has_tcx

from .observe import (
    BOUNCE,
    MARK,
    PORT,
    UDP,
    Receiver,
    Seen,
    add_clsact,
    flow,
    negotiate,
    on_hook,
    programs,
    seen,
    stats,
    until,
    watch,
)

pytestmark = pytest.mark.e2e

UNSPEC, OK = -1, 0
SIDES = ("ingress", "egress")


@dataclass
class Foreign:
    """A tc program of somebody else's that counts packets, and then says ``verdict``."""

    host: Host
    side: str
    map: bpf.Map
    id: int

    @property
    def packets(self) -> int:
        return int.from_bytes(self.map.lookup(bytes(4)) or b"", "little")


def _instruction(code: int, dst: int = 0, src: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", code, src << 4 | dst, offset, value)


def _counting(map_fd: int, verdict: int) -> bytes:
    """Adds one to the only value of an array map."""
    return b"".join(
        [
            _instruction(0x62, 10, 0, -4, 0),  # *(u32 *)(r10 - 4) = 0
            _instruction(0xBF, 2, 10),  # r2 = r10
            _instruction(0x07, 2, 0, 0, -4),  # r2 += -4
            _instruction(0x18, 1, 1, 0, map_fd),  # r1 = map
            _instruction(0),
            _instruction(0x85, value=1),  # map_lookup_elem
            _instruction(0x15, 0, 0, 2, 0),  # if r0 == 0 goto + 2
            _instruction(0xB7, 1, 0, 0, 1),  # r1 = 1
            _instruction(0xDB, 0, 1),  # lock *(u64 *)r0 += r1
            _instruction(0xB7, 0, 0, 0, verdict),  # r0 = verdict
            _instruction(0x95),  # exit
        ]
    )


@contextlib.contextmanager
def foreign(host: Host, *, prio: int, verdict: int) -> Iterator[list[Foreign]]:
    """Puts such programs on both hooks of ``eth0``: as clsact filters, or for priority 0 with tcx."""
    from pyroute2 import IPRoute

    found = []
    with contextlib.ExitStack() as stack:
        if prio:
            add_clsact(host, "eth0")
        for side, parent in zip(SIDES, (0xFFFFFFF2, 0xFFFFFFF3), strict=True):
            seen_map = bpf.Map.create("seen", 2, 4, 8, 1)
            stack.callback(seen_map.close)
            name = f"foreign_{side}_{prio}"[:15]
            program = bpf.prog_load(name, _counting(seen_map.fd, verdict))
            stack.callback(os.close, program)

            def attach(parent: int = parent, name: str = name, program: int = program) -> None:
                with IPRoute() as ipr:
                    (index,) = ipr.link_lookup(ifname="eth0")
                    if not prio:
                        bpf.prog_attach(index, bpf.TCX_INGRESS + SIDES.index(name.split("_")[1]), program)
                        return
                    ipr.tc(
                        "add-filter",
                        "bpf",
                        index,
                        1,
                        fd=program,
                        name=name,
                        parent=parent,
                        direct_action=True,
                        prio=prio,
                    )

            host.inside(attach)
            found.append(Foreign(host, side, seen_map, bpf.prog_info(program).id))
        yield found


def order(host: Host, side: str) -> list[str]:
    """The programs on a hook of ``eth0`` in the order in which they run."""
    return [name for name, _ in on_hook(host, "eth0", side)]


@pytest.mark.parametrize(
    ("prio", "verdict", "first"),
    [(1, UNSPEC, True), (1, OK, True), (100, UNSPEC, False), (100, OK, False), (0, OK, True)],
    ids=["before", "before, ends the chain", "after", "after, ends the chain", "tcx, ends the chain"],
)
def test_foreign_programs_on_the_same_hooks(lab, prio, verdict, first):
    """``first``: they were there before the link."""
    if not prio and not has_tcx():
        pytest.skip("this kernel has no tcx (Linux 6.6)")
    hosts = lab.hosts(2)
    host = hosts[0]
    with contextlib.ExitStack() as stack:

        def add() -> list[Foreign]:
            return stack.enter_context(foreign(host, prio=prio, verdict=verdict))

        others = add() if first else []
        overlay = routed_overlay(hosts)
        others = others or add()
        a, b = overlay.containers

        def talk() -> None:
            counts = [one.packets for one in others]
            assert host.ping(hosts[1], count=50, interval=0.002).received == 50
            assert all(one.packets - count >= 50 for one, count in zip(others, counts, strict=True))

        talk()
        negotiate(a, b)
        count = stats(host)
        leaving = others[1].packets
        with watch(host) as capture:
            assert udp_echo(a, b, count=200).lost == 0
            assert tcp_transfer(b, a, 500_000).size == 500_000
        grown = {name: value - count[name] for name, value in stats(host).items()}
        assert grown["encoded"] > 200
        assert grown["decoded"] > 200
        # What was encoded passes the others on its way out as any packet.
        assert others[1].packets - leaving >= len(
            [one for one in seen(capture) if one.source == host.address]
        )
        assert {one.side: order(host, one.side)[0] for one in others} == {
            "ingress": "xmasq_ingress",
            "egress": "xmasq_egress",
        }
        xmasq(host, "link", "del", "xm0")
        left = {f"foreign_{one.side}_{prio}"[:15]: one.id for one in others}
        assert programs(host, "eth0") == left
        talk()
        for one in others:
            assert order(host, one.side) == [f"foreign_{one.side}_{prio}"[:15]]


def raw(where: Container | Host) -> socket.socket:
    """A socket for packets with an IPv4 header of one's own."""
    return where.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)


def datagram(
    source: str, target: tuple[str, int], payload: bytes, *, dscp: int, id: int, df: bool = True
) -> bytes:
    """A UDP datagram with its IPv4 header, all checksums right."""
    from scapy.layers.inet import IP
    from scapy.layers.inet import UDP as Udp

    header = IP(src=source, dst=target[0], tos=dscp << 2 | 2, id=id, flags="DF" if df else 0, ttl=40)
    return bytes(header / Udp(sport=7777, dport=target[1]) / payload)


MASQUERADE = """
add table ip nat
add chain ip nat out { type nat hook postrouting priority 100; }
add rule ip nat out oifname "eth0" masquerade
"""


def test_container_behind_snat_cannot_pass_for_a_vtep(lab):
    """Neither by DSCP and Identification, nor by VXLAN or a control packet of its own making."""
    overlay = routed_overlay(lab.hosts(2))
    host, victim = overlay.hosts
    a, b = overlay.containers
    negotiate(a, b)
    granted = flow(a, b)
    assert granted is not None
    host.run(["nft", "-f", "-"], input=MASQUERADE)
    before = [stats(one) for one in overlay.hosts]
    vxlan = bytes([8, 0, 0, 0, 0, 0, 42, 0]) + bytes(100)
    control = bytes(8) + bytes([1, 1, 0, 6]) + bytes(100)
    with (
        watch(host, "udp", snaplen=300) as wire,
        Receiver(victim) as service,
        raw(a) as sender,
    ):
        for number, dscp in enumerate([*range(64), MARK, BOUNCE] * 2):
            content = b"%d" % number
            sender.sendto(
                datagram(a.address, service.address, content, dscp=dscp, id=granted.key << 6, df=number < 66),
                service.address,
            )
            got = service.receive(2)
            assert got == (content, 2 if dscp in (MARK, BOUNCE) else dscp << 2 | 2)
        for dscp in (MARK, BOUNCE):
            for content in (vxlan, control):
                target = (victim.address, PORT)
                sender.sendto(datagram(a.address, target, content, dscp=dscp, id=granted.key << 6), target)
        until(lambda: stats(host)["sanitised"] - before[0]["sanitised"] >= 12, "all were sanitised")
    packets = [packet for packet in seen(wire) if packet.source == host.address and packet.ttl == 39]
    assert len(packets) == 136
    assert not {MARK, BOUNCE} & {packet.dscp for packet in packets}
    assert {packet.ecn for packet in packets} == {2}
    assert [packet.dscp for packet in packets[:64]] == [0 if d in (MARK, BOUNCE) else d for d in range(64)]
    assert all(right_header(packet) for packet in packets)
    after = [stats(one) for one in overlay.hosts]
    grown = [{name: now[name] - then[name] for name in then} for then, now in zip(before, after, strict=True)]
    assert grown[0]["sanitised"] == 12
    for name in ("decoded", "offer_tx", "offer_rx", "accept_rx", "ctl_bad", "bounce_tx", "stray"):
        assert grown[1][name] == 0, name


def right_header(packet: Seen) -> bool:
    total = sum(struct.unpack("!10H", packet.data[:20]))
    return (total & 0xFFFF) + (total >> 16) in (0xFFFF, 0x1FFFE)


@pytest.mark.parametrize("hop", ["from the host", "through the host"])
def test_other_traffic_passes_bit_for_bit(lab, hop):
    """On an underlay with a link: whatever DSCP, Identification, flags and payload a packet has."""
    overlay = routed_overlay(lab.hosts(2))
    host, target = overlay.hosts
    a, b = overlay.containers
    negotiate(a, b)
    source: Container | Host = host
    if hop == "through the host":
        source = a
        target.ip(f"route add {a.address}/32 via {host.address}")
    host.ip(f"route replace {target.address}/32 dev eth0")
    sent = []
    with (
        watch(target, f"src {source.address}", snaplen=2000) as wire,
        Receiver(target) as service,
        raw(source) as sender,
    ):
        for dscp in range(64):
            if dscp in (MARK, BOUNCE):
                continue
            payload = os.urandom(dscp * 20)
            one = datagram(
                source.address, service.address, payload, dscp=dscp, id=dscp * 1000 + 1, df=dscp % 2 == 0
            )
            sender.sendto(one, service.address)
            sent.append(one)
            assert service.receive(2) == (payload, dscp << 2 | 2)
    arrived = [packet.data for packet in seen(wire) if packet.protocol == UDP]
    # A router takes one off the TTL, and corrects the header's checksum for it.
    skip = slice(8, 12) if source is a else slice(0, 0)
    assert len(arrived) == 62
    for one, other in zip(sent, arrived, strict=True):
        assert one[: skip.start] + one[skip.stop :] == other[: skip.start] + other[skip.stop :]


def test_packets_of_others_with_mark_pass_a_router(lab):
    """A host that only forwards between underlays leaves MARK to the hosts that it is between."""
    left, router, right = lab.hosts(3)
    router.plug("eth1", "203.0.113.2/24")
    right.ip("addr flush dev eth0", "addr add 203.0.113.3/24 dev eth0")
    right.address = "203.0.113.3"
    left.ip("route add 203.0.113.0/24 via 192.0.2.2")
    right.ip("route add 192.0.2.0/24 via 203.0.113.2")
    xmasq(router, "link", "add", "xm0", "id", "42", "local", "192.0.2.2", "up")
    xmasq(router, "link", "add", "xm1", "id", "43", "local", "203.0.113.2", "up")
    with Receiver(right) as service, raw(left) as sender:
        for dscp in range(64):
            packet = datagram(left.address, service.address, b"x", dscp=dscp, id=64 * dscp + 64)
            sender.sendto(packet, service.address)
            assert service.receive(2) == (b"x", dscp << 2 | 2)
    counted = stats(router)
    assert counted["sanitised"] == counted["bounce_tx"] == 0
