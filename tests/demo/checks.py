# SPDX-License-Identifier: Apache-2.0
"""What must be true for the demo to succeed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scapy.layers.inet import IP, TCP

from tests.lab.overlay import Kind

from .measure import BIG_PING, Fit
from .story import Story

LEAST_PERCENT = 99.0


@dataclass(frozen=True)
class Check:
    """``failure`` says what is wrong instead of ``claim``, unless it is true."""

    claim: str
    passed: bool
    failure: str


def all_checks(story: Story, fits: Mapping[Kind, Fit]) -> list[Check]:
    """In the order of the report."""
    counted, captured, fit = story.counted, story.captured, fits["xmasq"]
    least = min(counted.percent, captured.percent)
    return [
        Check(
            "on the wire, nothing but the IPv4 header and the TCP checksum differs",
            _alike(story.sent, story.wire, 20),
            "an encoded packet differs from what A sent behind the IPv4 header",
        ),
        Check(
            "both checksums are right there",
            _checksums_right(story.wire),
            "an encoded packet has a wrong checksum",
        ),
        Check(
            "B received what A sent, but for TTL and identification",
            _alike(story.sent, story.received, 0),
            "B received another packet than A sent",
        ),
        Check(
            f"at least {LEAST_PERCENT:g} % of the packets were encoded",
            least >= LEAST_PERCENT,
            f"only {least:.2f} % of the packets were encoded; {LEAST_PERCENT:g} % were expected",
        ),
        Check(
            "the hosts' counters and the capture agree",
            (counted.encoded, counted.total) == (captured.encoded, captured.total),
            f"the hosts count {counted.encoded} of {counted.total} packets as encoded, "
            f"the capture {captured.encoded} of {captured.total}",
        ),
        Check(
            f"{fit.whole} of {fit.pings} pings of 1500 bytes were on the wire encoded and in one piece",
            fit.big and fit.whole > 0 and fit.added == 0,
            f"ping -M do -s {BIG_PING} does not get through xmasq in one piece",
        ),
    ]


def _checksums_right(packet: Any) -> bool:
    again = IP(bytes(packet))
    del again.chksum, again[TCP].chksum
    return bytes(again) == bytes(packet)


def _alike(one: Any, other: Any, start: int) -> bool:
    """Whether two packets are the same from a byte on, but for TTL, identification and checksums.

    The TCP checksum counts where the IPv4 addresses do.
    """

    def comparable(packet: Any) -> bytes:
        copy = IP(bytes(packet))
        copy.id = copy.ttl = copy.chksum = 0
        if start:
            copy[TCP].chksum = 0
        return bytes(copy)[start:]

    return comparable(one) == comparable(other)
