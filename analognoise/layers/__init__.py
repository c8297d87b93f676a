"""Torch modules on tiles."""

from analognoise.layers.base import AnalogLayer, AnalogState, Geometry
from analognoise.layers.conv import AnalogConv1d, AnalogConv2d, AnalogConv3d
from analognoise.layers.linear import AnalogLinear

__all__ = [
    "AnalogConv1d",
    "AnalogConv2d",
    "AnalogConv3d",
    "AnalogLayer",
    "AnalogLinear",
    "AnalogState",
    "Geometry",
]
