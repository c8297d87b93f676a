"""Linear layers on tiles."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from analognoise.layers.base import AnalogLayer, Geometry


class AnalogLinear(AnalogLayer, nn.Linear):
    """``torch.nn.Linear`` on tiles: inputs along the rows, outputs along the columns; the bias is digital."""

    digital_class = nn.Linear

    @staticmethod
    def geometries(module: nn.Module) -> dict[str, Geometry]:
        """``out_features`` columns; ``in_features`` rows."""
        assert isinstance(module, nn.Linear)
        return {"weight": Geometry(1, module.out_features, module.in_features)}

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        return functional.linear(input, self.weight_now(), self.bias)
