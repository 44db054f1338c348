# SPDX-License-Identifier: Apache-2.0
"""Segments of all sizes: what has more of them than the key has room for takes the fallback, and arrives."""

from __future__ import annotations

import socket
import struct
from functools import partial

import pytest
from pyroute2 import IPRoute

from tests.e2e.observe import need_big_tcp, negotiate, seen, stats, watch
from tests.lab import Overlay, routed_overlay, tcp_transfer
from tests.lab.nodes import GATEWAY, GATEWAY6

pytestmark = pytest.mark.e2e

SIZE = 1_500_000


def both_ways(overlay: Overlay) -> dict[str, int]:
    """Transfers, whose content is compared; returns what the first host counted meanwhile."""
    a, b = overlay.containers
    negotiate(a, b)
    before = stats(overlay.hosts[0])
    tcp_transfer(a, b, SIZE)
    tcp_transfer(b, a, SIZE)
    after = stats(overlay.hosts[0])
    return {name: after[name] - before[name] for name in after}


@pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("mss", [88, 536, 1220])
def test_small_segments(lab, family, mss):
    overlay = routed_overlay(lab.hosts(2, family=family))
    for host in overlay.hosts:
        host.offloads(tso=False, gso=False)  # so that segments are to be seen on the wire
    for container in overlay.containers:
        words = (
            f"default via {GATEWAY} dev eth0 onlink" if family == 4 else f"default via {GATEWAY6} dev eth0"
        )
        container.ip(f"route replace {words} advmss {mss}")
    with watch(overlay.hosts[0], "tcp") as capture:
        counted = both_ways(overlay)
    assert counted["encoded"] > 50
    # Buffers of up to 64 KB: more than 63 segments if they are small. The flow label has room for any.
    if family == 6:
        assert counted["fb_segments"] == 0
    elif mss == 88:
        assert counted["fb_segments"] > 0
    assert counted["bounced"] == counted["path_off"] == 0
    lengths = [packet.length for packet in seen(capture) if packet.kind == "encoded"]
    assert len(lengths) > 50
    assert max(lengths) <= mss + (60 if family == 6 else 40)


@pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("segmented", [False, True], ids=["buffers", "segments"])
def test_jumbo_frames(lab, family, segmented):
    overlay = routed_overlay(lab.hosts(2, family=family, mtu=9000))
    assert overlay.mtu == 9000
    if segmented:
        for host in overlay.hosts:
            host.offloads(tso=False, gso=False)
    a, b = overlay.containers
    with watch(overlay.hosts[0]) as capture:
        counted = both_ways(overlay)
        assert a.ping(b, count=3, size=8900, df=True).received == 3
    assert counted["encoded"] > 20
    assert counted["fb_mtu"] == 0
    encoded = [packet.length for packet in seen(capture) if packet.kind == "encoded"]
    assert max(encoded) > 8900
    if segmented:
        assert max(encoded) <= 9000


_IFLA_GRO_IPV4, _IFLA_GSO_IPV4 = 64, 63  # IFLA_GRO_IPV4_MAX_SIZE and its kin (linux/if_link.h)


def let_grow(device: str, size: int = 180_000) -> bool:
    """Lets a device have larger IPv4 buffers, by a request that neither `ip` nor pyroute2 may know.

    Returns whether the kernel has such a limit.
    """
    with IPRoute() as ipr:
        index = ipr.link_lookup(ifname=device)[0]
        known = str(ipr.link("get", index=index)[0])
    if f"'type': {_IFLA_GSO_IPV4}" not in known:
        return False
    body = struct.pack("=BxHiII", 0, 0, index, 0, 0)
    for kind in (_IFLA_GSO_IPV4, _IFLA_GRO_IPV4):
        body += struct.pack("=HHI", 8, kind, size)
    # RTM_NEWLINK with NLM_F_REQUEST and NLM_F_ACK; the answer is an error of 0.
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.send(struct.pack("=IHHII", 16 + len(body), 16, 5, 1, 0) + body)
        error = struct.unpack_from("=i", netlink.recv(4096), 16)[0]
    assert error == 0, error
    return True


def test_buffers_of_more_than_64_kilobytes(lab):
    """BIG TCP over IPv4 (Linux 6.3): the header has no room for such a length, so they take the fallback."""
    overlay = routed_overlay(lab.hosts(2))
    for host, container in zip(overlay.hosts, overlay.containers, strict=True):
        for where, device in ((host, container.veth), (container, "eth0"), (host, "eth0")):
            if not where.inside(partial(let_grow, device)):
                pytest.skip("this kernel has no gso_ipv4_max_size (Linux 6.3)")
    counted = both_ways(overlay)
    assert counted["encoded"] > 10
    assert counted["bounced"] == counted["path_off"] == 0


def test_long_buffers_over_ipv4_by_the_old_limit(lab):
    """gso_max_size above 64 KB alone: over IPv4 the kernel keeps to 64 KB."""
    overlay = routed_overlay(lab.hosts(2))
    for container in overlay.containers:
        need_big_tcp(container, "eth0")
        container.ip("link set eth0 gso_max_size 180000")
    assert both_ways(overlay)["encoded"] > 20
