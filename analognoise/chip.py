"""One chip: programming a converted model, letting it drift, computing without it."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from analognoise.crossbar import program_all, read_all
from analognoise.errors import ConversionError
from analognoise.layers import AnalogLayer, check_programmable, note_written, warn_if_stale
from analognoise.on_tiles import analog_layers, require_analog
from analognoise.seeds import Stream
from analognoise.units import parse_time

ChipWeights = tuple[dict[str, Tensor], ...]
"""What a chip computes with at some time, layer by layer."""


def program_(model: nn.Module, seed: int = 0, chip: int = 0) -> nn.Module:
    """Program one chip with the model's present weights, in place.

    Fixes every device's conductance and drift coefficient. In eval mode the model then computes with the
    weights right after programming: no drift, no read noise. The same (seed, chip) always gives the same
    chip.

    Args:
        model: a converted model.
        seed: root seed of the experiment.
        chip: number of the chip in it.

    Returns:
        The model.

    Raises:
        ConversionError: when the model has no layer on tiles, two of its layers were converted under one
            name, or seed or chip is no whole number.
        ModelError: when a layer's weights hold NaN or inf, or have another shape than those that were
            converted; the chip that was programmed before is left as it was.
    """
    layers = require_analog(model, "program a chip")
    stream = Stream(_whole("seed", seed), "", chip=_whole("chip", chip))
    _refuse_equal_names(layers)
    with torch.inference_mode(False), torch.no_grad():
        check_programmable(layers.values())
        programmed = program_all(chain.from_iterable(layer.requests(stream) for layer in layers.values()))
        for layer in layers.values():
            layer.program_(programmed)
        note_written(layers.values())
    return model


def _refuse_equal_names(layers: dict[str, AnalogLayer]) -> None:
    # A layer's draws belong to its name at conversion, so two of one name would have the very same noise.
    places: dict[str, str] = {}
    for place, layer in layers.items():
        other = places.setdefault(layer.analog.name, place)
        if other != place:
            raise ConversionError(
                f"cannot program a chip: layers {other!r} and {place!r} were both converted under the name "
                f"{layer.analog.name!r}, so every device of theirs would draw the same noise: convert the "
                "whole model at once (filter_fn and profiles by pattern choose layer by layer)"
            )


def _whole(name: str, value: int) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ConversionError(f"program_: {name} must be a whole number, found {value!r}") from None


def drift_to_(model: nn.Module, time: str | float) -> nn.Module:
    """Set the programmed chip to a drift time, in place; times may be visited in any order.

    Args:
        model: a converted and programmed model.
        time: since programming ended, in seconds or as text: ``"25s"``, ``"1h"``, ``"1d"``, ``"1mo"``,
            ``"1y"``.

    Returns:
        The model.

    Raises:
        ConversionError: when the model has no layer on tiles.
        NotProgrammedError: when no chip was programmed.
        ProfileError: when a device is not known at that time.
        UnitError: when the time cannot be read.
    """
    seconds = parse_time(time)
    layers = _ready_to_drift(model, [seconds])
    with torch.inference_mode(False), torch.no_grad():
        warn_if_stale(layers.values())
        readings = read_all(chain.from_iterable(layer.places() for layer in layers.values()), seconds)
        for layer in layers.values():
            layer.drift_to_(seconds, readings)
    return model


def _ready_to_drift(model: nn.Module, times: Sequence[float]) -> dict[str, AnalogLayer]:
    layers = require_analog(model, "let a chip drift")
    for profile in dict.fromkeys(layer.analog.profile for layer in layers.values()):
        for seconds in times:
            profile.check_time(seconds)
    for layer in layers.values():
        layer.check_programmed()
    return layers


def weights_through(model: nn.Module, times: Sequence[float]) -> list[ChipWeights]:
    """What the programmed chip computes with at several drift times, for ``put_weights`` of each layer; bit
    for bit the same as by one drift after the other, and for a small model in half the time.

    Args:
        model: a converted and programmed model; where a layer has a periphery it is left at the last time.
        times: in seconds.

    Raises:
        ConversionError, NotProgrammedError, ProfileError: as :func:`drift_to_`.
    """
    layers = _ready_to_drift(model, times).values()
    with torch.inference_mode(False), torch.no_grad():
        if all(layer.analog.periphery is None for layer in layers):
            return list(zip(*(layer.weights_through(times) for layer in layers), strict=True))
        found = []
        for seconds in times:
            drift_to_(model, seconds)
            found.append(tuple(layer.analog.copy_weights() for layer in layers))
        return found


def restart_products(model: nn.Module, products: int = 0) -> None:
    """Let the noise of products begin anew, as when the chip is brought to its drift time, or as after so
    many products of each layer.
    """
    for layer in analog_layers(model).values():
        layer.analog.restart(products)


@contextmanager
def digital(model: nn.Module) -> Iterator[nn.Module]:
    """Compute with the digital target weights inside, whatever the mode; nothing of the chip is lost. Digital
    models pass unchanged.
    """
    states = [layer.analog for layer in analog_layers(model).values()]
    before = [state.digital for state in states]
    for state in states:
        state.digital = True
    try:
        yield model
    finally:
        for state, flag in zip(states, before, strict=True):
            state.digital = flag


@contextmanager
def chip_preserved(model: nn.Module) -> Iterator[nn.Module]:
    """Give back the chip that is programmed now, at its drift time and after as many products, when the block
    ends; inside, other chips may be programmed.
    """
    states = [layer.analog for layer in analog_layers(model).values()]
    kept = [
        (state.tiles, state.time, state.copy_weights(), state.written, state.products) for state in states
    ]
    try:
        yield model
    finally:
        with torch.inference_mode(False), torch.no_grad():
            for state, (tiles, time, weights, written, products) in zip(states, kept, strict=True):
                state.tiles, state.written = tiles, written
                state.put_weights(weights, time)
                state.restart(products)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Eval mode inside; afterwards every module is in the mode it was in."""
    # A frozen torch.jit module has no mode.
    modes = [(module, module.training) for module in model.modules() if hasattr(module, "training")]
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode
