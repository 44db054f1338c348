# SPDX-License-Identifier: Apache-2.0
"""Runs the model: a table of what holds, or how a property is broken when a rule is taken out."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from .explore import Result, explore, story
from .machine import Machine
from .rules import ALL, LARGE, LIMITS, PATHS, PAUSE, PLAIN, RULES, SAFE, TELLING, World, without


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"model: {message}\n")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="python -m tests.model", description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--without", choices=RULES, help="take this rule out and print what comes of it")
    what.add_argument("--limit", choices=LIMITS, help="print how I1 breaks where the rules do not reach")
    what.add_argument("--large", action="store_true", help="visit the large worlds, too (a minute or more)")
    what.add_argument("--rules", action="store_true", help="list the rules")
    parser.add_argument("--sender-rules", action="store_true", help="with --without: keep the sender's own")
    parser.add_argument("--path", choices=PATHS, help="with --without path: the middlebox")
    parser.add_argument("--property", choices=("I1", "I2", "I6"), help="with --without: look for this only")
    return parser.parse_args(argv)


def _counterexample(world: World, rules: frozenset[str], only: str) -> int:
    machine = Machine(world, rules)
    result = explore(machine, only=only)
    print(f"{world.name}: lease {world.lease}, guard {world.guard}, {world.keys} keys")
    if not result.broken:
        print(f"{only or 'every property'} holds in all {result.states} states")
        return 1
    print(story(machine, result.trace))
    return 0


def _table(large: bool) -> int:
    failed = False
    print("world                      rules  lease  guard  keys    states      steps  depth  seconds  result")

    def row(world: World, rules: frozenset[str], result: Result) -> None:
        nonlocal failed
        failed |= bool(result.broken)
        name = {ALL: "all", PLAIN: "plain"}[rules]
        print(
            f"{world.name:26} {name:5} {world.lease:6} {world.guard:6} {world.keys:5} {result.states:9} "
            f"{result.steps:10} {result.depth:6} {result.seconds:8.2f}  {result.broken or 'holds'}",
            flush=True,
        )

    for world, rules in SAFE + (LARGE if large else ()):
        row(world, rules, explore(Machine(world, rules)))
    for world in PATHS.values():
        row(world, ALL, explore(Machine(world, ALL)))
    row(PAUSE, ALL, explore(Machine(PAUSE, ALL), only="I1"))
    return int(failed)


def main(argv: list[str] | None = None) -> int:
    """Returns 0 if all went as it should: a counterexample where a rule is missing, else none."""
    args = _arguments(argv)
    if args.rules:
        for rule, text in RULES.items():
            print(f"{rule:18} {text}")
        return 0
    if args.without:
        world = PATHS[args.path] if args.path else TELLING[args.without]
        only = args.property or ("I1" if not args.path else "")
        return _counterexample(world, without(args.without, sender_rules=args.sender_rules), only)
    if args.limit:
        return _counterexample(*LIMITS[args.limit], "I1")
    return _table(args.large)


if __name__ == "__main__":
    sys.exit(main())
