"""Noise levels to measure at, and levels that fluctuate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from analognoise.computing.kinds import check_sigma
from analognoise.errors import NoiseError
from analognoise.seeds import Stream

# Seventeen levels from 0.01 to 100, as in Wang et al. 2025, arXiv 2501.14531.
LEVELS = "1e-2:1e2:17"
# Shares of the fixed and of the fluctuating part, as in the code of arXiv 2503.16183.
ALPHA, THETA = 0.45, 0.66


def noise_levels(sigmas: str | float | Iterable[float]) -> tuple[float, ...]:
    """Noise levels, growing.

    Args:
        sigmas: numbers above 0 in growing order, text such as ``"0.1,0.3,1"``, or ``"1e-2:1e2:17"``: from,
            to, and how many, evenly in the logarithm (rounded to six digits).

    Raises:
        NoiseError: when there is none, one is not finite or not above 0, or they do not grow.
    """
    if isinstance(sigmas, str):
        found = _range(sigmas) if ":" in sigmas else [_number(part, sigmas) for part in sigmas.split(",")]
    elif isinstance(sigmas, Iterable):
        found = [_number(sigma, sigmas) for sigma in sigmas]
    else:
        found = [_number(sigmas, sigmas)]
    if not found:
        raise NoiseError("sigmas is empty: give one noise level or more")
    if any(b <= a for a, b in pairwise(found)):
        raise NoiseError(f"sigmas must grow, each above the one before, found {sigmas!r}")
    return tuple(found)


def _number(value: object, where: object) -> float:
    try:
        number = check_sigma(float(value) if isinstance(value, str) else value, "sigma")
    except (ValueError, NoiseError):
        number = 0.0
    if number == 0:
        raise NoiseError(f"sigmas holds {value!r} (in {where!r}): give finite numbers above 0")
    return number


def _range(text: str) -> list[float]:
    parts = text.split(":")
    if len(parts) != 3 or not parts[2].strip().isdecimal():
        raise NoiseError(
            f"sigmas is {text!r}: a range is written FROM:TO:COUNT, evenly in the logarithm, as in "
            "'1e-2:1e2:17'"
        )
    low, high, count = _number(parts[0], text), _number(parts[1], text), int(parts[2])
    if low >= high:
        raise NoiseError(f"sigmas is {text!r}: the range must go upwards, from the smaller to the larger")
    if count < 2:
        raise NoiseError(f"sigmas is {text!r}: a range has two levels or more")
    return [float(f"{level:.6g}") for level in np.geomspace(low, high, count)]


def check_fluctuation(fluctuating: object) -> tuple[float, float] | None:
    """Shares (α, θ) of a fluctuating level; ``True`` means those of arXiv 2503.16183, None or False none.

    Raises:
        NoiseError: for anything else.
    """
    if fluctuating is None or fluctuating is False:
        return None
    if fluctuating is True:
        return ALPHA, THETA
    if not isinstance(fluctuating, (tuple, list)) or len(fluctuating) != 2:
        raise NoiseError(f"fluctuating is {fluctuating!r}: give True or a pair (alpha, theta)")
    return check_sigma(fluctuating[0], "alpha"), check_sigma(fluctuating[1], "theta")


def fluctuating_sigma(sigma: float, alpha: float, theta: float, stream: Stream) -> float:
    """σ = α·σ₀ + θ·|N(0, 1)| (arXiv 2503.16183); the normal number is the stream's uniform one, inverted."""
    from scipy.special import ndtri  # takes a while to load

    return alpha * sigma + theta * abs(float(ndtri(max(stream.uniform(), math.ulp(0.5)))))
