"""Uniform quantization with straight-through gradients.

A number x with step s has the code c = clamp(round(x / s), low, high), rounded half to even, and the value
c · s. Rounding has no useful derivative, so gradients pass straight through it (Bengio et al. 2013, arXiv
1308.3432); the step's is that of LSQ (Esser et al. 2020, arXiv 1902.08153, equations 2 and 3):

    ∂(c s)/∂x = 1 where round(x / s) lies within [low, high], else 0
    ∂(c s)/∂s = round(x / s) − x / s there, else low or high

A learned range r is trained by its natural logarithm, with s = r / high: it stays above 0, and how fast it
moves depends neither on its size nor on the bits (Jain et al. 2019, arXiv 1903.08066). LSQ's own form, s
itself with its gradient divided by sqrt(count · high), is not stable at many bits and a usual learning rate:
on the digits, 8 bits per channel drove steps to 900 times their start and below 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class _Rounded(torch.autograd.Function):
    """``codes · step``; where ``stored`` codes are given these, with the gradients of the rounded ones."""

    @staticmethod
    def forward(x: Tensor, step: Tensor, low: int, high: int, stored: Any) -> Tensor:
        codes = rounded(x, step, low, high) if stored is None else stored.to(x.dtype)
        return codes * step

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, step, ctx.low, ctx.high, _ = inputs
        ctx.save_for_backward(x, step)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, step = ctx.saved_tensors
        ratio = x / step
        nearest = ratio.round()
        inside = (nearest >= ctx.low) & (nearest <= ctx.high)
        to_x = gradient * inside if ctx.needs_input_grad[0] else None
        to_step = None
        if ctx.needs_input_grad[1]:
            slope = torch.where(inside, nearest - ratio, nearest.clamp(ctx.low, ctx.high))
            to_step = (gradient * slope).sum_to_size(step.shape)
        return to_x, to_step, None, None, None


def rounded(x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """The codes of ``x`` as floating-point numbers."""
    return (x / step).round_().clamp_(low, high)


def on_grid(x: Tensor, step: Tensor, low: int, high: int, stored: Tensor | None = None) -> Tensor:
    """``x`` on the grid of a step, differentiable.

    Args:
        x: any shape; half precision is computed in float32.
        step: broadcasts against ``x``.
        low: smallest code.
        high: largest code.
        stored: codes that take the place of those of ``x``; of its shape.

    Returns:
        Of the shape and type of ``x``.
    """
    return _Rounded.apply(wide(x), wide(step), low, high, stored).to(x.dtype)


def largest_code(bits: int, signed: bool = True) -> int:
    """2^(bits − 1) − 1, or 2^bits − 1 without sign."""
    return 2 ** (bits - 1) - 1 if signed else 2**bits - 1


def first_range(x: Tensor, high: int, dims: tuple[int, ...]) -> Tensor:
    """Where a learned range begins: max|x|, or where it is smaller LSQ's 2 · mean|x| · sqrt(high).

    LSQ's start suits few bits; with many it would make the grid coarser than the data need.

    Args:
        x: data.
        high: largest code.
        dims: the axes that share a range; kept with length 1.

    Returns:
        Float32 at least; 1 where there is nothing but zeros.
    """
    size = wide(x.detach().abs())
    mean, top = size.mean(dims, keepdim=True), size.amax(dims, keepdim=True)
    return not_zero(torch.minimum(2.0 * math.sqrt(high) * mean, top))


def wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def not_zero(size: Tensor) -> Tensor:
    """1 in place of ranges of 0: nothing but zeros is in them."""
    return torch.where(size > 0, size, torch.ones_like(size))
