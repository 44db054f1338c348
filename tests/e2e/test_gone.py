# SPDX-License-Identifier: Apache-2.0
"""A link's device goes without xmasq: it was deleted by `ip link del`.

Its underlay hooks stay for a while. They must not swallow what peers still encode for it, nor give
keys for a device that is no longer there.
"""

from __future__ import annotations

import socket
import time

import pytest

from kmod_ebpf import bpf
from tests.lab import ROOT, Host, Overlay, routed_overlay, tcp_transfer, xmasq, xmasq_json
from xmasq_link import netns

from .observe import maps_of, negotiate, programs, stats, until
from .test_lifecycle import exists

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


def uevents(host: Host) -> socket.socket:
    """The kernel's own device events of a namespace (lib/kobject_uevent.c)."""
    with netns(host.name):
        listener = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 15)  # NETLINK_KOBJECT_UEVENT
    listener.bind((0, 1))
    listener.settimeout(5)
    return listener


def test_prune(lab):
    """What the rule for udev looks for is in the event, and what it runs takes all away."""
    (rule,) = (
        line
        for line in (ROOT / "iproute_ext/xmasq.rules").read_text().splitlines()
        if not line.startswith("#")
    )
    command = rule.partition('RUN+="')[2].rstrip('"').split()
    assert (command[0], rule.count("==")) == ("@PREFIX@/bin/xmasq", 3)
    hosts = lab.hosts(2)
    overlay = routed_overlay(hosts, "xmasq", options=["lease", "60"])
    a, b = overlay.containers
    there, here = hosts
    negotiate(a, b)
    xmasq(here, "link", "add", "xm1", "id", "7", "local", here.address)
    with uevents(here) as listener:
        here.ip("link del xm0")
        event: set[bytes] = set()
        while not event >= {b"ACTION=remove", b"SUBSYSTEM=net", b"INTERFACE=xm0"}:
            event = set(listener.recv(8192).split(b"\0"))
    assert b"DEVTYPE=vxlan" in event
    assert xmasq(here, *command[1:]).stdout == "1 pruned\n"
    assert programs(here, "eth0") != {}  # of the link that is left
    # Its keys were taken back: the peer does not encode for it any more.
    until(lambda: xmasq_json(there, "flow", "show") == [], "the peer has stopped")
    here.ip("link del xm1")
    assert xmasq(here, *command[1:]).stdout == "1 pruned\n"
    assert programs(here, "eth0") == {}
    assert xmasq(here, *command[1:]).stdout == "0 pruned\n"


def test_nothing_outlives_its_namespace(lab):
    host = lab.host()
    xmasq(host, "link", "add", "xm0", "id", "1", "local", host.address)
    ids = set(programs(host, "eth0").values()) | set(programs(host, "xm0").values())
    maps = {number for program in ids for number in maps_of(program)}
    assert (len(ids), len(maps) > 20) == (4, True)
    lab.remove_namespace(host.name.removeprefix(f"{lab.prefix}-"))
    until(lambda: not any(exists(bpf.prog_fd, number) for number in ids), "programs are gone")
    until(lambda: not any(exists(bpf.map_fd, number) for number in maps), "maps are gone")


def test_the_next_command_takes_the_rest_away(lab):
    host = lab.host()
    xmasq(host, "link", "add", "xm0", "id", "1", "local", host.address)
    host.ip("link del xm0")
    time.sleep(0.1)
    assert programs(host, "eth0") != {}
    xmasq(host, "link", "add", "xm1", "id", "2", "local", host.address)
    xmasq(host, "link", "del", "xm1")
    assert programs(host, "eth0") == {}


def test_a_link_that_is_moved_to_another_namespace_works_as_vxlan(lab):
    """The kernel's driver goes on to send from where the link was made; encode must not, where it is now.

    A flow that has a key already is noticed by its first packet in the fallback: after half a lease at most.
    """
    hosts = lab.hosts(2)
    overlay = routed_overlay(hosts, "xmasq", options=["lease", "2"])
    a, b = overlay.containers
    here, there = hosts
    negotiate(a, b)
    via = overlay.link_address(there)
    here.ip(f"link set xm0 netns {a.name}")
    moved = time.monotonic()
    a.ip(
        f"addr add {overlay.link_address(here)}/32 dev xm0",
        "link set xm0 up",
        f"neigh add {via} lladdr {overlay.lladdr(there)} dev xm0 nud permanent",
        f"route replace {overlay.subnet(there)} via {via} dev xm0 onlink src {overlay.link_address(here)}",
    )
    a.bridge(f"fdb append {overlay.lladdr(there)} dev xm0 dst {there.address} self permanent")
    while time.monotonic() < moved + 1.2:
        a.ping(b, count=5, interval=0.02, wait=0.2)
    assert a.ping(b, count=300, interval=0.01).lost == 0
    assert tcp_transfer(b, a, 1_000_000).size == 1_000_000
