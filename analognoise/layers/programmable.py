"""Whether the present weights of layers can be programmed."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from analognoise.errors import ModelError
from analognoise.layers.base import AnalogLayer
from analognoise.layers.on_chip import gathered
from analognoise.scalars import as_numbers


def check_programmable(layers: Iterable[AnalogLayer]) -> None:
    """Raise unless the present weights of layers can be programmed; nothing is changed, and their device is
    waited for once.

    Raises:
        ModelError: when they hold NaN or inf, have no data (``meta`` device) or another shape than what went
            on tiles.
    """
    layers = list(layers)
    # NaN and inf survive a sum, which is much faster than a look at each.
    if not all(map(math.isfinite, as_numbers([own for layer in layers for own in _sums(layer)]))):
        for layer in layers:
            _check_each_value(layer)


def _sums(layer: AnalogLayer) -> list[Tensor]:
    """The sum of each of the present weights, which have data and the shape that went on tiles."""
    state, sums = layer.analog, []
    for name, geometry in layer.geometries(layer).items():
        target = layer.target(name)
        ends = state.sizes.get(name, [])  # nothing of an empty one
        sizes = [geometry.groups, geometry.columns, geometry.rows]
        if target.numel() != math.prod(sizes) or (ends and ends != sizes):
            raise ModelError(
                f"layer {state.name!r} cannot be programmed: its {name!r} of shape {list(target.shape)} "
                f"is not what went on tiles, [groups, columns, rows] = {ends}: convert the model again"
            )
        weight = gathered(target)
        if weight.is_meta:
            raise ModelError(
                f"layer {state.name!r} cannot be programmed: its weight is on the 'meta' device and holds no "
                "values"
            )
        sums.append(weight.float().sum())
    return sums


def _check_each_value(layer: AnalogLayer) -> None:
    """Raise if a weight is NaN or infinite as a device would be given it, in float32."""
    for name in layer.geometries(layer):
        weight = gathered(layer.target(name))
        finite = torch.isfinite(weight.float())
        if not finite.all():
            beyond = " or beyond float32" if weight.dtype == torch.float64 else ""
            raise ModelError(
                f"layer {layer.analog.name!r} cannot be programmed: {int((~finite).sum())} of its "
                f"{weight.numel()} weights are NaN or infinite{beyond}"
            )
