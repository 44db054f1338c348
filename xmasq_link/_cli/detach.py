# SPDX-License-Identifier: Apache-2.0
"""xmasq detach: makes an attached link a plain vxlan device again."""

from __future__ import annotations

from collections.abc import Sequence

import xmasq_link as api

from .command import Command
from .output import Options
from .words import Word, parse, require, text

GRAMMAR = (Word("name", "name", text, "NAME (of an attached link)", also=("dev",)),)
USAGE = """\
Usage: xmasq detach [ dev ] NAME
"""


def detach(words: Sequence[str], options: Options) -> None:
    """xmasq detach"""
    found = parse(words, GRAMMAR, "detach", bare="name")
    require(found, GRAMMAR, "detach", "name")
    api.detach_link(found["name"])


#: An object that is its own command.
COMMANDS = (Command("", detach, changes=True, whole=True),)
