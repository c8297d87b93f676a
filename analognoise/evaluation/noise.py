"""A model's metric under noise on its computations, level by level, repeat by repeat."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from os import PathLike
from typing import Any

from torch import nn

from analognoise.computing.kinds import choose_layers
from analognoise.computing.levels import LEVELS, check_fluctuation, fluctuating_sigma, noise_levels
from analognoise.computing.noise import ComputingNoise, check_law
from analognoise.computing.walking import order_of
from analognoise.conversion import check_finite
from analognoise.errors import DataError, ModelError, ResultsError
from analognoise.evaluation.checks import MOST_CHIPS, check_place, refuse_another, whole_number
from analognoise.evaluation.data import EvaluationData, update_digest
from analognoise.evaluation.identity import Identity, device_of
from analognoise.evaluation.metrics import Forward, Metric, MetricFunction, labels_of
from analognoise.evaluation.noise_report import NoiseReport
from analognoise.evaluation.noise_rows import NoiseRow
from analognoise.evaluation.passes import Passes
from analognoise.evaluation.statistics import check_confidence, direction_of
from analognoise.evaluation.store import ResultStore
from analognoise.evaluation.surroundings import At, left_as_found
from analognoise.fingerprint import name_of
from analognoise.on_tiles import analog_layers
from analognoise.progress import progress_bar
from analognoise.quantized import require_input_ranges
from analognoise.seeds import Stream


class NoiseEvaluation:
    """One model, its data and one noise, ready to be measured; a part of :func:`evaluate_noise`.

    Args:
        model: digital, or with a programmed chip.
        data: as for :func:`analognoise.evaluate_drift`, or :class:`EvaluationData`.
        metric: what is measured.
        noise: the noise, whose σ is set anew at each level.
        fluctuating: α and θ of a level that each repeat draws anew, or None.
        on: the layer that the noise is on alone, "" for all.
        seed: root seed of the draws.
        forward: as for :func:`analognoise.evaluate_drift`.
        method: for the rows.
        training_seed: for the rows.

    Attributes:
        run_id: what this evaluation's rows carry.
        label: the noise in words, for the rows.
        not_called: layers that noise was to be put on but that no forward called; known after :meth:`run`,
            if it measured anything.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        metric: Metric,
        noise: ComputingNoise,
        *,
        fluctuating: tuple[float, float] | None = None,
        on: str = "",
        seed: int = 0,
        forward: Forward | None = None,
        method: str = "",
        training_seed: int | None = None,
    ) -> None:
        require_input_ranges(model, "evaluate noise")
        self.model, self.metric, self.noise, self.fluctuating = model, metric, noise, fluctuating
        self.seed, self.method, self.training_seed = seed, method, training_seed
        self.label = noise.kind + " (fluctuating)" * (fluctuating is not None) + (f" on {on}" if on else "")
        self.passes = Passes(model, data, metric, device=device_of(model), forward=forward, seed=seed)
        self.not_called: tuple[str, ...] = ()
        settings = {
            "data": self.passes.data.fingerprint,
            "metric": [metric.name, name_of(metric.function)],
            "forward": name_of(forward),
            "seed": seed,
            "labels": [self.label, method, training_seed],
            # σ itself is the rows'; mixed noise has another one that stays.
            "noise": [
                noise.kind,
                [[name, pair[1] * (noise.kind == "mixed")] for name, pair in noise.layers.items()],
            ],
            "fluctuating": fluctuating,
            "chip": _chip_digest(model),
        }
        self._identity = Identity(model, settings)
        self.run_id = self._identity.run_id

    def difference(self, row: NoiseRow) -> str:
        """In words, what tells the run of a stored row from this one, as far as that can be known."""
        mine = (self.label, self.method, self.training_seed, self.metric.name)
        theirs = (row.noise, row.method, row.training_seed, row.metric)
        names = ("noise", "method", "training seed", "metric")
        found = [
            f"{n} {b!r} there, {a!r} here" for n, a, b in zip(names, mine, theirs, strict=True) if a != b
        ]
        return "; ".join(found) or (
            "another model, data, metric, forward, seed or setting, another number of threads or version"
        )

    def run(
        self,
        sigmas: Sequence[float],
        repeats: int,
        store: ResultStore[NoiseRow] | None = None,
        advance: Any = None,
    ) -> tuple[list[NoiseRow], int]:
        """Rows by repeat and level, appended to ``store`` repeat by repeat, and how many it had already."""
        places = [(repeat, sigma) for repeat in range(repeats) for sigma in sigmas]
        known = {place: store.get(self.run_id, *place) for place in places} if store is not None else {}
        rows = {place: row for place, row in known.items() if row is not None}
        reused = len(rows)
        with left_as_found(self.model) as buffers:
            with At("noise-free pass"):
                clean = self.passes.first("digital", buffers)
            stored = next(iter(rows.values()), None)
            if stored is not None and store is not None:
                refuse_another("noise-free", self.metric, clean, stored.digital, store)
                clean = stored.digital
            if store is not None:
                store.expect(len(places) - reused)
            new: list[NoiseRow] = []
            for repeat, sigma in places:
                if (repeat, sigma) not in rows:
                    if self.passes.writes_buffers:
                        buffers.restore()
                    rows[repeat, sigma] = self._row(repeat, sigma, clean)
                    new.append(rows[repeat, sigma])
                if sigma == sigmas[-1]:
                    if store is not None:
                        store.append(new)
                    new = []
                if advance is not None:
                    advance()
        return [rows[place] for place in places], reused

    def sigma_of(self, repeat: int, sigma: float) -> float:
        """The σ that a repeat computes with at a level."""
        if self.fluctuating is None:
            return sigma
        return fluctuating_sigma(
            sigma, *self.fluctuating, Stream(self.seed, "fluctuating-noise", chip=repeat)
        )

    def _row(self, repeat: int, sigma: float, clean: float) -> NoiseRow:
        self.noise.repeat = repeat
        self.noise.set_sigma(self.sigma_of(repeat, sigma))
        with At("repeat {} at sigma {}", repeat, f"{sigma:g}"), self.noise:
            total, count, value = self.passes.measure((repeat, sigma))
        self.not_called = self.noise.not_called
        if len(self.not_called) == len(self.noise.layers):
            raise DataError(
                f"no forward calls any of the layers {', '.join(map(repr, self.not_called))}: noise on them "
                "changes nothing, so there is nothing to measure"
            )
        labels = (self.run_id, self.label, self.method, self.training_seed, repeat, sigma, self.metric.name)
        return NoiseRow(*labels, total, count, value, clean)


def evaluate_noise(
    model: nn.Module,
    data: Any,
    sigmas: str | Iterable[float] = LEVELS,
    kind: str = "additive",
    layers: str | Iterable[str] | None = None,
    *,
    repeats: int = 25,
    seed: int = 0,
    per_layer: bool = False,
    multiplicative: float | None = None,
    fluctuating: bool | tuple[float, float] | None = None,
    metric: str | MetricFunction = "accuracy",
    forward: Forward | None = None,
    out: str | PathLike[str] | ResultStore[NoiseRow] | None = None,
    method: str = "",
    training_seed: int | None = None,
    higher_is_better: bool | None = None,
    progress: bool = False,
    confidence: float = 0.95,
) -> NoiseReport:
    """Measure a model under noise at the outputs of its layers, at several noise levels.

    A repeat is one sequence of draws (the same normal numbers at every level), as a chip is one in
    :func:`analognoise.evaluate_drift`: the unit of every interval. The model is measured in eval mode; if it
    is converted, on the chip that is programmed now, at its drift time. Mode, chip, buffers and global random
    generators are left as found.

    Args:
        model: any module.
        data: a DataLoader or list of batches that gives the same in every pass, as for
            :func:`analognoise.evaluate_drift`. Draws depend on the batch size.
        sigmas: noise levels above 0, growing, or text such as ``"1e-2:1e2:17"`` (evenly in the logarithm).
        kind: ``"additive"``, ``"multiplicative"`` or ``"mixed"``, as for :func:`analognoise.computing_noise`.
        layers: kinds, names or patterns, as there; None takes every layer of a known kind.
        repeats: number of repeats, at least 1; an interval needs two or more.
        seed: root seed of the draws.
        per_layer: measure each of the layers alone, too ("walking noise"), in the order of computing.
        multiplicative: for ``"mixed"``: σ of the multiplicative part, which stays while ``sigmas`` are swept.
        fluctuating: let every repeat draw its own σ = α·σ₀ + θ·abs(N(0, 1)) for each level σ₀, as
            variance-aware training does (arXiv 2503.16183): True for α = 0.45 and θ = 0.66, or (α, θ).
        metric: "accuracy", "loss", "perplexity", or a function ``(output, batch) -> (sum, count)``.
        forward: ``forward(model, batch) -> output``.
        out: a CSV file that gets each repeat's rows as soon as they are known; a call that was killed goes on
            with it.
        method: name of the training method, for the rows.
        training_seed: likewise.
        higher_is_better: direction of a metric of your own; by default what its attribute of this name says,
            or True.
        progress: show a progress bar.
        confidence: coverage of the intervals.

    Raises:
        NoiseError: for noise levels, a kind or layers that are none or that the model has not.
        QuantizationError: when the first inputs of a quantized layer, which decide about the range of its
            codes, did not come yet.
        ModelError: when weights hold NaN or inf, or are on the ``meta`` device.
        NotProgrammedError: when the model is converted and no chip is programmed.
        DataError: when data, metric, forward's output or a number is not what it must be, or no forward calls
            a layer that is to be noisy.
        ResultsError: when ``out`` cannot be used, or holds another run.
    """
    check_law(kind, multiplicative)
    levels, wobble = noise_levels(sigmas), check_fluctuation(fluctuating)
    repeats = whole_number("repeats", repeats, 1, MOST_CHIPS)
    seed = whole_number("seed", seed)
    check_confidence(confidence)
    measured = Metric.of(metric)
    better = direction_of(measured, higher_is_better)
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model must be a torch.nn.Module, found {type(model).__name__}")
    check_place(model)
    check_finite(model)
    for layer in analog_layers(model).values():
        layer.check_programmed()
    names = tuple(choose_layers(model, layers))
    noise = ComputingNoise(model, 0.0, kind, layers, multiplicative=multiplicative, seed=seed)
    common: dict[str, Any] = {
        "fluctuating": wobble,
        "seed": seed,
        "forward": forward,
        "method": str(method),
        "training_seed": None if training_seed is None else whole_number("training_seed", training_seed, 0),
    }
    whole = NoiseEvaluation(model, data, measured, noise, **common)
    shared = whole.passes.data
    alone = {}
    if per_layer:
        batch = next(iter(shared.copies()))
        order = order_of(model, noise.modules, batch, whole.passes.forward)
        alone = {
            name: NoiseEvaluation(
                model, shared, measured, noise.alone(name), on=name or "(the model)", **common
            )
            for name in order
        }
    with ExitStack() as stack:
        store = _store(out, [whole, *alone.values()], stack)
        total = len(levels) * repeats * (1 + len(alone))
        advance = stack.enter_context(progress_bar("noise levels", total, progress))
        rows, reused = whole.run(levels, repeats, store, advance)
        by_layer = {}
        for name, evaluation in alone.items():
            found, known = evaluation.run(levels, repeats, store, advance)
            by_layer[name], reused = tuple(found), reused + known
    if whole.not_called:
        warnings.warn(
            f"no forward calls {', '.join(map(repr, whole.not_called))}: the results hold no noise of theirs",
            stacklevel=2,
        )
    return NoiseReport(
        rows=tuple(rows),
        by_layer=by_layer,
        sigmas=levels,
        layers=names,
        metric=measured.name,
        higher_is_better=better,
        digital=rows[0].digital,
        chance=chance_of(measured, shared),
        seed=seed,
        run_id=whole.run_id,
        not_called=whole.not_called,
        reused=reused,
        confidence=float(confidence),
    )


def _store(
    out: Any, evaluations: Sequence[NoiseEvaluation], stack: ExitStack
) -> ResultStore[NoiseRow] | None:
    """The results file, if it holds nothing of other runs."""
    if out is None:
        return None
    store = out if isinstance(out, ResultStore) else stack.enter_context(ResultStore(out, kind=NoiseRow))
    whole, ids = evaluations[0], {evaluation.run_id for evaluation in evaluations}
    if store is not out and store.rows and not any(row.run_id in ids for row in store.rows):
        first = store.rows[0]
        raise ResultsError(
            f"{store.path} holds another run ({first.run_id}: {whole.difference(first)}): use another file"
        )
    return store


def _chip_digest(model: nn.Module) -> str:
    """A digest of the programmed weights; "" for a digital model."""
    layers = analog_layers(model)
    if not layers:
        return ""
    state = hashlib.sha256()
    for name, layer in layers.items():
        for weight, values in layer.analog.weights.items():
            update_digest(state, values, f"{name}.{weight}")
    return state.hexdigest()


def chance_of(metric: Metric, data: EvaluationData) -> float | None:
    """Accuracy of guessing among the classes that occur in the data; None for another metric."""
    if metric.name != "accuracy" or metric.function is not None:
        return None
    classes: set[int] = set()
    for batch in data:
        labels = labels_of(batch)
        classes |= set(labels[labels >= 0].unique().tolist())
    return 1.0 / max(len(classes), 1)
