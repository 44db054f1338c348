# SPDX-License-Identifier: Apache-2.0
"""The same two hosts and two containers, built once for each kind of network."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from tests.lab import Container, Host, Lab, LabError, Overlay, routed_overlay
from tests.lab.overlay import Kind
from xmasq_link import _hold
from xmasq_link._netns import cookie

from .terminal import Screen

KINDS: tuple[Kind, ...] = ("native", "xmasq", "vxlan")
TOOLS = ("bridge", "ethtool", "ip", "iperf3", "nft", "nsenter", "ping", "tcpdump")
LINK = "xm0"

_ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM}


@dataclass(frozen=True)
class Network:
    """Two hosts, each with a container: ``a`` on the first, ``b`` on the second."""

    kind: Kind
    overlay: Overlay

    @property
    def hosts(self) -> list[Host]:
        """Host 1 and host 2."""
        return self.overlay.hosts

    @property
    def a(self) -> Container:
        """The container on host 1."""
        return self.overlay.containers[0]

    @property
    def b(self) -> Container:
        """The container on host 2."""
        return self.overlay.containers[1]

    def offloads(self, on: bool) -> None:
        """Lets NICs segment and compute checksums, or has it all done before the wire.

        Receivers merge segments only when it is on.
        """
        for host in self.hosts:
            host.offloads(tso=on, gso=on, tx=on, gro=on)
        for container in (self.a, self.b):
            state = "on" if on else "off"
            words = [word for name in ("tx", "gso", "tso") for word in (name, state)]
            container.run(["ethtool", "-K", "eth0", *words])


class Stage:
    """Builds the networks, and takes everything away again with ``close``."""

    def __init__(self, screen: Screen) -> None:
        self.networks: dict[Kind, Network] = {}
        self._screen = screen
        self._records: list[Path] = []
        self._names: list[str] = []
        self._stack = contextlib.ExitStack()

    def build(self) -> None:
        """Makes all networks. Raises :class:`LabError`."""
        missing = [tool for tool in TOOLS if shutil.which(tool) is None]
        if missing:
            raise LabError(f'"make setup" installs what is missing: {", ".join(missing)}')
        self._stack.callback(self._forget)
        self._wait_for_uptime()
        for kind in KINDS:
            self._screen.progress("building two hosts and two containers", f"for {kind}")
            lab = self._stack.enter_context(Lab())
            self._names.append(lab.prefix)
            hosts = lab.hosts(2)
            if kind == "xmasq":
                self._records = [_hold.RUN / host.inside(cookie) for host in hosts]
            network = Network(kind, routed_overlay(hosts, kind, link=LINK))
            # The hosts know each other before the first packet is looked at.
            if hosts[0].ping(hosts[1], count=1).received != 1:
                raise LabError("the two hosts do not reach each other")
            self.networks[kind] = network

    def close(self) -> None:
        """Removes everything; no signal interrupts that."""
        old = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        try:
            self._stack.close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)

    def leftovers(self) -> list[str]:
        """Namespaces that should be gone and are not."""
        return [path.name for name in self._names for path in Path("/run/netns").glob(f"{name}-*")]

    def _wait_for_uptime(self) -> None:
        # A machine that has just started gives no keys: its peers may still hold those of before.
        end = _hold.LEASE_MAX_MS + _hold.guard_ms(_hold.LEASE_MAX_MS)
        while (left := end - _hold.now_ns() // 1_000_000) > 0:
            self._screen.progress(
                "this machine has just started, and keys are given only after a while",
                f"{left / 1000:.0f} s",
            )
            time.sleep(min(1.0, left / 1000))

    def _forget(self) -> None:
        # The hold-down's records of namespaces that do not exist any more.
        for record in self._records:
            record.unlink(missing_ok=True)
