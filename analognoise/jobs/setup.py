"""What several jobs need before they start: the model, the machine, and options that exclude each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from analognoise.errors import DataError
from analognoise.tasks import (
    Task,
    get_task,
    load_for_chip,
    load_model,
    load_weights,
)
from analognoise.tasks.weights import file_digest

Say = Callable[[str], None]
WhatIf = tuple[Sequence[str], Sequence[str], str | None]  # texts of --set, --scale and --periphery


def either(task: str | None, model: str | None) -> Task | None:
    """The task, or None for a model of the user's own.

    Raises:
        DataError: when both or neither are given.
    """
    if (task is None) == (model is None):
        found = "neither" if task is None else "both"
        raise DataError(f"name either --task or --model, found {found}: for example --task digits")
    return get_task(task) if task is not None else None


def either_trained(task: str | None, model: str | None, weights: Path | None, seed: int) -> Task | None:
    """As :func:`either`, for commands that need trained weights; the seed of the chips is checked, too.

    Raises:
        DataError: also when a task comes without weights, or the seed is negative.
    """
    if seed < 0:
        raise DataError(f"--seed must not be negative, found {seed}")
    found = either(task, model)
    if found is not None and weights is None:
        raise DataError(
            f"task {found.name!r} builds an untrained model: name trained weights with --weights, "
            "for example the model.safetensors that 'analognoise train' wrote"
        )
    return found


def build_model(
    task: Task | None,
    model: str | None,
    weights: Path | None,
    seed: int,
    device: str,
    *,
    for_chip: bool = False,
) -> nn.Module:
    """The model, on the device, with the weights of a file if one is given; ``for_chip`` with the quantized
    weights of a quantized model's file.

    Raises:
        ModelError: when it cannot be built, or the weights do not fit.
        DataError: when there is no such device.
    """
    place = torch_device(device)
    built = task.model(seed) if task is not None else load_model(str(model), seed=seed)
    if weights is not None:
        if for_chip:
            built = load_for_chip(built, weights)
        else:
            load_weights(built, weights)
    return built.to(place)


def weights_of(file: Path | None) -> str | None:
    """The SHA-256 digest of a weights file, for the settings of a run."""
    return None if file is None else file_digest(file)


def torch_device(name: str) -> torch.device:
    """The device torch computes on.

    Raises:
        DataError: when the name is unknown or the device is not there.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise DataError(
            f"device {name!r} cannot be used here ({reason}): name one that is there, such as cpu"
        ) from None
    return device


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use this many threads inside.

    Raises:
        DataError: when the number is not positive.
    """
    if count < 1:
        raise DataError(f"--threads must be at least 1, found {count}")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
