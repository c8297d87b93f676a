"""Convolutions through a periphery.

Where the inputs' range is one number, a part of the matrix along its rows is a convolution over some of the
input channels, and nothing is unfolded. Where every vector has its own range (``range = "dynamic"``), the
vectors must be made: the patches of the input.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from analognoise.crossbar.periphery import Products
from analognoise.crossbar.periphery.product import Bound
from analognoise.layers.products import as_computed, followed, layout_of, no_autocast, with_bias

if TYPE_CHECKING:
    from analognoise.layers.base import AnalogLayer

_CONVOLVE = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)


def laid_out(layer: AnalogLayer, input: Tensor) -> Tensor:
    """The input in the memory format of the digital weights, where that would become the output's.

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
    spatial = len(layer.kernel_size)
    batched = input.dim() == spatial + 2
    with no_autocast(input.device):
        given = as_computed(input, layer.target("weight"), layer.analog.name)
        given = given if batched else given.unsqueeze(0)
        if around.surroundings.dynamic:
            output = _by_patches(layer, given)
        elif layer.padding_mode == "zeros":  # which a DAC leaves zeros
            output = _by_channels(layer, given, layer.padding)
        else:
            output = _by_channels(layer, _padded(layer, given), 0)
        bias = None if layer.bias is None else layer.bias.view(-1, *(1,) * spatial)
        output = with_bias(output, bias).to(input.dtype)
    return output if batched else output.squeeze(0)


def _by_channels(layer: AnalogLayer, given: Tensor, padding: Any) -> Tensor:
    assert isinstance(layer, _ConvNd)
    assert layer.analog.periphery is not None
    spatial, kernel = len(layer.kernel_size), layer.geometries(layer)["weight"].kernel
    groups, channels = layer.groups, layer.in_channels // layer.groups
    convolve = _CONVOLVE[spatial - 1]
    places = prod(given.shape[2:])
    layout = layout_of(given)

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

    size = places * max(layer.in_channels, layer.out_channels // prod(layer.stride))
    products = Products(given, size, take, multiply, spread, None)
    return layer.analog.periphery.product(layer, "weight", products)


def _by_patches(layer: AnalogLayer, given: Tensor) -> Tensor:
    """Every patch of the input is a vector with a range of its own."""
    assert isinstance(layer, _ConvNd)
    around = layer.analog.periphery
    assert around is not None
    kernel = prod(layer.kernel_size)
    if any(edge % kernel for part in around.frames["weight"].rows for edge in part):
        return _by_rows(layer, _padded(layer, given))
    patches = _Patches(layer, given)
    outputs = around.product(layer, "weight", patches.products(given))
    outputs = outputs.flatten(2).transpose(1, 2).unflatten(2, patches.places)
    return outputs.contiguous(memory_format=layout_of(given))


class _Patches:
    """How patches are multiplied: some images at a time, never those of all at once.

    With the channels last a patch is a few stretches of memory, so that scaling a view of the overlapping
    patches makes the vectors in one go. Their largest values come from the largest of each place.

    Args:
        layer: a convolution.
        given: its inputs, ``[images, channels, *places]``.

    Attributes:
        places: how many outputs there are along each axis.
    """

    def __init__(self, layer: _ConvNd, given: Tensor) -> None:
        self._layer = layer
        self._groups, self._channels = layer.groups, layer.in_channels // layer.groups
        self._columns = layer.out_channels // layer.groups
        self._spatial, self._kernel = len(layer.kernel_size), prod(layer.kernel_size)
        self._reach = [
            (step * (width - 1) + 1, stride, step)
            for width, stride, step in zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
        ]
        amounts = layer._reversed_padding_repeated_twice  # before and behind, the last axis first
        ends = [sum(amounts[place : place + 2]) for place in range(0, len(amounts), 2)][::-1]
        self.places = tuple(
            (size + end - span) // stride + 1
            for size, end, (span, stride, _) in zip(given.shape[2:], ends, self._reach, strict=True)
        )
        self._by_group = self._groups > 1 and self._channels * self._columns > 1
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def products(self, given: Tensor) -> Products:
        """Outputs are ``[images, places, groups, columns]``."""
        # Blocks of twice as many numbers as elsewhere: vectors are made by many calls.
        size = prod(self.places) * self._groups * max(self._channels * self._kernel, self._columns) // 2
        return Products(
            given,
            size,
            self._take,
            self._multiply,
            lambda factors: factors.squeeze(-1),
            None,
            self._scaled,
            self._peak,
        )

    def _take(self, images: Tensor, start: int, end: int) -> Tensor:
        """Images ``[images, groups, channels, *places]`` of the channels that the rows belong to, padded."""
        own = images.unflatten(1, (self._groups, self._channels))
        own = own[:, :, start // self._kernel : end // self._kernel]
        return _padded(self._layer, own.flatten(1, 2)).unflatten(1, own.shape[1:3])

    def _peak(self, images: Tensor) -> Tensor:
        most = images.abs().amax(dim=2)
        for axis, (span, stride, step) in enumerate(self._reach):
            most = most.unfold(2 + axis, span, stride)[..., ::step].amax(dim=-1)
        return most.flatten(2).transpose(1, 2).unsqueeze(-1)

    def _scaled(self, images: Tensor, factor: Bound) -> Tensor:
        """Vectors ``[images, places, kernel, groups, channels]``."""
        spatial, groups = self._spatial, self._groups
        last = images.movedim((1, 2), (-2, -1)).contiguous()
        if not isinstance(factor, Tensor):
            factor = last.new_full((), factor)
        else:
            factor = factor.view(len(images), *self.places, *(1,) * spatial, groups, 1)
        if not followed():
            patches = self._of(last)
            room = patches.new_empty(patches.shape)
            if self._by_group:  # each group's vectors lie together
                room = patches.new_empty(groups, *patches.shape[:-2], patches.shape[-1]).movedim(0, -2)
            vectors = torch.mul(patches, factor, out=room)
        elif torch.is_grad_enabled() and not (
            torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        ):
            vectors = _Scaled.apply(last, factor, self)
        else:
            vectors = self._of(last) * factor
        return vectors.flatten(1, spatial).flatten(2, spatial + 1)

    def _of(self, last: Tensor) -> Tensor:
        """The patches of images with their channels last, ``[images, *places, *kernel, groups, channels]``: a
        view.
        """
        for axis, (span, stride, step) in enumerate(self._reach):
            last = last.unfold(1 + axis, span, stride)[..., ::step]
        return last.movedim((self._spatial + 1, self._spatial + 2), (-2, -1))

    def add_back(self, images: Tensor, vectors: Tensor, factor: Tensor) -> None:
        """Add vectors times their factors to the places of the images that their patches were taken from."""
        spatial = self._spatial
        if factor.dim():
            factor = factor.flatten(1 + spatial, 2 * spatial)[(slice(None),) * (1 + spatial) + (0,)]
        for offset in product(*map(range, self._layer.kernel_size)):
            along = [
                slice(place * step, place * step + (count - 1) * stride + 1, stride)
                for place, count, (_, stride, step) in zip(offset, self.places, self._reach, strict=True)
            ]
            own = vectors[(slice(None),) * (1 + spatial) + offset]
            images[(slice(None), *along)].addcmul_(own, factor)

    def _multiply(self, vectors: Tensor, matrix: Tensor, start: int) -> Tensor:
        weights = self._ordered(matrix)
        if self._by_group:
            each = vectors.movedim(-2, 0).flatten(1, 2).flatten(2)
            each = torch.bmm(each, weights.flatten(2).transpose(1, 2))
            return each.unflatten(1, vectors.shape[:2]).movedim(0, 2)
        if self._groups > 1:  # of one channel and one column each
            return (vectors.squeeze(-1) * weights[:, 0, :, 0].t()).sum(dim=2).unsqueeze(-1)
        return functional.linear(vectors.flatten(2), weights[0].flatten(1)).unsqueeze(2)

    def _ordered(self, matrix: Tensor) -> Tensor:
        """Weights ``[groups, columns, kernel, channels]``; of a forward's blocks they are the same."""
        if not followed() and id(matrix) in self._kept:
            return self._kept[id(matrix)][1]
        weights = matrix.unflatten(2, (-1, self._kernel)).transpose(2, 3).contiguous()
        if not followed():
            self._kept[id(matrix)] = matrix, weights  # the matrix, too: another may get its id otherwise
        return weights


class _Scaled(torch.autograd.Function):
    """Patches times their factors; torch's own gradient of overlapping views takes five times as long."""

    @staticmethod
    def forward(ctx: Any, last: Tensor, factor: Tensor, patches: _Patches) -> Tensor:
        ctx.save_for_backward(factor)
        ctx.patches, ctx.shape = patches, last.shape
        return patches._of(last) * factor

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (factor,), (gradient,) = ctx.saved_tensors, gradients
        found = gradient.new_zeros(ctx.shape)
        ctx.patches.add_back(found, gradient, factor)
        return found, None, None


def _by_rows(layer: AnalogLayer, given: Tensor) -> Tensor:
    """The same where kernels are torn between tiles: each part along the rows has ranges of its own."""
    assert isinstance(layer, _ConvNd)
    spatial = len(layer.kernel_size)
    patches = given
    for axis in range(spatial):
        size, step = layer.kernel_size[axis], layer.dilation[axis]
        patches = patches.unfold(2 + axis, step * (size - 1) + 1, layer.stride[axis])[..., ::step]
    # [batch, channels, *positions, *kernel] to [batch, *positions, groups, rows]
    places = patches.shape[2 : 2 + spatial]
    order = (0, *range(2, 2 + spatial), 1, *range(2 + spatial, 2 + 2 * spatial))
    rows = layer.in_channels // layer.groups * prod(layer.kernel_size)
    vectors = patches.permute(order).reshape(len(given), *places, layer.groups, rows)
    outputs = layer.multiply(vectors).flatten(-2)
    return outputs.movedim(-1, 1).contiguous(memory_format=layout_of(given))


def transposed(layer: AnalogLayer, input: Tensor, output_size: list[int] | None) -> Tensor:
    """The transposed convolution of a layer's matrix with its input, through the periphery, and its bias.

    The array gives (output channel, kernel position) for every input position; what falls on one output
    position is added digitally, by a transposed convolution with kernels of a single one each.
    """
    assert isinstance(layer, _ConvTransposeNd)
    spatial = len(layer.kernel_size)
    batched = input.dim() == spatial + 2
    given_to: Any = (layer.stride, layer.padding, layer.kernel_size, spatial, layer.dilation)
    padding = layer._output_padding(input, output_size, *given_to)
    with no_autocast(input.device):
        given = as_computed(input, layer.target("weight"), layer.analog.name)
        given = given if batched else given.unsqueeze(0)
        vectors = given.movedim(1, -1).unflatten(-1, (layer.groups, layer.in_channels // layer.groups))
        products = layer.multiply(vectors).flatten(-2).movedim(-1, 1)
        kernel = layer.geometries(layer)["weight"].columns * layer.groups // layer.out_channels
        ones = torch.eye(kernel, dtype=given.dtype, device=given.device)
        ones = ones.view(kernel, 1, *layer.kernel_size).repeat(layer.out_channels, *(1,) * (spatial + 1))
        fold = _TRANSPOSED[spatial - 1]
        sizes: Any = (layer.stride, layer.padding, padding, layer.out_channels, layer.dilation)
        bias = None if layer.bias is None else layer.bias.to(given.dtype)
        output = fold(products, ones, bias, *sizes).contiguous(memory_format=layout_of(given))
    output = output.to(input.dtype)
    return output if batched else output.squeeze(0)


def _padded(layer: _ConvNd, given: Tensor) -> Tensor:
    """The input with the layer's padding, so that the convolution itself needs none."""
    amounts = layer._reversed_padding_repeated_twice
    if not any(amounts):
        return given
    if layer.padding_mode == "zeros":
        return functional.pad(given, amounts)
    return functional.pad(given, amounts, mode=layer.padding_mode)
