"""A user's model onto tiles and back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn

from analognoise.convertible import convertible_layers, find_problems, obstacles
from analognoise.copying import copy_sharing_tensors
from analognoise.crossbar import CrossbarTile
from analognoise.crossbar.compensation import check_compensation
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import ConversionError, ModelError, nearest
from analognoise.layers import analog_class, registered_names
from analognoise.obstacles import GEOMETRY, SIMULATED, obstacle_of
from analognoise.on_tiles import (
    SampledChip,
    analog_layers,
    chip_weights,
    geometries,
    require_analog,
    sample_chip,
)
from analognoise.patterns import Names, all_names, check_patterns, first_matches, matching
from analognoise.printing import counted, kind_of

# With what `on_tiles` says of a converted model.
__all__ = [
    "Filter",
    "Profile",
    "SampledChip",
    "analog_layers",
    "check_filter",
    "check_finite",
    "chip_weights",
    "convert_to_analog",
    "convert_to_digital",
    "for_training",
    "geometries",
    "keeping_digital",
    "require_analog",
    "sample_chip",
]

Filter = Callable[[nn.Module, str], bool]
Profile = DeviceProfile | str
# Where each engine's make_tile(device, compensation, collapse_pairs) is; imported when it is asked for.
_ENGINES = {"analognoise": "analognoise.crossbar.tile", "aihwkit": "analognoise.interop.aihwkit"}
_FUSED = "_analognoise_fused_activation"


def convert_to_analog(
    model: nn.Module,
    profile: Profile | Mapping[str, Profile],
    *,
    filter_fn: Filter | None = None,
    inplace: bool = False,
    compensation: str = "global",
    strict: bool = False,
    engine: str = "analognoise",
    collapse_pairs: bool = False,
) -> nn.Module:
    """Put a model's weight layers on simulated crossbar tiles.

    Linear, convolution, recurrent and attention layers (and those of :func:`register_analog_layer`) become
    subclasses of themselves that share the same Parameter objects; names, ``state_dict`` keys, hooks and
    optimizers stay valid. Biases, normalization and everything else stay digital: :func:`describe` names
    them, and :func:`find_problems` says beforehand what will not convert.

    Args:
        model: any module; it may itself be a layer.
        profile: a :class:`DeviceProfile`, the name of a shipped one, or a path to a TOML file; or a mapping
            from patterns of layer names to profiles (``{"features.*": "pcm-ibm", "head": "ideal"}``): the
            first pattern that matches a layer counts, and layers that none matches stay digital. With
            ``engine="aihwkit"`` also aihwkit's ``TorchInferenceRPUConfig``.
        filter_fn: ``filter_fn(module, name) -> bool`` chooses among the convertible layers; None takes all.
            A module at several places is asked for once, under its first name (a pattern may use any).
        inplace: False copies the module structure and shares every tensor with ``model``; True swaps the
            layers of ``model`` itself.
        compensation: drift compensation: ``"global"`` (a factor per tile), ``"column"`` (one per column) or
            ``"none"``.
        strict: refuse a model in which a layer with weights cannot go on tiles.
        engine: whose tiles hold the weights: ``"analognoise"``, or ``"aihwkit"`` to have programming, drift
            and compensation simulated by aihwkit (docs/aihwkit.md).
        collapse_pairs: merge the two devices of every pair after programming and split them again at drift,
            as aihwkit's noise models do. Only for comparing with it: the noise of the device near g_min is
            lost.

    Raises:
        ConversionError: when there is nothing to convert, the model is converted already, a pattern matches
            no layer or comes too late, it cannot be copied, what a registered class says of a layer does not
            fit it, ``strict`` finds a problem, there is no such engine, or it cannot do what is asked.
        MissingPackageError: when the engine's package is not installed.
        ProfileError: when a profile cannot be loaded.
    """
    check_compensation(compensation)
    if engine not in _ENGINES:
        raise ConversionError(
            f"unknown engine {engine!r}{nearest(engine, _ENGINES)}: known are {', '.join(_ENGINES)}"
        )
    if not isinstance(model, nn.Module):
        raise ConversionError(f"convert_to_analog takes a torch.nn.Module, found {type(model).__name__}")
    converted = analog_layers(model)
    if converted:
        raise ConversionError(
            f"the model is on tiles already (layer {next(iter(converted))!r}): "
            "convert_to_digital gives back the digital model"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise ConversionError(
            f"{type(model).__name__} is a torch.jit module and cannot be changed: convert the Python model "
            "it was made from"
        )
    check_filter(filter_fn)
    found = convertible_layers(model)
    for name, module in model.named_modules():
        obstacle = obstacle_of(module)
        if obstacle is not None and obstacle.kind in (GEOMETRY, SIMULATED):
            raise ConversionError(f"{name or 'the model'} ({type(module).__name__}): {obstacle}")
    problems = find_problems(model) if strict else []
    if problems:
        raise ConversionError(
            f"strict: {counted(len(problems), 'layer')} of {type(model).__name__} cannot go on tiles: "
            + "; ".join(map(str, problems))
        )
    chosen = {name for name, module in found.items() if filter_fn is None or filter_fn(module, name)}
    if not chosen:
        reason = (
            f"filter_fn chose none of the {len(found)} convertible layers ({', '.join(map(repr, found))})"
            if found
            else f"none of its layers is one of {', '.join(registered_names())}{obstacles(model)}"
        )
        raise ConversionError(f"nothing to convert in {type(model).__name__}: {reason}")
    make_tile = partial(
        import_module(_ENGINES[engine]).make_tile, compensation=compensation, collapse_pairs=collapse_pairs
    )
    tiles = _tiles(profile, all_names(model, found), chosen, make_tile)
    _check_peripheries(found, tiles)
    target = model if inplace else copy_sharing_tensors(model)
    modules = dict(target.named_modules())
    for name, tile in tiles.items():
        cls = analog_class(modules[name])
        assert cls is not None, "convertible layers have a class on tiles"
        cls.place(modules[name], name, tile)
    _keep_out_of_fused_paths(target)
    return target


def check_filter(filter_fn: Any) -> None:
    """Raise unless ``filter_fn`` is None or can be called as ``filter_fn(module, name)``.

    Raises:
        ConversionError: otherwise.
    """
    if filter_fn is None:
        return
    if not callable(filter_fn):
        raise ConversionError(f"filter_fn is a function (module, name) -> bool, found {filter_fn!r}")
    try:
        signature = inspect.signature(filter_fn)
    except (TypeError, ValueError):  # a builtin that says nothing of its arguments
        return
    try:
        signature.bind(None, "")
    except TypeError as error:
        raise ConversionError(f"filter_fn is called as filter_fn(module, name): {error}") from None


def _tiles(
    profile: Profile | Mapping[str, Profile],
    layers: Names,
    chosen: set[str],
    make_tile: Callable[[Profile], CrossbarTile],
) -> dict[str, CrossbarTile]:
    """The kind of tile of each of the chosen layers, if it goes on tiles."""
    on_tiles = {name: names for name, names in layers.items() if name in chosen}
    if not isinstance(profile, Mapping):
        return dict.fromkeys(on_tiles, make_tile(profile))
    if not profile:
        raise ConversionError(
            "the mapping from patterns to profiles is empty, so nothing would go on tiles: "
            "give at least one, such as {'*': 'pcm-ibm'}"
        )
    check_patterns(profile, layers)
    for pattern in profile:
        if not any(matching(names, [pattern]) for names in on_tiles.values()):
            raise ConversionError(
                f"pattern {pattern!r} of the profiles matches only layers that are kept digital: "
                "leave it out, or put them on tiles"
            )
    made = {pattern: make_tile(item) for pattern, item in profile.items()}
    return {name: made[pattern] for name, pattern in first_matches(made, on_tiles).items()}


def _check_peripheries(layers: Mapping[str, nn.Module], tiles: Mapping[str, CrossbarTile]) -> None:
    for name, tile in tiles.items():
        cls, device = analog_class(layers[name]), tile.profile
        if device.surroundings is not None and cls is not None and not cls.supports_periphery:
            raise ConversionError(
                f"layer {name!r}: profile {device.name!r} has a periphery, but {cls.__name__} does not say "
                "how it computes with one: let its forward compute with AnalogLayer.multiply and set "
                'supports_periphery = True, keep it digital, or put it on profile.replace({"periphery": '
                "None})"
            )


def keeping_digital(model: nn.Module, patterns: Iterable[str]) -> Filter | None:
    """A ``filter_fn`` that leaves digital the layers that shell patterns match; None for no pattern.

    Args:
        model: digital; nothing of it is changed.
        patterns: of layer names (``"head*"``), each of which must match a convertible layer or a parent.

    Raises:
        ConversionError: when a pattern matches no layer, or nothing would be left for tiles.
    """
    found, kept = all_names(model, convertible_layers(model)), tuple(patterns)
    if not found:
        return None  # the conversion says why
    check_patterns(kept, found)
    if kept and all(matching(names, kept) is not None for names in found.values()):
        raise ConversionError(
            f"nothing to convert in {type(model).__name__}: {', '.join(map(repr, kept))} to be kept digital "
            f"matches all {len(found)} convertible layers ({', '.join(map(repr, found))})"
        )
    return (lambda module, name: matching(found[name], kept) is None) if kept else None


def for_training(model: nn.Module, profile: Profile | None, patterns: Iterable[str]) -> nn.Module:
    """The model as a training method must see it: layers that stay digital are not its business.

    Without patterns the model itself. With some, a copy that shares every tensor, whose other layers are on
    tiles: methods put noise on those alone, clip those alone, and training it trains ``model``.

    Args:
        model: digital.
        profile: the device to train for, if any.
        patterns: as for :func:`keeping_digital`.

    Raises:
        ConversionError: as :func:`keeping_digital`.
    """
    chosen = keeping_digital(model, patterns)
    return model if chosen is None else convert_to_analog(model, profile or "ideal", filter_fn=chosen)


def convert_to_digital(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Give back the model with its original classes; the tensors are shared, what was programmed is dropped.

    Raises:
        ConversionError: when the model is not on tiles, cannot be copied, or a layer was given another class
            after the conversion.
    """
    if not isinstance(model, nn.Module):
        raise ConversionError(f"convert_to_digital takes a torch.nn.Module, found {type(model).__name__}")
    if not analog_layers(model):
        raise ConversionError(f"{type(model).__name__} has no layer on tiles: it is digital already")
    for name, layer in analog_layers(model).items():
        if "digital_class" not in vars(type(layer)):
            raise ConversionError(
                f"layer {name!r} is {kind_of(layer)} now (sharded with fully_shard after the "
                "conversion?), so its digital class cannot be given back: call convert_to_digital before that"
            )
    target = model if inplace else copy_sharing_tensors(model)
    for layer in analog_layers(target).values():
        layer.remove()
    for module in target.modules():
        if hasattr(module, _FUSED):
            module.activation_relu_or_gelu = getattr(module, _FUSED)
            delattr(module, _FUSED)
    return target


def _keep_out_of_fused_paths(model: nn.Module) -> None:
    """Make torch's Transformer encoder layers call their linear layers also in eval mode.

    Their fused path takes the layers' Parameters and never calls them, which would bypass the tiles. It is
    taken only for an activation that the layer has marked as ReLU or GELU; without the mark the layer
    computes the same by its ordinary path.
    """
    for module in model.modules():
        if (
            isinstance(module, nn.TransformerEncoderLayer)
            and analog_layers(module)
            and not hasattr(module, _FUSED)
        ):
            setattr(module, _FUSED, module.activation_relu_or_gelu)
            module.activation_relu_or_gelu = 0


def check_finite(model: nn.Module) -> None:
    """Raise unless every parameter is finite.

    Raises:
        ModelError: naming the first parameter that holds NaN or inf.
    """
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if values.layout in (torch.sparse_coo, torch.sparse_csr):
            values = values.to_dense()
        bad = int((~torch.isfinite(values)).sum())
        if bad:
            raise ModelError(
                f"parameter {name!r}: {bad} of its {counted(parameter.numel(), 'value')} are NaN or infinite"
            )
