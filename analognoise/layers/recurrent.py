"""Recurrent layers on tiles: inputs and hidden state along the rows, the gates along the columns.

Gates, non-linearities and biases are digital.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from analognoise.layers.base import AnalogLayer
from analognoise.layers.geometry import Geometry
from analognoise.layers.recurrent_products import cell, sequence
from analognoise.layers.registry import register_analog_layer


class _AnalogRecurrent(AnalogLayer):
    supports_periphery = True

    @staticmethod
    def geometries(module: nn.Module) -> dict[str, Geometry]:
        """Per layer and direction one matrix each for input, hidden state and projection."""
        names = getattr(module, "_flat_weights_names", ("weight_ih", "weight_hh"))
        return {
            name: Geometry(1, *module.get_parameter(name).shape)
            for name in names
            if name.startswith("weight_")
        }

    @classmethod
    def vectors(cls, module: nn.Module, args: tuple[Any, ...], output: Any) -> dict[str, int]:
        """One per sequence step (cells: per sample)."""
        if isinstance(module, nn.RNNCellBase):
            given = args[0]
            count = given.numel() // given.shape[-1]
        else:
            given = args[0]
            count = (
                len(given.data) if isinstance(given, nn.utils.rnn.PackedSequence) else given[..., 0].numel()
            )
        return dict.fromkeys(cls.geometries(module), count)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As in the digital layer, every option included."""
        if self.in_periphery:
            return (cell if isinstance(self, nn.RNNCellBase) else sequence)(self, *args, **kwargs)
        if self.training or self._analognoise.digital or "_flat_weights" not in self.__dict__:
            return super().forward(*args, **kwargs)
        # The fused kernels take the list in which torch keeps all Parameters in their order. It is brought up
        # to date first: after a Parameter was replaced, torch would make it anew, of digital ones.
        self._update_flat_weights()  # type: ignore[operator]
        kept = self.__dict__["_flat_weights"]
        names: list[str] = self._flat_weights_names  # type: ignore[assignment]
        on_tiles = self._analognoise.parameters
        try:
            self.__dict__["_flat_weights"] = [
                self.weight_now(name) if name in on_tiles else own
                for name, own in zip(names, kept, strict=True)
            ]
            return super(AnalogLayer, self).forward(*args, **kwargs)
        finally:
            self.__dict__["_flat_weights"] = kept


@register_analog_layer(nn.RNN)
class AnalogRNN(_AnalogRecurrent, nn.RNN):
    """``torch.nn.RNN`` on tiles."""


@register_analog_layer(nn.LSTM)
class AnalogLSTM(_AnalogRecurrent, nn.LSTM):
    """``torch.nn.LSTM`` on tiles."""


@register_analog_layer(nn.GRU)
class AnalogGRU(_AnalogRecurrent, nn.GRU):
    """``torch.nn.GRU`` on tiles."""


@register_analog_layer(nn.RNNCell)
class AnalogRNNCell(_AnalogRecurrent, nn.RNNCell):
    """``torch.nn.RNNCell`` on tiles."""


@register_analog_layer(nn.LSTMCell)
class AnalogLSTMCell(_AnalogRecurrent, nn.LSTMCell):
    """``torch.nn.LSTMCell`` on tiles."""


@register_analog_layer(nn.GRUCell)
class AnalogGRUCell(_AnalogRecurrent, nn.GRUCell):
    """``torch.nn.GRUCell`` on tiles."""
