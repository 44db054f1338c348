# SPDX-License-Identifier: Apache-2.0
"""What may stand at the end of an unfinished command line: for the shells' completion.

`xmasq --complete WORDS` prints it, one candidate on a line, made of the same tables that commands are
read by. "@device", "@netns" and "@file" stand for what the shell itself can look up.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Sequence

from .command import Command
from .words import Word, pick


def candidates(words: Sequence[str], objects: Sequence[str], options: Iterable[str]) -> list[str]:
    """words: those behind "xmasq", the last one unfinished, and maybe empty."""
    *done, start = words or [""]
    while done and done[0].startswith("-"):
        short = done.pop(0).lstrip("-")
        if short and pick(short, options) in ("netns", "batch"):
            if not done:
                return ["@netns" if pick(short, options) == "netns" else "@file"]
            done.pop(0)
    if not done:
        found = [f"-{name}" for name in options] if start.startswith("-") else [*objects, "help"]
        return [word for word in found if word.startswith(start)]
    name = pick(done[0], objects)
    if name is None:
        return []
    module = importlib.import_module(f"{__package__}.{name}")
    commands: tuple[Command, ...] = module.COMMANDS
    if commands[0].name:
        if len(done) == 1:
            names = [*(command.name for command in commands), "help"]
            return [word for word in names if word.startswith(start)]
        command = next((c for c in commands if pick(done[1], (c.name, *c.also))), None)
        rest = done[2:]
    else:
        command, rest = commands[0], done[1:]
    if command is None:
        return []
    return _keywords(command.grammar or getattr(module, "GRAMMAR", ()), command.bare, rest, start)


def _keywords(grammar: Sequence[Word], bare: str, done: Sequence[str], start: str) -> list[str]:
    spelled = {spelling: word for word in grammar for spelling in (word.name, *word.also)}
    given: set[str] = set()
    rest = iter(done)
    for text in rest:
        word = spelled.get(text)
        if word is None:
            given.add(bare)
            continue
        given.add(word.dest)
        if word.read is not None:
            follow = [next(rest, None) for _ in range(word.follow)]
            if None in follow:
                return [value for value in _values(word) if value.startswith((start, "@"))]
    found = [word.name for word in grammar if word.dest not in given]
    if bare and bare not in given:
        found.append("@device")
    return [word for word in found if word.startswith((start, "@"))]


def _values(word: Word) -> list[str]:
    """The words among what may follow a keyword."""
    if word.takes.startswith("PATH"):
        return ["@file"]
    if word.takes.startswith(("DEVICE", "NAME (of")):
        return ["@device"]
    alternatives = re.split(r", | or ", word.takes.partition(" (")[0])
    return [text for text in alternatives if re.fullmatch(r"[a-z_0-9]*[a-z_]+", text)]
