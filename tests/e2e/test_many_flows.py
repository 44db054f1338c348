# SPDX-License-Identifier: Apache-2.0
"""More flows between two hosts than the default key layout has keys: 1,200 and 8,000, all encoded."""

from __future__ import annotations

import itertools
import socket
import time

import pytest

from tests.lab import Container, patience, routed_overlay, xmasq

from .observe import flows, meet, stats

pytestmark = pytest.mark.e2e

PORT = 9


def more_addresses(container: Container, count: int) -> list[str]:
    """Gives a container further addresses, which its host routes to it."""
    net, _, _ = container.address.rpartition(":" if ":" in container.address else ".")
    dot, bits, flags = (":", 128, "nodad") if ":" in container.address else (".", 32, "")
    found = [f"{net}{dot}{100 + i}" for i in range(count)]
    container.ip(*(f"addr add {one}/{bits} dev eth0 {flags}" for one in found))
    container.host.ip(*(f"route add {one}/{bits} dev {container.veth}" for one in found))
    return found


def send(container: Container, sockets: dict[str, socket.socket], pairs: list[tuple[str, str]]) -> None:
    """A datagram for each pair of addresses, not faster than queues can take."""
    for number, (source, target) in enumerate(pairs):
        if source not in sockets:
            sockets[source] = container.socket()
            sockets[source].bind((source, 0))
        try:
            sockets[source].sendto(b"x", (target, PORT))
        except ConnectionRefusedError:
            sockets[source].sendto(b"x", (target, PORT))
        if number % 50 == 49:
            time.sleep(0.005)


@pytest.mark.parametrize(
    ("family", "side", "count", "options"),
    [
        pytest.param(4, (40, 30), 1200, "key-bits 1", id="IPv4-1200"),
        pytest.param(4, (100, 80), 8000, "key-bits 3", id="IPv4-8000", marks=pytest.mark.slow),
        pytest.param(4, (40, 30), 1023, "", id="IPv4-1200-with-1023-keys"),
        pytest.param(6, (40, 30), 1200, "", id="IPv6-1200"),
        pytest.param(6, (100, 80), 8000, "", id="IPv6-8000", marks=pytest.mark.slow),
    ],
)
def test_flows(lab, family, side, count, options):
    """count: of flows that get a key; that is all of them, but where the keys do not suffice."""
    overlay = routed_overlay(
        lab.hosts(2, family=family), wide=True, options=["lease", "60s", *options.split()]
    )
    a, b = overlay.containers
    meet(overlay)
    here = overlay.hosts[0]
    pairs = list(itertools.product(more_addresses(a, side[0]), more_addresses(b, side[1])))
    sockets: dict[str, socket.socket] = {}
    try:
        end = time.monotonic() + patience(45)
        left = pairs
        while left and time.monotonic() < end:
            send(a, sockets, left)
            time.sleep(0.3)
            have = {(one.source, one.destination) for one in flows(here)}
            left = [pair for pair in pairs if pair not in have]
            if len(have) >= count and count < len(pairs):
                break
        one_key_each = [one.key for one in flows(here) if one.source != a.address]
        assert len(one_key_each) == len(set(one_key_each)) == count
        if count == len(pairs):
            before = stats(here)
            send(a, sockets, pairs)
            after = stats(here)
            # Of some the first renewal is due.
            encoded, fallback = (after[name] - before[name] for name in ("encoded", "fallback"))
            assert encoded + after["fb_renewal"] - before["fb_renewal"] >= count
            assert fallback - (after["fb_renewal"] - before["fb_renewal"]) <= count / 100
            assert after["bounced"] == after["path_off"] == 0
        else:
            assert stats(overlay.hosts[1])["exhausted"] > 0
    finally:
        for one in sockets.values():
            one.close()


def test_hosts_that_disagree_about_the_bits_use_the_fallback(lab):
    """The key layout is compared in each control packet."""
    hosts = lab.hosts(2)
    overlay = routed_overlay(hosts)
    xmasq(hosts[1], "link", "del", "xm0")
    words = f"id {overlay.vni} local {hosts[1].address} dev eth0 segment-bits 5 nolearning".split()
    xmasq(hosts[1], "link", "add", "xm0", "address", overlay.lladdr(hosts[1]), "type", "xmasq", *words)
    lines = [f"addr add {overlay.link_address(hosts[1])}/32 dev xm0", "link set xm0 up"]
    via = overlay.link_address(hosts[0])
    lines += [
        f"neigh add {via} lladdr {overlay.lladdr(hosts[0])} dev xm0 nud permanent",
        f"route add {overlay.subnet(hosts[0])} via {via} dev xm0 onlink",
    ]
    hosts[1].ip(*lines)
    hosts[1].bridge(f"fdb append {overlay.lladdr(hosts[0])} dev xm0 dst {hosts[0].address} self permanent")
    a, b = overlay.containers
    deadline = time.monotonic() + patience(20)
    while sum(stats(host)["ctl_params"] for host in hosts) == 0 and time.monotonic() < deadline:
        assert a.ping(b, count=5, interval=0.05).received == 5
    assert sum(stats(host)["ctl_params"] for host in hosts) > 0
    for host in hosts:
        assert stats(host)["encoded"] == 0
