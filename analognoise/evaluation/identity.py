"""What makes two runs the same run: a digest of model, devices, data, metric and settings."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from analognoise.evaluation.data import update_digest
from analognoise.evaluation.rows import AnyRow, Row
from analognoise.fingerprint import Fingerprint
from analognoise.layers import AnalogLayer
from analognoise.on_tiles import analog_layers
from analognoise.printing import counted

_ADDRESS = re.compile(r"0x[0-9a-f]+")
# What is tried out when a file holds another run: a run's identity is known by its digest alone.
_DEVICES = ("cpu", "cuda", "mps", "xpu")
_SEEDS = range(100)


class Identity:
    """What stands for one evaluation.

    It changes with every weight and buffer, the model's structure and plain attributes, each layer's profile,
    name at conversion, drift compensation and converters' ranges, the versions of analognoise and torch, the
    device type, the number of threads (sums are added in another order), and ``settings``. It does not change
    with the chip that is programmed, the mode, or how many chips and which times are asked for.

    Args:
        model: a model, converted or not.
        settings: further plain values; "seed" and "labels" (profile or other condition, method, training
            seed) are told apart when a run is refused.
        choices: of a setting by name, all that there are by what they are called, likewise told apart; None
            is a setting that is left out.

    Attributes:
        run_id: 16 hexadecimal digits.
    """

    def __init__(
        self, model: nn.Module, settings: dict[str, Any], choices: dict[str, dict[str, Any]] | None = None
    ) -> None:
        from analognoise import __version__  # not at the top: the package's map of names imports this module

        self._model = _model_state(model)
        layers: dict[str, list[Any]] = {}
        for name, layer in analog_layers(model).items():
            state = layer.analog
            layers[name] = [state.name, state.profile.digest, state.compensation, *state.range_values()]
            if state.tile.settings:
                layers[name].append(state.tile.settings)
        self._settings: dict[str, Any] = {
            "layers": layers,
            "analognoise": __version__,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": device_of(model).type,
        } | settings
        self._choices = choices or {}
        self.run_id = self._with()

    def _with(self, **changes: Any) -> str:
        state = self._model.copy()
        settings = self._settings | changes
        left_out = [name for name in self._choices if settings[name] is None]
        known = {name: value for name, value in settings.items() if name not in left_out}
        state.update(json.dumps(known, sort_keys=True, default=str).encode())
        return state.hexdigest()[:16]

    def difference(self, row: AnyRow, metric: str) -> str:
        """In words, what tells the run of a stored row from this one, as far as that can be known.

        The row's own columns are compared; then what can be chosen otherwise, thread counts, device types and
        the first hundred seeds are tried until the row's run comes out.
        """
        mine = self._settings
        labels = list(mine["labels"])
        theirs = [row.condition, row.method, row.training_seed]
        what = "profile" if isinstance(row, Row) else "condition"
        named = [*zip((what, "method", "training seed"), theirs, labels, strict=True)]
        named.append(("metric", row.metric, metric))
        different = [f"{name} {stored!r} there, {own!r} here" for name, stored, own in named if stored != own]
        if row.metric == metric:
            for word, changes in self._alternatives(theirs):
                if self._with(**changes) == row.run_id:
                    return "; ".join([*different, word])
        if different:
            return "; ".join(different)
        return (
            "another model, profile, data, metric, forward or setting, or another version; here analognoise "
            f"{mine['analognoise']}, torch {mine['torch']}, {_threads(mine['threads'])}, device "
            f"{mine['device']}, seed {mine['seed']}"
        )

    def _alternatives(self, labels: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        yield from self._elsewhere(labels)
        for name, known in self._choices.items():
            here = next(word for word, value in known.items() if value == self._settings.get(name))
            for there in known.keys() - {here}:
                word, change = f"{name} {there} there, {here} here", {name: known[there]}
                yield word, {"labels": labels} | change
                for more, changes in self._elsewhere(labels):
                    yield f"{word}; {more}", changes | change

    def _elsewhere(self, labels: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """With other threads, on another device, or from another seed."""
        mine = self._settings
        for threads in range(1, max(os.cpu_count() or 1, 64) + 1):
            if threads != mine["threads"]:
                word = (
                    f"{_threads(threads)} there, {mine['threads']} here: torch.set_num_threads({threads}) "
                    "goes on with it"
                )
                yield word, {"labels": labels, "threads": threads}
        for device in _DEVICES:
            if device != mine["device"]:
                word = f"device {device} there, {mine['device']} here"
                yield word, {"labels": labels, "device": device}
        for seed in _SEEDS:
            if seed != mine["seed"]:
                yield f"seed {seed} there, {mine['seed']} here", {"labels": labels, "seed": seed}


def _threads(count: int) -> str:
    return counted(count, "thread")


def _model_state(model: nn.Module) -> Any:
    state, attributes = hashlib.sha256(), Fingerprint()
    for name, module in model.named_modules(remove_duplicate=False):
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        state.update(f"module {name} {kind} {_ADDRESS.sub('', module.extra_repr())};".encode())
        attributes.attributes(module)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        state.update(f"parameter {name};".encode())
        update_digest(state, parameter, name)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        state.update(f"buffer {name};".encode())
        update_digest(state, buffer, name)
    state.update(attributes.hexdigest().encode())
    return state


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first layer on tiles is; without any, its first parameter or buffer."""
    layer: AnalogLayer | None = next(iter(analog_layers(model).values()), None)
    if layer is not None:
        return next(iter(layer.targets().values())).device
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
