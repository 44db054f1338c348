# SPDX-License-Identifier: Apache-2.0
"""xmasq peer: the other hosts that speak xmasq."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import xmasq_link as api

from .command import Command
from .output import Options, seconds, show
from .words import Word, parse

if TYPE_CHECKING:
    from xmasq_link import Peer

GRAMMAR: tuple[Word, ...] = ()
USAGE = """\
Usage: xmasq peer [ show ]
"""


def show_(words: Sequence[str], options: Options) -> None:
    """xmasq peer show"""
    parse(words, GRAMMAR, "peer show")
    show(api.peers(), as_text, options)


def as_text(peer: Peer) -> str:
    """A peer as one line."""
    heard = "never" if peer.heard_ms_ago is None else f"{seconds(peer.heard_ms_ago)} ago"
    line = (
        f"{peer.peer:<15} local {peer.local:<15} flows {peer.flows:<5} keys {peer.keys:<5} "
        f"heard {heard:<11} {peer.verdict}"
    )
    return f"{line}, off for {seconds(peer.off_for_ms)}" if peer.off_for_ms else line


COMMANDS = (Command("show", show_, also=("list", "lst")),)
