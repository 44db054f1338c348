# SPDX-License-Identifier: Apache-2.0
"""xmasq flush: ends flows and keys before their time."""

from __future__ import annotations

from collections.abc import Sequence

import xmasq_link as api

from .command import Command
from .flow import LINK
from .output import Options, show
from .words import Word, parse, text

GRAMMAR = (
    LINK,
    Word("peer", "peer", text, "ADDR (an IPv4 address)"),
    Word("source", "source", text, "ADDR (an IPv4 address)", also=("src",)),
    Word("destination", "destination", text, "ADDR (an IPv4 address)", also=("dst",)),
)
USAGE = """\
Usage: xmasq flush [ link NAME ] [ peer ADDR ] [ source ADDR ]
                   [ destination ADDR ]
"""


def flush(words: Sequence[str], options: Options) -> None:
    """xmasq flush"""
    ended = api.flush(**parse(words, GRAMMAR, "flush"))
    show([ended], lambda n: f"{n} ended", options, lambda n: {"ended": n})


#: An object that is its own command.
COMMANDS = (Command("", flush, changes=True),)
