"""Convolutions behind converters with output noise as hand-written calls of torch, without a simulator.

What a simulator of tiles takes at the least while it is built on torch's operators: the same convolutions,
part by part along the rows and a block of images at a time, the same passes over memory and as many normals,
but nothing that asks which chip, which device, which gradient.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from analognoise.layers.products import _BLOCK, _WHOLE


def by_hand(model: nn.Module, periphery: dict[str, Any], rows: int) -> nn.Module:
    """The model with its convolutions computed so, in place.

    Args:
        model: with convolutions in two dimensions, in one group, padded with zeros and without a bias; other
            layers stay as they are.
        periphery: ``dac`` and ``adc`` with ``bits`` and ``bound``, and ``out_noise``, as in a profile.
        rows: of a tile; a kernel fits on it.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.forward = _Convolution(layer, periphery, rows)  # type: ignore[method-assign]
    return model


class _Convolution:
    def __init__(self, layer: nn.Conv2d, periphery: dict[str, Any], rows: int) -> None:
        dac, adc = periphery["dac"], periphery["adc"]
        self.most, self.last = 2 ** (dac["bits"] - 1) - 1, 2 ** (adc["bits"] - 1) - 1
        self.to_steps = self.most / dac["bound"]
        self.noise = periphery["out_noise"] * self.last / adc["bound"]
        self.layer = layer
        weights = layer.weight.detach()
        count = ceil(layer.in_channels / (rows // weights[0, 0].numel()))
        self.parts: list[tuple[slice, Tensor, Tensor]] = []
        for channels in torch.arange(layer.in_channels).tensor_split(count):
            part = slice(int(channels[0]), int(channels[-1]) + 1)
            scale = weights[:, part].flatten(1).abs().amax(1).view(-1, 1, 1)
            folded = weights[:, part] / scale.unsqueeze(-1) * (self.last / adc["bound"] / self.most)
            self.parts.append((part, folded, scale * (dac["bound"] * adc["bound"] / self.last)))

    def __call__(self, images: Tensor) -> Tensor:
        layer = self.layer
        places = functional.conv2d(
            images[:1, :1].to("meta"),
            layer.weight[:1, :1].to("meta"),
            None,
            layer.stride,
            layer.padding,
            layer.dilation,
        ).shape[2:]
        output = images.new_empty(len(images), layer.out_channels, *places)
        size = max(images[0].numel(), output[0].numel())
        high = len(images) if len(images) * size <= _WHOLE else max(1, _BLOCK // size)
        for some, into in zip(images.split(high), output.split(high), strict=True):
            for number, (channels, weights, back) in enumerate(self.parts):
                steps = torch.mul(some[:, channels], self.to_steps).round_().clamp_(-self.most, self.most)
                found = functional.conv2d(steps, weights, None, layer.stride, layer.padding, layer.dilation)
                found.add_(torch.empty_like(found).normal_(), alpha=self.noise)
                found.round_().clamp_(-self.last, self.last)
                if number == 0:
                    torch.mul(found, back, out=into)
                else:
                    into.addcmul_(found, back)
        return output
