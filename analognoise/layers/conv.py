"""Convolutions on tiles; biases are added digitally."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from analognoise.layers.base import AnalogLayer
from analognoise.layers.conv_products import convolved, laid_out, transposed
from analognoise.layers.geometry import Geometry
from analognoise.layers.registry import register_analog_layer


class _AnalogConv(AnalogLayer):
    """A column holds one output channel's kernel, unrolled channel by channel."""

    supports_periphery = True

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

    @classmethod
    def vectors(cls, module: nn.Module, args: tuple[Any, ...], output: Any) -> dict[str, int]:
        """One per output position."""
        assert isinstance(module, _ConvNd)
        return {"weight": output.numel() // module.out_channels}

    def forward(self, input: Tensor) -> Tensor:
        """Shapes and memory format as in the digital layer."""
        input = laid_out(self, input)
        if self.in_periphery:
            return convolved(self, input)
        # torch's own method, so that every padding mode, stride and dilation is torch's.
        output = self._conv_forward(input, self.weight_now(), self.bias)  # type: ignore[operator]
        return laid_out(self, output)  # circular padding is contiguous whatever the input was


@register_analog_layer(nn.Conv1d)
class AnalogConv1d(_AnalogConv, nn.Conv1d):
    """``torch.nn.Conv1d`` on tiles."""

    channel_axis = -2


@register_analog_layer(nn.Conv2d)
class AnalogConv2d(_AnalogConv, nn.Conv2d):
    """``torch.nn.Conv2d`` on tiles."""

    channel_axis = -3


@register_analog_layer(nn.Conv3d)
class AnalogConv3d(_AnalogConv, nn.Conv3d):
    """``torch.nn.Conv3d`` on tiles."""

    channel_axis = -4


class _AnalogConvTranspose(AnalogLayer):
    """Input channels lie along the rows, (output channel, kernel position) along the columns.

    One vector per input position; the products that fall on one output position are added digitally.
    """

    supports_periphery = True

    @staticmethod
    def geometries(module: nn.Module) -> dict[str, Geometry]:
        """One block per convolution group."""
        assert isinstance(module, _ConvNd)
        groups = module.groups
        columns = module.out_channels // groups * prod(module.kernel_size)
        return {"weight": Geometry(groups, columns, module.in_channels // groups)}

    @staticmethod
    def matrix(name: str, weights: Tensor, geometry: Geometry) -> Tensor:
        """From ``[in_channels, out_channels / groups, *kernel]``."""
        return weights.view(geometry.groups, geometry.channels, geometry.columns).transpose(1, 2)

    @classmethod
    def vectors(cls, module: nn.Module, args: tuple[Any, ...], output: Any) -> dict[str, int]:
        """One per input position."""
        assert isinstance(module, _ConvNd)
        return {"weight": args[0].numel() // module.in_channels}

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Shapes and memory format as in the digital layer."""
        input = laid_out(self, input)
        if self.in_periphery:
            return transposed(self, input, output_size)
        return super().forward(input, output_size)


@register_analog_layer(nn.ConvTranspose1d)
class AnalogConvTranspose1d(_AnalogConvTranspose, nn.ConvTranspose1d):
    """``torch.nn.ConvTranspose1d`` on tiles."""

    channel_axis = -2


@register_analog_layer(nn.ConvTranspose2d)
class AnalogConvTranspose2d(_AnalogConvTranspose, nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d`` on tiles."""

    channel_axis = -3


@register_analog_layer(nn.ConvTranspose3d)
class AnalogConvTranspose3d(_AnalogConvTranspose, nn.ConvTranspose3d):
    """``torch.nn.ConvTranspose3d`` on tiles."""

    channel_axis = -4
