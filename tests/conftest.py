# SPDX-License-Identifier: Apache-2.0
"""For all tests: says what they run on, fails those that need root when there is none, and leaves the long
ones for `make test ARGS="-m slow"`."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator

import pytest

from tests.lab.backlog import room

_NEED_ROOT = ("root", "e2e", "soak")


def pytest_report_header() -> str:
    """One line above the results: results depend on the kernel."""
    machine = platform.uname()
    return f"kernel: {machine.release} {machine.machine}, {os.cpu_count()} CPUs, uid {os.geteuid()}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is marked slow unless -m speaks of it."""
    if "slow" in config.getoption("markexpr"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)


@pytest.fixture(scope="session", autouse=True)
def _room_in_queues() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    with room():
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fails, and does not skip: a run that left out what matters must not look like a good one."""
    if os.geteuid() != 0 and any(item.get_closest_marker(name) for name in _NEED_ROOT):
        pytest.fail("needs root: it loads programs or makes network namespaces", pytrace=False)
