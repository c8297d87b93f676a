"""aihwkit's tiles under our layers: programming, drift and compensation are aihwkit's, products are ours.

A layer on these tiles is the same module with the same Parameters as on our own, and what
:mod:`analognoise.chip` and the evaluation promise holds for it too. aihwkit draws from torch's global
generators: they are set from the key of (layer, tile, chip, time) before and left as found after. All of it
runs on the CPU, whatever device the model is on, so that a chip is the same everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields, is_dataclass
from enum import Enum
from importlib.metadata import version
from typing import Any

import torch
from aihwkit.exceptions import AihwkitException
from aihwkit.simulator.configs import InferenceRPUConfig
from torch import Tensor

from analognoise.crossbar import Reading
from analognoise.crossbar.mapping import full_scale
from analognoise.devices.catalog import load_profile
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import ConversionError, UnitError
from analognoise.interop.aihwkit.export_config import make_rpu_config
from analognoise.interop.aihwkit.import_config import read_rpu_config
from analognoise.interop.aihwkit.noise_model import ProfileNoiseModel
from analognoise.seeds import Stream, nanoseconds, rng_preserved
from analognoise.units import format_time

NAME = "aihwkit"
_ADDRESS = re.compile(r"0x[0-9a-f]+")


def make_tile(device: Any, compensation: str, collapse_pairs: bool) -> AihwkitTile:
    """Tiles for layers of one device; the engine's side of :func:`analognoise.convert_to_analog`.

    Args:
        device: a profile, its name or file, or an inference configuration of aihwkit.
        compensation: as in ``convert_to_analog``; a configuration brings its own.
        collapse_pairs: likewise.

    Raises:
        ConversionError: when the configuration asks for what this engine does not do, or its tile does not
            work beside this torch.
        ProfileError: when the profile cannot be loaded or the configuration cannot be read.
    """
    if isinstance(device, InferenceRPUConfig):
        config = deepcopy(device)
        if compensation != "global":
            raise ConversionError(
                f"compensation is {compensation!r} but an aihwkit configuration brings its own: set its "
                "field drift_compensation"
            )
        if collapse_pairs and not getattr(config.noise_model, "collapse_pairs", True):
            raise ConversionError(
                "collapse_pairs is asked for but the configuration's noise model keeps pairs: make that with "
                "to_noise_model(profile, collapse_pairs=True)"
            )
        read = read_rpu_config(config, stand_in=True)
        profile, compensation = read.profile, read.compensation
    else:
        profile = load_profile(device)
        _check_periphery(profile)
        # The periphery is ours, around aihwkit's tiles.
        bare = profile.replace({"periphery": None})
        config = make_rpu_config(bare, compensation, collapse_pairs, compiled=False)
    _check_config(config)
    return AihwkitTile(profile, compensation, config)


class AihwkitTile:
    """An array in aihwkit that can be programmed with a block of weights; see
    :class:`analognoise.crossbar.CrossbarTile`.

    Args:
        profile: the device, also where a configuration was given.
        compensation: name of the drift compensation.
        config: aihwkit's configuration.
    """

    engine = NAME

    def __init__(self, profile: DeviceProfile, compensation: str, config: InferenceRPUConfig) -> None:
        self.profile = profile
        self.compensation = compensation
        self.config = config
        # aihwkit's own noise models always merge pairs.
        self.collapse_pairs: bool = getattr(config.noise_model, "collapse_pairs", True)
        self.settings: dict[str, Any] = {"engine": NAME, NAME: version(NAME), "config": plain(config)}

    def program(
        self, weights: Tensor, stream: Stream, layer_max: Tensor | None = None
    ) -> AihwkitProgrammedTile:
        """Write the weights' target conductances once, by aihwkit's ``program_weights``.

        Args:
            weights: ``[columns, rows]`` or ``[groups, columns, rows]``; each group of a convolution gets a
                tile of aihwkit of its own.
            stream: the key of this tile on this chip.
            layer_max: as in our own tile; used by profiles with ``scale = "layer"``.
        """
        blocks = weights.detach().reshape(-1, *weights.shape[-2:]).float().cpu()
        tiles = []
        with _drawing_from(stream.at(process="aihwkit program")):
            for block in blocks:
                tile = _new_tile(self.config, *block.shape)
                tile.set_weights(block, weight_scaling_omega=_layer_scaling(tile, block, layer_max))
                tile.program_weights()
                tiles.append(tile)
        return AihwkitProgrammedTile(self.profile, tiles, stream, weights.device)


class AihwkitProgrammedTile:
    """One programmed draw of a block; see :class:`analognoise.crossbar.ProgrammedTile`.

    Args:
        profile: the device.
        tiles: aihwkit's tiles, programmed, one for each group.
        stream: key of the block.
        device: where its weights are wanted.
    """

    stuck_weights = None  # aihwkit knows no faults

    def __init__(
        self, profile: DeviceProfile, tiles: list[Any], stream: Stream, device: torch.device
    ) -> None:
        self.profile = profile
        self.tiles = tiles
        self.stream = stream
        self.device = device

    def __getstate__(self) -> dict[str, Any]:
        # aihwkit's tiles themselves can be neither copied nor pickled: they hold local functions.
        return {**vars(self), "tiles": [_parts(tile) for tile in self.tiles]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, tiles=[_rebuilt(*parts) for parts in state["tiles"]])

    def programmed_weights(self) -> Tensor:
        """Net weights ``[groups, columns, rows]`` right after programming: no drift, no read noise."""
        return self.reading(None).weights

    def weights_at(self, seconds: float) -> Tensor:
        """Net weights ``[groups, columns, rows]`` at a drift time, times the factors of the drift
        compensation.

        The same time always gives the same numbers, whatever times were asked for before.

        Raises:
            UnitError: when aihwkit's noise model does not know this time.
        """
        return self.reading(seconds).weights

    def weights_through(self, times: Sequence[float]) -> list[Tensor]:
        """:meth:`weights_at` each of several drift times."""
        return [self.weights_at(seconds) for seconds in times]

    def reading(self, seconds: float | None) -> Reading:
        """What is computed with at a drift time, or right after programming (None)."""
        if seconds is None:
            blocks = [(tile.programmed_weights, torch.ones(1)) for tile in self.tiles]
        else:
            with _drawing_from(self.stream.at(process="aihwkit read", time_ns=nanoseconds(seconds))):
                blocks = [_drifted(tile, seconds) for tile in self.tiles]
        weights, scales = [], []
        for (net, alpha), tile in zip(blocks, self.tiles, strict=True):
            scale = alpha.reshape(-1, 1)
            if tile.get_scales() is not None:
                scale = scale * tile.get_scales().reshape(-1, 1)
            weights.append(net * scale)
            scales.append(scale.expand(len(net), 1) / full_scale(self.profile))
        assembled = [torch.stack(parts).detach().to(self.device) for parts in (weights, scales)]
        return Reading(assembled[0], assembled[1], None)

    def to(self, device: torch.device) -> AihwkitProgrammedTile:
        """Give weights on another device from now on; aihwkit goes on working on the CPU."""
        self.device = device
        return self


def _drifted(tile: Any, seconds: float) -> tuple[Tensor, Tensor]:
    """Weights of an aihwkit tile at a drift time, and the factor of its compensation."""
    try:
        tile.drift_weights(seconds)
    except AihwkitException as error:
        raise UnitError(f"aihwkit cannot drift to {format_time(seconds)}: {error}") from None
    return tile.tile.get_weights(), tile.alpha


def _new_tile(config: InferenceRPUConfig, columns: int, rows: int) -> Any:
    return config.tile_class(columns, rows, config, False).eval()


def _layer_scaling(tile: Any, block: Tensor, layer_max: Tensor | None) -> float | None:
    """The weight_scaling_omega for which 1 is the layer's largest weight in the tile's units; None leaves the
    configuration's.
    """
    model = tile.rpu_config.noise_model
    if layer_max is None or not layer_max > 0 or not isinstance(model, ProfileNoiseModel):
        return None
    model.g_converter.layer_max = 1.0
    return float(block.abs().max()) / float(layer_max)


# What an aihwkit tile holds between programming and drift.
_HELD = ("reference_combined_weights", "programmed_weights", "drift_noise_parameters", "drift_baseline")


def _parts(tile: Any) -> tuple[Any, ...]:
    shape = (tile.out_size, tile.in_size)
    return tile.rpu_config, shape, tile.get_scales(), {name: getattr(tile, name) for name in _HELD}


def _rebuilt(config: Any, shape: tuple[int, int], scales: Tensor | None, held: dict[str, Any]) -> Any:
    tile = _new_tile(config, *shape)
    if scales is not None:
        tile.set_scales(scales)
    for name, value in held.items():
        setattr(tile, name, value)
    return tile


def _check_periphery(profile: DeviceProfile) -> None:
    """That the periphery needs no more of a tile than aihwkit tells: its net weights.

    Raises:
        ConversionError: when it needs the conductances of single devices.
    """
    around = profile.surroundings
    for field in ("w_noise", "ir_drop") if around is not None else ():
        if getattr(around, field) is not None:
            raise ConversionError(
                f"profile {profile.name!r} has periphery.{field}, which needs the conductance of every "
                "device, but aihwkit's tiles give net weights alone: take the engine 'analognoise', or a "
                "profile without it"
            )


def _check_config(config: InferenceRPUConfig) -> None:
    """That the engine does what a configuration asks for, and that its tile works here.

    Raises:
        ConversionError: when not.
    """
    name = type(config).__name__
    if not config.forward.is_perfect:
        raise ConversionError(
            f"{name}: forward.is_perfect is False, but only devices and compensation are aihwkit's here: set "
            "forward.is_perfect = True, or give read_rpu_config(config).profile in its place, which has the "
            "converters"
        )
    try:
        _new_tile(config, 1, 1)
    except (RuntimeError, AihwkitException) as error:
        remedy = "use TorchInferenceRPUConfig, whose tile is written in torch"
        if "CPU tensor" in str(error):
            remedy += f", or install the torch that aihwkit {version(NAME)} was built for"
        raise ConversionError(
            f"{name}: aihwkit's {config.tile_class.__name__} does not work beside torch {torch.__version__} "
            f"({error}): {remedy}"
        ) from None


@contextmanager
def _drawing_from(stream: Stream) -> Iterator[None]:
    """Let global generators give a stream's numbers inside, and be as found afterwards."""
    with rng_preserved(), torch.no_grad():
        torch.default_generator.set_state(stream.generator().get_state())
        yield


def plain(value: Any) -> Any:
    """A configuration as nested plain values, for digests: classes by name, objects by their attributes."""
    if isinstance(value, DeviceProfile):
        return value.digest
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, type):
        return value.__qualname__
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if callable(value) or not (is_dataclass(value) or hasattr(value, "__dict__")):
        return _ADDRESS.sub("", repr(value))
    names = [field.name for field in fields(value)] if is_dataclass(value) else vars(value)
    return {type(value).__qualname__: {name: plain(getattr(value, name)) for name in names}}
