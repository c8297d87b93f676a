"""Convolutions on tiles: a column holds one output channel's kernel, unrolled channel by channel.

The bias is added digitally.
"""

from __future__ import annotations

from math import prod

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from analognoise.layers.base import AnalogLayer, Geometry


class _AnalogConv(AnalogLayer):
    @staticmethod
    def geometries(module: nn.Module) -> dict[str, Geometry]:
        """One block per convolution group."""
        assert isinstance(module, _ConvNd)
        groups = module.groups
        return {
            "weight": Geometry(
                groups, module.out_channels // groups, module.in_channels // groups, prod(module.kernel_size)
            )
        }

    def forward(self, input: Tensor) -> Tensor:
        """Shapes as in the digital layer."""
        # torch's own method, so that every padding mode, stride and dilation is torch's.
        return self._conv_forward(input, self.weight_now(), self.bias)  # type: ignore[operator]


class AnalogConv1d(_AnalogConv, nn.Conv1d):
    """``torch.nn.Conv1d`` on tiles."""

    digital_class = nn.Conv1d


class AnalogConv2d(_AnalogConv, nn.Conv2d):
    """``torch.nn.Conv2d`` on tiles."""

    digital_class = nn.Conv2d


class AnalogConv3d(_AnalogConv, nn.Conv3d):
    """``torch.nn.Conv3d`` on tiles."""

    digital_class = nn.Conv3d
