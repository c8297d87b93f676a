"""From weights to pairs of conductances and to tiles, and back.

A layer's weights are seen as ``[groups, columns, rows]``: one block per convolution group, output channels
along the columns of the array and inputs (channel by channel, each with its kernel positions) along the rows.
A linear layer has one group.

A pair of devices holds one weight (contract 3 of the design):

    w = s * (G+ - G-),   G± = g_min + max(±w, 0) / s,   s = max|w| / (g_max - g_min)
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import torch
from torch import Tensor

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
    fits on a tile (then no kernel is torn); a kernel larger than a tile is cut evenly by rows. Groups that
    fit on a tile together share it, along its diagonal.

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
    edges = [total * part // parts for part in range(parts + 1)]
    return list(pairwise(edges))


def scales(weights: Tensor, profile: DeviceProfile, layer_max: Tensor | None = None) -> Tensor:
    """Weight units per conductance unit of a block: ``[groups, columns, 1]`` for scale "column", else ``[1,
    1, 1]``.

    Args:
        weights: ``[groups, columns, rows]``, float32.
        profile: gives the conductance range and the kind of scale.
        layer_max: max|w| of the whole layer, for scale "layer".
    """
    span = profile.conductance.g_max - profile.conductance.g_min
    if profile.mapping.scale == "layer" and layer_max is not None:
        largest = layer_max.reshape(1, 1, 1)
    elif profile.mapping.scale == "column":
        largest = weights.abs().amax(dim=2, keepdim=True)
    else:
        largest = weights.abs().amax().reshape(1, 1, 1)
    return torch.where(largest > 0, largest / span, torch.ones_like(largest))


def to_pairs(weights: Tensor, scale: Tensor, profile: DeviceProfile) -> Tensor:
    """Target conductances ``[2, groups, columns, rows]`` (G+ first) of a block of weights, in the profile's
    unit.
    """
    relative = weights / scale
    pairs = torch.stack((relative, -relative)).clamp_(min=0)
    g_min, g_max = profile.conductance.g_min, profile.conductance.g_max
    if g_min:
        pairs += g_min
    # Rounding in w / s may overshoot the largest conductance by one unit in the last place.
    return pairs.clamp_(max=g_max)


def to_weights(pairs: Tensor, scale: Tensor) -> Tensor:
    """Net weights ``[groups, columns, rows]`` that pairs of conductances hold."""
    return torch.sub(pairs[0], pairs[1]).mul_(scale)
