# SPDX-License-Identifier: Apache-2.0
"""The sender of a bounced packet: it goes out again through the fallback, and nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import TCP

from tests.unit.harness import (
    GUARD_MS,
    HOST,
    LEASE_MS,
    MS,
    REDIRECT,
    SEC,
    SHOT,
    UNSPEC,
    Bench,
    Node,
    checksum,
    negotiate,
    now,
)
from tests.unit.packets import ENCODABLE, exact, frame, on_wire, rewritten, tcp
from xmasq_link import _wire as wire
from xmasq_link import _withdraw

pytestmark = pytest.mark.root


def bounced(a: Node, b: Node, inner: bytes, key: int = 1, **ip: Any) -> bytes:
    """A packet of a with this key, as it comes back to it. ip: what else its header has."""
    packet = a.arriving(bytes(14) + on_wire(inner, b.local, a.local, key, base=wire.BOUNCE))
    return rewritten(packet, **ip)


@pytest.mark.parametrize("kind", ENCODABLE)
def test_a_bounced_packet_is_restored(a: Node, b: Node, kind: str) -> None:
    inner = ENCODABLE[kind]
    negotiate(a, b, inner)
    sent = a.encode(inner)
    b.reset()  # it restarts
    back = b.ingress(b.arriving(sent.packet))
    out = a.ingress(a.arriving(back.packet), mark=0xCAFE)
    assert (out.action, out.mark) == (REDIRECT, 0xCAFE)
    assert out.packet == exact(inner)
    assert (a.counters()["restored"], a.counters(HOST)["bounce_rx"]) == (1, 1)


def test_the_next_packet_takes_the_fallback_and_negotiates_anew(a: Node, b: Node) -> None:
    inner = tcp()
    negotiate(a, b, inner)
    b.reset()
    out = a.ingress(bounced(a, b, inner))
    again = a.encode(out.packet)  # it leaves the link once more
    assert (again.action, again.packet) == (UNSPEC, exact(inner))
    assert a.counters()["fb_expired"] == 1
    negotiate(a, b, inner)
    assert a.encode(inner).action == REDIRECT


def test_an_entry_with_a_newer_key_lives_on(net: Bench, a: Node, b: Node) -> None:
    """A late bounce of the flow's former key does not end the flow's present one."""
    inner = tcp()
    negotiate(a, b, inner)
    b.reset()
    net.pass_time(1100 * MS)
    other = frame(TCP(), src="10.0.0.77")
    b.offer(b.announced(other, a.local))  # key 1, so that the flow gets key 2
    assert negotiate(a, b, inner).key == 2
    out = a.ingress(bounced(a, b, inner, key=1))
    assert out.packet == exact(inner)
    assert a.encode(inner).packet[14:] == on_wire(inner, a.local, b.local, 2)


def test_df_is_cleared_again(a: Node, b: Node) -> None:
    inner = rewritten(tcp(b"x"), flags="")
    negotiate(a, b, inner)
    out = a.ingress(bounced(a, b, inner))
    assert out.packet == rewritten(inner, id=int.from_bytes(out.packet[18:20], "big"))


def test_marks_hops_and_padding(a: Node, b: Node) -> None:
    inner = rewritten(tcp(), tos=46 << 2 | 1)
    negotiate(a, b, inner)
    out = a.ingress(bounced(a, b, inner, tos=wire.BOUNCE << 2 | 3, ttl=60) + bytes(5))
    assert out.packet == exact(inner, tos=46 << 2 | 3, ttl=60)


def test_a_key_can_come_back_until_lease_and_guard_have_passed(a: Node, b: Node) -> None:
    inner = tcp()
    negotiate(a, b, inner)
    ((_, noted),) = a.items("txkeys")
    left = noted.until - now()
    assert abs(left - (LEASE_MS + GUARD_MS) * MS) < 500 * MS
    a.pass_time(left - 300 * MS)
    assert a.ingress(bounced(a, b, inner)).packet == exact(inner)
    a.pass_time(320 * MS)
    assert a.ingress(bounced(a, b, inner)).action == SHOT
    assert a.counters(HOST)["stray"] == 1


@pytest.mark.parametrize("change", [{"flags": ""}, {"flags": "DF+MF"}, {"dst": "192.0.2.9"}, {"len": 19}])
def test_what_was_never_encoded_passes(a: Node, b: Node, change: dict[str, Any]) -> None:
    negotiate(a, b, tcp())
    packet = bounced(a, b, tcp(), **change)
    out = a.ingress(packet)
    assert (out.action, out.packet) == (UNSPEC, packet)
    assert a.counters(HOST) == {}


def test_the_flow_of_a_torn_note_is_not_restored(a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    ((key, noted),) = a.items("txkeys")
    noted.flow.dip[3] ^= 1
    a.put("txkeys", key, noted)
    assert a.ingress(bounced(a, b, tcp())).action == SHOT
    assert a.counters(HOST) == {"bounce_rx": 1, "stray": 1}


# --- a key that is taken back ------------------------------------------------------------------


def withdrawn(a: Node, b: Node, key: int = 1) -> bytes:
    """A bounced packet without payload, as it arrives at a; Ethernet pads it."""
    empty = frame(proto=59, ttl=64)
    return bounced(a, b, empty, key=key) + bytes(26)


def test_an_empty_bounced_packet_ends_the_flow(a: Node, b: Node) -> None:
    inner = tcp()
    negotiate(a, b, inner)
    assert a.ingress(withdrawn(a, b)).action == SHOT
    assert (a.counters(HOST), a.counters().get("restored")) == ({"bounce_rx": 1}, None)
    assert a.encode(inner).action == UNSPEC
    assert a.counters()["fb_expired"] == 1


def test_it_ends_no_other_flow(a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    negotiate(a, b, frame(TCP(), src="10.0.0.77"))
    a.ingress(withdrawn(a, b, key=2))
    assert a.encode(tcp()).action == REDIRECT


def test_a_key_that_is_forgotten_here_already_is_no_stray(a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    for _ in range(3):
        assert a.ingress(withdrawn(a, b, key=9)).action == SHOT
    a.pass_time((LEASE_MS + GUARD_MS) * MS)
    for _ in range(3):
        assert a.ingress(withdrawn(a, b)).action == SHOT
    assert a.counters(HOST) == {"bounce_rx": 6}


def test_what_python_sends_is_such_a_packet(a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    packet = _withdraw._packet(b.get("conf", 0), b.slot(1)[3])
    head = packet[:10] + checksum(packet).to_bytes(2, "big") + packet[12:]  # as the kernel does
    assert head == withdrawn(a, b)[14:34]


# --- strays -------------------------------------------------------------------------------------


def test_a_stray_of_an_unknown_peer_passes(a: Node, b: Node) -> None:
    packet = bounced(a, b, tcp(), key=9)
    out = a.ingress(packet)
    assert (out.action, out.packet) == (UNSPEC, packet)
    assert a.counters(HOST) == {"bounce_rx": 1, "stray": 1}


def test_one_stray_is_not_yet_a_verdict(a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    assert a.ingress(bounced(a, b, tcp(), key=9)).action == SHOT
    assert a.counters(HOST) == {"bounce_rx": 1, "stray": 1}
    assert a.encode(tcp()).action == REDIRECT


def verdict(a: Node, b: Node) -> None:
    """Two strays."""
    for _ in range(2):
        a.ingress(bounced(a, b, tcp(), key=9))


def test_two_strays_put_the_peer_into_the_fallback(net: Bench, a: Node, b: Node) -> None:
    inner = tcp()
    negotiate(a, b, inner)
    verdict(a, b)
    assert a.counters(HOST) == {"bounce_rx": 2, "stray": 2, "path_off": 1}
    _, pair = a.pair(b.local)
    assert abs(pair.off_until - now() - 60 * SEC) < SEC
    out = a.encode(inner)
    assert (out.action, out.packet) == (UNSPEC, inner)
    assert a.counters()["fb_expired"] == 1


def test_while_a_peer_is_off_its_offers_are_not_taken(net: Bench, a: Node, b: Node) -> None:
    inner = tcp()
    negotiate(a, b, inner)
    verdict(a, b)
    for wait, action in ((SEC, SHOT), (57 * SEC, SHOT), (3 * SEC, REDIRECT)):
        net.pass_time(wait)
        offer = b.offer(b.arriving(a.fallback(inner, b.local)))
        assert offer is not None
        assert a.ingress(a.arriving(offer)).action == action


def test_a_confirm_that_comes_after_the_verdict_is_not_taken(a: Node, b: Node) -> None:
    inner = tcp()
    offer = b.offer(b.arriving(a.fallback(inner, b.local)))
    assert offer is not None
    accept = a.ingress(a.arriving(offer)).packet
    confirm = b.ingress(b.arriving(accept)).packet
    verdict(a, b)
    assert a.ingress(a.arriving(confirm)).action == SHOT
    assert a.items("flows") == []


def test_each_verdict_lasts_twice_as_long_up_to_an_hour(a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    lasted = []
    for _ in range(8):
        verdict(a, b)
        index, pair = a.pair(b.local)
        lasted.append(round((pair.off_until - now()) / SEC))
        a.change("pairs", index, off_until=1)
    assert lasted == [60, 120, 240, 480, 960, 1920, 3600, 3600]


@pytest.mark.parametrize(("apart", "off"), [(9 * SEC, True), (11 * SEC, False)])
def test_strays_count_within_ten_seconds(a: Node, b: Node, apart: int, off: bool) -> None:
    negotiate(a, b, tcp())
    a.ingress(bounced(a, b, tcp(), key=9))
    a.pass_time(apart)
    a.ingress(bounced(a, b, tcp(), key=9))
    assert ("path_off" in a.counters(HOST)) == off


def test_strays_of_one_peer_do_not_touch_another(a: Node, b: Node) -> None:
    negotiate(a, b, tcp())
    packet = a.arriving(bytes(14) + on_wire(tcp(), "192.0.2.77", a.local, 9, base=wire.BOUNCE))
    for _ in range(5):
        a.ingress(packet)
    assert a.encode(tcp()).action == REDIRECT
