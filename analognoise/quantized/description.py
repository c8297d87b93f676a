"""What of a model is quantized, how much memory its words take, and what stays float."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from analognoise.obstacles import obstacle_of, size
from analognoise.printing import counted
from analognoise.quantized.classes import known_names, quantized_class
from analognoise.quantized.conversion import quantized_weights, require_quantized


@dataclass(frozen=True)
class QuantizedWeight:
    """One quantized weight: its name, number of words, how it is quantized, and how many scales it has."""

    name: str
    words: int
    quantization: str
    scales: int
    bits: int


@dataclass(frozen=True)
class FloatLayer:
    """A layer whose parameters stay float: its name, class, number of parameters, and why."""

    name: str
    layer: str
    parameters: int
    reason: str


@dataclass(frozen=True)
class QuantizationDescription:
    """What :func:`describe_quantization` found; ``print`` it.

    Attributes:
        weights: the quantized weights; tied ones once.
        floating: layers with parameters that stay float, and the biases of quantized ones.
    """

    weights: tuple[QuantizedWeight, ...]
    floating: tuple[FloatLayer, ...]

    @property
    def memory_bits(self) -> int:
        """Bits of memory that hold quantized weights; scales, 32 bits each, not counted."""
        return sum(weight.words * weight.bits for weight in self.weights)

    def __str__(self) -> str:
        words = sum(weight.words for weight in self.weights)
        width = max(len(weight.name) for weight in self.weights)
        lines = [
            f"{w.name:{width}}  {counted(w.words, 'word')}, {w.quantization}; {counted(w.scales, 'scale')}"
            for w in self.weights
        ]
        lines.append(f"memory: {counted(self.memory_bits, 'bit')} in {counted(words, 'word')}")
        if self.floating:
            rest = [
                f"{f.name or f.layer} ({counted(f.parameters, 'parameter')}: {f.reason})"
                for f in self.floating
            ]
            lines.append(f"float: {', '.join(rest)}")
        return "\n".join(lines)


def describe_quantization(model: nn.Module) -> QuantizationDescription:
    """Say which weights of a model are quantized, and name whatever parameters stay float.

    Raises:
        QuantizationError: when no layer is quantized.
    """
    layers = require_quantized(model, "describe a quantization")
    weights = tuple(
        QuantizedWeight(
            name, layer.float_weight.numel(), str(layer.quantization), layer.scale.numel(), layer.bits
        )
        for name, layer in quantized_weights(model).items()
    )
    stored = {id(layer.float_weight): name for name, layer in quantized_weights(model).items()}
    floating = []
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in stored]
        tied = [p for p in module.parameters(recurse=False) if id(p) in stored]
        if name in layers:
            bias = module._parameters.get("bias")
            if bias is not None:
                floating.append(FloatLayer(f"{name}.bias" if name else "bias", "", size(bias), "a bias"))
        elif tied:
            reason = f"computes with the float weight of {', '.join(stored[id(p)] for p in tied)}, tied to it"
            count = sum(map(size, own + tied))
            floating.append(FloatLayer(name, type(module).__name__, count, reason))
        elif own:
            count = sum(map(size, own))
            floating.append(FloatLayer(name, type(module).__name__, count, _reason(module)))
    return QuantizationDescription(weights, tuple(floating))


def _reason(module: nn.Module) -> str:
    obstacle = obstacle_of(module)
    if obstacle is not None:
        return obstacle.reason
    if quantized_class(module) is not None:
        return "filter_fn left it out, or its parent computes with it without calling it"
    return f"not one of {', '.join(known_names())}"
