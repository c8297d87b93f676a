"""Lifetimes of curves whose crossing is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from analognoise.errors import DataError
from analognoise.evaluation.lifetime import lifetime

TIMES = (1.0, 100.0, 10_000.0, 1_000_000.0)


def of(curve: list[float], times: tuple[float, ...] = TIMES, **options: object):
    """Lifetime of two units that both follow the curve."""
    options = {"digital": 1.0, "floor": 0.9} | options
    return lifetime([curve, curve], times, **options)


def test_linear_in_the_logarithm_of_time() -> None:
    # accuracy = 1 - 0.01 log10(t) falls below 0.955 at 10^4.5
    found = of([1.0, 0.98, 0.96, 0.94], floor=0.955)
    assert found.seconds == pytest.approx(10**4.5, rel=1e-9)
    assert found.low == found.high == found.seconds
    assert found.censored == ""


@pytest.mark.parametrize("exponent", [0.5, 1.9, 2.0, 3.3, 5.99])
def test_every_crossing_of_a_straight_line_is_exact(exponent: float) -> None:
    curve = [1 - 0.05 * math.log10(t) for t in TIMES]
    assert of(curve, floor=1 - 0.05 * exponent).seconds == pytest.approx(10**exponent, rel=1e-9)


def test_relative_and_absolute_floors() -> None:
    curve = [0.9, 0.8, 0.7, 0.6]
    relative = of(curve, digital=0.95, floor=0.8)
    absolute = of(curve, digital=0.95, floor=0.76, relative=False)
    assert relative.seconds == pytest.approx(absolute.seconds)
    assert relative.floor == pytest.approx(0.76)
    assert absolute.seconds == pytest.approx(100 * 100**0.4)


def test_not_within_the_measured_times() -> None:
    found = of([0.99, 0.98, 0.97, 0.96], times=(1.0, 3600.0, 86400.0, 31536000.0))
    assert (found.seconds, found.low, found.high, found.censored) == (None, None, None, "not within")
    assert str(found) == "not within 1 year"


def test_exactly_on_the_floor_is_not_below_it() -> None:
    assert of([0.95, 0.9, 0.9, 0.9]).seconds is None
    assert of([0.95, 0.9, 0.9, 0.8]).seconds == pytest.approx(10_000.0)


def test_below_from_the_beginning() -> None:
    found = of([0.8, 0.7, 0.6, 0.5])
    assert (found.seconds, found.low, found.high, found.censored) == (0.0, 0.0, 0.0, "already")
    assert found.text == "already below at 1 s"


def test_noise_that_rises_is_pooled() -> None:
    # 0.88 and 0.94 violate the order: isotonic regression puts 0.91 at both, so only the last stretch crosses
    found = of([0.97, 0.88, 0.94, 0.89])
    assert found.seconds == pytest.approx(10_000 * 100**0.5)


def test_loss_rises_above() -> None:
    curve = [1.0, 1.1, 1.2, 1.3]
    found = of(curve, metric="loss", floor=1.15)
    assert found.seconds == pytest.approx(100 * 100**0.5)
    assert of([2.0] * 4, metric="loss", floor=1.5).text == "already above at 1 s"


def test_own_metric_with_a_direction() -> None:
    found = of([1.0, 1.1, 1.2, 1.3], metric="error", floor=1.15, higher_is_better=False)
    assert found.seconds == pytest.approx(1000.0)


def test_time_zero_is_interpolated_in_time() -> None:
    found = of([1.0, 0.8, 0.7], times=(0.0, 10.0, 100.0))
    assert found.seconds == pytest.approx(5.0)
    assert of([1.0, 0.95, 0.85], times=(0.0, 10.0, 1000.0)).seconds == pytest.approx(100.0)
    assert of([0.5, 0.4, 0.3], times=(0.0, 10.0, 100.0)).text == "already below at 0 s"


def test_interval_is_where_the_band_crosses() -> None:
    generator = np.random.default_rng(0)
    values = np.array([1.0, 0.95, 0.88, 0.7]) + generator.normal(0, 0.01, (8, 4))
    found = lifetime(values, TIMES, digital=1.0, floor=0.9)
    half = stats.t.ppf(0.975, 7) * values.std(axis=0, ddof=1) / math.sqrt(8)
    for edge, expected in ((-half, found.low), (half, found.high), (0 * half, found.seconds)):
        curve = values.mean(axis=0) + edge  # falling as it is: no pooling needed
        assert (np.diff(curve) < 0).all()
        k = int(np.argmax(curve < 0.9))
        share = (curve[k - 1] - 0.9) / (curve[k - 1] - curve[k])
        assert expected == pytest.approx(TIMES[k - 1] * (TIMES[k] / TIMES[k - 1]) ** share, rel=1e-9)
    assert found.low < found.seconds < found.high
    assert "95 % interval" in found.text


def test_estimate_lies_within_its_interval_whatever_the_curve() -> None:
    generator = np.random.default_rng(1)
    censored = 0
    for _ in range(300):
        values = 0.95 - 0.02 * np.arange(4) + generator.normal(0, 0.06, (4, 4))
        found = lifetime(values, TIMES, digital=1.0, floor=0.9)
        low, middle, high = (math.inf if x is None else x for x in (found.low, found.seconds, found.high))
        assert low <= middle <= high
        censored += found.censored != ""
    assert 30 < censored < 270  # both kinds occur


def test_half_of_the_band_may_lie_outside() -> None:
    values = np.array([[0.99, 0.97, 0.95, 0.93], [0.97, 0.95, 0.93, 0.89]])
    found = lifetime(values, TIMES, digital=1.0, floor=0.9)
    assert found.seconds is None
    assert found.low is not None
    assert found.high is None
    assert found.text.startswith("not within")
    assert "beyond" in found.text


def test_one_chip_gives_no_interval_and_says_so() -> None:
    found = lifetime([[1.0, 0.98, 0.96, 0.94]], TIMES, digital=1.0, floor=0.95)
    assert found.seconds == pytest.approx(1e5)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert "no interval" in found.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"floor": 95}, "between 0 and 1"),
        ({"floor": 0}, "between 0 and 1"),
        ({"floor": math.nan}, "finite"),
        ({"floor": "0.9"}, "finite"),
        ({"floor": 90, "relative": False}, "between 0 and 1"),
        ({"floor": 0.95, "metric": "loss"}, "at least 1"),
        ({"digital": 0.0}, "relative=False"),
        ({"times": (1.0, 2.0)}, "shape"),
        ({"times": (1.0, 100.0, 10.0, 1000.0)}, "increasing"),
    ],
)
def test_bad_questions(options: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        of([1.0, 0.9, 0.8, 0.7], **options)
