# SPDX-License-Identifier: Apache-2.0
"""A link's device goes without xmasq: it was deleted by `ip link del`.

Its underlay hooks stay for a while. They must not swallow what peers still encode for it, nor give
keys for a device that is no longer there.
"""

from __future__ import annotations

import time

import pytest

from tests.lab import Host, Overlay, routed_overlay, xmasq

from .observe import negotiate, programs, stats

pytestmark = pytest.mark.e2e


def plain_vxlan(overlay: Overlay, host: Host, there: Host) -> None:
    """The same device again, by `ip` alone: a plain VXLAN one."""
    via = overlay.link_address(there)
    words = f"link add xm0 mtu 1450 address {overlay.lladdr(host)} type vxlan id {overlay.vni}"
    host.ip(
        f"{words} local {host.address} dstport 4789 nolearning",
        f"addr add {overlay.link_address(host)}/32 dev xm0",
        "link set xm0 up",
        f"neigh add {via} lladdr {overlay.lladdr(there)} dev xm0 nud permanent",
        f"route add {overlay.subnet(there)} via {via} dev xm0 onlink",
    )
    host.bridge(f"fdb append {overlay.lladdr(there)} dev xm0 dst {there.address} self permanent")


def test_plain_vxlan_takes_over(lab):
    """From a tenth of a second on nothing is lost, although keys of 60 s are held by the peer."""
    hosts = lab.hosts(2)
    overlay = routed_overlay(hosts, "xmasq", options=["lease", "60"])
    a, b = overlay.containers
    there, here = hosts
    negotiate(a, b)
    here.ip("link del xm0")
    plain_vxlan(overlay, here, there)
    a.ping(b, count=20, interval=0.01)  # those of the first tenth of a second may be lost
    before = stats(there)
    assert a.ping(b, count=150, interval=0.01).lost == 0
    after = stats(there)
    assert after["encoded"] == before["encoded"]
    assert after["confirm_rx"] == before["confirm_rx"]


def test_the_next_command_takes_the_rest_away(lab):
    host = lab.host()
    xmasq(host, "link", "add", "xm0", "id", "1", "local", host.address)
    host.ip("link del xm0")
    time.sleep(0.1)
    assert programs(host, "eth0") != {}
    xmasq(host, "link", "add", "xm1", "id", "2", "local", host.address)
    xmasq(host, "link", "del", "xm1")
    assert programs(host, "eth0") == {}
