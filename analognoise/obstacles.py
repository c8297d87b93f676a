"""Why a layer cannot go on tiles, and what to do about it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from analognoise.errors import ConversionError
from analognoise.layers import AnalogLayer, analog_class, known_base, registered_for
from analognoise.layers.checks import check_geometry, parameter_names

BY_DESIGN = "by design"
GEOMETRY = "geometry"
SIMULATED = "simulated quantization"
_REGISTER = "say how its weights lie on the array with analognoise.register_analog_layer"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# How models call what is looked up in or added, whatever its shape, ...
_TABLES = ("embed", "embedding", "embeddings", "position", "positions", "bias", "bias_table")
# ... what is so when it is the same for every sample (first axis 1), ...
_BROADCAST = ("emb", "token", "tokens", "query", "queries")
# How they call buffers that multiply as weights; masks, statistics and tables of all kinds have other names.
_WEIGHTS = re.compile(r"(^|_)(weights?|w|kernels?|matrix|matrices|filters?|proj|projections?)_?\d*$", re.I)
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.LocalResponseNorm)


@dataclass(frozen=True)
class Obstacle:
    """Why a layer stays digital.

    Attributes:
        kind: "by design", "torch.jit", "lazy", "parametrized", "derived weight", "quantized", "simulated
            quantization", "data type", "geometry", "own forward", "uncalled", "buffer" or "unknown layer".
        reason: in words.
        remedy: what the user can do; empty where nothing need be done.
    """

    kind: str
    reason: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.remedy}" if self.remedy else self.reason


def obstacle_of(module: nn.Module) -> Obstacle | None:
    """What keeps a module off the tiles; None when it can go there, or is there."""
    cls = type(module)
    if isinstance(module, AnalogLayer):
        return None
    if isinstance(module, torch.jit.ScriptModule):
        return Obstacle("torch.jit", "a torch.jit module", "convert the Python model it was made from")
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return Obstacle("lazy", "lazy, its shape is not known", "run one batch through the model first")
    matrices = any(is_matrix(key, value) for key, value in parameters_of(module).items())
    if isinstance(module, _NORMS) or ("Norm" in cls.__name__ and not matrices and known_base(module) is None):
        return Obstacle(BY_DESIGN, "normalization stays digital")
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return Obstacle(BY_DESIGN, "a table look-up, no matrix product")
    if nn.utils.parametrize.is_parametrized(module):
        names = list(module.get_submodule("parametrizations")._modules)
        calls = " and ".join(
            f"torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r})" for name in names
        )
        return Obstacle("parametrized", f"its {' and '.join(names)} is parametrized", f"call {calls} first")
    if isinstance(module, nn.utils.parametrize.ParametrizationList):
        return Obstacle(BY_DESIGN, "what a parametrized weight is computed from")
    remedy = getattr(cls, "float_remedy", "")
    if remedy:
        return Obstacle(SIMULATED, "quantized", remedy)
    if ".quantized" in cls.__module__:
        return Obstacle("quantized", "quantized already", "convert the float model")
    on_tiles = analog_class(module)
    if on_tiles is not None:
        return _misfit(on_tiles, module)
    base = known_base(module)
    if "forward" in vars(module):
        remedy = "delete that attribute, or write its forward as a class and register that"
        return Obstacle("own forward", "its forward was replaced on the object itself", remedy)
    if base is not None:
        reason = f"a subclass of {base.__name__} that computes in its own way"
        return Obstacle("own forward", reason, _REGISTER)
    if not matrices:
        held = buffer_matrices(module)
        if held:
            remedy = "if it multiplies, keep it as the weight Parameter of a layer that converts"
            reason = f"it holds a matrix as its buffer {' and '.join(map(repr, held))}"
            return Obstacle("buffer", reason, remedy)
        if parameters_of(module):
            return Obstacle(BY_DESIGN, "vectors or tables that scale, or are added, and no matrix of weights")
    return unknown(module)


def unknown(module: nn.Module) -> Obstacle:
    """The obstacle of a layer that nobody registered."""
    return Obstacle("unknown layer", f"no analog form of {type(module).__name__}", _REGISTER)


def uncalled_children(model: nn.Module) -> dict[int, Obstacle]:
    """Children, by ``id``, that a digital parent computes with but never calls (``out_proj`` of attention):
    on tiles of their own they would not be read.
    """
    found = {}
    for module in model.modules():
        base = known_base(module)
        names = () if base is None or isinstance(module, AnalogLayer) else registered_for(base).uncalled
        obstacle = obstacle_of(module) if names else None
        if obstacle is None:
            continue
        for name in names:
            try:
                child = module.get_submodule(name)
            except AttributeError:
                continue
            reason = f"its parent ({type(module).__name__}) computes with its weight without calling it"
            remedy = f"make the parent convert ({obstacle})"
            found[id(child)] = Obstacle("uncalled", reason, remedy)
    return found


def _misfit(on_tiles: type[AnalogLayer], module: nn.Module) -> Obstacle | None:
    """Why the weights of a layer whose class converts cannot go on tiles."""
    derived = Obstacle("derived weight", "its weight is computed from other tensors", _undo(module))
    own = on_tiles.__module__.startswith("analognoise.")
    correct = "" if own else f"correct {on_tiles.__name__}"
    try:
        shapes: Any = on_tiles.geometries(module)
    except Exception as error:
        if own or _computing(module):
            return derived
        return Obstacle(
            GEOMETRY, f"{on_tiles.__name__}.geometries fails ({type(error).__name__}: {error})", correct
        )
    if not isinstance(shapes, dict):
        found = f"{on_tiles.__name__}.geometries gives a {type(shapes).__name__}"
        return Obstacle(GEOMETRY, found, "give a dict from Parameter names to Geometry")
    weights: dict[str, Tensor] = {}
    for name in shapes:
        try:
            weights[name] = module.get_parameter(name)
        except AttributeError:
            value = getattr(module, name, None)
            if not (own or isinstance(value, Tensor)):
                return Obstacle(
                    GEOMETRY,
                    f"{on_tiles.__name__}.geometries names {name!r}, but its Parameters are "
                    f"{parameter_names(module)}",
                    correct,
                )
            if isinstance(value, Tensor) and not _computing(module):
                kind = "a buffer" if name in module._buffers else "a plain tensor"
                remedy = f"make it one: layer.{name} = torch.nn.Parameter(...)"
                return Obstacle("derived weight", f"its {name} is {kind} and no Parameter", remedy)
            return derived
    if not weights:
        if own:
            return derived
        return Obstacle(GEOMETRY, f"{on_tiles.__name__}.geometries names no Parameter", correct)
    if not any(weight.numel() for weight in weights.values()):
        return Obstacle(BY_DESIGN, "it has no weights")
    for name, weight in weights.items():
        odd = _odd_type(weight)
        if odd:
            remedy = "convert a model whose weights are ordinary floating-point numbers"
            return Obstacle("data type", f"its {name.rpartition('.')[2]} is {odd}", remedy)
        try:
            check_geometry(on_tiles, name, weight, shapes[name])
        except ConversionError as error:
            return Obstacle(GEOMETRY, str(error), correct or "make sizes and weight of the layer agree")
    return None


def _odd_type(weight: Tensor) -> str:
    if weight.dtype not in _DTYPES:
        return str(weight.dtype)
    if weight.layout != torch.strided:
        return f"in the layout {weight.layout}"
    sharded = hasattr(weight, "full_tensor")
    return f"a {type(weight).__name__}" if is_traceable_wrapper_subclass(weight) and not sharded else ""


def _computing(module: nn.Module) -> list[str]:
    """Calls that make weights which hooks compute Parameters again."""
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
    return calls


def _undo(module: nn.Module) -> str:
    calls = _computing(module)
    if calls:
        return f"call {' and '.join(calls)} first"
    return "undo what computes it first, so that it is a Parameter of the layer"


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's own Parameters."""
    return {key: value for key, value in module._parameters.items() if value is not None}


def buffer_matrices(module: nn.Module) -> dict[str, Tensor]:
    """Buffers that are matrices of weights, as far as shape, name and being saved tell."""
    return {
        key: value
        for key, value in module._buffers.items()
        if value is not None
        and value.is_floating_point()
        and key not in module._non_persistent_buffers_set
        and value.ndim > 1
        and value.numel() > max(value.shape)
        and _WEIGHTS.search(key)
    }


def is_matrix(name: str, value: Tensor) -> bool:
    """Whether a Parameter multiplies as a matrix, as far as shape and name tell.

    A class token ``[1, 1, width]`` is a vector; a table of position embeddings is added.
    """
    if nn.parameter.is_lazy(value) or value.ndim < 2:
        return False
    if value.ndim > 2 and value.numel() == max(value.shape):
        return False
    added = value.ndim > 2 and value.shape[0] == 1 and name.lower().endswith(_BROADCAST)
    return not added and not name.lower().endswith(_TABLES)


def size(parameter: Tensor) -> int:
    """Number of values; 0 for a Parameter that has no shape yet."""
    return 0 if nn.parameter.is_lazy(parameter) else parameter.numel()


def hidden_weights(module: nn.Module, obstacle: Obstacle | None) -> int:
    """How many weights a module holds that are no Parameters: quantized, frozen into a torch.jit graph,
    buffers, or a layer's weight as a plain tensor.
    """
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
    if obstacle is None or obstacle.kind == BY_DESIGN:
        return 0
    if obstacle.kind == "derived weight" and not _computing(module):
        plain = {**module._buffers, **vars(module)}.items()
        return sum(v.numel() for key, v in plain if isinstance(v, Tensor) and is_matrix(key, v))
    if obstacle.kind in ("buffer", "own forward", "unknown layer"):
        return sum(value.numel() for value in buffer_matrices(module).values())
    if obstacle.kind != "quantized":
        return 0
    found = getattr(module, "get_weight", None) or getattr(module, "weight", None)
    values = found() if callable(found) else found
    tensors = values.values() if isinstance(values, dict) else [values]
    return sum(tensor.numel() for tensor in tensors if isinstance(tensor, Tensor))
