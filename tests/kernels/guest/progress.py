# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin for guests: says at once what fails, makes no link too early, asks unit tests again."""

from __future__ import annotations

import time

import pytest
from _pytest.runner import runtestprotocol

from xmasq_link import _hold


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """One line for each failure: a guest takes long to come to the end."""
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        why = (crash.message if crash else str(report.longrepr)).splitlines()
        print(f"\nfailed: {report.nodeid} ({report.when}): {' '.join(why)[:300]}", flush=True)


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
    """Runs a unit test up to three times until it passes.

    The harness asks the datapath about tenths of a second on the kernel's own clock, and a guest may stand
    still for longer. What is really wrong fails each time. What passes at the first try is not touched.
    """
    if not item.nodeid.startswith("tests/unit/") or not item.get_closest_marker("root"):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for left in (2, 1, 0):
        item._initrequest()  # type: ignore[attr-defined]
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        failed = [report for report in reports if report.failed]
        if not failed or not left:
            break
        print(f"\nagain: {item.nodeid}: {str(failed[0].longrepr).splitlines()[-1]}", flush=True)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
