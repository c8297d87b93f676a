"""Whether a model reads the tiles that it was put on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from analognoise.conversion import analog_layers
from analognoise.evaluation.surroundings import eager


def unread_tiles(
    model: nn.Module, forward: Callable[[Any, int], Any], batches: Iterable[Any]
) -> tuple[str, ...]:
    """Names of the weights on tiles that no forward reads.

    Batches are run until every weight was read, or to the end: a layer may serve few of them.

    Args:
        model: a converted model with a chip programmed, in eval mode.
        forward: ``forward(batch, number)``, running the model.
        batches: what it is given.

    Returns:
        A layer's name when none of its weights was read, ``"layer.weight"`` when some were.
    """
    layers = analog_layers(model)
    unread = {name: set(layer.targets()) for name, layer in layers.items()}

    def watched(left: set[str], read: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
        def weight_now(weight: str = "weight") -> Tensor:
            left.discard(weight)
            return read(weight)

        return weight_now

    try:
        for name, layer in layers.items():
            vars(layer)["weight_now"] = watched(unread[name], layer.weight_now)
        with eager(model):
            for number, batch in enumerate(batches):
                forward(batch, number)
                if not any(unread.values()):
                    break
    finally:
        for layer in layers.values():
            vars(layer).pop("weight_now", None)
    found: list[str] = []
    for name, left in unread.items():
        if left == set(layers[name].targets()):
            found.append(name or "(the model)")
        else:
            found += [f"{name}.{weight}".lstrip(".") for weight in sorted(left)]
    return tuple(found)
