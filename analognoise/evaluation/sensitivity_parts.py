"""The choices of layers that a sensitivity analysis measures, one after the other or in worker processes."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from analognoise.calibration import range_names, set_ranges_
from analognoise.conversion import convert_to_analog
from analognoise.devices.profile import DeviceProfile
from analognoise.evaluation.data import EvaluationData
from analognoise.evaluation.drift import DriftEvaluation
from analognoise.evaluation.metrics import Forward, Metric
from analognoise.evaluation.relay import Relay
from analognoise.evaluation.rows import Row
from analognoise.evaluation.sensitivity_report import ALONE, OTHERS
from analognoise.evaluation.store import ResultStore
from analognoise.pool import Shared, run_jobs


@dataclass(frozen=True)
class Network:
    """What all choices of layers have in common.

    Attributes:
        model: digital.
        devices: of every layer that can be on tiles.
        compensation: drift compensation.
        ranges: of converters, for all layers.
        data: what is passed through.
        metric: what is measured.
        seed: root seed of the chips.
        forward: as for :func:`analognoise.evaluate_drift`.
        times: drift times in seconds.
        chips: number of chips.
    """

    model: nn.Module
    devices: Mapping[str, DeviceProfile]
    compensation: str
    ranges: Mapping[str, Tensor]
    data: EvaluationData
    metric: Metric
    seed: int
    forward: Forward | None
    times: tuple[float, ...]
    chips: int


@dataclass(frozen=True)
class Part:
    """One choice of layers on tiles; all that it takes to measure it, in this process or another.

    Attributes:
        network: a :class:`Network`.
        chosen: layers on tiles.
        label: for the rows' column ``method``.
        known: rows that may be of this choice.
    """

    network: Shared
    chosen: frozenset[str]
    label: str
    known: tuple[Row, ...] = ()

    @property
    def title(self) -> str:
        """What is done, in words."""
        return f"{self.label} on tiles"

    def measure(self, store: ResultStore | None) -> tuple[list[Row], int]:
        """The rows, and how many of them the store had."""
        network: Network = self.network.value
        several = {network.devices[name] for name in self.chosen}
        device: Any = network.devices[next(iter(self.chosen))]
        if len(several) > 1:
            # Deeper names first: a pattern also matches the layers inside the one that it names.
            order = sorted(self.chosen, key=lambda name: -name.count("."))
            device = {glob.escape(name): network.devices[name] for name in order}
        analog = convert_to_analog(
            network.model,
            device,
            filter_fn=lambda module, name: name in self.chosen,
            compensation=network.compensation,
        )
        names = range_names(analog)
        set_ranges_(analog, {name: network.ranges[name] for name in names if name in network.ranges})
        evaluation = DriftEvaluation(
            analog,
            network.data,
            network.metric,
            seed=network.seed,
            forward=network.forward,
            method=self.label,
            probe=False,
        )
        with warnings.catch_warnings():
            # What no forward reads is said once, of the whole model.
            warnings.filterwarnings("ignore", message="the tiles of ")
            return evaluation.run(network.times, network.chips, store)

    def run(self, emit: Callable[[Any], None]) -> tuple[list[Row], int]:
        """As :meth:`measure`, in a worker: new rows are emitted chip by chip."""
        return self.measure(Relay(self.known, emit))


def choices(names: Sequence[str]) -> list[tuple[str, frozenset[str]]]:
    """What is put on tiles besides the whole, with its label.

    Of two layers, all but the one is only the other, and of one layer nothing is left without it.
    """
    found = []
    for name in names:
        label = name or "(the model)"
        found.append((ALONE.format(label), frozenset({name})))
        if len(names) > 2:
            found.append((OTHERS.format(label), frozenset(names) - {name}))
    return found


def run_parts(
    parts: Sequence[Part], store: ResultStore | None, workers: int | Executor
) -> Iterator[tuple[Part, list[Row], int]]:
    """Measure all parts; yields each with its rows and how many of them were known, in the order given.

    Raises:
        WorkerError: when the work cannot be shared any more.
    """
    if workers == 1:
        for part in parts:
            yield part, *part.measure(store)
        return
    stored = store.rows if store is not None else []
    jobs = [replace(part, known=tuple(r for r in stored if r.method == part.label)) for part in parts]
    results: dict[str, tuple[list[Row], int]] = {}
    early: dict[str, list[list[Row]]] = {job.label: [] for job in jobs}
    labels = [job.label for job in jobs]
    current = 0

    # What comes early waits, so that a file is at any moment the beginning of what one process would write.
    def found(job: Any, rows: list[Row]) -> None:
        early[job.label].append(rows)
        flush()

    def done(job: Any, result: tuple[list[Row], int]) -> list[Any]:
        nonlocal current
        results[job.label] = result
        while current < len(labels) and labels[current] in results:
            flush()
            current += 1
        if current < len(labels):
            flush()
        return []

    def flush() -> None:
        for rows in early[labels[current]]:
            if store is not None:
                store.append(rows)
        early[labels[current]].clear()

    run_jobs(jobs, workers, found, done, torch.get_num_threads())
    for part in parts:
        yield part, *results[part.label]
