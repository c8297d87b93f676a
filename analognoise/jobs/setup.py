"""What several jobs need before they start: the model, the machine, and options that exclude each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analognoise.chip import evaluating
from analognoise.devices import DeviceProfile, load_profile
from analognoise.errors import AnalogNoiseError, DataError, ProfileError
from analognoise.evaluation.data import to_device
from analognoise.evaluation.metrics import default_forward
from analognoise.seeds import rng_preserved
from analognoise.tasks import Task, get_task, load_callable, load_data, load_model, load_weights
from analognoise.tasks.weights import file_digest

Say = Callable[[str], None]


def load_profiles(names: Sequence[str]) -> list[DeviceProfile]:
    """Profiles by name or file.

    Raises:
        ProfileError: when none is given, one cannot be loaded, or two have the same name.
    """
    if not names:
        raise ProfileError("no profile given: name at least one, for example --profile pcm-ibm")
    profiles = [load_profile(name) for name in names]
    seen: dict[str, str] = {}
    for name, profile in zip(names, profiles, strict=True):
        if profile.name in seen:
            raise ProfileError(
                f"profiles {seen[profile.name]!r} and {name!r} are both named {profile.name!r}: "
                "results go by that name, so give each its own"
            )
        seen[profile.name] = name
    return profiles


def either(task: str | None, model: str | None) -> Task | None:
    """The task, or None for a model of the user's own.

    Raises:
        DataError: when both or neither are given.
    """
    if (task is None) == (model is None):
        found = "neither" if task is None else "both"
        raise DataError(f"name either --task or --model, found {found}: for example --task digits")
    return get_task(task) if task is not None else None


def build_model(
    task: Task | None, model: str | None, weights: Path | None, seed: int, device: str
) -> nn.Module:
    """The model, on the device, with the weights of a file if one is given.

    Raises:
        ModelError: when it cannot be built, or the weights do not fit.
        DataError: when there is no such device.
    """
    place = torch_device(device)
    built = task.build(seed) if task is not None else load_model(str(model), seed=seed)
    if weights is not None:
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


def try_batch(
    model: nn.Module,
    batch: Any,
    what: str,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    use: Callable[[Any, Any], Any] | None = None,
) -> None:
    """Let the model compute one batch, so that what does not fit is found before anything is written.

    Args:
        model: digital; its mode, buffers and weights are left as found.
        batch: the first of the data.
        what: what the data are, in the message.
        forward: as for :func:`analognoise.evaluate_drift`.
        use: what is done with ``(output, batch)``, for example the metric.

    Raises:
        DataError: when anything goes wrong.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with rng_preserved(0), torch.no_grad(), evaluating(model):
            batch = to_device(batch, next(model.parameters()).device, copy=True)
            output = (forward or default_forward)(model, batch)
            if use is not None:
                use(output, batch)
    except AnalogNoiseError as error:
        raise DataError(f"{what}, first batch: {error}") from error
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise DataError(
            f"{what}: {type(model).__name__} cannot compute the first batch ({type(error).__name__}: {first})"
        ) from error
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


def metric_of(name: str | None, task: Task | None) -> Any:
    """A metric by name, or the user's own ``module:callable``; by default the task's, or accuracy."""
    if name is None:
        return task.metric if task is not None else "accuracy"
    return load_callable(name, what="metric") if ":" in name else name


__all__ = [
    "Say",
    "build_model",
    "either",
    "load_callable",
    "load_data",
    "load_profiles",
    "metric_of",
    "torch_device",
    "torch_threads",
    "try_batch",
    "weights_of",
]
