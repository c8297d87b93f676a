"""Convolutions whose vectors have ranges of their own: the patches of the input."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from analognoise.crossbar.periphery import Products
from analognoise.crossbar.periphery.product import Bound
from analognoise.layers.products import columns_of, followed, layout_of, transformed

if TYPE_CHECKING:
    from analognoise.layers.base import AnalogLayer


def by_patches(layer: AnalogLayer, given: Tensor) -> Tensor:
    """Every patch of the input is a vector with a range of its own."""
    assert isinstance(layer, _ConvNd)
    around = layer.analog.periphery
    assert around is not None
    kernel = prod(layer.kernel_size)
    if any(edge % kernel for part in around.frames["weight"].rows for edge in part):
        return _by_rows(layer, padded(layer, given), layout_behind(layer, given))
    return around.product(layer, "weight", _Patches(layer, given).products(given))


class _Patches:
    """How patches are multiplied: some images at a time, never those of all at once.

    With the channels last a patch is a few stretches of memory, so that scaling a view of the overlapping
    patches makes the vectors in one go. Their largest values come from the largest of each place.

    Args:
        layer: a convolution.
        given: its inputs, ``[images, channels, *places]``.
    """

    def __init__(self, layer: _ConvNd, given: Tensor) -> None:
        self._layer = layer
        self._groups, self._channels = layer.groups, layer.in_channels // layer.groups
        self._columns = layer.out_channels // layer.groups
        self._spatial, self._kernel = len(layer.kernel_size), prod(layer.kernel_size)
        self._reach = _reach(layer)
        self._places = places_of(layer, given)
        self._by_group = self._groups > 1 and self._channels * self._columns > 1
        self._layout = layout_behind(layer, given)
        self._followed = followed()
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def products(self, given: Tensor) -> Products:
        """Products of the inputs that the layer was given."""
        # Blocks of twice as many numbers as elsewhere: vectors are made by many calls.
        size = prod(self._places) * self._groups * max(self._channels * self._kernel, self._columns) // 2
        return Products(
            given,
            size,
            self._take,
            self._multiply,
            columns_of,
            None,
            self._followed,
            self._scaled,
            self._peak,
            self._finish,
            outputs_of(self._layer, given, self._layout),
        )

    def _take(self, images: Tensor, start: int, end: int) -> Tensor:
        """Images ``[images, groups, channels, *places]`` of the channels that the rows belong to, padded."""
        own = images.unflatten(1, (self._groups, self._channels))
        own = own[:, :, start // self._kernel : end // self._kernel]
        return padded(self._layer, own.flatten(1, 2)).unflatten(1, own.shape[1:3])

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
            factor = factor.view(len(images), *self._places, *(1,) * spatial, groups, 1)
        if not self._followed:
            patches = self.of(last)
            room = patches.new_empty(patches.shape)
            if self._by_group:  # each group's vectors lie together
                room = patches.new_empty(groups, *patches.shape[:-2], patches.shape[-1]).movedim(0, -2)
            vectors = torch.mul(patches, factor, out=room)
        elif last.requires_grad and torch.is_grad_enabled() and not transformed():
            vectors = _Scaled.apply(last, factor, self)
        else:
            vectors = self.of(last) * factor
        return vectors.flatten(1, spatial).flatten(2, spatial + 1)

    def of(self, last: Tensor) -> Tensor:
        """The patches of images with their channels last, ``[images, *places, *kernel, groups, channels]``: a
        view.
        """
        last = _unfolded(last, 1, self._reach)
        return last.movedim((self._spatial + 1, self._spatial + 2), (-2, -1))

    def add_back(self, images: Tensor, vectors: Tensor, factor: Tensor) -> None:
        """Add vectors times their factors to the places of the images that their patches were taken from."""
        spatial = self._spatial
        if factor.dim():
            factor = factor.flatten(1 + spatial, 2 * spatial)[(slice(None),) * (1 + spatial) + (0,)]
        for offset in product(*map(range, self._layer.kernel_size)):
            along = [
                slice(place * step, place * step + (count - 1) * stride + 1, stride)
                for place, count, (_, stride, step) in zip(offset, self._places, self._reach, strict=True)
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

    def _finish(self, outputs: Tensor) -> Tensor:
        """From ``[images, places, groups, columns]`` to what the layer gives."""
        found = outputs.flatten(2).transpose(1, 2).unflatten(2, self._places)
        return found.contiguous(memory_format=self._layout)

    def _ordered(self, matrix: Tensor) -> Tensor:
        """Weights ``[groups, columns, kernel, channels]``; of a forward's blocks they are the same."""
        if not self._followed and id(matrix) in self._kept:
            return self._kept[id(matrix)][1]
        weights = matrix.unflatten(2, (-1, self._kernel)).transpose(2, 3).contiguous()
        if not self._followed:
            self._kept[id(matrix)] = matrix, weights  # the matrix, too: another may get its id otherwise
        return weights


class _Scaled(torch.autograd.Function):
    """Patches times their factors; torch's own gradient of overlapping views takes five times as long."""

    @staticmethod
    def forward(ctx: Any, last: Tensor, factor: Tensor, patches: _Patches) -> Tensor:
        ctx.save_for_backward(factor)
        ctx.save_for_forward(factor)
        ctx.patches, ctx.shape = patches, last.shape
        return patches.of(last) * factor

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (factor,), (gradient,) = ctx.saved_tensors, gradients
        found = gradient.new_zeros(ctx.shape)
        ctx.patches.add_back(found, gradient, factor)
        return found, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        (factor,) = ctx.saved_tensors
        scaled: Tensor = ctx.patches.of(tangents[0]) * factor
        return scaled


def _by_rows(layer: AnalogLayer, given: Tensor, layout: torch.memory_format) -> Tensor:
    """The same where kernels are torn between tiles: each part along the rows has ranges of its own."""
    assert isinstance(layer, _ConvNd)
    spatial = len(layer.kernel_size)
    patches = _unfolded(given, 2, _reach(layer))
    # [batch, channels, *positions, *kernel] to [batch, *positions, groups, rows]
    places = patches.shape[2 : 2 + spatial]
    order = (0, *range(2, 2 + spatial), 1, *range(2 + spatial, 2 + 2 * spatial))
    rows = layer.in_channels // layer.groups * prod(layer.kernel_size)
    vectors = patches.permute(order).reshape(len(given), *places, layer.groups, rows)
    outputs = layer.multiply(vectors).flatten(-2)
    return outputs.movedim(-1, 1).contiguous(memory_format=layout)


def _reach(layer: _ConvNd) -> list[tuple[int, int, int]]:
    """How far a kernel reaches along each axis, from place to place, and from one of its own to the next."""
    return [
        (step * (width - 1) + 1, stride, step)
        for width, stride, step in zip(
            layer.kernel_size, along(layer, layer.stride), along(layer, layer.dilation), strict=True
        )
    ]


def along(layer: _ConvNd, amounts: Any) -> tuple[int, ...]:
    """What a layer has for each axis of places, where torch takes one number for all, too."""
    amounts = tuple(amounts) if isinstance(amounts, Iterable) else (amounts,)
    return amounts * len(layer.kernel_size) if len(amounts) == 1 else amounts


def _amounts(layer: _ConvNd) -> list[int]:
    """The padding before and behind each axis, the last first. That with zeros may have been changed since
    the layer was made, as torch's convolutions look at it anew each time; other kinds they remember.
    """
    padding: Any = layer.padding
    if layer.padding_mode != "zeros":
        return layer._reversed_padding_repeated_twice
    if padding == "same":
        total = [span - 1 for span, _, _ in reversed(_reach(layer))]
        return [amount for both in total for amount in (both // 2, both - both // 2)]
    every = (0,) if padding == "valid" else padding
    return [amount for amount in reversed(along(layer, every)) for _ in range(2)]


def places_of(layer: _ConvNd, given: Tensor) -> tuple[int, ...]:
    """How many outputs along each axis the inputs ``[images, channels, *places]`` have."""
    amounts = _amounts(layer)
    ends = [sum(amounts[place : place + 2]) for place in range(0, len(amounts), 2)][::-1]
    return tuple(
        max(0, (size + end - span) // stride + 1)
        for size, end, (span, stride, _) in zip(given.shape[2:], ends, _reach(layer), strict=True)
    )


def outputs_of(layer: _ConvNd, given: Tensor, layout: torch.memory_format) -> Callable[[int], Tensor]:
    """What makes the memory for a convolution's outputs."""

    def make(columns: int) -> Tensor:
        shape = len(given), layer.groups * columns, *places_of(layer, given)
        return torch.empty(shape, dtype=given.dtype, device=given.device, memory_format=layout)

    return make


def _unfolded(tensor: Tensor, first: int, reach: list[tuple[int, int, int]]) -> Tensor:
    """A view with what each kernel covers along the last axes; axes of places begin with the given one."""
    for axis, (span, stride, step) in enumerate(reach, first):
        tensor = tensor.unfold(axis, span, stride)[..., ::step]
    return tensor


def padded(layer: _ConvNd, given: Tensor) -> Tensor:
    """The input with the layer's padding, so that the convolution itself needs none."""
    amounts = _amounts(layer)
    if not any(amounts):
        return given
    if layer.padding_mode == "zeros":
        return functional.pad(given, amounts)
    return functional.pad(given, amounts, mode=layer.padding_mode)


def layout_behind(layer: _ConvNd, given: Tensor) -> torch.memory_format:
    """The memory format of a convolution's output for inputs without padding."""
    if layer.padding_mode == "circular" and any(_amounts(layer)):
        given = layer.weight  # torch's circular padding is contiguous whatever it is given
    return layout_of(given)
