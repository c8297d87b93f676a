"""The loss around the weights that a quantized model computes with."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from analognoise.errors import MethodError
from analognoise.processes import unwrapped
from analognoise.quantized import QuantizedLayer, dequantize, input_ranges_to_come, quantized_layers


def around_stored_weights(model: nn.Module) -> nn.Module:
    """A twin that computes the same with weights free to move: the quantized weights Q(w) stand in Parameters
    of their own, without rounding; inputs are quantized as before. Any other model is given back as it is.

    Rounding would swallow small moves of w, and the loss over w has steps. Learned ranges are not weights,
    and the twin has none to move.

    Raises:
        MethodError: where a layer has yet to see the inputs that its range begins from.
    """
    if not quantized_layers(model):
        return model
    inner = unwrapped(model)
    waiting = input_ranges_to_come(inner)
    if waiting:
        raise MethodError(
            f"sharpness: layer {waiting[0]!r} takes the range of its inputs from the first ones that it "
            "sees, and has seen none: run a batch through the quantized model first"
        )
    twin = dequantize(inner)
    modules = dict(twin.named_modules())
    for name, layer in quantized_layers(inner).items():
        modules[name].register_forward_pre_hook(partial(_quantized, layer), with_kwargs=True)
    return twin


def _quantized(layer: QuantizedLayer, _: nn.Module, args: Any, kwargs: Any) -> Any:
    if "input" in kwargs:
        return args, kwargs | {"input": layer.quantized_input(kwargs["input"])}
    return (layer.quantized_input(args[0]), *args[1:]), kwargs
