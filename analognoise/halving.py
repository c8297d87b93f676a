"""Batches that memory does not suffice for are halved, and so are all that follow; a warning says so."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

from analognoise.batches import Batch, is_out_of_memory, parts_of, samples_in
from analognoise.errors import DataError

Found = TypeVar("Found")


def in_parts(compute: Callable[[Batch], Found], batch: Batch) -> list[Found]:
    """What ``compute`` gives for a batch, or for its parts where memory does not suffice for the whole.

    Nothing is said of it: this is for trying what :func:`until_it_fits` will do in earnest.

    Args:
        compute: leaves nothing behind where memory does not suffice.
        batch: the whole.

    Raises:
        DataError: when a batch cannot be halved.
    """
    data = InParts()

    def compute_all() -> list[Found]:
        return [compute(part) for part in data.parts([batch])]

    return _until_it_fits(compute_all, data, lambda: None)[0]


class InParts:
    """Data whose batches can be given in smaller parts.

    Attributes:
        most: samples given at once, at most; None for batches as they are.
        name: of a batch, in messages.
        consequence: what parts change in the results, in messages; empty where nothing.
    """

    name = "batch"
    consequence = ""

    def __init__(self) -> None:
        self.most: int | None = None
        self._now: Batch = None

    def parts(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, or their parts."""
        for batch in batches:
            for part in (batch,) if self.most is None else parts_of(batch, self.most):
                self.computing(part)
                yield part

    def computing(self, batch: Batch) -> None:
        """Note what goes through the model now, where it is not what was given."""
        self._now = batch

    def halve(self, reason: str) -> int:
        """From now on give half as many samples at once as in the latest batch, which memory did not suffice
        for; returns how many that one had.

        Args:
            reason: the words of whoever had no memory.

        Raises:
            DataError: when it has one sample only, or cannot be cut.
        """
        try:
            size = samples_in(self._now)
            for _ in parts_of(self._now, max(1, size // 2)):
                pass
        except DataError as error:
            raise DataError(
                f"there is not enough memory for a {self.name}, and it cannot be halved: {error}; give "
                f"smaller batches ({reason})"
            ) from None
        if size < 2:
            raise DataError(
                f"there is not enough memory for a {self.name} of a single sample: take a device with more, "
                f"or a smaller model ({reason})"
            )
        self.most, self._now = size // 2, None
        return size


def until_it_fits(
    work: Callable[[], Found],
    data: InParts,
    again: Callable[[], object],
) -> Found:
    """What ``work`` gives; where memory does not suffice for a batch of ``data``, it begins anew with half as
    many samples at once, and so does all that follows.

    Args:
        work: goes over batches of ``data``.
        data: what it goes over.
        again: undoes what a pass that was given up has left, before the next.

    Raises:
        DataError: when a batch cannot be halved.
    """
    found, largest = _until_it_fits(work, data, again)
    if largest:
        warnings.warn(
            f"there is not enough memory for a {data.name} of {largest} samples: all are computed in parts "
            f"of at most {data.most} from here on{data.consequence}",
            stacklevel=3,
        )
    return found


def _until_it_fits(
    work: Callable[[], Found], data: InParts, again: Callable[[], object]
) -> tuple[Found, int]:
    """What ``work`` gives, and the samples of the largest batch that was too large; 0 if none was."""
    largest = 0
    while True:
        try:
            return work(), largest
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        # Out of the handler, which keeps the pass and its tensors alive.
        largest = max(largest, data.halve(reason))
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        again()
