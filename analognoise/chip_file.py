"""One programmed chip in a file, to have the same chip again elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import warnings
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from analognoise.crossbar import ProgrammedTile
from analognoise.crossbar.faults import StuckDevices
from analognoise.crossbar.mapping import devices_of
from analognoise.devices.laws import law_of
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import ChipError, NotProgrammedError
from analognoise.layers import AnalogLayer, note_written
from analognoise.layers.on_chip import gathered
from analognoise.on_tiles import require_analog
from analognoise.printing import counted
from analognoise.seeds import Stream

FORMAT = "3"


class _Tile(BaseModel, extra="forbid"):
    """The key of a tile's random numbers."""

    root: int
    layer: str
    tile: int
    chip: int
    drawn_on: str


class _Layer(BaseModel, extra="forbid"):
    """What a file says of a layer, beside its tensors."""

    name: str
    profile: str
    compensation: str
    blocks: list[tuple[str, int, int, int]]
    weights: dict[str, str]
    time: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    tiles: list[_Tile]
    ranges: dict[str, list[float]] = {}
    collapse_pairs: bool = False


_LAYERS = TypeAdapter(dict[str, _Layer])


def save_chip(model: nn.Module, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write the chip that is programmed now: every device's conductance and drift coefficient, and faults.

    A safetensors file: float32 tensors (places of faults: int64), and as metadata the profiles' digests, the
    digests of the weights that were programmed, the seed, the drift time, converters' ranges from data or
    training, the version of analognoise, and a digest of all this. The digital weights are not in it.

    Args:
        model: a converted and programmed model.
        path: the file.
        overwrite: replace a file that exists.

    Raises:
        ConversionError: when the model has no layer on tiles.
        NotProgrammedError: when no chip is programmed.
        ChipError: when weights have changed since the chip was programmed, or the file exists or cannot be
            written.
    """
    from analognoise import __version__  # the package's map of names imports this module

    analog = require_analog(model, "save a chip")
    path = _path(path)
    tensors: dict[str, Tensor] = {}
    layers: dict[str, Any] = {}
    for name, layer in analog.items():
        state = layer.analog
        if state.tiles is None:
            raise NotProgrammedError(
                f"layer {name!r} has no chip to save: call analognoise.program_(model, seed=0) first"
            )
        _check_engine(layer, "save")
        if layer.is_stale():
            raise ChipError(
                f"the weights of layer {name!r} have changed since the chip was programmed, so nobody could "
                "load it: load the weights that it was programmed with, or call analognoise.program_ again"
            )
        layers[name] = {**_identity(layer), "time": state.time, "tiles": [_stream(t) for t in state.tiles]}
        for values in state.range_values():
            layers[name]["ranges"] = values
        for number, tile in enumerate(state.tiles):
            tensors[f"{name}/{number}/state"] = tile.state.contiguous()
            tensors[f"{name}/{number}/scale"] = tile.scale.contiguous()
            if tile.coefficients is not None:
                tensors[f"{name}/{number}/coefficients"] = tile.coefficients.contiguous()
            if tile.faults is not None:
                tensors[f"{name}/{number}/faults"] = tile.faults.places
                tensors[f"{name}/{number}/stuck"] = tile.faults.conductances
    if path.exists() and not overwrite:
        raise ChipError(f"{path} exists: choose another name, or pass overwrite=True")
    text = json.dumps(layers)
    metadata = {
        "analognoise": __version__,
        "format": FORMAT,
        "layers": text,
        "digest": _digest_of_file(text, tensors),
    }
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        save_file(tensors, part, metadata)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise ChipError(f"{path} cannot be written: {error}") from error
    return path


def load_chip(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Put a saved chip on the tiles of the model it was programmed with, at the drift time it was saved at.

    Args:
        model: a converted model with the same layers, profiles and weights.
        path: a file of :func:`save_chip`.

    Returns:
        The model.

    Raises:
        ConversionError: when the model has no layer on tiles.
        ChipError: when the file is none of :func:`save_chip`, is damaged or was edited, or is of another
            model or profile (the first difference is named); or when its read noise was drawn on a type of
            device (CUDA) that this machine has not. The model is left as it was.

    Warns:
        UserWarning: when another version of analognoise wrote it.
    """
    from analognoise import __version__  # the package's map of names imports this module

    layers = require_analog(model, "load a chip")
    path = _path(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ChipError(f"{path} cannot be read as a chip file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ChipError(
            f"{path} is no chip file of format {FORMAT} (found {metadata.get('format')!r}): "
            "write one with analognoise.save_chip"
        )
    text = metadata.get("layers", "")
    if metadata.get("digest") != _digest_of_file(text, tensors):
        raise ChipError(f"{path} is damaged or was edited: its digest is not that of what it holds")
    try:
        saved = _LAYERS.validate_json(text)
    except ValidationError as error:
        raise ChipError(
            f"{path} is no chip file: its metadata cannot be read ({error.errors()[0]['msg']})"
        ) from None
    if set(saved) != set(layers):
        name = next(name for name in (*saved, *layers) if (name in saved) != (name in layers))
        raise ChipError(
            f"{path} is a chip of another model: layer {name!r} is "
            f"{'not in the file' if name in layers else 'not in the model'}"
        )
    for name, layer in layers.items():
        _check_engine(layer, "load")
        _compare(str(path), name, saved[name], _identity(layer))
    tiles = {name: _tiles(path, layer, name, saved[name], tensors) for name, layer in layers.items()}
    if metadata.get("analognoise") != __version__:
        warnings.warn(
            f"{path} was written by analognoise {metadata.get('analognoise')}, this is {__version__}: drift "
            "and read noise may be computed in another way",
            stacklevel=2,
        )
    with torch.inference_mode(False), torch.no_grad():
        for name, layer in layers.items():
            _put(layer, saved[name], tiles[name])
    return model


def _path(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise ChipError(f"a chip file is named by its path, found {path!r}")
    return Path(path)


def _digest_of_file(layers: str, tensors: dict[str, Tensor]) -> str:
    state = hashlib.sha256(layers.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def _check_engine(layer: AnalogLayer, action: str) -> None:
    engine = layer.analog.tile.engine
    if engine != "analognoise":
        raise ChipError(
            f"cannot {action} a chip on tiles of {engine}, which keep their state to themselves: program it "
            "again with the same seed and chip number"
        )


def _identity(layer: AnalogLayer) -> dict[str, Any]:
    state = layer.analog
    return {
        "name": state.name,
        "profile": f"{state.profile.name} (digest {state.profile.digest})",
        "compensation": state.compensation,
        "collapse_pairs": state.tile.collapse_pairs,
        "blocks": [[key, *block.shape] for key, block in state.placed],
        "weights": {key: _digest(gathered(target)) for key, target in layer.targets().items()},
    }


def _digest(weights: Tensor) -> str:
    plain = weights.detach().float().cpu().contiguous()
    return hashlib.sha256(plain.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def _stream(tile: ProgrammedTile) -> dict[str, Any]:
    stream = tile.stream
    return {
        "root": stream.root,
        "layer": stream.layer,
        "tile": stream.tile,
        "chip": stream.chip,
        "drawn_on": tile.drawn_on.type,
    }


def _compare(path: str, name: str, layer: _Layer, own: dict[str, Any]) -> None:
    saved = layer.model_dump()
    saved["blocks"] = [list(block) for block in layer.blocks]
    words = {
        "name": "the layer's name at conversion",
        "profile": "the device profile",
        "compensation": "the drift compensation",
        "collapse_pairs": "collapse_pairs",
        "blocks": "the split into tiles",
        "weights": "the weights that were programmed",
    }
    for key, what in words.items():
        if saved[key] != own[key]:
            short = key in ("name", "profile", "compensation", "collapse_pairs")
            values = f": {saved[key]} in the file, {own[key]} in the model" if short else ""
            kind = "device" if key == "profile" else "model"
            raise ChipError(f"{path} is a chip of another {kind}: layer {name!r} differs in {what}{values}")


def _tiles(
    path: Path, layer: AnalogLayer, name: str, saved: _Layer, tensors: dict[str, Tensor]
) -> list[ProgrammedTile]:
    """A layer's tiles from a file; nothing of the layer is changed.

    Raises:
        ChipError: when a tensor is missing or not what the layer needs, or the machine lacks the generator.
    """
    state = layer.analog
    device = next(iter(layer.targets().values())).device
    if len(saved.tiles) != len(state.placed):
        raise ChipError(
            f"{path}: layer {name!r} has {counted(len(saved.tiles), 'tile')}, needs {len(state.placed)}"
        )
    tiles = []
    for number, ((_, block), keys) in enumerate(zip(state.placed, saved.tiles, strict=True)):
        place = f"{name}/{number}"
        _check_generator(path, name, state.profile, keys.drawn_on)
        found = {key: tensors.get(f"{place}/{key}") for key in ("state", "scale", "coefficients")}
        for key, tensor in found.items():
            if tensor is None and key == "coefficients" and not _has_coefficients(state.profile):
                continue
            fits = tensor is not None and tensor.dtype == torch.float32 and bool(tensor.isfinite().all())
            groups, columns, rows = block.shape
            if tensor is not None and key == "scale":
                by_column = state.profile.mapping.scale == "column"
                fits &= tensor.shape == ((groups, columns, 1) if by_column else (1, 1, 1))
            elif tensor is not None:
                fits &= tensor.ndim == 4 and (tensor.shape[1], tensor.shape[3]) == (groups, rows)
                fits &= tensor.numel() == devices_of(block, state.profile)
            if not fits:
                raise ChipError(f"{path}: tensor {f'{place}/{key}'!r} is missing or not of this layer")
        programmed, scale, coefficients = (None if t is None else t.to(device) for t in found.values())
        assert programmed is not None
        assert scale is not None
        faults = _faults(path, place, programmed.numel(), tensors)
        stream = Stream(keys.root, "", keys.layer, keys.tile, keys.chip)
        faults = None if faults is None else faults.to(device)
        kept = (programmed, coefficients, scale, stream, faults)
        tile = ProgrammedTile(state.profile, state.compensation, *kept)
        tile.drawn_on = torch.device(keys.drawn_on)
        tiles.append(tile)
    return tiles


def _has_coefficients(profile: DeviceProfile) -> bool:
    """Whether programming fixes a second number for each device, as seen on one device."""
    one = torch.full((1, 1, 1, 1), float(profile.conductance.g_max))
    return law_of(profile).write(one, lambda process: torch.zeros_like(one))[1] is not None


def _faults(path: Path, place: str, devices: int, tensors: dict[str, Tensor]) -> StuckDevices | None:
    """A tile's faults from a file; None where it has none.

    Raises:
        ChipError: when they are not those of a tile with so many devices.
    """
    places, values = tensors.get(f"{place}/faults"), tensors.get(f"{place}/stuck")
    if places is None and values is None:
        return None
    if (
        places is None
        or values is None
        or (places.dtype, values.dtype) != (torch.int64, torch.float32)
        or places.ndim != 1
        or places.shape != values.shape
        or not values.isfinite().all()
        or not ((places >= 0) & (places < devices)).all()
    ):
        raise ChipError(f"{path}: the faults of tile {place!r} are incomplete or not of this layer")
    return StuckDevices(places, values)


def _check_generator(path: Path, name: str, profile: DeviceProfile, kind: str) -> None:
    draws = profile.read is not None or profile.law is not None
    there = kind == "cpu" or (hasattr(torch, kind) and getattr(torch, kind).is_available())
    if draws and not there:
        raise ChipError(
            f"{path}: the chip of layer {name!r} was programmed on {kind!r}, and its read noise is drawn by "
            "that device's generator, which this machine has not: load it where there is one"
        )


def _put(layer: AnalogLayer, saved: _Layer, tiles: list[ProgrammedTile]) -> None:
    state = layer.analog
    state.tiles = tiles
    if state.periphery is not None:
        for key, values in saved.ranges.items():
            state.periphery.set_range(key, torch.tensor(values))
    note_written([layer])
    state.views = None
    layer._write(saved.time)
