"""Weights in and out of safetensors files; nothing is ever unpickled.

The file of a quantized model holds the float weights under their usual names, the ranges of its quantizers
beside them, and in its metadata how they quantize: it loads into the float model and into the quantized one.
Of a model with sparse activation layers the metadata say which they are, and what their outputs are put
through.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from analognoise.conversion import Filter
from analognoise.errors import ModelError, QuantizationError, SparsityError, nearest
from analognoise.files import write_whole
from analognoise.quantized import (
    RANGE_NAMES,
    Quantization,
    dequantize,
    quantize_as,
    quantized_layers,
)
from analognoise.sparsity import Sparsity, sparse_layers, sparsify_as

_SHOWN = 4
# The keys of a file's metadata.
_QUANTIZERS = "analognoise.quantizers"
_SPARSITY = "analognoise.sparsity"


def save_weights(model: nn.Module, path: str | Path) -> str:
    """Write a model's ``state_dict`` to a safetensors file; a tensor under several names (tied weights) is
    written once. Of a quantized model also the ranges, and how it is quantized; of sparse activation layers,
    what their outputs are put through.

    The file appears whole or not at all. Returns its SHA-256 digest (hexadecimal).

    Raises:
        ResultsError: when it cannot be written.
    """
    target = Path(path)
    state = model.state_dict()
    first = {id_: names[0] for id_, names in _tied(state).items()}
    tensors = {name: state[name].detach().contiguous().cpu() for name in sorted(first.values())}
    metadata = {"format": "pt"}
    layers = quantized_layers(model)
    if layers:
        settings = {name: layer.quantization.to_dict() for name, layer in layers.items()}
        metadata[_QUANTIZERS] = json.dumps(settings)
    if sparse := sparse_layers(model):
        metadata[_SPARSITY] = json.dumps({name: asdict(form) for name, form in sparse.items()})
    write_whole(target, _in_order(save(tensors, metadata=metadata)))
    return file_digest(target)


def _in_order(content: bytes) -> bytes:
    """A safetensors file whose metadata stand in the order of their keys: the library writes several of them
    in a random one, and the same model would have another digest each time.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if len(header["__metadata__"]) == 1:
        return content
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Read a safetensors file into a model, in place, if it fits exactly.

    A float model takes the float weights of a file of a quantized one; :func:`load_quantized` makes the
    quantized model.

    Raises:
        ModelError: when the file is missing or no safetensors file, when tensors are missing, unexpected or
            of another shape or kind (all are named), when one holds NaN or inf, or when the file's quantizers
            or sparse activation layers are not the model's. The model is then unchanged.
    """
    source = Path(path)
    tensors, quantizers, sparse = _read(source)
    found = sparse_layers(model)
    for name, form in sparse.items():
        if name not in found:
            raise ModelError(
                f"weights file {str(source)!r}: its activation layer {name!r} is sparse ({form}), but the "
                f"model's is not: make it so with analognoise.sparsify(model, {form.arguments})"
            )
        if found[name] != form:
            raise ModelError(
                f"weights file {str(source)!r}: its activation layer {name!r} is sparse by {form}, but the "
                f"model's by {found[name]}: analognoise.sparsify(model, {form.arguments}) makes it the same"
            )
    layers = quantized_layers(model)
    for name, layer in layers.items():
        if name in quantizers and quantizers[name] != layer.quantization:
            raise ModelError(
                f"weights file {str(source)!r}: layer {name!r} was quantized ({quantizers[name]}) "
                f"otherwise than in the model ({layer.quantization}): "
                "analognoise.load_quantized makes the model of the file"
            )
    for name in quantizers:
        if name not in layers:  # the ranges of quantizers that a float model has no use for
            for leaf in RANGE_NAMES:
                tensors.pop(f"{name}.{leaf}" if name else leaf, None)
    _put(model, tensors, source)


def _with(settings: Quantization, quantizers: dict[str, Quantization]) -> Filter:
    """Chooses the layers that a file quantizes with these settings."""
    return lambda _, name: quantizers.get(name) == settings


def load_quantized(model: nn.Module, path: str | Path) -> nn.Module:
    """The quantized model of a file that :func:`save_weights` wrote of one.

    Args:
        model: the float model it was made from; unchanged if the file does not fit, else it gets the float
            weights, which the quantized model shares.
        path: a safetensors file.

    Raises:
        ModelError: when the file is of no quantized model, or does not fit.
    """
    source = Path(path)
    _, quantizers, sparse = _read(source)
    if not quantizers:
        raise ModelError(
            f"weights file {str(source)!r} is of a float model: load it with analognoise.load_weights, and "
            "quantize the model with analognoise.quantize"
        )
    for name in quantizers:
        if name not in dict(model.named_modules()):
            raise ModelError(
                f"weights file {str(source)!r}: it quantizes a layer {name!r}, which {type(model).__name__} "
                "has not got"
            )
    quantized = model
    try:
        for settings in dict.fromkeys(quantizers.values()):
            quantized = quantize_as(quantized, settings, filter_fn=_with(settings, quantizers))
    except QuantizationError as error:
        raise ModelError(
            f"weights file {str(source)!r} does not fit {type(model).__name__}: {error}"
        ) from error
    quantized = _sparse(quantized, sparse, source)
    load_weights(quantized, source)
    return quantized


def load_for_chip(model: nn.Module, path: str | Path) -> nn.Module:
    """The float model whose weights go on a chip: of a quantized model's file the one that holds Q(w), of any
    other ``model`` itself with the file's weights. Activation layers are sparse as the file says.

    Raises:
        ModelError: when the file does not fit.
    """
    _, quantizers, sparse = _read(Path(path))
    if quantizers:
        return dequantize(load_quantized(model, path))
    model = _sparse(model, sparse, Path(path))
    load_weights(model, path)
    return model


def _sparse(model: nn.Module, sparse: dict[str, Sparsity], source: Path) -> nn.Module:
    """The model with activation layers as sparse as a file says."""
    found = sparse_layers(model)
    try:
        for name, form in sparse.items():
            if found.get(name) != form:
                model = sparsify_as(model, form, layers=[name])
    except SparsityError as error:
        raise ModelError(
            f"weights file {str(source)!r} does not fit {type(model).__name__}: {error}"
        ) from error
    return model


def _read(source: Path) -> tuple[dict[str, Tensor], dict[str, Quantization], dict[str, Sparsity]]:
    """The tensors of a file, how layers are quantized, and how activation layers are sparse."""
    if source.is_dir():
        inside = sorted(source.glob("*.safetensors"))
        hint = f", for example {str(inside[0])!r}" if inside else ""
        raise ModelError(f"weights file {str(source)!r} is a folder: name the safetensors file in it{hint}")
    if not source.is_file():
        raise ModelError(f"weights file {str(source)!r} does not exist")
    try:
        tensors = load_file(source)
        with safe_open(source, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"weights file {str(source)!r} is not a readable safetensors file ({error}): "
            "write one with safetensors.torch.save_file(model.state_dict(), path)"
        ) from error
    try:
        found = json.loads(metadata.get(_QUANTIZERS, "{}"))
        forms = json.loads(metadata.get(_SPARSITY, "{}"))
        quantizers = {name: Quantization(**settings) for name, settings in found.items()}
        return tensors, quantizers, {name: Sparsity(**form) for name, form in forms.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f"weights file {str(source)!r}: what it says of its layers is not understood ({error}): was "
            "it written by another version of analognoise?"
        ) from error


def _put(model: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Load tensors that fit the model exactly."""
    state = model.state_dict()
    where = f"weights file {str(source)!r} does not fit {type(model).__name__}"
    found = set(tensors)
    # Of the names that share a tensor, one is enough.
    missing = [names[0] for names in _tied(state).values() if not found.intersection(names)]
    unexpected = sorted(found - set(state))
    if missing or unexpected:
        parts = []
        if missing:
            parts.append(f"missing {_list(missing)}")
        if unexpected:
            parts.append(f"unexpected {_list(unexpected)}{nearest(unexpected[0], missing or state)}")
        raise ModelError(f"{where}: {'; '.join(parts)}")
    shapes = [
        f"{name!r} is {tuple(tensor.shape)} in the file and {tuple(state[name].shape)} in the model"
        for name, tensor in tensors.items()
        if tensor.shape != state[name].shape
    ]
    if shapes:
        raise ModelError(f"{where}: {_join(shapes)}")
    kinds = [
        f"{name!r} holds {tensor.dtype} in the file and {state[name].dtype} in the model"
        for name, tensor in tensors.items()
        if tensor.is_floating_point() != state[name].is_floating_point()
        or tensor.is_complex() != state[name].is_complex()
    ]
    if kinds:
        raise ModelError(f"{where}: {_join(kinds)}")
    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        # Infinite values that the model was built with, as of a mask, are its own.
        bad = int((~torch.isfinite(tensor) & (tensor != state[name].to(tensor))).sum())
        if bad:
            raise ModelError(
                f"weights file {str(source)!r}: {bad} of the {tensor.numel()} values of {name!r} are NaN or "
                "infinite"
            )
    model.load_state_dict(tensors, strict=False)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tied(state: dict[str, Tensor]) -> dict[tuple[object, ...], list[str]]:
    """Names of a state dict by the memory they show."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in state.items():
        empty = not tensor.numel()
        key = (
            (name,)
            if empty
            else (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        )
        groups.setdefault(key, []).append(name)
    return groups


def _list(names: list[str]) -> str:
    return _join([repr(name) for name in names], ", ")


def _join(parts: list[str], separator: str = "; ") -> str:
    rest = len(parts) - _SHOWN
    return separator.join(parts[:_SHOWN]) + (f"{separator}and {rest} more" if rest > 0 else "")
