"""Whether a model reads the tiles that it was put on, and computes with nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from analognoise.evaluation.data import tensors
from analognoise.evaluation.expected import Expected
from analognoise.layers import AnalogLayer
from analognoise.on_tiles import analog_layers
from analognoise.seeds import Stream

Names = tuple[str, ...]
# Integers of the same size, and how many bits of the mantissa.
_BITS = {
    torch.float16: (torch.int16, 10),
    torch.bfloat16: (torch.int16, 7),
    torch.float32: (torch.int32, 23),
    torch.float64: (torch.int64, 52),
}
_LISTS = ("_flat_weights", "_flat_weight_refs")
_ENDING = "so the results do not show what a chip does to them"


class Reads:
    """Which weights on tiles were not read yet, by layer, and what else was found about their use.

    Attributes:
        weights: names of the weights on tiles, by layer.
        unread: those that nothing asked for.
        digital: those that were computed with digitally, although a chip was to be measured.
        first: number of the batch that first asked for a layer's weights.
        bypassed: layers whose digital weights change the output, though it is to come from the chip.
        idle: layers whose tiles do not change the output.
        batch: number of the batch that is being computed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.weights = {name: set(layer.targets()) for name, layer in analog_layers(model).items()}
        self.unread = {name: set(weights) for name, weights in self.weights.items()}
        self.digital: dict[str, set[str]] = {name: set() for name in self.weights}
        self.first: dict[str, int] = {}
        self.bypassed: list[str] = []
        self.idle: list[str] = []
        self.batch = 0

    def restart(self) -> None:
        """Forget what was read: the pass begins anew, with other batches."""
        for name, weights in self.weights.items():  # in place: the watched layers hold these sets
            self.unread[name].update(weights)
            self.digital[name].clear()
        self.first.clear()

    @property
    def complete(self) -> bool:
        """Whether all were read."""
        return not any(self.unread.values())

    def on_chip(self) -> list[str]:
        """Layers that were computed on their tiles, all of them, and never digitally."""
        return [name for name in self.first if not (self.digital[name] or self.unread[name])]

    @property
    def any_on_chip(self) -> bool:
        """Whether any weight was read from its tiles, and never digitally."""
        return any(weights - self.unread[n] - self.digital[n] for n, weights in self.weights.items())

    def names(self) -> Names:
        """What was not read, or not alone: a layer's name for all of its weights, ``"layer.weight"`` for
        some.
        """
        left = {name: self.unread[name] | self.digital[name] for name in self.weights}
        left |= {name: self.weights[name] for name in (*self.bypassed, *self.idle)}
        return self._written(left)

    def complaints(self) -> list[str]:
        """One sentence for each way in which tiles were passed by."""
        found = [
            (
                self._written(self.unread),
                "were not read: the model uses these weights without calling their layers, or not at all, "
                + _ENDING,
            ),
            (
                self._written(self.digital),
                "were not read: on the chip, too, the layers computed with their digital weights (in "
                "training mode in spite of eval(), or inside analognoise.digital), " + _ENDING,
            ),
            (
                self._written({name: self.weights[name] for name in self.bypassed}),
                "were not read alone: the output also changes with the layers' digital weights, so the model "
                "uses layer.weight beside or instead of calling the layer, and the results do not show what "
                "a chip does to them",
            ),
            (
                self._written({name: self.weights[name] for name in self.idle}),
                "were read to no effect: other weights on them leave the output as it is, " + _ENDING,
            ),
        ]
        return [f"the tiles of {', '.join(map(repr, names))} {what}" for names, what in found if names]

    def _written(self, left: Mapping[str, set[str]]) -> Names:
        found: list[str] = []
        for name, weights in self.weights.items():
            if left.get(name) == weights:
                found.append(name or "(the model)")
            else:
                found += [f"{name}.{weight}".lstrip(".") for weight in sorted(left.get(name, ()))]
        return tuple(found)


@contextmanager
def reads_watched(model: nn.Module) -> Iterator[Reads]:
    """Note every weight on tiles that a forward on the chip inside reads, and where it gets the digital one.

    The layer's own question for its weights is watched, not its call: a model may call ``layer.forward``, or
    use ``layer.weight`` and pass the layer by.
    """
    reads, layers = Reads(model), analog_layers(model)

    def watched(name: str, layer: AnalogLayer) -> Callable[[str], Tensor]:
        left, digital, read = reads.unread[name], reads.digital[name], layer.weight_now

        def weight_now(weight: str = "weight") -> Tensor:
            left.discard(weight)
            reads.first.setdefault(name, reads.batch)
            found = read(weight)
            if found is not layer.analog.weights.get(weight):
                digital.add(weight)
            return found

        return weight_now

    try:
        for name, layer in layers.items():
            vars(layer)["weight_now"] = watched(name, layer)
        yield reads
    finally:
        for layer in layers.values():
            vars(layer).pop("weight_now", None)


def find_bypassed(
    layers: Mapping[str, AnalogLayer], compute: Callable[[], list[Tensor]], expected: Expected
) -> list[str]:
    """Layers whose digital weights reach the output of a forward on the chip.

    The layers are given other digital weights: whatever computes on tiles does not notice. One forward where
    all is well; where not, halving finds the layers, and where the forward does not repeat itself only what
    is a hundred times larger than that counts.

    Args:
        layers: layers on tiles, programmed, by name.
        compute: runs the forward; what it draws at random must be the same each time.
        expected: what it gives as it is.
    """
    names = list(layers)
    with suppress(Exception):  # not everything computes with a row that stands for all
        with _other_targets([layers[name] for name in names], whole=False):
            same = expected.is_repeated_by(compute())
        if same:
            return []
    before = expected.numbers  # computed now, while the layers have their own weights

    def changes(names: Sequence[str]) -> float:
        with _other_targets([layers[name] for name in names], whole=True):
            return distance(compute(), before)

    def search(names: Sequence[str]) -> list[str]:
        if len(names) == 1:
            return list(names)
        halves = names[: len(names) // 2], names[len(names) // 2 :]
        found = [half for half in halves if changes(half) > limit]
        return [name for half in found for name in search(half)] if found else list(names)

    moved = changes(names)
    if moved == 0:
        return []
    limit = 100 * distance(compute(), before)
    return search(names) if moved > limit else []


def find_idle(layers: Mapping[str, AnalogLayer], compute: Callable[[], Any], expected: Any) -> list[str]:
    """Layers whose tiles may hold anything without a change of the output, to the last bit.

    One forward for each layer. Of an output without floating-point numbers (classes, say) nothing is known,
    and nothing returned.
    """
    if not any(tensor.is_floating_point() for tensor in numbers(expected)):
        return []
    found = []
    for name, layer in layers.items():
        if all(_unmoved(change, layer, compute, expected) for change in (_tiles_in_place, _other_tiles)):
            found.append(name)
    return found


def _unmoved(
    change: Callable[[AnalogLayer], AbstractContextManager[None]],
    layer: AnalogLayer,
    compute: Callable[[], Any],
    expected: Any,
) -> bool:
    with change(layer):
        return distance(compute(), expected) == 0


def distance(one: Any, other: Any) -> float:
    """The largest difference between numbers of two outputs; infinite when their shapes differ."""
    mine, theirs = numbers(one), numbers(other)
    if [tensor.shape for tensor in mine] != [tensor.shape for tensor in theirs]:
        return math.inf
    largest = 0.0
    for a, b in zip(mine, theirs, strict=True):
        if torch.equal(a, b):
            continue
        wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
        gap = (a.detach().cpu().to(wide) - b.detach().cpu().to(wide)).abs()
        both = (a.isnan() & b.isnan()).cpu() | (a == b).cpu()
        largest = max(largest, float(gap.masked_fill(both, 0).nan_to_num(math.inf, math.inf).max()))
    return largest


def numbers(output: Any) -> list[Tensor]:
    """The tensors of an output, also of an object that holds them as attributes, or of nested tensors."""
    found = list(tensors(output))
    if not found and hasattr(output, "__dict__"):
        found = list(tensors(vars(output)))
    parts = [part for tensor in found for part in (tensor.unbind() if tensor.is_nested else (tensor,))]
    return [tensor for tensor in parts if tensor.layout == torch.strided]


def _another(weight: Tensor, layer: AnalogLayer, name: str) -> Tensor:
    """Random weights of the size of the given ones."""
    draws = Stream(0, f"probe {name}", layer.analog.name).normal(tuple(weight.shape)).to(weight)
    low, high = weight.detach().aminmax()  # without a copy of magnitudes
    return draws.mul_(torch.maximum(-low, high).clamp(min=1e-3))


@contextmanager
def _other_targets(layers: Sequence[AnalogLayer], *, whole: bool) -> Iterator[None]:
    """Other digital weights: a matrix each, or a row that stands for all, which takes no memory."""
    kept = [(layer, layer.targets(), layer.analog.written) for layer in layers]
    # Torch's recurrent layers list their Parameters, and list them anew when they find others.
    lists = [(layer, key, vars(layer)[key]) for layer in layers for key in _LISTS if key in vars(layer)]
    try:
        for layer, targets, _ in kept:
            layer.analog.written = None  # other weights are no stale chip here
            for name, target in targets.items():
                some = target if whole else target[(slice(1),) * (target.dim() - 1)]
                other = nn.Parameter(_another(some, layer, name).expand_as(target), target.requires_grad)
                layer._substitute(name, other)
        yield
    finally:
        for layer, targets, written in kept:
            layer.analog.written = written
            for name, target in targets.items():
                layer._substitute(name, target)
        for layer, key, kept_list in lists:
            vars(layer)[key] = kept_list


@contextmanager
def _tiles_in_place(layer: AnalogLayer) -> Iterator[None]:
    """Other digits of the weights on the tiles, which are put back to the last bit: a copy of the largest
    layer would be a fifth of what an evaluation takes. Weights of zero hardly change.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in layer.targets().values()}
    chosen = [
        (weights.view(_BITS[weights.dtype][0]), _digits(weights, layer, name))
        for name, weights in layer.analog.weights.items()
        if weights.dtype in _BITS and weights.untyped_storage().data_ptr() not in own
    ]
    with torch.no_grad():
        for bits, digits in chosen:
            bits.bitwise_xor_(digits)
    try:
        yield
    finally:
        with torch.no_grad():
            for bits, digits in chosen:
                bits.bitwise_xor_(digits)


def _digits(weights: Tensor, layer: AnalogLayer, name: str) -> Tensor:
    """Bits of the mantissa, the highest among them, for each place of a row."""
    kind, count = _BITS[weights.dtype]
    row = Stream(0, f"probe {name}", layer.analog.name).normal(tuple(weights.shape[-1:])).view(torch.int32)
    known = min(count, 23)
    digits = (row.long() % (1 << known)) << (count - known)
    return (digits | 1 << (count - 1)).to(kind).to(weights.device)


@contextmanager
def _other_tiles(layer: AnalogLayer) -> Iterator[None]:
    kept = layer.analog.weights
    layer.analog.weights = {name: _another(weights, layer, name) for name, weights in kept.items()}
    try:
        yield
    finally:
        layer.analog.weights = kept
