"""Whether the layers of a model still have the weights that their chip was programmed with; of all layers in
few calls, for small ones cost more than their numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import islice

from torch import nn

from analognoise.layers.base import AnalogLayer
from analognoise.layers.written import Sum, Written, local_sums


def note_written(layers: Collection[AnalogLayer]) -> None:
    """Remember which state of the Parameters is on the layers' tiles."""
    for layer in layers:
        layer.analog.written = None
    for layer, targets, sums in _sums([layer for layer in layers if layer.analog.watched]):
        layer.analog.written = Written(targets, sums)


def warn_if_stale(layers: Collection[AnalogLayer]) -> None:
    """Warn of each layer whose weights do not hold what was programmed."""
    asked = [layer for layer in layers if layer.analog.written and not layer.analog.written.told]
    for layer, targets, sums in _sums(asked):
        layer.warn_if_stale(targets, sums)


def _sums(
    layers: Sequence[AnalogLayer],
) -> Iterator[tuple[AnalogLayer, dict[str, nn.Parameter], list[tuple[bool, Sum]]]]:
    """Parameters and :func:`local_sums` of each layer; those of all in few calls."""
    targets = [layer.targets() for layer in layers]
    sums = iter(local_sums([target for own in targets for target in own.values()]))
    for layer, own in zip(layers, targets, strict=True):
        yield layer, own, list(islice(sums, len(own)))
