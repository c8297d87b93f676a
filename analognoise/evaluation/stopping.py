"""Stopping at a precision: as many chips at each drift time as its interval needs, by Stein's two stages.

The spread of a first stage of n₀ chips fixes the least number of chips

    N = max(n₀, ⌈(t(n₀ − 1) · s₀ / d)²⌉)

for a half-width d at confidence c, with t(k) the quantile (1 + c) / 2 of Student's t with k degrees of
freedom (Stein 1945, Ann. Math. Statist. 16:243). If the spread of all n chips asks
for more by the same formula, more are run, until n ≥ (t(n − 1) · s_n / d)². The interval is

    ȳ_n ± max(t(n₀ − 1) · s₀, t(n − 1) · s_n) / √n.

Of normal values the mean of the first n is independent of the spreads of the first 2, 3, … n, and only these
decide when to stop; so the interval with s₀ alone covers exactly c whatever n turns out to be, also where
``max_chips`` ends it, and the wider one covers at least c. The second condition is for values that are not
normal, where s₀ is too small too often. Stopping as soon as the interval of all chips is narrow, without the
first stage's, would stop where s happens to be small and cover less.

Each drift time has an n of its own. Where all chips of the first stage gave the same value, s₀ = 0 says
nothing: the first stage is doubled until they differ. It ends at ``max_chips``, or for a metric between 0 and
1 when so many equal chips bound the mean by themselves: unless at most a share d of chips gives anything
else, as many equal ones would turn up with a probability below 1 − c.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from analognoise.errors import DataError
from analognoise.evaluation.statistics import Interval, check_confidence, mean_interval
from analognoise.report.numbers import in_percent
from analognoise.units import format_time

PILOT = 10
"""The least number of chips of a first stage."""
MAX_CHIPS = 1000
"""As many chips as are run where no other limit is given."""


@dataclass(frozen=True)
class Precision:
    """When enough chips were run.

    Attributes:
        half_width: of the interval that is wanted, in units of the metric.
        pilot: chips of the first stage.
        max_chips: the largest number of chips at a time.
        confidence: coverage of the interval.
        bounded: whether the metric lies between 0 and 1.
        alike: whether all chips are known to be the same, as on devices on which nothing is random, where
            the forward draws nothing either.
    """

    half_width: float
    pilot: int
    max_chips: int
    confidence: float = 0.95
    bounded: bool = False
    alike: bool = False

    def chips(self, values: ArrayLike) -> int:
        """How many chips are wanted at a time; more than there are values means: measure these, ask again.

        Args:
            values: the first chips' values at this time, in the order of chips.
        """
        x = np.asarray(values, dtype=np.float64)
        stage = self._stage(x)
        if stage > len(x) or _equal(x[:stage]):
            return stage
        wanted = self._needed(x[:stage], stage)
        while wanted <= len(x) and (more := self._needed(x[:wanted], wanted)) > wanted:
            wanted = more
        return wanted

    def interval(self, values: ArrayLike) -> Interval:
        """Mean and interval of all chips that were run at a time.

        Where all values are equal the interval has no width, but for a metric between 0 and 1: there at most
        p = 1 − (1 − c)^(1/n) of all chips are different (Clopper–Pearson), and the mean is off by no more
        than as many chips at 0 or 1.

        Args:
            values: in the order of chips.

        Returns:
            The interval; ``std`` is that of all values.

        Raises:
            DataError: when there is no value, or one is NaN or infinite.
        """
        x = np.asarray(values, dtype=np.float64).ravel()
        found = mean_interval(x, self.confidence)
        low, high = found.low, found.high
        if not _equal(x):
            stage = min(self._stage(x), len(x))
            half = max(self._reach(x[:stage]), self._reach(x)) / math.sqrt(len(x))
            low, high = found.mean - half, found.mean + half
        elif self.bounded and not self.alike and len(x) > 1:
            share = 1 - (1 - self.confidence) ** (1 / len(x))
            low, high = found.mean - share * found.mean, found.mean + share * (1 - found.mean)
        return replace(found, low=low, high=high)

    def reached(self, summary: pd.DataFrame) -> list[bool]:
        """Whether the interval is as narrow as wanted, for each row of a summary frame."""
        half = np.maximum(summary["high"] - summary["mean"], summary["mean"] - summary["low"])
        # Equal chips say nothing of an unbounded metric's spread.
        known = (summary["std"] > 0) | self.bounded | self.alike
        return (known & (half <= self.half_width * (1 + 1e-9))).tolist()

    def sentence(self, summary: pd.DataFrame) -> str:
        """What was done and found, for people, out of the summary frame of one model."""
        metric = str(summary["metric"].iloc[0])
        wanted = f"± {100 * self.half_width:g} %" if in_percent(metric) else f"± {self.half_width:g}"
        reached = self.reached(summary)
        counts = ", ".join(
            f"{row['n']} at {format_time(row['time_s'])}{'' if there else ' (NOT REACHED)'}"
            for row, there in zip(summary.to_dict("records"), reached, strict=True)
        )
        stages = f"Stein's two stages (first {self.pilot}, at most {self.max_chips})"
        text = f"Chips until {wanted}, by {stages}: {counts}."
        if (summary["std"] == 0).any():
            text += (
                " Nothing is random on these devices."
                if self.alike
                else " Where all chips gave the same value, the interval says how many others there may be."
                if self.bounded
                else " Where all chips gave the same value, nothing is known of their spread."
            )
        return text

    def kept(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Of rows as in results.csv, of one model, those of as many chips as are wanted at each time."""
        parts = []
        for _, group in frame.sort_values("chip", kind="stable").groupby(["profile", "time_s"], sort=False):
            parts.append(group.iloc[: self.chips(group["value"])])
        return pd.concat(parts).sort_index()

    def _stage(self, x: NDArray[np.float64]) -> int:
        """Length of the first stage: doubled until its values differ, or no more need be found out."""
        stage = self.pilot
        while stage < self._most_alike and len(x) >= stage and _equal(x[:stage]):
            stage = min(2 * stage, self._most_alike)
        return stage

    @property
    def _most_alike(self) -> int:
        """After so many chips that are all the same a time is given up, or known well enough."""
        if self.alike:
            return self.pilot
        if not self.bounded or self.half_width >= 1:
            return self.max_chips
        known = math.ceil(math.log(1 - self.confidence) / math.log1p(-self.half_width))
        return max(self.pilot, min(known, self.max_chips))

    def _needed(self, x: NDArray[np.float64], least: int) -> int:
        """How many chips the spread of ``x`` asks for."""
        root = min(self._reach(x) / self.half_width, self.max_chips)  # its square would be more in any case
        return int(min(max(least, math.ceil(root**2)), self.max_chips))

    def _reach(self, x: NDArray[np.float64]) -> float:
        """The half-width that the spread of ``x`` would give the interval of one chip."""
        return float(stdtrit(len(x) - 1, (1 + self.confidence) / 2) * x.std(ddof=1))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; ``Precision(**found)`` makes it again."""
        return asdict(self)


def checked_precision(
    precision: Any,
    chips: int,
    max_chips: Any,
    confidence: float = 0.95,
    bounded: bool = False,
    alike: bool = False,
) -> Precision:
    """What a user asked for.

    Args:
        precision: half-width in units of the metric.
        chips: of the first stage; more than ``max_chips`` are cut to that, with a warning.
        max_chips: None takes ``MAX_CHIPS``, or ``chips`` if that is more.
        confidence: coverage of the interval.
        bounded: as in :class:`Precision`.
        alike: as in :class:`Precision`.

    Raises:
        DataError: when a number makes no sense, or ``max_chips`` is given alone.
    """
    if precision is None:
        raise DataError(
            f"max_chips is {max_chips!r}, but no precision is given: give one, or the number of chips"
        )
    number = isinstance(precision, (int, float, np.integer, np.floating)) and not isinstance(precision, bool)
    if not number or not math.isfinite(precision) or precision <= 0:
        raise DataError(
            f"precision is {precision!r}: give the half-width of the interval that is wanted, in units of "
            "the metric and more than 0, for example 0.001"
        )
    if bounded and precision >= 0.5:
        raise DataError(
            f"precision is {precision!r}, but an accuracy lies between 0 and 1, and every interval is "
            "as narrow as that: write for example 0.005 for 0.5 %"
        )
    if chips < PILOT:
        raise DataError(
            f"chips is {chips!r}: with a precision it is the number of chips of the first stage, at least "
            f"{PILOT}"
        )
    most = max(chips, MAX_CHIPS) if max_chips is None else int(max_chips)
    if most < PILOT:
        raise DataError(
            f"max_chips is {max_chips!r}, but {PILOT} chips are needed before their spread can say how many "
            f"are enough: give at least {PILOT}"
        )
    if chips > most:
        warnings.warn(
            f"max_chips is {most}, fewer than the {chips} chips of the first stage: it has {most}, too",
            stacklevel=3,
        )
    return Precision(float(precision), min(chips, most), most, check_confidence(confidence), bounded, alike)


def _equal(x: NDArray[np.float64]) -> bool:
    return bool((x == x[0]).all())
