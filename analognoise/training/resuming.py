"""How a training goes on from its checkpoint, and leaves checkpoints.

One is of the beginning of an epoch. It is written when the epoch's first batch is there, before the first
step, and holds the batch's digest: data that do not go on as they did are found out, and refused.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from analognoise.batches import Batch, update_digest
from analognoise.calibration import learned_ranges, ranges, set_ranges_
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import AnalogNoiseError, DataError, ResultsError
from analognoise.fingerprint import name_of, structure_of
from analognoise.on_tiles import analog_layers
from analognoise.seeds import rng_preserved
from analognoise.training.checkpoint import Checkpoint
from analognoise.training.generators import (
    data_states,
    generator_states,
    set_data_states,
    set_generator_states,
)
from analognoise.training.history import History

# Between two checkpoints lie at least so many seconds, and so many times as long as the last one took.
PAUSE, SHARE = 2.0, 20.0
_COLUMNS = ("train_loss", "validation", "gradients")


class Resumption:
    """A training's going on from its checkpoint, and its leaving of checkpoints; nothing at all without one.

    Args:
        checkpoint: the file, or None.
        training: plain values that tell this training apart.
        model, optimizer: what is trained.
        data: the training data.
        history: of the training; filled with what is known of the finished epochs.
        seed: what the training starts the global generators from.

    Attributes:
        step: number of steps in the epochs that were finished before.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        training: Mapping[str, Any],
        model: nn.Module,
        optimizer: Optimizer,
        data: Any,
        history: History,
        seed: int,
    ) -> None:
        self._checkpoint, self._training = checkpoint, training
        self._model, self._optimizer, self._data, self._history = model, optimizer, data, history
        self._seed = seed
        self._structure = "" if checkpoint is None else structure_of(model)
        self._device = next(model.parameters()).device
        self.step = 0
        self._written, self._took = time.monotonic(), 0.0
        self._generators: dict[str, Any] | None = None
        self._expected: str | None = None
        self._beginning: dict[str, Any] = {}

    def resume(self) -> int:
        """Take up the state that is there; returns the number of finished epochs.

        Raises:
            DataError: when it is of a training that was finished with other data.
            ResultsError: when the file is damaged, or of another training.
        """
        if self._checkpoint is None:
            return 0
        self._checkpoint.check_room(self._model)
        found = self._checkpoint.read(self._training)
        if found is None:
            return 0
        try:
            self._check_model(found["model"], found["structure"])
            self._beginning = found["beginning"]
            if found["following"] is None:
                self._check_beginning()
            self._give_buffers(found["buffers"])
            self._model.load_state_dict(found["model"])
            set_ranges_(self._model, found["ranges"])
            with torch.no_grad():
                for name, value in found["logarithms"].items():
                    learned_ranges(self._model)[name].copy_(value)
            for name, calls in found["calls"].items():
                self._peripheries()[name].calls = calls
            rates = [group["lr"] for group in self._optimizer.param_groups]  # at the start, as the schedule's
            for group, rate in zip(found["optimizer"]["param_groups"], rates, strict=True):
                group["lr"] = rate
            self._optimizer.load_state_dict(found["optimizer"])
            if getattr(self._data, "persistent_workers", False):
                iter(self._data)  # starts them, for which a seed is drawn; the training before had done so
            set_generator_states(found["generators"], self._device, self._model, self._data)
        except (DataError, ResultsError):
            raise
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, AnalogNoiseError) as error:
            first = str(error).strip().split("\n")[0]
            raise self._checkpoint.unusable(f"does not fit {type(self._model).__name__} ({first})") from error
        for name, values in found["history"].items():
            getattr(self._history, name)[:] = values
        self.step, self._expected = found["step"], found["following"]
        return len(self._history.train_loss)

    def _check_model(self, state: Mapping[str, Any], structure: str) -> None:
        """Raise unless the state is this model's: torch would load what of it fits before it complains."""
        here = self._model.state_dict()
        for name in {**here, **state}:
            sides = [_kind(side[name]) if name in side else "missing" for side in (state, here)]
            if sides[0] != sides[1]:
                raise self._file.unusable(
                    f"does not fit {type(self._model).__name__} ({name!r} is {sides[0]} there and {sides[1]} "
                    "now)"
                )
        if structure != self._structure:
            raise self._file.unusable(
                f"is of another {type(self._model).__name__} (other layers, other settings of one, or "
                "another forward)"
            )

    def _check_beginning(self) -> None:
        """Raise unless the data begin as they did; a training that is done asks them for nothing else."""
        if not self._beginning["first"] or getattr(self._data, "_iterator", None) is not None:
            return  # workers that stay are further than new ones
        set_data_states(self._beginning["data"], self._data)
        set_epoch(self._data, 0)
        with rng_preserved(self._seed):
            for batch in self._data:
                if _digest(batch) == self._beginning["first"]:
                    return
                break
        raise DataError(
            f"the training data are not those that {self._file.path} was written with: their first batch is "
            "another; delete the checkpoint to train anew"
        )

    def _give_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Set the buffers that no state dict has; a forward may have made them, or made them grow."""
        for name, value in buffers.items():
            owner, _, own = name.rpartition(".")
            module = self._model.get_submodule(owner)
            there = module._buffers.get(own)
            if there is not None and there.shape == value.shape:
                there.copy_(value)
            elif own in module._buffers:
                module._buffers[own] = value.to(self._device)
            else:
                module.register_buffer(own, value.to(self._device), persistent=False)

    def begin_epoch(self) -> None:
        """Remember the generators as an epoch finds them, if a checkpoint is due."""
        if self._checkpoint is not None and not self._beginning:
            self._beginning = {"data": data_states(self._data), "first": ""}
        due = time.monotonic() - self._written >= max(PAUSE, SHARE * self._took)
        if self._checkpoint is not None and self._history.train_loss and due and self._expected is None:
            self._generators = generator_states(self._device, self._model, self._data)

    def first_batch(self, batch: Batch, step: int) -> None:
        """Write the checkpoint that is due; of a training that was taken up, see that the data go on alike.

        Args:
            batch: the epoch's first.
            step: number of steps before it.

        Raises:
            DataError: when the data do not.
            ResultsError: when the file cannot be written.
        """
        if self._expected is not None:
            expected, self._expected = self._expected, None
            if _digest(batch) != expected:
                epoch = len(self._history.train_loss) + 1
                raise DataError(
                    f"the training data do not go on as they did when {self._file.path} was written: epoch "
                    f"{epoch} begins with another batch; give the data set_epoch(epoch), or state_dict() and "
                    "load_state_dict(state), and delete the checkpoint to begin anew"
                )
        if not step and self._checkpoint is not None:
            self._beginning["first"] = _digest(batch)
        if self._generators is not None:
            self._write(step, _digest(batch))

    def finish(self, step: int) -> None:
        """Write the checkpoint of a training that is done."""
        if self._checkpoint is not None and step > self.step:
            self._generators = generator_states(self._device, self._model, self._data)
            self._write(step, None)

    def _write(self, step: int, following: str | None) -> None:
        begun = time.monotonic()
        state = self._model.state_dict()
        content = {
            "structure": self._structure,
            "model": state,
            "buffers": {name: value for name, value in self._model.named_buffers() if name not in state},
            "ranges": ranges(self._model),
            "logarithms": learned_ranges(self._model),
            "calls": {name: periphery.calls for name, periphery in self._peripheries().items()},
            "optimizer": self._optimizer.state_dict(),
            "generators": self._generators,
            "history": {name: getattr(self._history, name) for name in _COLUMNS},
            "step": step,
            "following": following,
            "beginning": self._beginning,
        }
        try:
            self._file.write(self._training, len(self._history.train_loss), content)
        except DataError as error:
            warnings.warn(f"the training goes on without a checkpoint: {error}", stacklevel=4)
            self._checkpoint = None
        self._generators, self._written = None, time.monotonic()
        self._took = self._written - begun

    def _peripheries(self) -> dict[str, Any]:
        """What counts the products that were computed with noise of their own."""
        layers = analog_layers(self._model)
        return {name: layer.analog.periphery for name, layer in layers.items() if layer.analog.periphery}

    @property
    def _file(self) -> Checkpoint:
        assert self._checkpoint is not None
        return self._checkpoint


def characteristics(
    model: nn.Module, profile: DeviceProfile | None, functions: Mapping[str, Any], validated: bool
) -> dict[str, Any]:
    """What tells a training apart, besides its numbers: what it computes, where, and by which functions.

    Args:
        model: as it is trained.
        profile: the device that is trained for.
        functions: of the user, by what they are called; a name stands for itself.
        validated: whether there are validation data.
    """
    profiles = dict.fromkeys(layer.analog.profile.digest for layer in analog_layers(model).values())
    # A loss may look at the model, whose weights are no part of the loss.
    known = [*model.modules(), *model.parameters(), *model.buffers()]
    return {
        "device": next(model.parameters()).device.type,
        "threads": torch.get_num_threads(),
        "profile": None if profile is None else profile.digest,
        "tiles of": list(profiles),
        "validation data": "some" if validated else "none",
        **{
            name: function if isinstance(function, str) else name_of(function, known)
            for name, function in functions.items()
        },
    }


def set_epoch(data: Any, number: int) -> None:
    """Tell data, or a loader's sampler, which epoch begins, where they want to know; counted from 0."""
    ordered: Any
    for ordered in (data, getattr(data, "sampler", None)):
        if hasattr(ordered, "set_epoch"):
            ordered.set_epoch(number)


def _kind(value: Any) -> str:
    """What a value of a state dict is, in words."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _digest(batch: Batch) -> str:
    """What tells a batch from others; nothing for one that cannot be told."""
    digest = hashlib.sha256()
    try:
        update_digest(digest, batch, "the training data")
    except DataError:
        return ""
    return digest.hexdigest()
