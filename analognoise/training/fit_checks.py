"""What :func:`analognoise.fit` asks of its arguments before it trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DistributedSampler

from analognoise.errors import DataError, MethodError, ModelError, nearest
from analognoise.printing import kind_of
from analognoise.processes import Processes
from analognoise.quantized import input_ranges_to_come

# What tells trainings apart, in the order of what is handed over.
SETTINGS = (
    "batches in an epoch",
    "epochs",
    "method",
    "seed",
    "lr",
    "schedule",
    "momentum",
    "weight_decay",
    "sync",
)


def check_processes(processes: Processes, train: Any, settings: tuple[Any, ...]) -> None:
    """Raise where processes would train past each other, or wait for each other for ever."""
    sampler = getattr(train, "sampler", None)
    if isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1 and processes.count == 1:
        raise ModelError(
            f"the training data are split over {sampler.num_replicas} processes (DistributedSampler), but "
            "the model is not: wrap it as torch.nn.parallel.DistributedDataParallel(model)"
        )
    for rank, other in enumerate(processes.gather(settings)):
        for name, own, found in zip(SETTINGS, settings, other, strict=True):
            if own != found:
                raise DataError(
                    f"process {processes.rank} has {name}: {own!r}, and process {rank} {found!r}: all "
                    "processes must train alike"
                )


def check_prepared(processes: Processes, method: str, model: nn.Module, prepared: nn.Module) -> None:
    """Raise unless a model in several processes is the one that the method trains, and the same in all.

    Raises:
        MethodError: where the method would train a twin that the wrapper does not know.
        ModelError: where each process would begin the ranges of inputs from its own data.
    """
    if prepared is not model and processes.wrapped:
        raise MethodError(
            f"method {method!r} trains a twin of the model, which DistributedDataParallel would not see: "
            f"wrap what analognoise.parse_method({method!r}).prepare(model) gives"
        )
    waiting = input_ranges_to_come(prepared) if processes.count > 1 else []
    if waiting:
        raise ModelError(
            f"layer {waiting[0]!r} takes the range of its inputs from the first ones that it sees, which "
            "differ between processes: run the same batch through the quantized model before wrapping it"
        )


def check_numbers(epochs: Any, lr: Any, momentum: Any, weight_decay: Any, seed: Any) -> None:
    """Raise a DataError for a number that cannot be."""
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


def check_functions(**functions: Any) -> None:
    """Raise a DataError for what is no function; all but the loss may be None."""
    for name, function in functions.items():
        if not callable(function) and (function is not None or name == "loss"):
            raise DataError(f"{name} must be a function, found {function!r}")


def check_inputs(model: Any, train: Any, schedule: Any, schedules: list[str], validation: Any) -> int:
    """Number of batches in an epoch, once model, data and schedule are known to be possible."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model must be a torch.nn.Module, found {type(model).__name__}")
    if schedule not in schedules:
        suggestion = nearest(schedule, schedules) if isinstance(schedule, str) else ""
        raise DataError(f"unknown schedule {schedule!r}{suggestion}: known are {', '.join(schedules)}")
    for name, data in (("training", train), ("validation", validation)):
        if data is not None and (
            isinstance(data, (str, bytes, Mapping, Tensor))
            or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__"))
        ):
            raise DataError(
                f"the {name} data is {kind_of(data)}: give a DataLoader or a list of batches (x, y)"
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
