# SPDX-License-Identifier: Apache-2.0
"""The way out of an encoded packet: remembered for a tick, and only where the neighbour is there."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from kmod_ebpf import bpf
from kmod_ebpf import maps as m
from tests.unit.harness import REDIRECT, Bench, Node, context, negotiate, raw_mac
from tests.unit.packets import tcp

pytestmark = pytest.mark.root

KNOWN, NONE = 2, 3  # hop.h
PEER, OTHER = "192.0.2.2", "02:00:00:00:77:77"


@pytest.fixture
def a(net: Bench) -> Iterator[Node]:
    """A node that encodes a flow, on a host that forwards, as all with containers do."""
    switch = Path("/proc/sys/net/ipv4/conf/ul0/forwarding")
    before = switch.read_text()
    switch.write_text("1")
    negotiate(net.a, net.b, tcp())
    present = lladdr()
    yield net.a
    set_neighbour(lladdr=present, state="permanent")
    switch.write_text(before)


def lladdr() -> str:
    with IPRoute() as ipr:
        return str(next(n.get_attr("NDA_LLADDR") for n in ipr.get_neighbours(dst=PEER)))


def set_neighbour(**fields: object) -> None:
    with IPRoute() as ipr:
        ipr.neigh("replace", dst=PEER, ifindex=ipr.link_lookup(ifname="ul0")[0], **fields)


def hops(node: Node) -> list[m.Hop]:
    """What each CPU remembers at the place of the only pair."""
    return [cpu.hops[place(node)] for cpu in node.scratch()]


def place(node: Node) -> int:
    index, _ = node.pair(PEER)
    return (index ^ node.underlay) % m.HOPS


def state(node: Node) -> int:
    """How far the CPU in use has come."""
    return max(hops(node), key=lambda hop: hop.at).state


def burst(node: Node, wanted: int) -> list[bytes]:
    """Sends until two packets fell into one tick; the link layer addresses of what was sent since."""
    for _ in range(500):
        time.sleep(0.012)  # another tick
        sent = node.encode_at_once([tcp()] * 3)
        assert {out.action for out in sent} == {REDIRECT}
        if state(node) == wanted:
            return [out.packet[:12] for out in sent]
    pytest.fail(f"never in state {wanted}, but {state(node)}")


def test_the_first_packet_of_a_tick_asks_the_stack(a: Node) -> None:
    time.sleep(0.012)
    assert a.encode(tcp()).packet[:12] == tcp()[:12]


def test_further_packets_have_the_neighbours_address(a: Node) -> None:
    sent = burst(a, KNOWN)
    assert sent[-1] == raw_mac(lladdr()) + raw_mac(a.underlay_mac)


def test_a_changed_neighbour_is_followed_in_the_next_tick(a: Node) -> None:
    burst(a, KNOWN)
    set_neighbour(lladdr=OTHER, state="permanent")
    assert burst(a, KNOWN)[-1] == raw_mac(OTHER) + raw_mac(a.underlay_mac)


@pytest.mark.parametrize("nud", ["incomplete", "failed"])
def test_a_neighbour_that_is_not_there_is_left_to_the_stack(a: Node, nud: str) -> None:
    burst(a, KNOWN)
    set_neighbour(lladdr=OTHER, state=nud)
    assert burst(a, NONE) == [tcp()[:12]] * 3


def test_a_host_that_does_not_forward_is_left_to_the_stack(a: Node) -> None:
    Path("/proc/sys/net/ipv4/conf/ul0/forwarding").write_text("0")
    assert burst(a, NONE) == [tcp()[:12]] * 3


@pytest.mark.parametrize(
    "byte",
    [m.Hop.at.offset, m.Hop.out.offset, m.Hop.out.offset + 4],
    ids=["pair", "device", "generation"],
)
def test_another_peer_in_the_same_place_is_left_to_the_stack(a: Node, byte: int) -> None:
    """The place of a pair is that of others, too; and the pair's index may be another one's later."""
    table, size, key = a.dp.maps["scratch"], ctypes.sizeof(m.Scratch), bytes(4)
    fd, ctx = a.dp.programs["xmasq_encode"], context(ifindex=a.link)
    at = m.Scratch.hops.offset + place(a) * ctypes.sizeof(m.Hop) + byte
    for _ in range(500):
        burst(a, KNOWN)
        time.sleep(0.012)
        *before, after = [bpf.prepare_test_run(fd, tcp(), ctx) for _ in range(3)]
        # All of this within a tick, so nothing that takes long.
        for run in before:
            run()
        known = table.lookup(key)
        assert known is not None
        foreign = bytearray(known)
        for start in range(0, len(foreign), size):
            foreign[start + at] ^= 1
        table.update(key, bytes(foreign))
        sent = after().data
        left = table.lookup(key)
        if left == foreign and state(a) == KNOWN:
            assert sent[:12] == tcp()[:12]
            return
    pytest.fail("the tick was always over")
