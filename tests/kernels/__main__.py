# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.kernels``: the tests on other kernels; ``--help`` lists the options."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from . import job
from .fetch import fetch
from .machine import Limits
from .suites import CORE, SERIES, KernelsError, find


def main() -> int:
    """Exit status: 0 when all tests passed on all kernels, 1 when some did not, 2 for anything else."""
    names = ", ".join(one.name for one in SERIES)
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernels",
        description="Runs the tests on other kernels, in virtual machines without KVM.",
    )
    parser.add_argument("--kernel", action="append", metavar="NAME", help=f"one of {names}; default: all")
    parser.add_argument("--core", action="store_true", help=f"only {' and '.join(CORE)}")
    parser.add_argument("--cpus", type=int, default=2, metavar="N", help="of the guest; default 2")
    parser.add_argument(
        "--minutes", type=float, default=180, metavar="N", help="limit for each kernel; default 180"
    )
    parser.add_argument("arguments", nargs="*", metavar="-- ARGUMENT", help="for pytest")
    options = parser.parse_args()
    bad = 0
    try:
        series = [
            find(name) for name in options.kernel or (CORE if options.core else [s.name for s in SERIES])
        ]
        for one in series:
            kernel = fetch(one)
            print(f"kernels: {one.name}: booting {kernel.version}", flush=True)
            limits = Limits(total=60 * options.minutes)
            status, outcome = job.run(
                kernel, options.arguments, _printer(one.name), cpus=options.cpus, limits=limits
            )
            for line in outcome.failed:
                print(f"kernels: {one.name}: FAILED {line}")
            print(f"kernels: {one.name}: {outcome}", flush=True)
            bad |= status != 0
    except KernelsError as error:
        print(f"kernels: {error}", file=sys.stderr)
        return 2
    return int(bad)


def _printer(name: str) -> Callable[[str], None]:
    begin = time.monotonic()

    def say(line: str) -> None:
        print(f"{name:>6} {time.monotonic() - begin:5.0f} s  {line}", flush=True)

    return say


if __name__ == "__main__":
    sys.exit(main())
