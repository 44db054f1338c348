# SPDX-License-Identifier: Apache-2.0
"""Visits every state that a machine can get into; shortest ways to what is looked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from .machine import Machine, State, Step

LIMIT = 8_000_000  # states; about 200 bytes each


class TooLargeError(Exception):
    """The world has more states than fit: nothing is known about it."""


@dataclass(frozen=True)
class Result:
    """broken is empty, and trace too, if every reachable state was visited and none breaks anything."""

    broken: str
    trace: tuple[Step, ...]
    states: int
    steps: int
    depth: int
    seconds: float


def explore(
    machine: Machine,
    *,
    only: str = "",
    goal: Callable[[Step], bool] | None = None,
    start: State | None = None,
    limit: int = LIMIT,
) -> Result:
    """Searches breadth first from start, until there is nothing new or a property is broken.

    only: the beginning of the properties' names that count, as in "I1"; all by default.
    goal: look for a step like this instead; broken is then "goal".
    Raises TooLargeError beyond limit states.
    """
    began = time.perf_counter()
    first = machine.initial() if start is None else start
    parents: dict[State, State | None] = {first: None}
    frontier = [first]
    taken = depth = 0

    def result(last: Step | None = None, broken: str = "", before: State | None = None) -> Result:
        trace = _trace(machine, parents, before) if before is not None else []
        if last:
            trace.append(last._replace(broken=broken))
        return Result(broken, tuple(trace), len(parents), taken, depth, time.perf_counter() - began)

    while frontier:
        depth += 1
        found: list[State] = []
        for state in frontier:
            for step in machine.steps(state):
                taken += 1
                if goal:
                    if goal(step):
                        return result(step, "goal", state)
                elif step.broken.startswith(only) and step.broken:
                    return result(step, step.broken, state)
                if step.state in parents:
                    continue
                parents[step.state] = state
                found.append(step.state)
                if not goal:
                    broken = machine.check(step.state)
                    if broken and broken.startswith(only):
                        return result(step, broken, state)
        if len(parents) > limit:
            raise TooLargeError(f"{machine.world.name}: more than {limit} states")
        frontier = found
    return result()


def _trace(machine: Machine, parents: dict[State, State | None], end: State) -> list[Step]:
    """The steps from the start to a state. Only states were kept, so the steps are made again."""
    steps: list[Step] = []
    while (before := parents[end]) is not None:
        steps.append(next(s for s in machine.steps(before) if s.state == end))
        end = before
    return steps[::-1]


def journey(machine: Machine, *goals: Callable[[Step], bool]) -> tuple[Step, ...]:
    """A way that meets the goals one after the other; empty if there is none."""
    way: tuple[Step, ...] = ()
    for goal in goals:
        found = explore(machine, goal=goal, start=way[-1].state if way else None)
        if not found.trace:
            return ()
        way += found.trace
    return way


def story(machine: Machine, trace: tuple[Step, ...]) -> str:
    """The trace in words, a line for a step, with the time in ticks."""
    lines = []
    now = 0
    for step in trace:
        now += step.action.verb in ("tick", "pause")
        lines.append(f"t={now}  {machine.describe(step.action)}")
        if step.broken:
            lines.append(f"     {step.broken}")
    return "\n".join(lines)
