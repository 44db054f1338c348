# SPDX-License-Identifier: Apache-2.0
"""Two guests with different kernels on one wire: xmasq at both ends, with real network drivers between.

Each guest has a NIC on the wire, and a second one on which the first guest, which runs the tests
(guest/pair/), tells the other what to do.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from . import job
from .fetch import Kernel
from .machine import Limits, Machine
from .suites import KernelsError

#: The drivers between the guests. virtio-net has no peer to leave its offloads to on such a wire, so
#: it shows the software paths; e1000e is emulated with its checksum and segmentation offloads.
NICS = ("virtio-net-pci", "e1000e")


def _nics(number: int, nic: str, directory: Path) -> list[str]:
    words: list[str] = []
    for name, model in (("wire", nic), ("control", "virtio-net-pci")):
        path = directory / f"{name}.sock"
        role = "server=on" if number == 1 else "server=off"
        mac = f"02:00:00:00:0{1 if name == 'wire' else 2}:0{number}"
        words += ["-netdev", f"stream,id={name},addr.type=unix,addr.path={path},{role}"]
        words += ["-device", f"{model},netdev={name},mac={mac}"]
    return words


def _listening(where: Path) -> None:
    """The second guest finds the first one's sockets, or QEMU ends."""
    end = time.monotonic() + 30
    while not all((where / f"{name}.sock").exists() for name in ("wire", "control")):
        if time.monotonic() > end:
            raise KernelsError(f"QEMU has made no sockets; see {where}")
        time.sleep(0.1)


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
    here, there = (
        Machine(
            kernel,
            directory,
            cpus=2,
            nics=_nics(number, nic, where),
            options=f"xmasq.pair={number}",
            limits=limits,
        )
        for number, kernel, directory in ((1, first, where), (2, second, where / "second"))
    )
    arguments = [*arguments, "tests/kernels/guest/pair", "-p", "no:randomly"]
    (where / "job.sh").write_text(job.script(arguments, jobs=0, slowness=job.SLOWNESS))
    agent = f"exec {sys.executable} -m tests.kernels.guest.pair.agent"
    (where / "second" / "job.sh").write_text(f"cd {job.ROOT}\n{job.datapath('/run/job')}\n{agent}\n")
    failure: list[KernelsError] = []
    begin = time.monotonic()

    def other() -> None:
        try:
            there.wait(running, lambda line: say(f"[2] {line}"))
        except KernelsError as error:
            failure.append(error)

    with here.started() as process:
        _listening(where)
        with there.started() as running:
            thread = threading.Thread(target=other)
            thread.start()
            try:
                status = here.wait(process, say)
            except KernelsError as error:
                raise failure[0] if failure else error from None
            finally:
                running.kill()
                thread.join()
    for directory in (where, where / "second"):
        for big in ("initramfs", "warm.tar", "repository.tar"):
            with contextlib.suppress(FileNotFoundError):
                (directory / big).unlink()
    return status, job.outcome(
        f"{first.release},{second.release}", where / "junit.xml", status, time.monotonic() - begin
    )
