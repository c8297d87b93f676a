"""One programmed chip in a file, to have the same chip again elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from analognoise.conversion import require_analog
from analognoise.crossbar import ProgrammedTile
from analognoise.errors import ChipError, NotProgrammedError
from analognoise.layers import AnalogLayer
from analognoise.layers.base import gathered
from analognoise.seeds import Stream

FORMAT = "2"


def save_chip(model: nn.Module, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write the chip that is programmed now: every device's conductance and drift coefficient.

    A safetensors file: float32 tensors, and as metadata the profiles' digests, the digests of the weights
    that were programmed, the seed, the drift time, converters' ranges from data or training, and the version
    of analognoise. The digital weights are not in it.

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

    path = Path(path)
    tensors: dict[str, Tensor] = {}
    layers: dict[str, Any] = {}
    for name, layer in require_analog(model, "save a chip").items():
        state = layer.analog
        if state.tiles is None:
            raise NotProgrammedError(
                f"layer {name!r} has no chip to save: call analognoise.program_(model, seed=0) first"
            )
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
    if path.exists() and not overwrite:
        raise ChipError(f"{path} exists: choose another name, or pass overwrite=True")
    metadata = {"analognoise": __version__, "format": FORMAT, "layers": json.dumps(layers)}
    part = path.with_name(path.name + ".part")
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
        ChipError: when the file is none of :func:`save_chip`, or of another model or profile; the first
            difference is named, and the model is left as it was.
    """
    layers = require_analog(model, "load a chip")
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
    saved = json.loads(metadata["layers"])
    if list(saved) != list(layers):
        differing = sorted(set(saved) ^ set(layers)) or list(layers)
        raise ChipError(
            f"{path} is a chip of another model: layer {differing[0]!r} is "
            f"{'not in the file' if differing[0] in layers else 'not in the model'}"
        )
    for name, layer in layers.items():
        _compare(str(path), name, saved[name], _identity(layer))
    for name, layer in layers.items():
        _put(layer, name, saved[name], tensors)
    return model


def _identity(layer: AnalogLayer) -> dict[str, Any]:
    state = layer.analog
    return {
        "name": state.name,
        "profile": f"{state.profile.name} (digest {state.profile.digest})",
        "compensation": state.compensation,
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


def _compare(path: str, name: str, saved: dict[str, Any], own: dict[str, Any]) -> None:
    words = {
        "name": "the layer's name at conversion",
        "profile": "the device profile",
        "compensation": "the drift compensation",
        "blocks": "the split into tiles",
        "weights": "the weights that were programmed",
    }
    for key, what in words.items():
        if saved[key] != own[key]:
            short = key in ("name", "profile", "compensation")
            values = f": {saved[key]} in the file, {own[key]} in the model" if short else ""
            kind = "device" if key == "profile" else "model"
            raise ChipError(f"{path} is a chip of another {kind}: layer {name!r} differs in {what}{values}")


def _put(layer: AnalogLayer, name: str, saved: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    state = layer.analog
    device = next(iter(layer.targets().values())).device
    tiles = []
    for number, keys in enumerate(saved["tiles"]):
        stream = Stream(keys["root"], "", keys["layer"], keys["tile"], keys["chip"])
        place = f"{name}/{number}"
        tile = ProgrammedTile(
            state.profile,
            state.compensation,
            tensors[f"{place}/state"].to(device),
            tensors[f"{place}/coefficients"].to(device) if f"{place}/coefficients" in tensors else None,
            tensors[f"{place}/scale"].to(device),
            stream,
        )
        tile.drawn_on = torch.device(keys["drawn_on"])
        tiles.append(tile)
    state.tiles = tiles
    if state.periphery is not None:
        for key, values in saved.get("ranges", {}).items():
            state.periphery.set_range(key, torch.tensor(values))
    with torch.inference_mode(False), torch.no_grad():
        layer.note_written()
        layer._write(saved["time"])
