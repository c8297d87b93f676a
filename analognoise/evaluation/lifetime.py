"""How long a model stays good enough: the time at which the mean or a quantile of chips crosses a floor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analognoise.errors import DataError
from analognoise.evaluation import quantiles
from analognoise.evaluation.statistics import Interval, better_when_higher, mean_interval
from analognoise.units import approximate_time, format_time

_BEYOND = 1e300


@dataclass(frozen=True)
class Lifetime:
    """How long the mean over units, or a quantile of them, stays on the good side of a floor.

    Attributes:
        seconds: the time of the crossing; None when it is not within the measured times; 0.0 when the mean is
            beyond the floor at the first.
        low: lower end of the interval: where the lower confidence band crosses (0.0: before the first time;
            None: not within). NaN for one unit.
        high: upper end, from the upper band, with the same conventions.
        censored: "" when the crossing was found, "not within" or "already" when it lies outside the measured
            times.
        floor: the level in units of the metric.
        text: all of it in words, e.g. ``"3.2 days (95 % interval 1.1 days to 8 days)"``, ``"not within 1
            year"``, ``"already below at 1 s"``.
    """

    seconds: float | None
    low: float | None
    high: float | None
    censored: str
    floor: float
    text: str

    def __str__(self) -> str:
        return self.text


def lifetime(
    values: ArrayLike,
    times: Sequence[float],
    digital: float,
    floor: float,
    *,
    relative: bool = True,
    metric: str = "accuracy",
    higher_is_better: bool | None = None,
    confidence: float = 0.95,
    quantile: float | None = None,
    interval: Callable[[ArrayLike], Interval] | None = None,
) -> Lifetime:
    """Time until the mean, or a quantile, falls below a floor (rises above it, for a metric that is better
    when smaller).

    The mean over units at each time is made monotone by isotonic regression (a device does not get better by
    ageing; what looks so is noise), then interpolated linearly in log(time) between the measured times, and
    linearly in time in a stretch that begins at time 0. The interval is where the Student-t band's two edges,
    made monotone alike, cross the floor; the digital metric counts as exactly known. For a quantile the band
    is that of order statistics, see :mod:`analognoise.evaluation.quantiles`.

    Args:
        values: shape (units, times): chips of one model, or training seeds each averaged over its chips.
        times: increasing drift times in seconds.
        digital: the digital metric, used when ``relative``.
        floor: a fraction of the digital metric when ``relative`` (0.95; for a metric better when smaller at
            least 1, e.g. 1.05), else a level.
        relative: whether ``floor`` is a fraction of the digital metric.
        metric: name of the metric, for its direction.
        higher_is_better: direction of a metric of the user's own.
        confidence: coverage of the interval.
        quantile: share of the units that may be worse: 0.05 gives the time until 5 % of the chips are beyond
            the floor. None: the mean's time.
        interval: of the mean, where the number of units was not fixed beforehand; then ``values`` is NaN
            where a unit was not measured.

    Raises:
        DataError: when shapes do not fit, values are not finite, or the floor makes no sense for the metric.
    """
    better = better_when_higher(metric, higher_is_better)
    y, t = np.asarray(values, dtype=np.float64), np.asarray(times, dtype=np.float64)
    if y.ndim != 2 or y.shape[0] == 0 or t.ndim != 1 or y.shape[1] != len(t) or len(t) == 0:
        raise DataError(
            f"a lifetime needs values of shape (units, times); found {y.shape} with {len(t)} times"
        )
    if not (np.isfinite(t).all() and (np.diff(t) > 0).all() and t[0] >= 0):
        raise DataError(f"a lifetime needs increasing times, not negative; found {list(t)}")
    level = _floor_level(floor, relative, digital, metric, better)
    sign = 1.0 if better else -1.0
    columns = [column if interval is None else column[~np.isnan(column)] for column in sign * y.T]
    needed = 0
    if quantile is not None:
        found = [quantiles.quantile(column, quantile, confidence=confidence) for column in columns]
        over = [Interval(q.value, q.low, q.high, math.nan, q.chips) for q in found]
        needed = 0 if all(q.closed for q in found) else found[0].needed
    else:
        mean = interval or partial(mean_interval, confidence=confidence)
        over = [_turned(mean(sign * column), sign) for column in columns]
    seconds = _crossing([i.mean for i in over], t, sign * level)
    censored = (
        "not within"
        if seconds is None
        else "already"
        if _monotone([i.mean for i in over])[0] < sign * level
        else ""
    )
    if len(y) == 1:
        low: float | None = math.nan
        high: float | None = math.nan
    else:
        low, high = (_crossing([getattr(i, edge) for i in over], t, sign * level) for edge in ("low", "high"))
    text = _lifetime_text(seconds, low, high, t, censored, "below" if better else "above", confidence)
    if needed and len(y) > 1:
        text += f"; too few chips for both ends, {needed} are needed"
    return Lifetime(seconds, low, high, censored, level, text)


def _turned(found: Interval, sign: float) -> Interval:
    """The interval of the values times ``sign``."""
    ends = sorted((sign * found.low, sign * found.high))
    return Interval(sign * found.mean, ends[0], ends[1], found.std, found.n)


def _floor_level(floor: float, relative: bool, digital: float, metric: str, better: bool) -> float:
    if not isinstance(floor, (int, float, np.integer, np.floating)) or not math.isfinite(floor):
        raise DataError(f"floor is {floor!r}: give a finite number, for example 0.95")
    floor = float(floor)
    if not relative:
        if metric == "accuracy" and not 0 < floor <= 1:
            raise DataError(
                f"floor is {floor:g}, but an accuracy lies between 0 and 1: write for example 0.9 for 90 %"
            )
        return floor
    if not digital > 0:
        raise DataError(
            f"the digital {metric} is {digital:g}, so a floor relative to it means nothing: use "
            "relative=False"
        )
    if better and not 0 < floor <= 1:
        raise DataError(
            f"floor is {floor:g}, but relative to the digital {metric} it lies between 0 and 1: write for "
            "example 0.95"
        )
    if not better and floor < 1:
        raise DataError(
            f"floor is {floor:g}, but {metric} is better when smaller: relative to the digital {metric} it "
            "is at least 1, for example 1.05"
        )
    return floor * digital


def _monotone(curve: Sequence[float]) -> NDArray[np.float64]:
    from scipy import optimize  # takes a while to load

    finite = np.clip(np.asarray(curve), -_BEYOND, _BEYOND)  # an interval that is open on a side
    return np.asarray(optimize.isotonic_regression(finite, increasing=False).x)


def _crossing(curve: Sequence[float], times: NDArray[np.float64], floor: float) -> float | None:
    """Where the monotone fit of ``curve`` goes below ``floor``: None if nowhere, 0.0 if it starts there."""
    fit = _monotone(curve)
    below = np.flatnonzero(fit < floor)
    if not len(below):
        return None
    k = int(below[0])
    if k == 0:
        return 0.0
    share = (fit[k - 1] - floor) / (fit[k - 1] - fit[k])
    start, end = float(times[k - 1]), float(times[k])
    if start == 0:
        return float(share * end)
    return float(start * (end / start) ** share)


def _lifetime_text(
    seconds: float | None,
    low: float | None,
    high: float | None,
    times: NDArray[np.float64],
    censored: str,
    side: str,
    confidence: float,
) -> str:
    first, last = format_time(float(times[0])), format_time(float(times[-1]))

    def words(value: float | None) -> str:
        if value is None:
            return f"beyond {last}"
        return approximate_time(value) if value > 0 else f"before {first}"

    if seconds is None:
        text = f"not within {last}"
    elif censored == "already":
        text = f"already {side} at {first}"
    else:
        text = approximate_time(seconds)
    if low is not None and math.isnan(low):
        return f"{text} (one unit: no interval)"
    if censored and words(low) == words(high):
        return text
    return f"{text} ({confidence * 100:g} % interval {words(low)} to {words(high)})"
