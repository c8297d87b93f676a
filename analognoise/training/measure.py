"""What training needs to know about batches, outputs and metrics.

The conventions are those of evaluation: batches ``(x, y)`` or dicts, outputs that are logits or hold them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from analognoise.chip import digital, evaluating
from analognoise.errors import DataError
from analognoise.seeds import rng_preserved

Metric = str | Callable[[Any, Any], tuple[float, float]]
METRICS = ("accuracy", "loss", "perplexity")
LABELS = ("labels", "label", "y")


def metric_name(metric: Metric) -> str:
    """What tables call the metric."""
    return metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")


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
    loss: Callable[[Any, Any], Tensor] = functional.cross_entropy,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> Measure:
    """A metric of the digital weights in eval mode; mode and buffers are left as found.

    Args:
        model: digital or converted.
        data: fixed batches, as for :func:`fit`.
        metric: as for :func:`fit`.
        loss: as for :func:`fit`; a batch's loss counts once per sample.
        forward: as for :func:`fit`.

    Raises:
        DataError: when there is no batch.
    """
    run = forward or default_forward
    device = next(model.parameters()).device
    total = count = 0.0
    # A DataLoader moves the global generator at each pass: measuring must not change what is trained next.
    with rng_preserved(), digital(model), evaluating(model):
        for batch in data:
            batch = to_device(batch, device)
            output = run(model, batch)
            part: Any
            if callable(metric):
                part, size = metric(output, batch)
            elif metric == "accuracy":
                part, size = _hits(scores(output), target_of(batch))
            else:
                size = size_of(batch)
                part = loss(scores(output), target_of(batch)) * size
            total += float(part)
            count += float(size)
    if not count:
        raise DataError("the validation data gave no sample: give data that can be iterated many times")
    value = total / count
    return Measure(metric_name(metric), total, count, math.exp(value) if metric == "perplexity" else value)


def _hits(output: Any, target: Any) -> tuple[Tensor, int]:
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or output.ndim < 2:
        kinds = f"{type(output).__name__} and {type(target).__name__}"
        raise DataError(
            f"accuracy needs logits (N, classes) and labels (N), found {kinds}: give another metric"
        )
    best = output.argmax(1)
    if best.shape != target.shape:
        raise DataError(
            f"accuracy needs logits (N, classes, ...) and labels (N, ...), found {tuple(output.shape)} and "
            f"{tuple(target.shape)}: give another metric"
        )
    return (best == target).sum(), target.numel()


def default_forward(model: nn.Module, batch: Any) -> Any:
    """``model(x)`` of ``(x, y)``, or ``model(**rest)`` of a dict without its labels.

    Raises:
        DataError: for another kind of batch.
    """
    if isinstance(batch, Mapping):
        return model(**{name: value for name, value in batch.items() if name not in LABELS})
    if isinstance(batch, tuple) and len(batch) == 2:
        return model(batch[0])
    raise DataError(
        f"a training batch is a {_kind(batch)}, expected (x, y) or a dict: for others give "
        "forward=function(model, batch)"
    )


def scores(output: Any) -> Any:
    """A model's output, or the logits in it."""
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return output if found is None else found


def target_of(batch: Any) -> Any:
    """The last part of a tuple, or a dict's labels.

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
    if isinstance(batch, tuple) and len(batch) >= 2:
        return batch[-1]
    raise DataError(f"a batch is a {_kind(batch)}, expected (x, y) or a dict with labels")


def _kind(batch: Any) -> str:
    kind = type(batch).__name__
    return f"{kind} of {len(batch)} parts" if isinstance(batch, tuple) else kind


def size_of(batch: Any) -> int:
    """Number of samples, by the labels' first axis."""
    target = target_of(batch)
    return len(target) if isinstance(target, Tensor) and target.ndim else 1


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor on the device; lists become tuples."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(to_device(value, device) for value in batch)
    return batch
