# SPDX-License-Identifier: Apache-2.0
"""Which CPU does what, and for how long it is busy."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def ends() -> tuple[int, int]:
    """The CPUs that the client and the server are pinned to; the same one if there is only one."""
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[0], cpus[1] if len(cpus) > 1 else cpus[0]


def pin(cpu: int, cmd: list[str]) -> list[str]:
    """The command, kept on one CPU."""
    return ["taskset", "-c", str(cpu), *cmd]


def _idle() -> dict[int, float]:
    """Seconds that each CPU had nothing to do, or was taken away by the hypervisor (proc(5), /proc/stat)."""
    found = {}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name != "cpu":
            ticks = [int(field) for field in fields]
            found[int(name[3:])] = (ticks[3] + ticks[4] + ticks[7]) / _TICKS
    return found


@dataclass(frozen=True)
class Busy:
    """Seconds of CPU time on the client's and on the server's CPU."""

    client: float
    server: float

    @property
    def both(self) -> float:
        """All of it."""
        return self.client + self.server


class Meter:
    """Measures from its making to `stop`. In steps of 10 ms, as the kernel has it."""

    def __init__(self) -> None:
        self._idle, self._begin = _idle(), time.monotonic()

    def stop(self) -> Busy:
        """What the two CPUs have worked."""
        idle, elapsed = _idle(), time.monotonic() - self._begin
        client, server = ends()
        busy = {cpu: max(0.0, elapsed - (idle[cpu] - self._idle[cpu])) for cpu in (client, server)}
        return Busy(busy[client], busy[server] if server != client else 0.0)
