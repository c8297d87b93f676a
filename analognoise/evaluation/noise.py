"""A model's metric under noise on its computations, level by level, repeat by repeat."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from os import PathLike
from typing import Any

from torch import nn

from analognoise.computing.kinds import choose_layers
from analognoise.computing.levels import LEVELS, check_fluctuation, noise_levels
from analognoise.computing.noise import ComputingNoise, check_law
from analognoise.computing.walking import order_of
from analognoise.conversion import check_finite
from analognoise.errors import ModelError, ResultsError
from analognoise.evaluation.checks import MOST_CHIPS, check_place, whole_number
from analognoise.evaluation.data import EvaluationData
from analognoise.evaluation.metrics import Forward, Metric, MetricFunction, labels_of
from analognoise.evaluation.noise_report import NoiseReport
from analognoise.evaluation.noise_rows import NoiseRow
from analognoise.evaluation.noise_series import NoiseEvaluation, NoiseSeries
from analognoise.evaluation.statistics import check_confidence, direction_of
from analognoise.evaluation.store import ResultStore
from analognoise.on_tiles import analog_layers
from analognoise.progress import progress_bar


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
    executor: Executor | None = None,
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
        executor: whose workers measure the repeats, in blocks, as for :func:`analognoise.evaluate_drift`;
            threads do so one at a time.

    Raises:
        NoiseError: for noise levels, a kind or layers that are none or that the model has not.
        QuantizationError: when the first inputs of a quantized layer, which decide about the range of its
            codes, did not come yet.
        ModelError: when weights hold NaN or inf, or are on the ``meta`` device.
        NotProgrammedError: when the model is converted and no chip is programmed.
        DataError: when data, metric, forward's output or a number is not what it must be, or no forward calls
            a layer that is to be noisy.
        ResultsError: when ``out`` cannot be used, or holds another run.
        WorkerError: when the executor is shut down, its workers have other versions, or die of the same task
            again and again.
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
    order: tuple[str, ...] = ()
    if per_layer:
        order = order_of(model, noise.modules, next(iter(shared.copies())), whole.passes.forward)
        common["passes"] = whole.passes
    alone = [
        NoiseEvaluation(model, shared, measured, noise.alone(name), on=name or "(the model)", **common)
        for name in order
    ]
    series = NoiseSeries([whole, *alone])
    with ExitStack() as stack:
        store = _store(out, series.evaluations, stack)
        total = len(levels) * repeats * len(series.evaluations)
        advance = stack.enter_context(progress_bar("noise levels", total, progress))
        (rows, *others), reused = series.run(levels, repeats, store, advance, executor)
    if whole.not_called:
        warnings.warn(
            f"no forward calls {', '.join(map(repr, whole.not_called))}: the results hold no noise of theirs",
            stacklevel=2,
        )
    return NoiseReport(
        rows=rows,
        by_layer=dict(zip(order, others, strict=True)),
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


def chance_of(metric: Metric, data: EvaluationData) -> float | None:
    """Accuracy of guessing among the classes that occur in the data; None for another metric."""
    if metric.name != "accuracy" or metric.function is not None:
        return None
    classes: set[int] = set()
    for batch in data:
        labels = labels_of(batch)
        classes |= set(labels[labels >= 0].unique().tolist())
    return 1.0 / max(len(classes), 1)
