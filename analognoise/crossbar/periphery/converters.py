"""Digital-to-analog and analog-to-digital conversion, with gradients that pass straight through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_LARGEST_LOG = 60.0


class _Round(torch.autograd.Function):
    """Rounding to whole numbers whose gradient is that of leaving the values alone."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def _transformed(values: Tensor) -> bool:
    """Whether derivatives are taken other than by recording what is computed."""
    # A tensor does not tell what transforms further out do with it.
    return torch._C._are_functorch_transforms_active() or forward_ad.unpack_dual(values).tangent is not None


def differentiated(values: Tensor) -> bool:
    """Whether a derivative with respect to these may be wanted, backward or forward."""
    return (values.requires_grad and torch.is_grad_enabled()) or _transformed(values)


def limited(
    values: Tensor, levels: int | None, limit: float | Tensor | None, *, followed: bool = True
) -> Tensor:
    """Values that a converter gives out: whole numbers from -levels to levels, or values limited to ± limit.

    Where no gradient is wanted ``values`` is overwritten. The gradient is 1 within the range, also through
    the rounding, and 0 where a value was cut off.

    Args:
        values: in units of the converter's step if it has levels, else in any unit.
        levels: the largest whole number; None for a converter that does not round.
        limit: the largest value where nothing is rounded; None for none.
        followed: whether torch may record or transform what is computed; False spares asking.
    """
    most: Any = levels if levels is not None else limit
    if not followed:
        values = values if levels is None else values.round_()
        return values if most is None else values.clamp_(-most, most)
    if levels is not None:
        values = rounded(values)
    if differentiated(values):
        return values if most is None else values.clamp(-most, most)
    return values if most is None else values.clamp_(-most, most)


def rounded(values: Tensor) -> Tensor:
    """Whole numbers, with the gradient of leaving the values alone; where none is wanted ``values`` is
    overwritten.
    """
    if _transformed(values):  # where functions of one's own have no forward derivatives once compiled
        return values + (values.round() - values).detach().nan_to_num()  # of infinite ones
    if values.requires_grad and torch.is_grad_enabled():
        rounding: Tensor = _Round.apply(values)
        return rounding
    return values.round_()


def log_of(bounds: Tensor) -> Tensor:
    """What a learned range is trained as: its logarithm, so that it stays above 0 and a step changes it by a
    factor, whatever the unit of its inputs. In float64 (where the device has it), so that :func:`range_of`
    gives float32 ranges back to the last bit.
    """
    bounds = bounds.detach()
    return bounds.log() if bounds.device.type == "mps" else bounds.double().log()


def range_of(logs: Tensor) -> Tensor:
    """The ranges of logarithms, float32, within what that holds and its inverse.

    With the gradients of :func:`limited` a range learns as the step of learned step size quantization does
    (Esser et al. 2020, arXiv 1902.08153): values that are cut off ask for a larger one, rounding errors for
    one that makes the loss smaller.
    """
    return logs.clamp(-_LARGEST_LOG, _LARGEST_LOG).exp().float()


def bit_planes(values: Tensor, levels: int) -> list[Tensor]:
    """Whole numbers in ±levels as planes of -1, 0 and 1, lowest bit first: values = Σ 2^k · plane_k."""
    sign, rest = values.sign(), values.abs()
    planes = []
    for _ in range(levels.bit_length()):
        half = (rest / 2).floor_()
        planes.append((rest - 2 * half).mul_(sign))
        rest = half
    return planes
