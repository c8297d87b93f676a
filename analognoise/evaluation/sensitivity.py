"""Which layers the chip costs most: each layer on tiles alone, and all layers but one, on the same chips."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from contextlib import ExitStack
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from analognoise.calibration import set_ranges_
from analognoise.conversion import Filter, Profile, convert_to_analog
from analognoise.copying import NotCopiedError
from analognoise.devices.profile import drift_times
from analognoise.errors import ConversionError, DataError, ResultsError
from analognoise.evaluation.blocks import check_contexts
from analognoise.evaluation.checks import MOST_CHIPS, whole_number
from analognoise.evaluation.data import EvaluationData
from analognoise.evaluation.drift import DriftEvaluation
from analognoise.evaluation.identity import device_of
from analognoise.evaluation.metrics import Forward, Metric, MetricFunction
from analognoise.evaluation.sensitivity_parts import Network, Part, choices, run_parts
from analognoise.evaluation.sensitivity_report import ALL, SensitivityReport
from analognoise.evaluation.statistics import check_confidence, direction_of
from analognoise.evaluation.store import ResultStore
from analognoise.on_tiles import analog_layers
from analognoise.pool import Shared, check_executor, check_travel, one_thread
from analognoise.progress import progress_bar


def layer_sensitivity(
    model: nn.Module,
    profile: Profile | Mapping[str, Profile],
    data: Any,
    times: Any = "1d",
    chips: int = 10,
    seed: int = 0,
    metric: str | MetricFunction = "accuracy",
    *,
    forward: Forward | None = None,
    filter_fn: Filter | None = None,
    compensation: str = "global",
    ranges: Mapping[str, Tensor] | None = None,
    out: str | PathLike[str] | ResultStore | None = None,
    higher_is_better: bool | None = None,
    workers: int = 1,
    executor: Executor | None = None,
    progress: bool = False,
    confidence: float = 0.95,
) -> SensitivityReport:
    """Measure for every convertible layer what it costs on chips when it alone is on tiles, and what is
    regained when it alone is kept digital.

    With L layers the data are passed through the model (2 L + 1) × (chips × times + 1) times; with two layers
    3 × as often instead of 5, because all but the one is only the other. A layer's
    devices are the same draws in all of it, because every draw is keyed by the layer's name; so differences
    are taken chip by chip. ``model`` is left as found.

    Args:
        model: a digital model; its weights as they are now are programmed.
        profile: as for :func:`analognoise.convert_to_analog`: one device, or one by pattern of layer names.
        data: as for :func:`analognoise.evaluate_drift`.
        times: drift times since programming.
        chips: number of chips; an interval needs two or more.
        seed: root seed of the chips.
        metric: "accuracy", "loss", "perplexity", or a function ``(output, batch) -> (sum, count)``.
        forward: ``forward(model, batch) -> output``.
        filter_fn: ``filter_fn(module, name) -> bool`` chooses the layers; the others stay digital throughout.
        compensation: drift compensation, "global", "column" or "none".
        ranges: of converters that take theirs from data, as :func:`analognoise.ranges` gives them for the
            model with all these layers on tiles.
        out: a CSV file that gets each chip's rows as soon as they are known; a call that was killed goes on
            with it. Its column ``method`` says what was on tiles: "all", "only conv1", "all but conv1".
        higher_is_better: direction of a metric of your own; by default what its attribute of this name says,
            or True.
        workers: processes that share the choices of layers, each computing with one thread of torch; the
            model must then be on the CPU, and like the data and functions something that can be pickled.
        executor: instead of ``workers``, any executor, as for :func:`analognoise.evaluate_drift`; each task
            computes with as many threads of torch as this process does now.
        progress: show a progress bar.
        confidence: coverage of the intervals.

    Raises:
        ConversionError: when the model has nothing to convert, is on tiles already, or cannot be copied.
        ProfileError: when a profile cannot be loaded.
        ModelError, UnitError, DataError: as :func:`analognoise.evaluate_drift`; DataError also when the work
            cannot be shared.
        ResultsError: when ``out`` cannot be used, or holds another run.
        WorkerError: as :func:`analognoise.evaluate_drift`.
    """
    chips = whole_number("chips", chips, 1, MOST_CHIPS)
    check_confidence(confidence)
    measured = Metric.of(metric)
    better = direction_of(measured, higher_is_better)
    try:
        full = convert_to_analog(model, profile, filter_fn=filter_fn, compensation=compensation)
    except NotCopiedError as error:
        raise ConversionError(
            f"{error.reason}: it is copied for each choice of layers, so keep such attributes out of it"
        ) from error
    known_ranges = dict(ranges or {})
    set_ranges_(full, known_ranges)
    devices = {name: layer.analog.profile for name, layer in analog_layers(full).items()}
    seconds = drift_times(devices.values(), times)
    workers = whole_number("workers", workers, 1)
    if executor is not None and workers > 1:
        raise DataError(f"workers={workers} and an executor are given: leave one of them out")
    with torch.inference_mode(False):
        shared = data if isinstance(data, EvaluationData) else EvaluationData(data, device_of(full))
    network = Network(
        model,
        devices,
        compensation,
        known_ranges,
        shared,
        measured,
        int(seed),
        forward,
        seconds,
        chips,
    )
    common = Shared(network)
    parts = [Part(common, chosen, label) for label, chosen in choices(list(devices))]
    with ExitStack() as stack:
        if workers > 1:
            stack.enter_context(one_thread())
        if workers > 1 or executor is not None:
            _check_shared(network, device_of(full), executor)
        # Whether the output comes from the tiles is asked once, of the whole model.
        whole = DriftEvaluation(full, shared, measured, seed=seed, forward=forward, method=ALL)
        store = _store(out, whole, stack)
        advance = stack.enter_context(progress_bar(f"layers on {whole.profile}", len(parts) + 1, progress))
        rows, reused = whole.run(seconds, chips, store)
        advance()
        for part, found, known in run_parts(parts, store, executor or workers):
            rows += found
            reused += known
            advance(note=part.label)
    return SensitivityReport.of_rows(
        rows,
        whole.description,
        seconds,
        chips,
        metric=measured.name,
        higher_is_better=better,
        digital=rows[0].digital,
        seed=int(seed),
        run_id=whole.run_id,
        not_read=whole.not_read,
        reused=reused,
        confidence=float(confidence),
    )


def _check_shared(network: Network, device: torch.device, executor: Executor | None) -> None:
    if device.type != "cpu":
        raise DataError(f"workers share the work on the CPU only, the model is on {device}: set workers=1")
    check_contexts()
    if executor is not None:
        check_executor(executor, torch.get_num_threads())
    parts = ("model", "forward", "metric", "data")
    check_travel({name: getattr(network, name) for name in parts})


def _store(
    out: str | PathLike[str] | ResultStore | None, whole: DriftEvaluation, stack: ExitStack
) -> ResultStore | None:
    """The results file, if the rows of the whole model in it are this run's; they are the first written."""
    if out is None:
        return None
    store = out if isinstance(out, ResultStore) else stack.enter_context(ResultStore(out))
    if store.rows and not any(row.method == ALL and row.run_id == whole.run_id for row in store.rows):
        first = store.rows[0]
        raise ResultsError(
            f"{store.path} holds another run (profile {first.profile!r}, run {first.run_id}: "
            f"{whole.difference(first)}): name another file or folder, or start over (--force)"
        )
    return store
