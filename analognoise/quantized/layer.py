"""What every quantized layer has in common.

As a layer on tiles, a quantized layer is the user's own module object with another class: Parameters,
buffers and hooks stay where they are. What is added: a Parameter ``log_range`` where clipping is learned,
``log_input_range`` where the range of inputs is, a buffer ``input_signed`` where inputs are quantized, and
plain attributes with the quantizers' state.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from analognoise.errors import QuantizationError
from analognoise.quantized.activations import InputQuantizer
from analognoise.quantized.rounding import first_range, largest_code, not_zero, on_grid, rounded, wide
from analognoise.quantized.settings import Quantization

STATE = "_analognoise_quantized"
INPUT = "_analognoise_input"
LOG_RANGE = "log_range"
_CODES = torch.int16  # holds the words of 8 bits, and whatever a fault makes of them


class QuantizerState:
    """What a weight's quantizer holds; layers with tied weights share it.

    Attributes:
        settings: how it quantizes.
        name: qualified name of the layer at conversion.
        shared: the axes of the weight that share a range.
        codes: codes that take the place of the weight's own, or None.
        offset: added to the quantized weights, or None.
    """

    def __init__(self, settings: Quantization, name: str, shared: tuple[int, ...]) -> None:
        self.settings = settings
        self.name = name
        self.shared = shared
        self.codes: Tensor | None = None
        self.offset: Tensor | None = None


class QuantizedLayer(nn.Module):
    """Base of quantized layers; a subclass also inherits from the float layer.

    Forwards compute with Q(w) = codes · scale, in training and in eval mode alike; gradients go straight
    through to ``weight``, which stays the float weight.

    Attributes:
        float_class: what the layer becomes again.
        float_remedy: what to do before the layer goes on tiles.
    """

    float_class: ClassVar[type[nn.Module]]
    channel_axis: ClassVar[int] = 0
    float_remedy: ClassVar[str] = (
        "analognoise.dequantize(model) gives the float model that holds the quantized weights: convert that"
    )
    _analognoise_quantized: QuantizerState
    _analognoise_input: InputQuantizer | None

    @classmethod
    def place(cls, module: nn.Module, state: QuantizerState, log_range: nn.Parameter | None) -> None:
        """Turn a float module into this class, in place."""
        setattr(module, STATE, state)
        if log_range is not None:
            module.register_parameter(LOG_RANGE, log_range)
        module.register_forward_pre_hook(_is_called)  # keeps torch's encoder layers out of their fused path
        module.__class__ = cls
        setattr(module, INPUT, InputQuantizer.added_to(module, state.settings))

    def remove(self) -> None:
        """Turn the module back into its float class, in place."""
        for name in (LOG_RANGE, *InputQuantizer.NAMES):
            self._parameters.pop(name, None)
            self._buffers.pop(name, None)
        delattr(self, STATE)
        delattr(self, INPUT)
        for key in [key for key, hook in self._forward_pre_hooks.items() if hook is _is_called]:
            del self._forward_pre_hooks[key]
        self.__class__ = self.float_class  # type: ignore[assignment]

    @property
    def float_weight(self) -> nn.Parameter:
        """The Parameter ``weight``: the weights before rounding, which training changes."""
        return cast(nn.Parameter, self._parameters["weight"])

    @property
    def quantization(self) -> Quantization:
        """How the layer is quantized."""
        return self._analognoise_quantized.settings

    @property
    def name(self) -> str:
        """Qualified name of the layer at conversion; part of random keys."""
        return self._analognoise_quantized.name

    @property
    def bits(self) -> int:
        """Bits of a stored weight."""
        return self.quantization.bits

    @property
    def high(self) -> int:
        """The largest code that rounding gives, 2^(bits − 1) − 1; the smallest is its negative."""
        return largest_code(self.bits)

    @property
    def scale(self) -> Tensor:
        """What one code is worth, in weight units: broadcasts against ``weight``; no gradient."""
        return self._step().detach()

    @property
    def awaits_inputs(self) -> bool:
        """Whether the next inputs will decide about the range, or the sign, of those to come."""
        return self._analognoise_input is not None and self._analognoise_input.awaits(self)

    @classmethod
    def shared_axes(cls, weight: Tensor, per: str) -> tuple[int, ...]:
        """The axes of ``weight`` along which a range is shared."""
        whole = per == "tensor" or (per == "conv-channel" and issubclass(cls, nn.Linear))
        return tuple(axis for axis in range(weight.ndim) if whole or axis != cls.channel_axis)

    def codes(self) -> Tensor:
        """The codes that the layer computes with, int16 of the shape of ``weight``.

        Those of the present ``weight``, in [−high, high], unless others were put there.
        """
        state = self._analognoise_quantized
        return self.own_codes() if state.codes is None else state.codes.clone()

    @torch.no_grad()
    def own_codes(self) -> Tensor:
        """The codes of the present ``weight``, whatever was put in their place."""
        return rounded(wide(self.float_weight), self._step(), -self.high, self.high).to(_CODES)

    @property
    def has_other_codes(self) -> bool:
        """Whether codes other than the weight's own are in place."""
        return self._analognoise_quantized.codes is not None

    def put_codes(self, codes: Tensor) -> None:
        """Compute with these codes, in place of the weight's own, until :meth:`remove_codes`.

        The scale stays what it is. Gradients, if any are taken, are those of the weight's own codes.

        Args:
            codes: whole numbers of the shape of ``weight``, from −2^(bits − 1) to 2^(bits − 1) − 1: every
                word of two's complement, that of −2^(bits − 1) included, which rounding never gives.

        Raises:
            QuantizationError: for another shape, type or range; nothing is changed then.
        """
        low, high = -self.high - 1, self.high
        where = f"layer {self.name!r}: codes"
        if not isinstance(codes, Tensor) or codes.is_floating_point() or codes.is_complex():
            kind = codes.dtype if isinstance(codes, Tensor) else type(codes).__name__
            raise QuantizationError(f"{where} must be a tensor of whole numbers, found {kind}")
        if codes.shape != self.float_weight.shape:
            raise QuantizationError(
                f"{where} must have the weight's shape {tuple(self.float_weight.shape)}, found "
                f"{tuple(codes.shape)}"
            )
        if codes.numel() and (int(codes.min()) < low or int(codes.max()) > high):
            raise QuantizationError(
                f"{where} of {self.bits} bits lie from {low} to {high}, found {int(codes.min())} to "
                f"{int(codes.max())}"
            )
        self._analognoise_quantized.codes = codes.to(self.float_weight.device, _CODES, copy=True)

    def remove_codes(self) -> None:
        """Compute with the weight's own codes again."""
        self._analognoise_quantized.codes = None

    @property
    def offset(self) -> Tensor | None:
        """Added to Q(w) in every forward, in weight units; None for nothing. Not copied: set and take back
        what belongs to a step.
        """
        return self._analognoise_quantized.offset

    @offset.setter
    def offset(self, value: Tensor | None) -> None:
        if value is not None and value.shape != self.float_weight.shape:
            raise QuantizationError(
                f"layer {self.name!r}: the offset must have the weight's shape "
                f"{tuple(self.float_weight.shape)}, found {tuple(value.shape)}"
            )
        self._analognoise_quantized.offset = value

    def quantized_weight(self) -> Tensor:
        """Q(w), or what the codes put in place stand for; without offset; differentiable."""
        state, weight = self._analognoise_quantized, self.float_weight
        stored = state.codes
        if stored is not None and stored.device != weight.device:
            stored = state.codes = stored.to(weight.device)
        return on_grid(weight, self._step(), -self.high, self.high, stored)

    def quantized_input(self, input: Tensor) -> Tensor:
        """What the layer makes of its inputs before it computes; differentiable."""
        return input if self._analognoise_input is None else self._analognoise_input(self, input)

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The float layer's forward, on quantized inputs and weights."""
        input = self.quantized_input(input)
        weight = self.quantized_weight()
        offset = self._analognoise_quantized.offset
        if offset is not None:
            weight = weight + offset
        # The layer's own forward, so that padding modes, strides and output sizes are torch's.
        kept = self._parameters["weight"]
        self._parameters["weight"] = weight  # type: ignore[assignment]
        try:
            return super().forward(input, *args, **kwargs)
        finally:
            self._parameters["weight"] = kept

    def _step(self) -> Tensor:
        weight, clipping = self.float_weight, self.quantization.clipping
        if clipping == "learned":
            log_range = self._parameters[LOG_RANGE]
            assert log_range is not None, "it was made with the layer"
            return wide(log_range).exp() / self.high
        if clipping == "max":
            shared = self._analognoise_quantized.shared
            return not_zero(wide(weight.detach().abs()).amax(shared, keepdim=True)) / self.high
        return wide(weight.detach()).new_full((1,) * weight.ndim, float(clipping) / self.high)


def first_log_range(weight: Tensor, bits: int, shared: tuple[int, ...]) -> nn.Parameter:
    """The Parameter of a learned clipping, begun from the weights."""
    return nn.Parameter(first_range(weight, largest_code(bits), shared).log())


def _is_called(module: nn.Module, args: Any) -> None:
    """Does nothing: torch's encoder layers take no fused path past a child that has a hook."""
