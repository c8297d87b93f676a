"""What an evaluation must leave alone, or must know that a forward touches: buffers, global generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from analognoise.chip import chip_preserved, evaluating
from analognoise.crossbar.mapping import devices_of
from analognoise.crossbar.tile import levels_kept
from analognoise.errors import DataError
from analognoise.on_tiles import analog_layers
from analognoise.seeds import rng_preserved

# Small models keep so much more, to save time at each of many drift times.
_LEVEL_BYTES = 1 << 20


class Buffers:
    """A model's buffers, to be put back when a forward writes into them."""

    def __init__(self, model: nn.Module) -> None:
        self._kept = [
            (module, name, tensor, tensor.clone())
            for module in model.modules()
            for name, tensor in module._buffers.items()
            if tensor is not None
        ]

    def restore(self) -> bool:
        """Put all back; True when one had changed."""
        changed = False
        for module, name, tensor, content in self._kept:
            if module._buffers.get(name) is not tensor:
                module._buffers[name] = tensor
                changed = True
            if not torch.equal(tensor, content):
                tensor.copy_(content)
                changed = True
        return changed


def seed_all(seed: int, device: torch.device) -> None:
    """Start from a seed every global generator that a forward on ``device`` can draw from."""
    random.seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002
    if device.type == "cpu":
        torch.default_generator.manual_seed(
            seed
        )  # torch.manual_seed would format a stack trace for each other device
    else:
        torch.manual_seed(seed)


def random_states(device: torch.device) -> list[Any]:
    """Fingerprints of the global generators that a forward can draw from."""
    numpy = np.random.get_state()  # noqa: NPY002
    states = [
        random.getstate(),
        [np.asarray(part).tobytes() for part in numpy],
        torch.get_rng_state().tolist(),
    ]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device).numpy().tobytes())
    return states


class At:
    """Errors inside say where they came up: ours in their sentence, others (a user's model or metric failed)
    in a note.
    """

    def __init__(self, where: str, *parts: object) -> None:
        self.where, self.parts = where, parts

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DataError):
            raise DataError(f"{self.where.format(*self.parts)}: {error}") from None
        if isinstance(error, Exception):
            error.add_note(f"analognoise: this came up in {self.where.format(*self.parts)} of the evaluation")


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[Buffers]:
    """Evaluate inside: eval mode, chips in force, deterministic convolutions; then all as it was before."""
    states = [layer.analog for layer in analog_layers(model).values()]
    flags = [state.digital for state in states]
    devices = sum(devices_of(block, state.profile) for state in states for _, block in state.placed)
    deterministic = torch.backends.cudnn.deterministic
    with (
        # ordinary tensors: what a forward keeps in the model (a table of positions, say) must serve training
        # later
        torch.inference_mode(False),
        torch.no_grad(),
        rng_preserved(),
        evaluating(model),
        chip_preserved(model),
        levels_kept(4 * devices <= _LEVEL_BYTES),
    ):
        buffers = Buffers(model)
        try:
            torch.backends.cudnn.deterministic = True
            for state in states:  # also inside "with digital(model)" chips are chips
                state.digital, state.watched = False, False  # weights stay as they are
            yield buffers
        finally:
            torch.backends.cudnn.deterministic = deterministic
            for state, flag in zip(states, flags, strict=True):
                state.digital, state.watched = flag, True
            buffers.restore()
