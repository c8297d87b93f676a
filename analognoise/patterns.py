"""Shell patterns of layer names."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping

from torch import nn

from analognoise.errors import ConversionError, nearest

_SHOWN = 12  # layers named in an error
Names = Mapping[str, tuple[str, ...]]


def all_names(model: nn.Module, layers: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Every qualified name of each layer (given by its first): a module may stand at several places."""
    found: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found.setdefault(id(module), []).append(name)
    return {name: tuple(found[id(model.get_submodule(name))]) for name in layers}


def matching(names: Iterable[str], patterns: Iterable[str]) -> str | None:
    """The first pattern (``features.*``, or a name as it is) that matches one of a layer's names or a
    parent's, or None.
    """
    parts = [".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)]
    return next((pattern for pattern in patterns if any(_fits(part, pattern) for part in parts)), None)


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def check_patterns(patterns: Iterable[str], layers: Names) -> None:
    """Raise unless each pattern is text and matches a layer.

    Raises:
        ConversionError: with the nearest layer's name.
    """
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ConversionError(
                f"a pattern of layer names is text, such as 'features.*', found {pattern!r}: "
                "filter_fn chooses layers by class"
            )
        if any(matching(names, [pattern]) is not None for names in layers.values()):
            continue
        parts = [name.split(".") for names in layers.values() for name in names]
        parents = dict.fromkeys(".".join(part[:depth]) for part in parts for depth in range(1, len(part) + 1))
        more = f" and {len(layers) - _SHOWN} more" * (len(layers) > _SHOWN)
        raise ConversionError(
            f"pattern {pattern!r} matches no layer{nearest(pattern, parents)}: "
            f"the convertible layers are {', '.join(map(repr, list(layers)[:_SHOWN]))}{more}"
        )


def first_matches(patterns: Iterable[str], layers: Names) -> dict[str, str]:
    """The first pattern that matches each layer, of those that one matches.

    Raises:
        ConversionError: when a pattern comes too late for every layer that it matches.
    """
    patterns = list(patterns)
    taken = {name: pattern for name, names in layers.items() if (pattern := matching(names, patterns))}
    for pattern in patterns:
        if pattern not in taken.values():
            name = next(name for name, names in layers.items() if matching(names, [pattern]))
            raise ConversionError(
                f"pattern {pattern!r} comes too late: the first pattern that matches a layer counts, and "
                f"{taken[name]!r} before it takes {name!r}; put {pattern!r} first"
            )
    return taken
