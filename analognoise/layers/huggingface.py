"""Layers of the ``transformers`` package; imported only when the user has imported that package."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from analognoise.layers.base import AnalogLayer
from analognoise.layers.geometry import Geometry
from analognoise.layers.registry import register_analog_layer


@register_analog_layer(Conv1D)
class AnalogConv1D(AnalogLayer, Conv1D):
    """GPT-2's linear layer, which keeps its weight as ``[in, out]``."""

    supports_periphery = True
    channel_axis = -1

    @staticmethod
    def geometries(module: nn.Module) -> dict[str, Geometry]:
        """Outputs along the columns, inputs along the rows."""
        rows, columns = module.get_parameter("weight").shape
        return {"weight": Geometry(1, columns, rows)}

    @staticmethod
    def matrix(name: str, weights: Tensor, geometry: Geometry) -> Tensor:
        """The transpose."""
        return weights.t().unsqueeze(0)

    @classmethod
    def vectors(cls, module: nn.Module, args: tuple[Any, ...], output: Any) -> dict[str, int]:
        """One per leading index of the output."""
        return {"weight": output[..., 0].numel()}

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        return self.multiply(x) + self.bias if self.in_periphery else super().forward(x)
