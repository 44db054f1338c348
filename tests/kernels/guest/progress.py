# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin for guests: says at once what fails, ends in time, and makes no link too early.

A guest may hang. So the report is written again and again, and a file says which test runs.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from _pytest.junitxml import LogXML, xml_key

from xmasq_link import _hold

#: When to begin no other test, by time.monotonic(). What has run by then is reported.
_END = time.monotonic() + float(os.environ.get("XMASQ_GUEST_SECONDS", "inf"))
#: How often the report is written before the end, in seconds.
_EVERY = float(os.environ.get("XMASQ_GUEST_REPORT_SECONDS", "60"))
#: Where each process says which test it runs; see job.unfinished.
_RUNNING = Path(os.environ.get("XMASQ_GUEST_RUNNING", "/run/job/running"))


class _Reporter:
    """Writes the report of the tests that are done, as pytest does at the end."""

    def __init__(self, log: LogXML) -> None:
        self._log, self._last = log, time.monotonic()

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown" and time.monotonic() - self._last >= _EVERY:
            final, self._log.logfile = self._log.logfile, f"{self._log.logfile}.new"
            self._log.pytest_sessionfinish()
            self._log.logfile = final
            os.replace(f"{final}.new", final)
            self._last = time.monotonic()


@pytest.hookimpl(trylast=True)  # once the report's own plugin is there
def pytest_configure(config: pytest.Config) -> None:
    """Where the report is made: with several processes, in the one that hands out the tests."""
    log = config.stash.get(xml_key, None)
    if log is not None:
        config.pluginmanager.register(_Reporter(log))


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
    """Says what begins. Links are made by the end-to-end tests."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    _RUNNING.with_name(_RUNNING.name + worker).write_text(item.nodeid)
    if item.get_closest_marker("e2e"):
        settle()
