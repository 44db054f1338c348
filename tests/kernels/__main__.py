# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.kernels``: the tests on other kernels; ``--help`` lists the options."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable

from . import job, pair
from .fetch import fetch
from .machine import Limits
from .pair import NICS
from .suites import CORE, CORE_TESTS, SERIES, KernelsError, find

#: Not a series: the oldest and the newest on one wire.
PAIR = "pair"


def main() -> int:
    """Exit status: 0 when all tests passed on all kernels, 1 when some did not, 2 for anything else."""
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
    parser.add_argument("--cpus", type=int, default=2, metavar="N", help="of a guest; default 2")
    parser.add_argument(
        "--minutes", type=float, default=180, metavar="N", help="limit for each kernel; default 180"
    )
    parser.add_argument("arguments", nargs="*", metavar="-- ARGUMENT", help="for pytest")
    options = parser.parse_args()
    wanted = options.kernel or (list(CORE) if options.core else names)
    arguments = options.arguments or (list(CORE_TESTS) if options.core else [])
    limits = Limits(total=60 * options.minutes)
    bad = False
    try:
        for name in wanted:
            if name not in names:
                raise KernelsError(f"kernel {name!r}: {', '.join(names)} are allowed")
        # So that a guest ends with its runner.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        for name in wanted:
            if name == PAIR:
                first, second = fetch(SERIES[-1]), fetch(SERIES[0])
                for nic in NICS:
                    print(f"kernels: {PAIR}: booting {first.version} and {second.version}, {nic}", flush=True)
                    bad |= _report(PAIR, *pair.run(first, second, nic, arguments, _printer(PAIR), limits))
                continue
            kernel = fetch(find(name))
            print(f"kernels: {name}: booting {kernel.version}", flush=True)
            bad |= _report(
                name, *job.run(kernel, arguments, _printer(name), cpus=options.cpus, limits=limits)
            )
    except KernelsError as error:
        print(f"kernels: {error}", file=sys.stderr)
        return 2
    return int(bad)


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
