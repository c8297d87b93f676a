"""What of a model is on tiles: its layers, their weights, and a chip drawn for one training step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from analognoise.convertible import convertible_layers
from analognoise.errors import ConversionError
from analognoise.layers import AnalogLayer, Geometry, analog_class, check_programmable
from analognoise.seeds import Stream


def analog_layers(model: nn.Module) -> dict[str, AnalogLayer]:
    """Layers on tiles by their present qualified name; a module used at several places once, under its first
    name.
    """
    layers: dict[str, AnalogLayer] = {}
    seen: set[nn.Module] = set()
    # The order of named_modules, whose generators, one within the other, take several times as long.
    ahead: list[tuple[str, nn.Module | None]] = [("", model)]
    while ahead:
        name, module = ahead.pop()
        if module is None or module in seen:
            continue
        seen.add(module)
        if isinstance(module, AnalogLayer):
            layers[name] = module
        children = module._modules
        if children:
            prefix = f"{name}." if name else ""
            ahead += [(prefix + child, inner) for child, inner in reversed(list(children.items()))]
    return layers


def require_analog(model: nn.Module, action: str) -> dict[str, AnalogLayer]:
    """The layers on tiles of a model that must have some.

    Raises:
        ConversionError: when it has none.
    """
    if not isinstance(model, nn.Module):
        raise ConversionError(f"cannot {action}: a torch.nn.Module is needed, found {type(model).__name__}")
    layers = analog_layers(model)
    if not layers:
        raise ConversionError(
            f"cannot {action}: {type(model).__name__} has no layer on tiles; "
            "call analognoise.convert_to_analog(model, profile) first"
        )
    return layers


def chip_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that are, or would be, on tiles: ``{"conv1.weight": Parameter}``, each Parameter once.

    For a converted model those of its analog layers; for a digital one those of every convertible layer.
    """
    modules: dict[str, nn.Module] = dict(analog_layers(model)) or convertible_layers(model)
    weights: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, module in modules.items():
        for parameter in geometries(module):
            weight = module.get_parameter(parameter)
            if id(weight) not in seen:
                seen.add(id(weight))
                weights[_join(name, parameter)] = weight
    return weights


class SampledChip(NamedTuple):
    """A chip that was drawn for one training step; names are those of :func:`chip_weights`.

    Attributes:
        weights: ``{"conv1.weight": Tensor}`` of each Parameter's shape and type.
        stuck: which weights have a stuck device, bool of that shape; not of layers where all devices work.
    """

    weights: dict[str, Tensor]
    stuck: dict[str, Tensor]


@torch.no_grad()
def sample_chip(model: nn.Module, *, seed: int, step: int, seconds: float, net: bool = False) -> SampledChip:
    """The weights that a fresh chip, drawn for this step alone, would have at a drift time; for training on
    the profile's own noise and faults.

    Args:
        model: a converted model; its programmed chip is left alone.
        seed: root of the keys.
        step: training step; every step gives another chip.
        seconds: drift time.
        net: draw the noise of each pair as one normal, right in mean and variance
            (:mod:`analognoise.crossbar.net`).

    Raises:
        ConversionError: when the model is not on tiles.
        ModelError: when weights cannot be programmed, as :func:`analognoise.program_`.
    """
    chip = SampledChip({}, {})
    seen: set[int] = set()
    layers = require_analog(model, "sample weights")
    check_programmable(layers.values())
    for name, layer in layers.items():
        own = {parameter: id(layer.target(parameter)) for parameter in geometries(layer)}
        if seen.issuperset(own.values()):
            continue
        stream, stuck = Stream(seed, "", chip=step, step=step), {}
        if net:
            drawn = layer.net_weights(stream, seconds)
        else:
            tiles = layer.program_tiles(stream)
            drawn, stuck = layer.assemble(tiles, seconds, layer.empty_weights()), layer.stuck(tiles)
        for found, kept in ((drawn, chip.weights), (stuck, chip.stuck)):
            for parameter, values in found.items():
                if own[parameter] not in seen:
                    kept[_join(name, parameter)] = values
        seen.update(own.values())
    return chip


def geometries(module: nn.Module) -> dict[str, Geometry]:
    """How the weights of a layer, on tiles or convertible, lie on the array, by Parameter name."""
    cls = type(module) if isinstance(module, AnalogLayer) else analog_class(module)
    assert cls is not None, f"{type(module).__name__} is not convertible"
    return cls.geometries(module)


def _join(name: str, parameter: str) -> str:
    return f"{name}.{parameter}" if name else parameter
