"""The Hessian by its products alone: largest eigenvalue (Lanczos) and trace (Hutchinson)."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import torch
from scipy.linalg import eigh_tridiagonal

from analognoise.landscape.surface import Surface, Vector, dot
from analognoise.seeds import Stream

# Lanczos vectors held at once; then it starts again from the best vector found.
_BASIS = 32


@dataclass(frozen=True)
class Ritz:
    """An approximate eigenpair after some products.

    Attributes:
        value: the Rayleigh quotient; the largest eigenvalue is no smaller.
        residual: ‖Hv − value · v‖ of its unit vector v: an eigenvalue is no further away.
    """

    value: float
    residual: float


def largest_eigenvalue(
    surface: Surface, *, iterations: int, tolerance: float, seed: int
) -> tuple[Ritz, bool]:
    """The largest (most positive) eigenvalue of the Hessian, and whether its residual is within ``tolerance``
    of it.

    Lanczos with full reorthogonalization from a random vector, started again from the best vector every 32
    products, so that memory is bounded (Saad 2011, Numerical Methods for Large Eigenvalue Problems, 6.3 and
    7.2). scipy's ARPACK gives no bracket where it does not converge, and works on the CPU alone.
    """
    start = _random_vector(surface, "sharpness-lanczos", 0, seed)
    found, done = Ritz(0.0, math.inf), False
    while iterations > 0 and not done:
        found, start, used, done = _cycle(surface, start, min(iterations, _BASIS), tolerance)
        iterations -= used
    return found, done


def _cycle(surface: Surface, start: Vector, most: int, tolerance: float) -> tuple[Ritz, Vector, int, bool]:
    """One run of Lanczos: the Ritz pair, its vector, the products used, and whether it has converged."""
    precision = max(torch.finfo(part.dtype).eps for part in start)
    basis: list[Vector] = [_scaled(start, 1.0 / math.sqrt(dot(start, start)))]
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        rest = surface.hessian_product(basis[-1])
        diagonal.append(dot(rest, basis[-1]))
        for _ in range(2):  # once leaves what rounding brings back
            for known in basis:
                _subtract(rest, dot(rest, known), known)
        left = math.sqrt(dot(rest, rest))
        values, vectors = eigh_tridiagonal(diagonal, beside)
        value, shares = float(values[-1]), vectors[:, -1]
        residual = left * abs(float(shares[-1]))
        floor = precision * math.sqrt(surface.size) * max(abs(float(values[0])), abs(value))
        # Below the floor a residual is rounding: the vectors so far span all that the start reaches.
        done = residual <= max(tolerance * abs(value), floor)
        if done or len(basis) == min(most, surface.size):
            break
        beside.append(left)
        basis.append(_scaled(rest, 1.0 / left))
    best = surface.zeros()
    for share, known in zip(shares, basis, strict=True):
        _subtract(best, -float(share), known)
    return Ritz(value, residual), best, len(basis), done


def trace(surface: Surface, *, draws: int, seed: int) -> tuple[float, float]:
    """Trace of the Hessian and its standard error: the mean of zᵀHz over random signs z (Hutchinson 1990,
    doi 10.1080/03610919008812866).
    """
    samples = []
    for draw in range(draws):
        signs = [
            torch.where(part < 0, -1.0, 1.0).to(part.dtype)
            for part in _random_vector(surface, "sharpness-trace", draw, seed)
        ]
        samples.append(dot(signs, surface.hessian_product(signs)))
    return statistics.fmean(samples), statistics.stdev(samples) / math.sqrt(draws)


def _random_vector(surface: Surface, process: str, draw: int, seed: int) -> Vector:
    return [
        Stream(seed, process, layer=name, step=draw).normal(tuple(part.shape), part.device).to(part.dtype)
        for name, part in zip(surface.names, surface.zeros(), strict=True)
    ]


def _scaled(vector: Vector, factor: float) -> Vector:
    return [part * factor for part in vector]


def _subtract(vector: Vector, factor: float, other: Vector) -> None:
    for part, known in zip(vector, other, strict=True):
        part.sub_(known, alpha=factor)
