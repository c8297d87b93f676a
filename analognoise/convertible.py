"""Which layers of a model can go on tiles, and what keeps the others off."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from analognoise.errors import ConversionError
from analognoise.layers import AnalogLayer, analog_class
from analognoise.obstacles import (
    BY_DESIGN,
    Obstacle,
    hidden_weights,
    is_matrix,
    obstacle_of,
    parameters_of,
    size,
    uncalled_children,
)


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
    every matrix of weights goes on tiles. Buffers count as weights where they are called so ("weight",
    "kernel", "matrix", "filter", "proj"); what others multiply, ``describe(model, inputs)`` counts.

    Raises:
        ConversionError: when ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise ConversionError(f"find_problems takes a torch.nn.Module, found {type(model).__name__}")
    taken = {
        id(parameter) for layer in convertible_layers(model).values() for parameter in layer.parameters()
    }
    taken |= {id(p) for m in model.modules() if isinstance(m, AnalogLayer) for p in m.parameters()}
    uncalled = uncalled_children(model)
    problems = []
    scripted: set[int] = set()
    for name, module in model.named_modules():
        obstacle = uncalled.get(id(module)) or obstacle_of(module)
        if obstacle is None or obstacle.kind == BY_DESIGN or id(module) in scripted:
            continue
        own = {key: p for key, p in parameters_of(module).items() if id(p) not in taken}
        if obstacle.kind == "parametrized":
            own |= dict(module.get_submodule("parametrizations").named_parameters())
        if obstacle.kind == "torch.jit":  # the outermost one is what can be replaced
            scripted.update(map(id, module.modules()))
            own |= dict(module.named_parameters())
        hidden = hidden_weights(module, obstacle)
        lazy = obstacle.kind == "lazy"
        whole = obstacle.kind in ("parametrized", "torch.jit") and bool(own)
        if lazy or hidden or whole or any(is_matrix(*item) for item in own.items()):
            count = sum(map(size, own.values())) + hidden
            problems.append(Problem(name, type(module).__name__, count, obstacle))
    return problems


def convertible_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that would go on tiles, by qualified name.

    A child that is never called, since its parent computes with its weight (``out_proj`` of attention), is
    not named: its weight goes on the parent's tiles, or stays digital with it.
    """
    found = {name: module for name, module in model.named_modules() if obstacle_of(module) is None}
    taken = set(uncalled_children(model))
    for module in found.values():
        cls = type(module) if isinstance(module, AnalogLayer) else analog_class(module)
        assert cls is not None, "an obstacle would have been found"
        for parameter in cls.geometries(module):
            owner = parameter.rpartition(".")[0]
            if owner:
                taken.add(id(module.get_submodule(owner)))
    return {name: module for name, module in found.items() if id(module) not in taken}


def obstacles(model: nn.Module) -> str:
    """The first reasons why nothing of a model converts, for an error."""
    uncalled = uncalled_children(model)
    named = [
        (name, module, uncalled.get(id(module)) or obstacle_of(module))
        for name, module in model.named_modules()
    ]
    reasons = [
        f"{name or type(model).__name__}: {obstacle}"
        for name, module, obstacle in named
        if obstacle
        and (hidden_weights(module, obstacle) or any(True for _ in module.parameters(recurse=False)))
    ]
    return (
        f" ({'; '.join(reasons[:3])}{'; …' if len(reasons) > 3 else ''})"
        if reasons
        else " (it has no parameters)"
    )
