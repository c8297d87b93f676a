"""The data of an evaluation: the same batches in the same order every time.

Chips can only be compared on equal data. So a loader that shuffles, drops, repeats or augments is refused:
by name where its settings or its sampler show it, and otherwise because two passes over it differ. Small
data stays on the model's device between passes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler

from analognoise.batches import Batch, holds_part, is_dense, tensors, to_device, update_digest, versions
from analognoise.errors import DataError
from analognoise.halving import InParts
from analognoise.printing import kind_of
from analognoise.seeds import rng_preserved

__all__ = ["CACHE_BYTES", "Batch", "EvaluationData", "tensors", "to_device", "update_digest"]

CACHE_BYTES = 256 << 20


class EvaluationData(InParts):
    """Batches that are the same in every pass, on the model's device.

    Args:
        loader: a DataLoader, a list of batches, or anything that can be iterated over again and again. A
            batch is ``(x, y)``, a dict, or whatever the forward hook takes; tensors and NumPy arrays in it
            are moved to the device.
        device: where the model is.
        cache_bytes: data up to this size is kept on the device; larger data is read anew in each pass.

    Attributes:
        fingerprint: SHA-256 over all batches, their boundaries included.
        batches: number of batches that the loader gives.
        cached: whether the data stays on the device.

    Augmentation with a generator of the dataset's own, in worker processes, cannot be found: every pass forks
    the same state and gives the same samples. They are augmented all the same.

    Raises:
        DataError: when the loader shuffles, drops, repeats or augments, can be read only once, or has no
            batch.
    """

    def __init__(self, loader: Any, device: torch.device, cache_bytes: int = CACHE_BYTES) -> None:
        _check_loader(loader)
        super().__init__()
        self.device = device
        self._loader = loader
        kept: list[Batch] = []
        size = 0
        digests: list[bytes] = []
        # one seed for each pass: what the loader draws from the global generators must not matter
        with rng_preserved(seed=1), generators_preserved(loader):
            _check_coverage(loader)
        with rng_preserved(seed=1), generators_preserved(loader):
            # A list holds its batches anyway; what a loader gives may be filled anew with the next one.
            held = self._held = type(loader) in (list, tuple)
            for batch in loader:
                digests.append(_digest(batch, len(digests)))
                size += _size(batch)
                if size <= cache_bytes:
                    kept.append(to_device(batch, device, copy=_must_be_copied if held else True))
                else:
                    kept.clear()
        if not digests:
            raise DataError("the data has no batch: an evaluation needs at least one")
        _check_workers(loader, digests)
        self.cached = size <= cache_bytes
        self.batches = len(digests)
        self._cache = kept
        self._digests = digests
        if not held:
            self._check_second_pass(digests)
        self.fingerprint = hashlib.sha256(b"".join(digests)).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        # What is cached needs no loader, and many loaders cannot be sent to another process. Batches that are
        # slices of one tensor would each take the whole of it along.
        cache, loader = (
            [to_device(batch, None, copy=holds_part) for batch in batches]
            for batches in (self._cache, self._loader if self._held and not self.cached else ())
        )
        own = self.cached or self._held
        return vars(self) | {"_now": None, "_cache": cache, "_loader": loader if own else self._loader}

    def _check_second_pass(self, digests: list[bytes]) -> None:
        count = 0
        with rng_preserved(seed=2), generators_preserved(self._loader):
            for batch in self._loader:
                if count < len(digests) and _digest(batch, count) != digests[count]:
                    raise DataError(
                        f"batch {count} of the data differs between two passes over it: the loader shuffles "
                        "or augments at random; use shuffle=False and transforms without randomness"
                    )
                count += 1
        if count != len(digests):
            raise DataError(
                f"a first pass over the data gave {len(digests)} batches and a second {count}: every pass "
                "must give the same"
            )

    def __iter__(self) -> Iterator[Batch]:
        yield from self.parts(self._whole())

    def _whole(self) -> Iterator[Batch]:
        if self.cached:
            for number, batch in enumerate(self._cache):
                yield from self._unchanged(batch, number)
            return
        count = 0
        with generators_preserved(self._loader):
            for batch in self._loader:
                count += 1
                if count > self.batches:
                    break
                moved = to_device(batch, self.device)
                if self._held:
                    yield from self._unchanged(moved, count - 1)
                else:
                    yield moved
        if count != self.batches:
            raise DataError(
                f"a pass over the data gave {'more' if count > self.batches else count} batches, "
                f"the first one {self.batches}: every pass must give the same"
            )

    def _unchanged(self, batch: Batch, number: int) -> Iterator[Batch]:
        """A batch that later passes get, too; afterwards it must hold what it held."""
        before = versions(batch)
        yield batch
        if versions(batch) != before and _digest(batch, number) != self._digests[number]:
            raise DataError(
                f"batch {number} of the data was changed by a pass over it, but not by the first: model, "
                "forward or metric writes into its batch at times, and the passes after this one would be "
                "measured on other data; let it change a copy (tensor.clone())"
            )

    def copies(self) -> Iterator[Batch]:
        """The same batches, but fresh copies, for a forward that writes into its input."""
        for batch in self:
            yield to_device(batch, self.device, copy=True)


def _must_be_copied(value: Any) -> bool:
    """Whether something in a list of batches cannot be used as it is: a view with gaps, which products may
    round otherwise with than with a copy; an array that a program must not write into; an object, which may
    move itself.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return not value.flags.writeable
    return not is_dense(value)


def _check_loader(loader: Any) -> None:
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise DataError(
            f"the data is {kind_of(loader)}, whose items have no batch dimension: pass "
            "DataLoader(data, batch_size=...)"
        )
    if isinstance(loader, (str, bytes, Mapping, Tensor, np.ndarray)) or not hasattr(loader, "__iter__"):
        raise DataError(f"the data is {kind_of(loader)}: pass a DataLoader or a list of batches (x, y)")
    if isinstance(loader, Iterator):
        raise DataError(
            f"the data is {kind_of(loader)} that can be read only once: pass a DataLoader or a "
            "list of batches"
        )
    if not isinstance(loader, DataLoader):
        return
    sampler, batches = loader.sampler, loader.batch_sampler
    drops = loader.drop_last
    if isinstance(batches, BatchSampler):
        sampler, drops = batches.sampler, batches.drop_last
    name = type(sampler).__name__
    if (
        not isinstance(loader.dataset, IterableDataset)
        and not isinstance(sampler, SequentialSampler)
        and "Random" in name
    ):
        raise DataError(
            f"the data loader shuffles (its sampler is a {name}): set shuffle=False, so that every chip "
            "sees the same batches"
        )
    if drops:
        try:
            size = batches.batch_size if isinstance(batches, BatchSampler) else loader.batch_size
            left = len(sampler) % int(size or 1)  # type: ignore[arg-type]
            found = f"leaves out {left} of {len(sampler)} samples"  # type: ignore[arg-type]
        except TypeError:
            left, found = 1, "may leave out samples"
        if left:
            raise DataError(f"the data loader has drop_last=True, which {found}: set drop_last=False")


def _check_coverage(loader: Any) -> None:
    """Refuse a sampler of one's own that leaves samples out or gives some twice; a pass does not show it."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return
    batches: Any = loader.batch_sampler
    inner = batches.sampler if isinstance(batches, BatchSampler) else loader.sampler
    if type(batches) in (BatchSampler, type(None)) and type(inner) is SequentialSampler:
        return
    try:
        size = len(loader.dataset)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return
    groups = [[index] for index in loader.sampler] if batches is None else batches
    indices = [index for group in groups for index in group]
    if not all(isinstance(index, (int, np.integer)) for index in indices):
        return  # keys of the dataset's own
    given = {int(index) % size for index in indices} if size else set()
    left, twice = size - len(given), len(indices) - len(given)
    if left or twice:
        name = type(inner if isinstance(batches, BatchSampler) or batches is None else batches).__name__
        parts = [f"leaves out {left} of {size} samples"] * bool(left) + [f"repeats {twice}"] * bool(twice)
        raise DataError(
            f"the data loader's sampler, a {name}, {' and '.join(parts)}: give every sample once; to "
            "evaluate a part, make it the data with torch.utils.data.Subset(dataset, indices)"
        )


def _check_workers(loader: Any, digests: list[bytes]) -> None:
    """Refuse workers that each read the whole of a stream: every batch then comes once per worker."""
    if not isinstance(loader, DataLoader) or not isinstance(loader.dataset, IterableDataset):
        return
    count = loader.num_workers
    groups = [digests[start : start + count] for start in range(0, len(digests), max(count, 1))]
    if count > 1 and all(len(group) == count and len(set(group)) == 1 for group in groups):
        raise DataError(
            f"the data loader gives every batch {count} times: each of its {count} workers reads the whole "
            f"{type(loader.dataset).__name__}; share it out by torch.utils.data.get_worker_info(), or use "
            "num_workers=0"
        )


class generators_preserved:
    """Leave a DataLoader's own generators as found (each pass over it draws a seed from them)."""

    def __init__(self, loader: Any) -> None:
        owners = (
            loader,
            getattr(loader, "sampler", None),
            getattr(getattr(loader, "batch_sampler", None), "sampler", None),
        )
        found = {id(g): g for o in owners if isinstance(g := getattr(o, "generator", None), torch.Generator)}
        self._generators = list(found.values())

    def __enter__(self) -> None:
        self._states = [g.get_state() for g in self._generators]

    def __exit__(self, *error: object) -> None:
        for generator, state in zip(self._generators, self._states, strict=True):
            generator.set_state(state)


def _size(value: Batch) -> int:
    if isinstance(value, (Tensor, np.ndarray)):
        return int(value.nbytes)
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    if isinstance(value, (tuple, list)):
        return sum(map(_size, value))
    return 64


def _digest(batch: Batch, number: int) -> bytes:
    state = hashlib.sha256()
    update_digest(state, batch, f"batch {number}")
    return state.digest()
