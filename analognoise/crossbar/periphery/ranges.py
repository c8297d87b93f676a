"""Ranges from data: maxima and percentiles of values that come batch by batch."""

from __future__ import annotations

import torch
from torch import Tensor

from analognoise.processes import Processes

# Bits of a float32 that are left out: 2^-11 of the value, and 2^19 bins for all positive numbers.
_DROPPED = 12
_BINS = 1 << (31 - _DROPPED)


class Magnitudes:
    """Counts of abs(value) over everything seen, zeros left out; percentiles are known to 0.05 %.

    Attributes:
        maximum: the largest absolute value, exactly; 0 as long as none but zeros was seen.
    """

    def __init__(self) -> None:
        self.maximum = 0.0
        self._counts: Tensor | None = None

    def add(self, values: Tensor, *, percentile: bool) -> None:
        """Count in a batch of finite values; only for percentiles more than the maximum is kept."""
        if not values.numel():
            return
        magnitude = values.detach().float().abs()
        self.maximum = max(self.maximum, float(magnitude.max()))
        if percentile:
            # The bits of positive floats are in the order of the numbers, and as fine as they are.
            places = magnitude.reshape(-1).view(torch.int32) >> _DROPPED
            counts = torch.bincount(places, minlength=_BINS)
            self._counts = counts if self._counts is None else self._counts + counts

    def unite(self, processes: Processes, device: torch.device) -> None:
        """Count in what the other processes have seen; all must call it."""
        if processes.count == 1:
            return
        found = processes.gather((self.maximum, self._counts is not None))
        self.maximum = max(maximum for maximum, _ in found)
        if any(counted for _, counted in found):
            if self._counts is None:
                self._counts = torch.zeros(_BINS, dtype=torch.int64, device=device)
            processes.add_(self._counts)

    def percentile(self, percentage: float) -> float:
        """The smallest value that at least ``percentage`` % of the values other than 0 do not exceed."""
        if self._counts is None or percentage >= 100:
            return self.maximum
        counts = self._counts.clone()
        counts[0] = 0
        total = counts.cumsum(0)
        if not int(total[-1]):
            return 0.0
        wanted = -(-int(total[-1]) * percentage // 100)
        place = int(torch.searchsorted(total, torch.tensor(wanted, dtype=total.dtype, device=total.device)))
        upper = torch.tensor([(place + 1) << _DROPPED], dtype=torch.int32).view(torch.float32)
        return min(float(upper), self.maximum)
