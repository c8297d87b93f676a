"""The training loop that every recipe goes through."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from analognoise.allocator import keep_freed_memory
from analognoise.calibration import learned_ranges
from analognoise.conversion import check_finite
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import DataError, ModelError, TrainingError
from analognoise.halving import InParts
from analognoise.metrics import Metric as Measured
from analognoise.metrics import NotFiniteError, final_value
from analognoise.processes import Processes, unwrapped
from analognoise.quantized import quantizer_ranges
from analognoise.seeds import derive_seed, rng_preserved
from analognoise.training.breakdown import FiniteBuffers, diverged, explained, mean_loss, refuse_broken
from analognoise.training.checkpoint import Checkpoint
from analognoise.training.delegate import OptimizerAround
from analognoise.training.fit_checks import (
    SETTINGS,
    check_functions,
    check_inputs,
    check_numbers,
    check_prepared,
    check_processes,
)
from analognoise.training.history import Epoch, History
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
from analognoise.training.resuming import Resumption, characteristics, set_epoch
from analognoise.training.wrapper import WrappedOptimizer

# Steps between two looks at the losses where a look is a wait for the device.
_LOOK = 50


def _cosine(done: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * done))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": _cosine,
    "linear": lambda done: 1.0 - done,
    "constant": lambda done: 1.0,
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
    sync: str = "all",
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
) -> History:
    """Train a model in place by a recipe, from the weights it has; the weights of the last step are kept.

    The base optimizer is SGD. The result depends on the weights, the data, the settings and the seed alone:
    dropout and a loader that shuffles by the global generators start from the seed, and the generators are
    left as found. Nothing is chosen by the validation data.

    In several processes (``torchrun``) give each the model in ``DistributedDataParallel``, and loaders with a
    ``DistributedSampler``, or validation data whole. All processes return the same history, of all the data.

    Args:
        model: digital or converted; both train the digital weights. Where the method trains a quantized
            twin, the weights of the given model are its float weights; :attr:`History.trained` is the twin.
        train: batches ``(x, y)`` or dicts, with a length; iterated once an epoch (``set_epoch(epoch)`` of the
            data, or of a loader's sampler, is called before, where it exists).
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
        on_epoch: called with an :class:`Epoch` after each; in several processes by the first alone.
        sync: in several processes, whether all take the same perturbation of the weights ("all") or each its
            own ("worker"): see :class:`WrappedOptimizer`.
        checkpoint: a file to go on from. It is written after the last epoch, and after those before it,
            though not more often than every two seconds nor in more than a twentieth of the time. With the
            file there, the same call goes on from it, with the numbers of a training left alone
            (docs/methods.md, "Going on after an interruption"); of one that was finished it gives the model
            and the history again. Delete it to train anew.

    Returns:
        The history.

    Raises:
        MethodError: for an unknown method or hyperparameter, or a missing profile.
        ModelError: when no parameter can be trained.
        DataError: when a setting is impossible, the data have no length or no batch, or a batch or what the
            metric gives is not understood; with a checkpoint in several processes, and where data do not go
            on from it as they did.
        ResultsError: when the checkpoint is damaged, of another training, in use by another process, or
            cannot be written.
        TrainingError: when the loss, a weight, a buffer or the output on the validation data becomes NaN or
            infinite; names the method, the epoch and the step.
    """
    recipe = parse_method(recipe)
    check_numbers(epochs, lr, momentum, weight_decay, seed)
    check_functions(loss=loss, forward=forward, on_epoch=on_epoch)
    per_epoch = check_inputs(model, train, schedule, list(SCHEDULES), validation)
    steps = per_epoch * epochs
    measured_as = metric_name(metric)
    factor = SCHEDULES[schedule]
    processes, whole = Processes(model), model
    model = unwrapped(model)  # learns, and is measured; batches go through the whole
    settings = (per_epoch, epochs, recipe.label, seed, lr, schedule, momentum, weight_decay, sync)
    check_processes(processes, train, settings)
    if checkpoint is not None and processes.count > 1:
        raise DataError(f"a checkpoint is for a training in one process, found {processes.count}")
    file = checkpoint if checkpoint is None or isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    training = dict(zip(SETTINGS, settings, strict=True))
    prepared = recipe.prepare(model, profile=profile, seed=derive_seed("prepare", seed))
    check_prepared(processes, recipe.label, model, prepared)
    whole, model = (whole if prepared is model else prepared), prepared
    modes = [(module, module.training) for module in whole.modules()]
    grids = quantizer_ranges(model).values()
    own = {id(parameter) for parameter in grids}
    parameters = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    if not parameters:
        raise ModelError(
            f"{type(model).__name__} has no parameter with requires_grad=True: there is nothing to train"
        )
    base = torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
    converters = list(learned_ranges(model).values())
    if converters or grids:
        base.add_param_group({"params": [*converters, *grids], "weight_decay": 0.0})
    optimizer = recipe.build(
        base, model, steps=steps, epochs=epochs, seed=derive_seed("fit noise", seed), profile=profile
    )
    if isinstance(optimizer, OptimizerAround) or (processes.count > 1 and converters):
        if not isinstance(optimizer, OptimizerAround):
            optimizer = WrappedOptimizer(base, model)
        optimizer.distribute(whole, sync=sync)
    device = next(model.parameters()).device
    run = forward or default_forward
    at_once = device.type == "cpu" and processes.count == 1
    history = History(measured_as, trained=model)
    functions = {"loss": loss, "forward": forward, "metric": metric}
    if file is not None:
        training |= characteristics(model, profile, functions, validation is not None)
    stream = processes.own_seed(derive_seed("fit", seed))
    resumption = Resumption(file, training, model, optimizer, train, history, stream)
    buffers = FiniteBuffers(model)
    memory = InParts()
    batch: Any = None

    step = passes = 0
    keep_freed_memory()

    def closure() -> Tensor:
        nonlocal passes
        passes += 1
        optimizer.zero_grad()
        value = loss_of(loss, run(whole, batch), batch)
        value.backward()
        return value

    try:
        with (
            nullcontext() if file is None or file is checkpoint else file.held(),
            rng_preserved(stream),
            torch.enable_grad(),
            warnings.catch_warnings(),
        ):
            # Without a gradient scaler a step that a method leaves out for such a gradient is a breakdown.
            warnings.filterwarnings("error", ".*the norm of the gradient is", RuntimeWarning)
            done = resumption.resume()
            step, passes = resumption.step, history.gradients[-1] if done else 0
            rates = [(group, group["lr"]) for group in optimizer.param_groups]
            for epoch in range(done + 1, epochs + 1):
                resumption.begin_epoch()
                whole.train()
                set_epoch(train, epoch - 1)
                total, count = torch.zeros((), device=device), 0
                losses: list[Tensor] = []
                for number, batch in enumerate(train):
                    if not number:
                        resumption.first_batch(batch, step)
                    batch = to_device(batch, device)
                    now = factor(min(step / steps, 1.0))
                    for group, rate in rates:
                        group["lr"] = rate * now
                    try:
                        value = cast(Tensor, optimizer.step(closure))  # type: ignore[arg-type]
                    except Exception as error:
                        said = explained(error, recipe, epoch, number, batch)
                        if said is error:
                            raise
                        raise said from error
                    size = size_of(batch)
                    total += value.detach() * size
                    count += size
                    step += 1
                    losses.append(value.detach())
                    # Elsewhere to look is to wait for the device, or to leave other processes waiting.
                    if at_once or (number % _LOOK == 0 and processes.count == 1):
                        refuse_broken(losses, recipe, epoch, number)
                        losses.clear()
                if not count:
                    raise DataError(
                        "the training data gave no batch in an epoch: give data that can be iterated many "
                        "times"
                    )
                mean = mean_loss(processes, float(total), count, losses, recipe, epoch, number)
                try:
                    check_finite(model)
                except ModelError as error:
                    raise TrainingError(diverged(recipe, epoch, str(error), number)) from error
                processes.share_buffers()
                buffers.refuse_broken(processes, recipe, epoch, number)
                measured = None
                if validation is not None:
                    try:
                        sums = measure(
                            model, validation, metric=metric, loss=loss, forward=forward, memory=memory
                        )
                    except NotFiniteError as error:
                        raise TrainingError(diverged(recipe, epoch, f"validation data, {error}")) from error
                    except DataError as error:
                        raise DataError(f"validation data, {error}") from error
                    measured = sums.value
                    if processes.count > 1:
                        parts = processes.gather((sums.sum, sums.count))
                        measured = final_value(Measured.of(metric), *map(sum, zip(*parts, strict=True)))
                history.train_loss.append(mean)
                history.validation.append(measured)
                history.gradients.append(passes)
                if on_epoch is not None and processes.rank == 0:
                    on_epoch(Epoch(epoch, epochs, mean, measured, history.gradients[-1]))
            resumption.finish(step)
    finally:
        for module, mode in modes:
            module.training = mode
    return history
