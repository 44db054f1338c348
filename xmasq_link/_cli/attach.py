# SPDX-License-Identifier: Apache-2.0
"""xmasq attach: makes links of vxlan devices that somebody else has made, once or for good."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import xmasq_link as api

from .._errors import InputError
from .command import Command
from .output import Options, fields, one_line
from .secret import read_secret
from .words import Word, lease_ms, number, parse, require, text

if TYPE_CHECKING:
    from xmasq_link import Change

_DSCP = "DSCP (3, 7, 11 and so on to 63)"
GRAMMAR = (
    Word("name", "name", text, "NAME (of a vxlan device)"),
    Word("--watch", "pattern", text, "PATTERN (of device names, such as flannel.*)"),
    Word("--detach", "detach", value=True),
    Word("dev", "dev", text, "DEVICE[,DEVICE…] (that reach the peers)"),
    Word("local", "local", text, "ADDR (an address of this host)"),
    Word("lease", "lease_ms", lease_ms, "TIME (1s to 60s)"),
    Word("secret-file", "secret_file", text, "PATH (of a file that only you can read)"),
    Word("segment-bits", "seg_bits", number(4, 8), "4 to 8"),
    Word("key-bits", "key_bits", number(0, 3), "0 to 3"),
    Word("mark", "mark", number(0, 63), _DSCP),
    Word("bounce", "bounce", number(0, 63), _DSCP),
    Word("flows", "flows", number(1024, 1 << 20), "1024 to 1048576"),
)
USAGE = """\
Usage: xmasq attach { [ name ] NAME | --watch PATTERN [ --detach ] }
                    [ dev DEVICE[,…] ] [ local ADDR ] [ lease TIME ]
                    [ secret-file PATH ] [ segment-bits BITS ]
                    [ key-bits BITS ] [ mark DSCP ] [ bounce DSCP ]
                    [ flows NUMBER ]

Where: NAME     := a vxlan device, made by anybody
       PATTERN  := as in a shell; several are separated by commas. Attaches
                   all devices that match, now and as they come, until it
                   gets SIGTERM
       --detach := take all apart then; by default they stay links
       DEVICE   := the underlay; by default the one that NAME sends through,
                   or that owns its local address
       ADDR     := the VTEP address, for a device without a local address
       The others are those of "link add".
"""


def attach(words: Sequence[str], options: Options) -> None:
    """xmasq attach"""
    found = parse(words, GRAMMAR, "attach", bare="name")
    pattern, detach = found.pop("pattern", None), found.pop("detach", False)
    if pattern is None:
        if detach:
            raise InputError("--detach", "goes with --watch only")
        require(found, GRAMMAR, "attach", "name")
    elif "name" in found:
        raise InputError("name", f'"{found["name"]}" does not go with --watch, which has a pattern')
    if (path := found.pop("secret_file", None)) is not None:
        found["secret"] = read_secret(path)
    if pattern is None:
        api.attach_link(found.pop("name"), **found)
        return
    with _until_told() as stop:
        api.watch_links(
            pattern, report=lambda change: _print(change, options), stop=stop, detach=detach, options=found
        )


@contextlib.contextmanager
def _until_told() -> Iterator[int]:
    """A descriptor that can be read from once a signal has come that ends the command.

    What is being done then is brought to its end.
    """
    there, here = os.pipe()
    os.set_blocking(here, False)

    def arrived(*_: Any) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(here, b".")

    old = {
        signum: signal.signal(signum, arrived) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield there
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)
        os.close(there)
        os.close(here)


def _print(change: Change, options: Options) -> None:
    """A line for each change; what was refused goes to standard error."""
    if options.json:
        import json

        print(json.dumps(fields(change), separators=(",", ":")), flush=True)
    elif change.what == "refused":
        print(f"xmasq: {change.device}: {one_line(change.text)}", file=sys.stderr, flush=True)
    else:
        print(f"{change.device}: {change.what}", flush=True)


#: An object that is its own command.
COMMANDS = (Command("", attach, changes=True),)
