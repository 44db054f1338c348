# SPDX-License-Identifier: Apache-2.0
"""Every combination of a NIC's offloads: transfers stay whole, and checksums are right on the wire."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.observe import TCP, UDP, Seen, kinds, negotiate, seen, stats, watch
from tests.lab import Container, Lab, Overlay, bridged_overlay, routed_overlay, tcp_transfer, udp_echo

pytestmark = pytest.mark.e2e

SWITCHES = ("tx", "tso", "gso", "gro", "udp_tunnel")
SIZE = 1_500_000


@pytest.fixture(
    scope="module",
    params=[(routed_overlay, 4), (bridged_overlay, 4), (routed_overlay, 6)],
    ids=["routed", "bridged", "routed, IPv6"],
)
def overlay(request: pytest.FixtureRequest) -> Iterator[Overlay]:
    with Lab() as lab:
        make, family = request.param
        made: Overlay = make(lab.hosts(2, family=family))
        negotiate(*made.containers)
        yield made


def errors(where: Container) -> dict[str, int]:
    """What the container's stack found wrong: checksum and header errors of /proc/net/snmp."""
    text = where.inside(Path("/proc/thread-self/net/snmp").read_text)
    table: dict[str, dict[str, int]] = {}
    lines = iter(text.splitlines())
    for names, values in zip(lines, lines, strict=True):
        proto, *keys = names.split()
        table[proto] = dict(zip(keys, map(int, values.split()[1:]), strict=True))
    return {
        "tcp": table["Tcp:"]["InCsumErrors"],
        "udp": table["Udp:"]["InCsumErrors"],
        "header": table["Ip:"]["InHdrErrors"],
    }


def folded(data: bytes) -> int:
    """The sum that a right checksum makes ffff (RFC 1071)."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def assert_checksums(packet: Seen) -> None:
    """Those of the IPv4 header, and of TCP or UDP."""
    if packet.data[0] >> 4 == 6:
        ends = packet.data[8:40]
    else:
        ends = packet.data[12:20]
        assert folded(packet.data[:20]) == 0xFFFF
    if packet.protocol in (TCP, UDP):
        l4 = packet.payload
        assert folded(ends + struct.pack("!HH", packet.protocol, len(l4)) + l4) == 0xFFFF


def renewals(overlay: Overlay) -> int:
    """How many packets took the fallback so far to renew a key."""
    return sum(stats(host)["fb_renewal"] for host in overlay.hosts)


@pytest.mark.parametrize(
    "on",
    list(itertools.product((True, False), repeat=len(SWITCHES))),
    ids=lambda on: " ".join(name for name, value in zip(SWITCHES, on, strict=True) if value) or "none",
)
def test_combination(overlay, on):
    switches = dict(zip(SWITCHES, on, strict=True))
    a, b = overlay.containers
    for host in overlay.hosts:
        host.offloads(**switches)
    negotiate(a, b)
    errors_before = [errors(one) for one in (a, b)]
    encoded_before = stats(overlay.hosts[0])["encoded"]
    renewals_before = renewals(overlay)
    with watch(overlay.hosts[0]) as capture:
        tcp_transfer(a, b, SIZE)  # compares hashes
        tcp_transfer(b, a, SIZE)
    packets = seen(capture)
    with watch(overlay.hosts[0], snaplen=0) as capture:  # whole packets, so only a few
        tcp_transfer(a, b, 50_000)
        assert udp_echo(a, b, count=20, size=1111, interval=0.0005).lost == 0
        assert a.ping(b, count=5, size=1200).received == 5
    whole = seen(capture)
    packets += whole
    assert [errors(one) for one in (a, b)] == errors_before
    assert stats(overlay.hosts[0])["encoded"] > encoded_before
    count = kinds(packets)
    # What renews a key may be 64 KB, which leave in 46 packets of two fragments each.
    due = count.total() - 100 * (renewals(overlay) - renewals_before)
    assert count["encoded"] > 0.9 * due - 30, count
    if not switches["tx"]:
        right = [assert_checksums(packet) for packet in whole if packet.kind == "encoded"]
        assert len(right) > 40
    if not (switches["tso"] or switches["gso"]):
        assert max(packet.length for packet in packets) <= overlay.hosts[0].mtu
