# SPDX-License-Identifier: Apache-2.0
"""xmasq doctor: what on this host keeps xmasq from working, or from being fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import xmasq_link as api

from .command import Command, Exit
from .output import Options, show
from .words import Word, parse

if TYPE_CHECKING:
    from xmasq_link import Finding

GRAMMAR: tuple[Word, ...] = ()
USAGE = """\
Usage: xmasq doctor

Exit status: 0 if nothing keeps xmasq from working well, 1 if there are
warnings or faults.
"""


def doctor(words: Sequence[str], options: Options) -> None:
    """xmasq doctor"""
    parse(words, GRAMMAR, "doctor")
    found = api.diagnose()
    show(found, as_text, options)
    if any(one.level in ("warning", "fault") for one in found):
        raise Exit(1)


def as_text(found: Finding) -> str:
    """A finding as one line."""
    line = f"{found.level:<8} {found.about + ':':<16} {found.text}"
    return f"{line} ({found.hint})" if found.hint else line


#: An object that is its own command.
COMMANDS = (Command("", doctor),)
