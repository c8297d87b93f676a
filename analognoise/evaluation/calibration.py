"""The data of a recalibration: a few batches without labels, drawn once, none of them from the test data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analognoise.batches import Batch, tensors, to_device
from analognoise.errors import DataError
from analognoise.evaluation.data import EvaluationData, generators_preserved, update_digest
from analognoise.evaluation.metrics import LABELS, Forward, default_forward
from analognoise.halving import InParts
from analognoise.printing import kind_of
from analognoise.seeds import rng_preserved


class CalibrationData(InParts):
    """The first batches of a loader, kept on the model's device, without labels.

    The loader may shuffle and augment: it is read once, from a fixed seed of the global generators. Where a
    batch is halved for want of memory, statistics by batch are those of the halves.

    Args:
        loader: batches ``(x, y)``, dicts, the input tensor alone, or whatever ``forward`` takes.
        device: where the model is.
        batches: how many to take; None takes all.
        forward: as for the evaluation. Without one, labels are taken off here; one of the user's own gets the
            batch as it is.

    Attributes:
        fingerprint: SHA-256 over the batches as they are used.
        samples: how many inputs they hold.

    Raises:
        DataError: when the loader can be read only once, or has no batch.
    """

    name = "batch of the calibration"
    consequence = ", and corrections are by the statistics of those, a little different from the whole's"

    def __init__(
        self, loader: Any, device: torch.device, batches: int | None = 10, forward: Forward | None = None
    ) -> None:
        super().__init__()
        whole = isinstance(loader, (str, bytes, Mapping, Tensor, np.ndarray, Iterator))
        if whole or not hasattr(loader, "__iter__"):
            raise DataError(f"calibration is {kind_of(loader)}: pass a DataLoader or a list of batches")
        plain = forward is None or forward is default_forward
        epoch = getattr(loader, "epoch", None)
        with rng_preserved(seed=1), generators_preserved(loader):
            if hasattr(loader, "set_epoch"):  # the order of a shuffling loader, and no trace of this reading
                loader.set_epoch(0)
            found = [_unlabelled(batch) if plain else batch for batch in islice(iter(loader), batches)]
            if hasattr(loader, "set_epoch") and epoch is not None:
                loader.set_epoch(epoch)
        if not found:
            raise DataError("calibration has no batch: a recalibration needs at least one")
        self._batches = [to_device(batch, device, copy=True) for batch in found]
        self._device = device
        state = hashlib.sha256()
        for number, batch in enumerate(found):
            update_digest(state, batch, f"batch {number} of the calibration")
        self.fingerprint = state.hexdigest()
        self.samples = sum(size_of(batch) or 0 for batch in self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        """Fresh copies, as a forward may write into its input."""
        for part in self.parts(self._batches):
            yield to_device(part, self._device, copy=True)

    def refuse_test_data(self, data: EvaluationData) -> None:
        """Raise when all inputs of a batch are among those of the test data.

        Of test data too large to be kept in memory only as many batches are compared as there are here.

        Raises:
            DataError: naming the batch.
        """
        tested: set[bytes] = set()
        for batch in islice(data, None if data.cached else len(self)):
            tested.update(_samples(batch))
        for number, batch in enumerate(self._batches):
            own = _samples(batch)
            if own and tested.issuperset(own):
                raise DataError(
                    f"batch {number} of the calibration is test data, so results on it would be too good: "
                    "take other inputs, for example batches of the training data"
                )


def size_of(batch: Batch) -> int | None:
    """How many inputs a batch holds: the length of its first tensor; None where that is not known."""
    first = next(tensors(batch), None)
    return first.size(0) if first is not None and first.dim() else None


def _unlabelled(batch: Batch) -> Batch:
    if isinstance(batch, (Tensor, np.ndarray)):
        return batch, None
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], None
    if isinstance(batch, Mapping):
        return {key: value for key, value in batch.items() if key not in LABELS}
    return batch


def _samples(batch: Batch) -> list[bytes]:
    first = next(tensors(batch), None)
    if first is None or not first.dim() or (first.layout != torch.strided and not first.is_nested):
        return []
    rows = (row.cpu().contiguous().reshape(-1).view(torch.uint8) for row in first.detach().unbind())
    return [hashlib.blake2b(row.numpy().data, digest_size=16).digest() for row in rows]
