"""Digital-to-analog and analog-to-digital conversion, with gradients that pass straight through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_LARGEST_LOG = 60.0


class _Round(torch.autograd.Function):
    """Rounding to whole numbers whose gradient is that of leaving the values alone."""

    generate_vmap_rule = True  # this and setup_context are what torch.func asks for

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        return values.round()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Nothing is needed for the gradient."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _RoundForward(_Round):
    """The same with forward derivatives, which torch.compile cannot read."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0].clone()  # which may not share its memory with the input's


def differentiated(values: Tensor) -> bool:
    """Whether a derivative with respect to these is wanted, backward or forward."""
    backward = values.requires_grad and torch.is_grad_enabled()
    return backward or forward_ad.unpack_dual(values).tangent is not None


def constant(values: Tensor) -> Tensor:
    """The values, without any derivative; ``detach`` lets forward ones pass."""
    return forward_ad.unpack_dual(values).primal.detach()


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
    if levels is not None:
        values = rounded(values)
    if differentiated(values):
        return values if most is None else values.clamp(-most, most)
    return values if most is None else values.clamp_(-most, most)


def rounded(values: Tensor) -> Tensor:
    """Whole numbers, with the gradient of leaving the values alone; where none is wanted ``values`` is
    overwritten.
    """
    if differentiated(values):
        function = _Round if torch.compiler.is_compiling() else _RoundForward
        rounding: Tensor = function.apply(values)
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
