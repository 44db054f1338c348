# SPDX-License-Identifier: Apache-2.0
"""The faults: each is a function that makes one in a world, and returns when it is over.

What it returns are the spans of time in which it took the network away, so that vxlan loses, too.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable

from tests.lab import Container, Host

from .middlebox import Rule
from .world import SETTLE, Outcome, Window, World

Fault = Callable[[World], list[Window] | None]

#: xmasq's control packets: DSCP says that they are ours, and the flag I behind the UDP header that they
#: are not VXLAN packets.
CONTROL = "ip dscp 3 udp dport 4789 @th,64,8 & 0x08 == 0"


def loss(percent: float, seconds: float) -> Fault:
    """The underlay loses packets of all hosts."""

    def work(world: World) -> None:
        world.lab.fabric.loss(percent)
        time.sleep(seconds)
        world.lab.fabric.clear()

    return work


def control_loss(percent: float, seconds: float, *, host: int = 0) -> Fault:
    """The underlay loses control packets from one host, and nothing else."""

    def work(world: World) -> None:
        world.lab.fabric.loss(percent, only=CONTROL, host=world.hosts[host])
        time.sleep(seconds)
        world.lab.fabric.clear()

    return work


def bleaching(seconds: float) -> Fault:
    """The underlay begins to set the DSCP of all packets from the first host to 0.

    Encoded packets then look like the hosts' own until their leases end: nobody can bounce them.
    """

    def work(world: World) -> list[Window]:
        begin = time.monotonic()
        world.lab.fabric.dscp_bleach(host=world.hosts[0])
        time.sleep(max(seconds, world.lease + 0.2))
        world.lab.fabric.clear()
        return [(begin, begin + world.lease + SETTLE)]

    return work


class Rewriting:
    """The middlebox begins to give new IDs to some of the encoded packets from the first host.

    No bit of a packet tells that. ``took`` is how many seconds passed until that host's verdict on the
    path, ``rewritten`` and ``encoded`` how many packets until ``seconds`` after it, ``after`` how many of
    them after it.
    """

    #: So many may go astray before two have met a key that is not in use, if 400 of 1,023 are: more is less
    #: likely than one in ten thousand.
    ASTRAY_MAX = 15

    def __init__(self, percent: float, seconds: float) -> None:
        self.percent = percent
        self.seconds = seconds
        self.took: float | None = None
        self.until = 0.0
        self.rewritten = self.encoded = self.after = 0

    def __call__(self, world: World) -> None:
        """The fault."""
        host = world.hosts[0]
        before = world.counters()["encoded"]
        world.box.rules(Rule("rewrite-id", self.percent, only=("encoded",), direction="from"))
        self.took = world.wait(lambda: "path" in world.verdicts(host).values(), 10)
        self.until = time.monotonic()
        middle = world.counters()["encoded"]
        time.sleep(self.seconds)
        (self.rewritten,) = world.box.counts()
        self.after = world.counters()["encoded"] - middle
        self.encoded = middle - before + self.after

    def problems(self, outcome: Outcome) -> list[str]:
        """What must not be, for a run of flows from the first host only."""
        x, found = outcome.x, []
        if self.took is None:
            return ["no verdict on the path within 10 s"]
        if self.took > 2:
            found.append(f"the verdict on the path took {self.took:.1f} s")
        if self.after:
            found.append(f"{self.after} encoded after the verdict")
        if x.misdelivered > self.ASTRAY_MAX or any(at > self.until for at, _ in x.astray):
            found.append(f"{x.misdelivered} astray, the last one {x.astray[-1][0] - self.until:.1f} s late")
        # What was rewritten and not astray was bounced and could not be restored. No other may be lost.
        if x.lost > self.rewritten:
            found.append(f"{x.lost} lost, and only {self.rewritten} rewritten")
        if outcome.counters["path_off"] != 1 or outcome.counters["stray"] < 2:
            found.append(f"path_off {outcome.counters['path_off']}, stray {outcome.counters['stray']}")
        return found


def boxed(seconds: float, *rules: Rule) -> Fault:
    """The middlebox before the first host has these rules. It must stand there already."""

    def work(world: World) -> None:
        world.box.rules(*rules)
        time.sleep(seconds)
        world.box.rules()

    return work


def restarts(times: int, pause: float, *choices: Iterable[int], rough: bool = False) -> Fault:
    """Links of hosts are deleted and made again, so often; ``choices``, in turn, say which hosts'.

    ``rough``: without xmasq's knowledge.
    """

    def work(world: World) -> list[Window]:
        windows = []
        for _, hosts in zip(range(times), itertools.cycle(choices), strict=False):
            windows.append(world.restart(*(world.hosts[at] for at in hosts), rough=rough))
            time.sleep(pause)
        return windows

    return work


def flushes(times: int, pause: float, *hosts: int) -> Fault:
    """These hosts forget all flows and keys, so often."""

    def work(world: World) -> None:
        for _ in range(times):
            for at in hosts:
                world.flush(world.hosts[at])
            time.sleep(pause)

    return work


def settings(times: int, pause: float, *hosts: int) -> Fault:
    """On these hosts, the fast path is switched off and on, and the lease made longer and shorter."""

    def work(world: World) -> None:
        lease = round(world.lease * 1000)
        changes = {"fastpath": False}, {"fastpath": True, "lease_ms": 3 * lease}, {"lease_ms": lease}
        for change in changes * times:
            for at in hosts:
                world.set(world.hosts[at], **change)
            time.sleep(pause)

    return work


def takeover(seconds: float) -> Fault:
    """A new machine takes the second host's VTEP address, and its containers, without its memory."""

    def work(world: World) -> list[Window]:
        window = world.replace(1)
        time.sleep(seconds)
        return [window]

    return work


def moves(times: int, pause: float, number: int = 0, *, together: int = 1) -> Fault:
    """Containers go from host to host; ``together`` neighbours in the list move at once.

    They are chosen in turn from ``number`` on, the same of both networks, which both must be bridged.
    """

    def work(world: World) -> list[Window]:
        windows = []
        for at in range(times):
            for one in range(together):
                which = number + at * together + one
                for overlay in world.overlays:
                    container = overlay.containers[which % len(overlay.containers)]
                    windows.append(world.move(container, _next(world, container), overlay.bridge))
            time.sleep(pause)
        return windows

    return work


def _next(world: World, container: Container) -> Host:
    return world.hosts[(world.hosts.index(container.host) + 1) % len(world.hosts)]


def until(true: Callable[[World], bool], what: str, timeout: float = 60) -> Fault:
    """No fault, but waits until something is true, however slow the machine is."""

    def work(world: World) -> None:
        assert world.wait(lambda: true(world), timeout) is not None, f"after {timeout:g} s not so: {what}"

    return work


def in_turn(*faults: Fault) -> Fault:
    """One fault after the other."""

    def work(world: World) -> list[Window]:
        return [window for fault in faults for window in fault(world) or []]

    return work
