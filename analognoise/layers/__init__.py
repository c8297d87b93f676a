"""Torch modules on tiles."""

from analognoise.layers.attention import AnalogMultiheadAttention
from analognoise.layers.base import AnalogLayer
from analognoise.layers.conv import (
    AnalogConv1d,
    AnalogConv2d,
    AnalogConv3d,
    AnalogConvTranspose1d,
    AnalogConvTranspose2d,
    AnalogConvTranspose3d,
)
from analognoise.layers.geometry import Geometry
from analognoise.layers.linear import AnalogBilinear, AnalogLinear
from analognoise.layers.programmable import check_programmable
from analognoise.layers.recurrent import (
    AnalogGRU,
    AnalogGRUCell,
    AnalogLSTM,
    AnalogLSTMCell,
    AnalogRNN,
    AnalogRNNCell,
)
from analognoise.layers.registry import (
    analog_class,
    known_base,
    register_analog_layer,
    registered_for,
    registered_names,
)
from analognoise.layers.state import AnalogState
from analognoise.layers.watch import note_written, warn_if_stale

__all__ = [
    "AnalogBilinear",
    "AnalogConv1d",
    "AnalogConv2d",
    "AnalogConv3d",
    "AnalogConvTranspose1d",
    "AnalogConvTranspose2d",
    "AnalogConvTranspose3d",
    "AnalogGRU",
    "AnalogGRUCell",
    "AnalogLSTM",
    "AnalogLSTMCell",
    "AnalogLayer",
    "AnalogLinear",
    "AnalogMultiheadAttention",
    "AnalogRNN",
    "AnalogRNNCell",
    "AnalogState",
    "Geometry",
    "analog_class",
    "check_programmable",
    "known_base",
    "note_written",
    "register_analog_layer",
    "registered_for",
    "registered_names",
    "warn_if_stale",
]
