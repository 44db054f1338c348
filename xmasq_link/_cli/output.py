# SPDX-License-Identifier: Apache-2.0
"""Text for people, JSON for programs; both leave row by row, however many there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
#: SGR codes (ECMA-48) of iproute2 on a light ground, lib/color.c.
_COLORS = {"name": 36, "lladdr": 33, "address": 35, "address6": 34, "up": 32, "down": 31}


class Options(NamedTuple):
    """What the words before the object ask for, as with `ip`."""

    netns: str | None = None
    json: bool = False
    pretty: bool = False
    stats: bool = False
    details: bool = False
    oneline: bool = False
    brief: bool = False
    color: bool = False
    batch: str | None = None
    force: bool = False

    def paint(self, what: str, text: str) -> str:
        """Text in the colour that `ip` has for such a thing, if colours are wanted."""
        return f"\033[{_COLORS[what]}m{text}\033[0m" if self.color and what in _COLORS else text


def show(
    rows: Iterable[T],
    as_text: Callable[[T], str],
    options: Options,
    as_dict: Callable[[T], dict[str, Any]] | None = None,
) -> None:
    """Writes rows to standard output: lines, or a JSON list of objects.

    as_dict: by default the fields of the dataclass.
    """
    if not options.json:
        for row in rows:
            line = as_text(row)
            print(line.replace("\n", "\\") if options.oneline else line)
        return
    for chunk in _json(map(as_dict or fields, rows), options.pretty):
        print(chunk, end="")


def _json(rows: Iterator[dict[str, Any]], pretty: bool) -> Iterator[str]:
    import json

    encoder = json.JSONEncoder(indent=4) if pretty else json.JSONEncoder(separators=(",", ":"))
    row = next(rows, None)  # before anything is written: this may raise
    if row is None:
        yield "[]\n"
        return
    start, between, end = ("[ ", ", ", " ]\n") if pretty else ("[", ",", "]\n")
    yield start + encoder.encode(row)
    for row in rows:
        yield between + encoder.encode(row)
    yield end


def fields(row: Any) -> dict[str, Any]:
    """A dataclass as a dictionary, one level deep."""
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def seconds(ms: int) -> str:
    """A time as text."""
    return f"{ms / 1000:.1f}s"


def one_line(text: str) -> str:
    """Text that is certain to be one line of printable characters."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
