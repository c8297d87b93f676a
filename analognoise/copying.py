"""A second module structure around the same tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from analognoise.culprit import culprit
from analognoise.errors import ConversionError


class NotCopiedError(ConversionError):
    """A model with attributes that ``copy.deepcopy`` refuses.

    Attributes:
        reason: what is wrong, without what to do about it.
    """

    def __init__(self, reason: str) -> None:
        advice = "keep such attributes out of the model, or convert it with inplace=True (in Python only)"
        super().__init__(f"{reason}: {advice}")
        self.reason = reason


def copy_sharing_tensors(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares every tensor, and whatever object a hook is a method of.

    Raises:
        NotCopiedError: when the model cannot be copied.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in _tensors(model)}
    shared |= {id(owner): owner for owner in _hook_owners(model)}
    memo = dict(shared)
    scripts = [module for module in model.modules() if isinstance(module, torch.jit.ScriptModule)]
    try:
        twin = copy.deepcopy(model, memo)
        for script in scripts:
            if id(script) in memo:
                _share_script(script, memo[id(script)])
    except Exception as error:
        where = culprit(model, lambda part: _fails(part, shared))
        raise NotCopiedError(
            f"{type(model).__name__} cannot be copied ({where}{': ' if where else ''}{type(error).__name__}: "
            f"{error})"
        ) from error
    return twin


def _fails(part: Any, shared: dict[int, Any]) -> bool:
    """Whether a part of a model cannot be copied."""
    try:
        copy.deepcopy(part, dict(shared))
    except Exception:
        return True
    return False


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            yield from _within((module._parameters, module._buffers))
            yield from _within([value for key, value in vars(module).items() if key != "_modules"])


def _within(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """Tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, set, dict)) and depth:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _within(item, depth - 1)


def _hook_owners(model: nn.Module) -> Iterator[Any]:
    """What the model's hooks are methods of, other than modules: a user's recorder goes on recording."""
    for module in model.modules():
        for key, hooks in vars(module).items():
            if key.endswith("_hooks") and isinstance(hooks, dict):
                for hook in hooks.values():
                    owner = getattr(hook, "__self__", None)
                    if owner is not None and not isinstance(owner, nn.Module):
                        yield owner


def _share_script(script: torch.jit.ScriptModule, twin: torch.jit.ScriptModule) -> None:
    """torch copies a script's tensors in spite of everything; put back the original's."""
    for own, other in zip(script.modules(), twin.modules(), strict=True):
        for key, tensor in (*own._parameters.items(), *own._buffers.items()):
            if tensor is not None:
                setattr(other, key, tensor)
