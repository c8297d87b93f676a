"""Uniform quantization with straight-through gradients.

A number x with step s has the code c = clamp(round(x / s), low, high), rounded half to even, and the value
c · s. Rounding has no useful derivative, so gradients pass straight through it (Bengio et al. 2013, arXiv
1308.3432); the step's is that of LSQ (Esser et al. 2020, arXiv 1902.08153, equations 2 and 3):

    ∂(c s)/∂x = 1 where round(x / s) lies within [low, high], else 0
    ∂(c s)/∂s = round(x / s) − x / s there, else low or high
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# Steps below this count as this: a step that training drives to zero or below must not turn codes around.
TINY = 1e-12


class _Rounded(torch.autograd.Function):
    """``codes · step``; where ``stored`` codes are given these, with the gradients of the rounded ones."""

    @staticmethod
    def forward(x: Tensor, step: Tensor, low: int, high: int, factor: float, stored: Any) -> Tensor:
        codes = rounded(x, step, low, high) if stored is None else stored.to(x.dtype)
        return codes * step.clamp_min(TINY)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, step, ctx.low, ctx.high, ctx.factor, _ = inputs
        ctx.save_for_backward(x, step)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, step = ctx.saved_tensors
        ratio = x / step.clamp_min(TINY)
        nearest = ratio.round()
        inside = (nearest >= ctx.low) & (nearest <= ctx.high)
        to_x = gradient * inside if ctx.needs_input_grad[0] else None
        to_step = None
        if ctx.needs_input_grad[1]:
            slope = torch.where(inside, nearest - ratio, nearest.clamp(ctx.low, ctx.high))
            to_step = (gradient * slope).sum_to_size(step.shape) * ctx.factor
        return to_x, to_step, None, None, None, None


def rounded(x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """The codes of ``x`` as floating-point numbers."""
    return (x / step.clamp_min(TINY)).round_().clamp_(low, high)


def on_grid(
    x: Tensor, step: Tensor, low: int, high: int, *, factor: float = 1.0, stored: Tensor | None = None
) -> Tensor:
    """``x`` on the grid of a step, differentiable.

    Args:
        x: any shape; half precision is computed in float32.
        step: broadcasts against ``x``.
        low: smallest code.
        high: largest code.
        factor: multiplies the gradient of the step.
        stored: codes that take the place of those of ``x``; of its shape.

    Returns:
        Of the shape and type of ``x``.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        return _Rounded.apply(x.float(), step.float(), low, high, factor, stored).to(x.dtype)
    return _Rounded.apply(x, step, low, high, factor, stored)


def largest_code(bits: int, signed: bool = True) -> int:
    """2^(bits − 1) − 1, or 2^bits − 1 without sign."""
    return 2 ** (bits - 1) - 1 if signed else 2**bits - 1


def gradient_factor(count: int, high: int) -> float:
    """1 / sqrt(count · high): keeps steps and weights moving at like relative speeds (LSQ, section 2.2).

    Args:
        count: numbers that share the step; for activations, those of one sample.
        high: largest code.
    """
    return 1.0 / math.sqrt(max(count, 1) * high)


def step_for(x: Tensor, high: int, dims: tuple[int, ...] | None = None) -> Tensor:
    """Where a learned step begins: LSQ's 2 · mean|x| / sqrt(high), or max|x| / high where that is smaller.

    LSQ's own start suits few bits; with many it would make the grid coarser than the data need.

    Args:
        x: data.
        high: largest code.
        dims: the axes that share a step, kept with length 1; None for a single step without axes.
    """
    size = x.detach().abs()
    size = size.float() if size.dtype in (torch.float16, torch.bfloat16) else size
    if dims is None:
        mean, top = size.mean(), size.max()
    else:
        mean, top = size.mean(dims, keepdim=True), size.amax(dims, keepdim=True)
    return not_zero(torch.minimum(2.0 * mean / math.sqrt(high), top / high)).to(x.dtype)


def step_of_range(top: Tensor, high: int) -> Tensor:
    """The step whose largest code stands for ``top``; 1 where that is 0."""
    return not_zero(top / high)


def not_zero(step: Tensor) -> Tensor:
    """1 in place of steps of 0: nothing but zeros is on them."""
    return torch.where(step > 0, step, torch.ones_like(step))
