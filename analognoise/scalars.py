"""Numbers that Python needs of tensors, waiting for the device once."""

from __future__ import annotations

import torch
from torch import Tensor


def as_numbers(scalars: list[Tensor]) -> list[float]:
    """The values of one-element tensors, with a single wait for the device if all are on the same."""
    if not scalars or scalars[0].is_cpu or len({scalar.device for scalar in scalars}) > 1:
        return [scalar.item() for scalar in scalars]
    return torch.stack(scalars).tolist()
