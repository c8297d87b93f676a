"""Linear and bilinear layers on tiles; biases are added digitally."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from analognoise.layers.base import AnalogLayer
from analognoise.layers.geometry import Geometry
from analognoise.layers.products import followed, with_bias
from analognoise.layers.registry import register_analog_layer


@register_analog_layer(nn.Linear)
class AnalogLinear(AnalogLayer, nn.Linear):
    """``torch.nn.Linear`` on tiles: inputs along the rows, outputs along the columns."""

    supports_periphery = True
    channel_axis = -1

    @staticmethod
    def geometries(module: nn.Module) -> dict[str, Geometry]:
        """``out_features`` columns; ``in_features`` rows."""
        assert isinstance(module, nn.Linear)
        return {"weight": Geometry(1, module.out_features, module.in_features)}

    @classmethod
    def vectors(cls, module: nn.Module, args: tuple[Any, ...], output: Any) -> dict[str, int]:
        """One per leading index of the output."""
        return {"weight": output.numel() // max(output.shape[-1], 1)}

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        if self.in_periphery:
            return self._by_vectors(input, bias=self.bias)
        return functional.linear(input, self.weight_now(), self.bias)


@register_analog_layer(nn.Bilinear)
class AnalogBilinear(AnalogLayer, nn.Bilinear):
    """``torch.nn.Bilinear`` on tiles: y_o = x1ᵀ A_o x2.

    The array computes all A_o x2 at once: the second input along the rows, (output, first input) along the
    columns. The products with the first input are digital.
    """

    supports_periphery = True

    @staticmethod
    def geometries(module: nn.Module) -> dict[str, Geometry]:
        """``out_features × in1_features`` columns; ``in2_features`` rows."""
        assert isinstance(module, nn.Bilinear)
        return {"weight": Geometry(1, module.out_features * module.in1_features, module.in2_features)}

    @classmethod
    def vectors(cls, module: nn.Module, args: tuple[Any, ...], output: Any) -> dict[str, int]:
        """One per leading index of the output."""
        return {"weight": output.numel() // max(output.shape[-1], 1)}

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        """``[..., in1_features]`` and ``[..., in2_features]`` to ``[..., out_features]``."""
        if self.in_periphery:
            products = self.multiply(input2).unflatten(-1, (self.out_features, self.in1_features))
            output = (products @ input1.unsqueeze(-1)).squeeze(-1)
            return output if self.bias is None else with_bias(output, self.bias, followed())
        return functional.bilinear(input1, input2, self.weight_now(), self.bias)
