"""``analognoise evaluate``: one model on the chips of one or more profiles."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from analognoise.calibration import needs_calibration
from analognoise.conversion import check_finite, convert_to_analog, keeping_digital
from analognoise.crossbar.compensation import compensation_list, split_compensation
from analognoise.devices.whatif import Changes
from analognoise.errors import ResultsError
from analognoise.evaluation.calibration import CalibrationData
from analognoise.evaluation.checks import MOST_CHIPS, whole_number
from analognoise.evaluation.drift import DriftEvaluation
from analognoise.evaluation.lifetime import lifetime
from analognoise.evaluation.metrics import Metric
from analognoise.evaluation.montecarlo import evaluate_drift
from analognoise.evaluation.report import DriftReport
from analognoise.evaluation.rows import Row
from analognoise.evaluation.stopping import checked_precision
from analognoise.evaluation.store import ResultStore
from analognoise.jobs.calibration import calibrate_all
from analognoise.jobs.data import checked_test_data, load_forward, metric_of, recalibration_inputs
from analognoise.jobs.evaluated import Evaluated
from analognoise.jobs.folder import JobFolder, unasked
from analognoise.jobs.placements import Placement, contents, load_placements
from analognoise.jobs.report import FILES, RESULTS_FILE, write_summary
from analognoise.jobs.setup import (
    Say,
    WhatIf,
    build_model,
    either_trained,
    torch_device,
    torch_threads,
    weights_of,
)
from analognoise.jobs.sharing import sharing
from analognoise.jobs.single_chips import check_single_chips
from analognoise.printing import counted
from analognoise.tasks import Task


def evaluate_model(
    *,
    profiles: Sequence[str],
    changes: WhatIf = ((), (), None),
    task: str | None = None,
    model: str | None = None,
    data: str | None = None,
    weights: Path | None = None,
    times: str | None = None,
    chips: int = 25,
    precision: float | None = None,
    max_chips: int | None = None,
    sampling: str = "full",
    metric: str | None = None,
    forward: str | None = None,
    floor: float | None = None,
    quantile: float | None = None,
    yield_at: float | None = None,
    seed: int = 0,
    compensation: str = "global",
    calibration: str | None = None,
    calibration_batches: int = 10,
    engine: str = "analognoise",
    collapse_pairs: bool = False,
    digital: Sequence[str] = (),
    batch_size: int | None = None,
    device: str = "cpu",
    threads: int = 1,
    workers: int = 1,
    scheduler: str | None = None,
    out: Path | None = None,
    force: bool = False,
    say: Say = print,
) -> Evaluated:
    """Evaluate a model on chips of each profile; with ``out``, store all and go on where a run stopped.

    Args:
        profiles: names or files, or ``PATTERN=PROFILE,…`` for a device by layer.
        changes: of profiles, as ``--set``, ``--scale`` and ``--periphery`` take them.
        task: a task's name, or ``module:callable``; either this or ``model``.
        model: ``module:callable`` that returns the model.
        data: ``module:callable`` that returns test batches; a task's own by default.
        weights: safetensors file with the model's weights.
        times: drift times; None takes those of each device.
        chips: number of chips; with ``precision`` that of the first stage.
        precision: half-width that the intervals are to have.
        max_chips: with ``precision``, the largest number of chips.
        sampling: full or stratified, as :func:`analognoise.evaluate_drift` takes it.
        metric: a name or ``module:callable``; by default the task's, or accuracy.
        forward: ``module:callable`` of ``(model, batch)``.
        floor: for lifetimes, the share of the digital metric that must be kept.
        quantile: share of chips that may be worse; shows the level that all others keep.
        yield_at: level of the metric; shows how many chips keep it.
        seed: root seed of the chips.
        compensation: drift compensations, with commas; the model is evaluated with each.
        calibration_batches: how many batches of ``calibration``, or of the task's training data, a
            recalibration uses.
        engine: whose tiles hold the weights.
        collapse_pairs: merge the devices of a pair after programming, as aihwkit does.
        digital: patterns of layer names that stay digital.
        calibration: ``module:callable`` that returns batches for recalibrations and converters' ranges;
            by default a task's training data, or (ranges alone) the test data.
        batch_size: for ``data``, if it takes one.
        device: where torch computes.
        threads: of torch, in every process.
        workers: processes that share the chips; they change no result.
        scheduler: address of a Dask scheduler whose workers share them.
        out: folder for results; None writes nothing.
        force: replace what another run left in the folder.
        say: gets lines for the user.

    Raises:
        AnalogNoiseError: of the class that fits, before anything is written.
    """
    changed = Changes.parse(*changes)
    placements = load_placements(profiles, changed)
    seconds = [item.times(times) for item in placements]
    compensations = [split_compensation(name) for name in compensation_list(compensation)]
    whole_number("--chips", chips, 1, MOST_CHIPS)
    whole_number("--calibration-batches", calibration_batches, 1)
    found = either_trained(task, model, weights, seed)
    measured = metric_of(metric, found)
    if floor is not None:
        # Only to hear now whether the floor makes sense for the metric.
        lifetime([[1.0]], [1.0], 1.0, floor, metric=Metric.of(measured).name)
    check_single_chips(quantile, yield_at, Metric.of(measured).name, sampling)
    if precision is not None or max_chips is not None:  # to hear it now, and a warning once
        bounded = Metric.of(measured).name == "accuracy"
        chips = checked_precision(precision, chips, max_chips, bounded=bounded).pilot
    run = load_forward(forward, found)
    folder = None if out is None else JobFolder(out, "evaluate", FILES, force, (RESULTS_FILE,))
    with torch_threads(threads), sharing(workers, scheduler) as executor, ExitStack() as stack:
        network = build_model(found, model, weights, seed, device, for_chip=True)
        check_finite(network)
        measure = Metric.of(measured).measure
        batches = checked_test_data(network, found, data, batch_size, device, measure, run)
        kept = keeping_digital(network, digital)
        calibrating = None
        recalibrated = any(kind for _, kind in compensations)
        if recalibrated:
            inputs = recalibration_inputs(found, calibration, compensation, seed, run is not None)
            calibrating = CalibrationData(inputs, torch_device(device), calibration_batches, run)
        variants = [
            _Variant(
                convert_to_analog(
                    network,
                    item.profile,
                    filter_fn=kept,
                    compensation=tile,
                    engine=engine,
                    collapse_pairs=collapse_pairs,
                ),
                own,
                {"recalibrate": kind, "calibration": calibrating if kind else None},
            )
            for item, own in zip(placements, seconds, strict=True)
            for tile, kind in compensations
        ]
        # Given for a recalibration alone, the inputs are none that a converter must need.
        ranged = (
            calibration if not recalibrated or any(needs_calibration(v.model) for v in variants) else None
        )
        source = calibrate_all(
            [variant.model for variant in variants],
            ranged,
            found,
            batches,
            batch_size=batch_size,
            seed=seed,
            forward=run,
            say=say,
        )
        # What a later variant cannot do is said before the first one is measured.
        runs = [
            DriftEvaluation(
                v.model,
                batches,
                Metric.of(measured),
                seed=seed,
                forward=run,
                sampling=sampling,
                **v.recalibration,
            )
            for v in variants
        ]
        store = None
        if folder is not None:
            stack.enter_context(folder.held())
            folder.open()
            store = stack.enter_context(_store(folder, runs))
        reports = [
            evaluate_drift(
                variant.model,
                batches,
                times=variant.times,
                chips=chips,
                precision=precision,
                max_chips=max_chips,
                sampling=sampling,
                seed=seed,
                metric=measured,
                forward=run,
                out=store,
                progress=sys.stderr.isatty(),
                executor=executor,
                **variant.recalibration,
            )
            for variant in variants
        ]
        if folder is not None and store is not None:
            store.close()
            settings = _settings(placements, found, model, data, weights, reports, device, threads)
            settings |= {"digital": list(digital), "floor": floor, **changed.to_dict()}
            settings |= {"quantile": quantile, "yield_at": yield_at}
            settings |= _statistics(reports)
            if source is not None:
                settings["calibration"] = source
            if calibrating is not None:
                settings["recalibration"] = calibration or "training data of the task"
                settings["calibration_batches"] = len(calibrating)
            settings["weights_file"] = None if weights is None else str(weights)
            _finish(folder, store, reports, settings, contents(placements), say)
    return Evaluated(tuple(reports), floor, quantile, yield_at, out)


@dataclass(frozen=True)
class _Variant:
    """The model on the devices of one placement, with one drift compensation.

    Attributes:
        model: converted.
        times: drift times in seconds.
        recalibration: its arguments for :func:`analognoise.evaluate_drift`.
    """

    model: nn.Module
    times: tuple[float, ...]
    recalibration: dict[str, Any]


def _store(folder: JobFolder, runs: Sequence[DriftEvaluation]) -> ResultStore:
    """The results file, if all that it holds belongs to these runs."""
    store: ResultStore[Row] = ResultStore(folder.path / RESULTS_FILE)
    known = {run.run_id for run in runs}
    other = next((row for row in store.rows if row.run_id not in known), None)
    if other is not None:
        nearest = next((run for run in runs if run.profile == other.profile), runs[0])
        raise ResultsError(
            f"{store.path} holds another run (profile {other.profile!r}, run {other.run_id}: "
            f"{nearest.difference(other)}): name another folder, or replace it with --force"
        )
    return store


def _settings(
    placements: Sequence[Placement],
    task: Task | None,
    model: str | None,
    data: str | None,
    weights: Path | None,
    reports: Sequence[DriftReport],
    device: str,
    threads: int,
) -> dict[str, Any]:
    report = reports[0]
    return {
        "task": task.name if task else None,
        "model": model,
        "data": data,
        "weights": weights_of(weights),
        "profiles": {d.name: d.digest for item in placements for d in item.devices.values()},
        "by_layer": [item.by_layer for item in placements if item.by_layer],
        "times_s": sorted({time for item in reports for time in item.times}),
        "chips": max(item.chips for item in reports),
        "seed": report.seed,
        "metric": report.metric,
        "higher_is_better": report.higher_is_better,
        "compensation": ",".join(dict.fromkeys(item.compensation for item in reports)),
        "engine": report.description.engine,
        "collapse_pairs": report.description.collapse_pairs,
        "confidence": report.confidence,
        "device": device,
        "threads": threads,
    }


def _statistics(reports: Sequence[DriftReport]) -> dict[str, Any]:
    """On how many samples and how precisely the profiles' chips were measured, where that was asked for."""
    found: dict[str, Any] = {}
    for report in reports:
        name = report.rows[0].profile
        if report.sampling is not None:
            about = {**report.sampling.to_dict(), "text": report.sampling.sentence}
            found.setdefault("sampling", {})[name] = about
        if report.precision is not None:
            found.setdefault("precision", {})[name] = report.precision.to_dict()
    return found


def _finish(
    folder: JobFolder,
    store: ResultStore[Row],
    reports: Sequence[DriftReport],
    settings: dict[str, Any],
    profiles: dict[str, Any],
    say: Say,
) -> None:
    """Write all files but the results, and say which of these were there already."""
    rows = pd.concat([report.frame for report in reports], ignore_index=True)
    reused = sum(report.reused for report in reports)
    if reused:
        say(f"evaluation: reused {reused} of {counted(len(rows), 'result')} in {folder.path}")
    known = {row.key for report in reports for row in report.rows}
    others = [row for row in store.rows if row.key not in known]
    if others:
        say(f"evaluation: {unasked(others, rows['time_s'], max(report.chips for report in reports))}")
    models = {report.rows[0].profile: report.describe for report in reports}
    write_summary(folder.path, rows, settings, models)
    folder.finish(settings, profiles=profiles, model={"profiles": models})
