# SPDX-License-Identifier: Apache-2.0
"""The faults of tests/trust, made by the kernel's own network emulator."""

from __future__ import annotations

import time

import pytest

from tests.lab import Lab
from tests.trust.faults import Fault
from tests.trust.world import World, run

from .conftest import need

pytestmark = pytest.mark.e2e


def netem(options: str, seconds: float) -> Fault:
    """All ports of the fabric treat what goes to their host with netem."""

    def work(world: World) -> None:
        fabric = world.lab.fabric
        for port in fabric.ports:
            fabric.run(f"tc qdisc add dev {port.name} root netem limit 100000 {options}")
        time.sleep(seconds)
        for port in fabric.ports:
            fabric.run(f"tc qdisc del dev {port.name} root")
        time.sleep(0.2)

    return work


@pytest.mark.parametrize(
    ("options", "by_chance"),
    [
        ("loss 1%", True),
        ("loss 20%", True),
        ("loss gemodel 2% 30% 80% 0%", True),
        ("duplicate 20%", False),
        ("delay 5ms reorder 30% 50%", False),
        ("delay 10ms 8ms", False),
        ("delay 2ms 2ms loss 3% duplicate 3%", True),
    ],
    ids=["loss", "heavy loss", "bursts of loss", "duplication", "reordering", "jitter", "all of it"],
)
def test_nothing_astray_and_no_more_lost_than_over_vxlan(lab: Lab, options: str, by_chance: bool) -> None:
    need(lab.fabric, "netem", "tc qdisc add dev lo root netem")
    world = World(lab)
    outcome = run(world, options, netem(options, 3), rate=400)
    assert outcome.x.sent > 200
    assert not outcome.problems(by_chance=by_chance)
    assert outcome.counters["encoded"] > 0
    if "duplicate" in options:
        assert outcome.x.duplicated > 0
