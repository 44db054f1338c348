# SPDX-License-Identifier: Apache-2.0
"""The grammar of `ip`: keywords in any order, most with one value, and abbreviated commands."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from .._errors import InputError

#: Where a keyword may stand, these ask for help.
HELP_WORDS = frozenset({"help", "-h", "-help", "--help"})


class HelpWanted(Exception):
    """The user asked for help in the middle of a command."""


class Word(NamedTuple):
    """A keyword.

    name: its first spelling, used in errors. dest: its key in the result; keywords with the same
    dest exclude each other. read: makes the value of the word that follows, called with name and
    word, raises InputError; None: no word follows, and value is the value. takes: what follows, for
    errors. also: further spellings. follow: how many words do; read gets them with a space between.
    """

    name: str
    dest: str
    read: Callable[[str, str], Any] | None = None
    takes: str = ""
    value: Any = True
    also: tuple[str, ...] = ()
    follow: int = 1


def pick(word: str, names: Iterable[str]) -> str | None:
    """The first of names that word is an abbreviation of, or None."""
    return next((name for name in names if word and name.startswith(word)), None)


def parse(
    words: Sequence[str], grammar: Sequence[Word], where: str, bare: str | None = None
) -> dict[str, Any]:
    """Values by dest. where: the command, for errors.

    bare: the keyword that may be left out before its value (the link's name), once. Raises
    InputError for an unknown or repeated keyword or a missing or bad value, HelpWanted.
    """
    spelled = {spelling: word for word in grammar for spelling in (word.name, *word.also)}
    found: dict[str, Any] = {}
    rest = iter(words)
    for spelling in rest:
        word = spelled.get(spelling)
        if word is None:
            if spelling in HELP_WORDS:
                raise HelpWanted
            if bare is None or spelled[bare].dest in found:
                allowed = ", ".join(w.name for w in grammar)
                raise InputError(spelling, f'not a keyword of "{where}"; allowed are {allowed}')
            word, text = spelled[bare], spelling
        elif word.read is not None:
            following = list(itertools.islice(rest, word.follow))
            if len(following) < word.follow:
                raise InputError(spelling, f"a value is missing; allowed is {word.takes}")
            text = " ".join(following)
        else:
            text = spelling
        if word.dest in found:
            raise InputError(word.name, f'given twice: "{text}" is the second value')
        found[word.dest] = word.read(word.name, text) if word.read else word.value
    return found


def require(found: dict[str, Any], grammar: Sequence[Word], where: str, *dests: str) -> None:
    """Raises InputError for the first of dests that is not there."""
    for dest in dests:
        if dest not in found:
            word = next(w for w in grammar if w.dest == dest)
            raise InputError(word.name, f'missing; "{where}" needs {word.name} {word.takes}')


def text(_name: str, word: str) -> str:
    """Any word."""
    return word


def number(low: int, high: int | None, allowed: str = "") -> Callable[[str, str], int]:
    """Reads a decimal number, or a hexadecimal one after 0x, in a range.

    high: None if only whoever takes the number knows it; then allowed says what it is.
    """
    allowed = allowed or f"{low} to {high}"

    def read(name: str, word: str) -> int:
        if not re.fullmatch(r"-?([0-9]{1,20}|0[xX][0-9a-fA-F]{1,16})", word):
            raise InputError(name, f'"{word}" is not a number; allowed is {allowed}')
        value = int(word, 16 if "x" in word.lower() else 10)
        if value < low or (high is not None and value > high):
            raise InputError(name, f"{value} is out of range, allowed is {allowed}")
        return value

    return read


def pair(read: Callable[[str, str], Any]) -> Callable[[str, str], tuple[Any, Any]]:
    """Reads two words alike."""

    def both(name: str, words: str) -> tuple[Any, Any]:
        first, _, second = words.partition(" ")
        return read(name, first), read(name, second)

    return both


def choice(values: dict[str, Any]) -> Callable[[str, str], Any]:
    """Reads one of some words."""

    def read(name: str, word: str) -> Any:
        if word not in values:
            raise InputError(name, f'"{word}" is unknown; allowed is {" or ".join(values)}')
        return values[word]

    return read


def either(values: dict[str, Any], otherwise: Callable[[str, str], Any]) -> Callable[[str, str], Any]:
    """Reads one of some words, or else something."""

    def read(name: str, word: str) -> Any:
        if word in values:
            return values[word]
        try:
            return otherwise(name, word)
        except InputError as e:
            raise InputError(name, f"{str(e).removeprefix(name + ': ')} or {' or '.join(values)}") from None

    return read


def hex_byte(name: str, word: str) -> int:
    """Reads a TOS byte, which `ip` has in hexadecimal with or without 0x."""
    if not re.fullmatch(r"(0[xX])?[0-9a-fA-F]{1,2}", word):
        raise InputError(name, f'"{word}" is not a TOS byte; allowed is 00 to ff (hexadecimal)')
    return int(word, 16)


def lease_ms(name: str, word: str) -> int:
    """Reads a time such as 10, 2.5s or 1500ms; returns milliseconds."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|)", word)
    value = -1
    if match:
        value = round(float(match[1]) * (1 if match[2] == "ms" else 1000))
    if not 1000 <= value <= 60_000:
        raise InputError(name, f'"{word}" is not allowed; allowed is 1s to 60s, for example 10s or 1500ms')
    return value
