"""The choices of layers that a sensitivity analysis measures, one after the other or in worker processes."""

from __future__ import annotations

import glob
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from analognoise.calibration import range_names, set_ranges_
from analognoise.conversion import convert_to_analog
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import DataError
from analognoise.evaluation.data import EvaluationData
from analognoise.evaluation.drift import DriftEvaluation
from analognoise.evaluation.metrics import Forward, Metric
from analognoise.evaluation.relay import Relay
from analognoise.evaluation.sensitivity_report import ALONE, OTHERS
from analognoise.evaluation.store import ResultStore, Row
from analognoise.pool import run_jobs


@dataclass(frozen=True)
class Part:
    """One choice of layers on tiles; all that it takes to measure it, in this process or another.

    Attributes:
        model: digital.
        devices: of every layer that can be on tiles.
        chosen: layers on tiles.
        compensation: drift compensation.
        ranges: of converters, for all layers.
        data: what is passed through.
        metric: what is measured.
        seed: root seed of the chips.
        forward: as for :func:`analognoise.evaluate_drift`.
        label: for the rows' column ``method``.
        times: drift times in seconds.
        chips: number of chips.
        known: rows that may be of this choice.
    """

    model: nn.Module
    devices: Mapping[str, DeviceProfile]
    chosen: frozenset[str]
    compensation: str
    ranges: Mapping[str, Tensor]
    data: EvaluationData
    metric: Metric
    seed: int
    forward: Forward | None
    label: str
    times: tuple[float, ...]
    chips: int
    known: tuple[Row, ...] = ()

    @property
    def title(self) -> str:
        """What is done, in words."""
        return f"{self.label} on tiles"

    def measure(self, store: ResultStore | None) -> tuple[list[Row], int]:
        """The rows, and how many of them the store had."""
        several = {self.devices[name] for name in self.chosen}
        device: Any = self.devices[next(iter(self.chosen))]
        if len(several) > 1:
            # Deeper names first: a pattern also matches the layers inside the one that it names.
            order = sorted(self.chosen, key=lambda name: -name.count("."))
            device = {glob.escape(name): self.devices[name] for name in order}
        analog = convert_to_analog(
            self.model,
            device,
            filter_fn=lambda module, name: name in self.chosen,
            compensation=self.compensation,
        )
        names = range_names(analog)
        set_ranges_(analog, {name: self.ranges[name] for name in names if name in self.ranges})
        evaluation = DriftEvaluation(
            analog,
            self.data,
            self.metric,
            seed=self.seed,
            forward=self.forward,
            method=self.label,
            probe=False,
        )
        with warnings.catch_warnings():
            # What no forward reads is said once, of the whole model.
            warnings.filterwarnings("ignore", message="the tiles of ")
            return evaluation.run(self.times, self.chips, store)

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
    parts: Sequence[Part], store: ResultStore | None, workers: int
) -> Iterator[tuple[Part, list[Row], int]]:
    """Measure all parts; yields each with its rows and how many of them were known, in the order given.

    Raises:
        AnalogNoiseError: when a worker process dies.
    """
    if workers == 1:
        for part in parts:
            yield part, *part.measure(store)
        return
    stored = store.rows if store is not None else []
    jobs = [replace(part, known=tuple(r for r in stored if r.method == part.label)) for part in parts]
    results: dict[str, tuple[list[Row], int]] = {}

    def found(job: Any, rows: list[Row]) -> None:
        if store is not None:
            store.append(rows)

    def done(job: Any, result: tuple[list[Row], int]) -> list[Any]:
        results[job.label] = result
        return []

    run_jobs(jobs, min(workers, len(jobs)), found, done)
    for part in parts:
        yield part, *results[part.label]


def check_travel(part: Part, device: torch.device) -> None:
    """Raise unless a part can be sent to another process.

    Raises:
        DataError: naming what cannot.
    """
    if device.type != "cpu":
        raise DataError(f"workers share the work on the CPU only, the model is on {device}: set workers=1")
    things = {"model": part.model, "forward": part.forward, "metric": part.metric, "data": part.data}
    for name, thing in things.items():
        try:
            pickle.dumps(thing)
        except Exception as error:
            raise DataError(
                f"the {name} cannot be sent to worker processes ({type(error).__name__}: {error}): use "
                "classes and functions of a module, without lambdas, or set workers=1"
            ) from error
