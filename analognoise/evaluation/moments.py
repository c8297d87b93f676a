"""Mean and spread by channel, added up exactly over batches."""

from __future__ import annotations

import torch
from torch import Tensor

# A spread below this share of the mean is rounding: such a channel is shifted, not scaled.
_ROUNDING = torch.finfo(torch.float32).eps


class Moments:
    """Count, mean and summed squared deviations by channel; two sets add up to those of both together.

    (Chan, Golub and LeVeque 1983, doi 10.1080/00031305.1983.10483115.)
    """

    def __init__(self, values: Tensor | None = None, axis: int = 0) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(())
        if values is not None:
            rows = values.detach().movedim(axis, 0).flatten(1)
            # Apple's GPUs have no float64
            rows = rows.float() if rows.device.type == "mps" else rows.double()
            self.count = rows.shape[1]
            self.mean = rows.mean(1)
            self.squares = (rows - self.mean[:, None]).square().sum(1)

    def add(self, other: Moments) -> None:
        """Take in those of other values."""
        if not self.count:
            self.count, self.mean, self.squares = other.count, other.mean, other.squares
            return
        count, gap = self.count + other.count, other.mean - self.mean
        self.squares = self.squares + other.squares + gap.square() * (self.count * other.count / count)
        self.mean = self.mean + gap * (other.count / count)
        self.count = count

    @property
    def std(self) -> Tensor:
        """Standard deviation of the values; 0 where it is nothing but rounding."""
        found = (self.squares / max(self.count, 1)).sqrt()
        return found.where(found > _ROUNDING * self.mean.abs(), 0)

    @property
    def unbiased_variance(self) -> Tensor:
        """The variance of what the values are a sample of."""
        return self.squares / max(self.count - 1, 1)
