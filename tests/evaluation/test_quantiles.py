"""Yield, quantiles and the lifetime of a quantile: golden numbers, coverage, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from analognoise.errors import DataError
from analognoise.evaluation.lifetime import lifetime
from analognoise.evaluation.quantiles import quantile, yield_at


def test_yield_counts_chips_that_are_not_worse() -> None:
    values = [0.90, 0.95, 0.95, 0.97, 0.99, 0.99, 0.99, 0.99, 0.99, 0.99]
    found = yield_at(values, 0.95)
    assert (found.kept, found.chips, found.share) == (9, 10, 0.9)
    # Clopper and Pearson's interval of 9 in 10, as in their tables
    assert (found.low, found.high) == pytest.approx((0.55498, 0.99747), abs=1e-5)
    assert yield_at(values, 0.95, higher_is_better=False).kept == 3
    nobody = yield_at(values, 1.0)
    assert (nobody.low, nobody.high) == pytest.approx((0.0, 1 - 0.025 ** (1 / 10)))
    assert str(found).startswith("9 of 10 chips, 90 % (95 % interval 55.5 to 99.7 %)")


def test_quantile_interval_is_between_order_statistics() -> None:
    x = np.random.default_rng(0).permutation(np.arange(1, 101) / 100)
    median = quantile(x, 0.5)
    # Of 100 values the 40th and the 61st: the classical 95 % interval of a median.
    assert (median.value, median.low, median.high) == (0.5, 0.4, 0.61)
    low = quantile(x, 0.05)
    assert low.value == 0.05
    assert (low.low, low.high) == (0.01, 0.11)
    loss = quantile(x, 0.05, higher_is_better=False)
    assert (loss.value, loss.low, loss.high) == (0.96, 0.9, 1.0)


def test_too_few_chips_leave_a_side_open_and_say_how_many_are_needed() -> None:
    few = quantile(np.linspace(0.9, 1, 71), 0.05)
    assert (few.low, few.closed, few.needed) == (-math.inf, False, 72)
    enough = quantile(np.linspace(0.9, 1, 72), 0.05)
    assert (enough.low, enough.closed) == (0.9, True)
    few_words = "0.9043 (71 chips, too few for both ends of a 95 % interval: 72 are needed)"
    assert (str(few), str(enough)) == (few_words, "0.9042 (95 % interval 0.9 to 0.9113)")
    assert quantile(np.linspace(0.9, 1, 71), 0.05, higher_is_better=False).high == math.inf
    assert quantile([0.5], 0.5).closed is False
    # The same at the other side: the level that all but 95 % of the chips keep.
    few = quantile(np.linspace(0.9, 1, 71), 0.95)
    assert (few.high, few.closed, few.needed) == (math.inf, False, 72)


def test_a_rank_that_is_whole_is_taken_as_it_is() -> None:
    assert 0.07 * 100 > 7  # by rounding
    assert quantile(np.arange(1, 101), 0.07).value == 7


@pytest.mark.parametrize("q", [0.05, 0.5])
def test_quantile_interval_covers_whatever_the_distribution(q: float) -> None:
    rng = np.random.default_rng(2)
    runs = 1000
    held = 0
    for _ in range(runs):
        found = quantile(1 - rng.lognormal(-4, 1, 100), q)
        held += found.low <= 1 - math.exp(-4 + stats.norm.ppf(1 - q)) <= found.high
    assert held >= stats.binom.ppf(1e-3, runs, 0.95)
    assert held <= 0.999 * runs  # not by being endless


@pytest.mark.parametrize("q", [0, 1, -0.1, 5, math.nan, "0.05", True, None])
def test_quantiles_outside_0_and_1_are_refused(q: Any) -> None:
    with pytest.raises(DataError, match=r"quantile is .*more than 0 and less than 1"):
        quantile([0.1, 0.2], q)


def test_levels_that_make_no_sense_are_refused() -> None:
    with pytest.raises(DataError, match=r"is 97\.1, but an accuracy lies between 0 and 1"):
        yield_at([0.9], 97.1, metric="accuracy")
    with pytest.raises(DataError, match="is nan: give a finite value"):
        yield_at([0.9], math.nan)
    with pytest.raises(DataError, match="finite values"):
        yield_at([], 0.9)


def test_lifetime_of_a_quantile_is_where_the_order_statistics_cross() -> None:
    """Chips that lose a share of their own by decade: the quantile's line is known, and its crossing."""
    times = [1.0, 10.0, 100.0, 1000.0]
    rate = np.arange(1, 201) / 2000  # 0.0005 … 0.1 a decade, the worst last
    values = 1 - rate[:, None] * np.log10(times)
    found = lifetime(values, times, 1.0, 0.85, quantile=0.05)
    # the 10th worst chip loses 0.0955 a decade
    assert found.seconds == pytest.approx(10 ** (0.15 / 0.0955), rel=1e-9)
    ranks = [int(stats.binom.ppf(p, 200, 0.05)) for p in (0.025, 0.975)]
    low, high = (10 ** (0.15 / rate[200 - rank]) for rank in (ranks[0], ranks[1] + 1))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9)
    mean = lifetime(values, times, 1.0, 0.85)
    assert mean.seconds is not None
    assert mean.seconds > found.seconds
    few = lifetime(values[::10], times, 1.0, 0.85, quantile=0.05)
    assert (few.low, "72 are needed" in few.text) == (0.0, True)
    assert "95 % interval before 1 s to" in few.text
    with pytest.raises(DataError, match="quantile is 2"):
        lifetime(values, times, 1.0, 0.85, quantile=2)


def test_lifetime_of_a_loss_counts_the_largest_as_worst() -> None:
    times = [1.0, 10.0, 100.0]
    values = np.linspace(0.5, 1, 100)[:, None] * np.array([1.0, 2.0, 3.0])
    found = lifetime(values, times, 1.0, 1.5, metric="loss", relative=False, quantile=0.05)
    level = np.sort(values[:, 0])[95]  # 95 of 100 chips do not exceed the 96th
    assert found.seconds == pytest.approx(10 ** ((1.5 - level) / level), rel=1e-9)
