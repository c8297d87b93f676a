"""What several jobs need before they start: the model, the machine, and options that exclude each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analognoise.chip import evaluating
from analognoise.devices import DeviceProfile, load_profile
from analognoise.devices.catalog import split_profiles
from analognoise.devices.profile import drift_times
from analognoise.devices.whatif import Changes
from analognoise.errors import AnalogNoiseError, DataError, ProfileError
from analognoise.evaluation.data import EvaluationData, to_device
from analognoise.evaluation.metrics import Forward, default_forward
from analognoise.seeds import rng_preserved
from analognoise.tasks import (
    Task,
    get_task,
    load_callable,
    load_data,
    load_for_chip,
    load_model,
    load_weights,
)
from analognoise.tasks.weights import file_digest

Say = Callable[[str], None]
WhatIf = tuple[Sequence[str], Sequence[str], str | None]  # texts of --set, --scale and --periphery
_UNCHANGED = Changes()


@dataclass(frozen=True)
class Placement:
    """The device that a model's layers are put on, or one device by pattern of layer names.

    Attributes:
        devices: by pattern; a single one under None.
    """

    devices: dict[str | None, DeviceProfile]

    @property
    def profile(self) -> DeviceProfile | dict[str, DeviceProfile]:
        """What ``convert_to_analog`` takes."""
        return self.devices.get(None) or {str(key): device for key, device in self.devices.items()}

    @property
    def has_drift(self) -> bool:
        """Whether anything depends on time."""
        return any(device.has_drift for device in self.devices.values())

    def times(self, times: str | None) -> tuple[float, ...]:
        """Drift times in seconds to evaluate at: those given, or those of the devices; 0 s alone where
        nothing depends on time.

        Raises:
            ProfileError: when a device is not known at one of them.
            UnitError: when a time cannot be read.
        """
        seconds = drift_times(self.devices.values() if self.has_drift else (), times)
        return seconds if self.has_drift else (0.0,)

    @property
    def by_layer(self) -> dict[str, str] | None:
        """Names of the devices by pattern; None where all layers have the same."""
        return None if None in self.devices else {str(key): d.name for key, d in self.devices.items()}


def load_placements(texts: Sequence[str], changes: Changes = _UNCHANGED) -> list[Placement]:
    """Devices by name or file, or ``PATTERN=PROFILE,PATTERN=PROFILE`` for a device by layer.

    Args:
        texts: as the user wrote them.
        changes: to each device that they concern.

    Raises:
        ProfileError: when none is given, one cannot be loaded or changed so, or results of two could not be
            told apart.
    """
    if not texts:
        raise ProfileError("no profile given: name at least one, for example --profile pcm-ibm")
    placements = [_placement(text) for text in texts]
    if changes:
        devices = changes.apply([device for item in placements for device in item.devices.values()])
        rest = iter(devices)
        placements = [Placement({key: next(rest) for key in item.devices}) for item in placements]
    known: dict[str, str] = {}
    seen: dict[frozenset[str], str] = {}
    for text, placement in zip(texts, placements, strict=True):
        names = frozenset(device.name for device in placement.devices.values())
        if names in seen:
            both = ", ".join(sorted(names))
            raise ProfileError(
                f"profiles {seen[names]!r} and {text!r} are both named {both!r}: "
                "results go by that name, so give each its own"
            )
        seen[names] = text
        for device in placement.devices.values():
            if known.setdefault(device.name, device.digest) != device.digest:
                raise ProfileError(
                    f"two different profiles in {', '.join(map(repr, texts))} are named {device.name!r}: "
                    "results go by that name, so give each its own"
                )
    return placements


def contents(placements: Iterable[Placement]) -> dict[str, Any]:
    """The devices by name, as run.json holds them."""
    return {
        device.name: {"digest": device.digest, "content": device.as_dict()}
        for placement in placements
        for device in placement.devices.values()
    }


def _placement(text: str) -> Placement:
    if "=" not in text or Path(text).is_file():
        return Placement({None: load_profile(text)})
    devices: dict[str | None, DeviceProfile] = {}
    for part in split_profiles(text):
        pattern, equals, profile = (word.strip() for word in part.partition("="))
        if not (equals and pattern and profile):
            raise ProfileError(
                f"profile {text!r}: found {part.strip()!r} where PATTERN=PROFILE is expected, "
                "for example 'features.*=pcm-ibm,classifier=ideal'"
            )
        if pattern in devices:
            raise ProfileError(f"profile {text!r}: the pattern {pattern!r} is there twice, leave one out")
        devices[pattern] = load_profile(profile)
    return Placement(devices)


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
            where = next(model.parameters(), torch.empty(0)).device
            batch = to_device(batch, where, copy=True)
            output = (forward or default_forward)(model, batch)
            if use is not None:
                use(output, batch)
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


def checked_data(batches: Any, device: str, what: str) -> EvaluationData:
    """The same batches in every pass, read once and checked.

    Raises:
        DataError: when they are not the same in every pass; ``what`` says whose they are.
    """
    try:
        return EvaluationData(batches, torch_device(device))
    except DataError as error:
        raise DataError(f"{what}: {error}") from error


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


__all__ = [
    "Placement",
    "Say",
    "WhatIf",
    "build_model",
    "checked_data",
    "contents",
    "either",
    "load_callable",
    "load_data",
    "load_forward",
    "load_placements",
    "metric_of",
    "torch_device",
    "torch_threads",
    "try_batch",
    "weights_of",
]
