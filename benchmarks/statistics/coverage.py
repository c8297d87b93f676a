"""Whether intervals hold when the number of chips is chosen on the way: simulated runs with a known mean.

Every run draws chips' values from a distribution, stops by the rule, and is asked whether its interval holds
the true mean. Beside the two stages that analognoise uses stands what one would do without thinking: look at
the t interval of all chips after each chip from the tenth on, and stop when it is narrow enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from scipy import stats

from analognoise.evaluation.stopping import Precision

Values = NDArray[np.float64]
MOST = 2000


@dataclass(frozen=True)
class Chips:
    """A distribution of an accuracy over chips.

    Attributes:
        name: in words.
        draw: ``draw(rng, n)``, values of n chips.
        mean: of the distribution.
        std: likewise.
    """

    name: str
    draw: Callable[[np.random.Generator, int], Values]
    mean: float
    std: float


def _counts(images: int, a: float, b: float) -> Chips:
    """Accuracies on few images: counts of hits, whose share differs from chip to chip as a beta does."""
    known = stats.betabinom(images, a, b)

    def draw(rng: np.random.Generator, n: int) -> Values:
        return rng.binomial(images, rng.beta(a, b, n)) / images

    right = f"{100 * a / (a + b):.3g} % right"
    return Chips(
        f"coarse: accuracy on {images} images, {right}", draw, known.mean() / images, known.std() / images
    )


def distributions() -> list[Chips]:
    """What is simulated."""
    exponential = Chips("skewed: 1 − exponential", lambda r, n: 1 - r.exponential(0.02, n), 0.98, 0.02)
    s = 0.8
    mean, std = 0.03 * math.exp(s * s / 2), 0.03 * math.exp(s * s / 2) * math.sqrt(math.exp(s * s) - 1)
    lognormal = Chips(
        "skewed: 1 − lognormal (σ = 0.8)",
        lambda r, n: 1 - 0.03 * np.exp(s * r.standard_normal(n)),
        1 - mean,
        std,
    )
    rare = Chips(
        "coarse: 3 % of chips lose 10 points, the others nothing",
        lambda r, n: 0.97 - 0.1 * (r.random(n) < 0.03),
        0.967,
        0.1 * math.sqrt(0.03 * 0.97),
    )
    return [
        Chips("normal", lambda r, n: r.normal(0.95, 0.02, n), 0.95, 0.02),
        exponential,
        lognormal,
        _counts(360, 190, 10),
        _counts(20, 190, 10),
        _counts(20, 2000, 6),
        rare,
    ]


def two_stages(x: Values, half_width: float, pilot: int) -> tuple[float, float, int]:
    """Ends of the interval, and how many chips it took."""
    rule = Precision(half_width, pilot, MOST, bounded=True)
    n = 0
    while (more := rule.chips(x[:n])) > n:
        n = more
    found = rule.interval(x[:n])
    return found.low, found.high, n


def look_after_each(x: Values, half_width: float, pilot: int) -> tuple[float, float, int]:
    """The same by looking at the t interval of all chips after each chip."""
    n = np.arange(1, len(x) + 1)
    mean = np.cumsum(x) / n
    squares = np.maximum(np.cumsum((x - x[0]) ** 2) - n * (mean - x[0]) ** 2, 0)
    half = stats.t.ppf(0.975, np.maximum(n - 1, 1)) * np.sqrt(squares / np.maximum(n - 1, 1) / n)
    good = np.flatnonzero((half <= half_width) & (n >= pilot))
    stop = int(good[0]) if len(good) else len(x) - 1
    return float(mean[stop] - half[stop]), float(mean[stop] + half[stop]), stop + 1


RULES = {"two stages": two_stages, "a look after each chip": look_after_each}


def measure(runs: int, pilot: int = 10, seed: int = 0) -> list[dict[str, object]]:
    """Coverage of the 95 % interval, and chips that it took, by distribution and half-width d.

    Args:
        runs: simulated evaluations of each case.
        pilot: chips of the first stage.
        seed: of the simulation.
    """
    found = []
    for number, chips in enumerate(distributions()):
        for ratio in (0.8, 0.4, 0.2):
            half_width = ratio * chips.std
            rng = np.random.default_rng([seed, number])
            samples = [chips.draw(rng, MOST) for _ in range(runs)]
            for rule, stop in RULES.items():
                ends = [stop(x, half_width, pilot) for x in samples]
                held = [low <= chips.mean + 1e-12 and high >= chips.mean - 1e-12 for low, high, _ in ends]
                counts = [n for _, _, n in ends]
                found.append(
                    {
                        "chips": chips.name,
                        "half_width": half_width,
                        "of_std": ratio,
                        "rule": rule,
                        "coverage": float(np.mean(held)),
                        "mean_chips": float(np.mean(counts)),
                        "most_chips": int(np.max(counts)),
                    }
                )
    return found


def table(found: list[dict[str, object]], runs: int) -> Table:
    """One row per distribution and half-width."""
    shown = Table(title=f"Coverage of 95 % intervals (%), {runs} simulated runs each", title_justify="left")
    for heading in ("chips", "d / std", *(f"{rule}: coverage, mean chips" for rule in RULES)):
        shown.add_column(heading, justify="left" if heading == "chips" else "right")
    for start in range(0, len(found), len(RULES)):
        rows = found[start : start + len(RULES)]
        cells = [f"{100 * float(str(r['coverage'])):.1f}, {float(str(r['mean_chips'])):.0f}" for r in rows]
        shown.add_row(str(rows[0]["chips"]), str(rows[0]["of_std"]), *cells)
    return shown
