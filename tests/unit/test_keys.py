# SPDX-License-Identifier: Apache-2.0
"""Which keys the receiver gives, and when one may mean something else."""

from __future__ import annotations

import dataclasses
import ipaddress
import struct

import pytest
from scapy.layers.inet import TCP

from kmod_ebpf import loader
from tests.unit.harness import (
    GUARD_MS,
    HOST,
    LEASE_MS,
    MS,
    REDIRECT,
    SEC,
    SHOT,
    Bench,
    Node,
    checksum,
    negotiate,
    now,
)
from tests.unit.packets import exact, frame, on_wire, rewritten, tcp
from xmasq_link import _wire as wire

pytestmark = pytest.mark.root


TEMPLATE = frame(bytes(20), proto=253)
PEER = "192.0.2.1"


def inner(n: int) -> bytes:
    """A packet of flow n: all that differs is its source."""
    head = bytearray(TEMPLATE[14:34])
    head[12:16] = (0x0A100000 + n).to_bytes(4, "big")
    head[10:12] = b"\0\0"
    head[10:12] = checksum(head).to_bytes(2, "big")
    return TEMPLATE[:14] + head + TEMPLATE[34:]


def give(b: Node, n: int, peer: str = PEER) -> int | None:
    """Lets b offer a key for flow n of a peer; returns it."""
    made = b.offer(b.announced(inner(n), peer))
    return None if made is None else wire.Control.unpack(made[42:]).key


def give_all(b: Node, count: int, first: int = 0) -> list[int]:
    """Keys for so many flows."""
    keys = [give(b, n) for n in range(first, first + count)]
    assert None not in keys
    return [k for k in keys if k is not None]


def exhausted(b: Node, n: int) -> bool:
    """Whether flow n gets no key, and that is counted."""
    before = b.counters().get("exhausted", 0)
    return give(b, n) is None and b.counters()["exhausted"] == before + 1


def test_each_flow_gets_a_key_of_its_own_until_there_are_none(b: Node) -> None:
    keys = give_all(b, 1023)
    assert sorted(keys) == list(range(1, 1024))
    for n in range(1023, 1033):
        assert exhausted(b, n)
    slots = [slot for _, block in b.blocks() for slot in block.slots]
    assert sorted(slot.key for slot in slots if slot.key) == list(range(1, 1024))


@pytest.mark.parametrize(
    ("seg_bits", "xbits", "keys"),
    [(8, 0, 255), (7, 0, 511), (8, 1, 511), (5, 0, 2047), (6, 1, 2047), (4, 1, 8191)],
)
def test_how_many_keys_there_are(b: Node, seg_bits: int, xbits: int, keys: int) -> None:
    b.conf(seg_bits=seg_bits, xbits=xbits)
    assert give(b, 0) == 1
    index, pair = b.pair(PEER)
    if keys > 1000:  # the first thousands are no different
        pair.cursor = keys - 100
        b.put("pairs", index, pair)
    blank = 1 << (16 - seg_bits)
    expected = [key for key in range(max(pair.cursor, 1) + 1, keys + 1) if key % blank]
    assert give_all(b, len(expected), first=1) == expected
    if keys < 1000:
        assert exhausted(b, 5000)
    else:
        assert give(b, 5000) == 2  # it goes round, and 1 is taken


@pytest.mark.parametrize(
    ("seg_bits", "xbits", "key", "after"),
    [(6, 1, 1024, 1025), (6, 3, 7168, 7169), (8, 1, 256, 257), (8, 3, 1792, 1793)],
)
def test_no_key_leaves_the_identification_at_0(
    net: Bench, seg_bits: int, xbits: int, key: int, after: int
) -> None:
    """Hosts' own answers look like that; so such a key is passed over, and no offer of it is taken."""
    a, b = net.a, net.b
    for node in (a, b):
        node.conf(seg_bits=seg_bits, xbits=xbits)
    assert wire.wire_id(key, seg_bits) == 0
    give(b, 0)  # makes the pair
    index, pair = b.pair(PEER)
    pair.cursor = key - 1
    b.put("pairs", index, pair)
    made = b.offer(b.arriving(a.fallback(inner(1), b.local)))
    assert made is not None
    control = wire.Control.unpack(made[42:])
    assert (control.key, wire.wire_id(after, seg_bits)) == (after, int.from_bytes(made[18:20], "big"))
    # The same OFFER, but of that key, as another version might make it.
    other = dataclasses.replace(control, key=key).pack()
    wrong = made[:42] + other + made[42 + len(other) :]
    wrong = rewritten(a.arriving(wrong), id=0, tos=wire.wire_dscp(key, wire.MARK, seg_bits) << 2)
    assert a.ingress(wrong).action == SHOT
    assert a.counters()["ctl_params"] == 1
    assert a.ingress(a.arriving(made)).action == REDIRECT


def test_flows_of_different_peers_have_keys_of_their_own(b: Node) -> None:
    assert [give(b, n, "192.0.2.1") for n in (1, 2)] == [1, 2]
    assert [give(b, n, "192.0.2.3") for n in (1, 2)] == [1, 2]


@pytest.mark.parametrize(
    "other",
    [
        frame(TCP(), src="10.0.0.2"),
        frame(TCP(), dst="10.0.0.2"),
        frame(TCP(), smac="02:aa:00:00:00:02"),
        frame(TCP(), tos=4),
        frame(TCP(), flags=""),
    ],
    ids=["source", "destination", "source MAC", "DSCP", "DF"],
)
def test_all_that_makes_a_flow_makes_a_key(b: Node, other: bytes) -> None:
    assert b.offer(b.announced(frame(TCP()), PEER)) is not None
    made = b.offer(b.announced(other, PEER))
    assert made is not None
    assert wire.Control.unpack(made[42:]).key == 2


def test_the_same_flow_keeps_its_key(b: Node) -> None:
    for wait in (0, 1500 * MS, 1500 * MS):
        b.pass_time(wait)
        assert give(b, 1) == 1
    assert give(b, 2) == 2


# --- when a key is free again -------------------------------------------------------------------


@pytest.mark.parametrize(("wait", "free"), [(500 * MS, False), (2200 * MS, True)])
def test_an_unanswered_offer_keeps_its_key_for_two_seconds(b: Node, wait: int, free: bool) -> None:
    give_all(b, 1023)
    b.pass_time(wait)
    if free:
        assert sorted(give_all(b, 1023, first=5000)) == list(range(1, 1024))
    else:
        assert exhausted(b, 5000)


def test_an_unanswered_offer_that_is_repeated_keeps_it_for_longer(b: Node) -> None:
    assert give(b, 0) == 1
    b.pass_time(1500 * MS)
    assert give(b, 0) == 1
    b.pass_time(1500 * MS)
    assert 1 not in give_all(b, 1022, first=5000)


def free_keys(b: Node, first: int) -> set[int]:
    """All keys that b gives at this moment."""
    got: set[int] = set()
    for n in range(first, first + 1023):
        key = give(b, n)
        if key is not None:
            assert key not in got
            got.add(key)
    return got


ALL = set(range(1, 1024))
RESERVED = (LEASE_MS + GUARD_MS) * MS


@pytest.mark.parametrize(
    ("wait", "free"),
    [(3 * SEC, False), (RESERVED - MS, False), (RESERVED, False), (RESERVED + MS, True)],
)
def test_a_granted_key_rests_until_lease_and_guard_have_passed(net: Bench, wait: int, free: bool) -> None:
    a, b = net.a, net.b
    give_all(b, 7, first=100)
    steps = negotiate(a, b, inner(0))
    assert steps.key == 8
    b.pass_time(wait)
    assert free_keys(b, 5000) == (ALL if free else ALL - {8})


def test_a_renewed_key_rests_from_the_last_confirm(net: Bench) -> None:
    a, b = net.a, net.b
    assert negotiate(a, b, inner(0)).key == 1
    net.pass_time(6 * SEC)
    assert negotiate(a, b, inner(0)).key == 1
    b.pass_time(RESERVED - 4 * SEC)
    assert free_keys(b, 5000) == ALL - {1}
    b.pass_time(6 * SEC)
    assert free_keys(b, 9000) == ALL


def test_an_offer_does_not_shorten_the_rest(net: Bench) -> None:
    a, b = net.a, net.b
    negotiate(a, b, inner(0))
    b.pass_time(2 * SEC)
    assert give(b, 0) == 1
    assert b.slot(1)[3].until - now() > RESERVED - 3 * SEC


@pytest.mark.parametrize("how", ["generation", "flush", "forgotten"])
def test_a_key_that_is_dropped_before_its_time_rests_all_the_same(net: Bench, how: str) -> None:
    a, b = net.a, net.b
    negotiate(a, b, inner(0))
    packet = b.arriving(a.encode(inner(0)).packet)
    if how == "generation":
        b.set_link(rx_gen=2)
    elif how == "flush":
        at, place, _, slot = b.slot(1)
        request = bytes(14) + struct.pack("<IIQ", at, place, slot.seal) + bytes(34)
        assert b.run(loader.FLUSH, request).action == 1
    else:
        for key, _ in b.items("grants"):  # as an LRU map may
            b.dp.maps["grants"].delete(key.raw())
    b.pass_time(3 * SEC)
    expected = ALL - {1}
    if how != "flush":
        assert give(b, 0) == 2  # the flow itself gets another one
        expected = ALL - {1, 2}
    assert free_keys(b, 5000) == expected
    if how != "forgotten":
        assert b.ingress(packet).action == REDIRECT
        assert b.counters(HOST) == {"bounce_tx": 1}


def test_a_key_that_was_flushed_may_serve_its_own_flow_again(net: Bench) -> None:
    a, b = net.a, net.b
    negotiate(a, b, inner(0))
    at, place, _, slot = b.slot(1)
    b.run(loader.FLUSH, bytes(14) + struct.pack("<IIQ", at, place, slot.seal) + bytes(34))
    b.pass_time(SEC)
    assert give(b, 0) == 1


def test_the_next_key_is_the_one_that_has_rested_longest(b: Node) -> None:
    give_all(b, 10)
    b.pass_time(3 * SEC)
    assert give_all(b, 3, first=100) == [11, 12, 13]


def test_after_all_keys_it_begins_anew(b: Node) -> None:
    give_all(b, 1023)
    b.pass_time(3 * SEC)
    assert give_all(b, 3, first=2000) == [1, 2, 3]


def test_a_full_neighbourhood_is_passed_a_few_keys_at_a_time(net: Bench) -> None:
    """Finding a free key takes several packets when most are taken, but it is found."""
    a, b = net.a, net.b
    for n in range(40):
        negotiate(a, b, inner(n))
    b.pass_time(3 * SEC)
    index, pair = b.pair(PEER)
    pair.cursor = 1023
    b.put("pairs", index, pair)
    tries = 0
    while (key := give(b, 5000)) is None:
        tries += 1
        assert tries < 40
    assert key == 41


# --- blocks and pairs ---------------------------------------------------------------------------


def peer(n: int) -> str:
    """The address of peer n."""
    return str(ipaddress.IPv4Address(0xC6336400 + n))


def test_blocks_are_taken_back_from_idle_pairs(b: Node) -> None:
    """There are 1024 blocks of 64 keys for all peers together."""
    blocks = b.dp.maps["blocks"].max_entries
    assert blocks == 1024
    for n in range(blocks):
        assert give(b, 0, peer(n)) == 1
    assert give(b, 0, peer(5000)) is None
    assert b.counters()["exhausted"] == 1
    b.pass_time(2200 * MS)
    for n in range(2000, 2000 + blocks):
        assert give(b, 0, peer(n)) == 1


def test_a_block_with_one_live_key_is_not_taken_away(net: Bench) -> None:
    a, b = net.a, net.b
    negotiate(a, b, inner(0))
    packet = b.arriving(a.encode(inner(0)).packet)
    b.pass_time(3 * SEC)
    given = 0
    for n in range(1100):
        given += give(b, 0, peer(n)) is not None
    assert given == 1023
    assert b.ingress(packet).packet == exact(inner(0))


def test_a_block_that_was_taken_away_bounces(net: Bench) -> None:
    a, b = net.a, net.b
    negotiate(a, b, inner(0))
    packet = b.arriving(a.encode(inner(0)).packet)
    b.pass_time(RESERVED + SEC)
    for n in range(1024):
        assert give(b, 0, peer(n)) == 1
    assert b.ingress(packet).action == REDIRECT
    assert b.counters(HOST) == {"bounce_tx": 1}


def test_a_pair_that_lost_a_block_takes_another(net: Bench) -> None:
    a, b = net.a, net.b
    negotiate(a, b, inner(0))
    b.pass_time(RESERVED + SEC)
    for n in range(1024):
        assert give(b, 0, peer(n)) == 1
    b.pass_time(3 * SEC)
    assert give(b, 1) == 2
    b.pass_time(3 * SEC)
    keys = give_all(b, 100, first=10)
    assert keys == list(range(3, 103))


def test_pairs_are_taken_from_the_idle_longest_ago(b: Node) -> None:
    """Nothing of a pair's past is left when another peer gets its place."""
    pairs = b.dp.maps["pairs"].max_entries
    assert give(b, 0) == 1
    index, pair = b.pair(PEER)
    pair.off_for, pair.strays = 60 * SEC, 1
    b.put("pairs", index, pair)
    b.pass_time(3 * SEC)
    pool = b.get("pool", 0)
    pool.pair_hand = index - 1 + pairs - 1  # once round
    b.put("pool", 0, pool)
    assert give(b, 0, peer(7)) == 1
    again, taken = b.pair(peer(7))
    assert again == index
    assert (taken.off_for, taken.off_until, taken.strays) == (0, 0, 0)
    assert (taken.gen, taken.own_gen, taken.cursor) == (pair.gen + 1, pair.own_gen + 1, 1)
    assert b.ingress(b.arriving(bytes(14) + on_wire(inner(0), PEER, b.local, 1))).action == REDIRECT
    assert b.counters(HOST) == {"bounce_tx": 1}


def test_a_pair_in_use_is_passed_over(net: Bench) -> None:
    a, b = net.a, net.b
    negotiate(a, b, inner(0))
    index, pair = b.pair(PEER)
    pool = b.get("pool", 0)
    pool.pair_hand = index - 1
    b.put("pool", 0, pool)
    assert give(b, 0, peer(7)) == 1
    assert b.pair(peer(7))[0] == index + 1
    assert b.pair(PEER)[1].gen == pair.gen


# --- further key bits in DSCP -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seg_bits", "xbits", "key"),
    [
        (6, 1, 1023),
        (6, 1, 1025),
        (6, 1, 2047),
        (6, 2, 4095),
        (6, 3, 8191),
        (8, 3, 2047),
        (8, 3, 257),
        (4, 1, 8191),
        (4, 0, 4095),
    ],
)
def test_keys_in_both_fields(net: Bench, seg_bits: int, xbits: int, key: int) -> None:
    a, b = net.a, net.b
    for node in (a, b):
        node.conf(seg_bits=seg_bits, xbits=xbits)
    packet = rewritten(tcp(b"hello"), tos=46 << 2 | 1)
    give(b, 0)  # makes the pair
    index, pair = b.pair(PEER)
    pair.cursor = key - 1
    b.put("pairs", index, pair)
    steps = negotiate(a, b, packet)
    assert steps.key == key
    for step in (steps.offer, steps.accept, steps.confirm):
        assert step[15] >> 2 == wire.wire_dscp(key, wire.MARK, seg_bits)
        assert int.from_bytes(step[18:20], "big") == wire.wire_id(key, seg_bits)
        control = wire.Control.unpack(step[42:])
        assert (control.flags, control.seg_bits) == (xbits, seg_bits)
    out = a.encode(packet)
    assert out.packet[14:] == on_wire(packet, a.local, b.local, key, seg_bits=seg_bits)
    last = rewritten(b.arriving(out.packet), id=wire.wire_id(key, seg_bits) + (1 << seg_bits) - 1)
    assert b.ingress(last).packet == exact(packet)
    b.reset()
    b.conf(seg_bits=seg_bits, xbits=xbits)
    bounced = b.ingress(b.arriving(out.packet))
    assert bounced.packet[14:] == on_wire(packet, b.local, a.local, key, base=wire.BOUNCE, seg_bits=seg_bits)
    assert a.ingress(a.arriving(bounced.packet)).packet == exact(packet)


@pytest.mark.parametrize(("seg_bits", "xbits"), [(5, 0), (6, 1)])
def test_ends_that_do_not_agree_do_not_negotiate(net: Bench, seg_bits: int, xbits: int) -> None:
    a, b = net.a, net.b
    a.conf(seg_bits=seg_bits, xbits=xbits)
    made = b.offer(b.arriving(a.fallback(tcp(), b.local)))
    assert made is not None
    assert a.ingress(a.arriving(made)).action == SHOT
    assert a.counters()["ctl_params"] == 1


@pytest.mark.parametrize(
    ("seg_bits", "segs", "action"), [(8, 255, REDIRECT), (8, 256, -1), (4, 15, REDIRECT), (4, 16, -1)]
)
def test_fewer_key_bits_leave_room_for_more_segments(
    net: Bench, seg_bits: int, segs: int, action: int
) -> None:
    for node in (net.a, net.b):
        node.conf(seg_bits=seg_bits)
    packet = tcp(bytes(1000))
    negotiate(net.a, net.b, packet)
    assert net.a.encode(packet, gso_size=3, gso_segs=segs).action == action
