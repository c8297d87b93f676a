"""How far the loss rises nearby: at the worst point of a neighbourhood, and at random ones."""

from __future__ import annotations

import math
import statistics
import warnings
from typing import Any

import torch

from analognoise.landscape.surface import Surface, moved, norms_of
from analognoise.seeds import Stream
from analognoise.training import ASAM, SAM, SAMSON
from analognoise.training.wrapper import forget_casts

_CLIMBS = {"sam": SAM, "asam": ASAM, "samson": SAMSON}


def worst_rise(
    surface: Surface, kind: str, *, steps: int, tolerance: float, **options: Any
) -> tuple[float, bool | None]:
    """The largest rise found on an ascent within ‖T⁻¹ε‖₂ ≤ ρ, and whether the last step gained no more.

    The first step is the training method's own climb, ε = ρ T² g / ‖T g‖. Each further one starts from the
    weights again, with the gradient g at the point last found: the point of the neighbourhood where the loss
    that is linear about that point is largest (Frank and Wolfe's step, of full length). Where the loss is
    convex no step falls below the one before (Journée et al. 2010, J. Mach. Learn. Res. 11, 517); anywhere
    else the best point counts.
    """
    climber = _CLIMBS[kind](surface.base, surface.model, **options)
    best, gain = 0.0, math.inf
    gradient = surface.gradient()
    if not any(norms_of(gradient)):
        warnings.warn(
            "sharpness: the gradient is zero at these weights, so the ascent has no direction and finds no "
            "rise: measure 'random', 'eigenvalue' or 'trace' there",
            RuntimeWarning,
            stacklevel=4,
        )
        return 0.0, None if steps == 1 else False
    with moved(surface):
        for step in range(steps):
            for parameter, part in zip(surface.parameters, gradient, strict=True):
                parameter.grad = part.to(parameter.dtype)
            climber.first_step()
            try:
                rise = surface.value() - surface.loss
                if step + 1 < steps:
                    gradient = surface.gradient()
            finally:
                climber.restore()
            gain = abs(rise - best)
            best = max(best, rise)
    return best, None if steps == 1 else gain <= tolerance * abs(best)


def random_rise(surface: Surface, *, noise: float, draws: int, seed: int) -> tuple[float, float]:
    """Mean rise over draws of w + N(0, (noise · max|w_l|)²) for each parameter tensor l, and its standard
    error.
    """
    rises = []
    with torch.no_grad(), moved(surface):
        clean = [parameter.clone() for parameter in surface.parameters]
        spreads = [noise * parameter.abs().max() if parameter.numel() else 0.0 for parameter in clean]
        for draw in range(draws):
            for name, parameter, start, spread in zip(
                surface.names, surface.parameters, clean, spreads, strict=True
            ):
                normal = Stream(seed, "sharpness-noise", layer=name, step=draw).normal(
                    tuple(parameter.shape), parameter.device
                )
                parameter.copy_(start + spread * normal.to(parameter.dtype))
            forget_casts()
            rises.append(surface.value() - surface.loss)
    return statistics.fmean(rises), statistics.stdev(rises) / math.sqrt(draws)
