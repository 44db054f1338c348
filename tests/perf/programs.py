# SPDX-License-Identifier: Apache-2.0
"""What each run of the datapath's programs costs, by the kernel's own statistics.

The kernel reads a clock before and after each run (kernel.bpf_stats_enabled), and the figure has that in
it. An empty program, measured beside the others on the same packets, shows how much that is.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pyroute2 import IPRoute

from kmod_ebpf import bpf, loader
from tests.lab import Host
from xmasq_link import _datapath

from .network import Network, build
from .packets import PAYLOAD, PORT

EMPTY = "empty"
_MOV_R0, _EXIT = 0xB7, 0x95


@contextlib.contextmanager
def statistics_on() -> Iterator[None]:
    """The kernel counts time and runs of all programs."""
    fd = bpf.enable_stats()
    try:
        yield
    finally:
        os.close(fd)


def empty_program() -> int:
    """A classifier that does nothing: returns its fd."""
    insns = struct.pack("<BBhi", _MOV_R0, 0, 0, -1) + struct.pack("<BBhi", _EXIT, 0, 0, 0)
    return bpf.prog_load("xm_empty", insns)


@contextlib.contextmanager
def attached_empty(host: Host, device: str) -> Iterator[int]:
    """The empty program on the ingress hook of a device."""

    def attach() -> int:
        with IPRoute() as ipr:
            index = ipr.link_lookup(ifname=device)[0]
            if index not in _datapath.clsact_devices(ipr):
                ipr.tc("add", "clsact", index)
            fd = empty_program()
            _datapath.attach(ipr, index, _datapath.INGRESS, "xm_empty", fd)
            return fd

    fd = host.inside(attach)
    try:
        yield fd
    finally:
        os.close(fd)


def find(host: Host) -> dict[str, int]:
    """The programs of a host's datapath: name and descriptor, which the caller closes."""

    def look() -> dict[str, int]:
        with IPRoute() as ipr:
            dp = _datapath.Datapath.find(ipr)
            assert dp is not None
            fds = {name: os.dup(fd) for name, fd in dp.programs.items()}
            dp.close()
            return fds

    return host.inside(look)


def costs(fds: dict[str, int], during: Callable[[], object], least: int = 1000) -> dict[str, float]:
    """ns per run of each program that ran at least so often while `during` was called."""
    before = {name: bpf.prog_info(fd) for name, fd in fds.items()}
    during()
    found = {}
    for name, fd in fds.items():
        after = bpf.prog_info(fd)
        runs = after.run_count - before[name].run_count
        if runs >= least:
            found[name] = (after.run_ns - before[name].run_ns) / runs
    return found


@dataclass(frozen=True)
class Cost:
    """ns per run, medians of the rounds; `net` is without what an empty program takes."""

    raw: float
    net: float
    rounds: tuple[float, ...]


def _flood(network: Network) -> None:
    ends = ["-i", network.server.address, "-p", str(PORT)]
    network.serve("sockperf-udp", ["sockperf", "server", *ends], PORT, udp=True)
    network.load(["sockperf", "throughput", "-m", str(PAYLOAD), "-t", "1", *ends])


def measure(rounds: int, say: Callable[[str], None]) -> dict[str, Cost]:
    """64-byte frames in one UDP flow, the container's own (encode, decode) and the host's (foreign)."""
    values: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        ours = build(stack, ("xmasq",), 1500)["xmasq"]
        one, two = ours.hosts
        foreign = Network("host", ours.hosts, one, two)
        fds = {f"{name} 1": fd for name, fd in find(one).items()}
        fds |= {f"{name} 2": fd for name, fd in find(two).items()}
        for fd in fds.values():
            stack.callback(os.close, fd)
        device = next(iter(one.containers.values())).veth
        fds[EMPTY] = stack.enter_context(attached_empty(one, device))
        stack.enter_context(statistics_on())
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}: programs")
            mine = costs(fds, lambda: _flood(ours))
            other = costs(fds, lambda: _flood(foreign))
            for title, name, table in (
                (EMPTY, EMPTY, mine),
                ("encode", "xmasq_encode 1", mine),
                ("underlay egress, encoded", "xmasq_egress 1", mine),
                ("decode", "xmasq_ingress 2", mine),
                ("link ingress, decoded", "xmasq_arrive 2", mine),
                ("underlay egress, foreign", "xmasq_egress 1", other),
                ("underlay ingress, foreign", "xmasq_ingress 2", other),
            ):
                if name in table:
                    values.setdefault(title, []).append(table[name])
    floor = statistics.median(values[EMPTY])
    return {
        name: Cost(statistics.median(of), statistics.median(of) - floor, tuple(of))
        for name, of in values.items()
    }


def instructions() -> dict[str, tuple[int, int]]:
    """Of each program: BPF instructions as the verifier left them, and bytes of machine code."""
    loaded = loader.load(loader.compile_object())
    try:
        infos = {name: bpf.prog_info(fd) for name, fd in loaded.programs.items()}
        return {name: (info.insns, info.jited) for name, info in infos.items()}
    finally:
        loaded.close()
