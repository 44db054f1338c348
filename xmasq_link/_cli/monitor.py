# SPDX-License-Identifier: Apache-2.0
"""xmasq monitor: what happens, while it happens, as `ip monitor` shows it for devices."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import xmasq_link as api

from .._errors import InputError
from .command import Command
from .output import Options, one_line, seconds
from .words import HELP_WORDS, HelpWanted, Word, pick

if TYPE_CHECKING:
    from xmasq_link import Event

#: What may be asked for, with how the kinds of its events begin.
OBJECTS = {
    "all": ("",),
    "link": ("link_",),
    "flow": ("flow_",),
    "key": ("key_", "exhausted", "conflict"),
    "peer": ("peer_", "ctl_"),
    "mac": ("mac_",),
}
USAGE = """\
Usage: xmasq monitor [ all | OBJECT ... ]

Where: OBJECT := { link | flow | key | peer | mac }
"""


def monitor(words: Sequence[str], options: Options) -> None:
    """xmasq monitor"""
    starts: list[str] = []
    for word in words:
        if word in HELP_WORDS:
            raise HelpWanted
        name = pick(word, OBJECTS)
        if name is None:
            raise InputError(word, f'unknown object; allowed are {", ".join(OBJECTS)}, or "help"')
        starts += OBJECTS[name]
    wanted = (*starts, "lost") if starts else ("",)
    with api.monitor() as events:
        print("listening", file=sys.stderr, flush=True)
        for event in events:
            if event.kind.startswith(wanted):
                print(_as_json(event) if options.json else as_text(event), flush=True)


def _as_json(event: Event) -> str:
    fields = {name: value for name, value in dataclasses.asdict(event).items() if value is not None}
    return json.dumps({"time": fields.pop("time_ns") / 1e9, **fields}, separators=(",", ":"))


def as_text(event: Event) -> str:
    """An event as one line."""
    whole, ns = divmod(event.time_ns, 1_000_000_000)
    words = [f"{time.strftime('%H:%M:%S', time.localtime(whole))}.{ns // 1000:06}"]
    words.append(f"{event.kind.replace('_', ' '):<13}")
    if event.source:
        words.append(f"{event.source} > {event.destination}")
        if event.dscp:
            words.append(f"dscp {event.dscp}")
        if event.df is False:
            words.append("nodf")
    elif event.source_mac:
        words.append(f"mac {event.source_mac}")
    for name in ("link", "peer", "local", "key"):
        value = getattr(event, name)
        if value is not None:
            words.append(f"{name} {value}")
    if event.duration_ms is not None:
        words.append(f"for {seconds(event.duration_ms)}")
    if event.reason:
        words.append(f"({event.reason})")
    if event.count is not None:
        words.append(f"{event.count} events: they came faster than they were read")
    return one_line(" ".join(words))


#: An object that is its own command.
COMMANDS = (Command("", monitor, changes=True, grammar=tuple(Word(name, name) for name in OBJECTS)),)
