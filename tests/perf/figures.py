# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of figures that come in rounds: medians, spread, ratios with confidence intervals."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

RESAMPLES = 2000
CONFIDENCE = 0.95


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile (0 to 1), interpolated linearly between neighbours. Raises ValueError for no values."""
    if not values:
        raise ValueError("no values")
    if not 0 <= q <= 1:
        raise ValueError(f"quantile {q}: 0 to 1 is allowed")
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def spread(values: Sequence[float]) -> float:
    """The interquartile range as a fraction of the median; 0 where the median is 0."""
    middle = statistics.median(values)
    return (quantile(values, 0.75) - quantile(values, 0.25)) / middle if middle else 0.0


@dataclass(frozen=True)
class Ratio:
    """A ratio, and the interval that holds it with 95 % confidence."""

    value: float
    low: float
    high: float


def ratio(values: Sequence[float], reference: Sequence[float]) -> Ratio:
    """The median of the rounds' ratios, with a bootstrap interval (Efron's percentile method).

    The two sequences are of the same rounds, in order: what slows the machine down for a while strikes
    both, and cancels. Whole rounds are drawn again, with repetition. The drawing is the same each time.
    Raises ValueError for sequences of different length, none at all, or a reference of 0.
    """
    pairs = list(zip(values, reference, strict=True))
    if not pairs:
        raise ValueError("no rounds")
    if any(r <= 0 for _, r in pairs):
        raise ValueError("a reference that is not above 0")
    ratios = [v / r for v, r in pairs]
    draw = random.Random(0)
    medians = [statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES)]
    tail = (1 - CONFIDENCE) / 2
    return Ratio(statistics.median(ratios), quantile(medians, tail), quantile(medians, 1 - tail))
