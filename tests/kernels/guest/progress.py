# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin for guests: says at once what fails, makes no link too early, asks failing tests again."""

from __future__ import annotations

import time

import pytest
from _pytest.runner import runtestprotocol

from xmasq_link import _hold


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """One line for each failure: a guest takes long to come to the end."""
    if report.failed:
        print(f"\nfailed: {_why(report)}", flush=True)


def _why(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    why = (crash.message if crash else str(report.longrepr)).splitlines()
    return f"{report.nodeid} ({report.when}): {' '.join(why)[:300]}"


def settle() -> None:
    """Waits until the guest gives keys: once those of an earlier start have ended (xmasq_link._hold)."""
    longest = _hold.LEASE_MAX_MS + _hold.guard_ms(_hold.LEASE_MAX_MS)
    time.sleep(max(0, longest / 1000 + 1 - time.clock_gettime(time.CLOCK_BOOTTIME)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Links are made by the end-to-end tests."""
    if item.get_closest_marker("e2e"):
        settle()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Runs a test that fails once more, a unit test twice more, and says so.

    The tests ask the datapath about times on the kernel's own clock, unit tests about tenths of a second,
    and an emulated CPU may stand still for longer. What is really wrong fails each time.
    """
    if item.get_closest_marker("e2e"):
        tries = 2
    elif item.get_closest_marker("root"):
        tries = 3
    else:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for left in range(tries - 1, -1, -1):
        item._initrequest()  # type: ignore[attr-defined]
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        failed = [report for report in reports if report.failed]
        if not failed or not left:
            break
        print(f"\nagain: {_why(failed[0])}", flush=True)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
