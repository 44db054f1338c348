# SPDX-License-Identifier: Apache-2.0
"""Runs the demo: ``python -m tests.demo [--rounds N]``, as root."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from types import FrameType

from tests.lab import Lab, LabError, process
from xmasq_link import XmasqError

from . import measure, report, story
from .checks import all_checks
from .stage import Stage
from .terminal import Screen

ROUNDS, ROUNDS_MAX = 4, 100
USAGE = f"""\
usage: python -m tests.demo [--rounds N]    (or: make demo ARGS="--rounds N")

  --rounds N   how often throughput is measured, 1 to {ROUNDS_MAX}; {ROUNDS} by default, 6 s each
"""


class Stopped(KeyboardInterrupt):
    """A signal ended the demo. A KeyboardInterrupt, as asyncio swallows other exceptions."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Failed(Exception):
    """Something is not as it should be."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit status: 0, 1 (it failed), 2 (bad input) or 128 and a signal's number."""
    screen = Screen(sys.stdout, sys.stderr)
    try:
        rounds = _rounds(list(argv))
    except ValueError as error:
        screen.error(str(error))
        return 2
    if not rounds:
        print(USAGE, end="")
        return 0
    if os.geteuid() != 0:
        screen.error("only root can run it: it makes network namespaces and loads programs into the kernel")
        return 1
    try:
        with _signals():
            _run(screen, rounds)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (LabError, XmasqError, Failed) as error:
        screen.error(f"failed: {error}")
        return 1
    except Stopped as stopped:
        screen.error("stopped; everything that it had made is removed")
        return 128 + stopped.signum
    return 0


def _rounds(words: list[str]) -> int:
    """How many rounds are wanted; 0 for help."""
    if not words:
        return ROUNDS
    if words[0] in ("-h", "--help"):
        return 0
    if words[0] != "--rounds":
        raise ValueError(f'"{words[0]}" is unknown; allowed is --rounds N')
    if len(words) == 2 and words[1].isdecimal() and 1 <= int(words[1]) <= ROUNDS_MAX:
        return int(words[1])
    raise ValueError(f"--rounds needs one number from 1 to {ROUNDS_MAX}")


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Within, signals that end a program raise Stopped; but not where a process is being started.

    Nobody would know of that process, and end it. A timer then tries again.
    """
    caught: list[int] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        if signum != signal.SIGALRM:
            caught.append(signum)
        while frame is not None:
            if frame.f_code in (process.start.__code__, Lab.start.__code__):
                signal.setitimer(signal.ITIMER_REAL, 0.002)
                return
            frame = frame.f_back
        for one in ours:
            signal.signal(one, signal.SIG_IGN)  # a second one must not stop the clean-up
        raise Stopped(caught[0])

    ours = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    old = {one: signal.signal(one, stop) for one in ours}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for one, handler in old.items():
            signal.signal(one, handler)


def _run(screen: Screen, rounds: int) -> None:
    begin = time.monotonic()
    stage = Stage(screen)
    with contextlib.closing(stage):
        stage.build()
        ours = stage.networks["xmasq"]
        report.picture(screen, ours)
        screen.progress("watching a new connection on the wire")
        seen = story.watch(ours)
        report.first_packets(screen, seen)
        report.encoded_packet(screen, seen)
        report.other_packets(screen, seen)
        report.share(screen, seen)
        report.tables(screen, ours)
        screen.progress("pinging")
        fits = {kind: measure.fit(network) for kind, network in stage.networks.items()}
        report.sizes(screen, fits, measure.round_trips(stage.networks))
        report.speed(screen, measure.throughput(stage.networks, rounds, screen))
        checks = all_checks(seen, fits)
        report.verdict(screen, checks)
        screen.progress("removing everything")
    left = stage.leftovers()
    if left:
        raise Failed(f"these namespaces are left: {', '.join(left)}")
    for check in checks:
        if not check.passed:
            raise Failed(check.failure)
    screen.line()
    screen.line(f"Done in {time.monotonic() - begin:.0f} s, and everything is removed again.")
    screen.line("Next: README.md says how it works and how to use it; make test runs the tests.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
