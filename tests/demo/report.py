# SPDX-License-Identifier: Apache-2.0
"""Words, columns and bars for what was seen and measured."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.vxlan import VXLAN

from tests.lab import xmasq
from tests.lab.overlay import Kind
from xmasq_link import _wire
from xmasq_link.dissect import XmasqControl, key_of

from .checks import Check
from .measure import BIG_PING, PINGS, SECONDS, Fit, Runs
from .stage import LINK, Network
from .story import Seen, Share, Story, data_size
from .terminal import Screen, bar

_ROWS = 16
_BAR = 46


def picture(screen: Screen, network: Network) -> None:
    """What was built."""
    one, two = network.hosts
    a, b = network.a.address, network.b.address
    screen.line()
    title = screen.paint("container traffic between hosts, with no added bytes", "strong")
    screen.line(f"  {screen.paint('xmasq', 'title')}  {title}")
    screen.lines(
        f"""
   container A                                                              container B
   {a:<40}{b:>44}
        │                                                                        │
  ┌─────┴────────────── host 1 ──┐                      ┌── host 2 ──────────────┴─────┐
  │ routing ──► {LINK} ──────► eth0 ├────── underlay ──────┤ eth0 ──────► {LINK} ──► routing │
  │           encodes  {one.address:>9} │       MTU {one.mtu:<4}       │ {two.address:<9}  decodes           │
  └──────────────────────────────┘                      └──────────────────────────────┘

"""
    )
    note = (
        "Network namespaces of this machine, built three times: the link is an xmasq link, or a",
        "vxlan one, or there is none and the underlay has routes to the containers (native).",
    )
    for line in note:
        screen.line(f"  {screen.paint(line, 'faint')}")


def first_packets(screen: Screen, story: Story) -> None:
    """The beginning of the connection, packet by packet, until both directions are encoded."""
    screen.section("The first packets of a new connection", "captured on the underlay")
    starts = {story.seen.index(one) for way in (True, False) if (one := story.first_encoded(way))}
    shown = 0
    for row, ((kind, forward, what), group) in enumerate(
        groupby(story.seen, lambda one: (one.kind, one.forward, _what(one)))
    ):
        if shown > max(starts, default=0) or row == _ROWS:
            break
        some = list(group)
        way = "host 1 ──► host 2" if forward else "host 1 ◄── host 2"
        label = f"{'VXLAN' if kind == 'fallback' else kind:<9}"
        text = f"{len(some)} x {what}" if len(some) > 1 else what
        start = not starts.isdisjoint(range(shown, shown + len(some)))
        remark = screen.paint(_remark(some[0], story, first=not shown, start=start), "faint")
        screen.line(f"  {some[0].ms:7.2f} ms   {way}   {screen.paint(label, kind)}{text:<17}{remark}")
        shown += len(some)
    rest = [one for one in story.seen[shown:] if one.kind != "control"]
    encoded = sum(one.kind == "encoded" for one in rest)
    screen.line(f"           …   {encoded:,} of the {len(rest):,} packets that follow are encoded, too")


def _what(one: Seen) -> str:
    """A packet in a few words: the type of a control packet, or what TCP does with it."""
    if one.kind == "control":
        return _wire.TYPES[one.packet[XmasqControl].type]
    if one.inner is None:
        return str(one.packet.summary())
    size = data_size(one.inner)
    flags = one.inner[TCP].flags
    names = [name for flag, name in (("S", "SYN"), ("F", "FIN"), ("R", "RST")) if flag in flags]
    if size:
        names.append(f"{size} bytes")
    elif "A" in flags:
        names.append("ACK")
    return " ".join(names)


def _remark(one: Seen, story: Story, *, first: bool, start: bool) -> str:
    if one.kind == "control":
        control = one.packet[XmasqControl]
        flow = "A → B" if control.sip == story.sent.src else "B → A"
        return {
            _wire.OFFER: f"key {control.key} for {flow}?",
            _wire.ACCEPT: f"yes, key {control.key}",
            _wire.CONFIRM: f"key {control.key} is {flow} for {control.lease_ms / 1000:g} s",
        }[control.type]
    if first:
        return "no key yet: the fallback"
    if start:
        flow = "A → B" if one.forward else "B → A"
        return f"{flow}, from packet {story.encoded_from(one.forward)} on"
    return ""


def encoded_packet(screen: Screen, story: Story) -> None:
    """The same packet in three places: field by field, and its IPv4 header byte by byte."""
    size = data_size(story.wire)
    screen.section("An encoded packet", f"{size} bytes of data from A to B, captured in three places")
    screen.line("  " + screen.paint(f"{'':<18}{'A sent':<23}{'on the wire':<23}B received", "strong"))
    for name, *values in _fields(story):
        row = f"  {name:<16}"
        for before, value in zip([values[0], *values], values, strict=False):
            changed = value != before
            cell = screen.paint(f"{value:<21}", "strong" if changed else "faint")
            row += f"{'►' if changed else ' '} {cell}"
        screen.line(row)
    sent, wire = bytes(story.sent)[:20], bytes(story.wire)[:20]
    screen.line()
    for name, header, other in (("A sent", sent, wire), ("on the wire", wire, sent)):
        pairs = list(zip(header, other, strict=True))
        cells = (screen.paint(f"{one:02x}", "strong" if one != two else "faint") for one, two in pairs)
        screen.line(f"  {name:<16}  {' '.join(cells)}")
    marks = ("▔▔" if one != two else "  " for one, two in zip(sent, wire, strict=True))
    screen.line(f"  {'IPv4 header':<16}  {' '.join(marks)}")
    screen.line()
    for line in (
        "Behind this header only the TCP checksum differs: it has to be right on the wire, too.",
        "B gets what A sent, but for TTL, and the identification, which means nothing under DF.",
    ):
        screen.line(f"  {screen.paint(line, 'faint')}")


def _fields(story: Story) -> Iterator[tuple[str, ...]]:
    places = (story.sent, story.wire, story.received)

    def row(name: str, values: list[Any], on_the_wire: str = "") -> tuple[str, ...]:
        sent, wire, received = (str(value) for value in values)
        return name, sent, wire + on_the_wire, received

    yield row("source", [p.src for p in places])
    yield row("destination", [p.dst for p in places])
    yield row("DSCP", [p.tos >> 2 for p in places], "  MARK")
    yield row("identification", [p.id for p in places], f"  key {key_of(story.wire)}")
    yield row("TTL", [p.ttl for p in places])
    yield row("length", [p.len for p in places])
    yield row("TCP checksum", [f"{p[TCP].chksum:04x}" for p in places])
    yield row("TCP ports", [f"{p[TCP].sport} → {p[TCP].dport}" for p in places])


def other_packets(screen: Screen, story: Story) -> None:
    """A fallback packet and a control packet, layer by layer."""
    seen = story.first("fallback")
    outer, frame, inner = seen.packet[IP], seen.packet[VXLAN].payload, seen.inner
    screen.section("A fallback packet", f"{_what(seen)}: VXLAN, {outer.len - inner.len} bytes longer")
    _layers(
        screen,
        "fallback",
        [
            ("IPv4", 20, f"{outer.src} → {outer.dst}, DSCP {outer.tos >> 2} says: I speak xmasq"),
            ("UDP", 8, f"{outer[UDP].sport} → {outer[UDP].dport}"),
            ("VXLAN", 8, f"VNI {seen.packet[VXLAN].vni}"),
            ("Ethernet", 14, f"{frame.src} → {frame.dst}"),
        ],
    )
    _layers(screen, "strong", [("A's packet", inner.len, f"{inner.src} → {inner.dst}, {_what(seen)}")])

    seen = story.offer()
    outer, control = seen.packet[IP], seen.packet[XmasqControl]
    screen.section("A control packet", f"{_what(seen)}, made by the datapath in the kernel")
    _layers(
        screen,
        "control",
        [
            ("IPv4", 20, f"{outer.src} → {outer.dst}, DSCP {outer.tos >> 2}, identification {outer.id}"),
            ("UDP", 8, f"{outer[UDP].sport} → {outer[UDP].dport}"),
            ("VXLAN", 8, "flag I clear: whoever speaks only VXLAN drops it"),
            (
                "xmasq",
                _wire.CTL_LEN - 8,
                f"version {control.version}, {_what(seen)}, VNI {control.vni}, key {control.key}, "
                f"lease {control.lease_ms / 1000:g} s, nonces",
            ),
            ("", 0, f"the flow: {control.sip} → {control.dip}, DSCP {control.dscp},"),
            ("", 0, f"          {control.smac} → {control.dmac}"),
        ],
    )


def _layers(screen: Screen, style: str, rows: list[tuple[str, int, str]]) -> None:
    for name, size, text in rows:
        screen.line(f"  {screen.paint(f'{name:<12}', style)}{size or '':>4}   {text}")


def share(screen: Screen, story: Story) -> None:
    """How much was encoded, from two sources."""
    size = f"{story.transfer.size / 1e6:g} MB"
    screen.section("How much is encoded", f"of a TCP transfer of {size}, which arrived unchanged")

    def line(source: str, one: Share) -> None:
        percent = screen.paint(f"{one.percent:8.2f} %", "good" if one.percent >= 99 else "bad")
        screen.line(f"  {source:<30}{one.encoded:>6,} of {one.total:>6,} packets {percent}")

    line(f"the hosts' counters of {LINK}", story.counted)
    line("the capture of the underlay", story.captured)
    controls = sum(one.kind == "control" for one in story.seen)
    screen.line(f"  {'control packets on top':<30}{controls:>6,}")


def tables(screen: Screen, network: Network) -> None:
    """Flows and keys, as the command line shows them."""
    screen.section("Flows and keys", "found in the kernel: no daemon, no database")
    network.a.ping(network.b, count=2, df=True)  # on a busy machine the lease may be over by now
    for name, host, table in (("host1", network.hosts[0], "flow"), ("host2", network.hosts[1], "key")):
        screen.line(f"  {screen.paint(f'{name}#', 'faint')} {screen.paint(f'xmasq {table} show', 'strong')}")
        for line in xmasq(host, table, "show").stdout.splitlines():
            # A line of the command is longer than one of the report.
            screen.lines("    " + " ".join(line.split()).replace(" peer ", "\n        peer "))


def sizes(screen: Screen, fits: Mapping[Kind, Fit], rtts: Mapping[Kind, float]) -> None:
    """What fits, and what is added."""
    screen.section("What the containers get")
    screen.line("  " + " " * 36 + "".join(screen.paint(f"{kind:>12}", kind) for kind in fits))
    rows: list[tuple[str, list[str]]] = [
        ("MTU", [str(one.mtu) for one in fits.values()]),
        (
            f"ping -M do -s {BIG_PING} (1500 bytes)",
            ["passes" if one.big else "too long" for one in fits.values()],
        ),
        ("bytes added to each packet", [str(one.added) for one in fits.values()]),
        (f"round trip, median of {PINGS} pings", [f"{rtts[kind]:.3f} ms" for kind in fits]),
    ]
    for name, cells in rows:
        screen.line(f"  {name:<36}" + "".join(f"{cell:>12}" for cell in cells))
    if fits["xmasq"].in_pieces:
        note = "Answers that long have DF clear: through xmasq they take the fallback, in fragments."
        screen.line(f"  {screen.paint(note, 'faint')}")


def speed(screen: Screen, results: Mapping[bool, Mapping[Kind, Runs]]) -> None:
    """Throughput side by side."""
    rounds = len(results[True]["xmasq"].values)
    what = f"median of {rounds} x {SECONDS} s (and range)" if rounds > 1 else f"one run of {SECONDS} s"
    screen.section("Throughput of one TCP stream", f"Gbit/s, {what}")
    full = max(runs.median for kinds in results.values() for runs in kinds.values())
    for udp_tunnel, kinds in results.items():
        note = (
            "" if udp_tunnel else screen.paint(": the CPU segments what goes through a UDP tunnel", "faint")
        )
        screen.line(f"  NICs {'with' if udp_tunnel else 'without'} UDP tunnel offload{note}")
        for kind, runs in kinds.items():
            drawn = screen.paint(f"{bar(runs.median, full, _BAR):<{_BAR}}", kind)
            spread = f"({min(runs.values):.1f} to {max(runs.values):.1f})" if rounds > 1 else ""
            screen.line(f"    {kind:<7} {drawn} {runs.median:5.1f}  {screen.paint(spread, 'faint')}")
    without = results[False]
    to_native = 100 * without["xmasq"].median / without["native"].median
    to_vxlan = without["xmasq"].median / without["vxlan"].median
    screen.line()
    screen.line(
        f"  Without that offload, xmasq reaches {to_native:.0f} % of plain routing, "
        f"and {to_vxlan:.1f} times vxlan."
    )
    caveat = (
        f"One machine with {os.cpu_count()} CPUs plays all hosts, and may be busy: compare, do not quote."
    )
    screen.line(f"  {screen.paint(caveat, 'faint')}")


def verdict(screen: Screen, checks: list[Check]) -> None:
    """What was checked."""
    screen.section("Checked")
    for check in checks:
        mark = screen.paint("✓", "good") if check.passed else screen.paint("✗", "bad")
        screen.line(f"  {mark} {check.claim}")
