"""One model on many chips: the loop over chips and drift times, and what it must find out before."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from time import perf_counter
from typing import Any

import torch
from torch import nn

from analognoise.chip import digital, drift_to_, program_
from analognoise.compiled import is_compiled
from analognoise.conversion import check_finite
from analognoise.crossbar.compensation import name_chips, name_compensation
from analognoise.description import Description, describe
from analognoise.errors import DataError, ResultsError, nearest
from analognoise.evaluation.blocks import check_shared, measure_blocks, numbered
from analognoise.evaluation.calibration import CalibrationData
from analognoise.evaluation.checks import check_place, refuse_another, whole_number
from analognoise.evaluation.cost import CompensationCost, compensation_cost
from analognoise.evaluation.identity import Identity, device_of
from analognoise.evaluation.metrics import Forward, Metric
from analognoise.evaluation.passes import Passes, in_turn
from analognoise.evaluation.probing import Probe
from analognoise.evaluation.reading import Reads, reads_watched
from analognoise.evaluation.recalibration import Recalibration
from analognoise.evaluation.rows import Row
from analognoise.evaluation.sampling import PLANNING_CHIPS, SAMPLINGS, StratifiedSampling
from analognoise.evaluation.stopping import Precision
from analognoise.evaluation.store import ResultStore
from analognoise.evaluation.surroundings import At, Buffers, left_as_found
from analognoise.evaluation.walk import Place, walk
from analognoise.fingerprint import name_of
from analognoise.halving import until_it_fits
from analognoise.on_tiles import require_analog
from analognoise.pool import Shared
from analognoise.progress import Advance, progress_bar
from analognoise.seeds import derive_seed
from analognoise.units import format_time

# What only the process that evaluates needs: not all of it can be sent.
_HERE = ("_identity", "_probe", "_shared")


class DriftEvaluation:
    """One model, its data and its metric, ready to be measured on chips; the parts of :func:`evaluate_drift`.

    Args:
        model: a converted model.
        data: as in :func:`evaluate_drift`.
        metric: what is measured.
        seed: root seed of the chips.
        forward: as in :func:`evaluate_drift`.
        method: for the rows.
        training_seed: for the rows.
        probe: whether to look, after the first pass over a chip, for tiles that the output does not come
            from.
        recalibrate: as in :func:`evaluate_drift`.
        calibration: likewise, or :class:`CalibrationData`.
        calibration_batches: likewise.
        sampling: likewise.

    Attributes:
        run_id: what this evaluation's rows carry.
        compensation: name of the drift compensation, the recalibration included.
        profile: names of the devices' profiles, with a compensation other than the default behind them.
        description: what is on tiles and what is not; known after :meth:`run`.
        cost: of the drift compensation; known after :meth:`run`.
        not_read: layers whose tiles no forward reads, or not for all that they compute; known after
            :meth:`run`.
        precision: what the number of chips at each time was to reach; known after :meth:`run`.
    """

    precision: Precision | None = None

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        metric: Metric,
        *,
        seed: int = 0,
        forward: Forward | None = None,
        method: str = "",
        training_seed: int | None = None,
        probe: bool = True,
        recalibrate: str | None = None,
        calibration: Any = None,
        calibration_batches: int | None = 10,
        sampling: str = "full",
    ) -> None:
        layers = require_analog(model, "evaluate chips")
        check_place(model)
        check_finite(model)
        self.model, self.metric, self.seed = model, metric, whole_number("seed", seed)
        self.method = str(method)
        self.training_seed = (
            None if training_seed is None else whole_number("training_seed", training_seed, 0)
        )
        if not isinstance(sampling, str) or sampling not in SAMPLINGS:
            raise DataError(
                f"unknown sampling {sampling!r}{nearest(str(sampling), SAMPLINGS)}: known are "
                f"{', '.join(SAMPLINGS)}"
            )
        self.probe = probe
        self.device = device_of(model)
        self.passes = Passes(model, data, metric, device=self.device, forward=forward, seed=self.seed)
        self.data, self.forward = self.passes.data, self.passes.forward
        self._probe = Probe(model, self.passes, self.seed)
        self._recalibration = self._recalibrated_by(recalibrate, calibration, calibration_batches)
        tile = next(iter(layers.values())).analog.compensation
        self.compensation = name_compensation(tile, recalibrate)
        devices = "+".join(dict.fromkeys(layer.analog.profile.name for layer in layers.values()))
        self.profile = name_chips(devices, self.compensation)
        settings = {
            "data": self.data.fingerprint,
            "metric": [metric.name, name_of(metric.function)],
            "forward": name_of(forward),
            "seed": self.seed,
            "labels": [self.profile, self.method, self.training_seed],
            "sampling": SAMPLINGS[sampling],
        }
        if self._recalibration is not None:
            settings["recalibration"] = self._recalibration.identity
        self.sampling: StratifiedSampling | None = None
        if sampling != "full":
            self.sampling = StratifiedSampling(model, self.passes, metric, self.seed)
        self._identity = Identity(model, settings, {"sampling": SAMPLINGS})
        self.run_id = self._identity.run_id
        self.description: Description
        self.cost: CompensationCost
        self.not_read: tuple[str, ...] = ()

    def _recalibrated_by(self, kind: str | None, data: Any, batches: int | None) -> Recalibration | None:
        if kind is None:
            if data is not None:
                raise DataError("calibration data is given but no recalibration: say recalibrate='batchnorm'")
            return None
        if data is None:
            raise DataError(
                f"recalibration by {kind!r} needs inputs: give calibration=, unlabelled batches that are not "
                "the test data (for example the training loader)"
            )
        if not isinstance(data, CalibrationData):
            count = None if batches is None else whole_number("calibration_batches", batches, 1)
            with torch.inference_mode(False):
                data = CalibrationData(data, self.device, count, self.forward)
        data.refuse_test_data(self.data)
        return Recalibration(self.model, kind, data, self.forward, self.seed)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Layers on tiles that the recalibration cannot correct."""
        return () if self._recalibration is None else self._recalibration.left_out

    def difference(self, row: Row) -> str:
        """In words, what tells the run of a stored row from this one, as far as that can be known."""
        return self._identity.difference(row, self.metric.name)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in _HERE}

    def run(
        self,
        times: tuple[float, ...],
        chips: int,
        store: ResultStore | None = None,
        progress: bool = False,
        executor: Executor | None = None,
        precision: Precision | None = None,
    ) -> tuple[list[Row], int]:
        """Rows by chip and time, appended to ``store`` chip by chip, and how many of them it had already.

        With an executor the digital pass and the first row are computed here, the others by its workers; they
        are appended in the same order. With a ``precision``, each time gets as many chips as it wants, at
        least its first stage.
        """
        if executor is not None:
            self._check_shared(executor)
        if store is not None and store.run_id not in (None, self.run_id):
            raise ResultsError(f"{store.path} holds run {store.run_id}, not {self.run_id}: use another file")
        rows: dict[Place, Row] = {}
        wanted = first = _wanted(times, chips, rows, precision)
        reused = self._reuse(wanted, rows, store)
        with (
            left_as_found(self.model) as buffers,
            progress_bar(f"chips of {self.profile}", len(wanted), progress) as advance,
        ):
            # First, because it finds out how much fits in memory at once.
            ideal = self._digital(buffers, next(iter(rows.values()), None), store)
            if precision is not None and self.passes.forward_draws:
                precision = replace(precision, alike=False)  # chips differ whatever the devices do
            self.precision = precision
            self._describe(buffers)
            advance(reused)
            judged, learned = False, self._recalibration is None
            while True:
                pending = [place for place in wanted if place not in rows]
                if self._recalibration is not None and not learned and (pending or self.sampling is not None):
                    self._recalibration.learn()
                    buffers.restore()
                    learned = True
                # A compiled model would be compiled anew to be watched, and a sampled one reads some batches.
                watched = (
                    not judged and bool(pending) and not is_compiled(self.model) and self.sampling is None
                )
                if not judged and not watched:
                    self._judge(self._probe.read(*first[0]), buffers)
                    self._plan(times, buffers)
                judged = True
                if store is not None:
                    store.expect(len(pending))
                if pending:
                    self._measure(pending, rows, ideal, buffers, watched, store, advance, executor)
                wanted = _wanted(times, chips, rows, precision)
                if all(place in rows for place in wanted):
                    return [rows[place] for place in wanted], reused
                known = self._reuse(wanted, rows, store)
                reused += known
                advance(known, total=len(wanted))

    def _plan(self, times: tuple[float, ...], buffers: Buffers) -> None:
        """Find out by chips of their own on which samples the others are measured."""
        if self.sampling is None:
            return
        self.sampling.begin()
        for chip in range(PLANNING_CHIPS):
            program_(self.model, derive_seed("planning", self.seed), chip)
            for time in times:
                drift_to_(self.model, time)
                with self._recalibrated(chip, time, buffers):
                    self.sampling.look(chip, time)
        self.sampling.plan()
        buffers.restore()

    def _reuse(self, places: list[Place], rows: dict[Place, Row], store: ResultStore | None) -> int:
        """Take rows that the store has; how many these are."""
        if store is None:
            return 0
        found = ((place, store.get(self.run_id, *place)) for place in places if place not in rows)
        known = {place: row for place, row in found if row is not None}
        rows.update(known)
        return len(known)

    def _measure(
        self,
        places: list[Place],
        rows: dict[Place, Row],
        ideal: float,
        buffers: Buffers,
        watched: bool,
        store: ResultStore | None,
        advance: Advance,
        executor: Executor | None,
    ) -> None:
        """Add the rows of ``places``; the reads of the first are watched if need be."""
        new: list[Row] = []
        number = 0

        def take(row: Row) -> None:
            nonlocal number
            rows[row.chip, row.time_s] = row
            new.append(row)
            number += 1
            if number == len(places) or places[number][0] != row.chip:
                if store is not None:
                    store.append(new)
                new.clear()
            advance()

        begun = perf_counter()
        here = places if executor is None else places[:1]
        for row in in_turn(self._begun(here, ideal, buffers, watched), self.passes.behind):
            take(row)
        if executor is not None and len(places) > 1:
            seconds = perf_counter() - begun
            buffers.restore()  # workers get the model as it was before the first row
            measure_blocks(self._shared, places[1:], ideal, seconds, executor, take)

    def _begun(
        self, places: Sequence[Place], ideal: float, buffers: Buffers, watched: bool = False
    ) -> Iterator[Callable[[], Row]]:
        """Begin the pass of one place after the other; each is given as what waits for its row."""
        for chip, time in walk(self.model, self.seed, places):
            watching = reads_watched(self.model) if watched else nullcontext()
            with self._recalibrated(chip, time, buffers), watching as reads:
                row = self._begin(chip, time, ideal, reads)
            if reads is not None:
                self._judge(reads, buffers)
            watched = False
            yield row

    def measure(self, places: Sequence[Place], ideal: float) -> list[Row]:
        """Rows of some chips and times; what a worker does for :meth:`run`, after the digital pass."""
        with left_as_found(self.model) as buffers:
            return list(in_turn(self._begun(places, ideal, buffers), self.passes.behind))

    @cached_property
    def _shared(self) -> Shared:
        """This evaluation, for workers, as it is after the digital pass."""
        return Shared(self)

    @property
    def exclusive(self) -> bool:
        """Whether a pass draws from the process's generators; known after the digital pass."""
        return self.passes.draws

    def title(self, first: Place, last: Place) -> str:
        """What the rows from one place to another are of, in words."""
        return f"{numbered('chip', first[0], last[0])} of {self.profile}"

    def _check_shared(self, executor: Executor) -> None:
        """Raise unless the chips can be given to an executor's workers; nothing was computed yet."""
        parts = {"model": self.model, "metric": self.metric, "forward": self.forward, "data": self.data}
        check_shared(executor, self.device, {**parts, "recalibration": self._recalibration})

    def _recalibrated(self, chip: int, time: float, buffers: Buffers) -> AbstractContextManager[Any]:
        if self.passes.writes_buffers:
            buffers.restore()
        if self._recalibration is None:
            return nullcontext()
        return self._recalibration.applied((chip, time), buffers)

    def _begin(self, chip: int, time: float, ideal: float, reads: Reads | None) -> Callable[[], Row]:
        """Begin a pass in the model's present state; what is given waits for its row."""
        at = At("chip {} at {}", chip, format_time(time))
        with at:
            if self.sampling is not None:
                sampled = self.sampling.measure(chip, time)
            else:
                measured = self.passes.begin((chip, time), reads)

        def row() -> Row:
            with at:
                total, count, value = sampled if self.sampling is not None else measured.values()
            labels = (self.run_id, self.profile, self.method, self.training_seed, chip, time)
            return Row(*labels, self.metric.name, total, count, value, ideal)

        return row

    def _digital(self, buffers: Buffers, stored: Row | None, store: ResultStore | None) -> float:
        """The digital metric, computed anew for rows that are there: a model or metric that the digest did
        not tell apart shows in it.
        """
        with At("digital pass"), digital(self.model):
            value = self.passes.first("digital", buffers)
        if stored is None or store is None:
            return value
        refuse_another("digital", self.metric, value, stored.digital, store)
        return stored.digital

    def _describe(self, buffers: Buffers) -> None:
        self.description, batch = until_it_fits(self._first_described, self.data, buffers.restore)
        self.cost = compensation_cost(self.model, self.description, batch, self._recalibration)
        if self._recalibration is not None:
            buffers.restore()

    def _first_described(self) -> tuple[Description, Any]:
        batch = next(self.data.copies())
        return describe(self.model, batch, forward=self._first_forward), batch

    def _first_forward(self, _: nn.Module, batch: Any) -> Any:
        with At("batch 0"):
            return self.forward(self.model, batch)

    def _judge(self, reads: Reads, buffers: Buffers) -> None:
        """Name the layers that the chip, as it is now, does not show in the output.

        Raises:
            DataError: when there is no other layer.
        """
        if self.probe:
            reads = self._probe.search(reads, buffers)
        buffers.restore()
        self.not_read = reads.names()
        complaints = reads.complaints()
        if self.probe and not reads.any_on_chip:
            raise DataError(f"no layer computes on the chip, so there is nothing to measure: {complaints[0]}")
        for text in complaints:
            warnings.warn(text, stacklevel=4)


def _wanted(
    times: tuple[float, ...], chips: int, rows: Mapping[Place, Row], precision: Precision | None
) -> list[Place]:
    """Which chips are wanted at which times, by chip, then time, as far as ``rows`` tell."""
    numbers = dict.fromkeys(times, chips)
    if precision is not None:
        for time in times:
            known = itertools.takewhile(lambda place: place in rows, ((c, time) for c in itertools.count()))
            numbers[time] = precision.chips([rows[place].value for place in known])
    most = max(numbers.values())
    return [(chip, time) for chip in range(most) for time in times if chip < numbers[time]]
