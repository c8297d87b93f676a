"""Monte-Carlo over chips: program, let drift, measure, again and again on the same data."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from analognoise.chip import chip_preserved, digital, drift_to_, evaluating, program_
from analognoise.conversion import analog_layers, check_finite, require_analog
from analognoise.description import Description, describe
from analognoise.errors import DataError, ModelError, ResultsError
from analognoise.evaluation.data import EvaluationData, tensors, to_device
from analognoise.evaluation.identity import Identity, device_of, name_of
from analognoise.evaluation.metrics import (
    Forward,
    Metric,
    MetricFunction,
    add_up,
    default_forward,
    final_value,
)
from analognoise.evaluation.reading import Reads, find_bypassed, find_idle, numbers, reads_watched
from analognoise.evaluation.report import DriftReport
from analognoise.evaluation.statistics import better_when_higher, check_confidence
from analognoise.evaluation.store import ResultStore, Row
from analognoise.evaluation.surroundings import At, Buffers, eager, is_compiled, random_states, seed_all
from analognoise.progress import progress_bar
from analognoise.seeds import derive_seed, rng_preserved
from analognoise.units import DEFAULT_TIMES, format_time, parse_times

_AHEAD_BYTES = 8 << 20
# Each layer's tiles are given other weights once, on one batch: not worth it for many layers.
_IDLE_LAYERS = 16
_IDLE_BATCHES = 4
_FEW = 32
_SAME = 1e-5


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
    batch size. The digital metric is measured first, also when a file is resumed. Modes, the programmed chip,
    buffers and the global random generators are left as found, also when something goes wrong.

    The first pass over a chip is watched, and the first batch then run again with other digital weights and,
    for models of up to 16 layers on tiles, with other weights on each layer's tiles in turn. Layers that
    compute digitally in spite of the chip, whose digital weights reach the output, or whose tiles do not, are
    named in a warning and in the report's ``not_read``. (A model of more layers that computes with a *copy*
    of its weights is not found out.)

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
            they are not computed again; more chips or times than before are added. A run is known by model,
            data, metric, forward (their code and the values that they work with; not what they assign
            themselves), settings, versions, device type and thread count. A :class:`ResultStore` may be
            shared by runs.
        method: name of the training method, for the rows.
        training_seed: seed of the training, a whole number of at least 0, for the rows.
        higher_is_better: direction of a metric of your own (True if not given).
        progress: show a progress bar.
        confidence: coverage of the report's intervals.

    Raises:
        ConversionError: when the model has no layer on tiles.
        ModelError: when weights hold NaN or inf, or are on the ``meta`` device.
        UnitError: when a time cannot be read.
        DataError: when data, metric, forward's output or a number is not what it must be (it names the
            batch), or no layer at all computes on the chip.
        ResultsError: when ``out`` cannot be used: it holds another run (the message says what differs, where
            that can be known), or the digital metric in it is not what the model gives now.
    """
    seconds = parse_times(times)
    chips = _whole("chips", chips, 1)
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
            store = stack.enter_context(ResultStore(out, evaluation.run_id, evaluation.difference))
        rows, reused = evaluation.run(seconds, chips, store, progress)
    return DriftReport(
        rows=tuple(rows),
        times=seconds,
        metric=measured.name,
        higher_is_better=better,
        digital=rows[0].digital,
        seed=evaluation.seed,
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
        probe: whether to look, after the first pass over a chip, for tiles that the output does not come
            from.

    Attributes:
        run_id: what this evaluation's rows carry.
        profile: names of the devices' profiles.
        description: what is on tiles and what is not; known after :meth:`run`.
        not_read: layers whose tiles no forward reads, or not for all that they compute; known after
            :meth:`run`.
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
        probe: bool = True,
    ) -> None:
        layers = require_analog(model, "evaluate chips")
        _check_place(model)
        check_finite(model)
        if forward is not None and not callable(forward):
            raise DataError(
                f"forward is a {type(forward).__name__}: give a function (model, batch) -> output"
            )
        self.model, self.metric, self.seed = model, metric, _whole("seed", seed)
        self.forward: Forward = forward or default_forward
        self.method = str(method)
        self.training_seed = None if training_seed is None else _whole("training_seed", training_seed, 0)
        self.probe = probe
        self.device = device_of(model)
        with torch.inference_mode(False):
            self.data = data if isinstance(data, EvaluationData) else EvaluationData(data, self.device)
        self.profile = "+".join(dict.fromkeys(layer.analog.profile.name for layer in layers.values()))
        self._identity = Identity(
            model,
            {
                "data": self.data.fingerprint,
                "metric": [metric.name, name_of(metric.function)],
                "forward": name_of(forward),
                "seed": self.seed,
                "labels": [self.profile, self.method, self.training_seed],
            },
        )
        self.run_id = self._identity.run_id
        self.description: Description
        self.not_read: tuple[str, ...] = ()
        self._counts: list[float | None] = [None] * self.data.batches
        self._writes_input = self._draws = self._writes_buffers = False

    def difference(self, row: Row) -> str:
        """In words, what tells the run of a stored row from this one, as far as that can be known."""
        return self._identity.difference(row, self.metric.name)

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
            ideal = self._digital(buffers, next(iter(rows.values()), None), store)
            watched = bool(pending) and not is_compiled(self.model)  # it would be compiled anew to be watched
            if not watched:
                self._judge(self._look(*wanted[0]), buffers)
            advance(reused)
            new: list[Row] = []
            for number, (chip, time) in enumerate(self._states(pending)):
                if watched and number == 0:
                    with reads_watched(self.model) as reads:
                        row = self._row(chip, time, ideal, buffers, reads)
                    self._judge(reads, buffers)
                else:
                    row = self._row(chip, time, ideal, buffers)
                rows[chip, time] = row
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

    def _row(self, chip: int, time: float, ideal: float, buffers: Buffers, reads: Reads | None = None) -> Row:
        if self._writes_buffers:
            buffers.restore()
        with At("chip {} at {}", chip, format_time(time)):
            total, count, value = self._pass((chip, time), reads=reads)
        labels = (self.run_id, self.profile, self.method, self.training_seed, chip, time, self.metric.name)
        return Row(*labels, total, count, value, ideal)

    def _pass(
        self, place: object, first: bool = False, reads: Reads | None = None
    ) -> tuple[float, float, float]:
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
            if reads is not None:
                reads.batch = number
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

    def _digital(self, buffers: Buffers, stored: Row | None, store: ResultStore | None) -> float:
        """The digital metric; learns on the way what the forward does besides computing.

        Computed anew for rows that are there: a model or metric that the digest did not tell apart shows in
        it.
        """
        seed_all(derive_seed("evaluation", self.seed, "digital"), self.device)
        before = random_states(self.device)
        with At("digital pass"), digital(self.model):
            value = self._pass("digital", first=True)[2]
        self._draws = before != random_states(self.device)
        self._writes_buffers = buffers.restore()
        if stored is None or store is None:
            return value
        if abs(value - stored.digital) > _SAME * max(1.0, abs(stored.digital)):
            raise ResultsError(
                f"the digital {self.metric.name} is {value!r} here, but {stored.digital!r} in {store.path}: "
                "its rows come from another model, metric or forward, or from a machine that computes "
                "differently; go on where they were computed, or use another file"
            )
        return stored.digital

    def _describe(self) -> Description:
        batch = next(self.data.copies())
        with eager(self.model):
            return describe(self.model, batch, forward=lambda _, given: self._forward(given, 0))

    def _look(self, chip: int, time: float) -> Reads:
        """Run batches on a chip until all its tiles were read, or to the end: a layer may serve few
        batches.
        """
        program_(self.model, self.seed, chip)
        drift_to_(self.model, time)
        with rng_preserved(), eager(self.model), reads_watched(self.model) as reads:
            for number, batch in enumerate(self.data.copies()):
                reads.batch = number
                self._forward(batch, number)
                if reads.complete:
                    break
        return reads

    def _judge(self, reads: Reads, buffers: Buffers) -> None:
        """Name the layers that the chip, as it is now, does not show in the output.

        Raises:
            DataError: when there is no other layer.
        """
        if self.probe:
            with rng_preserved(), eager(self.model):
                self._probe(reads, buffers)
        buffers.restore()
        self.not_read = reads.names()
        complaints = reads.complaints()
        if self.probe and not reads.any_on_chip:
            raise DataError(f"no layer computes on the chip, so there is nothing to measure: {complaints[0]}")
        for text in complaints:
            warnings.warn(text, stacklevel=4)

    def _probe(self, reads: Reads, buffers: Buffers) -> None:
        """Give the layers other weights, first digital ones, then on their tiles, each on the first batch
        that it serves (where its tiles do not matter, also on three more).
        """
        every = analog_layers(self.model)
        layers = {name: every[name] for name in reads.on_chip()}
        last = max((reads.first[name] for name in layers), default=-1)
        idle = dict(layers) if len(layers) <= _IDLE_LAYERS else {}
        for number, batch in enumerate(self.data):
            if number > last and not (idle and number < last + _IDLE_BATCHES):
                break

            compute = partial(self._computed, batch, number, buffers)
            new = {name: layer for name, layer in layers.items() if reads.first[name] == number}
            tested = {name: layer for name, layer in idle.items() if reads.first[name] <= number}
            if not (new or tested):
                continue
            expected = compute()
            if new:
                reads.bypassed += find_bypassed(new, compute, expected)
            without = [name for name in tested if name not in reads.bypassed]
            if without and (few := self._few(batch)) is not None:  # most layers show in a few samples
                part = partial(self._computed, few, number, buffers)
                without = find_idle({name: tested[name] for name in without}, part, part())
            without = find_idle({name: tested[name] for name in without}, compute, expected)
            idle = {n: layer for n, layer in idle.items() if n in without or reads.first[n] > number}
        reads.idle = list(idle)

    def _few(self, batch: Any) -> tuple[Tensor, Tensor] | None:
        """The first samples of a large batch ``(x, y)``, if the model takes so few."""
        if self.forward is not default_forward or not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            return None
        x, y = batch
        if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.dim() and y.dim()):
            return None
        if not len(x) == len(y) > _FEW:
            return None
        try:
            self.model(x[:_FEW].clone())
        except Exception:  # it is made for one size of batch
            return None
        return x[:_FEW], y[:_FEW]

    def _computed(self, batch: Any, number: int, buffers: Buffers) -> list[Tensor]:
        """The numbers that a forward gives, from the same buffers, random numbers and input every time."""
        buffers.restore()
        seed_all(derive_seed("probe", self.seed), self.device)
        output = self._forward(to_device(batch, self.device, copy=True), number)
        return [tensor.clone() for tensor in numbers(output)]

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


def _whole(name: str, value: Any, least: int | None = None) -> int:
    """A whole number as a plain int, also NumPy's."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least):
        bound = "" if least is None else f", at least {least}"
        raise DataError(f"{name} is {value!r}: give a whole number{bound}")
    return number


def _check_place(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ModelError(
                f"{name!r} is on the 'meta' device and holds no values: load the weights first, for example "
                "with model.to_empty(device='cpu') and load_state_dict"
            )
