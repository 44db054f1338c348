# SPDX-License-Identifier: Apache-2.0
"""The faults of tests/trust, made by the kernel's own network emulator."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from tests.lab import Lab, patience
from tests.trust.faults import Fault
from tests.trust.world import World, run

from .conftest import need

pytestmark = pytest.mark.e2e

#: What passes under a fault at least: packets through the xmasq links, and encoded ones among them.
PACKETS, ENCODED = 1500, 100


@dataclass(frozen=True)
class Case:
    """Words of ``tc qdisc … netem``, and how chance takes packets (tests.trust.world.Outcome.problems)."""

    options: str
    by_chance: bool = False
    clustering: float = 1


#: A burst of loss begins with one packet in 50 and ends with one in 3; within it four of five are lost. So
#: the state lasts from packet to packet with 1 - 0.02 - 0.3 = 0.68, and the variance of the number of lost
#: ones is 1 + 2 · 0.8² · 0.0625 · 0.9375 · 0.68 / (1 - 0.68) / (0.05 · 0.95) times that of single losses.
BURSTS = Case("loss gemodel 2% 30% 80% 0%", by_chance=True, clustering=4.4)

CASES = {
    "loss": Case("loss 1%", by_chance=True),
    "heavy loss": Case("loss 20%", by_chance=True),
    "bursts of loss": BURSTS,
    "duplication": Case("duplicate 20%"),
    "reordering": Case("delay 50ms reorder 30% 50%"),
    "jitter": Case("delay 100ms 80ms"),
    "all of it": Case("delay 40ms 30ms loss 3% duplicate 3%", by_chance=True),
}


def pin(world: World) -> None:
    """Hosts ask for each other's MAC addresses no more: a lost answer would lose many datagrams at once."""
    for host in world.hosts:
        for one in host.ip_json("neigh show dev eth0"):
            if "lladdr" in one:
                host.ip(f"neigh replace {one['dst']} lladdr {one['lladdr']} dev eth0 nud permanent")


def emulate(world: World, verb: str, options: str = "") -> None:
    """Every port of the fabric treats so what goes to its host."""
    fabric = world.lab.fabric
    for port in fabric.ports:
        need(fabric, "netem", f"tc qdisc {verb} dev {port.name} root netem limit 100000 {options}")


def netem(options: str) -> Fault:
    """The emulator's options from now on, and none after it. It is there before and stays.

    For to add or remove it stops a device for a moment, and what is in its queue then is lost.
    """

    def work(world: World) -> None:
        emulate(world, "change", options)
        start = world.counters()

        def passed() -> bool:
            now = world.counters()
            encoded = now["encoded"] - start["encoded"]
            return encoded >= ENCODED and encoded + now["fallback"] - start["fallback"] >= PACKETS

        assert world.wait(passed, patience(60)) is not None, "too little has passed within a minute"
        emulate(world, "change")
        time.sleep(0.5)  # for what it has delayed

    return work


@pytest.mark.parametrize("name", CASES)
def test_nothing_astray_and_no_more_lost_than_over_vxlan(lab: Lab, name: str) -> None:
    case = CASES[name]
    world = World(lab)
    pin(world)
    emulate(world, "add")
    # Close enough together to overtake each other.
    flows = world.flows(burst=10, pace=0.003, gaps=(0.2, 0.4, 0.6))
    outcome = run(world, name, netem(case.options), flows=flows, seconds=patience(120))
    assert not outcome.problems(by_chance=case.by_chance, clustering=case.clustering)
    if "duplicate" in case.options:
        assert outcome.x.duplicated > 0
    if "delay" in case.options:
        assert outcome.x.reordered > 0
    if "loss" in case.options:
        assert outcome.x.lost > 0 or outcome.v.lost > 0
