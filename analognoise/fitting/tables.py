"""Tables of levels: as the file has them, and evened out for samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.interpolate import make_smoothing_spline

from analognoise.fitting.forms import Target
from analognoise.fitting.measurements import Floats

_DIGITS = 6  # of figures in the file
_LEAST = 1e-6  # of a table's largest value: between two zeros rounding may go below zero
_SPLINE = 5  # levels that a smoothing spline needs
_BEYOND = np.array([0.5, 1.0, 1.5, 2.0])  # places after the last level, in units of the last step


def table(target: Target) -> dict[str, Any]:
    """The curve through every level's own value."""
    points, _ = target.points()
    return _spec(target.x, np.maximum(points, _floor(points)))


def even_table(target: Target) -> dict[str, Any]:
    """A smooth curve near the levels' own values, which goes on beyond the last one.

    It is a cubic smoothing spline of ln f over the root of x, weighted with the levels' errors, as smooth as
    generalised cross-validation finds best (Wahba 1990, Spline models for observational data, ch. 4).
    """
    points, error = target.points()
    if len(points) < _SPLINE:
        return table(target)
    # A logarithm of what may be zero says no more than its error does.
    value = np.maximum(points, np.maximum(0.5 * error, _floor(points)))
    x = target.x
    spline = make_smoothing_spline(np.sqrt(x), np.log(value), w=(value / error) ** 2)
    places = np.unique(
        [x[0] / 2, *x, *(x[1:] + x[:-1]) / 2, *(x[-1] + _BEYOND * (x[-1] - x[-2]))],
    )
    inside = 0.5 * float(value.min()), 2 * float(value.max())
    return _spec(places, np.clip(np.exp(spline(np.sqrt(places))), *inside))


def rounded(curve: dict[str, Any]) -> dict[str, Any]:
    """The curve with figures as the file will have them, so that the file holds exactly what was sampled."""

    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(item) for item in value]
        return value if isinstance(value, str) else float(f"{value:.{_DIGITS}g}")

    return {key: short(value) for key, value in curve.items()}


def _floor(points: Floats) -> float:
    return _LEAST * max(float(points.max()), 1e-12)


def _spec(x: Floats, y: Floats) -> dict[str, Any]:
    return rounded({"curve": "table", "x": [*x], "y": [*y]})
