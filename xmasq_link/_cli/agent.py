# SPDX-License-Identifier: Apache-2.0
"""xmasq agent: keeps a node of a CNI network in step with the others."""

from __future__ import annotations

from collections.abc import Sequence

import xmasq_link as api

from .command import Command
from .output import Options
from .words import Word, parse, require, text

GRAMMAR = (
    Word("config", "config", text, "PATH (of a CNI configuration with xmasq-cni)"),
    Word("node", "node", text, "NAME (of this node)"),
    Word("once", "mode", value="once"),
    Word("leave", "mode", value="leave"),
)
USAGE = """\
Usage: xmasq agent [ config ] PATH [ node NAME ] [ once | leave ]

Where: PATH := the CNI configuration or list that xmasq-cni is in
       NAME := this node's, by default its host name
       once := set everything up, and end
       leave := take this network away from the node, and end
"""


def agent(words: Sequence[str], _options: Options) -> None:
    """xmasq agent"""
    found = parse(words, GRAMMAR, "agent", bare="config")
    require(found, GRAMMAR, "agent", "config")
    mode = found.pop("mode", "")
    api.run_agent(
        **found, once=mode == "once", leave=mode == "leave", log=lambda line: print(line, flush=True)
    )


#: An object that is its own command.
COMMANDS = (Command("", agent, changes=True),)
