"""The midpoint noise level: recovered within its interval at the stated rate, and honest at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from analognoise.errors import DataError
from analognoise.evaluation.midpoint import fit_midpoint

SIGMAS = np.geomspace(1e-2, 1e2, 17)
UPPER, LOWER = 0.97, 0.1


def curve(mu: float, slope: float) -> np.ndarray:
    return LOWER + (UPPER - LOWER) / (1 + (SIGMAS / mu) ** slope)


@pytest.mark.parametrize(
    ("mu", "slope", "repeats", "images", "lower"),
    [
        (1.0, 2.0, 5, 360, LOWER),
        (3.0, 1.0, 25, 50, LOWER),
        (1.0, 0.3, 3, 100, LOWER),  # nearly flat: it falls over more decades than are measured
        (80.0, 1.5, 5, 360, LOWER),  # half way down at the end of the range
        (1.3, 8.0, 5, 360, LOWER),  # over within two levels
        (1.05, 10.0, 10, 360, LOWER),  # one level tells, so that slope and midpoint look alike
        (1.05, 50.0, 25, 360, LOWER),  # steeper than can be told
        (1.0, 2.0, 5, 360, None),
    ],
)
def test_interval_holds_the_midpoint_at_its_rate(
    mu: float, slope: float, repeats: int, images: int, lower: float | None
) -> None:
    rng = np.random.default_rng(7)
    hits = 0
    sets = 150
    for _ in range(sets):
        found = fit_midpoint(
            SIGMAS, rng.binomial(images, curve(mu, slope), (repeats, 17)) / images, UPPER, lower
        )
        assert found.low <= found.mu <= found.high
        hits += found.low <= mu <= found.high
    # Below this count a true rate of 95 % falls in one of 1,000 such tests (of 150: 133 hits).
    assert hits >= stats.binom.ppf(1e-3, sets, 0.95)


def test_exact_curve_gives_the_exact_midpoint() -> None:
    found = fit_midpoint(SIGMAS, curve(0.8, 1.7), UPPER, LOWER)
    assert found.mu == pytest.approx(0.8, rel=1e-6)
    assert found.slope == pytest.approx(1.7, rel=1e-5)
    assert math.isnan(found.low)
    assert str(found) == "0.8"
    free = fit_midpoint(SIGMAS, curve(0.8, 1.7), UPPER)
    assert free.mu == pytest.approx(0.8, rel=1e-4)
    assert free.lower == pytest.approx(LOWER, abs=1e-4)


def test_a_curve_that_never_reaches_half_is_only_bounded() -> None:
    rng = np.random.default_rng(0)
    flat = rng.binomial(360, np.full((5, 17), UPPER)) / 360
    above = fit_midpoint(SIGMAS, flat, UPPER, LOWER)
    assert above.mu == math.inf
    assert above.high == math.inf
    assert str(above).startswith("> 100 (")
    below = fit_midpoint(SIGMAS, rng.binomial(360, np.full((5, 17), LOWER)) / 360, UPPER, LOWER)
    assert below.mu == 0 == below.low
    assert str(below).startswith("< 0.01 (")
    # Just above half at the last level: the interval says that it may lie within.
    near = fit_midpoint(SIGMAS, rng.binomial(40, curve(120.0, 1.0), (3, 17)) / 40, UPPER, LOWER)
    assert near.high == math.inf
    assert near.low < 120


def test_a_fall_between_two_levels_lies_between_them() -> None:
    values = np.where(SIGMAS < 1.5, UPPER, LOWER) * np.ones((4, 1))
    found = fit_midpoint(SIGMAS, values, UPPER, LOWER)
    assert (found.low, found.high) == (SIGMAS[8], SIGMAS[9])
    assert found.mu == pytest.approx(math.sqrt(SIGMAS[8] * SIGMAS[9]))


@pytest.mark.parametrize(
    ("sigmas", "values", "upper", "lower", "words"),
    [
        ([1, 2], [1, 0], 1, 0, "three noise levels"),
        ([0, 1, 2], [1, 1, 0], 1, 0, "above 0"),
        ([1, 3, 2], [1, 1, 0], 1, 0, "must grow"),
        ([1, 2, 3], [1, 0], 1, 0, r"shape \(repeats, 3 levels\), found \(1, 2\)"),
        ([1, 2, 3], [1, math.nan, 0], 1, 0, "NaN"),
        ([1, 2, 3], [1, 1, 0], 0.1, 0.5, "above that of infinite noise"),
    ],
)
def test_wrong_input_is_named(sigmas: list, values: list, upper: float, lower: float, words: str) -> None:
    with pytest.raises(DataError, match=words):
        fit_midpoint(sigmas, values, upper, lower)
