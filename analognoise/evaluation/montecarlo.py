"""Monte-Carlo over chips: program, let drift, measure, again and again on the same data."""

from __future__ import annotations

from concurrent.futures import Executor
from contextlib import ExitStack
from os import PathLike
from typing import Any

from torch import nn

from analognoise.devices.profile import drift_times
from analognoise.evaluation.checks import MOST_CHIPS, whole_number
from analognoise.evaluation.drift import DriftEvaluation
from analognoise.evaluation.metrics import Forward, Metric, MetricFunction
from analognoise.evaluation.report import DriftReport
from analognoise.evaluation.statistics import check_confidence, direction_of
from analognoise.evaluation.stopping import checked_precision
from analognoise.evaluation.store import ResultStore
from analognoise.on_tiles import require_analog


def evaluate_drift(
    model: nn.Module,
    data: Any,
    times: Any = None,
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
    recalibrate: str | None = None,
    calibration: Any = None,
    calibration_batches: int | None = 10,
    executor: Executor | None = None,
    precision: float | None = None,
    max_chips: int | None = None,
    sampling: str = "full",
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
        times: drift times since programming: ``["1s", "1h"]``, ``"1s,1h"``, or seconds. None takes those of
            the profile: by default 1 s, 1 h, 1 d, 1 mo and 1 y.
        chips: number of chips, up to 100 000; with ``precision`` that of the first stage, at least 10.
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
        higher_is_better: direction of a metric of your own; by default what its attribute of this name says,
            or True.
        progress: show a progress bar.
        confidence: coverage of the report's intervals.
        recalibrate: a digital correction of every chip at every drift time, on top of the compensation that
            the model was converted with: ``"batchnorm"`` re-estimates the BatchNorm layers' statistics on the
            chip (AdaBS, Joshi et al. 2020, doi 10.1038/s41467-020-16108-9), ``"affine"`` gives each output
            channel of linear layers and convolutions a scale and an offset that bring its mean and spread to
            those of the digital network. None: no such correction.
        calibration: the inputs for it: a loader or list of batches, which may shuffle; labels are not used.
            They must not be the test data.
        calibration_batches: how many batches of ``calibration`` to take, its first ones; None takes all.
        executor: whose workers measure the chips, in blocks: a ``ProcessPoolExecutor``, a Dask cluster's
            ``client.get_executor()``, or any other. Rows, their order and the file are those of this process
            alone, to the last bit; each task computes with as many threads of torch as this process does now.
            Model, data and functions travel once to each worker and must be such as can be pickled. A task
            whose worker dies is begun again elsewhere, three times at most. Threads work on copies of the
            model, one at a time where the forward draws random numbers. The executor is left open.
        precision: half-width, in units of the metric, that the interval is to have at every time: the spread
            of the first ``chips`` chips fixes how many each time needs, see
            :mod:`analognoise.evaluation.stopping`. None runs ``chips`` chips.
        max_chips: with ``precision`` the largest number of chips, at least 10; by default 1000.
        sampling: ``"full"`` measures every chip on all samples, ``"stratified"`` on some of them, drawn for
            each chip and the fewer the further their digital margin is from 0; means and intervals stay
            right, see :mod:`analognoise.evaluation.sampling`. For accuracy only.

    Raises:
        ConversionError: when the model has no layer on tiles.
        ProfileError: when a device is not known at one of the times.
        ModelError: when weights hold NaN or inf, or are on the ``meta`` device.
        UnitError: when a time cannot be read.
        DataError: when data, metric, forward's output or a number is not what it must be (it names the
            batch), no layer at all computes on the chip, or a recalibration lacks inputs, is given the test
            data or has nothing to correct.
        ResultsError: when ``out`` cannot be used: it holds another run (the message says what differs, where
            that can be known), or the digital metric in it is not what the model gives now.
        WorkerError: when the executor is shut down, its workers have other versions, or die of the same task
            again and again.
    """
    layers = require_analog(model, "evaluate chips")
    seconds = drift_times((layer.analog.profile for layer in layers.values()), times)
    chips = whole_number("chips", chips, 1, MOST_CHIPS)
    check_confidence(confidence)
    measured = Metric.of(metric)
    better = direction_of(measured, higher_is_better)
    target = None
    if precision is not None or max_chips is not None:
        most = None if max_chips is None else whole_number("max_chips", max_chips, most=MOST_CHIPS)
        profiles = [layer.analog.profile for layer in layers.values()]
        target = checked_precision(
            precision,
            chips,
            most,
            float(confidence),
            bounded=measured.name == "accuracy",
            alike=not any(profile.is_random for profile in profiles),
        )
    evaluation = DriftEvaluation(
        model,
        data,
        measured,
        seed=seed,
        forward=forward,
        method=method,
        training_seed=training_seed,
        recalibrate=recalibrate,
        calibration=calibration,
        calibration_batches=calibration_batches,
        sampling=sampling,
    )
    with ExitStack() as stack:
        store: ResultStore | None
        if out is None or isinstance(out, ResultStore):
            store = out
        else:
            store = stack.enter_context(ResultStore(out, evaluation.run_id, evaluation.difference))
        rows, reused = evaluation.run(seconds, chips, store, progress, executor, target)
    return DriftReport(
        rows=tuple(rows),
        times=seconds,
        metric=measured.name,
        higher_is_better=better,
        digital=rows[0].digital,
        seed=evaluation.seed,
        run_id=evaluation.run_id,
        description=evaluation.description,
        compensation=evaluation.compensation,
        cost=evaluation.cost,
        left_out=evaluation.left_out,
        not_read=evaluation.not_read,
        reused=reused,
        confidence=float(confidence),
        precision=evaluation.precision,
        sampling=None if evaluation.sampling is None else evaluation.sampling.sampled,
    )
