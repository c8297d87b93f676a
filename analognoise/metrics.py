"""What is measured on a batch: accuracy, cross-entropy, perplexity, or what a user's function returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from analognoise.batches import Batch
from analognoise.errors import AnalogNoiseError, DataError, nearest
from analognoise.printing import counted, kind_of

Forward = Callable[[torch.nn.Module, Batch], Any]
MetricFunction = Callable[[Any, Batch], Any]

LABELS = ("labels", "label", "y")
METRICS = ("accuracy", "loss", "perplexity")
IGNORE_INDEX = -100  # torch's default for labels that do not count


class NotFiniteError(DataError):
    """A model whose output holds NaN or infinite values, or whose perplexity is too large for a float."""


def default_forward(model: torch.nn.Module, batch: Batch) -> Any:
    """``model(x)`` for a batch ``(x, y)``; for a dict, ``model(**batch)`` without the labels.

    Raises:
        DataError: when the batch is neither.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return model(batch[0])
    if isinstance(batch, Mapping):
        return model(**{key: value for key, value in batch.items() if key not in LABELS})
    parts = f" of {len(batch)} parts" if isinstance(batch, (tuple, list)) else ""
    raise DataError(
        f"found a {type(batch).__name__}{parts}, expected (x, y) or a dict: for other batches give "
        "forward=function(model, batch)"
    )


def labels_of(batch: Batch) -> Tensor:
    """The labels of a batch: ``y`` of ``(x, y)`` (the last part of a longer tuple), or the dict's "labels",
    "label" or "y".

    Raises:
        DataError: when there are none.
    """
    if isinstance(batch, (tuple, list)) and len(batch) >= 2 and isinstance(batch[-1], Tensor):
        return batch[-1]
    if isinstance(batch, Mapping):
        for name in LABELS:
            if isinstance(batch.get(name), Tensor):
                return batch[name]
        raise DataError(
            f"has no labels: expected a tensor under {', '.join(map(repr, LABELS))}, found "
            f"{sorted(map(str, batch))}"
        )
    raise DataError(
        f"found a {type(batch).__name__}, expected (x, y) with y a tensor of class numbers, or a dict with "
        "labels"
    )


def logits_of(output: Any) -> Tensor:
    """The scores in a model's output: the tensor itself, its ``.logits``, or its ``["logits"]``.

    Raises:
        DataError: when there are none.
    """
    found = output
    if not isinstance(output, Tensor):
        found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        raise DataError(
            f"the model's output is {kind_of(output)}, expected a tensor or an object with logits"
        )
    return found


@dataclass(frozen=True)
class Metric:
    """A metric that adds up over batches.

    Attributes:
        name: "accuracy", "loss", "perplexity", or the name of the user's function.
        function: the user's function ``(output, batch) -> (sum, count)``, None for the built-in ones. Its
            attribute ``higher_is_better`` says which values are better, larger ones if it has none.

    "accuracy" is the share of labels hit by the largest logit, "loss" the mean cross-entropy in nats,
    "perplexity" its exponential. Logits have shape (N, C), (N, C, ...) as in torch's cross_entropy, or (...,
    C) as in language models; labels hold class numbers, -100 for those that do not count, and stand where the
    logits that predict them stand.
    """

    name: str
    function: MetricFunction | None = None

    @classmethod
    def of(cls, metric: str | MetricFunction) -> Metric:
        """The metric named, or the user's function wrapped.

        Raises:
            DataError: when the name is unknown, or the argument is neither a name nor a function.
        """
        if isinstance(metric, str):
            if metric not in METRICS:
                raise DataError(
                    f"unknown metric {metric!r}{nearest(metric, METRICS)}: known are {', '.join(METRICS)}, "
                    "or pass a function"
                )
            return cls(metric)
        if not callable(metric):
            raise DataError(
                f"the metric is {kind_of(metric)}: pass one of {', '.join(METRICS)}, or a function "
                "(output, batch) -> (sum, count)"
            )
        name = str(getattr(metric, "__name__", type(metric).__name__))
        if name in METRICS:
            name = f"{name} (own)"
        return cls(name, metric)

    @property
    def higher_is_better(self) -> bool | None:
        """What the user's function says by an attribute of this name, as those of torchmetrics do; None where
        it has none.

        Raises:
            DataError: when it is neither True nor False.
        """
        found = getattr(self.function, "higher_is_better", None)
        if found is not None and not isinstance(found, bool):
            raise DataError(f"the metric {self.name!r} has higher_is_better = {found!r}: write True or False")
        return found

    def measure(
        self, output: Any, batch: Batch, count: float | None = None
    ) -> tuple[Tensor | float, Tensor | float]:
        """Sum and count of one batch; tensors where possible, so that the loop need not wait for the device.

        Args:
            output: what the forward returned.
            batch: what it was given.
            count: the batch's count if it is known from an earlier pass (a user's function is asked anew).
                Without it the labels' values are checked too, which waits for the device.

        Raises:
            DataError: when shapes, types or labels do not fit, or a user's function fails (it is named).
        """
        if self.function is not None:
            return self._own(self.function, output, batch)
        logits, labels = _aligned(logits_of(output), labels_of(batch))
        if count is None:
            _check_labels(logits, labels, batch)
            count = int((labels != IGNORE_INDEX).sum())
        if self.name == "accuracy":
            top, index = logits.max(dim=1)
            if count != labels.numel():
                top = torch.where(labels != IGNORE_INDEX, top, 0)
            # zero times a NaN or infinite score is NaN: a broken output must not pass for a wrong answer
            return torch.add((index == labels).sum(), top.sum(dtype=torch.float32), alpha=0), count
        losses = functional.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="none")
        return losses.sum(dtype=None if losses.device.type == "mps" else torch.float64), count

    def _own(
        self, function: MetricFunction, output: Any, batch: Batch
    ) -> tuple[Tensor | float, Tensor | float]:
        try:
            result = function(output, batch)
        except AnalogNoiseError:
            raise
        except Exception as error:
            raise DataError(f"the metric {self.name!r} failed ({type(error).__name__}: {error})") from error
        return _pair(result, f"the metric {self.name!r}")


def add_up(
    metric: Metric, sums: Sequence[Tensor | float], counts: Sequence[Tensor | float]
) -> tuple[float, float]:
    """Sum and count over all batches of a pass, each batch's checked; waits for the device once.

    Raises:
        NotFiniteError: when a batch's sum of a built-in metric is not finite; it names the batch.
        DataError: when that of a user's function or a count is not finite, or a count is not positive (a
            built-in metric may have batches without a label that counts, but not all of them); it names the
            batch.
    """
    added, counted = _numbers(sums), _numbers(counts)
    for number, (total, count) in enumerate(zip(added, counted, strict=True)):
        if not (math.isfinite(total) and math.isfinite(count)):
            own = metric.function is not None
            of = f"metric {metric.name!r}" if own else metric.name
            found = f"batch {number}: the {of} has the sum {total:g} over the count {count:g}"
            if not own:
                raise NotFiniteError(f"{found}; the model's output holds NaN or infinite values")
            raise DataError(f"{found}; expected finite numbers")
        if count <= 0 and metric.function is not None:
            raise DataError(
                f"batch {number}: the metric {metric.name!r} returned the count {count:g}, "
                "expected more than 0"
            )
    total, count = math.fsum(added), math.fsum(counted)
    if count <= 0:
        raise DataError(f"batch 0 to {len(added) - 1}: no label counts (all are {IGNORE_INDEX})")
    return total, count


def _numbers(parts: Sequence[Tensor | float]) -> list[float]:
    if len(parts) == 1 or not isinstance(parts[0], Tensor):
        return [float(part) for part in parts]
    scalars = [part for part in parts if isinstance(part, Tensor) and part.dim() == 0]
    if len(scalars) == len(parts) and len({part.device for part in scalars}) == 1:
        return [float(number) for number in torch.stack(scalars).tolist()]
    return [float(part) for part in parts]


def final_value(metric: Metric, total: float, count: float) -> float:
    """The metric of a whole pass: sum / count, exponentiated for perplexity.

    Raises:
        NotFiniteError: when the perplexity is too large for a float.
    """
    mean = total / count
    if metric.name != "perplexity":
        return mean
    try:
        return math.exp(mean)
    except OverflowError:
        raise NotFiniteError(f"a mean loss of {mean:g} has no finite perplexity: use metric='loss'") from None


def _pair(result: Any, who: str) -> tuple[Tensor | float, Tensor | float]:
    if not (isinstance(result, (tuple, list)) and len(result) == 2):
        found = type(result).__name__
        if isinstance(result, (tuple, list)):
            found += f" of {len(result)}"
        elif isinstance(result, Tensor):
            found += f" of shape {tuple(result.shape)}"
        raise DataError(f"{who} returned a {found}, expected a pair (sum, count)")
    for name, part in zip(("sum", "count"), result, strict=True):
        if problem := _no_number(part):
            raise DataError(f"{who} returned a {name} {problem}, expected one number")
    return result[0], result[1]


def _no_number(part: Any) -> str:
    """Why something is not one real number; tensors are not looked into, which would wait for the device."""
    if isinstance(part, Tensor):
        if part.numel() != 1:
            return f"of shape {tuple(part.shape)}"
        if part.is_meta:
            return "on the 'meta' device, which holds no values"
        return f"of type {part.dtype}" if part.is_complex() else ""
    # NumPy counts spans of time among its integers, and complex numbers among its numbers.
    if not isinstance(part, (int, float, np.integer, np.floating)) or isinstance(part, np.timedelta64):
        return f"of type {type(part).__name__}"
    try:
        float(part)
    except OverflowError:
        return f"that is too large for a float (an int of {int(part).bit_length()} bits)"
    return ""


def _aligned(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of shape (n, C) or (N, C, ...) and labels of shape (n) or (N, ...)."""
    if labels.dtype != torch.int64:
        if labels.dtype not in (torch.int32, torch.int16, torch.int8, torch.uint8):
            raise DataError(
                f"labels are {labels.dtype}, expected integer class numbers; for other targets give a metric "
                "of your own"
            )
        labels = labels.long()
    found, scores = labels.shape, logits.shape
    if len(found) == 1 and len(scores) == 2 and scores[0] == found[0] and scores[1] > 1:
        return logits, labels  # the common case, told apart quickly
    shape = tuple(labels.shape)
    second = logits.dim() >= 2 and shape == (logits.shape[0], *logits.shape[2:])
    last = logits.dim() >= 3 and shape == tuple(logits.shape[:-1])
    if second and last:
        raise DataError(
            f"logits of shape {tuple(logits.shape)} do not tell which axis is the class: use another batch "
            "or sequence length, or a metric of your own"
        )
    if not (second or last):
        raise DataError(
            f"logits of shape {tuple(logits.shape)} do not fit labels of shape {shape}: expected (N, C) "
            "and (N,)"
        )
    if last:
        logits, labels = logits.flatten(0, -2), labels.flatten()
    if logits.shape[1] < 2:
        raise DataError(
            "the model gives one score per sample, expected one per class (at least 2): for such models "
            "give a metric of your own"
        )
    return logits, labels


def _check_labels(logits: Tensor, labels: Tensor, batch: Batch) -> None:
    outside = (labels != IGNORE_INDEX) & ((labels < 0) | (labels >= logits.shape[1]))
    if outside.any():
        raise DataError(
            f"label {int(labels[outside][0])} is not a class of a model with "
            f"{counted(logits.shape[1], 'class')}"
        )
    given = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if isinstance(given, Tensor) and given.numel() == labels.numel():
        same = (labels.flatten() == given.flatten()) | (labels.flatten() == IGNORE_INDEX)
        if same.all():
            raise DataError(
                "labels equal input_ids, so they do not stand where the logits that predict them stand: "
                "shift them "
                "(labels[:, :-1] = input_ids[:, 1:], the last one -100)"
            )
