# SPDX-License-Identifier: Apache-2.0
"""What the guest is: the tests above are worth more on two CPUs, and where kernel code is preempted."""

from __future__ import annotations

import concurrent.futures
import os
import platform
from pathlib import Path

import pytest

from kmod_ebpf import loader
from tests.e2e.observe import meet
from tests.lab import Lab, bridged_overlay, patience, process, tcp_transfer

pytestmark = pytest.mark.e2e


def test_the_compiler_makes_the_same_of_the_datapath_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of what is compiled depends on the kernel that it is compiled on."""
    if "xmasq.guest=" not in Path("/proc/cmdline").read_text():
        pytest.skip("this is not a guest: it would be compared with itself")
    monkeypatch.setattr(loader, "_COMPILE_SECONDS", patience(60))
    here, outside = loader.compile_object(None), loader.compile_object()
    for spec in (*here.maps, *outside.maps):
        if spec["name"] == "events":
            spec["max_entries"] = 0  # a number of CPUs; load() has its own
    assert here == outside


@pytest.mark.parametrize("read_summed", [True, False])
@pytest.mark.parametrize("family", [4, 6])
def test_the_kernel_takes_every_program(family: int, read_summed: bool) -> None:
    """Also in the form for kernels that do not show programs skb->ip_summed."""
    programs = (*loader.PROGRAMS, *(loader.METADATA if family == 4 else ()))
    loaded = loader.load(loader.compile_object(family=family), programs=programs, read_summed=read_summed)
    try:
        os.close(loader.load_program(loader.compile_object(family=family), loader.FLUSH, loaded.maps))
    finally:
        loaded.close()


@pytest.mark.parametrize("unit", [loader.CAPTURE, loader.COUNT], ids=["capture", "count"])
def test_the_kernel_takes_the_programs_that_come_on_demand(unit: loader.Unit) -> None:
    loader.load(loader.compile_object(unit=unit), {}, unit[1]).close()


def test_preemption() -> None:
    """Debian's kernels since 6.1 can switch at boot; the runner asks them for full preemption."""
    process.run("mount -t debugfs debugfs /sys/kernel/debug", check=False)
    modes = Path("/sys/kernel/debug/sched/preempt")
    if not modes.exists():
        pytest.skip(f"this kernel cannot choose its preemption (PREEMPT_DYNAMIC): {platform.version()}")
    if "preempt=full" not in Path("/proc/cmdline").read_text():
        pytest.skip("this kernel was not asked for preemption (preempt=full)")
    assert "(full)" in modes.read_text()


def test_many_transfers_on_all_cpus(lab: Lab) -> None:
    """Flows between the same hosts are negotiated and carried on several CPUs at once."""
    cpus = len(os.sched_getaffinity(0))
    if cpus < 2:
        pytest.skip("one CPU only")
    overlay = bridged_overlay(lab.hosts(2), containers=3)
    meet(overlay)
    left = [one for one in overlay.containers if one.host is overlay.hosts[0]]
    right = [one for one in overlay.containers if one.host is overlay.hosts[1]]
    pairs = [(a, b) for a in left for b in right] + [(b, a) for a in left for b in right]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for job in [pool.submit(tcp_transfer, *pair, 400_000, timeout=60) for pair in pairs]:
            job.result()
