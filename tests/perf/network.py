# SPDX-License-Identifier: Apache-2.0
"""The candidates: two hosts with a container each, joined in different ways."""

from __future__ import annotations

import contextlib
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab import Host, Lab, LabError, routed_overlay
from tests.lab.namespace import Namespace

from . import cpu, tunnels

#: Always measured. "host" is from host to host, past all containers, in the network of "plain".
ALWAYS = ("host", "plain", "xmasq", "vxlan")


@dataclass
class Network:
    """A client and a server, and the hosts that they are on."""

    candidate: str
    hosts: list[Host]
    client: Namespace
    server: Namespace
    _running: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def serve(self, name: str, cmd: list[str], port: int, *, udp: bool = False) -> None:
        """Sees to it that a server runs at the server's end, on its CPU, and listens on `port`."""
        running = self._running.get(name)
        if running is not None:
            if running.poll() is not None:
                raise LabError(f"{name} has ended by itself")
            return
        self._running[name] = self.server.popen(
            cpu.pin(cpu.ends()[1], cmd), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if udp:
            _wait_for_udp(self.server, port)
        else:
            self.server.wait_for_port(port)

    def load(self, cmd: list[str], *, timeout: float = 30.0) -> str:
        """Runs a client on its CPU, and returns what it printed."""
        return self.client.run(cpu.pin(cpu.ends()[0], cmd), timeout=timeout).stdout


def _wait_for_udp(where: Namespace, port: int) -> None:
    end = time.monotonic() + 5
    while f":{port:04X} " not in where.inside(lambda: Path("/proc/thread-self/net/udp").read_text()):
        if time.monotonic() > end:
            raise LabError(f"nothing listens on UDP port {port} in {where.name}")
        time.sleep(0.01)


def candidates() -> tuple[str, ...]:
    """What can be measured on this kernel."""
    return ALWAYS + tuple(tunnels.available())


def build(stack: contextlib.ExitStack, wanted: tuple[str, ...], mtu: int) -> dict[str, Network]:
    """Makes the networks of these candidates; they go when the stack closes. Raises LabError."""
    found: dict[str, Network] = {}
    for candidate in wanted:
        if candidate == "host" and "plain" in wanted:
            continue
        lab = stack.enter_context(Lab(mtu=mtu))
        hosts = lab.hosts(2)
        if candidate in ("host", "plain"):
            ends = routed_overlay(hosts, "native").containers
        elif candidate == "xmasq":
            ends = routed_overlay(hosts, "xmasq").containers
        elif candidate == "vxlan":
            ends = routed_overlay(hosts, "vxlan").containers
        else:
            ends = tunnels.join(hosts, candidate)
        if candidate != "host":
            found[candidate] = Network(candidate, hosts, ends[0], ends[1])
        if candidate in ("host", "plain") and "host" in wanted:
            found["host"] = Network("host", hosts, hosts[0], hosts[1])
    for network in found.values():
        # Also teaches the hosts and containers each other's link layer addresses.
        if network.client.ping(network.server, count=3, df=True).received == 0:
            raise LabError(f"{network.candidate}: no ping gets through")
    return {name: found[name] for name in wanted}
