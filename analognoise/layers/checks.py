"""Whether what a class on tiles says of a layer's weights fits them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from analognoise.errors import ConversionError
from analognoise.layers.base import AnalogLayer
from analognoise.layers.geometry import Geometry


def check_geometry(cls: type[AnalogLayer], name: str, weight: Tensor, geometry: Any) -> None:
    """Raise unless ``geometry`` and the class's ``matrix`` lay out a weight Parameter whole, without a copy.

    Nothing is computed, and no memory used.

    Raises:
        ConversionError: saying what does not fit.
    """
    if not isinstance(geometry, Geometry):
        raise ConversionError(
            f"{cls.__name__}.geometries gives {geometry!r} for {name!r}: give an analognoise.Geometry"
        )
    sizes = {key: getattr(geometry, key) for key in ("groups", "columns", "channels", "kernel")}
    wrong = next((key for key, size in sizes.items() if not isinstance(size, int) or size < 1), None)
    if wrong is not None:
        raise ConversionError(
            f"{cls.__name__}.geometries gives {wrong} = {sizes[wrong]!r} for {name!r}: "
            "give a whole number, at least 1"
        )
    shape = (geometry.groups, geometry.columns, geometry.rows)
    values = geometry.groups * geometry.columns * geometry.rows
    if values != weight.numel():
        raise ConversionError(
            f"{cls.__name__}.geometries lays {name!r} out as [groups, columns, rows] = {list(shape)}, "
            f"{values:,} values, but its shape is {list(weight.shape)}, {weight.numel():,} values"
        )
    probe = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
    try:
        view = cls.matrix(name, probe, geometry)
    except Exception as error:
        raise ConversionError(
            f"{cls.__name__}.matrix fails for {name!r} of shape {list(weight.shape)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    found = list(view.shape) if isinstance(view, Tensor) else type(view).__name__
    if not isinstance(view, Tensor) or view.shape != shape:
        raise ConversionError(
            f"{cls.__name__}.matrix gives {found} for {name!r}: "
            f"give a view as [groups, columns, rows] = {list(shape)}"
        )
    same = view.untyped_storage()._cdata == probe.untyped_storage()._cdata
    if not same or not _each_once(view):
        raise ConversionError(
            f"{cls.__name__}.matrix gives a copy of {name!r}, or shows some values twice: what is programmed "
            "is written through it, so give a view of every value"
        )


def _each_once(view: Tensor) -> bool:
    """Whether no two places of a view are the same number in memory."""
    reach = 0
    for stride, size in sorted((s, n) for s, n in zip(view.stride(), view.shape, strict=True) if n > 1):
        if stride <= reach:
            return False
        reach += stride * (size - 1)
    return True


def parameter_names(module: nn.Module) -> str:
    """A module's own Parameters, for an error."""
    return ", ".join(repr(name) for name, _ in module.named_parameters()) or "none"
