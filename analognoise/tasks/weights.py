"""Weights in and out of safetensors files; nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from analognoise.errors import ModelError, nearest

_SHOWN = 4


def save_weights(model: nn.Module, path: str | Path) -> str:
    """Write a model's ``state_dict`` to a safetensors file; a tensor under several names (tied weights) is
    written once.

    The file appears whole or not at all. Returns its SHA-256 digest (hexadecimal).
    """
    target = Path(path)
    state = model.state_dict()
    first = {id_: names[0] for id_, names in _tied(state).items()}
    tensors = {name: state[name].detach().contiguous().cpu() for name in sorted(first.values())}
    part = target.with_name(target.name + ".part")
    part.write_bytes(save(tensors, metadata={"format": "pt"}))
    os.replace(part, target)
    return file_digest(target)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Read a safetensors file into a model, in place, if it fits exactly.

    Raises:
        ModelError: when the file is missing or no safetensors file, when tensors are missing, unexpected or
            of another shape or kind (all are named), or when one holds NaN or inf. The model is then
            unchanged.
    """
    source = Path(path)
    if source.is_dir():
        inside = sorted(source.glob("*.safetensors"))
        hint = f", for example {str(inside[0])!r}" if inside else ""
        raise ModelError(f"weights file {str(source)!r} is a folder: name the safetensors file in it{hint}")
    if not source.is_file():
        raise ModelError(f"weights file {str(source)!r} does not exist")
    try:
        tensors = load_file(source)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"weights file {str(source)!r} is not a readable safetensors file ({error}): "
            "write one with safetensors.torch.save_file(model.state_dict(), path)"
        ) from error
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
        bad = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() or tensor.is_complex() else 0
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
