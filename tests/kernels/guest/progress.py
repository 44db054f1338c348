# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin: says at once what fails, since a guest takes long to come to the end."""

from __future__ import annotations

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """One line for each failure."""
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        why = (crash.message if crash else str(report.longrepr)).splitlines()
        print(f"\nfailed: {report.nodeid} ({report.when}): {' '.join(why)[:300]}", flush=True)
