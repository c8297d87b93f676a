"""A batch of data: tensors or arrays in tuples, lists and mappings, or an object that can move itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Batch = Any


def to_device(value: Batch, device: torch.device, copy: bool = False) -> Batch:
    """``value`` with every tensor and NumPy array in it (in tuples, lists and mappings) as a tensor on
    ``device``.

    Args:
        value: a batch.
        device: where tensors go.
        copy: whether tensors that are there already are copied.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Tensor):
        # A copy towards the CPU must be waited for, and so must one that is to be kept.
        return value.detach().to(device, copy=copy, non_blocking=device.type == "cuda" and not copy)
    if isinstance(value, Mapping):
        return {key: to_device(item, device, copy) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_device(item, device, copy) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(to_device(item, device, copy) for item in value)
    if hasattr(value, "to") and callable(value.to):  # a batch object that knows how to move, such as a graph
        moved = value.clone() if copy and hasattr(value, "clone") else value
        return moved.to(device)
    return value


def tensors(value: Batch) -> Iterator[Tensor]:
    """Every tensor in a batch's tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
