# SPDX-License-Identifier: Apache-2.0
"""A link's device goes without xmasq: it was deleted by `ip link del`.

Its underlay hooks stay for a while. They must not swallow what peers still encode for it, nor give
keys for a device that is no longer there.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from kmod_ebpf import bpf
from tests.lab import ROOT, Container, Host, Overlay, routed_overlay, tcp_transfer, xmasq, xmasq_json
from xmasq_link import netns

from .observe import (
    Stream,
    flow,
    maps_of,
    meet,
    negotiate,
    programs,
    seen,
    stats,
    until,
    watch,
)
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


Move = Callable[[Overlay, Container], tuple[float, float]]


@pytest.fixture
def move_into(lab) -> Iterator[Move]:
    """Moves a host's link into one of its containers, with all that a link of a container needs there.

    Returns when that began, and when it was done. The link goes before its host's namespace, which Linux 5.10
    would not see the end of, over IPv6: a route that vxlan remembers holds it.
    """
    moved: list[Container] = []

    def move(overlay: Overlay, container: Container) -> tuple[float, float]:
        moved.append(container)
        here, there = overlay.hosts
        via, bits = overlay.link_address(there), 128 if overlay.inner == 6 else 32
        begin = time.monotonic()
        here.ip(f"link set xm0 netns {container.name}")
        container.ip(
            f"addr add {overlay.link_address(here)}/{bits} dev xm0 nodad",
            "link set xm0 up",
            f"neigh add {via} lladdr {overlay.lladdr(there)} dev xm0 nud permanent",
            f"route add {overlay.subnet(there)} via {via} dev xm0 onlink",
        )
        container.bridge(
            f"fdb append {overlay.lladdr(there)} dev xm0 dst {there.addresses[overlay.family]} self permanent"
        )
        return begin, time.monotonic()

    yield move
    for container in moved:
        container.run(["ip", "link", "del", "xm0"], check=False)


@pytest.mark.parametrize(("kind", "family"), [("xmasq", 4), ("xmasq", 6), ("vxlan", 4)])
def test_a_link_that_is_moved_to_another_namespace_works_as_vxlan(lab, move_into, kind, family):
    """In mid-flow, with keys of a minute: as with vxlan, only what is sent while it moves is lost.

    The vxlan driver goes on to send from where the link was made. Encode runs where it is now, and a device
    of the same index is there, too, which leads to the peer; nothing encoded may leave by that one.
    """
    hosts = lab.hosts(2, family=family)
    overlay = routed_overlay(hosts, kind, options=["lease", "60"] if kind == "xmasq" else [])
    here, there = hosts
    a, b = overlay.containers
    meet(overlay)
    index = {one: one.ip_json("link show eth0")[0]["ifindex"] for one in (here, a)}
    assert index[here] == index[a]
    a.sysctl({"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1})
    assert a.ip_json(f"route get {there.address}")[0]["dev"] == "eth0"
    if kind == "xmasq":
        negotiate(a, b)
    with watch(a) as capture:
        with Stream(a, b, rate=2000) as out, Stream(b, a, rate=2000) as back:
            for stream in (out, back):
                stream.wait_for(1000)
            before = stats(here) if kind == "xmasq" else {}
            begin, end = move_into(overlay, a)
            time.sleep(0.05)  # some ticks, after which all is noticed
            for stream in (out, back):
                until(lambda s=stream, n=stream.sent: s.sent > n + 2000, "a second and more", timeout=20)
        for stream in (out, back):
            assert stream.duplicates == 0
            assert stream.lost_outside(begin, end + 0.05) == 0
        packets = seen(capture)
    assert len(packets) > 1000
    assert [one for one in packets if {one.source, one.destination} == {here.address, there.address}] == []
    if kind == "xmasq":
        assert before["encoded"] > 900
        assert flow(b, a) is None
    assert tcp_transfer(b, a, 1_000_000).size == 1_000_000


def test_a_link_that_comes_back_is_encoded_again(lab, move_into):
    """It was in another namespace for a while, and its flows have used it there."""
    hosts = lab.hosts(2)
    overlay = routed_overlay(hosts, "xmasq", options=["lease", "60"])
    here, there = hosts
    a, b = overlay.containers
    negotiate(a, b)
    index = here.ip_json("link show xm0")[0]["ifindex"]
    move_into(overlay, a)
    before = stats(there)["decoded"]
    with Stream(a, b, rate=200) as stream:
        stream.wait_for(50)
    assert (stream.lost, stats(there)["decoded"]) == (0, before)
    a.ip(f"link set xm0 netns {here.name}")
    via = overlay.link_address(there)
    here.ip(
        f"addr add {overlay.link_address(here)}/32 dev xm0",
        "link set xm0 up",
        f"neigh add {via} lladdr {overlay.lladdr(there)} dev xm0 nud permanent",
        f"route add {overlay.subnet(there)} via {via} dev xm0 onlink",
    )
    here.bridge(f"fdb append {overlay.lladdr(there)} dev xm0 dst {there.address} self permanent")
    if here.ip_json("link show xm0")[0]["ifindex"] != index or not programs(here, "xm0"):
        # Its own was taken in the other namespace; or its hooks went with the clsact qdisc, which the kernel
        # takes off a device that moves: here it is a plain vxlan device now.
        assert a.ping(b, count=20).received == 20
        return
    negotiate(a, b)
    encoded = stats(here)["encoded"]
    with Stream(a, b, rate=200) as stream:
        until(lambda: stats(here)["encoded"] > encoded + 20, "encoded again")
    assert stream.lost == 0
