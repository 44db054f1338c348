# SPDX-License-Identifier: Apache-2.0
"""xmasq explain: why a flow is encoded, or is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import xmasq_link as api

from .._errors import InputError
from .command import Command
from .output import Options, show
from .words import HELP_WORDS, HelpWanted

if TYPE_CHECKING:
    from xmasq_link import Explanation

USAGE = """\
Usage: xmasq explain LINK SOURCE DESTINATION

Where: LINK := the name of an xmasq link; SOURCE and DESTINATION are IP
       addresses as they are inside the link, SOURCE on this host
"""
_NAMES = ("LINK", "SOURCE", "DESTINATION")
_VERDICT = {True: "ok", False: "no", None: "?"}


def explain(words: Sequence[str], options: Options) -> None:
    """xmasq explain"""
    if any(word in HELP_WORDS for word in words):
        raise HelpWanted
    if len(words) < len(_NAMES):
        missing = _NAMES[len(words)]
        raise InputError(missing, f'missing; "explain" needs {" ".join(_NAMES)}')
    if len(words) > len(_NAMES):
        raise InputError(words[len(_NAMES)], f'too many words; "explain" needs {" ".join(_NAMES)}')
    show([api.explain(*words)], as_text, options, dataclasses.asdict)


def as_text(found: Explanation) -> str:
    """The verdict, and a line for each condition."""
    verdict = "encoded" if found.encoded else "not encoded"
    lines = [f"{found.source} > {found.destination} by {found.link}: {verdict}"]
    for c in found.conditions:
        line = f"{_VERDICT[c.met]:<3} {c.name + ':':<19} {c.text}"
        lines.append(f"{line} ({c.hint})" if c.hint else line)
    return "\n    ".join(lines)


#: An object that is its own command.
COMMANDS = (Command("", explain, bare="link"),)
