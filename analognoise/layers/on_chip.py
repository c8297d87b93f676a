"""The chip's side of a layer on tiles: what goes on each tile, and where what it gives is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat

import torch
from torch import Tensor, nn

from analognoise.crossbar import Place, Programmed, ProgrammedTile, Reading, Request, program_all
from analognoise.crossbar.mapping import largest
from analognoise.crossbar.net import net_weights
from analognoise.errors import ConversionError, NotProgrammedError
from analognoise.layers.geometry import Geometry
from analognoise.layers.state import AnalogState
from analognoise.seeds import Stream


class OnChip(nn.Module):
    """A module whose weights are on tiles: how they lie there, and how they are programmed and drift."""

    _analognoise: AnalogState

    @staticmethod
    def geometries(module: nn.Module) -> dict[str, Geometry]:
        """How each weight Parameter of a digital layer lies on the array, by its name in the module."""
        raise TypeError("a layer on tiles says how its weights lie on the array")

    @staticmethod
    def matrix(name: str, weights: Tensor, geometry: Geometry) -> Tensor:
        """``weights`` (of the shape of Parameter ``name``) as ``[groups, columns, rows]``; a view."""
        return weights.view(geometry.groups, geometry.columns, geometry.rows)

    @property
    def analog(self) -> AnalogState:
        """The layer's place on the chip."""
        return self._analognoise

    def target(self, name: str) -> nn.Parameter:
        """The digital weight Parameter of that name; it may be a child's (``out_proj.weight``)."""
        parameter = self._parameters.get(name)
        if parameter is not None:
            return parameter
        try:
            return self.get_parameter(name)
        except AttributeError:
            raise ConversionError(
                f"layer {self._analognoise.name!r}: {name!r} is no Parameter any more (pruned or "
                "parametrized after the conversion?): undo that first, or do it before convert_to_analog"
            ) from None

    def targets(self) -> dict[str, nn.Parameter]:
        """The digital weight Parameters that are on tiles, by their name in the module."""
        return {name: self.target(name) for name in self._analognoise.parameters}

    def program_tiles(self, stream: Stream) -> list[ProgrammedTile]:
        """Programmed tiles of the layer's present weights, which were checked; nothing of the layer is
        changed.
        """
        return [tile for tile, _ in program_all(self._requests(stream, lambda number: None))]

    def requests(self, stream: Stream) -> list[Request]:
        """What each tile of the layer is to be programmed with for :meth:`program_`; the weights were
        checked.
        """
        if not self._analognoise.weights:
            self._analognoise.views = None
        return self._requests(stream, lambda number: self._own_parts()[number])

    def _requests(self, stream: Stream, out: Callable[[int], Tensor | None]) -> list[Request]:
        state = self._analognoise
        stream = stream.at(layer=state.name)
        return [
            Request(state.tile, block, stream.at(tile=number), most, out)
            for number, (block, most) in enumerate(self._blocks())
        ]

    def places(self) -> Iterator[Place]:
        """The programmed tiles, and where the weights that each computes with go."""
        return map(Place, self._analognoise.tiles or (), self._own_parts())

    def net_weights(self, stream: Stream, seconds: float) -> dict[str, Tensor]:
        """Weights by Parameter as on a fresh chip at a drift time, each pair's noise drawn as one normal; the
        layer's weights were checked.
        """
        state = self._analognoise
        stream = stream.at(layer=state.name)
        found = self.empty_weights()
        for number, (part, own) in enumerate(zip(self._parts(found), self._blocks(), strict=True)):
            block, most = own
            part.copy_(net_weights(state.tile, block, stream.at(tile=number), seconds, most))
        return found

    def _blocks(self) -> list[tuple[Tensor, Tensor | None]]:
        """Of each tile the targets, and for scale "layer" the layer's largest weight."""
        state = self._analognoise
        by_layer = state.profile.mapping.scale == "layer"
        matrices, top = {}, {}
        for name, geometry in self.geometries(self).items():
            weight = gathered(self.target(name)).contiguous()  # channels_last has no matrix view
            matrices[name] = self.matrix(name, weight, geometry)
            top[name] = largest(weight.float(), state.profile) if by_layer else None
        blocks = state.cut(matrices)
        return [(block, top[name]) for (name, _), block in zip(state.placed, blocks, strict=True)]

    def assemble(
        self, tiles: list[ProgrammedTile], seconds: float | None, out: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Write the tiles' weights at a drift time (None: right after programming) into ``out``."""
        for part, tile in zip(self._parts(out), tiles, strict=True):
            part.copy_(tile.reading(seconds).weights)
        return out

    def stuck(self, tiles: list[ProgrammedTile]) -> dict[str, Tensor]:
        """Which weights have a stuck device, by Parameter; nothing where all devices work."""
        masks = [tile.stuck_weights for tile in tiles]
        if all(mask is None for mask in masks):
            return {}
        found = {name: torch.zeros_like(t, dtype=torch.bool) for name, t in self.empty_weights().items()}
        for part, mask in zip(self._parts(found), masks, strict=True):
            if mask is not None:
                part.copy_(mask)
        return found

    def _parts(self, weights: dict[str, Tensor]) -> list[Tensor]:
        """The view of ``weights`` (by Parameter) that each tile holds."""
        matrices = {
            name: self.matrix(name, weights[name], geometry)
            for name, geometry in self.geometries(self).items()
        }
        return self._analognoise.cut(matrices)

    def empty_weights(self) -> dict[str, Tensor]:
        """Memory for the layer's weights on a chip, by Parameter."""
        return {
            name: torch.empty(target.shape, dtype=target.dtype, device=target.device)
            for name, target in self.targets().items()
        }

    def program_(self, programmed: Iterator[Programmed]) -> None:
        """Put the next of these tiles on the layer, made as its :meth:`requests` say; see
        :func:`analognoise.program_`.
        """
        state = self._analognoise
        fresh = [next(programmed) for _ in state.placed]
        state.tiles = [tile for tile, _ in fresh]
        self._write(None, [reading for _, reading in fresh])

    def drift_to_(self, seconds: float, readings: Iterator[Reading | None]) -> None:
        """Let this layer's tiles drift; see :func:`analognoise.drift_to_`.

        Args:
            seconds: drift time.
            readings: at that time, of the next tiles of what was asked for with :meth:`places`; None for one
                that is read by itself.
        """
        self._write(seconds, readings)

    def weights_through(self, times: Sequence[float]) -> list[dict[str, Tensor]]:
        """The weights that :meth:`drift_to_` each of several times would give, by Parameter; nothing of the
        layer is changed.
        """
        tiles = self._analognoise.tiles
        assert tiles is not None
        found = [self.empty_weights() for _ in times]
        through = [tile.weights_through(times) for tile in tiles]
        for number, weights in enumerate(found):
            for part, own in zip(self._parts(weights), through, strict=True):
                part.copy_(own[number])
        return found

    def check_programmed(self) -> None:
        """Raise unless a chip is programmed.

        Raises:
            NotProgrammedError: naming the layer.
        """
        if self._analognoise.tiles is None:
            raise NotProgrammedError(
                f"layer {self._analognoise.name!r} cannot drift: no chip is programmed; "
                "call analognoise.program_(model, seed=0) first"
            )

    def _own_parts(self) -> list[Tensor]:
        """Of each tile the part of the weights that eval mode computes with; of new ones before a chip is
        programmed.
        """
        state = self._analognoise
        if state.views is None or (state.weights and state.views[0] is not state.weights):
            state.views = None  # lets go of the memory before
            weights = state.weights or self.empty_weights()
            state.views = weights, self._parts(weights)
        return state.views[1]

    def _write(self, seconds: float | None, readings: Iterable[Reading | None] = repeat(None)) -> None:
        """Write what the tiles compute with at a time; of readings that are given it is written already."""
        state, parts = self._analognoise, self._own_parts()
        assert state.tiles is not None
        assert state.views is not None
        placed = zip(parts, state.placed, state.tiles, readings, strict=False)  # readings go on after them
        for part, (name, block), tile, reading in placed:
            if reading is None:
                reading = tile.reading(seconds)
                part.copy_(reading.weights)
            if state.periphery is not None:
                state.periphery.note(name, block, reading)
            del reading  # before the next tile makes its own
        state.weights = state.views[0]
        state.time = seconds
        state.restart()


def gathered(parameter: nn.Parameter) -> Tensor:
    """The weights themselves; of a Parameter that is sharded over processes (``fully_shard``) the whole."""
    weights = parameter.detach()
    return weights.full_tensor() if hasattr(weights, "full_tensor") else weights
