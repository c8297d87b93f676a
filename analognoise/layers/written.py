"""Whether a layer's weights are still those that its chip was programmed with."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

_CHUNK = 1 << 15  # words that the cache holds
_ODD = np.arange(1, 2 * _CHUNK + 1, 2, dtype=np.int64)


class Written:
    """Which weights are on a layer's tiles.

    A look at the Parameters (are they the same objects, at the same place, and unwritten as far as torch
    knows?) costs next to nothing. Writes past autograd (``.data``, fused optimizers) show only in the values:
    those are compared where the look does not settle it, and on request.

    Args:
        targets: the weight Parameters, by name, as they were programmed.

    Attributes:
        sharded: whether the Parameters are split over processes; each looks at its own part, and at none
            while a layer computes, when they are whole.
        told: whether the user was warned.
    """

    def __init__(self, targets: Mapping[str, Tensor]) -> None:
        self._sums = {name: _local_sum(target) for name, target in targets.items()}
        self._seen = {name: _identity(target) for name, target in targets.items()}
        # What the same weights are in each type that they were cast to.
        self._as = {(name, target.dtype): self._sums[name] for name, target in targets.items()}
        self.sharded = any(sharded for sharded, _ in self._sums.values())
        self.told = False

    def __getstate__(self) -> dict[str, Any]:
        # The Parameters of a copy are others, and its user was told nothing.
        return {**vars(self), "_seen": {}, "told": False}

    def look_again(self) -> None:
        """Have the values compared at the next look."""
        self._seen = {}

    def same_look(self, name: str, target: Tensor) -> bool:
        """Whether nothing shows at a look that the weights have changed, or they cannot be looked at (inside
        ``torch.func.grad``, ``jvp``, ``vmap``).
        """
        seen = _identity(target)
        return seen is None or self._seen.get(name) == seen

    def same_values(self, name: str, target: Tensor) -> bool:
        """Whether the weights hold the numbers that were programmed."""
        sharded, expected = self._sums[name]
        if sharded != hasattr(target, "to_local"):
            return True  # a sharded Parameter is whole, and another object, while its layer computes
        same = bool(torch.equal(expected.to(target.device), _local_sum(target)[1]))
        if same:
            self._seen[name] = _identity(target)
        return same

    def follow(self, before: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
        """Take moved and cast weights for the same, but not those that lost their values on the way, or their
        precision: ``half()`` and back to float32 leaves other numbers.

        Args:
            before: the weights as they were.
            targets: the Parameters after they were moved or cast.
        """
        for name, target in targets.items():
            own, now = _local(before[name]), _local(target)
            if torch.equal(own.to(now.device, now.dtype), now):
                self._sums[name] = self._as.setdefault((name, target.dtype), _local_sum(target))
        self._seen = {}


def _identity(target: Tensor) -> tuple[int, int, int] | None:
    """What changes when a Parameter is replaced, moved or written to; None for a tensor without memory of its
    own, such as a transform of ``torch.func`` makes of it.
    """
    version = -1 if target.is_inference() else target._version
    try:
        place = 0 if hasattr(target, "to_local") else target.data_ptr()
    except RuntimeError:
        return None
    return id(target), version, place


def _local_sum(target: Tensor) -> tuple[bool, Tensor]:
    return hasattr(target, "to_local"), checksum(_local(target))


def _local(target: Tensor) -> Tensor:
    weights: Any = target.detach()
    return weights.to_local() if hasattr(weights, "to_local") else weights


def checksum(weights: Tensor) -> Tensor:
    """A number (int64, on the tensor's device) of all bits of a tensor and of their order: other weights have
    another one, but for a rare coincidence.
    """
    flat = weights.contiguous().reshape(-1).view(torch.uint8)
    if flat.is_cpu:
        return torch.tensor(_sum_of_bytes(flat.numpy()), dtype=torch.int64)
    if flat.storage_offset() % 8:
        flat = flat.clone()
    whole = flat.numel() - flat.numel() % 8
    total = torch.full((), flat.numel(), device=flat.device)
    odd = _odd_numbers(flat.device)
    chunks = list(flat[:whole].view(torch.int64).split(_CHUNK))
    if whole < flat.numel():
        chunks.append(flat[whole:].long())
    for chunk in chunks:
        # Processors alone have a dot product of integers.
        sum_ = ((chunk >> 32).bitwise_xor_(chunk) * odd[: chunk.numel()]).sum()
        total = torch.add(sum_, total, alpha=31)
    return total


def _sum_of_bytes(array: np.ndarray) -> int:
    """:func:`checksum` by NumPy: of a small layer the calls, not the numbers, are what takes time."""
    total, whole = array.size, array.size - array.size % 8
    words = array[:whole].view(np.int64)
    for start in range(0, words.size, _CHUNK):
        chunk = words[start : start + _CHUNK]
        mixed = chunk >> 32  # without the mixing two flipped signs would cancel: upper bits of a sum are lost
        mixed ^= chunk
        total = 31 * total + int(mixed.dot(_ODD[: mixed.size]))
    if whole < array.size:
        total = 31 * total + sum((2 * place + 1) * byte for place, byte in enumerate(array[whole:].tolist()))
    return (total + (1 << 63)) % (1 << 64) - (1 << 63)  # what 64 bits hold of it


@lru_cache(maxsize=8)
def _odd_numbers(device: torch.device) -> Tensor:
    return torch.from_numpy(_ODD).to(device)
