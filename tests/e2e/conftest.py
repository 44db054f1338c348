# SPDX-License-Identifier: Apache-2.0
"""A laboratory for each test, and both ways in which container networks use a link."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.lab import Lab, Overlay, bridged_overlay, routed_overlay

Make = Callable[..., Overlay]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(params=[routed_overlay, bridged_overlay], ids=["routed", "bridged"])
def make(request: pytest.FixtureRequest) -> Make:
    """The function that makes a container network: as flannel does, or one subnet over all hosts."""
    function: Make = request.param
    return function
