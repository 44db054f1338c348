# SPDX-License-Identifier: Apache-2.0
"""xmasq flow: what this host encodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import xmasq_link as api

from .command import Command
from .output import Options, seconds, show
from .words import Word, parse, text

if TYPE_CHECKING:
    from xmasq_link import Flow, Key

LINK = Word("link", "link", text, "NAME (of an xmasq link)", also=("dev",))
GRAMMAR = (LINK,)
USAGE = """\
Usage: xmasq flow [ show [ link NAME ] ]
"""


def show_(words: Sequence[str], options: Options) -> None:
    """xmasq flow show"""
    found = parse(words, GRAMMAR, "flow show")
    show(api.flows(found.get("link")), lambda flow: as_text(flow, options), options)


def columns(row: Flow | Key, details: bool) -> str:
    """What flows and keys have in common, in columns of fixed width: nobody waits for the last row."""
    line = (
        f"{row.source:<15} > {row.destination:<15} link {row.link:<8} vni {row.vni:<5} "
        f"dscp {row.dscp:<2} {'df' if row.df else 'nodf':<4} peer {row.peer:<15} key {row.key:<4} "
        f"lease {seconds(row.lease_left_ms):<5}"
    )
    if details:
        line += f" local {row.local:<15} mac {row.source_mac} > {row.destination_mac}"
    return line


def as_text(flow: Flow, options: Options) -> str:
    """A flow as one line."""
    line = f"{columns(flow, options.details)} dev {flow.dev}"
    return f"{line} via {flow.nexthop}" if flow.nexthop else line


COMMANDS = (Command("show", show_, also=("list", "lst")),)
