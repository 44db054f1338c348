# SPDX-License-Identifier: Apache-2.0
"""A network namespace, and what can be done inside of one."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .process import Command, Finished, LabError, batch, patience, run, split

if TYPE_CHECKING:
    from .core import Lab

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _IFF_RUNNING = 0x8913, 0x40
_libc = ctypes.CDLL(None, use_errno=True)


def _wait(condition: Callable[[], bool], timeout: float) -> bool:
    """Whether a condition comes true within ``timeout`` s."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def _forget() -> None:
    """Before Linux 5.14, a new namespace may have the number of one that is gone and had a datapath.

    As nobody can tell, a link in it would give no keys for some time (xmasq_link._hold).
    """
    from xmasq_link import _hold

    for family in (4, 6):
        _hold._path(family).unlink(missing_ok=True)


@dataclass(frozen=True)
class PingResult:
    """What ``ping`` counted; ``rtts`` are the round-trip times in milliseconds, in order of arrival."""

    sent: int
    received: int
    duplicates: int
    rtts: tuple[float, ...]
    output: str

    @property
    def lost(self) -> int:
        """How many requests got no answer."""
        return self.sent - self.received


class Namespace:
    """A named network namespace that belongs to a :class:`Lab`.

    ``name`` is the one that ``ip netns`` and ``xmasq -n`` take; ``address`` the one that other
    namespaces reach it at (empty when it has none).
    """

    def __init__(self, lab: Lab, role: str) -> None:
        self.lab = lab
        self.role = role
        self.name = lab.add_namespace(role)
        self.address = ""
        self.path = Path("/run/netns", self.name)
        self.inside(_forget)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.address}>"

    @property
    def family(self) -> socket.AddressFamily:
        """That of ``address``."""
        return socket.AF_INET6 if ":" in self.address else socket.AF_INET

    # Commands

    def _enter(self, cmd: Command) -> list[str]:
        # Not "ip netns exec": that mounts another /sys, where the BPF file system is missing.
        return ["nsenter", f"--net={self.path}", "--", *split(cmd)]

    def run(
        self, cmd: Command, *, check: bool = True, timeout: float = 30.0, input: str | None = None
    ) -> Finished:
        """Runs a command inside, to its end; see :func:`tests.lab.process.run`."""
        return run(self._enter(cmd), check=check, timeout=timeout, input=input)

    def popen(self, cmd: Command, **kwargs: Any) -> subprocess.Popen[str]:
        """Starts a command inside. It is killed, with its children, when the lab ends.

        Its output goes to pipes unless ``kwargs`` (those of :class:`subprocess.Popen`) say otherwise.
        """
        return self.lab.start(self._enter(cmd), **kwargs)

    def python(self, code: str, *, timeout: float = 30.0) -> str:
        """Runs Python code inside, with the repository's packages; returns what it printed."""
        return self.run([sys.executable, "-c", code], timeout=timeout).stdout

    def ip(self, *lines: str) -> None:
        """Runs lines such as ``link set eth0 up`` in one ``ip`` process."""
        batch(["ip", "-n", self.name], lines)

    def bridge(self, *lines: str) -> None:
        """Runs lines such as ``fdb append …`` in one ``bridge`` process."""
        batch(["bridge", "-n", self.name], lines)

    def ip_json(self, args: str) -> list[dict[str, Any]]:
        """What ``ip -j -d ARGS`` prints, for example of ``-s link show eth0``."""
        result: list[dict[str, Any]] = json.loads(
            run(["ip", "-n", self.name, "-j", "-d", *split(args)]).stdout
        )
        return result

    # Calls from this process

    def inside(self, function: Callable[[], T]) -> T:
        """Calls ``function`` in a thread that is inside; a socket made there stays inside.

        ``/proc/sys/net`` and ``/proc/thread-self/net`` are the namespace's own for it.
        """
        outcome: list[T] = []
        failure: list[BaseException] = []

        def work() -> None:
            try:
                with open(self.path) as handle:
                    if _libc.setns(handle.fileno(), _CLONE_NEWNET):
                        error = ctypes.get_errno()
                        raise OSError(error, os.strerror(error), str(self.path))
                outcome.append(function())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=work, name=f"in {self.name}")
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return outcome[0]

    def socket(
        self, family: int | None = None, kind: int = socket.SOCK_DGRAM, proto: int = 0
    ) -> socket.socket:
        """A socket inside, for use by this process. It keeps the namespace alive until it is closed.

        ``family`` is by default that of ``address``.
        """
        return self.inside(lambda: socket.socket(self.family if family is None else family, kind, proto))

    def sysctl(self, values: dict[str, str | int]) -> None:
        """Sets sysctls, named with slashes below ``net``: ``{"ipv4/ip_forward": 1}``."""

        def write() -> None:
            for name, value in values.items():
                Path("/proc/sys/net", name).write_text(str(value))

        self.inside(write)

    def wait_for_port(self, port: int, *, timeout: float = 5.0) -> None:
        """Waits until a TCP socket listens on ``port``; raises :class:`LabError` after ``timeout`` s."""
        timeout = patience(timeout)
        wanted = re.compile(rf"^ *\d+: [0-9A-F]+:{port:04X} [0-9A-F:]+ 0A ", re.MULTILINE)

        def listening() -> bool:
            tables = (Path("/proc/thread-self/net", name) for name in ("tcp", "tcp6"))
            return any(wanted.search(table.read_text()) for table in tables if table.exists())

        if not self.inside(lambda: _wait(listening, timeout)):
            raise LabError(f"nothing listens on TCP port {port} in {self.name} after {timeout:g} s")

    def wait_for_carrier(self, ifname: str, *, timeout: float = 10.0) -> None:
        """Waits until the kernel has taken note that an interface's other end is up.

        It does so in a thread of its own (net/core/link_watch.c), and drops what leaves before. Raises
        :class:`LabError` after ``timeout`` s.
        """
        timeout = patience(timeout)
        request = struct.pack("16sH14x", ifname.encode(), 0)
        with self.socket(socket.AF_INET) as control:

            def running() -> bool:
                (flags,) = struct.unpack_from("16xH", fcntl.ioctl(control, _SIOCGIFFLAGS, request))
                return bool(flags & _IFF_RUNNING)

            if not _wait(running, timeout):
                raise LabError(f"{ifname} in {self.name} has no carrier after {timeout:g} s")

    # Traffic

    def ping(
        self,
        target: Namespace | str,
        *,
        count: int = 3,
        size: int = 56,
        df: bool = False,
        interval: float = 0.01,
        wait: float = 1.0,
        options: Iterable[str] = (),
    ) -> PingResult:
        """Pings ``target``: ``count`` requests of ``size`` payload bytes, one per ``interval`` seconds.

        ``df`` sets DF and never fragments; ``wait`` is how long to wait for the last answer, in
        seconds. Loss is a result here, not an error; that ``ping`` cannot send at all is a
        :class:`LabError`.
        """
        address = target if isinstance(target, str) else target.address
        cmd = [
            "ping",
            "-n",
            "-c",
            str(count),
            "-s",
            str(size),
            "-i",
            f"{interval:g}",
            "-W",
            f"{patience(wait):g}",
        ]
        cmd += ["-M", "do" if df else "dont", *options, address]
        result = self.run(cmd, check=False, timeout=count * max(interval, 0.002) * 2 + wait + 10)
        summary = re.search(r"(\d+) packets transmitted, (\d+) received", result.stdout)
        if summary is None:
            raise LabError(f"ping from {self.name} to {address}: {result.stderr.strip() or result.stdout}")
        duplicates = re.search(r"\+(\d+) duplicates", result.stdout)
        return PingResult(
            sent=int(summary[1]),
            received=int(summary[2]),
            duplicates=int(duplicates[1]) if duplicates else 0,
            rtts=tuple(float(rtt) for rtt in re.findall(r"time=([\d.]+) ms", result.stdout)),
            output=result.stdout + result.stderr,
        )

    def iperf3(
        self,
        server: Namespace,
        *,
        seconds: float | None = None,
        size: int | None = None,
        parallel: int = 1,
        udp: bool = False,
        rate: str = "",
        reverse: bool = False,
        port: int = 5201,
        options: Iterable[str] = (),
    ) -> dict[str, Any]:
        """An iperf3 run from here to ``server``; returns the client's report (see ``iperf3 -J``).

        It ends after ``seconds`` (default 2) or after ``size`` bytes. ``rate`` is in bits per second,
        with iperf3's suffixes; for UDP the default is 50M. Raises :class:`LabError` when it fails.

        iperf3 ends when the last byte was sent, so ``sum_received`` may lack the end of a short run;
        to know that all arrived, use :func:`tests.lab.tcp_transfer`.
        """
        if size is None:
            limit, timeout = ["-t", f"{2 if seconds is None else seconds:g}"], (seconds or 2) + 20
        else:
            limit, timeout = ["-n", str(size)], (seconds or 60)
        cmd = ["iperf3", "-J", "-c", server.address, "-p", str(port), "-P", str(parallel), *limit]
        cmd += ["--connect-timeout", "5000"]
        if udp:
            cmd += ["-u", "-b", rate or "50M"]
        elif rate:
            cmd += ["-b", rate]
        if reverse:
            cmd.append("-R")
        daemon = server.popen(
            ["iperf3", "-s", "-1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            server.wait_for_port(port)
            result = self.run([*cmd, *options], check=False, timeout=timeout)
        finally:
            self.lab.kill(daemon)
        with contextlib.suppress(json.JSONDecodeError):
            report: dict[str, Any] = json.loads(result.stdout)
            if result.returncode == 0 and "error" not in report:
                return report
            raise LabError(f"iperf3 from {self.name} to {server.name}: {report.get('error')}")
        raise LabError(f"iperf3 from {self.name} to {server.name}: {result.stderr.strip() or result.stdout}")
