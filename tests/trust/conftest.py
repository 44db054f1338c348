# SPDX-License-Identifier: Apache-2.0
"""The long forms of the tests run only when asked for: `make test ARGS="-m slow tests/trust"`."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Takes out the long forms unless -m names "slow"."""
    if "slow" in config.getoption("markexpr"):
        return
    long = [item for item in items if _length(item) > 1]
    if long:
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)


def _length(item: pytest.Item) -> float:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("length", 1) if callspec else 1
