"""How values and drift times are written in tables and pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analognoise.printing import number, signed
from analognoise.units import approximate_time, format_time


@dataclass(frozen=True)
class Numbers:
    """How a metric is written: accuracies in percent, all else as it is.

    Attributes:
        metric: its name.
        percent: whether values are fractions shown in percent.
        decimals: digits after the point.
    """

    metric: str
    percent: bool
    decimals: int

    @property
    def factor(self) -> float:
        """Multiplies a value of the frame into the number shown."""
        return 100.0 if self.percent else 1.0

    @property
    def heading(self) -> str:
        """The metric with its unit, for an axis: ``"accuracy (%)"``."""
        return f"{self.metric} (%)" if self.percent else self.metric

    def value(self, value: float) -> str:
        """The number alone: ``"94.3"``."""
        return self.change(value).removeprefix("+")

    def change(self, value: float) -> str:
        """The number with its sign, none for zero: ``"−2.1"``."""
        text = f"{value * self.factor:+.{self.decimals}f}"
        return text[1:] if not text.strip("+-0.") else signed(text)


def numbers_of(frame: pd.DataFrame) -> Numbers:
    """How to write the frame's values: one decimal in percent, else three significant digits of the median.

    More decimals are used where intervals would otherwise round to zero.
    """
    metric = str(frame["metric"].iloc[0])
    percent = in_percent(metric)
    factor = 100.0 if percent else 1.0
    means = np.abs(frame["mean"].to_numpy(float)) * factor
    halves = (frame["high"].to_numpy(float) - frame["low"].to_numpy(float)) * factor / 2
    needed = [1] if percent else [2 - magnitude for magnitude in _magnitude(means)]
    needed += [-magnitude for magnitude in _magnitude(halves)]
    return Numbers(metric, percent, max(0, min(max(needed, default=0), 2 if percent else 6)))


def in_percent(metric: str) -> bool:
    """Whether a metric's values are fractions that are shown in percent."""
    return metric == "accuracy" or metric.endswith(("_accuracy", " accuracy"))


def one_value(metric: str, value: float) -> str:
    """A single value with its unit, as in tables: ``"94.3 %"``, ``"0.2713"``."""
    return f"{number(100 * value, '.1f')} %" if in_percent(metric) else number(value, ".4g")


def _magnitude(values: np.ndarray) -> list[int]:
    """The decimal exponent of the median of what is finite and not zero; an empty list when nothing is."""
    known = values[np.isfinite(values) & (values > 0)]
    return [math.floor(math.log10(float(np.median(known))))] if known.size else []


def time_label(seconds: float) -> str:
    """A drift time as a heading: exact, unless that takes more than four digits (``"37 days"``)."""
    exact = format_time(seconds)
    return exact if len(exact.split()[0]) <= 4 else approximate_time(seconds)
