"""What makes two runs the same run: a digest of model, devices, data, metric and settings."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from analognoise.conversion import analog_layers
from analognoise.evaluation.data import update_digest
from analognoise.layers import AnalogLayer

_ADDRESS = re.compile(r"0x[0-9a-f]+")


def run_id(model: nn.Module, settings: dict[str, Any]) -> str:
    """16 hexadecimal digits that stand for one evaluation.

    They change with every weight and buffer, the model's structure, each layer's profile, name at conversion
    and drift compensation, the versions of analognoise and torch, the device type, the number of threads
    (sums are added in another order), and ``settings``. They do not change with the chip that is programmed,
    the mode, or how many chips and which times are asked for.

    Args:
        model: a converted model.
        settings: further plain values.
    """
    from analognoise import __version__  # not at the top: the package's map of names imports this module

    state = hashlib.sha256()
    for name, module in model.named_modules(remove_duplicate=False):
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        state.update(f"module {name} {kind} {_ADDRESS.sub('', module.extra_repr())};".encode())
    for name, parameter in model.named_parameters(remove_duplicate=False):
        state.update(f"parameter {name};".encode())
        update_digest(state, parameter, name)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        state.update(f"buffer {name};".encode())
        update_digest(state, buffer, name)
    layers = {
        name: (layer.analog.name, layer.analog.profile.digest, layer.analog.compensation)
        for name, layer in analog_layers(model).items()
    }
    common = {
        "layers": layers,
        "analognoise": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": device_of(model).type,
    }
    state.update(json.dumps(common | settings, sort_keys=True, default=str).encode())
    return state.hexdigest()[:16]


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first layer on tiles is."""
    layer: AnalogLayer = next(iter(analog_layers(model).values()))
    return next(iter(layer.targets().values())).device


def name_of(function: Callable[..., Any] | None) -> str:
    """A function's module, name and compiled code (in short), so that an edited function is another one; ""
    for None.
    """
    if function is None:
        return ""
    if isinstance(function, functools.partial):
        arguments = _ADDRESS.sub("", repr((function.args, function.keywords)))
        return f"partial {name_of(function.func)} {arguments}"
    owner = function if hasattr(function, "__qualname__") else type(function)
    name = f"{owner.__module__}.{owner.__qualname__}"
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    if code is None:
        return name
    return f"{name} {hashlib.sha256(repr(_code(code)).encode()).hexdigest()[:8]}"


def _code(code: Any) -> tuple[Any, ...]:
    constants = tuple(_code(c) if hasattr(c, "co_code") else _plain(c) for c in code.co_consts)
    return code.co_code, code.co_names, constants


def _plain(constant: Any) -> str:
    return repr(sorted(constant, key=repr) if isinstance(constant, frozenset) else constant)
