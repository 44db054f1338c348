# SPDX-License-Identifier: Apache-2.0
"""What the dispatch table is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .output import Options
from .words import Word


class Exit(Exception):
    """Ends a command that has said all there is to say, with an exit status other than 0."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Command(NamedTuple):
    """A command of an object.

    name: in full; also: further names. Any of them may be abbreviated, and the first command that
    fits is meant. run: gets the words behind the command. changes: it needs root from the start.
    whole: once begun, it runs to its end before a signal is obeyed. For completion, grammar: its
    keywords, by default GRAMMAR of its module; bare: the dest of the one that may be left out.
    """

    name: str
    run: Callable[[Sequence[str], Options], None]
    also: tuple[str, ...] = ()
    changes: bool = False
    whole: bool = False
    grammar: tuple[Word, ...] = ()
    bare: str = ""
