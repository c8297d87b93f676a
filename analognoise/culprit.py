"""The part of a model because of which something cannot be done with it, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from analognoise.printing import kind_of


def culprit(model: nn.Module, fails: Callable[[Any], bool]) -> str:
    """Where in a model the reason lies, as far as can be told: ``"at 'head' (attribute 'log', a lock)"``.

    Args:
        model: of which ``fails`` holds.
        fails: of a module, or of anything that one holds: whether it cannot be done with that.

    Returns:
        The words; "" where no single part is the reason.
    """
    # Backwards, parts come before what holds them.
    for path, module in reversed(list(model.named_modules())):
        if fails(module):
            part = next((words for words, thing in _held(module) if fails(thing)), "")
            if not path:
                return part
            return f"at {path!r} ({part})" if part else f"at {path!r}"
    return ""


def _held(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a module holds besides other modules, with words for it."""
    for name, value in vars(module).items():
        if name in ("_parameters", "_buffers"):
            for key, tensor in value.items():
                for own, thing in getattr(tensor, "__dict__", {}).items():
                    yield f"attribute {own!r} of its {key!r}, {kind_of(thing)}", thing
        elif name.endswith("_hooks") and isinstance(value, dict):
            for hook in value.values():
                called = getattr(hook, "__qualname__", type(hook).__name__)
                yield f"{name.strip('_').removesuffix('s').replace('_', ' ')} {called!r}", hook
        elif name != "_modules":
            yield f"attribute {name!r}, {kind_of(value)}", value
