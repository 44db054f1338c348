# SPDX-License-Identifier: Apache-2.0
"""xmasq capture: the packets of a link as its host sees them, fast path included."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

import xmasq_link as api

from .._errors import InputError
from .command import Command
from .interrupt import Interrupted
from .output import Options
from .words import Word, number, parse, require
from .words import text as any_text

if TYPE_CHECKING:
    from xmasq_link import Frame

GRAMMAR = (
    Word("name", "link", any_text, "NAME (of an xmasq link)", also=("dev", "link")),
    Word("-w", "file", any_text, 'PATH (of a file, or "-" for standard output)'),
    Word("count", "count", number(1, (1 << 63) - 1), "NUMBER (of packets)", also=("-c",)),
    Word("snaplen", "snaplen", number(14, 65_000), "BYTES (14 to 65000)", also=("-s",)),
)
USAGE = """\
Usage: xmasq capture [ link ] NAME [ -w FILE ] [ count NUMBER ]
                     [ snaplen BYTES ]
       xmasq capture NAME -w - | tcpdump -n -r -

Where: FILE  := a file to write in pcapng, or "-" for standard output;
                without it packets are printed, one line each
       BYTES := 14 to 65000 (the default): kept of each packet
"""


def capture(words: Sequence[str], options: Options) -> None:
    """xmasq capture"""
    found = parse(words, GRAMMAR, "capture", bare="name")
    require(found, GRAMMAR, "capture", "link")
    path = found.pop("file", None)
    if path == "-" and sys.stdout.isatty():
        raise InputError(
            "-w", 'standard output is a terminal; allowed is a file or a pipe, as in "| tcpdump -r -"'
        )
    with api.capture(**found) as packets, contextlib.ExitStack() as stack:
        file = None
        if path is not None:
            file = sys.stdout.buffer if path == "-" else stack.enter_context(_file(path))
        print(f"listening on {packets.link}, snaplen {packets.snaplen} bytes", file=sys.stderr, flush=True)
        try:
            if file is not None:
                packets.save(file)
            for frame in packets:
                print(_as_json(frame) if options.json else _as_text(frame), flush=True)
        except Interrupted as e:
            e.handled = True  # that is how a capture ends
        packets.close()
        sys.stdout.flush()
        print(f"{packets.received} packets captured, {packets.dropped} dropped", file=sys.stderr)


def _file(path: str) -> BinaryIO:
    try:
        # What containers say to each other is not everybody's to read.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except (OSError, ValueError) as e:
        raise InputError("-w", f'cannot write "{path}": {getattr(e, "strerror", None) or e}') from e
    return open(fd, "wb")


def _as_text(frame: Frame) -> str:
    seconds, ns = divmod(frame.time_ns, 1_000_000_000)
    clock = time.strftime("%H:%M:%S", time.localtime(seconds))
    return f"{clock}.{ns // 1000:06} {frame.direction:<3} {frame}"


def _as_json(frame: Frame) -> str:
    return json.dumps(
        {
            "time": frame.time_ns / 1e9,
            "direction": frame.direction,
            "length": frame.length,
            "summary": str(frame),
            "data": frame.data.hex(),
        },
        separators=(",", ":"),
    )


#: An object that is its own command.
COMMANDS = (Command("", capture, changes=True, bare="link"),)
