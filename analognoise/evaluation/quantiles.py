"""Single chips instead of their mean: which level how many of them keep, with distribution-free intervals.

Nothing is supposed of the metric's distribution over chips but that the chips are independent draws of it.
The number of chips that keep a level is binomial, so its share has the interval of Clopper and Pearson (1934,
Biometrika 26:404). A quantile lies between two order statistics: of n chips sorted from the worst, the number
below the q-quantile is Binomial(n, q), so with l the largest and u the smallest rank for which

    P(B ≤ l − 1) ≤ (1 − c) / 2    and    P(B ≥ u) ≤ (1 − c) / 2,    B ~ Binomial(n, q),

the interval from the l-th to the u-th worst chip covers it with at least c (David and Nagaraja 2003, section
7.1; ties make it only more). With few chips there is no such l or u, and the interval is open on that side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analognoise.errors import DataError
from analognoise.evaluation.statistics import check_confidence
from analognoise.printing import number


@dataclass(frozen=True)
class Yield:
    """The share of chips that keep a level.

    Attributes:
        share: of the chips that were measured.
        low: lower end of its interval.
        high: upper end.
        kept: how many chips keep the level.
        chips: how many were measured.
        level: in units of the metric.
        confidence: coverage of the interval.
    """

    share: float
    low: float
    high: float
    kept: int
    chips: int
    level: float
    confidence: float

    def __str__(self) -> str:
        return (
            f"{self.kept} of {self.chips} chips, {100 * self.share:.3g} % ({100 * self.confidence:g} % "
            f"interval {100 * self.low:.3g} to {100 * self.high:.3g} %)"
        )


@dataclass(frozen=True)
class Quantile:
    """The level that all but a share of the chips keep.

    Attributes:
        value: of the chips that were measured.
        low: lower end of its interval in units of the metric; −inf where so few chips give none.
        high: upper end; inf where so few chips give none.
        q: the share of chips that may be worse.
        chips: how many were measured.
        needed: how many give an interval that is closed on both sides.
        confidence: coverage of the interval.
    """

    value: float
    low: float
    high: float
    q: float
    chips: int
    needed: int
    confidence: float

    @property
    def closed(self) -> bool:
        """Whether the chips are enough for an interval with two ends."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def __str__(self) -> str:
        level = f"{100 * self.confidence:g} % interval"
        if not self.closed:
            too_few = f"{self.chips} chips, too few for both ends of a {level}: {self.needed} are needed"
            return f"{number(self.value, '.4g')} ({too_few})"
        return (
            f"{number(self.value, '.4g')} ({level} {number(self.low, '.4g')} to {number(self.high, '.4g')})"
        )


def yield_at(
    values: ArrayLike,
    level: float,
    *,
    higher_is_better: bool = True,
    confidence: float = 0.95,
    metric: str = "",
) -> Yield:
    """The share of chips whose metric is at least ``level`` (at most, where smaller is better).

    Args:
        values: of the chips at one time.
        level: in units of the metric.
        higher_is_better: direction of the metric.
        confidence: coverage of the Clopper–Pearson interval.
        metric: its name: the level of an accuracy lies between 0 and 1.

    Raises:
        DataError: when a number makes no sense, or a value is not finite.
    """
    from scipy import stats  # takes a second to load

    x, bound = _finite(values), check_level(level, metric)
    check_confidence(confidence)
    kept = int((x >= bound).sum() if higher_is_better else (x <= bound).sum())
    interval = stats.binomtest(kept, len(x)).proportion_ci(confidence, method="exact")
    return Yield(kept / len(x), float(interval.low), float(interval.high), kept, len(x), bound, confidence)


def quantile(
    values: ArrayLike, q: float, *, higher_is_better: bool = True, confidence: float = 0.95
) -> Quantile:
    """The level that all but a share ``q`` of the chips keep, counted from the worst chip.

    The estimate is the ⌈q·n⌉-th worst of n chips. Of a loss the worst are the largest: 0.05 gives what 95 %
    of chips do not exceed.

    Args:
        values: of the chips at one time.
        q: share of chips that may be worse, between 0 and 1.
        higher_is_better: direction of the metric.
        confidence: coverage of the interval.

    Raises:
        DataError: when a number makes no sense, or a value is not finite.
    """
    from scipy import stats  # takes a second to load

    share = check_share(q)
    check_confidence(confidence)
    sign = 1.0 if higher_is_better else -1.0
    x = np.sort(sign * _finite(values))
    n, tail = len(x), (1 - confidence) / 2
    ranks = np.arange(1, n + 1)
    lower = ranks[stats.binom.cdf(ranks - 1, n, share) <= tail]
    upper = ranks[stats.binom.sf(ranks - 1, n, share) <= tail]
    ends = (
        sign * float(x[lower[-1] - 1]) if len(lower) else -sign * math.inf,
        sign * float(x[upper[0] - 1]) if len(upper) else sign * math.inf,
    )
    value = sign * float(x[max(1, math.ceil(share * n - 1e-9)) - 1])
    extreme = min(share, 1 - share)
    needed = math.ceil(math.log(tail) / math.log1p(-extreme) - 1e-9)
    return Quantile(value, min(ends), max(ends), share, n, needed, confidence)


def check_share(q: Any) -> float:
    """A quantile's ``q`` as a float.

    Raises:
        DataError: when it does not lie between 0 and 1.
    """
    if not _is_number(q) or not 0 < q < 1:
        raise DataError(
            f"quantile is {q!r}: give the share of chips that may be worse, more than 0 and less than 1, for "
            "example 0.05"
        )
    return float(q)


def check_level(level: Any, metric: str) -> float:
    """A level of a metric as a float.

    Raises:
        DataError: when it is not a finite number or, of an accuracy, does not lie between 0 and 1.
    """
    if not _is_number(level) or not math.isfinite(level):
        raise DataError(f"the level of a yield is {level!r}: give a finite value of the {metric}")
    if metric == "accuracy" and not 0 <= level <= 1:
        raise DataError(
            f"the level of a yield is {level:g}, but an accuracy lies between 0 and 1: write for example 0.9 "
            "for 90 %"
        )
    return float(level)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64).ravel()
    if x.size == 0 or not np.isfinite(x).all():
        raise DataError(f"chips need finite values, at least one; found {x.size}")
    return x
