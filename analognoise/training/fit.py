"""The training loop that every recipe goes through."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from analognoise.calibration import learned_ranges
from analognoise.conversion import check_finite
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import DataError, ModelError, TrainingError, nearest
from analognoise.metrics import NotFiniteError
from analognoise.seeds import derive_seed, rng_preserved
from analognoise.training.measure import (
    Loss,
    Metric,
    default_forward,
    loss_of,
    measure,
    metric_name,
    size_of,
    to_device,
)
from analognoise.training.recipes import Recipe, parse_method


def _cosine(done: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * done))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": _cosine,
    "linear": lambda done: 1.0 - done,
    "constant": lambda done: 1.0,
}


@dataclass(frozen=True)
class Epoch:
    """What is known after an epoch.

    Attributes:
        epoch: number of the epoch, from 1.
        epochs: number of epochs of the whole training.
        train_loss: mean over the epoch's samples of the loss at each step's first pass.
        validation: the validation metric under the digital weights, or None.
        gradients: gradient evaluations (forward and backward passes) so far.
    """

    epoch: int
    epochs: int
    train_loss: float
    validation: float | None
    gradients: int


@dataclass
class History:
    """A training, epoch by epoch: the columns of :class:`Epoch` as lists."""

    metric: str
    train_loss: list[float] = field(default_factory=list)
    validation: list[float | None] = field(default_factory=list)
    gradients: list[int] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and text, for JSON."""
        return {
            "metric": self.metric,
            "train_loss": list(self.train_loss),
            "validation": list(self.validation),
            "gradients": list(self.gradients),
        }


def fit(
    model: nn.Module,
    train: Iterable[Any],
    *,
    recipe: str | Recipe,
    profile: DeviceProfile | None = None,
    epochs: int,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    schedule: str = "cosine",
    seed: int = 0,
    validation: Iterable[Any] | None = None,
    metric: Metric = "accuracy",
    loss: Loss = functional.cross_entropy,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> History:
    """Train a model in place by a recipe, from the weights it has; the weights of the last step are kept.

    The base optimizer is SGD. The result depends on the weights, the data, the settings and the seed alone:
    dropout and a loader that shuffles by the global generators start from the seed, and the generators are
    left as found. Nothing is chosen by the validation data.

    Args:
        model: digital or converted; both train the digital weights.
        train: batches ``(x, y)`` or dicts, with a length; iterated once an epoch (``set_epoch(epoch)`` is
            called before, where it exists).
        recipe: a method's name with modifiers and hyperparameters, or a :class:`Recipe`.
        profile: the device to train for, where the recipe needs one.
        epochs: passes over the training data, at least 1.
        lr: learning rate at the start, above 0.
        momentum: of SGD, at least 0 and below 1.
        weight_decay: of SGD, at least 0.
        schedule: of the learning rate over the steps: "cosine" or "linear" to 0, or "constant".
        seed: of dropout, of the recipe's noise, and of loaders without a generator of their own.
        validation: fixed batches for the metric after each epoch, computed with the digital weights in eval
            mode.
        metric: "accuracy", "loss", "perplexity" (of ``loss``), or a callable ``(output, batch) -> (sum,
            count)``. Labels of -100 do not count.
        loss: ``loss(output, target)``, a mean over the labels; the target is a tuple's last part, or a dict's
            "labels", "label" or "y"; an output object counts by its ``logits``, if it has any. torch's
            ``cross_entropy`` also takes logits (..., C) with the classes last.
        forward: ``forward(model, batch) -> output``; by default ``model(x)`` of ``(x, y)``, or
            ``model(**rest)`` of a dict without its labels.
        on_epoch: called with an :class:`Epoch` after each.

    Returns:
        The history.

    Raises:
        MethodError: for an unknown method or hyperparameter, or a missing profile.
        ModelError: when no parameter can be trained.
        DataError: when a setting is impossible, the data have no length or no batch, or a batch or what the
            metric gives is not understood.
        TrainingError: when the loss, a weight or the output on the validation data becomes NaN or infinite;
            names the method and the epoch.
    """
    recipe = parse_method(recipe)
    _check_numbers(epochs, lr, momentum, weight_decay, seed)
    _check_functions(loss=loss, forward=forward, on_epoch=on_epoch)
    steps = _check(model, train, schedule, validation) * epochs
    measured_as = metric_name(metric)
    factor = SCHEDULES[schedule]
    modes = [(module, module.training) for module in model.modules()]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ModelError(
            f"{type(model).__name__} has no parameter with requires_grad=True: there is nothing to train"
        )
    base = torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
    converters = list(learned_ranges(model).values())
    if converters:
        base.add_param_group({"params": converters, "weight_decay": 0.0})
    optimizer = recipe.build(base, model, steps=steps, seed=derive_seed("fit noise", seed), profile=profile)
    rates = [(group, group["lr"]) for group in optimizer.param_groups]
    device = next(model.parameters()).device
    run = forward or default_forward
    history = History(measured_as)
    batch: Any = None

    step = passes = 0

    def closure() -> Tensor:
        nonlocal passes
        passes += 1
        optimizer.zero_grad()
        value = loss_of(loss, run(model, batch), batch)
        value.backward()
        return value

    try:
        with rng_preserved(derive_seed("fit", seed)), torch.enable_grad(), warnings.catch_warnings():
            # Without a gradient scaler a step that a method leaves out for such a gradient is a breakdown.
            warnings.filterwarnings("error", ".*the norm of the gradient is", RuntimeWarning)
            for epoch in range(1, epochs + 1):
                model.train()
                if hasattr(train, "set_epoch"):
                    train.set_epoch(epoch - 1)
                total, count = torch.zeros((), device=device), 0
                for number, batch in enumerate(train):
                    batch = to_device(batch, device)
                    now = factor(min(step / steps, 1.0))
                    for group, rate in rates:
                        group["lr"] = rate * now
                    try:
                        value = cast(Tensor, optimizer.step(closure))  # type: ignore[arg-type]
                    except (ModelError, TrainingError, RuntimeWarning) as error:
                        # A method that looks at the weights or gradients finds them broken before a loss
                        # shows it.
                        raise TrainingError(_diverged(recipe, epoch, str(error))) from error
                    except DataError as error:
                        raise DataError(f"training data, batch {number}: {error}") from error
                    size = size_of(batch)
                    total += value.detach() * size
                    count += size
                    step += 1
                if not count:
                    raise DataError(
                        "the training data gave no batch in an epoch: give data that can be iterated many "
                        "times"
                    )
                mean = float(total) / count
                if not math.isfinite(mean):
                    raise TrainingError(_diverged(recipe, epoch, f"the loss became {mean}"))
                measured = None
                if validation is not None:
                    try:
                        sums = measure(model, validation, metric=metric, loss=loss, forward=forward)
                    except NotFiniteError as error:
                        raise TrainingError(_diverged(recipe, epoch, f"validation data, {error}")) from error
                    except DataError as error:
                        raise DataError(f"validation data, {error}") from error
                    measured = sums.value
                history.train_loss.append(mean)
                history.validation.append(measured)
                history.gradients.append(passes)
                if on_epoch is not None:
                    on_epoch(Epoch(epoch, epochs, mean, measured, history.gradients[-1]))
            try:
                check_finite(model)
            except ModelError as error:
                raise TrainingError(_diverged(recipe, epochs, str(error))) from error
    finally:
        for module, mode in modes:
            module.training = mode
    return history


def _diverged(recipe: Recipe, epoch: int, what: str) -> str:
    return (
        f"training by method {recipe.label!r} broke down in epoch {epoch}: {what}; "
        "a smaller lr or a milder method may help"
    )


def _check_numbers(epochs: Any, lr: Any, momentum: Any, weight_decay: Any, seed: Any) -> None:
    if not _is_whole(epochs) or epochs < 1:
        raise DataError(f"epochs must be a whole number of at least 1, found {epochs!r}")
    if not _is_finite(lr) or lr <= 0:
        raise DataError(f"lr must be finite and above 0, found {lr!r}")
    if not _is_finite(momentum) or not 0 <= momentum < 1:
        raise DataError(f"momentum must be a number, at least 0 and below 1, found {momentum!r}")
    if not _is_finite(weight_decay) or weight_decay < 0:
        raise DataError(f"weight_decay must be a finite number, at least 0, found {weight_decay!r}")
    if not _is_whole(seed):
        raise DataError(f"seed must be a whole number, found {seed!r}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _check_functions(**functions: Any) -> None:
    for name, function in functions.items():
        if not callable(function) and (function is not None or name == "loss"):
            raise DataError(f"{name} must be a function, found {function!r}")


def _check(model: Any, train: Any, schedule: Any, validation: Any) -> int:
    """Number of batches in an epoch, once model, data and schedule are known to be possible."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model must be a torch.nn.Module, found {type(model).__name__}")
    if schedule not in list(SCHEDULES):
        suggestion = nearest(schedule, SCHEDULES) if isinstance(schedule, str) else ""
        raise DataError(f"unknown schedule {schedule!r}{suggestion}: known are {', '.join(SCHEDULES)}")
    for name, data in (("training", train), ("validation", validation)):
        if data is not None and (
            isinstance(data, (str, bytes, Mapping, Tensor))
            or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__"))
        ):
            raise DataError(
                f"the {name} data is a {type(data).__name__}: give a DataLoader or a list of batches (x, y)"
            )
    try:
        batches = len(train)
    except TypeError:
        raise DataError(
            f"training data of type {type(train).__name__} have no length: schedules need the number of "
            "batches in an epoch"
        ) from None
    if not batches:
        raise DataError("the training data hold no batch")
    return batches
