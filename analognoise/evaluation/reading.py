"""Whether a model reads the tiles that it was put on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from analognoise.conversion import analog_layers


class Reads:
    """Which weights on tiles were not read yet, by layer."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = {name: set(layer.targets()) for name, layer in analog_layers(model).items()}
        self.unread = {name: set(weights) for name, weights in self.weights.items()}

    @property
    def complete(self) -> bool:
        """Whether all were read."""
        return not any(self.unread.values())

    def names(self) -> tuple[str, ...]:
        """What was not read: a layer's name for all of its weights, ``"layer.weight"`` for some."""
        found: list[str] = []
        for name, left in self.unread.items():
            if left == self.weights[name]:
                found.append(name or "(the model)")
            else:
                found += [f"{name}.{weight}".lstrip(".") for weight in sorted(left)]
        return tuple(found)


@contextmanager
def reads_watched(model: nn.Module) -> Iterator[Reads]:
    """Note every weight on tiles that a forward inside reads, on the chip or inside ``digital``.

    The layer's own question for its weights is watched, not its call: a model may call ``layer.forward``, or
    use ``layer.weight`` and pass the layer by.
    """
    reads, layers = Reads(model), analog_layers(model)

    def watched(left: set[str], read: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
        def weight_now(weight: str = "weight") -> Tensor:
            left.discard(weight)
            return read(weight)

        return weight_now

    try:
        for name, layer in layers.items():
            vars(layer)["weight_now"] = watched(reads.unread[name], layer.weight_now)
        yield reads
    finally:
        for layer in layers.values():
            vars(layer).pop("weight_now", None)
