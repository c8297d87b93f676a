"""What makes the second pass of a two-pass step see the same as the first, and leave nothing behind.

Dropout masks: the global random generators are set back to where they stood before the first pass. Running
statistics of batch normalization: those of the first pass count, the second pass leaves no trace, and a step
that an exception ends leaves none at all.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class Replay:
    """Repeats a pass with the same random numbers, and keeps normalization layers from counting it twice.

    torch's generators (CPU and the given devices) are replayed at every step. Reading Python's and NumPy's
    costs as much as a small network's layer, so they are replayed only if the closure was seen to draw from
    them in the first step.

    Args:
        model: whose normalization layers are watched.

    Attributes:
        watch_all: whether Python's and NumPy's generators are replayed, too; None before the first step.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [module for module in model.modules() if isinstance(module, _NormBase)]
        self.watch_all: bool | None = None
        self._start: tuple[list[tuple[torch.device, Tensor]], Any] = ([], None)

    @contextmanager
    def begun(self, parameters: Iterable[Tensor]) -> Iterator[None]:
        """Around both passes: remembers the generators; if an exception ends the step, the running statistics
        become again what they were before it.
        """
        devices = {parameter.device for parameter in parameters} | {torch.device("cpu")}
        self._start = (torch_states(devices), None if self.watch_all is False else other_states())
        statistics = self.statistics()
        try:
            yield
        except BaseException:
            self.give_back(statistics)
            raise

    def statistics(self) -> list[tuple[Tensor, Tensor]]:
        """Each buffer that a pass in training mode changes, with a copy of it."""
        buffers = [
            buffer
            for layer in self._layers
            if layer.training
            for buffer in layer._buffers.values()
            if buffer is not None
        ]
        return [(buffer, buffer.clone()) for buffer in buffers]

    @staticmethod
    def give_back(statistics: list[tuple[Tensor, Tensor]]) -> None:
        """Set the buffers to their copies."""
        if statistics:
            torch._foreach_copy_([buffer for buffer, _ in statistics], [copy for _, copy in statistics])

    @contextmanager
    def second_pass(self) -> Iterator[None]:
        """The generators start where :meth:`begun` found them; after it all is as the first pass left it."""
        states, others = self._start
        after = torch_states(device for device, _ in states)
        others_after = None if self.watch_all is False else other_states()
        if self.watch_all is None:
            self.watch_all = not _equal(others, others_after)
        statistics = self.statistics()
        try:
            set_torch_states(states)
            if self.watch_all:
                set_other_states(others)
            yield
        finally:
            self.give_back(statistics)
            set_torch_states(after)
            if self.watch_all:
                set_other_states(others_after)


def torch_states(devices: Iterable[torch.device]) -> list[tuple[torch.device, Tensor]]:
    """Each device with the state of its generator."""
    return [(device, _get_state(device)) for device in devices if device.type != "meta"]


def _get_state(device: torch.device) -> Tensor:
    if device.type == "cpu":
        return torch.get_rng_state()
    module = torch.get_device_module(device)
    return module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)


def set_torch_states(states: list[tuple[torch.device, Tensor]]) -> None:
    """Set the generators to what :func:`torch_states` gave."""
    for device, state in states:
        if device.type == "cpu":
            torch.set_rng_state(state)
        elif device.type == "mps":
            torch.mps.set_rng_state(state)
        else:
            torch.get_device_module(device).set_rng_state(state, device)


def other_states() -> Any:
    """The states of Python's and NumPy's generators."""
    return random.getstate(), np.random.get_state()  # noqa: NPY002


def set_other_states(states: Any) -> None:
    """Set Python's and NumPy's generators to what :func:`other_states` gave."""
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002


def _equal(left: Any, right: Any) -> bool:
    return left[0] == right[0] and all(np.array_equal(a, b) for a, b in zip(left[1], right[1], strict=True))
