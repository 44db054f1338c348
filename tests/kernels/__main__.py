# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.kernels``: the tests on other kernels; ``--help`` lists the options."""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import job, pair
from .fetch import fetch
from .machine import Limits
from .pair import NICS
from .suites import CORE, CORE_TESTS, SERIES, KernelsError, NoKernelError, find

#: The exit status that says that a kernel could not be fetched.
NOT_TO_BE_HAD = 3
#: A guest takes so much of the machine's memory at most, in bytes; see machine.py.
ROOM = 3 << 30
#: Not a series: the oldest and the newest on one wire.
PAIR = "pair"


def main() -> int:
    """Exit status: 0 when all tests passed on all kernels, 1 when some did not, 3 when a kernel was not to be
    had and nothing else was wrong, 2 for anything else."""
    names = [*(one.name for one in SERIES), PAIR]
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernels",
        description="Runs the tests on other kernels, in virtual machines without KVM.",
        epilog=f"Reports are in {job.RESULTS.relative_to(job.ROOT)}/.",
    )
    parser.add_argument(
        "--kernel", action="append", metavar="NAME", help=f"one of {', '.join(names)}; default: all"
    )
    parser.add_argument("--core", action="store_true", help=f"a few tests, only on {' and '.join(CORE)}")
    parser.add_argument(
        "--cpus", type=int, metavar="N", help="of a guest, and tests at a time; default 2, with --core 1"
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="kernels at a time; default 1, with --core 2: a CPU for each"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=180,
        metavar="N",
        help="after so long no other test begins on a kernel; default 180",
    )
    parser.add_argument("arguments", nargs="*", metavar="-- ARGUMENT", help="for pytest")
    options = parser.parse_args()
    wanted = options.kernel or (list(CORE) if options.core else names)
    arguments = options.arguments or ([*CORE_TESTS, "-p", "no:randomly"] if options.core else [])
    limits = Limits(total=60 * options.minutes)
    cpus = options.cpus or (1 if options.core else 2)
    jobs = options.jobs or (min(len(CORE), max(1, _memory() // ROOM)) if options.core else 1)
    bad = False
    try:
        for name in wanted:
            if name not in names:
                raise KernelsError(f"kernel {name!r}: {', '.join(names)} are allowed")
        # So that a guest ends with its runner.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        if len(wanted) > 1 and (jobs > 1 or options.core):
            job.compile_all()
            return _side_by_side(
                [
                    ["--kernel", name, "--cpus", str(cpus), "--minutes", f"{options.minutes:g}"]
                    for name in wanted
                ],
                arguments,
                jobs,
            )
        for name in wanted:
            if name == PAIR:
                first, second = fetch(SERIES[-1]), fetch(SERIES[0])
                for nic in NICS:
                    print(f"kernels: {PAIR}: booting {first.version} and {second.version}, {nic}", flush=True)
                    bad |= _report(PAIR, *pair.run(first, second, nic, arguments, _printer(PAIR), limits))
                continue
            kernel = fetch(find(name))
            print(f"kernels: {name}: booting {kernel.version}", flush=True)
            bad |= _report(name, *job.run(kernel, arguments, _printer(name), cpus=cpus, limits=limits))
    except KernelsError as error:
        print(f"kernels: {error}", file=sys.stderr)
        if isinstance(error, NoKernelError):
            return 1 if bad else NOT_TO_BE_HAD
        return 2
    return int(bad)


def worst(codes: Iterable[int]) -> int:
    """Of several exit statuses the one that counts: a kernel that was not to be had is the least of all."""
    return max(codes, key=lambda code: (code != 0, code != NOT_TO_BE_HAD, code))


def _memory() -> int:
    """How much is free on this machine, in bytes."""
    found = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def _side_by_side(runs: list[list[str]], arguments: Sequence[str], jobs: int) -> int:
    """Runs this command several times, ``jobs`` at once. Returns the worst exit status."""
    started: list[subprocess.Popen[bytes]] = []

    def run(options: list[str]) -> int:
        # It ends with this process, however that ends, and its guest with it.
        words = ["setpriv", "--pdeathsig", "TERM", "--", sys.executable, "-m", "tests.kernels"]
        process = subprocess.Popen([*words, *options, "--", *arguments])
        started.append(process)
        return process.wait()

    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(run, options) for options in runs]
        try:
            return worst(one.result() for one in waiting)
        finally:
            for one in waiting:
                one.cancel()
            for process in started:
                process.terminate()


def _report(name: str, status: int, outcome: job.Outcome) -> bool:
    """Prints what did not pass; whether there was anything."""
    for line in outcome.failed:
        print(f"kernels: {name}: FAILED {line}")
    print(f"kernels: {name}: {outcome}", flush=True)
    return status != 0


def _printer(name: str) -> Callable[[str], None]:
    begin = time.monotonic()

    def say(line: str) -> None:
        print(f"{name:>6} {time.monotonic() - begin:5.0f} s  {line}", flush=True)

    return say


if __name__ == "__main__":
    sys.exit(main())
