# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' arithmetic."""

from __future__ import annotations

import random
import statistics

import pytest

from tests.perf import figures, report
from tests.perf.figures import quantile, ratio, spread


def test_quantiles_are_interpolated_between_neighbours() -> None:
    values = [3.0, 1.0, 2.0, 4.0]
    assert [quantile(values, q) for q in (0, 0.5, 1)] == [1.0, statistics.median(values), 4.0]
    assert quantile(values, 0.25) == pytest.approx(1.75)
    assert quantile([7.0], 0.99) == 7.0


def test_quantiles_agree_with_the_standard_library() -> None:
    values = [random.Random(1).gauss(10, 3) for _ in range(57)]
    theirs = statistics.quantiles(values, n=10, method="inclusive")
    assert [quantile(values, n / 10) for n in range(1, 10)] == pytest.approx(theirs)


@pytest.mark.parametrize(("values", "q"), [([], 0.5), ([1.0], -0.1), ([1.0], 1.1)])
def test_a_quantile_of_nothing_or_out_of_range_is_refused(values: list[float], q: float) -> None:
    with pytest.raises(ValueError, match=r"no values|quantile"):
        quantile(values, q)


def test_the_spread_is_relative_to_the_median() -> None:
    assert spread([9.0, 10.0, 11.0]) == pytest.approx(0.1)
    assert spread([90.0, 100.0, 110.0]) == pytest.approx(0.1)
    assert spread([5.0, 5.0]) == 0
    assert spread([0.0, 0.0]) == 0


def test_a_ratio_is_taken_round_by_round() -> None:
    # The machine is half as fast in the second round, and ten times as fast in the third.
    reference = [10.0, 5.0, 100.0]
    r = ratio([9.0, 4.5, 90.0], reference)
    assert (r.value, r.low, r.high) == pytest.approx((0.9, 0.9, 0.9))


def test_an_interval_holds_the_ratio_and_shrinks_with_more_rounds() -> None:
    draw = random.Random(7)

    def noisy(rounds: int) -> figures.Ratio:
        reference = [draw.gauss(100, 10) for _ in range(rounds)]
        return ratio([0.8 * value * draw.gauss(1, 0.05) for value in reference], reference)

    few, many = noisy(6), noisy(600)
    assert few.low < few.value < few.high
    assert many.low < 0.8 < many.high
    assert many.high - many.low < (few.high - few.low) / 2


def test_intervals_of_95_percent_hold_the_true_ratio_about_so_often() -> None:
    draw = random.Random(3)
    held = 0
    for _ in range(60):
        r = ratio([draw.gauss(1, 0.1) for _ in range(15)], [1.0] * 15)
        held += r.low <= 1 <= r.high
    assert 50 <= held <= 60


def test_the_same_rounds_give_the_same_interval() -> None:
    values, reference = [1.0, 2.0, 4.0, 3.0], [2.0, 2.0, 2.0, 2.0]
    assert ratio(values, reference) == ratio(values, reference)


@pytest.mark.parametrize(
    ("values", "reference"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0]), ([1.0], [-1.0])]
)
def test_rounds_that_do_not_fit_are_refused(values: list[float], reference: list[float]) -> None:
    with pytest.raises(ValueError, match=r"rounds|reference|shorter|longer"):
        ratio(values, reference)


def test_a_table_has_its_names_left_and_its_figures_right() -> None:
    assert list(report.table([("what", "ns"), ("encode", "7"), ("x", "123")])) == [
        "what     ns",
        "------  ---",
        "encode    7",
        "x       123",
    ]
