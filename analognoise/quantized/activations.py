"""Quantization of what goes into a layer."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from analognoise.quantized.rounding import first_range, largest_code, not_zero, on_grid, wide
from analognoise.quantized.settings import Quantization

LOG_INPUT_RANGE = "log_input_range"
SIGNED = "input_signed"
_UNKNOWN = -1


class InputQuantizer:
    """Quantizes a layer's inputs, with one step for the whole layer.

    The first inputs that a layer sees decide whether codes have a sign, unless that was given: without a
    negative number they get 0 … 2^bits − 1, all others ± (2^(bits − 1) − 1). A learned range begins from
    them, too. Both are stored with the model, and loaded ones stay.
    """

    NAMES: ClassVar[tuple[str, str]] = (LOG_INPUT_RANGE, SIGNED)

    def __init__(self, settings: Quantization) -> None:
        self.settings = settings
        # What the layer's buffer says, and in which version: asking it would wait for the device.
        self._signed = False
        self._asked: tuple[int, int] | None = None

    @classmethod
    def added_to(cls, module: nn.Module, settings: Quantization) -> InputQuantizer | None:
        """Give a layer what the quantization of its inputs needs; None where inputs stay as they are."""
        if settings.activation_bits is None:
            return None
        weight = module.get_parameter("weight")
        known = _UNKNOWN if settings.activation_signed is None else int(settings.activation_signed)
        if settings.activation_scale is None and settings.activation_range == "learned":
            known = _UNKNOWN  # the first inputs begin the range
            log_range = torch.zeros((), dtype=wide(weight.detach()).dtype, device=weight.device)
            module.register_parameter(LOG_INPUT_RANGE, nn.Parameter(log_range))
        module.register_buffer(SIGNED, torch.tensor(known, dtype=torch.int8, device=weight.device))
        return cls(settings)

    def __call__(self, layer: nn.Module, input: Tensor) -> Tensor:
        """The inputs on their grid."""
        if not input.numel():
            return input
        assert self.settings.activation_bits is not None
        flag = layer._buffers[SIGNED]
        assert flag is not None
        now = None if flag.is_inference() else (id(flag), flag._version)
        if now is None or now != self._asked:
            self._signed = self._known(layer, input)
            self._asked = None if now is None else (id(flag), flag._version)
        high = largest_code(self.settings.activation_bits, self._signed)
        return on_grid(input, self._step(layer, input, high), -high if self._signed else 0, high)

    @staticmethod
    def awaits(layer: nn.Module) -> bool:
        """Whether the layer has seen no inputs yet."""
        flag = layer._buffers[SIGNED]
        assert flag is not None
        return int(flag) == _UNKNOWN

    @torch.no_grad()
    def _known(self, layer: nn.Module, input: Tensor) -> bool:
        """Whether codes have a sign; the first inputs decide, and begin a learned range."""
        flag, log_range = layer._buffers[SIGNED], layer._parameters.get(LOG_INPUT_RANGE)
        assert flag is not None
        assert self.settings.activation_bits is not None
        if self.awaits(layer):
            given = self.settings.activation_signed
            signed = bool((input < 0).any()) if given is None else given
            if log_range is not None:
                high = largest_code(self.settings.activation_bits, signed)
                log_range.copy_(first_range(input.flatten(), high, (0,)).log().squeeze())
            flag.fill_(int(signed))
        return bool(flag)

    def _step(self, layer: nn.Module, input: Tensor, high: int) -> Tensor:
        settings = self.settings
        if settings.activation_scale is not None:
            return wide(input.detach()).new_tensor(settings.activation_scale)
        if isinstance(settings.activation_range, float):
            return wide(input.detach()).new_tensor(settings.activation_range / high)
        if settings.activation_range == "max":
            return not_zero(wide(input.detach().abs()).max()) / high
        log_range = layer._parameters[LOG_INPUT_RANGE]
        assert log_range is not None, "it was made with the layer"
        return wide(log_range).exp() / high
