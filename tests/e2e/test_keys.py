# SPDX-License-Identifier: Apache-2.0
"""Keys end and are given anew while traffic runs, and no packet is lost by it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import xmasq_link
from tests.lab import Host, patience, tcp_transfer

from .observe import Stream, flow, flows, meet, negotiate, seen, stats, until, watch

pytestmark = pytest.mark.e2e


def wipe(host: Host) -> int:
    """Ends all keys that a host has given, and all flows that it flow."""
    return host.inside(xmasq_link.flush)


def test_receiver_forgets_all_keys_under_datagrams(lab, make):
    overlay = make(lab.hosts(2))
    sender, receiver = overlay.hosts
    a, b = overlay.containers
    meet(overlay)
    negotiate(a, b)
    wiped = []
    with watch(sender, "udp") as capture, Stream(a, b, rate=2000) as stream:
        for _ in range(3):
            before = stats(sender)["bounced"]
            stream.wait_for(len(stream.numbers) + 1)
            for _ in range(10):
                # None, if packets that were still under way have been bounced for the one before.
                wiped.append(wipe(receiver))
                sent = stream.sent

                def passed(before: int = before, sent: int = sent) -> bool:
                    return stats(sender)["bounced"] > before or stream.numbers[-1] > sent + 100

                until(passed, "a packet was bounced")
                until(lambda: flow(a, b), "the flow is encoded again")
                if stats(sender)["bounced"] > before:
                    break
                # A packet that asked for renewal just then has brought a new key without any bounce.
            else:
                pytest.fail("ten times all keys were forgotten, and not one packet was bounced")
        stream.wait_for(6000)
    assert wiped[0] > 0
    assert (stream.lost, stream.duplicates) == (0, 0)
    packets = [packet for packet in seen(capture) if (packet.inner or packet).length == 228]
    bounced = [packet for packet in packets if packet.kind == "bounced"]
    assert len(bounced) >= 3
    assert stats(receiver)["bounce_tx"] == stats(sender)["bounce_rx"] == len(bounced)
    # A bounced packet goes out again as VXLAN, and soon after it the flow has a key again.
    for bounce in bounced:
        after = iter(packet for packet in packets if packet.time > bounce.time)
        assert any(packet.kind == "fallback" for packet in after)
        again = next(packet for packet in after if packet.kind == "encoded")
        assert again.time - bounce.time < patience(1)
    encoded = sum(packet.kind == "encoded" for packet in packets)
    assert encoded - len(bounced) > 0.98 * stream.sent


def test_both_ends_forget_all_keys_under_tcp(lab, make):
    """Again and again, as soon as both encode again."""
    overlay = make(lab.hosts(2))
    a, b = overlay.containers
    negotiate(a, b)
    rounds: list[int] = []
    end = threading.Event()

    def counted(name: str) -> list[int]:
        return [stats(host)[name] for host in overlay.hosts]

    def work() -> None:
        while not end.is_set():
            rounds.append(sum(wipe(host) for host in overlay.hosts))
            before = counted("encoded")

            def again(before: list[int] = before) -> bool:
                pairs = zip(counted("encoded"), before, strict=True)
                return end.is_set() or all(now > then + 10 for now, then in pairs)

            until(again, "both ends encode again", timeout=20)

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(work)
        try:
            deadline = time.monotonic() + patience(60)
            while not job.done() and (len(rounds) < 6 or not sum(counted("bounced"))):
                for one, other in ((a, b), (b, a)):
                    tcp_transfer(one, other, 5_000_000, timeout=60)
                assert time.monotonic() < deadline
        finally:
            end.set()
        job.result()
    assert sum(rounds) > 4
    # An OFFER may be dropped by a full queue, but nothing speaks against the peer or the path.
    assert counted("stray") == counted("path_off") == [0, 0]


def test_a_long_flow_stays_encoded(lab, make):
    """Leases of a second are renewed by single packets that take the fallback."""
    overlay = make(lab.hosts(2), options=["lease", "1s"])
    sender, receiver = overlay.hosts
    a, b = overlay.containers
    negotiate(a, b)
    before = stats(sender)
    first = flow(a, b)
    begin = time.monotonic()
    with Stream(a, b, rate=1000) as stream:
        stream.wait_for(2600)
        last = flow(a, b)
    assert (stream.lost, stream.duplicates) == (0, 0)
    after = stats(sender)
    grown = {name: after[name] - before[name] for name in after}
    # Each half lease has its renewal; a busy machine may let a lease end, or be late.
    assert 2 <= grown["fb_renewal"] <= 2 * (time.monotonic() - begin) + 1
    assert grown["encoded"] > 0.98 * stream.sent
    assert grown["bounced"] == grown["error"] == 0
    assert stats(receiver)["decoded"] >= grown["encoded"]
    if not grown["fb_expired"]:
        assert first is not None
        assert last is not None
        assert first.key == last.key


def test_idle_beyond_the_lease(lab, make):
    overlay = make(lab.hosts(2), options=["lease", "1s"])
    sender, receiver = overlay.hosts
    a, b = overlay.containers
    negotiate(a, b)
    for _ in range(2):
        until(lambda: not flows(sender) and not flows(receiver), "the leases have ended")
        before = stats(sender)
        with Stream(a, b, rate=200) as stream:
            stream.wait_for(100)
            assert flow(a, b)
        assert (stream.lost, stream.duplicates) == (0, 0)
        after = stats(sender)
        assert after["fallback"] - before["fallback"] >= 1
        assert after["encoded"] - before["encoded"] >= 0.9 * stream.sent
        assert after["bounced"] == before["bounced"]
    assert tcp_transfer(b, a, 1_000_000).size == 1_000_000
