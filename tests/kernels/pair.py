# SPDX-License-Identifier: Apache-2.0
"""Two guests with different kernels on one wire: xmasq at both ends, with real network drivers between.

The wire is a bridge in a network namespace of its own, with a TAP device for each guest. TAP devices
hand on what a driver leaves to its NIC, a checksum that is not yet written or a packet of 64 KB that is
not yet cut, so a guest's offloads reach the other guest as between a host's virtual machines. Each
guest has a second NIC, on which the first guest, which runs the tests (guest/pair/), tells the other
what to do.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable

from tests.lab import Lab

from . import job
from .fetch import Kernel
from .machine import Limits, Machine
from .suites import KernelsError

#: The drivers between the guests: the one that virtual machines have, and one of a real NIC.
NICS = ("virtio-net-pci", "e1000e")
#: The networks of the guests, and the bridges that they are.
_NETWORKS = {"wire": "br0", "control": "br1"}


def _wires(lab: Lab) -> str:
    """Makes the two networks, each with a TAP device for each guest; returns their namespace's name."""
    fabric = lab.fabric  # which has br0
    fabric.ip("link add br1 type bridge stp_state 0 forward_delay 0 mcast_snooping 0", "link set br1 up")
    for name, bridge in _NETWORKS.items():
        for number in (1, 2):
            fabric.ip(
                f"tuntap add dev {name}{number} mode tap vnet_hdr",
                f"link set {name}{number} master {bridge} up",
            )
    return fabric.name


def _nics(number: int, nic: str) -> list[str]:
    words: list[str] = []
    for part, (name, model) in enumerate((("wire", nic), ("control", "virtio-net-pci")), start=1):
        words += ["-netdev", f"tap,id={name},ifname={name}{number},script=no,downscript=no,vnet_hdr=on"]
        words += ["-device", f"{model},netdev={name},mac=02:00:00:00:0{part}:0{number}"]
    return words


def run(
    first: Kernel, second: Kernel, nic: str, arguments: list[str], say: Callable[[str], None], limits: Limits
) -> tuple[int, job.Outcome]:
    """Runs tests/kernels/guest/pair in the first guest. Returns pytest's status, and what it did.

    Raises :class:`KernelsError`.
    """
    where = job.directory(f"pair-{nic}")
    (where / "second").mkdir()
    job.compile_into(where)
    job.compile_into(where / "second")
    arguments = [*arguments, "tests/kernels/guest/pair", "-p", "no:randomly"]
    text = job.script(arguments, jobs=0, slowness=job.SLOWNESS, seconds=limits.total)
    (where / "job.sh").write_text(text)
    agent = f"exec {sys.executable} -m tests.kernels.guest.pair.agent"
    (where / "second" / "job.sh").write_text(f"cd {job.ROOT}\n{job.datapath('/run/job')}\n{agent}\n")
    releases = f"{first.release},{second.release}"
    failure: list[KernelsError] = []
    begin = time.monotonic()
    with Lab() as lab:
        netns = _wires(lab)
        here, there = (
            Machine(
                kernel,
                directory,
                cpus=1,
                nics=_nics(number, nic),
                netns=netns,
                options=f"xmasq.pair={number}",
                limits=limits,
            )
            for number, kernel, directory in ((1, first, where), (2, second, where / "second"))
        )

        def other() -> None:
            try:
                there.wait(running, lambda line: say(f"[2] {line}"))
            except KernelsError as error:
                failure.append(error)

        with here.started() as process, there.started() as running:
            thread = threading.Thread(target=other)
            thread.start()
            try:
                status = here.wait(process, say)
            except KernelsError as error:
                what = failure[0] if failure else error
                raise KernelsError(f"{what}{job.unfinished(releases, where, tag=nic)}") from None
            finally:
                running.kill()
                thread.join()
    for directory in (where, where / "second"):
        for big in ("initramfs", "warm.tar", "repository.tar"):
            with contextlib.suppress(FileNotFoundError):
                (directory / big).unlink()
    seconds = time.monotonic() - begin
    return status, job.outcome(releases, where / "junit.xml", status, seconds, tag=nic)
