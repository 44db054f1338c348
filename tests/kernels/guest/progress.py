# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin for guests: says at once what fails, ends in time, and makes no link too early."""

from __future__ import annotations

import os
import time

import pytest

from xmasq_link import _hold

#: When to begin no other test, by time.monotonic(). What has run by then is reported.
_END = time.monotonic() + float(os.environ.get("XMASQ_GUEST_SECONDS", "inf"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """One line for each failure: a guest takes long to come to the end."""
    if report.failed:
        print(f"\nfailed: {_why(report)}", flush=True)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Ends the run, as Ctrl-C would, once its time is over."""
    if time.monotonic() > _END:
        item.session.shouldstop = "the time for this kernel is over"


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
