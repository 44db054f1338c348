# SPDX-License-Identifier: Apache-2.0
"""What a run of the suite has found, and its form as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

#: Regime, workload, metric, candidate: a figure for each round.
Results = dict[str, dict[str, dict[str, dict[str, list[float]]]]]


@dataclass
class Report:
    """The parts that were measured; the others are None or empty."""

    machine: dict[str, str]
    traffic: Results = field(default_factory=dict)
    programs: Any = None
    instructions: dict[str, tuple[int, int]] | None = None
    new_flow: list[tuple[int, int]] | None = None
    many_flows: Any = None
    tables: dict[str, int] | None = None
    links: Any = None
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """For the file."""
        return dataclasses.asdict(self)
