# SPDX-License-Identifier: Apache-2.0
"""What all workloads have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from .network import Network


@dataclass(frozen=True)
class Metric:
    """A figure of a workload. `digits`: after the decimal point, in tables."""

    name: str
    unit: str
    better: Literal["more", "less"]
    digits: int = 2


class Workload(Protocol):
    """One kind of traffic between a client and a server."""

    name: str
    metrics: tuple[Metric, ...]

    def run(self, network: Network) -> Mapping[str, float]:
        """Runs it once, for about a second. One figure for each metric. Raises LabError."""
