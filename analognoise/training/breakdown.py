"""A training that breaks down is told by its method, epoch and step."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from analognoise.batches import is_out_of_memory
from analognoise.errors import DataError, ModelError, TrainingError
from analognoise.printing import counted
from analognoise.processes import Processes
from analognoise.training.measure import size_of
from analognoise.training.recipes import Recipe

# Before a method's own words; it counts the steps of the whole training, from 0.
_STEP = re.compile(r"^\w+, step \d+: ")


def explained(error: Exception, recipe: Recipe, epoch: int, number: int, batch: Any) -> Exception:
    """An error that ended a step, in the words of the training."""
    if is_out_of_memory(error):
        size = size_of(batch)
        what = (
            f"give smaller batches, of {size // 2} for example (to keep the step of a large one, accumulate "
            "the gradients of its parts in the closure of an optimizer; with batch normalization that is not "
            "the same), or take a device with more memory"
        )
        return DataError(
            f"training by method {recipe.label!r} ran out of memory in epoch {epoch}, step {number + 1}, on "
            f"a batch of {counted(size, 'sample')}: "
            f"{what if size > 1 else 'take a device with more memory, or a smaller model'}"
        )
    if isinstance(error, (ModelError, TrainingError, RuntimeWarning)):
        # A method that looks at the weights or gradients finds them broken before a loss shows it.
        return TrainingError(diverged(recipe, epoch, _STEP.sub("", str(error)), number))
    if isinstance(error, DataError):
        return DataError(f"training data, batch {number}: {error}")
    return error


def refuse_broken(losses: list[Tensor], recipe: Recipe, epoch: int, last: int) -> None:
    """Raise if one of the latest losses, up to that of the epoch's step ``last``, is not finite."""
    found = _first_broken(losses, last)
    if found is not None:
        raise TrainingError(diverged(recipe, epoch, f"the loss became {found[1]}", found[0]))


def _first_broken(losses: list[Tensor], last: int) -> tuple[int, float] | None:
    """Step and value of the first loss that is not finite."""
    if not losses:
        return None
    found = torch.stack([value.reshape(()) for value in losses]).tolist()
    steps = range(last + 1 - len(found), last + 1)
    return next(((step, v) for step, v in zip(steps, found, strict=True) if not math.isfinite(v)), None)


def mean_loss(
    processes: Processes,
    total: float,
    count: int,
    losses: list[Tensor],
    recipe: Recipe,
    epoch: int,
    last: int,
) -> float:
    """The epoch's mean loss over all processes; every one of them raises where one's is not finite."""
    parts = processes.gather((total, count, None if math.isfinite(total) else _first_broken(losses, last)))
    broken = [found for _, _, found in parts if found is not None]
    if broken:
        step, value = min(broken)
        raise TrainingError(diverged(recipe, epoch, f"the loss became {value}", step))
    mean = sum(part for part, _, _ in parts) / sum(size for _, size, _ in parts)
    if not math.isfinite(mean):
        raise TrainingError(diverged(recipe, epoch, f"the mean of its losses is {mean}", last))
    return mean


class FiniteBuffers:
    """Buffers of a model that hold finite numbers before a training, such as running variances.

    Args:
        model: the module that is trained.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names = {name for name, buffer in model.named_buffers() if not _broken_in(buffer)}

    def refuse_broken(self, processes: Processes, recipe: Recipe, epoch: int, last: int) -> None:
        """Raise, in all processes, if one of them holds others after the epoch's step ``last``."""
        for found in processes.gather(self._broken()):
            if found:
                raise TrainingError(diverged(recipe, epoch, found, last))

    def _broken(self) -> str:
        """The first of them that holds others, in words."""
        for name, buffer in self._model.named_buffers():
            bad = _broken_in(buffer) if name in self._names else 0
            if bad:
                return f"buffer {name!r}: {bad} of its {counted(buffer.numel(), 'value')} are NaN or infinite"
        return ""


def _broken_in(values: Tensor) -> int:
    if values.layout is not torch.strided or not (values.is_floating_point() or values.is_complex()):
        return 0
    return int((~torch.isfinite(values)).sum())


def diverged(recipe: Recipe, epoch: int, what: str, number: int | None = None) -> str:
    """The sentence that says so; steps are counted from 0, and from 1 in words."""
    place = f"epoch {epoch}" if number is None else f"epoch {epoch}, step {number + 1}"
    return (
        f"training by method {recipe.label!r} broke down in {place}: {what}; "
        "a smaller lr or a milder method may help"
    )
