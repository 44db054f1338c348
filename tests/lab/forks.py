# SPDX-License-Identifier: Apache-2.0
"""The project's command in a fork of a process that has imported everything already.

On an emulated machine Python takes five seconds to start and to import pyroute2, which was most of what the
end-to-end tests took there. With XMASQ_TEST_FORKS=1, which guests have (tests/kernels), :func:`run` has the
command run by a fork, from its ``__main__`` on. It is in a session of its own, as other commands are.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

#: What the words of a command begin with that can be run so.
COMMAND = [sys.executable, "-m", "xmasq_link"]
WANTED = os.environ.get("XMASQ_TEST_FORKS", "0") not in ("", "0")

_PRELOAD = ("pyroute2", *(f"xmasq_link._cli.{name}" for name in ("main", "link", "flow", "key", "peer")))
#: Bytes of a number in a report: a process ID, then what waitpid says of it.
_NUMBER = 4

_lock = threading.Lock()


@functools.cache
def _server() -> socket.socket:
    """Starts the process that forks; where it takes requests. It ends when this process does."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main()", str(its.fileno())],
            pass_fds=[its.fileno()],
            stdin=subprocess.DEVNULL,
            cwd=Path(__file__).resolve().parents[2],
            start_new_session=True,
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def run(
    words: Sequence[str], timeout: float, input: str | None, env: dict[str, str], cwd: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command that begins with :data:`COMMAND`. Raises TimeoutError, and then has killed it."""
    stdin, stdout, stderr = (os.memfd_create(name) for name in ("stdin", "stdout", "stderr"))
    ours, its = os.pipe()
    pid = 0
    try:
        os.write(stdin, (input or "").encode())
        os.lseek(stdin, 0, os.SEEK_SET)
        request = {"argv": words[len(COMMAND) :], "env": env, "cwd": cwd}
        with _lock:
            socket.send_fds(_server(), [json.dumps(request).encode()], [stdin, stdout, stderr, its])
        os.close(its)
        its = -1
        pid = _receive(ours, timeout)
        try:
            status = _receive(ours, timeout)
        except BaseException:
            _kill(pid)
            _receive(ours, None)
            raise
        return subprocess.CompletedProcess(
            words, os.waitstatus_to_exitcode(status), *(_text(fd) for fd in (stdout, stderr))
        )
    finally:
        if pid:  # what it may have left behind
            _kill(pid)
        for fd in (stdin, stdout, stderr, ours, its):
            if fd >= 0:
                os.close(fd)


def _receive(fd: int, timeout: float | None) -> int:
    """The next number that the fork's parent says; it says nothing more if it was killed."""
    if not select.select([fd], [], [], timeout)[0]:
        raise TimeoutError
    data = os.read(fd, _NUMBER)
    if not data:
        raise ChildProcessError("the process that forks is gone")
    return int.from_bytes(data, sys.byteorder)


def _text(fd: int) -> str:
    os.lseek(fd, 0, os.SEEK_SET)
    with os.fdopen(os.dup(fd), newline=None) as file:
        return file.read()


def _kill(session: int) -> None:
    """Ends what is left of a command."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)


def _serve(requests: socket.socket) -> None:
    """Forks for each request; returns in the fork, which then has only to run the command."""
    for name in _PRELOAD:
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        data, fds, _, _ = socket.recv_fds(requests, 1 << 20, 4)
        if not data:
            sys.exit()
        if os.fork() == 0:
            requests.close()
            return _supervise(json.loads(data), fds)
        for fd in fds:
            os.close(fd)


def _supervise(request: dict[str, object], fds: list[int]) -> None:
    """Forks once more, and says the fork's process ID and then how it ended; returns in the fork."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, report = fds
    pid = os.fork()
    if pid:
        os.write(report, pid.to_bytes(_NUMBER, sys.byteorder))
        for fd in streams:
            os.close(fd)
        os.write(report, os.waitpid(pid, 0)[1].to_bytes(_NUMBER, sys.byteorder))
        os._exit(0)
    os.setsid()
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
    for fd in fds:
        os.close(fd)
    os.chdir(str(request["cwd"]))
    os.environ.clear()
    os.environ.update(request["env"])  # type: ignore[call-overload]
    sys.argv = ["xmasq_link", *request["argv"]]  # type: ignore[misc]


def main() -> None:
    """What the process that forks does, and then each fork."""
    _serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module("xmasq_link", run_name="__main__", alter_sys=True)
