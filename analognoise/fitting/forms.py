"""Curves fitted to the levels' values: one fit for each built-in form, and the choice between them.

A level's measured value follows a curve f by way of a :class:`~analognoise.fitting.sampling.Line`. Variances
are fitted by the deviance of the gamma distribution, means by weighted least squares; both are sums of
squares, so that :func:`scipy.optimize.least_squares` does the work and its Jacobian gives the parameters'
covariance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from analognoise.fitting.measurements import Floats
from analognoise.fitting.sampling import Line

_TINY = 1e-12
_STARTS = 2  # places of the limits that least squares begins at
_EDGE = 1e-7  # the smallest x that a logarithm is asked for, as in devices.profile


@dataclass(frozen=True)
class Target:
    """What a curve is fitted to: one value of each level.

    Attributes:
        x: of the levels, increasing.
        value: measured; a variance where ``squared``, else a mean.
        relative: variance of ``value`` over its square (where ``squared``), else its variance.
        line: how the value follows from the curve.
        squared: whether the line is one of f squared.
    """

    x: Floats
    value: Floats
    relative: Floats
    line: Line
    squared: bool

    def expected(self, f: Floats) -> Floats:
        """The levels' values if the curve had the values ``f``."""
        return self.line.factor * (f**2 if self.squared else f) + self.line.offset

    def points(self) -> tuple[Floats, Floats]:
        """The curve's value at each level as that level alone has it, and its standard error."""
        inner = (self.value - self.line.offset) / self.line.factor
        if not self.squared:
            return inner, np.sqrt(self.relative) / self.line.factor
        error = np.sqrt(self.relative) * self.value / self.line.factor
        # Near zero the root is no longer straight: there the error is that of the square's root itself.
        f = np.sqrt(np.maximum(inner, 0.0))
        return f, error / np.maximum(2 * f, np.sqrt(np.maximum(error, _TINY**2)))

    def residuals(self, f: Floats) -> Floats:
        """Signed roots of each level's deviance, of variance 1 where the curve is right."""
        expected = self.expected(f)
        if not self.squared:
            return (self.value - expected) / np.sqrt(self.relative)
        ratio = np.maximum(self.value, _TINY**2) / np.maximum(expected, _TINY**2)
        deviance = np.maximum(ratio - 1 - np.log(ratio), 0.0)
        return np.sign(ratio - 1) * np.sqrt(2 * deviance / self.relative)

    def among(self, value: Floats, relative: Floats) -> Target:
        """The same levels with other values, as in cross-validation."""
        return Target(self.x, value, relative, self.line, self.squared)


@dataclass(frozen=True)
class Form:
    """One kind of curve with free parameters.

    Attributes:
        name: of the curve, as profiles name it.
        parameters: names of the free ones.
        function: value at x for parameters.
        start: parameters to begin with, from x, values and their weights; several where there are several
            beginnings, none where the levels are too few.
    """

    name: str
    parameters: tuple[str, ...]
    function: Callable[[Floats, Floats], Floats]
    start: Callable[[Floats, Floats, Floats], Sequence[Floats]]

    @property
    def label(self) -> str:
        """Name with degree or limits, for tables."""
        if self.name == "polynomial":
            return f"polynomial of degree {len(self.parameters) - 1}"
        limits = [name for name in ("min", "max") if name in self.parameters]
        return f"{self.name} with {' and '.join(limits)}" if limits else self.name

    @property
    def complexity(self) -> float:
        """Number of parameters; a limit counts more, for the kink that it makes may lie anywhere."""
        return len(self.parameters) + 0.5 * sum(name in ("min", "max") for name in self.parameters)

    def spec(self, values: Floats) -> dict[str, Any]:
        """The curve as a profile writes it."""
        numbers = [float(value) for value in values]
        if self.name == "polynomial":
            return {"curve": "polynomial", "coefficients": numbers}
        return {"curve": self.name, **dict(zip(self.parameters, numbers, strict=True))}


@dataclass(frozen=True)
class Fitted:
    """A form with the parameters that fit best.

    Attributes:
        form: which.
        values: of its parameters.
        covariance: of these.
        deviance: sum of squared residuals.
        draws: parameters fitted to values drawn anew, a row each; none where that was not done.
        more: covariance that comes on top of what the draws show.
    """

    form: Form
    values: Floats
    covariance: Floats
    deviance: float
    draws: Floats | None = None
    more: Floats | None = None

    def __call__(self, x: Floats) -> Floats:
        """The curve at x."""
        return self.form.function(x, self.values)

    def error(self, x: Floats) -> Floats:
        """Standard error of the curve at x."""
        if self.draws is None or self.more is None:
            return self._spread(x, self.covariance)
        drawn = np.stack([self.form.function(x, values) for values in self.draws])
        return np.sqrt(drawn.var(axis=0) + self._spread(x, self.more) ** 2)

    def _spread(self, x: Floats, covariance: Floats) -> Floats:
        steps = 1e-5 * np.maximum(np.sqrt(np.diag(self.covariance)), 1e-9 * np.abs(self.values) + _TINY)
        slopes = np.stack(
            [
                (self.form.function(x, self.values + step) - self.form.function(x, self.values - step))
                / (2 * size)
                for size, step in zip(steps, np.diag(steps), strict=True)
            ],
            axis=-1,
        )
        return np.sqrt(np.maximum(np.einsum("ki,ij,kj->k", slopes, covariance, slopes), 0.0))


def fit_form(form: Form, target: Target, starts: Sequence[Floats] | None = None) -> Fitted | None:
    """The form with the parameters of least deviance; None where the levels cannot tell them."""
    if len(form.parameters) > len(target.x):
        return None
    points, errors = target.points()
    weights = 1 / np.maximum(errors, 1e-3 * float(errors.max()) + _TINY)
    best = None

    def residuals(values: Floats) -> Floats:
        return np.nan_to_num(target.residuals(form.function(target.x, values)), nan=1e6)

    for start in form.start(target.x, points, weights) if starts is None else starts:
        with np.errstate(all="ignore"):
            try:
                found = least_squares(
                    residuals,
                    start,
                    method="lm",
                    x_scale=np.maximum(np.abs(start), 1e-6),
                    diff_step=[1e-6],
                    max_nfev=200 * len(start),
                )
            except ValueError:
                continue
        if np.isfinite(found.x).all() and (best is None or found.cost < best.cost):
            best = found
    if best is None:
        return None
    slopes = np.asarray(best.jac)
    information = slopes.T @ slopes
    scale = np.sqrt(np.diag(information))
    if not (scale > 0).all():
        return None  # a parameter that no level depends on
    correlation = information / np.outer(scale, scale)
    if np.linalg.cond(correlation) > 1e12:
        return None
    covariance = np.linalg.inv(correlation) / np.outer(scale, scale)
    return Fitted(form, best.x, covariance, 2 * float(best.cost))


def redraw(fitted: Fitted, target: Target, count: int, generator: np.random.Generator) -> Floats | None:
    """Parameters fitted to levels' values drawn anew around the curve; None where too few fits succeed.

    Where a level lies beside the kink that a limit makes, parameters do not follow the values in proportion,
    and their covariance at the best fit alone is too small.
    """
    expected = target.expected(fitted(target.x))
    if target.squared:
        shape = 1 / target.relative
        values = expected * generator.gamma(shape, size=(count, len(shape))) / shape
    else:
        values = generator.normal(expected, np.sqrt(target.relative), size=(count, len(expected)))
    found = [fit_form(fitted.form, target.among(value, target.relative), [fitted.values]) for value in values]
    draws = [other.values for other in found if other is not None]
    return np.array(draws) if len(draws) > max(count // 2, len(fitted.values) + 1) else None


def _solve(columns: Sequence[Floats], y: Floats, weights: Floats) -> Floats:
    matrix = np.stack(columns, axis=1) * weights[:, None]
    return np.asarray(np.linalg.lstsq(matrix, y * weights, rcond=None)[0], dtype=np.float64)


def _lines(place: Floats, y: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Slope, intercept and squared error of a weighted straight line over each row of ``place``."""
    share = weights**2 / (weights**2).sum()
    middle, mean = place @ share, float(y @ share)
    apart = place - middle[:, None]
    slope = (apart * share) @ (y - mean) / ((apart**2) @ share)
    intercept = mean - slope * middle
    left = y - slope[:, None] * place - intercept[:, None]
    return slope, intercept, (left**2) @ share


def _polynomial(degree: int) -> Form:
    names = tuple(f"coefficients[{power}]" for power in range(degree + 1))

    def start(x: Floats, y: Floats, weights: Floats) -> list[Floats]:
        return [_solve([x**power for power in range(degree + 1)], y, weights)]

    def function(x: Floats, p: Floats) -> Floats:
        return np.asarray(np.polynomial.polynomial.polyval(x, p), dtype=np.float64)

    return Form("polynomial", names, function, start)


def _constant() -> Form:
    return Form(
        "constant",
        ("value",),
        lambda x, p: np.full_like(x, p[0]),
        lambda x, y, weights: [np.array([np.average(y, weights=weights**2)])],
    )


def _saturation() -> Form:
    def start(x: Floats, y: Floats, weights: Floats) -> list[Floats]:
        return [np.array([max(float(y.max()), _TINY), constant]) for constant in (0.1, 0.3, 1.0)]

    return Form(
        "saturation",
        ("amplitude", "constant"),
        lambda x, p: p[0] * -np.expm1(-x / np.where(abs(p[1]) > 1e-6, p[1], 1e-6)),
        start,
    )


def _limited(name: str, limits: tuple[str, ...]) -> Form:
    """A logarithm or a power between limits.

    Within its limits it is a straight line over ln x (of y, or of ln y), so that where it begins to be
    limited is searched on a grid, and least squares goes on from there.
    """
    own = ("slope", "intercept") if name == "log" else ("coefficient", "exponent")

    def function(x: Floats, p: Floats) -> Floats:
        log = np.log(np.maximum(x, _EDGE))
        inner = p[0] * log + p[1] if name == "log" else p[0] * np.exp(np.clip(p[1] * log, -60, 60))
        for limit, value in zip(limits, p[2:], strict=True):
            inner = np.maximum(inner, value) if limit == "min" else np.minimum(inner, value)
        return inner

    def start(x: Floats, y: Floats, weights: Floats) -> list[Floats]:
        log = np.log(np.maximum(x, _EDGE))
        positive = np.maximum(y, 1e-3 * float(np.abs(y).max()) + _TINY)
        value, weight = (y, weights) if name == "log" else (np.log(positive), weights * positive)
        inside = np.unique(np.concatenate([(log[1:] + log[:-1]) / 2, log[1:-1]]))
        low, high = (part.ravel() for part in np.meshgrid([-np.inf, *inside], [np.inf, *inside]))
        # Each end is limited or not; of one limit, whether it is the lower end's depends on the slope.
        ends = np.isfinite(low).astype(int) + np.isfinite(high)
        fits = (low < high) & (ends == len(limits))
        low, high = low[fits], high[fits]
        place = np.clip(log, low[:, None], high[:, None])
        within = ((log > low[:, None]) & (log < high[:, None])).any(axis=1) & (np.ptp(place, axis=1) > 0)
        low, high, place = low[within], high[within], place[within]
        if not low.size:
            return []
        slope, intercept, error = _lines(place, value, weight)
        found: list[Floats] = []
        for index in np.argsort(error, kind="stable"):
            level = slope[index] * np.array([low[index], high[index]]) + intercept[index]
            if name == "power":
                level = np.exp(np.clip(level, -60, 60))
            # A falling curve has its maximum at small x.
            named = dict(zip(("max", "min") if slope[index] < 0 else ("min", "max"), level, strict=True))
            if all(math.isfinite(named[limit]) for limit in limits) and not any(
                math.isfinite(at) and limit not in limits
                for limit, at in zip(named, (low[index], high[index]), strict=True)
            ):
                first = (slope[index], intercept[index])
                if name == "power":
                    first = (math.exp(min(intercept[index], 60.0)), slope[index])
                found.append(np.array([*first, *(named[limit] for limit in limits)]))
            if len(found) == _STARTS:
                break
        return found

    return Form(name, (*own, *limits), function, start)


FORMS: tuple[Form, ...] = (
    _constant(),
    _polynomial(1),
    _limited("log", ()),
    _limited("power", ()),
    _saturation(),
    _polynomial(2),
    *(_limited(name, limits) for limits in (("min",), ("max",)) for name in ("log", "power")),
    _polynomial(3),
    *(_limited(name, ("min", "max")) for name in ("log", "power")),
)
"""From the simplest to the most flexible."""
