# SPDX-License-Identifier: Apache-2.0
"""The lab itself: it owns namespaces, processes and files, and takes all of them away again."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from xmasq_link import InputError, _hold, netns
from xmasq_link._netns import cookie

from . import process
from .fabric import Fabric
from .nodes import Family, Host, Router
from .process import LabError

_NETNS = Path("/run/netns")
#: One file per lab, locked for as long as the lab's process lives, however that ends. A lock, unlike
#: a process id, cannot be mistaken: namespaces are removed only when their lab surely is dead.
_LOCKS = Path("/run/xmq-lab")
#: The two ends of the link between the routers of a row.
ROW = {
    "near": {4: "203.0.113.1", 6: "2001:db8:ffff::1"},
    "far": {4: "203.0.113.2", 6: "2001:db8:ffff::2"},
}
_NAME = re.compile(r"xmq-\d+-\d+")


class Lab:
    """A context manager that makes hosts, and removes everything at its end.

    Namespaces are called ``xmq-<pid>-<n>-<role>``. On entry, what killed labs left behind is
    removed; labs of other processes, and other labs of this one, are left alone. On exit, also by an
    exception, SIGINT or SIGTERM, the processes started through the lab are killed, and those that
    still are in its namespaces.

    ``mtu`` is the underlay's, in bytes. Raises :class:`LabError` when not run as root.
    """

    def __init__(self, *, mtu: int = 1500) -> None:
        self.mtu = mtu
        self.prefix = ""
        self._lock: int | None = None
        self._roles: list[str] = []
        self._processes: list[subprocess.Popen[str]] = []
        self._last: contextlib.ExitStack = contextlib.ExitStack()
        self._numbers = itertools.count(1)
        self._tmp: Path | None = None
        self._tmp_lock = threading.Lock()
        self._fabric: Fabric | None = None
        self._old_handler: Any = None

    def __enter__(self) -> Lab:
        if os.geteuid() != 0:
            raise LabError("the laboratory needs root: it makes network namespaces")
        self._catch_sigterm()
        try:
            _remove_leftovers()
            self.prefix, self._lock = _take_name()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Removes everything; a second call does nothing."""
        with _signals_held():
            try:
                self._last.close()
            finally:
                for one in list(self._processes):
                    self.kill(one)
                _remove_namespaces(f"{self.prefix}-{role}" for role in self._roles)
                self._roles.clear()
                self._fabric = None
                if self._tmp is not None:
                    shutil.rmtree(self._tmp, ignore_errors=True)
                    self._tmp = None
                if self._lock is not None:
                    (_LOCKS / self.prefix).unlink(missing_ok=True)
                    os.close(self._lock)
                    self._lock = None
                if self._old_handler is not None:
                    signal.signal(signal.SIGTERM, self._old_handler)
                    self._old_handler = None

    def _catch_sigterm(self) -> None:
        # SIGTERM becomes an exception, so that the "with" ends as it does by Ctrl-C.
        def terminate(number: int, frame: FrameType | None) -> None:
            raise SystemExit(128 + number)

        if threading.current_thread() is threading.main_thread():
            old = signal.getsignal(signal.SIGTERM)
            if old == signal.SIG_DFL:
                self._old_handler = old
                signal.signal(signal.SIGTERM, terminate)

    # What the lab owns

    def add_namespace(self, role: str) -> str:
        """Makes an empty namespace for ``role``, with IPv6 off and ``lo`` up; returns its name."""
        if self._lock is None:
            raise LabError("the lab is not open: use it in a with statement")
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", role):
            raise LabError(f"role {role!r}: only a-z, 0-9 and - are allowed")
        if role in self._roles:
            raise LabError(f"role {role!r} is already taken in this lab")
        name = f"{self.prefix}-{role}"
        self._roles.append(role)
        with _signals_held():  # or an interrupted start leaves an `ip` at work that nobody knows of
            process.run(["ip", "netns", "add", name])
        return name

    def remove_namespace(self, role: str) -> None:
        """Removes a namespace of this lab, with the processes in it."""
        _remove_namespaces([f"{self.prefix}-{role}"])
        self._roles.remove(role)

    def start(self, cmd: process.Command, **kwargs: Any) -> subprocess.Popen[str]:
        """Starts a process that ends with the lab at the latest; see :func:`tests.lab.process.start`."""
        one = process.start(cmd, **kwargs)
        self._processes.append(one)
        return one

    def kill(self, one: subprocess.Popen[str]) -> None:
        """Ends a process that :meth:`start` made, with its children, and closes its pipes."""
        process.kill(one)
        if one in self._processes:
            self._processes.remove(one)

    def at_exit(self, function: Callable[[], object]) -> None:
        """Has ``function`` called first of all when the lab ends; the last one added is the first."""
        self._last.callback(function)

    @property
    def tmp(self) -> Path:
        """A directory for files that may go with the lab."""
        with self._tmp_lock:  # threads of a test may ask at the same time
            if self._tmp is None:
                self._tmp = Path(tempfile.mkdtemp(prefix=f"{self.prefix}-"))
            return self._tmp

    @property
    def fabric(self) -> Fabric:
        """What joins the hosts; made when first asked for."""
        if self._fabric is None:
            self._fabric = Fabric(self)
        return self._fabric

    def host(self, *, mtu: int | None = None, ipv6: bool = False, family: Family = 4) -> Host:
        """A new host with the next free number, joined to the fabric. ``mtu``: its underlay's.

        With ``ipv6`` it has both families; ``family`` says which one its ``address`` is of.
        """
        return Host(self, next(self._numbers), mtu=mtu or self.mtu, ipv6=ipv6, family=family)

    def hosts(
        self, count: int, *, mtu: int | None = None, ipv6: bool = False, family: Family = 4
    ) -> list[Host]:
        """``count`` new hosts."""
        return [self.host(mtu=mtu, ipv6=ipv6, family=family) for _ in range(count)]

    def row(self, near: Host, far: Host, *, mtu: int) -> tuple[Router, Router]:
        """Puts two routers, with a link of this ``mtu`` in between, on the way from one host to the other."""
        routers = (Router(self, 1), Router(self, 2))
        self.fabric.part(far, "br1")
        for router, segment, name in zip(routers, ("br0", "br1"), ("near", "far"), strict=True):
            self.fabric.join(router, "eth0", segment=segment, mtu=self.mtu)
            if router is routers[0]:
                router.ip(f"link add mid mtu {mtu} type veth peer name mid mtu {mtu} netns {routers[1].name}")
            router.ip(
                f"addr add {ROW[name][4]}/30 dev mid",
                f"addr add {ROW[name][6]}/64 dev mid nodad",
                "link set mid up",
            )
        for family in near.addresses:
            routers[0].ip(f"route add {far.addresses[family]} via {ROW['far'][family]}")
            routers[1].ip(f"route add {near.addresses[family]} via {ROW['near'][family]}")
            near.ip(f"route add {far.addresses[family]} via {routers[0].addresses[family]}")
            far.ip(f"route add {near.addresses[family]} via {routers[1].addresses[family]}")
        return routers


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Puts off SIGINT and SIGTERM, so that a second Ctrl-C does not stop the cleaning up."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _take_name() -> tuple[str, int]:
    """A free prefix ``xmq-<pid>-<n>``, and the descriptor that holds its lock."""
    _LOCKS.mkdir(mode=0o700, exist_ok=True)
    for number in itertools.count():
        name = f"xmq-{os.getpid()}-{number}"
        try:
            lock = os.open(_LOCKS / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Another lab's search for leftovers may have come between the two calls and removed the file.
        with contextlib.suppress(FileNotFoundError):
            if os.stat(_LOCKS / name).st_ino == os.fstat(lock).st_ino:
                return name, lock
        os.close(lock)
    raise AssertionError("unreachable")


def _remove_leftovers() -> None:
    """Removes what labs left behind whose process was killed: those whose lock is free."""
    if not _LOCKS.is_dir():
        return
    for path in _LOCKS.iterdir():
        try:
            lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _NAME.fullmatch(path.name):
                _remove_namespaces(one.name for one in _NETNS.glob(f"{path.name}-*"))
                for tmp in Path(tempfile.gettempdir()).glob(f"{path.name}-*"):
                    shutil.rmtree(tmp, ignore_errors=True)
                path.unlink(missing_ok=True)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)


def _remove_namespaces(names: Iterable[str]) -> None:
    paths = [path for name in names if (path := _NETNS / name).exists()]
    inodes = {path.stat().st_ino for path in paths}
    for pid in _processes_in(inodes):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for path in paths:
        with contextlib.suppress(OSError, InputError), netns(str(path)):
            (_hold.RUN / cookie()).unlink(missing_ok=True)
    process.batch(["ip"], (f"netns del {path.name}" for path in paths), force=True)


def _processes_in(inodes: set[int]) -> Iterator[int]:
    """The processes whose network namespace is one of these, but for this process."""
    if not inodes:
        return
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if os.stat(entry / "ns/net").st_ino in inodes:
                    yield int(entry.name)
