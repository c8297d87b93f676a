"""Golden values of every shipped profile: mean and standard deviation of one device, from closed forms.

Written from the published formulas with their constants typed anew, in numpy and scipy, without the package.
``python tests/devices/golden.py`` prints the table that ``golden.csv`` holds; a test recomputes it, and
another compares it with what the package draws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import special, stats

TABLE = Path(__file__).with_name("golden.csv")
HOUR, DAY, YEAR = 3600.0, 86400.0, 31536000.0
Curve = Callable[[float], float]


def polynomial(*coefficients: float) -> Curve:
    return lambda x: sum(c * x**k for k, c in enumerate(coefficients))


def clipped_log(slope: float, intercept: float, low: float, high: float) -> Curve:
    return lambda x: min(max(slope * math.log(x) + intercept, low), high)


def either(limit: float, low: Curve, high: Curve) -> Curve:
    return lambda x: low(x) if x < limit else high(x)


def clamped(mean, std, low=0.0, high=np.inf):
    """Mean and second moment of a normal variable that is set to low and high beyond them."""
    mean, std = np.asarray(mean, float), np.asarray(std, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = np.where(std > 0, (low - mean) / std, 0), np.where(std > 0, (high - mean) / std, 0)
        inside = special.ndtr(b) - special.ndtr(a)
        da, db = stats.norm.pdf(a), stats.norm.pdf(b)
        edge_a = np.where(np.isfinite(a), (low + mean) * da, 0.0)
        edge_b = np.where(np.isfinite(b), (np.where(np.isfinite(high), high, 0.0) + mean) * db, 0.0)
        first = mean * inside + std * (da - db)
        second = (mean**2 + std**2) * inside + std * (edge_a - edge_b)
    for bound, beyond in ((low, special.ndtr(a)), (high, special.ndtr(-b))):
        if np.isfinite(bound):
            first, second = first + bound * beyond, second + bound**2 * beyond
    exact = np.clip(mean, low, high)
    return np.where(std > 0, first, exact), np.where(std > 0, second, exact**2)


def spread(first, second):
    return math.sqrt(max(0.0, float(second) - float(first) ** 2))


def folded(mean: float, std: float, rate: float) -> float:
    """E[exp(-rate · abs(X))], X normal."""
    up = np.exp(rate * mean + (rate * std) ** 2 / 2) * special.ndtr(-mean / std - rate * std)
    return np.exp(-rate * mean + (rate * std) ** 2 / 2) * special.ndtr(mean / std - rate * std) + up


@dataclass
class PhaseChange:
    """Clamped programming noise, a power law with folded normal exponents, clamped relative 1/f noise."""

    g_max: float
    t_0: float
    t_read: float
    sigma: Curve
    mean: Curve
    std: Curve
    q: Curve
    times = (None, HOUR, YEAR)

    def at(self, target: float, seconds: float | None) -> tuple[float, float]:
        x = target / self.g_max
        sigma = self.sigma(x)
        if seconds is None:
            first, second = clamped(target, sigma)
            return float(first), spread(first, second)
        # Over the programmed conductance by quadrature: an atom at zero, which stays there, and the rest,
        # in parts between the kinks of Q.
        edges = sorted(
            {
                0.0,
                *(k * self.g_max for k in (0.008, 0.1591, 0.16)),
                *(target + k * sigma for k in (-9, -3, 0, 3, 9)),
            }
        )
        edges = [edge for edge in edges if edge >= max(0.0, target - 9 * sigma)]
        nodes, weights = np.polynomial.legendre.leggauss(200)
        growth = math.sqrt(math.log((seconds + self.t_0 + self.t_read) / (2 * self.t_read)))
        first = second = 0.0
        for low, high in itertools.pairwise(edges):
            g = (high + low) / 2 + (high - low) / 2 * nodes
            density = weights * (high - low) / 2 * stats.norm.pdf(g, target, sigma)
            one, two = clamped(1.0, growth * np.array([self.q(value / self.g_max) for value in g]))
            first += float((density * g * one).sum())
            second += float((density * g**2 * two).sum())
        rate = math.log((seconds + self.t_0) / self.t_0)
        nu = self.mean(max(x, 1e-7)), self.std(max(x, 1e-7))
        mean = first * folded(*nu, rate)
        return mean, spread(mean, second * folded(*nu, 2 * rate))


@dataclass
class ByAge:
    """A clamped normal around the target, its spread linear in ln t (or t) between ages; read noise."""

    g_max: float
    ages: tuple[float, ...]
    sigmas: tuple[Curve, ...]
    times: tuple[float | None, ...]
    log: bool = True
    read: Curve = lambda g: 0.0

    def at(self, target: float, seconds: float | None) -> tuple[float, float]:
        axis = np.log(self.ages) if self.log else np.array(self.ages)
        place = axis[0] if seconds is None else math.log(seconds) if self.log else seconds
        sigma = float(np.interp(place, axis, [curve(target) for curve in self.sigmas]))
        if seconds is None or self.read(target) == 0.0 == self.read(1.0):
            first, second = clamped(target, sigma)
            return float(first), spread(first, second)
        if sigma == 0.0:
            first, second = clamped(target, self.read(target))
            return float(first), spread(first, second)
        z = np.linspace(-9, 9, 20001)
        density = stats.norm.pdf(z) * (z[1] - z[0])
        g = np.maximum(target + sigma * z, 0.0)
        first, second = clamped(g, np.array([self.read(value) for value in g]))
        mean = float((density * first).sum())
        return mean, spread(mean, float((density * second).sum()))


@dataclass
class Relaxing:
    """Normal programming noise, shift and spread in ln t, read noise of log10 G; all clamped to the range."""

    g_min: float
    g_max: float
    sigma: Curve
    times = (None, HOUR, YEAR)

    def at(self, target: float, seconds: float | None) -> tuple[float, float]:
        low, high = self.g_min, self.g_max
        if seconds is None:
            first, second = clamped(target, self.sigma(target), low, high)
            return float(first), spread(first, second)
        log = math.log(seconds)
        mean = target - 0.08900206 * log
        std = math.hypot(self.sigma(target), 0.04201137 * log + 0.41183342)
        z = np.linspace(-9, 9, 20001)
        density = stats.norm.pdf(z) * (z[1] - z[0])
        g = mean + std * z
        growth = math.sqrt(math.log((seconds + 1e-6) / 2e-6))
        read = 0.0277316483 * np.log10(np.clip(g, low, high)) * growth
        first, second = clamped(g, read, low, high)
        average = float((density * first).sum())
        return average, spread(average, float((density * second).sum()))


@dataclass
class Written:
    """Programming noise alone."""

    g_max: float
    sigma: Curve
    clamp: bool = True
    times: tuple[float | None, ...] = (None,)

    def at(self, target: float, seconds: float | None) -> tuple[float, float]:
        if not self.clamp:
            return target, self.sigma(target)
        first, second = clamped(target, self.sigma(target))
        return float(first), spread(first, second)


MU_HERMES = either(0.0945, clipped_log(-0.0387, -0.0182, 0.072, 0.13), polynomial(0.0736, -0.0126, -0.0436))


def scaled(curve: Curve, by: float) -> Curve:
    return lambda g: curve(g / by)


def saturating(amplitude: float, knee: float) -> Curve:
    return lambda g: amplitude * (1 - np.exp(-g / knee))


WITNESSES = {
    "ideal": (Written(100.0, lambda g: 0.0), (0.0, 10.0, 50.0, 100.0)),
    "gaussian": (Written(100.0, lambda g: 5.0, clamp=False), (0.0, 10.0, 50.0, 100.0)),
    "multiplicative": (Written(100.0, lambda g: 0.05 * g, clamp=False), (0.0, 10.0, 50.0, 100.0)),
    "pcm-ibm": (
        PhaseChange(
            25.0,
            20.0,
            250e-9,
            polynomial(0.26348, 1.9650, -1.1731),
            clipped_log(-0.0155, 0.0244, 0.049, 0.1),
            clipped_log(-0.0125, -0.0059, 0.008, 0.045),
            lambda x: min(0.0088 / max(x**0.65, 1e-3), 0.2),
        ),
        (0.0, 2.5, 12.5, 25.0),
    ),
    "pcm-hermes-1": (
        PhaseChange(
            10.35,
            200.0,
            512e-9,
            polynomial(0.15781817, 2.32443916, -2.16310839, 0.68841818),
            MU_HERMES,
            either(0.3039, clipped_log(-0.0120, -0.0023, 0.0124, 0.04), polynomial(0.0104, 0.0116, -0.0165)),
            either(
                0.1591,
                clipped_log(-0.0078, 0.0038, 0.0179, 0.04),
                polynomial(0.0088, 0.0768, -0.1352, 0.0664),
            ),
        ),
        (0.0, 1.035, 5.175, 10.35),
    ),
    "pcm-hermes-2": (
        PhaseChange(
            20.7,
            300.0,
            512e-9,
            polynomial(0.16603222, 4.71806468, -8.48101252, 4.68961419),
            MU_HERMES,
            either(0.3055, clipped_log(-0.0117, -0.0057, 0.0091, 0.04), polynomial(0.0073, 0.0093, -0.0118)),
            either(
                0.16, clipped_log(-0.0117, -0.0069, 0.015, 0.04), polynomial(0.0123, 0.0211, -0.0280, 0.0069)
            ),
        ),
        (0.0, 2.07, 10.35, 20.7),
    ),
    "reram-wan-2022": (
        ByAge(
            40.0,
            (1.0, DAY, 2 * DAY),
            (
                scaled(polynomial(0.348, 16.030, -43.853, 45.393, -16.815), 40.0),
                scaled(polynomial(0.701, 22.086, -50.773, 47.095, -16.458), 40.0),
                scaled(polynomial(0.782, 20.274, -43.507, 37.062, -11.934), 40.0),
            ),
            (None, HOUR, DAY, 2 * DAY),
        ),
        (0.0, 4.0, 20.0, 40.0),
    ),
    "reram-wan-2022-crosssim-fit": (
        Written(39.26, polynomial(1.053, 0.2374, -0.01167, 1.536e-4)),
        (0.0, 3.926, 19.63, 39.26),
    ),
    "reram-cmo-2pct": (
        Relaxing(9.0, 88.199997, polynomial(0.0112185391, 0.01129027418)),
        (9.0, 20.0, 48.6, 88.199997),
    ),
    "reram-cmo-0.2pct": (
        Relaxing(9.0, 88.199997, polynomial(0.00081107, 0.00106879)),
        (9.0, 20.0, 48.6, 88.199997),
    ),
    "reram-milo-hfo2": (Written(225.0, polynomial(4.782321, -0.009107)), (50.0, 90.0, 150.0, 225.0)),
    "sonos-2022": (
        ByAge(
            1600.0,
            tuple(day * DAY for day in range(6)),
            tuple(
                saturating(*pair)
                for pair in (
                    (19.88665, 176.3115),
                    (25.59102, 186.85544),
                    (28.72753, 193.56834),
                    (31.04318, 198.90332),
                    (33.76214, 204.77023),
                    (34.57909, 207.34309),
                )
            ),
            (None, HOUR, 5 * DAY),
            log=False,
            read=saturating(12.58037, 215.36557),
        ),
        (0.0, 160.0, 800.0, 1600.0),
    ),
}


def rows() -> list[tuple[str, float, str, float, float]]:
    """(profile, target, time in seconds or "programmed", mean, standard deviation)."""
    return [
        (name, target, "programmed" if time is None else f"{time:.0f}", *witness.at(target, time))
        for name, (witness, targets) in WITNESSES.items()
        for target in targets
        for time in witness.times
    ]


def main() -> None:
    print("profile,target,time_s,mean,std")
    for name, target, time, mean, std in rows():
        print(f"{name},{target},{time},{mean:.6g},{std:.6g}")


if __name__ == "__main__":
    main()
