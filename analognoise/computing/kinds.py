"""Which layers compute with noise: by kind, by name or by pattern."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import nn
from torch.nn.modules import activation
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from analognoise.errors import ModelError, NoiseError, nearest
from analognoise.patterns import all_names, matching

# MultiheadAttention stands among torch's activations, too, and must be asked for first.
_CLASSES: dict[str, tuple[type[nn.Module], ...]] = {
    "attention": (nn.MultiheadAttention,),
    "recurrent": (nn.RNNBase, nn.RNNCellBase),
    "conv": (_ConvNd,),
    "norm": (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.CrossMapLRN2d),
    "activation": tuple(getattr(activation, name) for name in activation.__all__),
    "linear": (nn.Linear, nn.Bilinear),
}
KINDS = ("linear", "conv", "norm", "activation", "recurrent", "attention")
# Layers of other packages, such as transformers' LlamaRMSNorm and GELUActivation: known by the class's name.
_NAMED = {"norm": re.compile(r"Norm(\dd)?$"), "activation": re.compile(r"Activation$|^ACT2FN$")}
_SHOWN = 12  # layers named in an error


def kind_of(module: nn.Module) -> str | None:
    """The kind of a layer, one of :data:`KINDS`; None for what is none of them."""
    for kind, classes in _CLASSES.items():
        if isinstance(module, classes):
            return kind
    owner = type(module)
    if owner.__module__ == "transformers.pytorch_utils" and owner.__name__ == "Conv1D":
        return "linear"
    if not any(True for _ in module.children()):
        return next((kind for kind, pattern in _NAMED.items() if pattern.search(owner.__name__)), None)
    return None


def plain(name: str) -> str:
    """A layer's name without what DistributedDataParallel (in front) and torch.compile (anywhere) put in."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    return ".".join(parts[1:] if parts[0:1] == ["module"] else parts)


def layers_by_kind(model: nn.Module) -> dict[str, str]:
    """Qualified name and kind of every layer of a known kind; parts of an attention layer, which it does not
    call, are not counted.
    """
    found: dict[str, str] = {}
    inside: list[str] = []
    for name, module in model.named_modules():
        kind = kind_of(module)
        if kind is None or any(name.startswith(prefix) for prefix in inside):
            continue
        found[name] = kind
        if kind == "attention":
            inside.append(f"{name}." if name else "")
    return found


def choose_layers(model: nn.Module, layers: str | Iterable[str] | None = None) -> dict[str, nn.Module]:
    """The layers that are meant, by qualified name, in the order of ``model.named_modules()``.

    Args:
        model: any module.
        layers: words of :data:`KINDS`, names of layers, or patterns of them (``features.*``); a word that is
            a kind always means the kind. A pattern that matches a module of no known kind means the layers
            inside, or, where there is none, the module itself. None takes every layer of a known kind.

    Raises:
        ModelError: when the model is none.
        NoiseError: when there is no layer of a kind that is named, or none that a pattern matches.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model must be a torch.nn.Module, found {type(model).__name__}")
    wanted: list[str] | None = None
    if layers is not None:
        if not isinstance(layers, Iterable):
            raise NoiseError(f"layers is {layers!r}: give {_words()}, or leave it out for all of them")
        wanted = [layers] if isinstance(layers, str) else list(layers)
    known = layers_by_kind(model)
    if wanted is None:
        names = set(known)
    else:
        if not wanted:
            raise NoiseError(f"layers is empty: give {_words()}, or leave it out for all of them")
        names = {name for word in wanted for name in _meant_by(word, model, known)}
    if not names:
        raise NoiseError(
            f"{type(model).__name__} has no layer that noise could be put on ({', '.join(KINDS)}): what it "
            "computes by functions, such as torch.relu, cannot be seen; name a module of it"
        )
    return {name: module for name, module in model.named_modules() if name in names}


def _meant_by(word: str, model: nn.Module, known: Mapping[str, str]) -> list[str]:
    if not isinstance(word, str):
        raise NoiseError(f"layers holds {word!r}: give {_words()}")
    if word in KINDS:
        found = [name for name, kind in known.items() if kind == word]
        if not found:
            present = ", ".join(dict.fromkeys(known.values())) or "none at all"
            hint = "; activations that are functions, such as torch.relu, cannot be seen"
            raise NoiseError(
                f"{type(model).__name__} has no layer of the kind {word!r} (it has {present})"
                + hint * (word == "activation")
            )
        return found
    every = {
        name: (*names, *map(plain, names))
        for name, names in all_names(model, (name for name, _ in model.named_modules())).items()
    }
    found = [name for name in known if matching(every[name], [word]) is not None]
    if not found:
        found = [name for name, names in every.items() if name and word in names]
    if not found:
        choice = nearest(word, [*KINDS, *filter(None, every)])
        shown = ", ".join(map(repr, list(known)[:_SHOWN])) or "none"
        more = f" and {len(known) - _SHOWN} more" * (len(known) > _SHOWN)
        raise NoiseError(
            f"layers: {word!r} is no kind of layer ({', '.join(KINDS)}) and matches no layer of "
            f"{type(model).__name__}{choice}: its layers are {shown}{more}"
        )
    return found


def _words() -> str:
    return f"kinds of layers ({', '.join(KINDS)}), names or patterns"


def sigma_by_layer(
    sigma: object, what: str, model: nn.Module, names: Iterable[str], chosen: bool
) -> dict[str, float]:
    """The standard deviation for each layer.

    Args:
        sigma: a number for all, or a mapping from kinds, names or patterns to numbers; the first key that
            means a layer counts.
        what: name of the argument.
        model: the module.
        names: layers to give one to.
        chosen: whether the user chose them: then each must get one.

    Raises:
        NoiseError: when a number is negative or not finite, a key means no layer, or a layer gets none.
    """
    names = list(names)
    if not isinstance(sigma, Mapping):
        value = check_sigma(sigma, what)
        return dict.fromkeys(names, value)
    if not sigma:
        raise NoiseError(f"{what} is an empty mapping: give numbers by {_words()}")
    known = layers_by_kind(model)
    found: dict[str, float] = {}
    for word, value in sigma.items():
        number = check_sigma(value, f"{what}[{word!r}]")
        for name in _meant_by(word, model, known):
            found.setdefault(name, number)
    left = [name for name in names if name not in found]
    if chosen and left:
        raise NoiseError(
            f"{what} says nothing of {', '.join(map(repr, left[:_SHOWN]))}, chosen by layers: add a number"
        )
    return {name: found[name] for name in names if name in found}


def check_sigma(value: object, what: str) -> float:
    """A standard deviation as a float.

    Raises:
        NoiseError: unless it is a finite number, at least 0.
    """
    try:
        number = float("nan") if isinstance(value, (bool, str)) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise NoiseError(f"{what} is {value!r}: give a finite number, at least 0")
    return number
