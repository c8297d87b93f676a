"""Convolutions through a periphery.

Where the inputs' range is one number, a part of the matrix along its rows is a convolution over some of the
input channels, and nothing is unfolded. Where every vector has its own range (``range = "dynamic"``), the
vectors must be made: the patches of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from analognoise.crossbar.periphery import Products
from analognoise.layers.conv_patches import along, by_patches, layout_behind, outputs_of, padded
from analognoise.layers.products import (
    as_computed,
    columns_of,
    followed,
    layout_of,
    matrix_product,
    no_autocast,
    with_bias,
)

if TYPE_CHECKING:
    from analognoise.layers.base import AnalogLayer

_CONVOLVE = (functional.conv1d, functional.conv2d, functional.conv3d)


def laid_out(layer: AnalogLayer, input: Tensor) -> Tensor:
    """An input or output in the memory format of the digital weights, where that is the digital output's.

    What is written on a chip is contiguous, but a forward may rely on the layout of what its layers give.
    """
    target = layer.target("weight")
    layout = layout_of(target)
    if layout is torch.contiguous_format or input.dim() != target.dim():
        return input
    return input.contiguous(memory_format=layout)


def convolved(layer: AnalogLayer, input: Tensor) -> Tensor:
    """The convolution of a layer's matrix with its input, through the periphery, and its bias."""
    assert isinstance(layer, _ConvNd)
    around = layer.analog.periphery
    assert around is not None
    if around.surroundings.dynamic:
        return _of_images(layer, input, partial(by_patches, layer))
    if layer.padding_mode == "zeros":  # which a DAC leaves zeros
        return _of_images(
            layer, input, lambda given: _by_channels(layer, given, given, layer.padding, layout_of(given))
        )
    return _of_images(
        layer,
        input,
        lambda given: _by_channels(layer, given, padded(layer, given), 0, layout_behind(layer, given)),
    )


def _of_images(layer: AnalogLayer, input: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    """A product with one image or several, in the type that it is computed in, and the layer's bias."""
    assert isinstance(layer, _ConvNd)
    spatial = len(layer.kernel_size)
    batched = input.dim() == spatial + 2
    with no_autocast(input.device):
        given = as_computed(input, layer.target("weight"), layer.analog.name)
        given = given if batched else given.unsqueeze(0)
        output = product(given)
        if layer.bias is not None:
            bias = layer.bias.to(given.dtype).view(-1, *(1,) * spatial)
            output = with_bias(output, bias, followed())
        output = output.to(input.dtype)
    return output if batched else output.squeeze(0)


def _by_channels(
    layer: AnalogLayer, input: Tensor, given: Tensor, padding: Any, layout: torch.memory_format
) -> Tensor:
    assert isinstance(layer, _ConvNd)
    assert layer.analog.periphery is not None
    spatial, kernel = len(layer.kernel_size), layer.geometries(layer)["weight"].kernel
    groups, channels = layer.groups, layer.in_channels // layer.groups
    convolve = _CONVOLVE[spatial - 1]
    places = prod(given.shape[2:])

    def take(inputs: Tensor, start: int, end: int) -> Tensor:
        from_, to = start // kernel, -(-end // kernel)
        if to - from_ == channels:
            return inputs
        return inputs.unflatten(1, (groups, channels))[:, :, from_:to].flatten(1, 2)

    def multiply(inputs: Tensor, matrix: Tensor, start: int) -> Tensor:
        rows = matrix.shape[2]
        before, after = start % kernel, -(start + rows) % kernel
        if before or after:  # a kernel larger than a tile is torn
            matrix = functional.pad(matrix, (before, after))
        weights = matrix.reshape(layer.out_channels, -1, *layer.kernel_size)
        outputs = convolve(inputs, weights, None, layer.stride, padding, layer.dilation, groups)
        return outputs.contiguous(memory_format=layout)  # a part of one channel lies in both ways

    def spread(factors: Tensor) -> Tensor:
        return factors.reshape(-1, *(1,) * spatial)

    size = places * max(layer.in_channels, layer.out_channels // prod(along(layer, layer.stride)))
    outputs = outputs_of(layer, input, layout)
    products = Products(given, size, take, multiply, spread, None, followed(), outputs=outputs)
    return layer.analog.periphery.product(layer, "weight", products)


def transposed(layer: AnalogLayer, input: Tensor, output_size: list[int] | None) -> Tensor:
    """The transposed convolution of a layer's matrix with its input, through the periphery, and its bias.

    The array gives (output channel, kernel position) for every input position; what falls on one output
    position is added digitally.
    """
    assert isinstance(layer, _ConvTransposeNd)
    around = layer.analog.periphery
    assert around is not None
    spatial, groups, rows = len(layer.kernel_size), layer.groups, layer.in_channels // layer.groups
    given_to: Any = (layer.stride, layer.padding, layer.kernel_size, spatial, layer.dilation)
    padding: Any = layer._output_padding(input, output_size, *given_to)

    def take(images: Tensor, start: int, end: int) -> Tensor:
        vectors = images.unflatten(1, (groups, rows))[:, :, start:end].flatten(3)
        return vectors.permute(0, 3, 1, 2).contiguous()  # [images, places, groups, rows]

    def product(given: Tensor) -> Tensor:
        places, layout = given.shape[2:], layout_of(given)

        def finish(products: Tensor) -> Tensor:
            folded = _folded(layer, products.flatten(2).transpose(1, 2), places, padding)
            return folded.contiguous(memory_format=layout)

        size = prod(places) * groups * max(rows, layer.geometries(layer)["weight"].columns)
        products = Products(
            given,
            size,
            take,
            lambda vectors, matrix, start: matrix_product(vectors, matrix),
            columns_of,
            None,
            followed(),
            finish=finish,
        )
        return around.product(layer, "weight", products)

    return _of_images(layer, input, product)


def _folded(
    layer: _ConvTransposeNd, products: Tensor, places: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Products ``[images, (channel, kernel position), input places]`` added up where they fall.

    Args:
        layer: a transposed convolution.
        products: of its matrix with every place of its input.
        places: how many there are along each axis.
        padding: how much the output is larger along each axis, of several sizes that are possible.
    """
    if len(places) < 3:
        axes = zip(
            layer.stride, layer.padding, layer.kernel_size, layer.dilation, padding, places, strict=True
        )
        # One dimension is two, with a first axis of length 1.
        stretch: Any = [(1, 0, 1, 1, 0, 1), *axes][-2:]
        strides, paddings, kernels, dilations, _, _ = zip(*stretch, strict=True)
        sizes = tuple(
            (count - 1) * stride - 2 * pad + dilation * (width - 1) + more + 1
            for stride, pad, width, dilation, more, count in stretch
        )
        if all(more < stride for more, stride in zip(padding, layer.stride, strict=True)):
            found = functional.fold(products, sizes, kernels, dilations, paddings, strides)
        else:  # with dilation; fold would take such a size for that of more places
            whole = tuple(
                size + 2 * pad - entry[4] for size, pad, entry in zip(sizes, paddings, stretch, strict=True)
            )
            found = functional.fold(products, whole, kernels, dilations, 0, strides)
            ends = [(-entry[1], entry[4] - entry[1]) for entry in reversed(stretch)]
            found = functional.pad(found, [amount for pair in ends for amount in pair])
        return found if len(places) == 2 else found.squeeze(2)
    # Torch folds no volumes: a transposed convolution with kernels of a single one each does.
    kernel = prod(layer.kernel_size)
    ones = torch.eye(kernel, dtype=products.dtype, device=products.device)
    ones = ones.view(kernel, 1, *layer.kernel_size).repeat(layer.out_channels, 1, 1, 1, 1)
    given: Any = (layer.stride, layer.padding, padding, layer.out_channels, layer.dilation)
    return functional.conv_transpose3d(products.unflatten(2, tuple(places)), ones, None, *given)
