"""A model brought to chips and drift times, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter

from torch import nn

from analognoise.chip import ChipWeights, drift_to_, program_, weights_through
from analognoise.on_tiles import analog_layers

Place = tuple[int, float]
"""Chip and drift time."""
_AHEAD_BYTES = 1 << 20


def walk(model: nn.Module, seed: int, places: Sequence[Place]) -> Iterator[Place]:
    """Bring a model into the state of each (chip, time) in turn.

    Chips are programmed and drifted ahead, as far as their weights fit in ``_AHEAD_BYTES``: to and fro
    between that and the forward would cost a small model a tenth of its time in cold caches. Not where
    products draw noise: its key belongs to the chip that is programmed.

    Args:
        model: converted.
        seed: root seed of the chips.
        places: by chip.
    """
    converted = analog_layers(model).values()
    layers = [layer.analog for layer in converted]
    size = sum(target.nbytes for layer in converted for target in layer.targets().values())
    ahead = 1 if any(layer.draws for layer in layers) else max(1, _AHEAD_BYTES // size)
    programmed = None
    for start in range(0, len(places), ahead):
        block = places[start : start + ahead]
        kept: list[ChipWeights] = []
        for chip, group in groupby(block, key=itemgetter(0)):
            if chip != programmed:
                for layer in layers:
                    layer.tiles = None  # the chip before makes room
                program_(model, seed, chip)
                programmed = chip
            times = [time for _, time in group]
            if len(block) > 1:
                kept += weights_through(model, times)
            else:
                drift_to_(model, times[0])
        for number, (chip, time) in enumerate(block):
            if kept:
                for layer, weights in zip(layers, kept[number], strict=True):
                    layer.put_weights(weights, time)
            yield chip, time
