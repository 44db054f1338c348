# SPDX-License-Identifier: Apache-2.0
"""Links: how long it takes to add one, how long to list a thousand."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import xmasq_link
from tests.lab import Host, Lab, xmasq

from .scale_flows import Listing, listing

LINKS = 1000


@dataclass(frozen=True)
class Links:
    """Seconds. `add`: the command, with the compiled datapath in its cache; `add_last`: the last."""

    add: float
    add_second: float
    links: int
    make_all: float
    add_last: float
    shown: Listing


def _add(host: Host, number: int) -> float:
    begin = time.monotonic()
    words = f"link add x{number} type xmasq id {number} local {host.address} dev eth0"
    xmasq(host, *words.split())
    return time.monotonic() - begin


def measure(rounds: int, say: Callable[[str], None]) -> Links:
    """Adds links by the command; a thousand by the API, in one process. Raises LabError."""
    first, second = [], []
    with Lab() as lab:
        host = lab.host()
        _add(host, 1)  # compiles, if nobody has before
        xmasq(host, "link", "del", "x1")
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}: link add")
            first.append(_add(host, 1))
            second.append(_add(host, 2))
            xmasq(host, "link", "del", "x2")
            xmasq(host, "link", "del", "x1")
        say(f"{LINKS} links: adding")

        def make() -> None:
            for number in range(1, LINKS):
                xmasq_link.create_link(f"x{number}", vni=number, local=host.address, dev="eth0")

        begin = time.monotonic()
        host.inside(make)
        took = time.monotonic() - begin
        last = _add(host, LINKS)
        say(f"{LINKS} links: listing")
        shown = listing([sys.executable, "-m", "xmasq_link", "-n", host.name, "link", "show"])
    return Links(statistics.median(first), statistics.median(second), LINKS, took, last, shown)
