"""Which layers of a model can go on tiles, and why the others cannot."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import prune

from analognoise.errors import ConversionError, nearest
from analognoise.layers import AnalogLayer, analog_class, known_base

BY_DESIGN = "by design"
_REGISTER = "say how its weights lie on the array with analognoise.register_analog_layer"
_SHOWN = 12  # layers named in an error
# How models call Parameters that are looked up in or added, whatever their shape.
_TABLES = ("embed", "emb", "embedding", "embeddings", "token", "tokens", "bias", "bias_table")


@dataclass(frozen=True)
class Obstacle:
    """Why a layer stays digital.

    Attributes:
        kind: "by design", "torch.jit", "lazy", "parametrized", "derived weight", "quantized", "data type",
            "own forward" or "unknown layer".
        reason: in words.
        remedy: what the user can do; empty where nothing need be done.
    """

    kind: str
    reason: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.remedy}" if self.remedy else self.reason


@dataclass(frozen=True)
class Problem:
    """A layer with weights that cannot go on tiles as it is.

    Attributes:
        name: qualified name of the layer.
        layer: its class.
        parameters: how many parameters it holds itself; 0 where that is not known.
        obstacle: why, and what to do.
    """

    name: str
    layer: str
    parameters: int
    obstacle: Obstacle

    def __str__(self) -> str:
        return f"{self.name or 'the model'} ({self.layer}): {self.obstacle}"


def find_problems(model: nn.Module) -> list[Problem]:
    """Layers whose weights would stay digital although they are matrices, each with a remedy.

    Normalization, embeddings and biases stay digital by design and are no problems. An empty list means that
    every matrix of weights goes on tiles.
    """
    taken = {
        id(parameter) for layer in convertible_layers(model).values() for parameter in layer.parameters()
    }
    taken |= {id(p) for m in model.modules() if isinstance(m, AnalogLayer) for p in m.parameters()}
    problems = []
    scripted: set[int] = set()
    for name, module in model.named_modules():
        obstacle = obstacle_of(module)
        if obstacle is None or obstacle.kind == BY_DESIGN or id(module) in scripted:
            continue
        own = {key: p for key, p in module._parameters.items() if p is not None and id(p) not in taken}
        if obstacle.kind == "parametrized":
            own |= dict(module.get_submodule("parametrizations").named_parameters())
        if obstacle.kind == "torch.jit":  # the outermost one is what can be replaced
            scripted.update(map(id, module.modules()))
            own |= dict(module.named_parameters())
        hidden = hidden_weights(module)
        lazy = obstacle.kind == "lazy"
        whole = obstacle.kind in ("parametrized", "torch.jit") and bool(own)
        if lazy or hidden or whole or any(_is_matrix(*item) for item in own.items()):
            count = sum(map(size, own.values())) + hidden
            problems.append(Problem(name, type(module).__name__, count, obstacle))
    return problems


def size(parameter: torch.Tensor) -> int:
    """Number of values; 0 for a Parameter that has no shape yet."""
    return 0 if nn.parameter.is_lazy(parameter) else parameter.numel()


def hidden_weights(module: nn.Module) -> int:
    """How many weights a module holds that are no Parameters: quantized, or frozen into a torch.jit graph."""
    if isinstance(module, torch.jit.ScriptModule):
        try:
            constants = module.graph.findAllNodes("prim::Constant")  # type: ignore[attr-defined]
        except RuntimeError:  # a script without a forward
            return 0
        held = [
            node.t("value")
            for node in constants
            if "value" in node.attributeNames() and node.kindOf("value") == "t"
        ]
        return sum(tensor.numel() for tensor in held if tensor.ndim > 1)
    if ".quantized" not in type(module).__module__:
        return 0
    found = getattr(module, "get_weight", None) or getattr(module, "weight", None)
    values = found() if callable(found) else found
    tensors = values.values() if isinstance(values, dict) else [values]
    return sum(tensor.numel() for tensor in tensors if isinstance(tensor, torch.Tensor))


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a Parameter multiplies as a matrix, as far as shape and name tell.

    A class token ``[1, 1, width]`` is a vector; a table of position embeddings is added.
    """
    vector = parameter.ndim > 2 and parameter.numel() == max(parameter.shape)
    return parameter.ndim > 1 and not vector and not name.lower().endswith(_TABLES)


def convertible_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that would go on tiles, by qualified name.

    A child whose weight goes on its parent's tiles (``out_proj`` of attention) is not named.
    """
    found = {name: module for name, module in model.named_modules() if not why_digital(module)}
    taken = set()
    for module in found.values():
        cls = type(module) if isinstance(module, AnalogLayer) else analog_class(module)
        assert cls is not None, "an obstacle would have been found"
        for parameter in cls.geometries(module):
            owner = parameter.rpartition(".")[0]
            if owner:
                taken.add(id(module.get_submodule(owner)))
    return {name: module for name, module in found.items() if id(module) not in taken}


def obstacle_of(module: nn.Module) -> Obstacle | None:
    """What keeps a module off the tiles; None when it can go there, or is there."""
    cls = type(module)
    if isinstance(module, AnalogLayer):
        return None
    if isinstance(module, torch.jit.ScriptModule):
        return Obstacle("torch.jit", "a torch.jit module", "convert the Python model it was made from")
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return Obstacle("lazy", "lazy, its shape is not known", "run one batch through the model first")
    if nn.utils.parametrize.is_parametrized(module):
        names = list(module.get_submodule("parametrizations")._modules)
        calls = " and ".join(
            f"torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r})" for name in names
        )
        return Obstacle("parametrized", f"its {' and '.join(names)} is parametrized", f"call {calls} first")
    if isinstance(module, nn.utils.parametrize.ParametrizationList):
        return Obstacle(BY_DESIGN, "what a parametrized weight is computed from")
    if ".quantized" in cls.__module__:
        return Obstacle("quantized", "quantized already", "convert the float model")
    on_tiles = analog_class(module)
    if on_tiles is not None:
        try:
            weights = [module.get_parameter(name) for name in on_tiles.geometries(module)]
        except (AttributeError, KeyError):
            weights = []
        if not weights:
            return Obstacle("derived weight", "its weight is computed from other tensors", _undo(module))
        if not any(weight.numel() for weight in weights):
            return Obstacle(BY_DESIGN, "it has no weights")
        other = next((weight.dtype for weight in weights if not weight.is_floating_point()), None)
        if other is None:
            return None
        remedy = "convert a model whose weights are real floating-point numbers"
        return Obstacle("data type", f"its weight is {other}", remedy)
    if isinstance(module, nn.modules.batchnorm._NormBase) or "Norm" in cls.__name__:
        return Obstacle(BY_DESIGN, "normalization stays digital")
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return Obstacle(BY_DESIGN, "a table look-up, no matrix product")
    base = known_base(module)
    if base is not None:
        reason = f"a subclass of {base.__name__} that computes in its own way"
        return Obstacle("own forward", reason, _REGISTER)
    parameters = {key: p for key, p in module._parameters.items() if p is not None}
    if parameters and not any(_is_matrix(*item) for item in parameters.items()):
        return Obstacle(BY_DESIGN, "vectors or tables that scale, or are added, and no matrix of weights")
    return _unknown(module)


def _unknown(module: nn.Module) -> Obstacle:
    return Obstacle("unknown layer", f"no analog form of {type(module).__name__}", _REGISTER)


def _undo(module: nn.Module) -> str:
    """What makes weights that hooks compute Parameters again."""
    removing = {
        "WeightNorm": "torch.nn.utils.remove_weight_norm",
        "SpectralNorm": "torch.nn.utils.remove_spectral_norm",
    }
    calls = []
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            calls.append(f"torch.nn.utils.prune.remove(layer, {hook._tensor_name!r})")
        elif type(hook).__name__ in removing and hasattr(hook, "name"):
            calls.append(f"{removing[type(hook).__name__]}(layer, {hook.name!r})")
    if calls:
        return f"call {' and '.join(calls)} first"
    return "undo what computes it first, so that it is a Parameter of the layer"


def why_digital(module: nn.Module, multiplies: bool = False) -> str:
    """Why a module is not put on tiles, in words; an empty string when it can be.

    Args:
        module: any module.
        multiplies: whether it was seen to multiply with a Parameter of its own, whatever that is called.
    """
    obstacle = obstacle_of(module)
    if obstacle is not None and obstacle.kind == BY_DESIGN and multiplies:
        obstacle = _unknown(module)
    return "" if obstacle is None else str(obstacle)


def obstacles(model: nn.Module) -> str:
    """The first reasons why nothing of a model converts, for an error."""
    reasons = [
        f"{name or type(model).__name__}: {why_digital(module)}"
        for name, module in model.named_modules()
        if hidden_weights(module) or any(True for _ in module.parameters(recurse=False))
    ]
    return (
        f" ({'; '.join(reasons[:3])}{'; …' if len(reasons) > 3 else ''})"
        if reasons
        else " (it has no parameters)"
    )


def matching(name: str, patterns: Iterable[str]) -> str | None:
    """The first shell pattern (``features.*``) that matches a layer's name or a parent's, or None."""
    parents = [".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 2)]
    return next(
        (pattern for pattern in patterns if any(fnmatch.fnmatchcase(part, pattern) for part in parents)), None
    )


def check_pattern(pattern: str, names: list[str]) -> None:
    """Raise unless a pattern matches a layer.

    Raises:
        ConversionError: with the nearest layer's name.
    """
    if not any(matching(name, [pattern]) is not None for name in names):
        parts = [name.split(".") for name in names]
        parents = dict.fromkeys(".".join(part[:depth]) for part in parts for depth in range(1, len(part) + 1))
        shown = ", ".join(map(repr, names[:_SHOWN])) + f" and {len(names) - _SHOWN} more" * (
            len(names) > _SHOWN
        )
        raise ConversionError(
            f"pattern {pattern!r} matches no layer{nearest(pattern, parents)}: "
            f"the convertible layers are {shown}"
        )
