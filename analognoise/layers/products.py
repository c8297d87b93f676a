"""How layers multiply through a periphery: vectors times a matrix, and what such products share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from analognoise.crossbar.periphery import Products

# Numbers of a block, and of the largest product that is left whole: a block stays in a core's cache through
# all that is done to it, and memory of its size need not be asked for anew each time.
_BLOCK = 1 << 18
_WHOLE = 1 << 19
_COLUMNS = 512  # of a block; a multiplication of fewer is slower


def blocks(products: Products, columns: int) -> tuple[int, int]:
    """How many entries of the first axis, and how many columns, are computed at once."""
    inputs = products.inputs
    count = inputs.shape[0]
    whole = max(count, 1), max(columns, 1)
    if count * products.size <= _WHOLE or not inputs.is_cpu:
        return whole
    narrow = min(columns, _COLUMNS) if products.onto is not None else columns
    return max(1, _BLOCK * columns // (products.size * narrow)), narrow


def followed() -> bool:
    """Whether torch records or transforms what is computed: then it must come whole, nothing overwritten."""
    return torch.is_grad_enabled() or transformed()


def transformed() -> bool:
    """Whether torch makes something else of what is computed: a graph, a function of functions, or forward
    derivatives, which need no gradients enabled.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def of_vectors(inputs: Tensor, groups: int, columns: int) -> Products:
    """Vectors ``[vectors, rows]``, or ``[vectors, groups, rows]``, times a matrix of so many columns."""
    follows = followed()
    return Products(
        inputs,
        max(groups * columns, prod(inputs.shape[1:])),
        _rows,
        _times,
        columns_of,
        None if groups > 1 else _added_to if follows else _onto,
        follows,
        outputs=None if groups > 1 else lambda wide: inputs.new_empty(len(inputs), wide),
    )


def _rows(vectors: Tensor, start: int, end: int) -> Tensor:
    return vectors if start == 0 and end == vectors.shape[-1] else vectors[..., start:end]


def _times(inputs: Tensor, matrix: Tensor, start: int) -> Tensor:
    return matrix_product(inputs, matrix)


def matrix_product(inputs: Tensor, matrix: Tensor) -> Tensor:
    """``[..., rows]`` times ``[1, columns, rows]``, or ``[..., groups, rows]`` times ``[groups, …]``."""
    if len(matrix) == 1:
        return functional.linear(inputs, matrix[0])
    return torch.einsum("...gr,gcr->...gc", inputs, matrix)


def columns_of(factors: Tensor) -> Tensor:
    """``[groups, columns, 1]`` in a shape that broadcasts to what :func:`matrix_product` gives."""
    return factors.squeeze(-1) if factors.shape[0] > 1 else factors.view(-1)


def _onto(start: Tensor, by: float, inputs: Tensor, matrix: Tensor) -> Tensor:
    return start.addmm_(inputs, matrix[0].t(), beta=by)


def _added_to(start: Tensor, by: float, inputs: Tensor, matrix: Tensor) -> Tensor:
    return torch.addmm(start, inputs, matrix[0].t(), beta=by)


def layout_of(tensor: Tensor) -> torch.memory_format:
    """The memory format that torch's convolutions give their outputs for such inputs or weights."""
    if torch._C._are_functorch_transforms_active():
        return torch.contiguous_format  # vmap does not say how its samples lie
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    if last is not None and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=last):
        return last
    return torch.contiguous_format


def as_computed(input: Tensor, weights: Tensor, layer: str) -> Tensor:
    """Inputs in the type that products through a periphery are computed in: float64 where the weights have
    it, else float32.

    Raises:
        RuntimeError: when the inputs are no real floating-point numbers, as in the digital layer.
    """
    if not input.is_floating_point():
        raise RuntimeError(
            f"layer {layer!r}: inputs are {input.dtype}, expected floating-point numbers such as "
            f"{weights.dtype}"
        )
    return input.to(torch.float64 if weights.dtype == torch.float64 else torch.float32)


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Products with a periphery are computed in full precision: rounding is the converters' business."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def with_bias(outputs: Tensor, bias: Tensor, follows: bool) -> Tensor:
    """Outputs of a product, which nobody else holds, and a bias that broadcasts to them; ``follows`` says
    whether torch records or transforms what is computed.
    """
    return outputs + bias if follows else outputs.add_(bias)
