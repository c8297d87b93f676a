"""The midpoint noise level μ: where accuracy has fallen half way from its noise-free value.

A logistic in ln σ is fitted by least squares to the mean over repeats (Walking Noise, arXiv 2212.10430, has a
logistic; what it holds fixed is this project's choice, see :func:`fit_midpoint`):

    f(σ) = lower + (upper − lower) / (1 + (σ / μ)^slope)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from analognoise.errors import DataError
from analognoise.evaluation.statistics import check_confidence

Array = NDArray[np.float64]
# Slopes tried, times the distance between two neighbouring levels in ln σ: from a fall over far more decades
# than anybody measures to one that is over between two levels, and on to what is a step to the levels.
_SLOPES = np.geomspace(0.02, 1000.0, 46)
_STEEPEST = 20.0  # slope of a fit, in the same unit: from there on levels tell slopes apart no more
_NEWTON = 4  # Gauss-Newton steps from the best of them
_PLACES = 20  # values of μ tried at once within a range
_BEYOND = 2.0  # the fit may go this far beyond the range, in units of its width, before it says so
_FINEST = 0.02  # an interval reaches at least this fraction of the distance of two levels to both sides
_PLATEAU = 0.02  # closer than this fraction of the fall to an end is at the end
# How the tests of one midpoint and slope share what may be refused wrongly: the derivative by ln μ, and the
# levels on either side of μ, which tell of the slope.
_SHARES = (0.8, 0.1, 0.1)
# Slopes tried for each midpoint, times the best one.
_FAN = np.exp(np.array([-5, -3, -2, -1.4, -1, -0.7, -0.5, -0.35, -0.25, -0.17, -0.1, -0.06, -0.03, -0.01]))
_FAN = np.concatenate([_FAN, [1.0], 1.0 / _FAN[::-1]])


@dataclass(frozen=True)
class Midpoint:
    """A fitted midpoint.

    Attributes:
        mu: the midpoint; ``inf`` when it is above the largest σ measured, 0.0 below the smallest.
        low: lower end of the interval; 0.0 when it is below the smallest σ, NaN for a single repeat.
        high: upper end; ``inf`` when it is above the largest σ, NaN for a single repeat.
        slope: of the fall, per unit of ln σ; NaN where nothing falls within the range.
        upper: the noise-free value.
        lower: the value at infinite noise.
        sigma_min: smallest σ measured.
        sigma_max: largest σ measured.
        repeats: number of repeats.
        confidence: coverage of the interval.
    """

    mu: float
    low: float
    high: float
    slope: float
    upper: float
    lower: float
    sigma_min: float
    sigma_max: float
    repeats: int
    confidence: float

    def __str__(self) -> str:
        if math.isnan(self.low):
            return self._word(self.mu)
        return f"{self._word(self.mu)} ({self._word(self.low)} to {self._word(self.high)})"

    def _word(self, value: float) -> str:
        if value == math.inf:
            return f"> {self.sigma_max:.3g}"
        return f"< {self.sigma_min:.3g}" if value == 0 else f"{value:.3g}"


def fit_midpoint(
    sigmas: ArrayLike,
    values: ArrayLike,
    upper: float,
    lower: float | None = None,
    *,
    confidence: float = 0.95,
) -> Midpoint:
    """Fit the midpoint noise level, with an interval over repeats.

    The interval holds every μ at which some slope passes three t tests over the repeats: of the residuals
    times the derivative of f by ln μ (with what the other parameters could explain taken out of it), and
    times that derivative on the levels below μ and on those above it alone (score tests; the levels share
    1 − confidence as 0.8, 0.1 and 0.1). At the true μ and slope the tests are exact for normal values and a
    given ``lower``, however steep the curve is, so the true μ is held at least as often as stated. Nothing is
    assumed of how the levels of a repeat go together. The interval becomes one-sided where the data do not
    tell. Nothing is extrapolated: beyond the levels measured a midpoint is only said to be ``"> σ_max"`` or
    ``"< σ_min"``.

    It reaches at least 2 % of the distance of two levels (in ln σ) to both sides.

    Where all values lie at the upper end up to one level and at the lower end from the next, μ is their
    geometric mean and the interval reaches from one to the other.

    Args:
        sigmas: noise levels, at least three, above 0 and growing.
        values: the metric, shape (repeats, levels).
        upper: its value without noise, which is measured and not fitted.
        lower: its value at infinite noise: for accuracy that of guessing, 1 / classes. None fits it, which
            needs a curve that goes all the way down.
        confidence: coverage of the interval.

    Raises:
        DataError: for levels or values that are not as said.
    """
    check_confidence(confidence)
    sigma, y = _checked(sigmas, values, upper, lower)
    x, mean, repeats = np.log(sigma), y.mean(axis=0), len(y)

    def made(mu: float, low: float, high: float, slope: float, end: float) -> Midpoint:
        ends = (float(sigma[0]), float(sigma[-1]), repeats, float(confidence))
        return Midpoint(mu, low, high, slope, float(upper), end, *ends)

    gap = None if lower is None else _step(mean, upper, lower)
    if gap is not None and lower is not None:
        one = repeats == 1
        low, high = float(sigma[gap]), float(sigma[gap + 1])
        return made(math.sqrt(low * high), *((math.nan,) * 2 if one else (low, high)), math.nan, float(lower))
    curves = _Curves(x, mean, upper, lower)
    center, slope, end = curves.best()
    beyond = math.inf if center > x[-1] else 0.0 if center < x[0] else None
    mu = math.exp(center) if beyond is None else beyond
    low, high = math.nan, math.nan
    if repeats > 1:
        low, high = _interval(curves, y, center, confidence)
    return made(mu, low, high, slope if beyond is None else math.nan, end)


def _checked(sigmas: ArrayLike, values: ArrayLike, upper: float, lower: float | None) -> tuple[Array, Array]:
    sigma, y = np.asarray(sigmas, dtype=np.float64), np.asarray(values, dtype=np.float64)
    y = y[None] if y.ndim == 1 else y
    if sigma.ndim != 1 or len(sigma) < 3 or not (np.isfinite(sigma).all() and (sigma > 0).all()):
        raise DataError(f"a midpoint needs three noise levels above 0 or more, found {sigmas!r}")
    if (np.diff(sigma) <= 0).any():
        raise DataError(f"noise levels must grow, found {sigma.tolist()}")
    if y.ndim != 2 or y.shape[1] != len(sigma) or not len(y):
        raise DataError(f"values must have the shape (repeats, {len(sigma)} levels), found {y.shape}")
    if not np.isfinite(y).all():
        raise DataError("the values hold NaN or infinite numbers: a midpoint needs finite ones")
    if not math.isfinite(upper) or (lower is not None and not (math.isfinite(lower) and lower < upper)):
        raise DataError(
            f"the value without noise must be finite and above that of infinite noise, found {upper!r} "
            f"and {lower!r}"
        )
    return sigma, y


def _step(mean: Array, upper: float, lower: float) -> int | None:
    """The last level at the upper end, when the next and all after it are at the lower one."""
    part = (mean - lower) / (upper - lower)
    high = part > 1 - _PLATEAU
    count = int(high.sum())
    falls = 0 < count < len(mean) and bool(high[:count].all())
    return count - 1 if falls and bool((part[count:] < _PLATEAU).all()) else None


class _Curves:
    """Logistics through a mean curve, with slope (and lower end) fitted for a given midpoint."""

    def __init__(self, x: Array, mean: Array, upper: float, lower: float | None) -> None:
        self.x, self.mean, self.upper, self.lower = x, mean, upper, lower
        self.slopes, self.steepest = np.array(_SLOPES) / np.diff(x).mean(), _STEEPEST / np.diff(x).mean()

    def _logistic(self, centers: Array, slopes: Array) -> Array:
        return 0.5 * (1.0 - np.tanh(0.5 * slopes[..., None] * (self.x - centers[..., None])))

    def ends(self, h: Array) -> Array:
        """The lower end of each curve: the one given, or the best one from 0 to the upper end."""
        if self.lower is not None:
            return np.full(h.shape[:-1], float(self.lower))
        rest = 1.0 - h  # f = upper · h + lower · (1 − h)
        weight = np.maximum((rest * rest).sum(-1), 1e-12)
        found = ((self.mean - self.upper * h) * rest).sum(-1) / weight
        return np.clip(found, min(0.0, self.upper), self.upper)

    def fitted(self, centers: Array) -> tuple[Array, Array, Array]:
        """Slope, lower end and sum of squares of the best curve for each midpoint."""
        loss = self._loss(centers[:, None], np.broadcast_to(self.slopes, (len(centers), len(self.slopes))))
        best = loss.argmin(axis=1)
        slopes, least = self.slopes[best], loss[np.arange(len(centers)), best]
        for _ in range(_NEWTON):
            h = self._logistic(centers, slopes)
            ends = self.ends(h)[:, None]
            derivative = (ends - self.upper) * h * (1.0 - h) * (self.x - centers[:, None]) * slopes[:, None]
            rest = ends + (self.upper - ends) * h - self.mean
            step = -(derivative * rest).sum(-1) / np.maximum((derivative**2).sum(-1), 1e-15)
            tried = np.clip(slopes * np.exp(np.clip(step, -0.3, 0.3)), self.slopes[0], self.slopes[-1])
            loss = self._loss(centers, tried)
            slopes, least = np.where(loss < least, tried, slopes), np.minimum(loss, least)
        return slopes, self.ends(self._logistic(centers, slopes)), least

    def _loss(self, centers: Array, slopes: Array) -> Array:
        h = self._logistic(centers, slopes)
        ends = self.ends(h)[..., None]
        return ((ends + (self.upper - ends) * h - self.mean) ** 2).sum(-1)

    def best(self) -> tuple[float, float, float]:
        """Midpoint (in ln σ), slope and lower end of the best curve, to beyond the range."""
        from scipy import optimize  # takes a while to load

        width = self.x[-1] - self.x[0]
        centers = np.linspace(self.x[0] - _BEYOND * width, self.x[-1] + _BEYOND * width, 9 * _PLACES)
        slopes, _, loss = self.fitted(centers)
        start = int(loss.argmin())
        low = (centers[0], math.log(self.slopes[0]))
        high = (centers[-1], math.log(self.steepest))

        def residuals(p: Array) -> Array:
            h = self._logistic(p[:1], np.exp(p[1:]))[0]
            end = float(self.ends(h))
            return end + (self.upper - end) * h - self.mean

        first = np.clip(
            [centers[start], math.log(slopes[start])], np.nextafter(low, high), np.nextafter(high, low)
        )
        found = optimize.least_squares(
            residuals, first, bounds=(low, high), xtol=1e-10, ftol=1e-12, gtol=1e-12
        )
        center, slope = float(found.x[0]), math.exp(found.x[1])
        end = float(self.ends(self._logistic(np.array([center]), np.array([slope]))[0]))
        return center, slope, end

    def directions(self, centers: Array, slopes: Array) -> tuple[Array, Array]:
        """What residuals are weighted with at each midpoint and slope, shape (midpoints, slopes, 3, levels),
        and the curves there, shape (midpoints, slopes, levels).

        The first direction is the derivative by ln μ with what the other parameters could explain taken out;
        the others are the derivative itself on the levels up to μ, and on those above.

        Returns:
            directions, of unit length or zero where there is no such level, and curves.
        """
        away = self.x - centers[:, None, None]
        z = slopes[..., None] * away
        h = 0.5 * (1.0 - np.tanh(0.5 * z))
        # h · (1 − h), relative to its largest: of a very steep curve it would be all zero.
        size = np.abs(z)
        logs = -size - 2.0 * np.log1p(np.exp(-size))
        left = np.broadcast_to(away <= 0, z.shape)
        sides = [_relative(np.where(side, logs, -np.inf)) for side in (left, ~left)]
        fall = _relative(logs)
        direction = fall
        basis: list[Array] = []
        for vector in [away * fall] + [1.0 - h] * (self.lower is None):  # Gram-Schmidt
            for known in basis:
                vector = vector - known * (vector * known).sum(-1, keepdims=True)
            basis.append(_unit(vector))
        for known in basis:
            direction = direction - known * (direction * known).sum(-1, keepdims=True)
        ends = self.ends(h)[..., None]
        return np.stack([_unit(part) for part in (direction, *sides)], axis=2), ends + (self.upper - ends) * h


def _relative(logs: Array) -> Array:
    """The exponentials, divided by the largest of each row; zero where there is none."""
    largest = logs.max(-1, keepdims=True)
    return np.exp(logs - np.where(np.isfinite(largest), largest, 0.0))


def _unit(vector: Array) -> Array:
    length = np.sqrt((vector * vector).sum(-1, keepdims=True))
    return vector / np.where(length > 0, length, 1.0)


def _interval(curves: _Curves, y: Array, center: float, confidence: float) -> tuple[float, float]:
    """The ends of the midpoints around ``center`` (in ln σ) that the t tests do not refuse."""
    x, (repeats, levels) = curves.x, y.shape
    start = min(max(center, x[0]), x[-1])
    shares = (1 - confidence) * np.array(_SHARES)
    limits = stdtrit(repeats - 1, 1 - shares / 2)
    # Equal values do not mean that there is no spread: what n repeats did not show happens in up to 3/n.
    unseen = 1.5 * _resolution(y, curves.upper) / repeats
    spread = np.cov(y, rowvar=False) / repeats + np.eye(levels) * unseen**2

    def excess(centers: Array) -> Array:
        """Above 1 where every slope is refused."""
        slopes = curves.fitted(centers)[0][:, None] * _FAN
        weights, curve = curves.directions(centers, slopes)
        score = (weights * (y.mean(axis=0) - curve)[:, :, None]).sum(-1)
        error = np.sqrt(np.maximum(((weights @ spread) * weights).sum(-1), 0.0))
        return (np.maximum(np.abs(score) - 1e-12, 0.0) / (limits * error + 1e-15)).max(-1).min(-1)

    def side(end: float) -> float | None:
        inside, outside = float(start), end
        for look in range(
            3
        ):  # from one end to the other, then ever closer to where the tests begin to refuse
            centers = np.linspace(inside, outside, _PLACES)
            found = excess(centers)
            refused = np.flatnonzero(found > 1)
            if not len(refused):
                return None if look == 0 else outside
            first = int(refused[0])
            if first == 0:
                return inside
            inside, outside = float(centers[first - 1]), float(centers[first])
        return outside

    # Where the fall is over within a level or two, the form between them is supposed and not measured.
    least = _FINEST * float(np.diff(x).mean())
    low = None if center < x[0] else side(float(x[0]))
    high = None if center > x[-1] else side(float(x[-1]))
    return (
        0.0 if low is None else math.exp(min(low, center - least)),
        math.inf if high is None else math.exp(max(high, center + least)),
    )


def _resolution(y: Array, upper: float) -> float:
    """The smallest difference of two values: of an accuracy, one sample's share."""
    steps = np.diff(np.unique(np.append(y, upper)))
    return float(steps[steps > 1e-9].min(initial=math.inf)) if (steps > 1e-9).any() else 0.0
