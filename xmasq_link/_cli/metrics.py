# SPDX-License-Identifier: Apache-2.0
"""xmasq metrics: for Prometheus, as a page or over HTTP."""

from __future__ import annotations

import ipaddress
import re
import signal
import sys
from collections.abc import Sequence

import xmasq_link as api

from .._errors import InputError
from .command import Command
from .output import Options, show
from .words import Word, parse

USAGE = """\
Usage: xmasq metrics [ --listen [ADDR]:PORT ]

Where: ADDR := an IP address of this host, in brackets if it is IPv6;
               without it, all IPv4 addresses
       PORT := 1 to 65535
"""


def _endpoint(name: str, word: str) -> tuple[str, int]:
    match = re.fullmatch(r"(\[[^\]]*\]|[^:]*):([0-9]{1,5})", word)
    if not match or not 1 <= int(match[2]) <= 65535:
        raise InputError(
            name, f'"{word}" is no address and port; allowed is [ADDR]:PORT, as in 127.0.0.1:9469'
        )
    address = match[1].strip("[]")
    if address:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise InputError(name, f'"{address}" is not an IP address') from None
    return address, int(match[2])


GRAMMAR = (Word("--listen", "listen", _endpoint, "[ADDR]:PORT", also=("-listen", "listen")),)


def metrics(words: Sequence[str], options: Options) -> None:
    """xmasq metrics"""
    found = parse(words, GRAMMAR, "metrics")
    if "listen" not in found:
        show(
            api.metrics(),
            str,
            options,
            lambda metric: {
                "name": metric.name,
                "type": metric.kind,
                "help": metric.help,
                "samples": [{"labels": s.labels, "value": s.value} for s in metric.samples],
            },
        )
        return
    address, port = found["listen"]
    end = api.serve_metrics(address, port)
    try:
        print(f"listening on {address or '*'}:{port}", file=sys.stderr, flush=True)
        while True:
            signal.pause()
    finally:
        end()


#: An object that is its own command.
COMMANDS = (Command("", metrics),)
