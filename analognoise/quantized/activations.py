"""Quantization of what goes into a layer."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from analognoise.quantized.rounding import (
    gradient_factor,
    largest_code,
    on_grid,
    step_for,
    step_of_range,
)
from analognoise.quantized.settings import Quantization

INPUT_STEP = "input_step_size"
SIGNED = "input_signed"
_UNKNOWN = -1


class InputQuantizer:
    """Quantizes a layer's inputs, with one step for the whole layer.

    Whether codes have a sign is decided by the first inputs that the layer sees (unless it was given): those
    without a negative number get 0 … 2^bits − 1, all others ± (2^(bits − 1) − 1). A learned step begins from
    these inputs, too. Both are stored with the model.
    """

    NAMES: ClassVar[tuple[str, str]] = (INPUT_STEP, SIGNED)

    def __init__(self, settings: Quantization, name: str) -> None:
        self.settings = settings
        self.name = name

    @classmethod
    def added_to(cls, module: nn.Module, settings: Quantization, name: str) -> InputQuantizer | None:
        """Give a layer what the quantization of its inputs needs; None where inputs stay as they are."""
        if settings.activation_bits is None:
            return None
        weight = module.get_parameter("weight")
        if settings.activation_range == "learned" and settings.activation_scale is None:
            module.register_parameter(INPUT_STEP, nn.Parameter(torch.zeros((), device=weight.device)))
        signed = settings.activation_signed
        value = torch.tensor(_UNKNOWN if signed is None else int(signed), dtype=torch.int8)
        module.register_buffer(SIGNED, value.to(weight.device))
        return cls(settings, name)

    def __call__(self, layer: nn.Module, input: Tensor) -> Tensor:
        """The inputs on their grid."""
        if not input.numel():
            return input
        signed = self.signed(layer, input)
        bits = self.settings.activation_bits
        assert bits is not None
        high = largest_code(bits, signed)
        step, factor = self._step(layer, input, high)
        return on_grid(input, step, -high if signed else 0, high, factor=factor)

    @staticmethod
    def signed(layer: nn.Module, input: Tensor) -> bool:
        """Whether codes have a sign; the first inputs decide."""
        flag = layer._buffers[SIGNED]
        assert flag is not None
        known = int(flag)
        if known == _UNKNOWN:
            known = int(bool((input.detach() < 0).any()))
            flag.fill_(known)
        return bool(known)

    def _step(self, layer: nn.Module, input: Tensor, high: int) -> tuple[Any, float]:
        settings = self.settings
        if settings.activation_scale is not None:
            return input.new_tensor(settings.activation_scale, dtype=torch.float32), 1.0
        if isinstance(settings.activation_range, float):
            return input.new_tensor(settings.activation_range / high, dtype=torch.float32), 1.0
        if settings.activation_range == "max":
            return step_of_range(input.detach().abs().max(), high), 1.0
        step = layer._parameters[INPUT_STEP]
        assert step is not None
        if not step.detach().item():
            with torch.no_grad():
                step.copy_(step_for(input, high))
        per_sample = input[0].numel() if input.ndim > 1 else input.numel()
        return step, gradient_factor(per_sample, high)
