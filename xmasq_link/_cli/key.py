# SPDX-License-Identifier: Apache-2.0
"""xmasq key: the keys that this host has given, by which it decodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import xmasq_link as api

from .command import Command
from .flow import LINK, columns
from .output import Options, show
from .words import parse

if TYPE_CHECKING:
    from xmasq_link import Key

GRAMMAR = (LINK,)
USAGE = """\
Usage: xmasq key [ show [ link NAME ] ]
"""


def show_(words: Sequence[str], options: Options) -> None:
    """xmasq key show"""
    found = parse(words, GRAMMAR, "key show")
    show(api.keys(found.get("link")), lambda key: as_text(key, options), options)


def as_text(key: Key, options: Options) -> str:
    """A key as one line."""
    return f"{columns(key, options.details)} {key.state}{' used' if key.used else ''}"


COMMANDS = (Command("show", show_, also=("list", "lst")),)
