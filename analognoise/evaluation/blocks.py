"""Chips in blocks for workers: large enough that the way there costs little, small enough to be shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from typing import Any, Protocol

import torch

from analognoise.evaluation.passes import Passes
from analognoise.evaluation.rows import Row
from analognoise.pool import Shared, run_jobs, size_of

Place = tuple[int, float]
# A task's way to a worker and back takes milliseconds, on a cluster some ten.
_BLOCK_SECONDS = 1.0
# So many blocks each, so that workers end at about the same time.
_BLOCKS_EACH = 4


class Measuring(Protocol):
    """An evaluation after its digital pass, ready to be sent."""

    profile: str
    passes: Passes

    def measure(self, places: Sequence[Place], ideal: float) -> list[Row]:
        """Rows of some chips and times."""


@dataclass(frozen=True)
class ChipBlock:
    """Some chips of an evaluation at some times.

    Attributes:
        evaluation: a :class:`Measuring`.
        profile: for the title.
        places: (chip, time) of each row.
        ideal: the digital metric.
        exclusive: whether the forward draws from the process's generators.
    """

    evaluation: Shared
    profile: str
    places: tuple[Place, ...]
    ideal: float
    exclusive: bool

    @property
    def title(self) -> str:
        """What the job does, in words."""
        first, last = self.places[0][0], self.places[-1][0]
        which = f"chip {first}" if first == last else f"chips {first} to {last}"
        return f"{which} of {self.profile}"

    def run(self, emit: Callable[[Any], None]) -> list[Row]:
        """Measure all of them."""
        rows: list[Row] = self.evaluation.value.measure(self.places, self.ideal)
        return rows


def measure_blocks(
    evaluation: Shared,
    places: Sequence[Place],
    ideal: float,
    seconds: float,
    executor: Executor,
    take: Callable[[Row], None],
) -> None:
    """Have the workers of an executor measure places.

    Args:
        evaluation: a :class:`Measuring`.
        places: (chip, time) of each row, by chip.
        ideal: the digital metric.
        seconds: what one row takes.
        executor: whose workers measure.
        take: gets the rows, in the order of ``places``.
    """
    measuring: Measuring = evaluation.value
    blocks = [
        ChipBlock(evaluation, measuring.profile, block, ideal, measuring.passes.draws)
        for block in split(places, seconds, size_of(executor))
    ]
    order = {block.places: number for number, block in enumerate(blocks)}
    arrived: dict[int, list[Row]] = {}
    expected = 0

    # What comes early waits, so that a file is at any moment the beginning of what one process would write.
    def done(job: Any, rows: list[Row]) -> tuple[()]:
        nonlocal expected
        arrived[order[job.places]] = rows
        while expected in arrived:
            for row in arrived.pop(expected):
                take(row)
            expected += 1
        return ()

    run_jobs(blocks, executor, lambda job, payload: None, done, torch.get_num_threads())


def split(places: Sequence[Place], seconds: float, workers: int) -> list[tuple[Place, ...]]:
    """Whole chips in blocks that take about a second each, and that are enough for all workers.

    Args:
        places: (chip, time), by chip.
        seconds: what one place takes.
        workers: how many there are.
    """
    chips = [tuple(group) for _, group in groupby(places, key=lambda place: place[0])]
    by_time = ceil(_BLOCK_SECONDS / max(seconds * len(chips[-1]), 1e-9))
    by_share = ceil(len(chips) / (_BLOCKS_EACH * workers))
    size = max(1, min(by_time, by_share))
    return [
        tuple(place for chip in chips[start : start + size] for place in chip)
        for start in range(0, len(chips), size)
    ]
