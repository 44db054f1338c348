# SPDX-License-Identifier: Apache-2.0
"""The negotiation keeps I1 and I2 with all its rules, and breaks them without any one of them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from .__main__ import main
from .concrete import Concrete, Event, follow
from .explore import Result, TooLargeError, explore, journey, story
from .machine import Action, Machine, State, Step
from .rules import (
    ALL,
    FAULTS,
    LARGE,
    LIMITS,
    PATHS,
    PAUSE,
    PLAIN,
    RESTARTS,
    RULES,
    SAFE,
    SENDER_RULES,
    TELLING,
    World,
    without,
)

STEADY = World("restarts and flush")


def _name(value: object) -> str | None:
    if isinstance(value, World):
        return value.name
    if isinstance(value, frozenset):
        return {ALL: "all", PLAIN: "plain"}.get(value) or "+".join(sorted(value)) or "none"
    return None


def _assert_holds(result: Result, machine: Machine) -> None:
    assert not result.broken, "\n" + story(machine, result.trace)
    assert result.states > 1


def _assert_replays(machine: Machine, result: Result) -> None:
    """The trace can be walked in the machine, and with real packets."""
    state = machine.initial()
    for step in result.trace:
        assert (step.action, step.state) in {(s.action, s.state) for s in machine.steps(state)}
        state = step.state
    assert result.trace[-1].broken == result.broken
    assert follow(machine, result.trace), story(machine, result.trace)


@pytest.mark.parametrize(("world", "rules"), SAFE, ids=_name)
def test_all_rules_keep_all_properties(world: World, rules: frozenset[str]) -> None:
    machine = Machine(world, rules)
    _assert_holds(explore(machine), machine)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "rules"), LARGE, ids=_name)
def test_all_rules_keep_all_properties_in_large_worlds(world: World, rules: frozenset[str]) -> None:
    machine = Machine(world, rules)
    _assert_holds(explore(machine), machine)


@pytest.mark.parametrize("world", PATHS.values(), ids=_name)
def test_nothing_is_encoded_over_a_dishonest_path(world: World) -> None:
    machine = Machine(world, ALL)
    _assert_holds(explore(machine), machine)
    assert not journey(machine, lambda step: step.action.verb == "encode")


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_is_idle(rule: str) -> None:
    machine = Machine(TELLING[rule], without(rule))
    result = explore(machine, only="I1")
    assert result.broken
    _assert_replays(machine, result)
    # And it is that rule: with it, the same world is safe.
    machine = Machine(TELLING[rule], machine.rules | {rule})
    _assert_holds(explore(machine, only="I1"), machine)


@pytest.mark.parametrize(
    "rule", ["lease", "lease-start", "reservation", "flush-reservation", "hold-down", "nonces"]
)
@pytest.mark.parametrize("sender_rules", [False, True], ids=["plain", "all"])
def test_rules_of_i2_are_not_idle_either(rule: str, sender_rules: bool) -> None:
    machine = Machine(TELLING[rule], without(rule, sender_rules=sender_rules))
    result = explore(machine, only="I2")
    assert result.broken
    _assert_replays(machine, result)


@pytest.mark.parametrize(
    ("path", "broken"),
    [
        ("rewriter there", "I1: a packet of f is decoded as g"),
        ("rewriter back", "I1: a bounced packet of f is restored as g"),
        ("bleacher there", "I6: the path takes MARK off an encoded packet"),
    ],
)
def test_the_path_is_checked_for_each_kind_of_dishonesty(path: str, broken: str) -> None:
    machine = Machine(PATHS[path], without("path"))
    result = explore(machine)
    assert result.broken == broken
    _assert_replays(machine, result)


RECEIVER, SENDER = frozenset({"restart-receiver"}), frozenset({"restart-sender"})
NO_RESTART: frozenset[str] = frozenset()
UNIQUE = frozenset({"sender-unique", "sender-longest"})


@pytest.mark.parametrize(
    ("missing", "faults", "needs"),
    [
        # needs: which of the sender's rules keep I1 when the receiver's rules are missing.
        (frozenset({"hold-down"}), RECEIVER, UNIQUE),
        (frozenset({"hold-down"}), SENDER, NO_RESTART),
        (frozenset({"hold-down"}), RESTARTS, SENDER_RULES),
        (frozenset({"reservation"}), NO_RESTART, UNIQUE),
        (frozenset({"reservation"}), SENDER, SENDER_RULES),
        (frozenset({"flush-reservation"}), frozenset({"flush"}), UNIQUE),
        (frozenset({"flush-reservation"}), frozenset({"flush"}) | SENDER, SENDER_RULES),
        (frozenset({"hold-down", "reservation", "flush-reservation"}), STEADY.faults, SENDER_RULES),
    ],
    ids=_name,
)
def test_second_line_of_defence(
    missing: frozenset[str], faults: frozenset[str], needs: frozenset[str]
) -> None:
    """What a receiver forgets, its sender remembers; only if both forget, the sender has to wait."""
    world = World("second line", faults=faults)
    for extra in (NO_RESTART, UNIQUE, SENDER_RULES):
        machine = Machine(world, PLAIN - missing | extra)
        result = explore(machine, only="I1")
        assert bool(result.broken) == (not extra >= needs), story(machine, result.trace)


def test_both_ends_forget() -> None:
    """Without a wait after restarts, a packet under way is decoded as another flow; nobody needs to forge."""
    machine = Machine(World("both", faults=RESTARTS), ALL - {"hold-down", "sender-hold"})
    result = explore(machine, only="I1: a packet")
    assert result.broken == "I1: a packet of f is decoded as g"
    assert "accept-old" not in {step.action.verb for step in result.trace}
    _assert_replays(machine, result)


class Honest(Machine):
    """Nobody forges an OFFER, and no old one arrives late."""

    def steps(self, s: State) -> Iterator[Step]:
        return (step for step in super().steps(s) if step.action.verb != "accept-old")


def test_restarts_of_the_sender_do_no_harm_without_a_forger() -> None:
    rules = without("sender-hold")
    assert explore(Machine(STEADY, rules), only="I1").broken
    machine = Honest(STEADY, rules)
    _assert_holds(explore(machine), machine)


def test_narrow_guard_needs_no_forger() -> None:
    assert explore(Honest(*LIMITS["narrow-guard"]), only="I1").broken


def test_clock_that_stands_still() -> None:
    """No lease helps against a clock that stands still, but the sender's own rules do."""
    machine = Machine(PAUSE, PLAIN)
    assert explore(machine, only="I1").broken
    machine = Machine(PAUSE, ALL)
    _assert_holds(explore(machine, only="I1"), machine)
    assert explore(machine, only="I2").broken.startswith("I2: a key is offered")


@pytest.mark.parametrize(
    "world",
    [
        replace(STEADY, name="reservation", short_reservation=1),
        replace(STEADY, name="hold-down", short_hold_down=1),
        replace(STEADY, name="sender-unique", short_unique=1),
        replace(STEADY, name="sender-hold", short_sender_hold=1),
    ],
    ids=_name,
)
def test_no_time_is_longer_than_need_be(world: World) -> None:
    machine = Machine(world, ALL)
    result = explore(machine)
    assert result.broken
    _assert_replays(machine, result)


@pytest.mark.parametrize("name", LIMITS)
def test_known_limits(name: str) -> None:
    """What docs/model.md says the rules do not cover, they do not; else that page has to change."""
    machine = Machine(*LIMITS[name])
    result = explore(machine, only="I1")
    assert result.broken
    _assert_replays(machine, result)


def test_guard_for_one_way_only_can_be_mended() -> None:
    """If the guard bounds each direction, the sender's times need it twice, and nothing else does."""
    world, rules = LIMITS["narrow-guard"]
    world = replace(world, faults=STEADY.faults, short_unique=-world.guard, short_sender_hold=-world.guard)
    machine = Machine(world, rules)
    _assert_holds(explore(machine), machine)
    for half in (replace(world, short_unique=0), replace(world, short_sender_hold=0)):
        assert explore(Machine(half, rules), only="I1").broken


Goal = Callable[[Step], bool]


def _verb(verb: str, f: int | None = None) -> Goal:
    return lambda step: step.action.verb == verb and f in (None, step.action.a)


@pytest.mark.parametrize("rules", [PLAIN, ALL], ids=_name)
@pytest.mark.parametrize(
    "goals",
    [
        [_verb("install", 0), _verb("tick"), _verb("renew", 0), _verb("tick"), _verb("decode", 0)],
        [_verb("decode", 0), _verb("decode", 1), _verb("decode", 0)],
        [
            _verb("decode", 0),
            _verb("restart-receiver"),
            _verb("bounce", 0),
            _verb("restore", 0),
            _verb("decode", 0),
        ],
        [
            _verb("decode", 0),
            _verb("restart-sender"),
            _verb("decode", 0),
            _verb("encode", 0),
            _verb("decode", 0),
        ],
        [_verb("flush"), _verb("bounce", 0), _verb("restore", 0), _verb("decode", 0), _verb("decode", 1)],
        [_verb("confirm-old"), _verb("decode", 0)],
    ],
    ids=["renewal", "recycling", "receiver restarts", "sender restarts", "flush", "forgotten ACCEPT"],
)
def test_the_model_is_not_empty(goals: list[Goal], rules: frozenset[str]) -> None:
    """There is one key, so that two flows that are decoded in turn have had it in turn."""
    machine = Machine(STEADY, rules)
    assert journey(machine, *goals)


EVERYTHING = World("all faults", faults=frozenset(FAULTS) - {"late-rewriter"}, short_leases=True)
WALKED = [
    (EVERYTHING, ALL),
    (EVERYTHING, PLAIN),
    *((world, rules) for world, rules in SAFE if world.lease < 6),
    *((world, rules) for world in PATHS.values() for rules in (ALL, without("path"))),
    *((TELLING[rule], without(rule)) for rule in RULES),
    *((TELLING[rule], without(rule, sender_rules=True)) for rule in RULES),
    *LIMITS.values(),
    (PAUSE, ALL),
]
# Control packets often, faults seldom: else few walks get anywhere.
WEIGHTS = {"control": 24, "data": 12, "encode": 12, "fallback": 8, "tick": 6, "flush": 3, "drop": 3}


def _walk(machine: Machine, rng: random.Random, length: int) -> Counter[str]:
    world = Concrete(machine)
    seen: Counter[str] = Counter()
    flying = slice(machine.encoded.start, machine.bounced.stop)
    for _ in range(length):
        by_verb: dict[str, list[Event]] = {}
        for event in world.events():
            by_verb.setdefault(event.verb, []).append(event)
        verbs = list(by_verb)
        events = by_verb[rng.choices(verbs, [WEIGHTS.get(v, 1) for v in verbs])[0]]
        before = world.state()
        # Of many packets, rather a new one.
        step = world.run(events[int(len(events) * max(rng.random(), rng.random()))])
        if step is None:
            assert world.state() == before
            continue
        seen[step.action.verb] += 1

        def covers(model: Step, real: Step = step) -> bool:
            """The same, or with packets that may stay under way for longer: it can do all that real can."""
            a, b = bytearray(model.state), bytearray(real.state)
            longer = all(x >= y for x, y in zip(a[flying], b[flying], strict=True))
            a[flying] = b[flying] = b""
            return (model.action, model.broken, a) == (real.action, real.broken, b) and longer

        assert any(map(covers, machine.steps(before))), (machine.describe(step.action), before, step)
    return seen


def _walks(machine: Machine, rng: random.Random, count: int) -> Counter[str]:
    return sum((_walk(machine, rng, 100) for _ in range(count)), Counter())


def test_the_model_leaves_nothing_out() -> None:
    """Random walks with real packets, nonces and clocks: the machine knows each of their steps."""
    seen: Counter[str] = Counter()
    rng = random.Random(5)
    for world, rules in WALKED:
        seen += _walks(Machine(world, rules), rng, 200 if world is EVERYTHING else 16)
    # What any rare step needs, and the rare ones.
    assert all(seen[verb] > 300 for verb in ("offer", "accept", "accept-old", "confirm", "encode")), seen
    assert all(seen[verb] > 10 for verb in ("renew", "confirm-old", "bounce", "restore", "drop")), seen


@pytest.mark.parametrize("verb", ["offer-again", "accept-again", "confirm-old", "bounce"])
def test_walks_notice_what_is_left_out(verb: str) -> None:
    class Lacking(Machine):
        def steps(self, s: State) -> Iterator[Step]:
            return (step for step in super().steps(s) if step.action.verb != verb)

    with pytest.raises(AssertionError, match="key 1"):
        _walks(Lacking(STEADY, ALL), random.Random(5), 1000)


def test_a_trace_with_a_gap_does_not_replay() -> None:
    machine = Machine(TELLING["hold-down"], without("hold-down"))
    trace = explore(machine, only="I1").trace
    for i in range(len(trace) - 1):
        assert not follow(machine, trace[:i] + trace[i + 1 :])


def test_too_large_is_not_taken_for_safe() -> None:
    with pytest.raises(TooLargeError, match="more than 100 states"):
        explore(Machine(STEADY, ALL), limit=100)


def test_command_prints_a_counterexample(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--without", "hold-down"]) == 0
    out = capsys.readouterr().out
    assert "B's datapath is re-created, empty" in out
    assert out.endswith("I1: a packet of f is decoded as g\n")


def test_command_says_when_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--without", "hold-down", "--sender-rules"]) == 1
    assert "I1 holds in all" in capsys.readouterr().out


def test_command_refuses_an_unknown_rule(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        main(["--without", "luck"])
    assert e.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--without" in err
    assert "hold-down" in err
    with pytest.raises(ValueError, match="luck"):
        Machine(STEADY, frozenset({"luck"}))


def test_story_names_everybody() -> None:
    machine = Machine(World("three", flows=SAFE[6][0].flows, keys=2), ALL)
    assert machine.describe(Action("offer", 2, 3)) == (
        "a fallback packet of h reaches B, which sends an OFFER of key 2 to A2"
    )
