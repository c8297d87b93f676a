"""What a job reads a model's data with: the user's own functions, or the task's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from analognoise.chip import evaluating
from analognoise.errors import AnalogNoiseError, DataError
from analognoise.evaluation.broken import refuse_broken
from analognoise.evaluation.data import EvaluationData, to_device
from analognoise.evaluation.metrics import Forward, default_forward
from analognoise.halving import in_parts
from analognoise.jobs.setup import torch_device
from analognoise.seeds import rng_preserved
from analognoise.tasks import Task, load_callable, load_data

Measure = Callable[[Any, Any], Any]


def _test_batches(task: Task | None, data: str | None, batch_size: int | None, own_forward: bool) -> Any:
    """The user's test batches, or the task's.

    Raises:
        DataError: when there are none.
    """
    if data is not None:
        return load_data(data, batch_size=batch_size, own_forward=own_forward)
    if task is None:
        raise DataError("--model needs test data: name your function with --data, as module:callable")
    if task.test is None:
        raise DataError(f"task {task.name!r} has no test data: name your own function with --data")
    return task.test


def recalibration_inputs(
    task: Task | None,
    calibration: str | None,
    compensation: str,
    seed: int,
    own_forward: bool,
) -> Any:
    """The user's calibration batches, or the task's training batches.

    Raises:
        DataError: when there are none.
    """
    if calibration is not None:
        return load_data(calibration, seed=seed, own_forward=own_forward)
    if task is None:
        raise DataError(
            f"drift compensation {compensation!r} needs inputs that are no test data: name your function "
            "with --calibration, as module:callable"
        )
    return task.train(seed, task.batch_size)


def try_batch(
    model: nn.Module,
    batch: Any,
    what: str,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    use: Measure | None = None,
    whole: bool = False,
) -> None:
    """Let the model compute one batch, so that what does not fit is found before anything is written.

    Args:
        model: digital; its mode, buffers and weights are left as found.
        batch: the first of the data.
        what: what the data are, in the message.
        forward: as for :func:`analognoise.evaluate_drift`.
        use: what is done with ``(output, batch)``, for example the metric.
        whole: whether the batch must fit in memory; otherwise parts of it may.

    Raises:
        DataError: when anything goes wrong.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with rng_preserved(0), torch.no_grad(), evaluating(model):
            where = next(model.parameters(), torch.empty(0)).device

            def compute(part: Any) -> None:
                part = to_device(part, where, copy=True)
                output = (forward or default_forward)(model, part)
                if use is not None:
                    use(output, part)

            if whole:
                compute(batch)
            else:
                in_parts(compute, batch)
    except AnalogNoiseError as error:
        raise DataError(f"{what}, first batch: {error}") from error
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        who = type(model).__name__
        if forward is not None:
            name = getattr(forward, "__name__", type(forward).__name__)
            who = f"forward {name!r} with {who}"
        raise DataError(
            f"{what}: {who} cannot compute the first batch ({type(error).__name__}: {first})"
        ) from error
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


def checked_data(
    model: nn.Module, batches: Any, device: str, what: str, measure: Measure, forward: Forward | None
) -> EvaluationData:
    """The same batches in every pass, read once; the model computes them, and what is measured is finite.

    Args:
        model: digital; it is left as found.
        batches: the data.
        device: where torch computes.
        what: what the data are, in messages.
        measure: ``measure(output, batch)``, the metric.
        forward: as for :func:`analognoise.evaluate_drift`.

    Raises:
        DataError: when they are not the same in every pass, do not fit the model, or break it.
    """
    try:
        data = EvaluationData(batches, torch_device(device))
    except DataError as error:
        raise DataError(f"{what}: {error}") from error
    try_batch(model, next(iter(data)), what, forward, measure)
    refuse_broken(model, data, measure, what, forward)
    return data


def checked_test_data(
    model: nn.Module,
    task: Task | None,
    data: str | None,
    batch_size: int | None,
    device: str,
    measure: Measure,
    forward: Forward | None,
) -> EvaluationData:
    """The user's test batches, or the task's, as :func:`checked_data` gives them.

    Raises:
        DataError: when there are none, or something is wrong with them.
    """
    what = f"test data {data!r}" if data else f"test data of task {task.name!r}" if task else "test data"
    batches = _test_batches(task, data, batch_size, forward is not None)
    return checked_data(model, batches, device, what, measure, forward)


def load_forward(name: str | None, task: Task | None) -> Forward | None:
    """The user's ``module:callable`` of ``(model, batch)``; by default the task's, which may be None."""
    if name is not None:
        return load_callable(name, what="forward")
    return task.forward if task is not None else None


def metric_of(name: str | None, task: Task | None) -> Any:
    """A metric by name, or the user's own ``module:callable``; by default the task's, or accuracy."""
    if name is None:
        return task.metric if task is not None else "accuracy"
    return load_callable(name, what="metric") if ":" in name else name
