"""Digital-to-analog and analog-to-digital conversion, with gradients that pass straight through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Round(torch.autograd.Function):
    """Rounding to whole numbers whose gradient is that of leaving the values alone."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _ScaledGradient(torch.autograd.Function):
    """The values themselves, with a gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def limited(values: Tensor, levels: int | None, limit: float | Tensor | None) -> Tensor:
    """Values that a converter gives out: whole numbers from -levels to levels, or values limited to ± limit.

    Where no gradient is wanted ``values`` is overwritten. The gradient is 1 within the range, also through
    the rounding, and 0 where a value was cut off.

    Args:
        values: in units of the converter's step if it has levels, else in any unit.
        levels: the largest whole number; None for a converter that does not round.
        limit: the largest value where nothing is rounded; None for none.
    """
    most: Any = levels if levels is not None else limit
    if values.requires_grad and torch.is_grad_enabled():
        if levels is not None:
            values = _Round.apply(values)
        return values if most is None else values.clamp(-most, most)
    if levels is not None:
        values = values.round_()
    return values if most is None else values.clamp_(-most, most)


def learnable(bound: Tensor, rows: int, levels: int | None) -> Tensor:
    """A range that is learned, as a positive number, its gradient times 1 / sqrt(rows · levels).

    With the gradients of :func:`limited` this is learned step size quantization (Esser et al. 2020, arXiv
    1902.08153), for the range in place of the step.

    Args:
        bound: the range, a tensor without dimensions.
        rows: how many numbers of a vector are converted with it.
        levels: of the converter.
    """
    positive: Tensor = _ScaledGradient.apply(bound, (max(rows, 1) * (levels or 1)) ** -0.5)
    return positive.abs().clamp_min(torch.finfo(bound.dtype).tiny)


def bit_planes(values: Tensor, levels: int) -> list[Tensor]:
    """Whole numbers in ±levels as planes of -1, 0 and 1, lowest bit first: values = Σ 2^k · plane_k."""
    sign, rest = values.sign(), values.abs()
    planes = []
    for _ in range(levels.bit_length()):
        half = (rest / 2).floor_()
        planes.append((rest - 2 * half).mul_(sign))
        rest = half
    return planes
