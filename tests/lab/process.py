# SPDX-License-Identifier: Apache-2.0
"""Running commands: bounded in time, with an error that says what went wrong."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import forks

#: The repository; commands run here, and find its packages.
ROOT = Path(__file__).resolve().parents[2]

#: How many times slower than a real machine this one is: an emulated one is. See :func:`patience`.
_SLOWNESS = float(os.environ.get("XMASQ_TEST_SLOWNESS", "1"))

Command = str | Sequence[str]
Finished = subprocess.CompletedProcess[str]


class LabError(Exception):
    """Something that the laboratory was asked to do did not work."""


def patience(seconds: float) -> float:
    """How long to wait for what normally takes far less than ``seconds``, before calling it hung.

    For limits that keep a test from waiting for ever, never for times that a test is about.
    """
    return seconds * _SLOWNESS


def split(cmd: Command) -> list[str]:
    """A command as a list of words; a string is split as a shell would, but nothing is expanded."""
    return shlex.split(cmd) if isinstance(cmd, str) else list(cmd)


def environment() -> dict[str, str]:
    """What commands get: untranslated output, and the repository's packages for Python."""
    return {**os.environ, "LC_ALL": "C", "PYTHONPATH": str(ROOT)}


def start(cmd: Command, **kwargs: Any) -> subprocess.Popen[str]:
    """Starts a command in a session of its own, so that it can be ended with all its children."""
    kwargs.setdefault("stdin", subprocess.DEVNULL)
    kwargs.setdefault("stdout", subprocess.PIPE)
    kwargs.setdefault("stderr", subprocess.PIPE)
    kwargs.setdefault("cwd", ROOT)
    kwargs.setdefault("env", environment())
    return subprocess.Popen(split(cmd), text=True, start_new_session=True, **kwargs)


def kill(process: subprocess.Popen[str]) -> None:
    """Ends a process made by :func:`start` with its children, and closes its pipes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def run(cmd: Command, *, check: bool = True, timeout: float = 30.0, input: str | None = None) -> Finished:
    """Runs a command to its end and returns what it printed, as text.

    Raises :class:`LabError` when it takes more than ``timeout`` seconds, or, with ``check``, when
    its exit code is not 0.
    """
    words, timeout = split(cmd), patience(timeout)
    try:
        if forks.WANTED and words[: len(forks.COMMAND)] == forks.COMMAND:
            done = forks.run(words, timeout, input, environment(), str(ROOT))
        else:
            done = _execute(words, timeout, input)
    except (subprocess.TimeoutExpired, TimeoutError):
        raise LabError(f"still running after {timeout:g} s: {shlex.join(words)}") from None
    if check and done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing")[-2000:]
        raise LabError(f"exit code {done.returncode}: {shlex.join(words)}\n{said}")
    return done


def _execute(words: list[str], timeout: float, input: str | None) -> Finished:
    process = start(words, stdin=subprocess.DEVNULL if input is None else subprocess.PIPE)
    try:
        out, err = process.communicate(input, timeout)
    finally:
        # Also ends what the command left behind in its session, and what Ctrl-C interrupts.
        kill(process)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def batch(tool: Command, lines: Iterable[str], *, force: bool = False) -> None:
    """Gives many lines to one ``ip`` or ``bridge`` process; with ``force`` it goes on after an error."""
    text = "".join(f"{line}\n" for line in lines)
    if not text:
        return
    words = split(tool)
    words[1:1] = ["-force"] if force else []
    result = run([*words, "-batch", "-"], input=text, check=False)
    if result.returncode and not force:
        raise LabError(f"{shlex.join(words)}: {result.stderr.strip()}\nin:\n{text}")
