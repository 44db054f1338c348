# SPDX-License-Identifier: Apache-2.0
"""Commands in a fork of a process that has imported everything are the same as those that are executed."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from tests.lab import forks
from tests.lab.process import ROOT, environment, patience


def forked(*words: str, input: str | None = None, timeout: float = 20, **env: str):
    return forks.run([*forks.COMMAND, *words], patience(timeout), input, {**environment(), **env}, str(ROOT))


@pytest.mark.parametrize(
    ("words", "input"),
    [
        ("-V", None),
        ("help", None),
        ("link help", None),
        ("nonsense", None),
        ("link add", None),
        ("-batch -", "link help\nflow nonsense\nlink help\n"),
        ("-batch -", ""),
    ],
)
def test_same_as_executed(words, input):
    executed = subprocess.run(
        [*forks.COMMAND, *words.split()],
        **({"stdin": subprocess.DEVNULL} if input is None else {"input": input}),
        capture_output=True,
        text=True,
        env=environment(),
        cwd=ROOT,
    )
    done = forked(*words.split(), input=input)
    assert (done.returncode, done.stdout, done.stderr) == (
        executed.returncode,
        executed.stdout,
        executed.stderr,
    )
    assert done.stdout or done.stderr or input == ""


def test_the_environment_is_the_commands():
    assert "Traceback" not in forked("nonsense").stderr
    assert "Traceback" in forked("nonsense", XMASQ_DEBUG="1").stderr
    assert "Traceback" not in forked("nonsense").stderr


def test_what_takes_too_long_is_killed(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    forked("-V")  # the process that forks is there
    begin = time.monotonic()
    with pytest.raises(TimeoutError):
        forked("-batch", str(fifo), timeout=2)
    assert time.monotonic() - begin < patience(15)
    with pytest.raises(OSError, match="No such device or address"):  # nobody waits to read from it any more
        os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)


def test_nothing_stays_open():
    forked("-V")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        forked("-V")
    assert len(os.listdir("/proc/self/fd")) == before
