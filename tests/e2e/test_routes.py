# SPDX-License-Identifier: Apache-2.0
"""The way to a peer changes while a flow is encoded."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

import xmasq_link
from tests.lab import Container, Host, Lab, patience, routed_overlay
from xmasq_link import Flow

pytestmark = pytest.mark.e2e

LEASE = patience(4)


def flow_to(host: Host, target: Container) -> Flow | None:
    found = host.inside(lambda: list(xmasq_link.flows("xm0")))
    return next((f for f in found if f.destination == target.address), None)


def until(condition: Callable[[], bool], seconds: float, ping: Callable[[], object]) -> float:
    """Seconds until the condition holds, with traffic all the while; fails when it takes too long."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds
        ping()
    return time.monotonic() - start


def lladdr(host: Host) -> str:
    return str(host.ip_json("link show eth0")[0]["address"])


@pytest.fixture
def overlay():
    with Lab() as lab:
        made = routed_overlay(lab.hosts(3), kind="xmasq", options=["lease", f"{LEASE:g}s"])
        a, b, _ = made.containers
        until(lambda: flow_to(made.hosts[0], b) is not None, patience(5), lambda: a.ping(b, count=1))
        yield made


def test_a_changed_neighbour_is_followed_at_once(overlay):
    """Each packet asks the kernel's neighbour table: a peer with a new MAC address loses nothing."""
    h1, h2, _ = overlay.hosts
    a, b, _ = overlay.containers
    mac = "02:00:00:00:77:02"
    h2.ip("link set eth0 down", f"link set eth0 address {mac}", "link set eth0 up")
    for other in overlay.hosts:
        if other is not h2:
            h2.ip(
                f"route replace {overlay.subnet(other)} via {overlay.link_address(other)} dev xm0 onlink",
            )
    h1.ip(f"neigh replace {h2.address} lladdr {mac} dev eth0 nud permanent")
    before = flow_to(h1, b)
    assert a.ping(b, count=10, interval=0.02).received == 10
    after = flow_to(h1, b)
    assert before is not None
    assert after is not None
    assert (after.peer, after.dev) == (before.peer, "eth0")


def test_a_changed_next_hop_is_taken_within_half_a_lease(overlay):
    h1, h2, h3 = overlay.hosts
    a, b, _ = overlay.containers
    h3.run(["sysctl", "-qw", "net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.eth0.send_redirects=0"])
    h1.ip(f"route add {h2.address}/32 via {h3.address} dev eth0")

    def moved() -> bool:
        flow = flow_to(h1, b)
        return flow is not None and flow.nexthop == h3.address

    lost = 0

    def ping() -> None:
        nonlocal lost
        lost += a.ping(b, count=1).received == 0

    until(moved, LEASE + patience(3), ping)
    assert lost == 0
    assert a.ping(b, count=5, interval=0.02).received == 5
