# SPDX-License-Identifier: Apache-2.0
"""Two nodes and a network that loses, doubles and reorders packets, while nodes forget and time passes.

Whatever happens, no packet comes out of decode but as the one that entered encode (I1), none is lost
but by the network (I4), and no key is in use for two flows (I2). There are three keys for five flows, so
keys run out and are given anew all the time.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import UDP
from scapy.packet import Raw

from kmod_ebpf import maps as m
from tests.unit.harness import (
    CONTROL,
    DECODED,
    ENCODED,
    GUARD_MS,
    HOST,
    LEASE_MS,
    LINK,
    MS,
    REDIRECT,
    SEC,
    SHOT,
    UNSPEC,
    Bench,
    Node,
    now,
    seal_slot,
)
from tests.unit.packets import exact, frame

pytestmark = pytest.mark.root

FLOWS = 5
SEG_BITS = 14  # two bits of key
#: How long a packet may be under way: less than the guard, which is made for that.
FLIGHT = 2 * SEC

Step = tuple[str, int]

flows = st.integers(0, FLOWS - 1)
waits = st.sampled_from([2] * 8 + [20, 600, 1100] * 2 + [2100, 5000, LEASE_MS, 20_000])
steps = st.lists(
    st.one_of(
        *[st.tuples(st.just("talk"), flows)] * 5,
        *[st.tuples(st.just("send"), flows)] * 5,
        *[st.tuples(st.sampled_from(["deliver", "deliver", "double", "lose"]), st.integers(0, 30))] * 4,
        *[st.tuples(st.just("wait"), waits)] * 2,
        st.tuples(st.just("deliver all"), st.just(0)),
        st.tuples(st.sampled_from(["receiver forgets", "sender forgets", "link renewed"]), st.just(0)),
    ),
    min_size=15,
    max_size=80,
)


class Network:
    """The two nodes, and what is under way between them."""

    def __init__(self, net: Bench, seed: int) -> None:
        self.net, self.a, self.b = net, net.a, net.b
        self.random = random.Random(seed)
        self.air: list[tuple[Node, bytes, int]] = []
        self.clock = 0
        self.sent: dict[bytes, bytes] = {}
        self.arrived: Counter[bytes] = Counter()
        self.may_be_lost: set[bytes] = set()
        self.counted: Counter[str] = Counter()
        for node in (self.a, self.b):
            node.conf(seg_bits=SEG_BITS)

    # What containers see

    def send(self, flow: int) -> None:
        """A container of a sends a packet, with a number that no other has."""
        number = len(self.sent).to_bytes(4, "big")
        packet = frame(UDP(sport=1, dport=2) / Raw(number), src=f"10.0.0.{flow + 1}", tos=flow << 2)
        self.sent[number] = exact(packet)
        self.leave_link(packet)

    def came_out(self, packet: bytes) -> None:
        """A packet comes out at b. Its number says which it must be."""
        number = packet[-4:]
        assert packet == self.sent[number], "misdelivered"
        self.arrived[number] += 1

    # The nodes

    def leave_link(self, packet: bytes) -> None:
        out = self.a.encode(packet)
        if out.action == UNSPEC:
            assert out.packet == packet
            out = self.a.egress(self.a.vxlan(packet, self.b.local))
            assert out.action == UNSPEC
        else:
            assert (out.action, out.kind) == (REDIRECT, ENCODED)
            self.check_key(packet)
        self.put(self.b, out.packet)

    def check_key(self, packet: bytes) -> None:
        """The flow's lease has not ended, and nobody else's key is the same."""
        live = [(f, e) for f, e in self.a.items("flows") if e.lease_end > now()]
        keys = [e.key for _, e in live]
        assert len(set(keys)) == len(keys)
        assert any(bytes(f.sip) == packet[26:30] for f, _ in live)

    def put(self, to: Node, packet: bytes) -> None:
        self.air.append((to, to.arriving(packet), self.clock))

    def arrive(self, to: Node, packet: bytes) -> None:
        if to is self.b:
            self.arrive_at_b(packet)
        else:
            self.arrive_at_a(packet)

    def arrive_at_b(self, packet: bytes) -> None:
        if packet[23] == 17 and packet[36:38] == b"\x12\xb5" and packet[42] & 8:
            offer = self.b.offer(packet)
            if offer is not None:
                self.put(self.a, offer)
            inner = packet[50:]
            self.came_out(exact(inner))
            return
        out = self.b.ingress(packet)
        if out.kind == DECODED:
            self.came_out(out.packet)
        elif out.kind == CONTROL:  # a CONFIRM, or a bounced packet
            self.put(self.a, out.packet)
        else:
            assert out.action == SHOT

    def arrive_at_a(self, packet: bytes) -> None:
        out = self.a.ingress(packet)
        if out.kind == CONTROL:
            self.put(self.b, out.packet)
        elif out.action == REDIRECT:
            self.leave_link(out.packet)
        else:
            # A bounced packet of before a forgot everything, the peer included, is the stack's.
            assert out.action == SHOT or not self.a.items("pair_ids")
            self.lost(packet)

    # The network

    def lost(self, packet: bytes) -> None:
        """The packet will not be delivered, and that is nobody's fault but the network's."""
        self.may_be_lost.add(packet[-4:])

    def step(self, verb: str, n: int) -> None:
        if verb == "send":
            self.send(n)
        elif verb == "talk":  # long enough for the flow to be encoded, if it can be
            for _ in range(2):
                self.send(n)
                self.settle()
        elif verb == "wait":
            self.wait(n * MS)
        elif verb == "deliver all":
            self.settle()
        elif verb == "receiver forgets":
            self.forget(self.b)
        elif verb == "sender forgets":
            self.forget(self.a)
        elif verb == "link renewed":
            self.b.set_link(rx_gen=self.b.get("links", LINK).rx_gen + 1)
        elif self.air:
            to, packet, since = self.air[n % len(self.air)]
            if verb == "lose":
                self.lost(packet)
            if verb != "double":
                self.air.remove((to, packet, since))
            if verb != "lose":
                self.arrive(to, packet)

    def wait(self, ns: int) -> None:
        self.clock += ns
        self.net.pass_time(ns)
        late = [x for x in self.air if self.clock - x[2] > FLIGHT]
        for each in late:
            self.lost(each[1])
            self.air.remove(each)

    def settle(self) -> None:
        """All that is under way arrives, in some order."""
        for _ in range(1000):
            if not self.air:
                return
            self.arrive(*self.air.pop(self.random.randrange(len(self.air)))[:2])
        raise AssertionError("packets go round for ever")

    def count(self, node: Node) -> None:
        """Adds up a node's counters."""
        self.counted.update(node.counters())
        self.counted.update(node.counters(HOST))

    def forget(self, node: Node) -> None:
        """The datapath is made anew, as when a machine takes the address over: without a hold-down.

        A sender waits for the guard all the same. What it sent before may bounce, and it does not know
        what that was.
        """
        was = node.get("links", LINK)
        self.count(node)
        node.reset()
        node.conf(seg_bits=SEG_BITS)
        node.set_link(rx_gen=was.rx_gen + 1, tx_gen=was.tx_gen + 1)
        if node is self.a:
            node.conf(tx_hold=now() + GUARD_MS * MS)
            for _, packet, _ in self.air:
                self.lost(packet)


@settings(max_examples=80, deadline=None, phases=set(Phase) - {Phase.explain})
@given(todo=steps, seed=st.integers(0, 1 << 32))
def test_nothing_is_misdelivered_or_lost(unentered_bench: Bench, todo: list[Step], seed: int) -> None:
    with unentered_bench.entered() as net:
        network = Network(net, seed)
        for verb, n in todo:
            network.step(verb, n)
        network.settle()
        for node in (net.a, net.b):
            network.count(node)
        for name in ("decoded", "restored", "exhausted", "ctl_conflict", "ctl_nonce", "stray", "path_off"):
            if network.counted[name]:
                event(name)
        missing = {n for n in network.sent if not network.arrived[n]}
        assert missing <= network.may_be_lost
        assert not network.counted["error"]


def test_the_network_of_this_test_would_notice(unentered_bench: Bench) -> None:
    """If b's slot said another flow, what comes out would not be what went in."""
    with unentered_bench.entered() as net:
        network = Network(net, 0)
        network.send(0)
        network.settle()
        network.send(0)
        at, _, block, slot = net.b.slot(1)
        slot.sip = m.Be32(10, 0, 0, 99)
        slot.seal = seal_slot(slot)
        net.b.put("blocks", at, block)
        with pytest.raises(AssertionError, match="misdelivered"):
            network.settle()
