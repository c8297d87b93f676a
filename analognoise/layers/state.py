"""A layer's place on the chip: its tiles, what is programmed on them, and what forwards compute with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from analognoise.crossbar import Block, CrossbarTile, ProgrammedTile
from analognoise.devices.profile import DeviceProfile
from analognoise.layers.periphery import LayerPeriphery
from analognoise.layers.written import Written


class AnalogState:
    """A layer's place on the chip: its tiles and what is programmed on them.

    Attributes:
        name: qualified name of the layer at conversion; part of every random key.
        placed: for each tile, the Parameter and the part of it that the tile holds.
        parameters: names of the weight Parameters on tiles.
        sizes: groups, columns and rows of each of them.
        tiles: the programmed tiles, or None before programming.
        weights: the weights that eval mode computes with, by Parameter, of its shape and type; rewritten in
            place at each programming and drift, so that compiled code and CUDA graphs go on reading the right
            memory.
        time: drift time in seconds of ``weights``; None right after programming.
        digital: True inside :func:`analognoise.digital`.
        periphery: what surrounds the tiles; None where they are computed with as they are.
        written: which weights are on the tiles; None when unknown.
        watched: whether to note that at programming; False while chips are only measured.
    """

    def __init__(self, name: str, tile: CrossbarTile, placed: list[tuple[str, Block]]) -> None:
        self.name = name
        self.tile = tile
        self.placed = placed
        self.parameters = tuple(dict.fromkeys(name for name, _ in placed))
        self.sizes = {
            name: [
                max(ends)
                for ends in zip(*(_ends(block) for own, block in placed if own == name), strict=True)
            ]
            for name in self.parameters
        }
        self.tiles: list[ProgrammedTile] | None = None
        self.weights: dict[str, Tensor] = {}
        self.time: float | None = None
        self.digital = False
        self.periphery: LayerPeriphery | None = None
        self.written: Written | None = None
        self.watched = True
        # Which weights the views of each tile were taken of, and the views.
        self.views: tuple[dict[str, Tensor], list[Tensor]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "views": None}

    @property
    def profile(self) -> DeviceProfile:
        """The device on the layer's tiles."""
        return self.tile.profile

    @property
    def compensation(self) -> str:
        """The drift compensation of the layer's tiles."""
        return self.tile.compensation

    @property
    def draws(self) -> bool:
        """Whether products draw noise, by a key of the programmed chip."""
        return self.periphery is not None and self.periphery.surroundings.noisy

    def cut(self, matrices: Mapping[str, Tensor]) -> list[Tensor]:
        """The part of each tile of the Parameters' ``[groups, columns, rows]``; views."""
        if len(self.placed) == len(self.parameters):  # one tile holds all of a Parameter
            return [matrices[name] for name in self.parameters]
        return [matrices[name][block.index] for name, block in self.placed]

    def copy_weights(self) -> dict[str, Tensor]:
        """A copy of the weights that eval mode computes with, and of what their periphery must know."""
        return {name: tensor.clone() for name, tensor in self._of_chip().items()}

    def put_weights(self, weights: dict[str, Tensor], time: float | None) -> None:
        """Compute with what :meth:`copy_weights` gave, as of a drift time; without weights the layer is left
        unprogrammed.
        """
        own = self._of_chip()
        if own.keys() == weights.keys():
            for name, tensor in own.items():
                tensor.copy_(weights[name])
        else:
            self.weights = {name: weights[name] for name in self.parameters if name in weights}
            self.views = None
            for name, tensor in self._of_periphery().items():
                tensor.copy_(weights[name])
        self.time = time
        self.restart()

    def range_values(self) -> tuple[dict[str, list[float]], ...]:
        """The ranges that came from data or training, by name; nothing where there are none."""
        known = self.periphery.known_ranges() if self.periphery is not None else {}
        return ({name: values.tolist() for name, values in known.items()},) if known else ()

    @property
    def products(self) -> int:
        """How many products there were since the chip was brought to its time; their noise depends on it."""
        return 0 if self.periphery is None else self.periphery.calls

    def restart(self, products: int = 0) -> None:
        """Begin the count of products anew, or set it."""
        if self.periphery is not None:
            self.periphery.calls = products

    def _of_chip(self) -> dict[str, Tensor]:
        return self.weights | self._of_periphery()

    def _of_periphery(self) -> dict[str, Tensor]:
        return {} if self.periphery is None else self.periphery.tensors


def _ends(block: Block) -> tuple[int, int, int]:
    return block.groups[1], block.columns[1], block.rows[1]
