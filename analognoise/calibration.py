"""Ranges of converters, from data or from training, and training through a periphery."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from analognoise.batches import to_device
from analognoise.chip import digital, evaluating
from analognoise.crossbar.periphery import Magnitudes
from analognoise.errors import CalibrationError, ConversionError, DataError, nearest
from analognoise.halving import InParts, until_it_fits
from analognoise.layers.periphery import SIDES, LayerPeriphery
from analognoise.metrics import default_forward
from analognoise.on_tiles import analog_layers, require_analog
from analognoise.processes import Processes, unwrapped
from analognoise.progress import progress_bar
from analognoise.seeds import Stream, rng_preserved

Forward = Callable[[nn.Module, Any], Any]


def calibrate_(
    model: nn.Module,
    loader: Any,
    *,
    batches: int | None = None,
    forward: Forward | None = None,
    progress: bool = False,
) -> nn.Module:
    """Give the converters whose ranges come from data (``range = "calibrated"`` or ``"learned"``) their
    ranges, in place.

    The model computes the data with its digital weights, in eval mode and without converters. A DAC's range
    is then the maximum of the absolute inputs of its matrix, or the profile's ``percentile`` of those other
    than 0 (known to 0.05 %); an ADC's the same of its outputs, in parts of a full input on a full weight.
    Parts of a matrix that lie on different tiles along the rows have ranges of their own, tiles side by side
    share one. Ranges belong to the model and not to a chip: calibrate once, before or after programming. A
    batch that memory does not suffice for is halved: the ranges are the same.

    Given a model in ``DistributedDataParallel``, all processes together find the ranges of all their data.

    Args:
        model: a converted model.
        loader: batches as :func:`analognoise.evaluate_drift` takes them; labels are not used. Take training
            data: ranges from test data have seen it.
        batches: how many of them; None takes all.
        forward: ``forward(model, batch)``; by default ``model(x)``, or ``model(**batch without labels)``.
        progress: show a progress bar.

    Returns:
        The model.

    Raises:
        ConversionError: when the model has no layer on tiles.
        CalibrationError: when no converter needs a range, or the data give none for some layer; nothing is
            changed then.
        DataError: when the data have no batch, are no batches, or do not fit the model.
    """
    layers = require_analog(model, "calibrate ranges")
    peripheries = {name: p for name, p in _peripheries(model).items() if p.ranges}
    if not peripheries:
        names = ", ".join(dict.fromkeys(layer.analog.profile.name for layer in layers.values()))
        raise CalibrationError(
            f'nothing to calibrate: no converter of {names} has range = "calibrated" or "learned"'
        )
    if batches is not None and (not isinstance(batches, int) or batches < 1):
        raise DataError(f"batches is {batches!r}: give a whole number, at least 1, or None for all")
    if isinstance(loader, (str, bytes, Mapping, Tensor)) or not isinstance(loader, Iterable):
        raise DataError(
            f"the calibration data are of type {type(loader).__name__}: pass a DataLoader or a list of "
            "batches"
        )
    run = forward or default_forward
    processes, inner = Processes(model), unwrapped(model)
    device = next(iter(next(iter(layers.values())).targets().values())).device
    count = 0
    memory = InParts()

    def watch(batch: Any) -> None:
        """Run a batch, in parts where memory does not suffice for it."""
        before = {name: _copied(periphery.watched) for name, periphery in peripheries.items()}

        def compute() -> None:
            for part in memory.parts([batch]):
                run(inner, to_device(part, device))

        def forget() -> None:
            for name, periphery in peripheries.items():
                periphery.watched = _copied(before[name])

        until_it_fits(compute, memory, forget)

    total = batches if batches is not None else len(loader) if isinstance(loader, Sized) else 0
    try:
        for periphery in peripheries.values():
            periphery.watched = {
                key: [Magnitudes() for _ in values] for key, values in periphery.ranges.items()
            }
        with (
            torch.no_grad(),
            rng_preserved(0),
            evaluating(model),
            digital(model),  # layers without ranges, too
            progress_bar("calibration", total, progress) as advance,
        ):
            for batch in islice(loader, batches):
                try:
                    watch(batch)
                except (DataError, RuntimeError) as error:  # torch's words for shapes that do not fit
                    raise DataError(f"calibration data, batch {count}: {error}") from error
                count += 1
                advance()
        if not count:
            raise DataError("the calibration data have no batch: at least one is needed")
        for periphery in peripheries.values():
            for parts in (periphery.watched or {}).values():
                for part in parts:
                    part.unite(processes, device)
        found = {
            (name, key): values
            for name, periphery in peripheries.items()
            for key, values in _found(name, periphery).items()
        }
    finally:
        for periphery in peripheries.values():
            periphery.watched = None
    for (name, key), values in found.items():
        peripheries[name].set_range(key, torch.tensor(values))
    return model


def _copied(watched: dict[str, list[Magnitudes]] | None) -> dict[str, list[Magnitudes]]:
    """Counts that go on apart; what is counted up to now is shared."""
    return {key: [copy.copy(part) for part in parts] for key, parts in (watched or {}).items()}


def _found(layer: str, periphery: LayerPeriphery) -> dict[str, list[float]]:
    """Ranges by key, from what was seen; an output's in parts of the inputs' range."""
    assert periphery.watched is not None
    found: dict[str, list[float]] = {}
    for side, section in SIDES.items():
        converter = getattr(periphery.surroundings.periphery, section)
        for key, parts in periphery.watched.items():
            if not key.endswith(f".{side}"):
                continue
            values = [part.percentile(converter.percentile or 100.0) for part in parts]
            if side == "output":
                values = [v / b for v, b in zip(values, _input_bounds(periphery, key, found), strict=True)]
            if any(not math.isfinite(value) for value in values):
                raise CalibrationError(
                    f"layer {layer!r}: the calibration data give its {section.upper()} NaN or infinite values"
                )
            if any(value <= 0 for value in values):
                raise CalibrationError(
                    f"layer {layer!r}: the calibration data give its {section.upper()} no value other than 0 "
                    "(was the layer called at all?), so it has no range: give other data, or a fixed range"
                )
            found[key] = values
    return found


def _input_bounds(periphery: LayerPeriphery, key: str, found: Mapping[str, list[float]]) -> list[float]:
    name = key.rpartition(".")[0]
    dac, parts = periphery.surroundings.periphery.dac, len(periphery.frames[name].rows)
    if dac is None or dac.range == "dynamic":
        return [1.0] * parts
    return found[f"{name}.input"] if dac.has_data_range else [float(dac.bound or 1.0)] * parts


def ranges(model: nn.Module) -> dict[str, Tensor]:
    """The ranges that came from data or training, to be stored: ``{"fc1.weight.input": tensor}``.

    One value for each part of a matrix along its rows. Inputs' in the model's units, outputs' in parts of a
    full input on a full weight. Ranges that have no value yet are left out. ``torch.save`` or safetensors
    store them, :func:`set_ranges_` puts them back.
    """
    return {
        _join(name, key): values.clone()
        for name, periphery in _peripheries(model).items()
        for key, values in periphery.known_ranges().items()
    }


def range_names(model: nn.Module) -> list[str]:
    """The names of all ranges that data or training give, whether they have a value or not."""
    return [_join(name, key) for name, periphery in _peripheries(model).items() for key in periphery.ranges]


def set_ranges_(model: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """Put back ranges that :func:`ranges` gave, in place; those that are not among ``values`` stay as they
    are.

    Raises:
        CalibrationError: for a range that the model has not got, of another length, or not above 0; nothing
            is changed then.
    """
    known = {
        _join(name, key): (periphery, key)
        for name, periphery in _peripheries(model).items()
        for key in periphery.ranges
    }
    for name, value in values.items():
        if name not in known:
            raise CalibrationError(
                f"the model has no range {name!r}{nearest(name, known)}: it has {', '.join(known) or 'none'}"
            )
        periphery, key = known[name]
        value = torch.as_tensor(value)
        if value.shape != periphery.ranges[key].shape:
            raise CalibrationError(
                f"range {name!r} has shape {tuple(value.shape)} but must have "
                f"{tuple(periphery.ranges[key].shape)}: a value for each part along the rows"
            )
        if not bool((torch.isfinite(value) & (value > 0)).all()):
            raise CalibrationError(f"range {name!r} is {value.tolist()} but must be finite and above 0")
    for name, value in values.items():
        periphery, key = known[name]
        periphery.set_range(key, torch.as_tensor(value))
    return model


def learned_ranges(model: nn.Module) -> dict[str, nn.Parameter]:
    """The Parameters of the converters with ``range = "learned"``, for an optimizer; each holds the natural
    logarithm of its ranges (:func:`ranges` gives the ranges themselves), in float64.

    ``torch.optim.SGD([*model.parameters(), *an.learned_ranges(model).values()], lr=…, momentum=0.9)``; a
    weight decay, if any, is for the weights alone. They are not in ``model.parameters()`` nor in its
    ``state_dict``, which stay those of the digital model; :func:`analognoise.fit` trains them by itself.
    Their gradient comes through the products, inside :func:`periphery_in_training`.
    ``DistributedDataParallel`` does not average it over processes; :func:`analognoise.fit` and the optimizers
    of this package do.
    """
    return {
        _join(name, key): values
        for name, periphery in _peripheries(model).items()
        for key, values in periphery.ranges.items()
        if isinstance(values, nn.Parameter)
    }


def needs_calibration(model: nn.Module) -> bool:
    """Whether a converter still has no range."""
    return any(set(periphery.ranges) - periphery.known for periphery in _peripheries(model).values())


@contextmanager
def periphery_in_training(model: nn.Module, seed: int = 0) -> Iterator[nn.Module]:
    """Let training, too, compute through the periphery inside (hardware-aware training).

    In training mode layers compute with their digital weights; inside, these go through converters and
    noise as on a chip that holds them exactly: no programming noise, drift or IR drop. (Methods such as
    ``noise`` and ``profile-noise`` add their own noise to the weights.) Gradients pass straight through the
    rounding, and are 0 where a converter cut a value off. Every forward draws noise anew.

    Args:
        model: a converted model; of one in ``DistributedDataParallel`` every process draws noise of its own.
        seed: root of the noise.

    Raises:
        ConversionError: when no layer has a periphery.
    """
    require_analog(model, "train with a periphery")
    peripheries = list(_peripheries(model).values())
    if not peripheries:
        raise ConversionError(
            "cannot train with a periphery: no layer's profile has one; add one, for example "
            'profile.replace({"periphery.preset": "standard-8bit"})'
        )
    stream = Stream(seed, "product in training", chip=Processes(model).rank)
    before = [(periphery.training, periphery.calls) for periphery in peripheries]
    for periphery in peripheries:
        periphery.training, periphery.calls = stream, 0
    try:
        yield model
    finally:
        for periphery, (training, calls) in zip(peripheries, before, strict=True):
            periphery.training, periphery.calls = training, calls


def _peripheries(model: nn.Module) -> dict[str, LayerPeriphery]:
    return {
        name: layer.analog.periphery
        for name, layer in analog_layers(unwrapped(model)).items()
        if layer.analog.periphery is not None
    }


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
