# SPDX-License-Identifier: Apache-2.0
"""What a guest runs, pytest on some of the tests, and what comes back of it."""

from __future__ import annotations

import fcntl
import itertools
import math
import os
import shlex
import shutil
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kmod_ebpf import loader
from tests.unit.harness import CLOCK

from .fetch import Kernel
from .machine import Limits, Machine
from .suites import KernelsError

ROOT = Path(__file__).resolve().parents[2]
#: One directory for each kernel: junit.xml, output, console.
RESULTS = ROOT / ".kernels"
#: The reports of all runs, a directory for each release (two with a comma for a pair), for table.py.
REPORTS = RESULTS / "reports"
#: The suites that run when no path is given.
SUITES = ("tests/unit", "tests/e2e", "tests/kernels/guest")
#: Everything takes about so many times as long in a guest as outside.
SLOWNESS = 10


@dataclass(frozen=True)
class Outcome:
    """How many tests did what; ``failed`` and ``skipped`` have a line each."""

    release: str
    passed: int
    failed: tuple[str, ...]
    skipped: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        text = f"{self.passed} passed, {len(self.skipped)} skipped, {len(self.failed)} failed"
        return f"{self.release}: {text} in {self.seconds:.0f} s"


def directory(name: str) -> Path:
    """An empty directory for the results of ``name``: nobody else's until this process ends."""
    RESULTS.mkdir(exist_ok=True)
    for number in itertools.count(1):
        path = RESULTS / (name if number == 1 else f"{name}-{number}")
        lock = os.open(RESULTS / f".{path.name}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            os.close(lock)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


def compile_all() -> Path:
    """Compiles the datapath outside, where that takes a second; returns the directory.

    One test compiles it inside, too, and compares.
    """
    for unit in (loader.DATAPATH, loader.CAPTURE, loader.COUNT):
        loader.compile_object(RESULTS / "datapath", unit)
    for family, clock in ((6, 0), (4, CLOCK), (6, CLOCK)):
        loader.compile_object(RESULTS / "datapath", family=family, clock=clock)
    return RESULTS / "datapath"


def compile_into(path: Path) -> None:
    """Puts what is compiled into a guest's directory, for :func:`datapath` to use."""
    (path / "datapath").mkdir()
    for file in compile_all().glob(f"{loader._digest()}*"):
        shutil.copy(file, path / "datapath")


def datapath(path: str) -> str:
    """The shell command that puts what is compiled in its place: for the package, and for the unit tests."""
    return (
        f"install -m 644 {path}/datapath/* /var/cache/xmasq/ && mkdir -p /tmp/pytest/d && "
        "ln -sfn /var/cache/xmasq /tmp/pytest/d/xmasq-datapath"
    )


def script(arguments: Sequence[str], *, jobs: int, slowness: float, seconds: float = math.inf) -> str:
    """The shell script that runs pytest with these arguments, ``jobs`` tests at a time; 0: in one process.

    After so many seconds it begins no other test.
    """
    paths = [] if any(word.split("::")[0].startswith("tests") for word in arguments) else SUITES
    words = [
        *(sys.executable, "-m", "pytest", "-q"),
        *(("-n", str(jobs), "--dist", "worksteal") if jobs else ()),
        *(
            "-p",
            "tests.kernels.guest.progress",
            "--color=no",
            "--durations=10",
            "-o",
            "cache_dir=/tmp/pytest",
            "--junitxml=/run/job/junit.xml",
        ),
        *arguments,
        *paths,
    ]
    return f"""cd {shlex.quote(str(ROOT))} || exit
{datapath("/run/job")}
export XMASQ_TEST_FORKS=1 XMASQ_TEST_SLOWNESS={slowness:g} XMASQ_GUEST_SECONDS={seconds:g} COLUMNS=110
set -o pipefail
{shlex.join(words)} | cat
"""


def run(
    kernel: Kernel,
    arguments: Sequence[str],
    say: Callable[[str], None],
    *,
    cpus: int = 2,
    limits: Limits | None = None,
    options: str = "",
) -> tuple[int, Outcome]:
    """Runs pytest in a guest with this kernel. Returns its exit status, and what it did.

    Raises :class:`KernelsError` when there is no result.
    """
    where = directory(kernel.series.name)
    compile_into(where)
    limits = limits or Limits()
    text = script(arguments, jobs=cpus if cpus > 1 else 0, slowness=SLOWNESS, seconds=limits.total)
    (where / "job.sh").write_text(text)
    begin = time.monotonic()
    with open(where / "output", "w") as output:

        def both(line: str) -> None:
            print(line, file=output, flush=True)
            say(line)

        machine = Machine(kernel, where, cpus=cpus, options=options, limits=limits)
        try:
            status = machine.run(both)
        except KernelsError as error:
            raise KernelsError(f"{error}{unfinished(kernel.release, where)}") from None
    for big in ("initramfs", "warm.tar", "repository.tar"):
        (where / big).unlink(missing_ok=True)
    return status, outcome(kernel.release, where / "junit.xml", status, time.monotonic() - begin)


def unfinished(release: str, where: Path, *, tag: str = "") -> str:
    """What is known of a run that came to no end: lines to put behind the error. Its report is kept."""
    lines = [f"\n  in {file.read_text()}" for file in sorted(where.glob("running*"))]
    if (where / "junit.xml").exists():
        known = outcome(release, where / "junit.xml", 1, 0, tag=tag)
        lines += [f"\n  failed before: {line}" for line in known.failed]
        lines.append(f"\n  passed before: {known.passed}, at least")
    return "".join(lines)


def outcome(release: str, junit: Path, status: int, seconds: float, *, tag: str = "") -> Outcome:
    """Reads pytest's report, and keeps it; ``tag`` tells runs of the same tests apart.

    Raises :class:`KernelsError` when there is none.
    """
    if not junit.exists():
        raise KernelsError(f"{release}: pytest ended with {status} and without a report")
    keep = REPORTS / release
    keep.mkdir(parents=True, exist_ok=True)
    shutil.copy(junit, keep / f"{time.time():.0f}-{tag}.xml")
    passed, failed, skipped = 0, [], []
    for case in ElementTree.parse(junit).iter("testcase"):
        name = f"{case.get('classname', '').replace('.', '/')}::{case.get('name')}"
        bad = [child for child in case if child.tag in ("failure", "error")]
        left = case.find("skipped")
        if bad:
            failed.append(f"{name}: {(bad[0].get('message') or '').splitlines()[0][:200]}")
        elif left is not None:
            skipped.append(f"{name}: {left.get('message')}")
        else:
            passed += 1
    return Outcome(release, passed, tuple(failed), tuple(skipped), seconds)
