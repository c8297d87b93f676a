"""Simulated quantization: weights and activations on integer codes, with straight-through gradients."""

from analognoise.quantized.conversion import (
    RANGE_NAMES,
    dequantize,
    input_ranges_to_come,
    quantize,
    quantize_as,
    quantized_layers,
    quantized_weights,
    quantizer_ranges,
    require_input_ranges,
    require_quantized,
)
from analognoise.quantized.description import QuantizationDescription, describe_quantization
from analognoise.quantized.layer import QuantizedLayer
from analognoise.quantized.reads import reads_noted
from analognoise.quantized.settings import Quantization

__all__ = [
    "RANGE_NAMES",
    "Quantization",
    "QuantizationDescription",
    "QuantizedLayer",
    "dequantize",
    "describe_quantization",
    "input_ranges_to_come",
    "quantize",
    "quantize_as",
    "quantized_layers",
    "quantized_weights",
    "quantizer_ranges",
    "reads_noted",
    "require_input_ranges",
    "require_quantized",
]
