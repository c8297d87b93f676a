"""What training needs to know about batches, outputs and metrics.

The conventions are those of evaluation, and the code is :mod:`analognoise.metrics` and
:mod:`analognoise.batches`; only the loss may be the user's own, and so may its targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from analognoise import metrics
from analognoise.batches import to_device
from analognoise.chip import digital, evaluating
from analognoise.errors import AnalogNoiseError, DataError
from analognoise.halving import InParts, until_it_fits
from analognoise.metrics import IGNORE_INDEX, LABELS, add_up, default_forward, final_value
from analognoise.seeds import rng_preserved

__all__ = [
    "Loss",
    "Measure",
    "Metric",
    "default_forward",
    "labels_in",
    "loss_of",
    "measure",
    "measure_batch",
    "metric_name",
    "scores",
    "size_of",
    "target_of",
    "to_device",
]

Metric = str | Callable[[Any, Any], tuple[float, float]]
Loss = Callable[[Any, Any], Tensor]


def metric_name(metric: Metric) -> str:
    """What tables call the metric.

    Raises:
        DataError: when it is unknown.
    """
    return metrics.Metric.of(metric).name


@dataclass(frozen=True)
class Measure:
    """A metric's sum over samples, their count, and the value they make."""

    metric: str
    sum: float
    count: float
    value: float


@torch.no_grad()
def measure(
    model: nn.Module,
    data: Iterable[Any],
    *,
    metric: Metric = "accuracy",
    loss: Loss = functional.cross_entropy,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    memory: InParts | None = None,
) -> Measure:
    """A metric of the digital weights in eval mode; mode and buffers are left as found.

    Accuracy and a metric of one's own are those of evaluation (:class:`analognoise.metrics.Metric`). "loss"
    and "perplexity" are of ``loss``, which is taken as the mean over a batch's labels: each batch's counts as
    often as it has labels (integers other than -100; for targets that are no integers, samples).

    Args:
        model: digital or converted.
        data: fixed batches, as for :func:`fit`.
        metric: as for :func:`fit`.
        loss: as for :func:`fit`.
        forward: as for :func:`fit`.
        memory: keeps from one pass to the next how many samples fit in memory at once; the others of a larger
            batch follow in parts.

    Raises:
        NotFiniteError: when the model's output holds NaN or infinite values, or the perplexity is too large
            for a float.
        DataError: when there is no batch, or what a batch, the model or the metric gives is not understood;
            names the batch.
    """
    measured = metrics.Metric.of(metric)
    run = forward or default_forward
    device = next(model.parameters()).device
    memory = memory or InParts()

    def measured_parts() -> tuple[list[float], list[float]]:
        sums: list[float] = []
        counts: list[float] = []
        for number, given in enumerate(data):
            for part in memory.parts([given]):
                try:
                    batch = to_device(part, device)
                    output = run(model, batch)
                    added, size = measure_batch(output, batch, metric, loss)
                    sums.append(float(added))
                    counts.append(float(size))
                except DataError as error:
                    raise DataError(f"batch {number}: {error}") from error
        return sums, counts

    # A DataLoader moves the global generator at each pass: measuring must not change what is trained next.
    with rng_preserved(), digital(model), evaluating(model):
        sums, counts = until_it_fits(measured_parts, memory, lambda: None)
    if not sums:
        raise DataError("the validation data gave no batch: give data that can be iterated many times")
    add_up(measured, sums, counts)  # checks every part
    total = count = 0.0
    for part, size in zip(sums, counts, strict=True):
        total += part
        count += size
    return Measure(measured.name, total, count, final_value(measured, total, count))


def measure_batch(
    output: Any, batch: Any, metric: Metric = "accuracy", loss: Loss = functional.cross_entropy
) -> tuple[Tensor | float, Tensor | float]:
    """Sum and count of a metric on one batch, as :func:`measure` adds them up.

    Raises:
        DataError: when what the batch, the model or the metric gives is not understood.
    """
    measured = metrics.Metric.of(metric)
    if measured.function is not None or measured.name == "accuracy":
        return measured.measure(output, batch)
    size = labels_in(batch)
    # The mean over no label is NaN.
    return (loss_of(loss, output, batch) * size if size else 0.0), size


def loss_of(loss: Loss, output: Any, batch: Any) -> Tensor:
    """The loss of a model's output on a batch.

    torch's ``cross_entropy`` itself also takes logits with the classes last, (..., C) with labels (...), and
    labels of any integer type.

    Raises:
        DataError: when the batch has no labels, the loss fails (it is named), or is not one number.
    """
    given, target = scores(output), target_of(batch)
    if loss is functional.cross_entropy and isinstance(given, Tensor) and isinstance(target, Tensor):
        if target.dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
            target = target.long()
        classes_second = given.shape[:1] + given.shape[2:]
        if given.ndim > 2 and target.shape == given.shape[:-1] != classes_second:
            given, target = given.flatten(0, -2), target.flatten()
    try:
        value = loss(given, target)
    except AnalogNoiseError:
        raise
    except Exception as error:
        name = getattr(loss, "__name__", type(loss).__name__)
        raise DataError(f"the loss {name!r} failed ({type(error).__name__}: {error})") from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
        raise DataError(f"the loss function returned a value of {found}, expected a tensor with one number")
    return value


def scores(output: Any) -> Any:
    """A model's output, or the logits in it."""
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return output if found is None else found


def target_of(batch: Any) -> Any:
    """The last part of a tuple or list, or a dict's labels; unlike evaluation's, of any type.

    Raises:
        DataError: when there is none.
    """
    if isinstance(batch, Mapping):
        for name in LABELS:
            if name in batch:
                return batch[name]
        raise DataError(
            f"a batch with the keys {', '.join(map(str, batch))} has no labels: name them one of "
            f"{', '.join(LABELS)}"
        )
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        return batch[-1]
    kind = type(batch).__name__
    parts = f" of {len(batch)} parts" if isinstance(batch, (tuple, list)) else ""
    raise DataError(f"a batch is a {kind}{parts}, expected (x, y) or a dict with labels")


def size_of(batch: Any) -> int:
    """Number of samples, by the labels' first axis."""
    target = target_of(batch)
    return len(target) if isinstance(target, Tensor) and target.ndim else 1


def labels_in(batch: Any) -> int:
    """Number of labels that count, or of samples where the targets are no class numbers."""
    target = target_of(batch)
    if not isinstance(target, Tensor) or target.is_floating_point() or target.is_complex():
        return size_of(batch)
    return int((target != IGNORE_INDEX).sum())
