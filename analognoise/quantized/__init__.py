"""Simulated quantization: weights and activations on integer codes, with straight-through gradients."""

from analognoise.quantized.conversion import (
    dequantize,
    quantize,
    quantized_layers,
    quantized_weights,
    require_quantized,
    step_sizes,
)
from analognoise.quantized.layer import QuantizedLayer
from analognoise.quantized.settings import Quantization

__all__ = [
    "Quantization",
    "QuantizedLayer",
    "dequantize",
    "quantize",
    "quantized_layers",
    "quantized_weights",
    "require_quantized",
    "step_sizes",
]
