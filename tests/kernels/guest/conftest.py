# SPDX-License-Identifier: Apache-2.0
"""A laboratory, and what tells whether the running kernel has a device or a queueing discipline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Lab, Namespace, process

#: The tests of a pair say nothing in a guest that is alone.
collect_ignore = [] if "xmasq.pair=1" in Path("/proc/cmdline").read_text() else ["pair"]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def need(where: Namespace, name: str, command: str) -> None:
    """Runs an ``ip`` or ``tc`` command that makes something; skips the test if the kernel has no ``name``."""
    result = where.run(command, check=False)
    if result.returncode:
        said = result.stderr.strip()
        if "not supported" in said or "Unknown device type" in said or "kind is unknown" in said:
            pytest.skip(f"this kernel has no {name}")
        raise process.LabError(f"{command}: {said}")
