"""What the methods that quantize train, and on what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from analognoise.conversion import Filter
from analognoise.errors import MethodError, QuantizationError, SparsityError
from analognoise.quantized import Quantization, quantize_as, quantized_layers
from analognoise.sparsity import PRESETS, activation_layers, sparse_layers, sparsify_as
from analognoise.training.hyperparameters import QUANTIZERS
from analognoise.training.specification import Build


def prepare_quantized(
    model: nn.Module, values: dict[str, Any], *, filter_fn: Filter | None, **_: Any
) -> nn.Module:
    """The model with quantizers, and sparse activations where they are asked for.

    Raises:
        MethodError: when it cannot have them, or has others.
    """
    twin = _quantized_with(model, _quantization_of(values), filter_fn)
    form = PRESETS[values["sparsity"]]
    if form is None:
        return twin
    try:
        if all(sparse_layers(twin).get(name) == form for name in activation_layers(twin)):
            return twin
        return sparsify_as(twin, form, inplace=twin is not model)
    except SparsityError as error:
        raise MethodError(f"the method trains with sparse activations: {error}") from error


def prepare_constant_scale(
    model: nn.Module, values: dict[str, Any], *, filter_fn: Filter | None, **_: Any
) -> nn.Module:
    """The model with quantizers, those of the layers' inputs with a constant scale.

    Raises:
        MethodError: when it cannot have them, or has others.
    """
    bits = int(values["bits"])
    settings = Quantization(
        bits=min(bits, 8),
        activation_bits=bits,
        per="conv-channel",
        clipping="max",
        activation_scale=values["scale"],
    )
    return _quantized_with(model, settings, filter_fn)


def require_quantized(
    optimizer: Optimizer, model: nn.Module, values: dict[str, Any], **settings: Any
) -> Optimizer:
    """The optimizer as it is, for a model with quantizers.

    Raises:
        MethodError: for any other.
    """
    _check_quantized(model)
    return optimizer


def quantized(build: Build) -> Build:
    """How to build a method for a model with quantizers, whose hyperparameters are not the method's."""

    def built(base: Optimizer, model: nn.Module, values: dict[str, Any], **settings: Any) -> Optimizer:
        _check_quantized(model)
        own = {name: value for name, value in values.items() if name not in QUANTIZERS}
        return build(base, model, own, **settings)

    return built


def _quantization_of(values: Mapping[str, Any]) -> Quantization:
    activation_bits = values["activation_bits"]
    return Quantization(
        bits=int(values["bits"]),
        activation_bits=None if activation_bits == "none" else int(activation_bits),
        per=values["per"],
        clipping=values["clipping"],
    )


def _quantized_with(model: nn.Module, settings: Quantization, filter_fn: Filter | None) -> nn.Module:
    for name, layer in quantized_layers(model).items():
        if layer.quantization != settings:
            raise MethodError(
                f"layer {name!r} is quantized ({layer.quantization}), but the method asks for {settings}: "
                "give the method the same settings, or the float model"
            )
    try:
        return model if quantized_layers(model) else quantize_as(model, settings, filter_fn=filter_fn)
    except QuantizationError as error:
        raise MethodError(f"the method trains a quantized model: {error}") from error


def _check_quantized(model: nn.Module) -> None:
    """Raise unless the model is as ``prepare`` of a quantizing method makes it."""
    if not quantized_layers(model):
        raise MethodError(
            f"the method trains a quantized model, but {type(model).__name__} has no quantized layer: "
            "give the model that Recipe.prepare makes of it, and an optimizer over that one's parameters"
        )
