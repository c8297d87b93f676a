"""A quantized model on many chips whose memory is faulty."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from functools import cached_property
from os import PathLike
from time import perf_counter
from typing import Any

from torch import nn

from analognoise.conversion import check_finite
from analognoise.copying import NotCopiedError
from analognoise.errors import ConversionError, DataError, ResultsError, SparsityError
from analognoise.evaluation.blocks import check_shared, measure_blocks, numbered
from analognoise.evaluation.checks import MOST_CHIPS, check_place, refuse_another, whole_number
from analognoise.evaluation.fault_report import FaultReport, FaultRow, bits_label
from analognoise.evaluation.identity import Identity, device_of
from analognoise.evaluation.metrics import Forward, Metric, MetricFunction
from analognoise.evaluation.passes import Passes
from analognoise.evaluation.statistics import check_confidence, direction_of
from analognoise.evaluation.store import ResultStore
from analognoise.evaluation.surroundings import At, Buffers, left_as_found
from analognoise.fingerprint import name_of
from analognoise.memory.chip import StoredWeights
from analognoise.memory.faults import FaultModel, fault_rates, faults_label
from analognoise.pool import Shared
from analognoise.progress import progress_bar
from analognoise.quantized import (
    dequantize,
    describe_quantization,
    quantized_layers,
    reads_noted,
    require_input_ranges,
    require_quantized,
)
from analognoise.sparsity.measure import ActivationSparsity, activation_sparsity

RATES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
Positions = Iterable[int | str] | int | str | None
_Place = tuple[int, float]  # chip and rate
_Known = tuple[float, float]  # the metric without faults, and with float weights
# What only the process that evaluates needs: not all of it can be sent.
_HERE = ("_identity", "_shared")


class FaultEvaluation:
    """One quantized model, its data and its metric, ready to be measured on chips with faulty memory; the
    parts of :func:`evaluate_faults`.

    Args:
        model: a quantized model.
        data: as in :func:`evaluate_faults`.
        metric: what is measured.
        kind: likewise.
        encoding: likewise.
        positions: likewise.
        seed: root seed of the chips.
        forward: as in :func:`evaluate_faults`.
        method: for the rows.
        training_seed: for the rows.

    Attributes:
        run_id: what this evaluation's rows carry.
        faults: kind, bit positions and encoding in short.
        bits: of a stored weight, by the weight's name.
        stored_bits: number of bits in faulty memory.
        floating: what stays float, and is protected: as :func:`describe_quantization` names it.
        sparsity: activation sparsity without faults, where a forward calls activation layers; known after
            :meth:`run`.
        not_read: names of the stored weights that no forward reads; known after :meth:`run`.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        metric: Metric,
        *,
        kind: str | Mapping[str, float] = "flip",
        encoding: str = "twos-complement",
        positions: Positions = None,
        seed: int = 0,
        forward: Forward | None = None,
        method: str = "",
        training_seed: int | None = None,
    ) -> None:
        require_quantized(model, "evaluate faults")
        require_input_ranges(model, "evaluate faults")
        check_place(model)
        check_finite(model)
        self._usual = FaultModel.of(kind, 1.0, positions=positions, encoding=encoding)
        self._kind = kind
        self._stored = StoredWeights(model, encoding)
        self._stored.check(self._usual)
        self.model, self.metric, self.seed = model, metric, whole_number("seed", seed)
        self.method = str(method)
        self.training_seed = (
            None if training_seed is None else whole_number("training_seed", training_seed, 0)
        )
        self.faults = faults_label(self._usual)
        self.bits = {name: layer.bits for name, layer in self._stored.layers.items()}
        self.stored_bits = self._stored.bits
        self.floating = describe_quantization(model).floating
        self.sparsity: ActivationSparsity | None = None
        self.not_read: tuple[str, ...] = ()
        device = device_of(model)
        self.passes = Passes(model, data, metric, device=device, forward=forward, seed=self.seed)
        settings = {
            "data": self.passes.data.fingerprint,
            "metric": [metric.name, name_of(metric.function)],
            "forward": name_of(forward),
            "seed": self.seed,
            "quantization": {
                name: layer.quantization.to_dict() for name, layer in quantized_layers(model).items()
            },
            "names": {name: layer.name for name, layer in self._stored.layers.items()},
            "rates": self._usual.rates,
            "other codes": {
                name: layer.codes().tolist()
                for name, layer in self._stored.layers.items()
                if layer.has_other_codes
            },
            "labels": [self.faults, self.method, self.training_seed],
        }
        self._identity = Identity(model, settings)
        self.run_id = self._identity.run_id

    def difference(self, row: FaultRow) -> str:
        """In words, what tells the run of a stored row from this one, as far as that can be known."""
        return self._identity.difference(row, self.metric.name)

    def at(self, rate: float) -> FaultModel:
        """The faults at a rate."""
        return FaultModel.of(self._kind, rate, positions=self._usual.positions, encoding=self._usual.encoding)

    def run(
        self,
        rates: tuple[float, ...],
        chips: int,
        store: ResultStore[FaultRow] | None = None,
        progress: bool = False,
        executor: Executor | None = None,
    ) -> tuple[list[FaultRow], int]:
        """Rows by chip and rate, appended to ``store`` chip by chip, and how many of them it had already.

        With an executor the passes without faults and the first row are computed here, the others by its
        workers; they are appended in the same order.
        """
        if executor is not None:
            parts = {"model": self.model, "metric": self.metric, "forward": self.passes.forward}
            check_shared(executor, self.passes.device, {**parts, "data": self.passes.data})
        wanted = [(chip, rate) for chip in range(chips) for rate in rates]
        rows: dict[_Place, FaultRow] = {}
        if store is not None:
            if store.run_id not in (None, self.run_id):
                raise ResultsError(
                    f"{store.path} holds run {store.run_id}, not {self.run_id}: use another file"
                )
            found = ((place, store.get(self.run_id, *place)) for place in wanted)
            rows = {place: row for place, row in found if row is not None}
        reused = len(rows)
        pending = [place for place in wanted if place not in rows]
        new: list[FaultRow] = []
        number = 0
        with (
            left_as_found(self.model) as buffers,
            progress_bar(f"chips with faults {self.faults}", len(wanted), progress) as advance,
        ):
            known = self._undisturbed(buffers, next(iter(rows.values()), None), store)
            advance(reused)
            if store is not None:
                store.expect(len(pending))

            def take(row: FaultRow) -> None:
                nonlocal number
                rows[pending[number]] = row
                new.append(row)
                number += 1
                if number == len(pending) or pending[number][0] != row.chip:
                    if store is not None:
                        store.append(new)
                    new.clear()
                advance()

            begun = perf_counter()
            try:
                for place in pending if executor is None else pending[:1]:
                    take(self._row(*place, known, buffers))
            finally:
                self._stored.restore()
            if executor is not None and len(pending) > 1:
                seconds = perf_counter() - begun
                buffers.restore()  # workers get the model as it was before the first row
                measure_blocks(self._shared, pending[1:], known, seconds, executor, take)
        return [rows[place] for place in wanted], reused

    def measure(self, places: Sequence[_Place], known: _Known) -> list[FaultRow]:
        """Rows of some chips and rates; what a worker does for :meth:`run`, after the first passes."""
        with left_as_found(self.model) as buffers:
            try:
                return [self._row(*place, known, buffers) for place in places]
            finally:
                self._stored.restore()

    @property
    def exclusive(self) -> bool:
        """Whether a pass draws from the process's generators; known after the pass without faults."""
        return self.passes.draws

    def title(self, first: _Place, last: _Place) -> str:
        """What the rows from one place to another are of, in words."""
        return f"{numbered('chip', first[0], last[0])} with faults {self.faults}"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in _HERE}

    @cached_property
    def _shared(self) -> Shared:
        """This evaluation, for workers, as it is after the passes without faults."""
        return Shared(self)

    def _row(self, chip: int, rate: float, known: _Known, buffers: Buffers) -> FaultRow:
        if self.passes.writes_buffers:
            buffers.restore()
        self._stored.put(self.at(rate), self.seed, chip)
        with At("chip {} at rate {}", chip, rate):
            measured = self.passes.measure((chip, rate))
        labels = (self.run_id, self.faults, bits_label(self.bits), self.method, self.training_seed)
        return FaultRow(*labels, chip, rate, self.metric.name, *measured, *known)

    def _undisturbed(
        self, buffers: Buffers, stored: FaultRow | None, store: ResultStore[FaultRow] | None
    ) -> _Known:
        """The metric without faults, and with float weights."""
        with At("the pass without faults"), reads_noted(self.model) as left:
            quantized = self.passes.first("quantized", buffers)
        self._complain(tuple(left))
        with At("the pass with float weights"):
            try:
                twin = dequantize(self.model, keep="float")
            except NotCopiedError as error:
                raise ConversionError(
                    f"{error.reason}: it is copied to be measured with float weights, so keep such "
                    "attributes out of it"
                ) from error
            mine = self.passes
            passes = Passes(
                twin, mine.data, self.metric, device=mine.device, forward=mine.forward, seed=self.seed
            )
            unquantized = passes.first("digital", buffers)
        try:
            self.sparsity = activation_sparsity(self.model, self.passes.data, forward=self.passes.forward)
        except SparsityError:  # no activation layers, or none that is called
            self.sparsity = None
        buffers.restore()
        if stored is None or store is None:
            return quantized, unquantized
        refuse_another("quantized", self.metric, quantized, stored.quantized, store)
        refuse_another("unquantized", self.metric, unquantized, stored.unquantized, store)
        return stored.quantized, stored.unquantized

    def _complain(self, not_read: tuple[str, ...]) -> None:
        """Say which weights' faults cannot show themselves.

        Raises:
            DataError: when they are all.
        """
        self.not_read = not_read
        if not not_read:
            return
        found = f"the model does not read the quantized weights {', '.join(map(repr, not_read))}"
        why = "it uses them without calling their layers, or not at all"
        if len(not_read) == len(self.bits):
            raise DataError(f"{found}: {why}, so there is nothing to measure")
        warnings.warn(f"{found}: {why}, so the results do not show what faults in them do", stacklevel=4)


def evaluate_faults(
    model: nn.Module,
    data: Any,
    rates: Any = RATES,
    chips: int = 25,
    seed: int = 0,
    metric: str | MetricFunction = "accuracy",
    *,
    kind: str | Mapping[str, float] = "flip",
    encoding: str = "twos-complement",
    positions: Positions = None,
    forward: Forward | None = None,
    out: str | PathLike[str] | ResultStore[FaultRow] | None = None,
    method: str = "",
    training_seed: int | None = None,
    higher_is_better: bool | None = None,
    progress: bool = False,
    confidence: float = 0.95,
    executor: Executor | None = None,
) -> FaultReport:
    """Measure a quantized model on many chips whose memory is faulty, at several fault rates.

    The weights' words are in faulty memory; scales, biases and all else are protected. Chip c at a rate has
    the faults of ``memory_faults(model, FaultModel.of(kind, rate, …), chip=c, seed=seed)``, which are among
    those of the same chip at a larger rate. The model without faults and with its float weights are measured
    first, also when a file is resumed, and so is its activation sparsity. Modes, codes, buffers and the
    global random generators are left as found, also when something goes wrong.

    Args:
        model: a quantized model; its codes as they are now are stored.
        data: as for :func:`analognoise.evaluate_drift`.
        rates: fault rates from 0 to 1: numbers, or text such as ``"1e-4,1e-2"``.
        chips: number of chips, up to 100 000.
        seed: root seed of the chips.
        metric: "accuracy", "loss" (cross-entropy, nats), "perplexity", or a function ``(output, batch) ->
            (sum, count)``.
        kind: "flip", "flip-0-to-1", "flip-1-to-0", "stuck-at-0" or "stuck-at-1"; or a mixture, as shares of
            the rate by kind.
        encoding: "twos-complement" or "sign-magnitude".
        positions: bits that can be faulty: numbers from 0 (least significant), "lsb", "msb" or "sign"; None
            for all.
        forward: ``forward(model, batch) -> output``.
        out: a CSV file that gets each chip's rows as soon as they are known, and is gone on with as by
            :func:`analognoise.evaluate_drift`; or a store of such rows.
        method: name of the training method, for the rows.
        training_seed: seed of the training, a whole number of at least 0, for the rows.
        higher_is_better: direction of a metric of your own; by default what its attribute of this name says,
            or True.
        progress: show a progress bar.
        confidence: coverage of the report's intervals.
        executor: whose workers measure the chips, in blocks, as for :func:`analognoise.evaluate_drift`.

    Raises:
        QuantizationError: when no layer is quantized, or the first inputs of one, which decide about the
            range of its codes, did not come yet.
        FaultError: for an unknown kind or encoding, a rate outside [0, 1], or a position outside a word.
        ModelError: when weights hold NaN or inf.
        DataError: when data, metric, forward's output or a number is not what it must be.
        ResultsError: when ``out`` cannot be used.
        WorkerError: when the executor is shut down, its workers have other versions, or die of the same task
            again and again.
    """
    wanted = fault_rates(rates)
    chips = whole_number("chips", chips, 1, MOST_CHIPS)
    check_confidence(confidence)
    measured = Metric.of(metric)
    better = direction_of(measured, higher_is_better)
    evaluation = FaultEvaluation(
        model,
        data,
        measured,
        kind=kind,
        encoding=encoding,
        positions=positions,
        seed=seed,
        forward=forward,
        method=method,
        training_seed=training_seed,
    )
    with ExitStack() as stack:
        store: ResultStore[FaultRow] | None
        if out is None or isinstance(out, ResultStore):
            store = out
        else:
            store = stack.enter_context(ResultStore(out, evaluation.run_id, evaluation.difference, FaultRow))
        rows, reused = evaluation.run(wanted, chips, store, progress, executor)
    return FaultReport(
        rows=tuple(rows),
        rates=wanted,
        faults=evaluation.faults,
        metric=measured.name,
        higher_is_better=better,
        quantized=rows[0].quantized,
        unquantized=rows[0].unquantized,
        bits=evaluation.bits,
        stored_bits=evaluation.stored_bits,
        floating=evaluation.floating,
        sparsity=evaluation.sparsity,
        not_read=evaluation.not_read,
        seed=evaluation.seed,
        run_id=evaluation.run_id,
        reused=reused,
        confidence=float(confidence),
    )
