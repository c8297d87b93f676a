"""Chips in blocks for workers: large enough that the way there costs little, small enough to be shared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from typing import Any, Protocol

import torch

from analognoise.computing.noise import is_noisy
from analognoise.errors import DataError
from analognoise.pool import Shared, check_executor, check_travel, run_jobs, size_of

Place = tuple[Any, ...]
"""What one row is of: (chip, time), or another condition in the place of the time; what chips have in common
may stand before them.
"""
# A task's way to a worker and back takes milliseconds, on a cluster some ten.
_BLOCK_SECONDS = 1.0
# So many blocks each, so that workers end at about the same time.
_BLOCKS_EACH = 4


class Measuring(Protocol):
    """An evaluation after its first pass, ready to be sent."""

    @property
    def exclusive(self) -> bool:
        """Whether a row uses what threads of a process share: generators, switches of torch."""

    def measure(self, places: Sequence[Any], known: Any) -> list[Any]:
        """Rows of some places; ``known`` is what the first pass found out for them."""

    def title(self, first: Any, last: Any) -> str:
        """What the rows of places, from the first to the last, are of, in words."""


@dataclass(frozen=True)
class Block:
    """Some places of an evaluation.

    Attributes:
        evaluation: a :class:`Measuring`.
        title: what the job does, in words.
        places: of each row.
        known: see :meth:`Measuring.measure`.
        exclusive: likewise.
    """

    evaluation: Shared
    title: str
    places: tuple[Place, ...]
    known: Any
    exclusive: bool

    def run(self, emit: Callable[[Any], None]) -> list[Any]:
        """Measure all of them."""
        rows: list[Any] = self.evaluation.value.measure(self.places, self.known)
        return rows


def check_shared(executor: Executor, device: torch.device, parts: Mapping[str, Any]) -> None:
    """Raise unless the places of an evaluation can be given to an executor's workers.

    Args:
        executor: what was given as one.
        device: of the model.
        parts: what must travel, by what it is called; the model is one of them.

    Raises:
        DataError: when the model is not on the CPU, the executor is none, a part cannot be sent, or a context
            is open that workers would not compute in.
        WorkerError: when the executor is shut down or broken.
    """
    if device.type != "cpu":
        raise DataError(f"workers compute on the CPU only, the model is on {device}: leave out the executor")
    check_contexts()
    if is_noisy(parts["model"]):
        raise DataError(
            "the model is inside a computing_noise, which does not go along to workers: leave out the "
            "executor, or measure the noise by evaluate_noise"
        )
    check_executor(executor, torch.get_num_threads())
    check_travel(parts)


def check_contexts() -> None:
    """Raise where this process computes in another precision than its workers would.

    Raises:
        DataError: inside torch.autocast.
    """
    if torch.is_autocast_enabled("cpu"):
        raise DataError(
            "torch.autocast does not go along to workers: enter it in the forward, or compute in this "
            "process alone (workers=1, no executor)"
        )


def measure_blocks(
    evaluation: Shared,
    places: Sequence[Place],
    known: Any,
    seconds: float,
    executor: Executor,
    take: Callable[[Any], None],
) -> None:
    """Have the workers of an executor measure places.

    Args:
        evaluation: a :class:`Measuring`.
        places: of each row, by chip.
        known: see :meth:`Measuring.measure`.
        seconds: what one row takes.
        executor: whose workers measure.
        take: gets the rows, in the order of ``places``.
    """
    measuring: Measuring = evaluation.value
    blocks = [
        Block(evaluation, measuring.title(block[0], block[-1]), block, known, measuring.exclusive)
        for block in split(places, seconds, size_of(executor))
    ]
    order = {block.places: number for number, block in enumerate(blocks)}
    arrived: dict[int, list[Any]] = {}
    expected = 0

    # What comes early waits, so that a file is at any moment the beginning of what one process would write.
    def done(job: Any, rows: list[Any]) -> tuple[()]:
        nonlocal expected
        arrived[order[job.places]] = rows
        while expected in arrived:
            for row in arrived.pop(expected):
                take(row)
            expected += 1
        return ()

    run_jobs(blocks, executor, lambda job, payload: None, done, torch.get_num_threads())


def numbered(unit: str, first: int, last: int) -> str:
    """``chip 3`` or ``chips 3 to 5``."""
    return f"{unit} {first}" if first == last else f"{unit}s {first} to {last}"


def split(places: Sequence[Place], seconds: float, workers: int) -> list[tuple[Place, ...]]:
    """Whole chips in blocks that take about a second each, and that are enough for all workers.

    Args:
        places: of each row, by chip.
        seconds: what one place takes.
        workers: how many there are.
    """
    chips = [tuple(group) for _, group in groupby(places, key=lambda place: place[:-1])]
    by_time = ceil(_BLOCK_SECONDS / max(seconds * len(chips[-1]), 1e-9))
    by_share = ceil(len(chips) / (_BLOCKS_EACH * workers))
    size = max(1, min(by_time, by_share))
    return [
        tuple(place for chip in chips[start : start + size] for place in chip)
        for start in range(0, len(chips), size)
    ]
