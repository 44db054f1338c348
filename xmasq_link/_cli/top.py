# SPDX-License-Identifier: Apache-2.0
"""xmasq top: links, peers and flows by how much goes through them."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import xmasq_link as api

from .._errors import InputError, XmasqError
from .command import Command
from .interrupt import Interrupted
from .output import Options
from .words import Word, number, parse, text

if TYPE_CHECKING:
    from xmasq_link import Rates, Traffic


def _interval(name: str, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = -1
    if not 0.1 <= value <= 3600:
        raise InputError(name, f'"{word}" is not allowed; allowed is 0.1 to 3600 seconds')
    return value


GRAMMAR = (
    Word("link", "link", text, "NAME (of an xmasq link)", also=("dev",)),
    Word("-b", "batch", value=True),
    Word("interval", "interval", _interval, "SECONDS (0.1 to 3600)", also=("-d",)),
    Word("count", "count", number(1, 1_000_000_000), "NUMBER (of looks)", also=("-n",)),
    Word("flows", "rows", number(0, 65_536), "NUMBER (of flows that are shown)"),
)
USAGE = """\
Usage: xmasq top [ link NAME ] [ -b ] [ interval SECONDS ] [ count NUMBER ]
                 [ flows NUMBER ]

Where: -b := lines instead of a screen, as without a terminal and with -j
       interval := 0.1 to 3600 seconds (default 2)
       count := end after so many looks
       flows := how many flows are shown (default 20 in lines; on a screen,
                what fits)

On the screen, Ctrl-C ends it.
"""
_UNITS = ("", "k", "M", "G", "T")
_ROWS = 20


def top(words: Sequence[str], options: Options) -> None:
    """xmasq top"""
    found = parse(words, GRAMMAR, "top")
    interval, count, rows = found.get("interval", 2.0), found.get("count"), found.get("rows")
    batch = found.get("batch") or options.json or not sys.stdout.isatty()
    with api.meter(found.get("link")) as meter:
        looks = _looks(meter, interval, count)
        if batch:
            for rates in looks:
                print(_as_json(rates) if options.json else as_text(rates, rows), flush=True)
            return
        try:
            _screen(looks, rows)
        except Interrupted as e:
            e.handled = True  # that is how one leaves a screen


def _looks(meter: Any, interval: float, count: int | None) -> Iterator[Rates]:
    while count is None or count > 0:
        time.sleep(interval)
        yield meter.read()
        count = None if count is None else count - 1


def _scaled(value: float, unit: str) -> str:
    """A number in three digits and a unit."""
    for prefix in _UNITS:
        if value < 1000 or prefix == _UNITS[-1]:
            break
        value /= 1000
    digits = f"{value:.0f}" if not prefix or value >= 99.95 else f"{value:.3g}"
    return f"{digits} {prefix}{unit}"


def _bits(traffic: Traffic) -> str:
    return _scaled(traffic.bytes * 8, "bit/s")


def _packets(traffic: Traffic) -> str:
    return _scaled(traffic.packets, "pps")


def _tables(rates: Rates, rows: int) -> Iterator[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Heads and rows: links, peers, flows."""
    yield (
        ("LINK", "RX", "", "FAST", "TX", "", "FAST"),
        [
            (
                x.link,
                _bits(x.rx_fast + x.rx_fallback),
                _packets(x.rx_fast + x.rx_fallback),
                _share(x.rx_fast, x.rx_fallback),
                _bits(x.tx_fast + x.tx_fallback),
                _packets(x.tx_fast + x.tx_fallback),
                _share(x.tx_fast, x.tx_fallback),
            )
            for x in rates.links
        ],
    )
    by_peer: dict[str, dict[str, Traffic]] = {}
    for f in rates.flows:
        one = by_peer.setdefault(f.peer or "(fallback)", {})
        one[f.direction] = one[f.direction] + f.rate if f.direction in one else f.rate
    none = dataclasses.replace(rates.flows[0].rate, packets=0, bytes=0) if rates.flows else None
    peers: list[tuple[str, ...]] = []
    for peer, sides in sorted(by_peer.items(), key=lambda item: -sum(t.bytes for t in item[1].values())):
        assert none is not None  # there are flows
        rx, tx = sides.get("rx", none), sides.get("tx", none)
        peers.append((peer, _bits(rx), _packets(rx), _bits(tx), _packets(tx)))
    yield ("PEER", "RX", "", "TX", ""), peers
    yield (
        ("FLOW", "", "LINK", "PEER", "RATE", ""),
        [
            (
                f"{f.source} > {f.destination}",
                f.direction,
                f.link,
                f.peer or "",
                _bits(f.rate),
                _packets(f.rate),
            )
            for f in rates.flows[:rows]
        ],
    )


def _share(fast: Traffic, slow: Traffic) -> str:
    """How much of the packets takes the fast path."""
    packets = fast.packets + slow.packets
    return f"{100 * fast.packets / packets:.0f}%" if packets else "-"


def as_text(rates: Rates, rows: int | None) -> str:
    """A look as lines in columns."""
    lines = []
    for head, body in _tables(rates, _ROWS if rows is None else rows):
        if body:
            widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]
            for row in (head, *body):
                lines.append("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip())
            lines.append("")
    return "\n".join(lines) if lines else "no link\n"


def _as_json(rates: Rates) -> str:
    return json.dumps(dataclasses.asdict(rates), separators=(",", ":"))


def _screen(looks: Iterator[Rates], rows: int | None) -> None:
    try:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.table import Table
    except ImportError as e:
        text = "the Python package rich is missing: pip install xmasq[top], or use -b"
        raise XmasqError(text) from e

    console = Console()

    def screen(rates: Rates | None) -> Group:
        if rates is None:
            return Group("measuring ...")
        room = max(1, console.height - len(rates.links) - 10) if rows is None else rows
        tables = []
        for head, body in _tables(rates, room):
            if not body:
                continue
            table = Table(box=None, pad_edge=False, expand=True)
            for name in head:
                number = name not in ("LINK", "PEER", "FLOW")
                table.add_column(name, justify="right" if number else "left", no_wrap=True)
            for row in body:
                table.add_row(*row)
            tables.append(table)
        return Group(*tables) if tables else Group("no link")

    with Live(screen(None), console=console, screen=True, auto_refresh=False) as live:
        for rates in looks:
            live.update(screen(rates), refresh=True)


#: An object that is its own command.
COMMANDS = (Command("", top, changes=True),)
