"""From weights to pairs of conductances and to tiles, and back.

A layer's weights are seen as ``[groups, columns, rows]``: one block per convolution group, output channels
along the columns of the array and inputs (channel by channel, each with its kernel positions) along the rows.
A linear layer has one group.

A pair of devices holds one weight (contract 3 of the design):

    w = s * (G+ - G-),   G± = g_min + max(±w, 0) / s,   s = max|w| / (g_max - g_min)

Several pairs with significances f hold it together, w = s * Σ f (G+ - G-) with s = max|w| / (Σ f (g_max -
g_min)): filled one after the other as by aihwkit's ``NPairConductanceConverter``, or with equal shares. One
device less an offset holds it as w = s * (G - G_0), G_0 half way between g_min and g_max, s = 2 max|w| /
(g_max - g_min); G_0 is a column of devices that all columns of the tile share, or a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import torch
from torch import Tensor
from torch.nn import functional

from analognoise.devices.profile import DeviceProfile


@dataclass(frozen=True)
class Block:
    """The part of a layer's ``[groups, columns, rows]`` weights that one tile holds.

    Several groups on a tile lie along its diagonal; the cells between them stay unprogrammed and carry no
    current.
    """

    groups: tuple[int, int]
    columns: tuple[int, int]
    rows: tuple[int, int]

    @property
    def index(self) -> tuple[slice, slice, slice]:
        """Slices that cut the block out of the layer's weights."""
        return slice(*self.groups), slice(*self.columns), slice(*self.rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups, columns and rows of the block."""
        return tuple(end - start for start, end in (self.groups, self.columns, self.rows))  # type: ignore[return-value]

    @property
    def weights(self) -> int:
        """How many weights the block holds."""
        groups, columns, rows = self.shape
        return groups * columns * rows


def split(
    groups: int, columns: int, channels: int, kernel: int, max_rows: int, max_columns: int
) -> list[Block]:
    """Cut a layer into blocks of at most ``max_rows`` × ``max_columns`` cells.

    Parts differ by at most one output column, and by at most one input channel as long as a channel's kernel
    fits on a tile (then no kernel is torn); a kernel larger than a tile is cut evenly by rows. Larger parts
    come first. Groups that fit on a tile together share it, along its diagonal.

    Args:
        groups: convolution groups (1 for linear layers).
        columns: output channels per group.
        channels: input channels (or features) per group.
        kernel: kernel positions per channel (1 for linear layers).
        max_rows: rows of a tile.
        max_columns: columns of a tile.
    """
    rows = channels * kernel
    if not groups * columns * rows:
        return []
    if groups > 1 and rows <= max_rows and columns <= max_columns:
        together = min(max_rows // rows, max_columns // columns)
        return [Block(part, (0, columns), (0, rows)) for part in _even(groups, ceil(groups / together))]
    if kernel <= max_rows:
        parts = _even(channels, ceil(channels / (max_rows // kernel)))
        row_parts = [(start * kernel, end * kernel) for start, end in parts]
    else:
        row_parts = _even(rows, ceil(rows / max_rows))
    column_parts = _even(columns, ceil(columns / max_columns))
    return [
        Block((group, group + 1), column_part, row_part)
        for group in range(groups)
        for row_part in row_parts
        for column_part in column_parts
    ]


def _even(total: int, parts: int) -> list[tuple[int, int]]:
    # Larger parts first, as aihwkit has them.
    size, larger = divmod(total, parts)
    return list(pairwise(size * part + min(part, larger) for part in range(parts + 1)))


def full_scale(profile: DeviceProfile) -> float:
    """The net conductance of a cell that holds the largest weight, in the profile's unit."""
    mapping, span = profile.mapping, profile.conductance.g_max - profile.conductance.g_min
    if mapping.cell in (None, "pair"):
        return span * sum(mapping.significances)
    return span / 2


def devices_of(block: Block, profile: DeviceProfile) -> int:
    """How many devices hold a block."""
    mapping = profile.mapping
    if mapping.cell in (None, "pair"):
        return 2 * len(mapping.significances) * block.weights
    groups, _, rows = block.shape
    return block.weights + (groups * rows if mapping.cell == "offset-column" else 0)


def spare_devices_of(block: Block, profile: DeviceProfile) -> int:
    """How many devices the spare columns of a block's tile have, in the rows that it takes up."""
    groups, _, rows = block.shape
    spares = profile.faults.spare_columns if profile.faults else 0
    return spares * groups * rows * len(profile.mapping.signs)


def largest(weights: Tensor, profile: DeviceProfile, dim: int | None = None) -> Tensor:
    """The absolute weight that maps to g_max: the maximum, or the percentile that the profile asks for.

    Of all weights (a scalar), or along ``dim`` (which is kept). The percentile p is the smallest absolute
    weight that at least p % of them do not exceed; where that is zero the maximum counts.
    """
    magnitude = weights.abs()
    if dim is None:
        magnitude, dim = magnitude.reshape(-1), 0
        most = magnitude.amax()
    else:
        most = magnitude.amax(dim=dim, keepdim=True)
    percentile = profile.mapping.clip_percentile
    if percentile is None:
        return most
    place = max(1, ceil(magnitude.shape[dim] * percentile / 100 - 1e-9))
    kept = magnitude.kthvalue(place, dim=dim, keepdim=most.ndim > 0).values
    return torch.where(kept > 0, kept, most)


def scales(weights: Tensor, profile: DeviceProfile, layer_max: Tensor | None = None) -> Tensor:
    """Weight units per conductance unit of a block: ``[groups, columns, 1]`` for scale "column", else ``[1,
    1, 1]``.

    Args:
        weights: ``[groups, columns, rows]``, float32.
        profile: gives the conductance range and the kind of scale.
        layer_max: :func:`largest` of the whole layer, for scale "layer".
    """
    return scales_of(tops(weights, profile, layer_max), profile)


def tops(weights: Tensor, profile: DeviceProfile, layer_max: Tensor | None = None) -> Tensor:
    """The absolute weights of a block that map to g_max; arguments and shape as of :func:`scales`."""
    if profile.mapping.scale == "layer" and layer_max is not None:
        return layer_max.reshape(1, 1, 1)
    if profile.mapping.scale == "column":
        return largest(weights, profile, dim=2)
    return largest(weights, profile).reshape(1, 1, 1)


def scales_of(top: Tensor, profile: DeviceProfile) -> Tensor:
    """Weight units per conductance unit where ``top`` is the largest weight; 1 where that is zero."""
    return torch.where(top > 0, top / full_scale(profile), torch.ones_like(top))


def to_devices(weights: Tensor, scale: Tensor, profile: DeviceProfile) -> Tensor:
    """Target conductances of the devices that hold a block of weights, in the profile's unit.

    Args:
        weights: ``[groups, columns, rows]``, float32.
        scale: what :func:`scales` gave.
        profile: the device.

    Returns:
        ``[devices, groups, columns, rows]``: for pairs G+ and G- of the first pair, then of the next; for one
        device per weight ``[1, groups, columns + 1, rows]``, the last column that of the offset, or without
        it where the offset is digital.
    """
    mapping, (g_min, g_max) = profile.mapping, (profile.conductance.g_min, profile.conductance.g_max)
    if mapping.cell not in (None, "pair"):
        relative, middle = weights / scale, (g_min + g_max) / 2
        if mapping.cell == "offset-column":
            relative = functional.pad(relative, (0, 0, 0, 1))
        return relative.add_(middle).clamp_(g_min, g_max).unsqueeze_(0)
    pair = weights.new_empty((2, *weights.shape))
    write_net(weights, scale, pair)
    if not mapping.pairs:
        return to_range(pair, profile)
    pair.clamp_(min=0)
    if len(mapping.significances) == 1:
        pairs = pair.div_(mapping.pairs[0])
    elif mapping.share == "equal":
        pairs = (pair / sum(mapping.significances)).repeat(len(mapping.significances), 1, 1, 1)
    else:
        filled, parts = 0.0, []
        for significance in mapping.significances:
            parts.append(((pair - filled) / significance).clamp_(0, g_max - g_min))
            filled += significance * (g_max - g_min)
        pairs = torch.cat(parts)
    return to_range(pairs, profile)


def write_net(weights: Tensor, scale: Tensor, pair: Tensor) -> None:
    """Write w / s and -w / s, which :func:`to_range` makes the conductances of a pair, into ``pair``, ``[2,
    groups, columns, rows]``.
    """
    plus, minus = pair.unbind()
    torch.div(weights, scale, out=plus)
    torch.neg(plus, out=minus)


def to_range(net: Tensor, profile: DeviceProfile) -> Tensor:
    """Conductances from what they are above g_min, or below it where the other device of the pair holds the
    weight; in place.
    """
    g_min, g_max = profile.conductance.g_min, profile.conductance.g_max
    # Rounding in w / s may overshoot the largest conductance by one unit in the last place.
    if not g_min:
        return net.clamp_(0, g_max)
    return net.clamp_(min=0).add_(g_min).clamp_(max=g_max)


def to_weights(devices: Tensor, scale: Tensor, profile: DeviceProfile, spent: bool = False) -> Tensor:
    """Net weights ``[groups, columns, rows]`` that conductances hold; the inverse of :func:`to_devices`.

    Args:
        devices: ``[devices, groups, columns, rows]``.
        scale: weight units per conductance unit.
        profile: the device.
        spent: whether the memory of ``devices`` may become that of the weights.
    """
    mapping = profile.mapping
    if mapping.cell == "offset-column":
        return torch.sub(devices[0, :, :-1], devices[0, :, -1:]).mul_(scale)
    if mapping.cell == "offset-digital":
        return (devices[0] - (profile.conductance.g_min + profile.conductance.g_max) / 2).mul_(scale)
    net = torch.sub(devices[0], devices[1], out=devices[0] if spent else None)
    if mapping.pairs:
        net *= mapping.pairs[0]
        for number, significance in enumerate(mapping.pairs[1:], 1):
            net.add_(devices[2 * number] - devices[2 * number + 1], alpha=significance)
    return net.mul_(scale)
