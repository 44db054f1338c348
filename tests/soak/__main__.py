# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.soak [--minutes 10] [--seed N]`: tagged traffic under all faults, and one table.

The faults come in random order, on networks of random size and settings, most of which live through
many faults. The seed that decides all that is printed. The exit code is 1 if anything was misdelivered,
or lost beyond what vxlan lost at the same time.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.lab import Lab
from tests.lab.backlog import room
from tests.trust import faults
from tests.trust.faults import Fault, Rewriting
from tests.trust.middlebox import CONTROL, Kind, Rule
from tests.trust.tagged import Flow, cross, mesh
from tests.trust.world import VNI, Outcome, World, run, share, twin

#: Counters that tell how xmasq dealt with a fault.
INTEREST = (
    "confirm_rx",
    "restored",
    "stray",
    "path_off",
    "held",
    "exhausted",
    "ctl_conflict",
    "ctl_nonce",
    "ctl_unsolicited",
    "ctl_path",
    "not_owner",
    "moved",
    "error",
)


#: A run must send as many datagrams over xmasq to say anything.
_SENT_MIN = 300


@dataclass(frozen=True)
class Trial:
    """One run of traffic under a fault, in a world that is there already.

    ``by_chance``: the fault takes packets by chance. ``spoils``: the fault gives a sender good reason to
    think that the path eats its packets. ``options`` go to :func:`tests.trust.world.run`.
    """

    name: str
    fault: Fault
    by_chance: bool = False
    spoils: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, world: World) -> tuple[Outcome, list[str]]:
        """Runs it; returns what was seen, and what of that must not be."""
        outcome = run(world, self.name, self.fault, **self.options)
        if isinstance(self.fault, Rewriting):
            return outcome, self.fault.problems(outcome)
        found = outcome.problems(by_chance=self.by_chance)
        if outcome.x.sent < _SENT_MIN:
            found.append(f"only {outcome.x.sent} sent, which proves nothing")
        if outcome.counters["path_off"] and not self.spoils:
            found.append("a verdict against a path that is good")
        return outcome, found


#: A network: builds a world, and yields the trials to be made there one after the other.
Network = Callable[[Lab, random.Random], Iterator[tuple[World, Trial]]]


def general(lab: Lab, rng: random.Random) -> Iterator[tuple[World, Trial]]:
    """Some hosts, bridged, with a middlebox: whatever can befall them, in random order."""
    lease = rng.choice((1, 2, 5))
    world = World(lab, hosts=rng.choice((2, 3)), mode="bridged", lease=lease)
    world.box.rules()
    late = world.lease + world.guard
    disorder = [Rule("duplicate", 5, high=0.1), Rule("delay", 10, high=0.05)]
    disorder.append(Rule("duplicate", 20, only=CONTROL, high=2 * late))

    def mixture(world: World) -> list[faults.Window]:
        world.box.rules(*disorder)
        world.lab.fabric.loss(rng.uniform(0.5, 5))
        windows = faults.in_turn(*_some_trouble(world, rng))(world)
        world.lab.fabric.clear()
        world.box.rules()
        return windows or []

    trials = [
        *_trouble(world, rng),
        Trial("duplication", faults.boxed(5, Rule("duplicate", 30, high=0.1))),
        Trial("reordering", faults.boxed(5, Rule("delay", 30, high=0.05))),
        Trial("old control packets", faults.boxed(6, Rule("duplicate", only=CONTROL, high=2 * late))),
        Trial("late CONFIRM", faults.boxed(7, Rule("delay", only=("confirm",), high=1.3 * late))),
        Trial("all at once", mixture, by_chance=True),
        Trial("all at once", mixture, by_chance=True),
    ]
    rng.shuffle(trials)
    for trial in trials:
        yield world, trial


def routed(lab: Lab, rng: random.Random) -> Iterator[tuple[World, Trial]]:
    """Two hosts, routed, with the offloads on: what needs no middlebox, in random order."""
    world = World(lab, lease=rng.choice((1, 2, 10)), containers=rng.choice((1, 3)), spare=rng.random() < 0.5)
    trials = [trial for trial in _trouble(world, rng) if "moves" not in trial.name]
    rng.shuffle(trials)
    for trial in trials:
        yield world, trial


def _trouble(world: World, rng: random.Random) -> list[Trial]:
    hold = world.lease + world.guard
    return [
        Trial("no fault", lambda world: time.sleep(3)),
        Trial("loss 1 %", faults.loss(1, 4), by_chance=True),
        Trial("loss 20 %", faults.loss(20, 4), by_chance=True),
        Trial("loss 60 %", faults.loss(60, 4), by_chance=True, spoils=True),
        Trial("control loss one way", faults.control_loss(rng.choice((30, 100)), 5, host=0)),
        Trial("control loss one way", faults.control_loss(rng.choice((30, 100)), 5, host=1)),
        Trial("one end restarted", faults.restarts(3, hold * rng.random(), [0], [1])),
        Trial("one end, roughly", faults.restarts(3, hold * rng.random(), [0], [1], rough=True)),
        Trial("both ends restarted", faults.restarts(2, 1.2 * hold * rng.random(), [0, 1])),
        Trial("settings changed", faults.settings(2, rng.uniform(0.3, 1), 0, 1)),
        Trial("keys wiped", faults.flushes(10, rng.uniform(0.1, 0.7), 1)),
        Trial("keys wiped everywhere", faults.flushes(8, rng.uniform(0.1, 0.7), 0, 1)),
        Trial("container moves", faults.moves(5, rng.uniform(0.2, 1), rng.randrange(4))),
        Trial("three containers moves", faults.moves(4, rng.uniform(0.2, 1), rng.randrange(4), together=3)),
    ]


def _some_trouble(world: World, rng: random.Random) -> list[Fault]:
    return [
        rng.choice(
            (
                faults.restarts(1, rng.uniform(0.2, 3), [rng.randrange(2)], rough=rng.random() < 0.5),
                faults.settings(1, rng.uniform(0.1, 1), rng.randrange(2)),
                faults.flushes(3, rng.uniform(0.1, 1), rng.randrange(2)),
                faults.moves(2, rng.uniform(0.2, 1), rng.randrange(4), together=rng.randint(1, 3)),
            )
        )
        for _ in range(6)
    ]


def bleached(lab: Lab, rng: random.Random) -> Iterator[tuple[World, Trial]]:
    """The DSCP is bleached after a while."""
    world = World(lab, lease=rng.choice((1, 2)))
    yield world, Trial("bleaching later", faults.bleaching(4), spoils=True)


def rewritten(lab: Lab, rng: random.Random) -> Iterator[tuple[World, Trial]]:
    """Some IDs are rewritten after a while."""
    world = World(lab, containers=1, compare=False, wide=True)
    flows = cross(world.x, 20, both_ways=False)
    world.box.rules()
    fault = Rewriting(rng.choice((1, 5, 20)), 5)
    yield world, Trial("some IDs rewritten later (a)", fault, options={"flows": flows, "before": 3})


def crowded(lab: Lab, rng: random.Random) -> Iterator[tuple[World, Trial]]:
    """More pairs of containers than there are keys."""
    world = World(lab, containers=1, compare=False, wide=True, lease=rng.choice((2, 10)))
    flows = cross(world.x, 35)
    quiet = Trial("1,225 pairs", lambda world: time.sleep(8), options={"flows": flows, "rate": 3500})
    yield world, quiet


def recycled(lab: Lab, rng: random.Random) -> Iterator[tuple[World, Trial]]:
    """Few keys, which go from flow to flow as fast as they may, while packets come late and twice."""
    lease = rng.choice((1, 1.5, 2))
    world = World(lab, lease=lease, containers=1, compare=False, wide=True, options=("segment-bits", "8"))
    hold, guard = lease + world.guard, world.guard
    gaps = [at * factor for at in (lease / 2, lease, guard, hold) for factor in (0.9, 1.0, 1.1)]
    flows = cross(world.x, 25, burst=5, gaps=gaps, pace=0.015)
    world.box.rules()
    # The guard has to cover the way there and a bounce's way back, so only one way is slow.
    ours: tuple[Kind, ...] = ("encoded", "bounced")
    fault = faults.boxed(
        12,
        Rule("delay", 20, only=ours, direction="from", high=0.9 * guard),
        Rule("duplicate", 20, only=ours, direction="from", high=0.9 * guard),
        Rule("duplicate", 20, only=CONTROL, high=2 * hold),
    )
    yield world, Trial("keys recycled", fault, options={"flows": flows, "after": guard})


def doubled(lab: Lab, rng: random.Random) -> Iterator[tuple[World, Trial]]:
    """Two networks with the same addresses, restarted and wiped."""
    world = World(lab, mode="bridged", lease=1, compare=False)
    gaps = (0.1, 1.1, 3.1)
    flows = [flow for one in (world.x, twin(world)) for flow in mesh(one, gaps=gaps, burst=10)]
    fault = faults.in_turn(faults.flushes(3, 0.5, 0, 1), faults.restarts(2, 3, [0], [1]))
    yield world, Trial("two VNIs, same addresses", fault, options={"flows": flows})


def replaced(lab: Lab, rng: random.Random) -> Iterator[tuple[World, Trial]]:
    """Another machine takes over a host's VTEP address."""
    world = World(lab, lease=rng.choice((1, 2, 10)), containers=1, compare=False, wide=True)
    flows = mesh(world.x, tos=range(0, 256, 8))
    rng.shuffle(flows)
    yield world, Trial("VTEP address taken over", faults.takeover(5), options={"flows": flows})


def flooded(lab: Lab, rng: random.Random) -> Iterator[tuple[World, Trial]]:
    """Nothing is learned: every fallback packet goes to all hosts."""
    world = World(
        lab, hosts=4, containers=1, mode="bridged", compare=False, pin=False, options=("nolearning",)
    )
    source, target, *_ = world.x.containers
    flows = [Flow(source, target, VNI, df=df) for df in (True, False)]
    options = {"flows": flows, "rate": 400}
    yield world, Trial("flooding to 3 hosts", faults.flushes(3, 1, 0, 1), options=options)


NETWORKS: tuple[Network, ...] = (
    general,
    general,
    routed,
    bleached,
    rewritten,
    crowded,
    recycled,
    doubled,
    replaced,
    flooded,
)


@dataclass
class Row:
    """All runs of one name. ``away``: lost over xmasq while the network was taken away."""

    runs: int = 0
    seconds: float = 0
    sent: int = 0
    delivered: int = 0
    misdelivered: int = 0
    lost: int = 0
    away: int = 0
    vxlan_sent: int = 0
    vxlan_lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    counters: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        """Takes in one run."""
        x, v = outcome.x, outcome.v
        lost, vxlan_lost = outcome.lost()
        self.runs += 1
        self.seconds += outcome.seconds
        self.sent += x.sent
        self.delivered += x.delivered
        self.misdelivered += outcome.result.misdelivered
        self.duplicated += x.duplicated
        self.reordered += x.reordered
        self.lost += lost
        self.away += x.lost - lost
        self.vxlan_sent += v.sent
        self.vxlan_lost += vxlan_lost
        self.counters.update(outcome.counters)


_HEAD = (
    f"{'scenario':28} {'runs':>4} {'s':>4} {'sent':>7} {'deliv.':>7} {'misd.':>5} {'lost':>6} {'%':>5} "
    f"{'vxlan %':>7} {'away':>5} {'dupl.':>6} {'reord.':>6} {'enc. %':>6}  counters"
)


def _line(name: str, row: Row) -> str:
    percent = 100 * row.lost / row.sent if row.sent else 0
    vxlan = f"{100 * row.vxlan_lost / row.vxlan_sent:.2f}" if row.vxlan_sent else "-"
    counters = " ".join(f"{key} {row.counters[key]}" for key in INTEREST if row.counters[key])
    return (
        f"{name:28} {row.runs:4} {row.seconds:4.0f} {row.sent:7} {row.delivered:7} {row.misdelivered:5} "
        f"{row.lost:6} {percent:5.2f} {vxlan:>7} {row.away:5} {row.duplicated:6} {row.reordered:6} "
        f"{100 * share(row.counters):6.1f}  {counters}"
    )


_NOTES = """\
lost, %: over xmasq, of what was sent while the network was there; vxlan %: the same faults, at the same
time, over plain vxlan (-: not run along); away: lost over xmasq while links were deleted, containers on
their way or the DSCP was just being bleached; enc. %: encoded, of the packets that could be.
(a) no bit of a packet tells that its ID is another one than was sent: see docs/security.md. What counts
there is that two bounces put the peer back into the fallback, and that it stays there."""


def _trials(rng: random.Random, end: float) -> Iterator[tuple[World, Trial]]:
    """All networks in random order, again and again until the time is up."""
    while True:
        for network in rng.sample(NETWORKS, len(NETWORKS)):
            with Lab() as lab:
                for world, trial in network(lab, rng):
                    if time.monotonic() > end:
                        return
                    yield world, trial


def main() -> int:
    """See above."""
    parser = argparse.ArgumentParser(prog="make soak", description="All faults in random order, for minutes.")
    parser.add_argument("--minutes", type=float, default=10, help="how long (default: 10)")
    parser.add_argument("--seed", type=int, help="decides order and settings (default: a new one)")
    arguments = parser.parse_args()
    seed = random.randrange(1 << 32) if arguments.seed is None else arguments.seed
    print(f"soak: {arguments.minutes:g} minutes, --seed {seed}", flush=True)
    rng = random.Random(seed)
    rows: dict[str, Row] = {}
    bad: list[str] = []
    for world, trial in _trials(rng, time.monotonic() + 60 * arguments.minutes):
        world.bring_home()
        outcome, problems = trial.run(world)
        rows.setdefault(trial.name, Row()).add(outcome)
        setting = f"{len(world.hosts)} hosts, {world.x.mode}, lease {world.lease:g} s"
        said = "; ".join(problems) or "good"
        print(f"{time.strftime('%H:%M:%S')} {trial.name:28} {setting:32} {said}", file=sys.stderr, flush=True)
        bad += [f"{trial.name} ({setting}): {problem}" for problem in problems]
    print(_HEAD)
    for name in sorted(rows):
        print(_line(name, rows[name]))
    print(_NOTES)
    print("\n".join(["what must not be:", *bad]) if bad else "Nothing misdelivered, nothing lost of our own.")
    return 1 if bad else 0


if __name__ == "__main__":
    with room():
        status = main()
    sys.exit(status)
