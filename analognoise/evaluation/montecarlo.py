"""Monte-Carlo over chips: program, let drift, measure, again and again on the same data."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from analognoise.chip import chip_preserved, digital, drift_to_, evaluating, program_
from analognoise.conversion import analog_layers, check_finite, require_analog
from analognoise.description import Description, describe
from analognoise.errors import DataError, ResultsError
from analognoise.evaluation.data import EvaluationData, tensors
from analognoise.evaluation.identity import device_of, name_of, run_id
from analognoise.evaluation.metrics import (
    Forward,
    Metric,
    MetricFunction,
    add_up,
    default_forward,
    final_value,
)
from analognoise.evaluation.reading import Reads, reads_watched
from analognoise.evaluation.report import DriftReport
from analognoise.evaluation.statistics import better_when_higher, check_confidence
from analognoise.evaluation.store import ResultStore, Row
from analognoise.evaluation.surroundings import At, Buffers, eager, is_compiled, random_states, seed_all
from analognoise.progress import progress_bar
from analognoise.seeds import derive_seed, rng_preserved
from analognoise.units import DEFAULT_TIMES, format_time, parse_times

_AHEAD_BYTES = 8 << 20


def evaluate_drift(
    model: nn.Module,
    data: Any,
    times: Any = DEFAULT_TIMES,
    chips: int = 25,
    seed: int = 0,
    metric: str | MetricFunction = "accuracy",
    *,
    forward: Forward | None = None,
    out: str | PathLike[str] | ResultStore | None = None,
    method: str = "",
    training_seed: int | None = None,
    higher_is_better: bool | None = None,
    progress: bool = False,
    confidence: float = 0.95,
) -> DriftReport:
    """Measure a converted model on many chips at several drift times.

    Chip c is ``program_(model, seed=seed, chip=c)``: the same whatever the number of chips, the times or the
    batch size. The digital metric is measured first. Modes, the programmed chip, buffers and the global
    random generators are left as found, also when something goes wrong.

    Args:
        model: a converted model; its weights as they are now are programmed.
        data: a DataLoader or list of batches that gives the same in every pass; batches are ``(x, y)`` or
            dicts with labels under "labels", "label" or "y", or whatever ``forward`` takes.
        times: drift times since programming: ``["1s", "1h"]``, ``"1s,1h"``, or seconds.
        chips: number of chips.
        seed: root seed of the chips.
        metric: "accuracy", "loss" (cross-entropy, nats), "perplexity", or a function ``(output, batch) ->
            (sum, count)``.
        forward: ``forward(model, batch) -> output``; by default ``model(x)``, or ``model(**batch without
            labels)``.
        out: a CSV file that gets each chip's rows as soon as they are known. If it has rows of this very run
            they are not computed again; more chips or times than before are added. A :class:`ResultStore` may
            be shared by runs.
        method: name of the training method, for the rows.
        training_seed: seed of the training, for the rows.
        higher_is_better: direction of a metric of your own (True if not given).
        progress: show a progress bar.
        confidence: coverage of the report's intervals.

    Raises:
        ConversionError: when the model has no layer on tiles.
        ModelError: when weights hold NaN or inf.
        UnitError: when a time cannot be read.
        DataError: when data, metric, forward's output or a number is not what it must be; it names the batch.
        ResultsError: when ``out`` cannot be used.
    """
    seconds = parse_times(times)
    if isinstance(chips, bool) or not isinstance(chips, int) or chips < 1:
        raise DataError(f"chips is {chips!r}: give a whole number, at least 1")
    check_confidence(confidence)
    measured = Metric.of(metric)
    better = better_when_higher(measured.name, higher_is_better)
    evaluation = DriftEvaluation(
        model, data, measured, seed=seed, forward=forward, method=method, training_seed=training_seed
    )
    with ExitStack() as stack:
        store: ResultStore | None
        if out is None or isinstance(out, ResultStore):
            store = out
        else:
            store = stack.enter_context(ResultStore(out, evaluation.run_id))
        rows, reused = evaluation.run(seconds, chips, store, progress)
    return DriftReport(
        rows=tuple(rows),
        times=seconds,
        metric=measured.name,
        higher_is_better=better,
        digital=rows[0].digital,
        seed=int(seed),
        run_id=evaluation.run_id,
        description=evaluation.description,
        not_read=evaluation.not_read,
        reused=reused,
        confidence=float(confidence),
    )


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

    Attributes:
        run_id: what this evaluation's rows carry.
        profile: names of the devices' profiles.
        description: what is on tiles and what is not; known after :meth:`run`.
        not_read: layers on tiles that no forward called; known after :meth:`run`.
    """

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
    ) -> None:
        layers = require_analog(model, "evaluate chips")
        check_finite(model)
        if forward is not None and not callable(forward):
            raise DataError(
                f"forward is a {type(forward).__name__}: give a function (model, batch) -> output"
            )
        self.model, self.metric, self.seed = model, metric, int(seed)
        self.forward: Forward = forward or default_forward
        self.method, self.training_seed = str(method), training_seed
        self.device = device_of(model)
        with torch.inference_mode(False):
            self.data = data if isinstance(data, EvaluationData) else EvaluationData(data, self.device)
        self.profile = "+".join(dict.fromkeys(layer.analog.profile.name for layer in layers.values()))
        self.run_id = run_id(
            model,
            {
                "data": self.data.fingerprint,
                "metric": [metric.name, name_of(metric.function)],
                "forward": name_of(forward),
                "seed": self.seed,
                "labels": [self.profile, self.method, training_seed],
            },
        )
        self.description: Description
        self.not_read: tuple[str, ...] = ()
        self._counts: list[float | None] = [None] * self.data.batches
        self._writes_input = self._draws = self._writes_buffers = False

    def run(
        self, times: tuple[float, ...], chips: int, store: ResultStore | None = None, progress: bool = False
    ) -> tuple[list[Row], int]:
        """Rows by chip and time, appended to ``store`` chip by chip, and how many of them it had already."""
        rows: dict[tuple[int, float], Row] = {}
        wanted = [(chip, time) for chip in range(chips) for time in times]
        if store is not None:
            found = ((place, store.get(self.run_id, *place)) for place in wanted)
            rows = {place: row for place, row in found if row is not None}
            if store.run_id not in (None, self.run_id):
                raise ResultsError(
                    f"{store.path} holds run {store.run_id}, not {self.run_id}: use another file"
                )
        pending, reused = [place for place in wanted if place not in rows], len(rows)
        with (
            self._left_as_found() as buffers,
            progress_bar(f"chips of {self.profile}", len(wanted), progress) as advance,
        ):
            self.description = self._describe()
            stored = next(iter(rows.values()), None)
            if stored is not None and not pending:
                ideal, reads = stored.digital, self._look_for_unread()
            elif is_compiled(self.model):  # compiled code would be compiled anew to be watched
                ideal, reads = self._digital(buffers, stored), self._look_for_unread()
            else:
                with reads_watched(self.model) as reads:
                    ideal = self._digital(buffers, stored)
            self._name_unread(reads)
            advance(reused)
            new: list[Row] = []
            for number, (chip, time) in enumerate(self._states(pending)):
                row = rows[chip, time] = self._row(chip, time, ideal, buffers)
                new.append(row)
                if number + 1 == len(pending) or pending[number + 1][0] != chip:
                    if store is not None:
                        store.append(new)
                    new = []
                advance()
        return [rows[place] for place in wanted], reused

    def _states(self, places: list[tuple[int, float]]) -> Iterator[tuple[int, float]]:
        """Bring the model into the state of each (chip, time) in turn.

        Chips are programmed and drifted ahead, as far as their weights fit in ``_AHEAD_BYTES``: to and fro
        between that and the forward would cost a small model a tenth of its time in cold caches.
        """
        layers = [layer.analog for layer in analog_layers(self.model).values()]
        size = sum(
            target.nbytes
            for layer in analog_layers(self.model).values()
            for target in layer.targets().values()
        )
        ahead = max(1, _AHEAD_BYTES // size)
        programmed = None
        for start in range(0, len(places), ahead):
            block = places[start : start + ahead]
            kept: list[list[dict[str, Tensor]]] = []
            for chip, time in block:
                if chip != programmed:
                    program_(self.model, self.seed, chip)
                    programmed = chip
                drift_to_(self.model, time)
                if len(block) > 1:
                    kept.append([layer.copy_weights() for layer in layers])
            for number, (chip, time) in enumerate(block):
                if kept:
                    for layer, weights in zip(layers, kept[number], strict=True):
                        layer.put_weights(weights, time)
                yield chip, time

    def _row(self, chip: int, time: float, ideal: float, buffers: Buffers) -> Row:
        if self._writes_buffers:
            buffers.restore()
        with At("chip {} at {}", chip, format_time(time)):
            total, count, value = self._pass((chip, time))
        labels = (self.run_id, self.profile, self.method, self.training_seed, chip, time, self.metric.name)
        return Row(*labels, total, count, value, ideal)

    def _pass(self, place: object, first: bool = False) -> tuple[float, float, float]:
        """Sum, count and value of the metric over the data, in the model's present state.

        Nothing in the loop waits for the device. The first pass gives the model copies of the batches and
        checks labels.
        """
        if first or self._draws or not self.data.cached:
            seed_all(derive_seed("evaluation", self.seed, place), self.device)
        model, forward, measure = self.model, self.forward, self.metric.measure
        sums: list[Tensor | float] = []
        counts: list[Tensor | float] = []
        known = self._counts
        for number, batch in enumerate(self.data.copies() if first or self._writes_input else self.data):
            versions = [tensor._version for tensor in tensors(batch)] if first else []
            with At("batch {}", number):
                total, count = measure(forward(model, batch), batch, known[number])
            sums.append(total)
            counts.append(count)
            if first and versions != [tensor._version for tensor in tensors(batch)]:
                self._writes_input = True
        if first and self.metric.function is None:  # what counts depends on the labels alone
            self._counts = [float(count) for count in counts]
        added, counted = add_up(self.metric, sums, counts)
        return added, counted, final_value(self.metric, added, counted)

    def _digital(self, buffers: Buffers, stored: Row | None) -> float:
        """The digital metric; learns on the way what the forward does besides computing."""
        seed_all(derive_seed("evaluation", self.seed, "digital"), self.device)
        before = random_states(self.device)
        with At("digital pass"), digital(self.model):
            value = self._pass("digital", first=True)[2]
        self._draws = before != random_states(self.device)
        self._writes_buffers = buffers.restore()
        if stored is None:
            return value
        if value != stored.digital:
            warnings.warn(
                f"the digital {self.metric.name} is {value!r} here and {stored.digital!r} in the stored "
                "results: this machine computes differently; the stored one is kept",
                stacklevel=4,
            )
        return stored.digital

    def _describe(self) -> Description:
        batch = next(self.data.copies())
        with eager(self.model):
            return describe(self.model, batch, forward=lambda _, given: self._forward(given, 0))

    def _look_for_unread(self) -> Reads:
        """Run batches until every weight on tiles was read, or to the end: a layer may serve few of them."""
        with eager(self.model), digital(self.model), reads_watched(self.model) as reads:
            for number, batch in enumerate(self.data.copies()):
                self._forward(batch, number)
                if reads.complete:
                    break
        return reads

    def _name_unread(self, reads: Reads) -> None:
        self.not_read = reads.names()
        if self.not_read:
            warnings.warn(
                f"the tiles of {', '.join(map(repr, self.not_read))} were not read: the model uses these "
                "weights "
                "without calling their layers, or not at all, so the results do not show what a chip does "
                "to them",
                stacklevel=4,
            )

    def _forward(self, batch: Any, number: int) -> Any:
        with At("batch {}", number):
            return self.forward(self.model, batch)

    @contextmanager
    def _left_as_found(self) -> Iterator[Buffers]:
        states = [layer.analog for layer in analog_layers(self.model).values()]
        flags = [state.digital for state in states]
        deterministic = torch.backends.cudnn.deterministic
        with (
            # ordinary tensors: what a forward keeps in the model (a table of positions, say) must serve
            # training later
            torch.inference_mode(False),
            torch.no_grad(),
            rng_preserved(),
            evaluating(self.model),
            chip_preserved(self.model),
        ):
            buffers = Buffers(self.model)
            try:
                torch.backends.cudnn.deterministic = True
                for state in states:  # also inside "with digital(model)" chips are chips
                    state.digital = False
                yield buffers
            finally:
                torch.backends.cudnn.deterministic = deterministic
                for state, flag in zip(states, flags, strict=True):
                    state.digital = flag
                buffers.restore()
