"""The random generators that a training draws from: the global ones, and those that its model and data hold.

Their states are taken as plain values and tensors, which a file can hold without pickled objects.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from analognoise.training.replay import other_states, set_other_states, set_torch_states, torch_states

# How far the attributes of data, of what these hold, and so on are followed, how long lists are, and how many
# objects are looked at.
_DEPTH, _LIST, _MOST = 6, 32, 10_000
_SKIPPED = (Tensor, np.ndarray, nn.Parameter, type, ModuleType)


class _Kind(NamedTuple):
    """How the state of a generator is taken and given back."""

    get: Callable[[Any], Any]
    set: Callable[[Any, Any], Any]


_KINDS: dict[type, _Kind] = {
    torch.Generator: _Kind(lambda found: found.get_state(), lambda found, state: found.set_state(state)),
    random.Random: _Kind(lambda found: found.getstate(), lambda found, state: found.setstate(state)),
    np.random.Generator: _Kind(
        lambda found: found.bit_generator.state,
        lambda found, state: setattr(found.bit_generator, "state", state),
    ),
    np.random.RandomState: _Kind(
        lambda found: found.get_state(legacy=False), lambda found, state: found.set_state(state)
    ),
}


def generator_states(device: torch.device, model: nn.Module, data: Any) -> dict[str, Any]:
    """States of the global generators, of a device's, and of those in ``model`` and ``data``.

    Data that have ``state_dict()`` and ``load_state_dict(state)``, as the loaders of torchdata, are asked for
    what else they keep.

    Args:
        device: where the training computes.
        model: its modules' own attributes are looked at.
        data: a loader, or anything that gives batches.
    """
    return {
        "torch": [state for _, state in torch_states(_devices(device))],
        "others": _plain(other_states()),
        "in model": _states(_generators_of(model)),
        "data": data_states(data),
    }


def set_generator_states(states: dict[str, Any], device: torch.device, model: nn.Module, data: Any) -> None:
    """Give back what :func:`generator_states` took."""
    set_torch_states(list(zip(_devices(device), states["torch"], strict=True)))
    set_other_states(_arrays(states["others"]))
    _set(_generators_of(model), states["in model"])
    set_data_states(states["data"], data)


def data_states(data: Any) -> dict[str, Any]:
    """The part of :func:`generator_states` that is about the data."""
    own = data.state_dict() if _keeps_state(data) else None
    return {"generators": _states(_generators_in(data)), "own": _plain(own)}


def set_data_states(states: dict[str, Any], data: Any) -> None:
    """Give back what :func:`data_states` took."""
    _set(_generators_in(data), states["generators"])
    if _keeps_state(data) and states["own"] is not None:
        data.load_state_dict(_arrays(states["own"]))


def _states(generators: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {path: _plain(_kind(found).get(found)) for path, found in generators}


def _set(generators: Iterable[tuple[str, Any]], states: dict[str, Any]) -> None:
    for path, found in generators:
        if path in states:
            _kind(found).set(found, _arrays(states[path]))


def _devices(device: torch.device) -> list[torch.device]:
    return [torch.device("cpu")] + [device] * (device.type not in ("cpu", "meta"))


def _keeps_state(data: Any) -> bool:
    return all(callable(getattr(data, name, None)) for name in ("state_dict", "load_state_dict"))


def _kind(value: Any) -> _Kind:
    return next(kind for type_, kind in _KINDS.items() if isinstance(value, type_))


def _generators_in(data: Any) -> Iterator[tuple[str, Any]]:
    """Generators in the attributes of data, and of what these hold: the shortest path to each, and it."""
    seen: set[int] = set()
    waiting: deque[tuple[str, Any, int]] = deque([("", data, 0)])
    while waiting and len(seen) < _MOST:
        path, value, depth = waiting.popleft()
        if id(value) in seen or isinstance(value, _SKIPPED):
            continue
        seen.add(id(value))
        if isinstance(value, tuple(_KINDS)):
            yield path, value
            continue
        if depth < _DEPTH:
            waiting.extend((f"{path}.{name}", part, depth + 1) for name, part in _parts(value).items())


def _generators_of(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Generators that a model's modules have as attributes: a path to each, and it."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, tuple(_KINDS)):
                yield f"{name}.{attribute}", value


def _parts(value: Any) -> dict[str, Any]:
    """What an object holds, by name; nothing of long lists."""
    if isinstance(value, MethodType):
        return {"self": value.__self__}
    if isinstance(value, FunctionType):
        return _closure(value)
    if isinstance(value, partial):
        return {"func": value.func, "args": value.args, "keywords": value.keywords}
    if isinstance(value, Mapping):
        return {str(key): part for key, part in value.items()} if len(value) <= _LIST else {}
    if isinstance(value, (list, tuple)):
        return {str(number): part for number, part in enumerate(value)} if len(value) <= _LIST else {}
    return vars(value) if hasattr(value, "__dict__") else {}


def _closure(function: FunctionType) -> dict[str, Any]:
    """What a function holds of the variables around it."""
    found = {}
    for number, cell in enumerate(function.__closure__ or ()):
        with suppress(ValueError):  # it was not assigned yet
            found[str(number)] = cell.cell_contents
    return found


def _plain(value: Any) -> Any:
    """Arrays as lists with their type; all else as it is."""
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "of": str(value.dtype)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map(_plain, value))
    return value


def _arrays(value: Any) -> Any:
    """What :func:`_plain` was given."""
    if isinstance(value, dict) and value.keys() == {"array", "of"}:
        return np.array(value["array"], dtype=value["of"])
    if isinstance(value, dict):
        return {key: _arrays(item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map(_arrays, value))
    return value
