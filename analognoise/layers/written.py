"""Whether a layer's weights are still those that its chip was programmed with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

_CHUNK = 1 << 15  # words that the cache holds
_SMALL = 2 * _CHUNK  # numbers of tensors that are copied into one
_ODD = np.arange(1, 2 * _CHUNK + 1, 2, dtype=np.int64)

Sum: TypeAlias = "int | Tensor"
"""A checksum; of weights on another device it stays there until it is compared."""


class Written:
    """Which weights are on a layer's tiles.

    A look at the Parameters (are they the same objects, at the same place, and unwritten as far as torch
    knows?) costs next to nothing. Writes past autograd (``.data``, fused optimizers) show only in the values:
    those are compared where the look does not settle it, and on request.

    Args:
        targets: the weight Parameters, by name, as they were programmed.
        sums: of each of them, :func:`local_sums`.

    Attributes:
        sharded: whether the Parameters are split over processes; each looks at its own part, and at none
            while a layer computes, when they are whole.
        told: whether the user was warned.
    """

    def __init__(self, targets: Mapping[str, Tensor], sums: Sequence[tuple[bool, Sum]]) -> None:
        self._sums = dict(zip(targets, sums, strict=True))
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

    def same_values(self, name: str, target: Tensor, found: tuple[bool, Sum]) -> bool:
        """Whether the weights, whose :func:`local_sums` was found, hold the numbers that were programmed."""
        sharded, expected = self._sums[name]
        if sharded != found[0]:
            return True  # a sharded Parameter is whole, and another object, while its layer computes
        same = int(expected) == int(found[1])
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
                self._sums[name] = self._as.setdefault((name, target.dtype), local_sums([target])[0])
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


def local_sums(targets: Sequence[Tensor]) -> list[tuple[bool, Sum]]:
    """Of each Parameter whether it is split over processes, and the checksum of what this process has."""
    sharded = [hasattr(target, "to_local") for target in targets]
    # Inside torch.func's transforms what is computed, also of plain Parameters, is wrapped, without memory.
    with torch._C._DisableFuncTorch():
        return list(zip(sharded, checksums([_local(target) for target in targets]), strict=True))


def _local(target: Tensor) -> Tensor:
    weights: Any = target.detach()
    return weights.to_local() if hasattr(weights, "to_local") else weights


def checksums(weights: Sequence[Tensor]) -> list[Sum]:
    """:func:`checksum` of several tensors without gradients; small ones are copied into one."""
    sums: dict[int, Sum] = {}
    group: dict[int, Tensor] = {}
    size = 0
    for place, tensor in enumerate(weights):
        count = tensor.numel()
        # in whole words, which lie in the sum one after the other
        if count > _SMALL or count % 2 or not count or not tensor.is_cpu or tensor.dtype is not torch.float32:
            sums[place] = checksum(tensor)
            continue
        if size + count > 2 * _SMALL:
            sums |= zip(group, _sums_together(list(group.values())), strict=True)
            group, size = {}, 0
        group[place] = tensor
        size += count
    if group:
        sums |= zip(group, _sums_together(list(group.values())), strict=True)
    return [sums[place] for place in range(len(weights))]


def checksum(weights: Tensor) -> Sum:
    """A number of 64 bits of all bits of a tensor and of their order: other weights have another one, but for
    a rare coincidence.
    """
    flat = weights.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    if flat.is_cpu:
        return _sum_of_bytes(flat.numpy())
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


def _sums_together(weights: Sequence[Tensor]) -> list[int]:
    words = torch.cat([tensor.reshape(-1) for tensor in weights]).view(torch.int64).numpy()
    odd, starts, lengths = _factors(tuple(tensor.numel() // 2 for tensor in weights))
    mixed = words >> 32
    mixed ^= words
    mixed *= odd
    return (np.add.reduceat(mixed, starts) + lengths).tolist()


@lru_cache(maxsize=32)
def _factors(counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of tensors of so many words what each word is multiplied with, where each begins, and what its length
    adds to its sum.
    """
    words = np.array(counts)
    return np.concatenate([_ODD[:count] for count in counts]), words.cumsum() - words, 31 * 8 * words


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
    return _wrapped(total)


def _wrapped(total: int) -> int:
    """What 64 bits hold of it."""
    return (total + (1 << 63)) % (1 << 64) - (1 << 63)


@lru_cache(maxsize=8)
def _odd_numbers(device: torch.device) -> Tensor:
    return torch.from_numpy(_ODD).to(device)
