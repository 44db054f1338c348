# SPDX-License-Identifier: Apache-2.0
"""60,000 flows on a host: what a packet costs then, and how long it takes to list them."""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.lab import Container, Host, Lab, LabError, xmasq
from tests.lab.process import ROOT

from . import cpu, programs, spray

FLOWS = 60_000
#: A VTEP pair has 8,191 keys at most, so there are several: host 2 has an address for each.
PAIRS = 8
_NETS = [f"10.{16 + i}" for i in range(PAIRS)]


@dataclass(frozen=True)
class Listing:
    """How long a command took to print so many lines, and until the first, in seconds."""

    lines: int
    first: float
    total: float


@dataclass(frozen=True)
class ManyFlows:
    """ns per run of the programs, and packets a second, for one flow and for all."""

    flows: int
    one: dict[str, float]
    many: dict[str, float]
    rate_one: float
    rate_many: float
    encoded: float
    shown: Listing


def _lladdr(host: int, pair: int) -> str:
    return f"02:00:00:00:{pair:02x}:{host:02x}"


def _join(one: Host, two: Host) -> tuple[Container, Container]:
    """PAIRS links between two hosts, each the way to one network; the sender, and the sink for all."""
    client = one.add_container("c", "198.51.100.18")
    sink = two.add_container("c", "198.51.100.34")
    sink.ip("route add local 10.0.0.0/8 dev lo")
    for i, net in enumerate(_NETS):
        far, via = f"192.0.2.{101 + i}", f"169.254.2.{i + 1}"
        two.ip(f"addr add {far}/24 dev eth0")
        for host, local in ((one, one.address), (two, far)):
            words = f"id {42 + i} local {local} dev eth0 key-bits 3 lease 60 nolearning".split()
            xmasq(host, "link", "add", f"xm{i}", "address", _lladdr(host.number, i), "type", "xmasq", *words)
        for host, peer, remote in ((one, two, far), (two, one, one.address)):
            mac = _lladdr(peer.number, i)
            host.ip(f"link set xm{i} up", f"neigh add {via} lladdr {mac} dev xm{i} nud permanent")
            host.bridge(f"fdb append {mac} dev xm{i} dst {remote} self permanent")
        one.ip(f"route add {net}.0.0/16 via {via} dev xm{i} onlink")
        two.ip(f"route add {net}.0.0/16 via {sink.address} dev {sink.veth}")
    two.ip(f"route add {client.address}/32 via 169.254.2.1 dev xm0 onlink")
    return client, sink


def listing(cmd: list[str], timeout: float = 60.0) -> Listing:
    """Runs a command and times its lines."""
    begin = time.monotonic()
    with subprocess.Popen(cmd, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        first = time.monotonic() - begin
        lines = 1 + sum(1 for _ in process.stdout)
        total = time.monotonic() - begin
        if process.wait(timeout):
            raise LabError(f"exit code {process.returncode}: {' '.join(cmd)}")
    return Listing(lines, first, total)


def _spray(client: Container, flows: int, passes: int, rate: int = 0) -> float:
    words = [",".join(_NETS), str(FLOWS), str(flows), str(passes), str(rate)]
    cmd = [sys.executable, "-m", "tests.perf.spray", *words]
    return float(client.run(cpu.pin(cpu.ends()[0], cmd), timeout=120).stdout)


def measure(rounds: int, say: Callable[[str], None]) -> ManyFlows:
    """Makes the flows by real negotiations, then measures one flow and all of them in turns."""
    costs: dict[int, list[dict[str, float]]] = {1: [], FLOWS: []}
    rates: dict[int, list[float]] = {1: [], FLOWS: []}
    with contextlib.ExitStack() as stack:
        say("60,000 flows: building")
        lab = stack.enter_context(Lab())
        one, two = lab.hosts(2)
        client, sink = _join(one, two)
        # Nobody reads: a packet's way ends at the full socket.
        listener = stack.enter_context(sink.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("0.0.0.0", spray.PORT))
        say("60,000 flows: negotiating")
        begin = time.monotonic()
        # The first pass asks, the second is the first renewal, a second later.
        _spray(client, FLOWS, 2, 15_000)
        while (left := begin + 8 - time.monotonic()) > 0:
            time.sleep(left)
        _spray(client, FLOWS, 2, 15_000)
        first, second = programs.find(one), programs.find(two)
        fds = {"encode": first["xmasq_encode"], "decode": second["xmasq_ingress"]}
        for fd in (*first.values(), *second.values()):
            stack.callback(os.close, fd)
        fds[programs.EMPTY] = stack.enter_context(programs.attached_empty(one, client.veth))
        stack.enter_context(programs.statistics_on())
        before = _stats(one)
        for number in range(rounds):
            for flows in (1, FLOWS):
                say(f"60,000 flows: round {number + 1} of {rounds}")
                costs[flows].append(
                    programs.costs(fds, lambda n=flows: rates[n].append(_spray(client, n, 1)))  # type: ignore[misc]
                )
        after = _stats(one)
        say("60,000 flows: listing")
        shown = listing([sys.executable, "-m", "xmasq_link", "-n", one.name, "flow", "show"])
    encoded, fell_back = (after[name] - before[name] for name in ("encoded", "fallback"))
    medians = {
        flows: {name: statistics.median(c[name] for c in of) for name in of[0]} for flows, of in costs.items()
    }
    return ManyFlows(
        FLOWS,
        medians[1],
        medians[FLOWS],
        statistics.median(rates[1]),
        statistics.median(rates[FLOWS]),
        encoded / (encoded + fell_back),
        shown,
    )


def _stats(host: Host) -> dict[str, int]:
    import xmasq_link

    total = {"encoded": 0, "fallback": 0}
    for link in host.inside(xmasq_link.links):
        for name in total:
            total[name] += link.stats[name]
    return total
