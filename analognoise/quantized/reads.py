"""Whether a model computes with its quantized weights at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from analognoise.compiled import eager
from analognoise.quantized.conversion import quantized_layers, quantized_weights
from analognoise.quantized.layer import QuantizedLayer


@contextmanager
def reads_noted(model: nn.Module) -> Iterator[dict[str, None]]:
    """Names of the quantized weights that forwards inside do not ask for; each goes when it is asked for.

    A model may use ``layer.weight``, the float weight, without calling the layer, or call it never.
    """
    layers = quantized_layers(model).values()
    names = {id(layer.float_weight): name for name, layer in quantized_weights(model).items()}
    left = dict.fromkeys(names.values())

    def noted(layer: QuantizedLayer) -> Callable[[], Tensor]:
        name, ask = names[id(layer.float_weight)], layer.quantized_weight

        def quantized_weight() -> Tensor:
            left.pop(name, None)
            return ask()

        return quantized_weight

    try:
        for layer in layers:
            vars(layer)["quantized_weight"] = noted(layer)
        with eager():
            yield left
    finally:
        for layer in layers:
            vars(layer).pop("quantized_weight", None)
