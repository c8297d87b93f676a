"""The noise of a layer's products: which stream each draws from, whole or in blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from analognoise.crossbar.periphery.product import Draw
from analognoise.errors import NoiseError
from analognoise.seeds import Stream, nanoseconds


class Layer(Protocol):
    """What a periphery must know of its layer (an ``AnalogLayer``)."""

    training: bool

    @property
    def analog(self) -> Any:
        """The layer's place on the chip."""

    def weight_now(self, name: str = "weight") -> Tensor:
        """The weights of the present mode."""

    def target(self, name: str) -> nn.Parameter:
        """The digital weights."""

    def matrix_of(self, name: str, weights: Tensor) -> Tensor:
        """Weights as ``[groups, columns, rows]``."""


class ProductNoise:
    """What a layer's products draw.

    Attributes:
        calls: products since the chip was brought to its time; part of the key of their noise.
        training: key of the noise in training; None while training is digital.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.training: Stream | None = None

    def count(self, followed: bool) -> None:
        """Note that a product is made; its noise is its own.

        Args:
            followed: whether torch records or transforms what is computed.
        """
        if followed and torch.compiler.is_compiling():
            _count_uncompiled(self)
        else:
            self.calls += 1

    def draw(
        self, layer: Layer, tile: int, shape: tuple[int, ...], device: torch.device, plane: int
    ) -> Tensor:
        """Standard normals of a part's whole product, where torch does not follow what is computed.

        Args:
            layer: whose product it is.
            tile: number of the part's first tile.
            shape: of the product's part.
            device: where it is.
            plane: the bit, of inputs that come bit after bit.
        """
        return self._stream(layer, tile, plane).normal(shape, device)

    def draw_whole(
        self,
        layer: Layer,
        tile: int,
        high: int,
        narrow: int | None,
        shape: tuple[int, ...],
        device: torch.device,
        plane: int,
    ) -> Tensor:
        """Standard normals of a part's whole product as its blocks have them: whether gradients are wanted,
        or the product is compiled, changes none.

        Args:
            layer: whose product it is.
            tile: number of the part's first tile.
            high: entries of a block.
            narrow: columns of a block; None for all.
            shape: of the product's part.
            device: where it is.
            plane: the bit, of inputs that come bit after bit.

        Raises:
            NoiseError: under a vmap that does not let all samples have the same noise.
        """
        draw = _draw_uncompiled if torch.compiler.is_compiling() else ProductNoise._draw_whole
        try:
            return draw(self, layer, tile, high, narrow, shape, device, plane)
        except RuntimeError as error:
            if not str(error).startswith("vmap: "):
                raise
            raise NoiseError(
                f"layer {layer.analog.name!r}: vmap cannot draw the noise of its products for each sample: "
                "call the model on the whole batch, or give all the same: vmap(…, randomness='same')"
            ) from error

    def _draw_whole(
        self,
        layer: Layer,
        tile: int,
        high: int,
        narrow: int | None,
        shape: tuple[int, ...],
        device: torch.device,
        plane: int,
    ) -> Tensor:
        if high >= shape[0] and narrow is None:
            return self.draw(layer, tile, shape, device, plane)
        found = torch.empty(shape, device=device)
        for along, columns in enumerate(found.split(narrow, dim=1) if narrow else [found]):
            draw = self.draw_blocks(layer, tile, along if narrow else None)
            for part in columns.split(high):
                part.copy_(draw(tuple(part.shape), device, plane))
        return found

    def draw_blocks(self, layer: Layer, tile: int, columns: int | None) -> Draw:
        """Standard normals for the blocks of some columns of a product's part, one after the other.

        Args:
            layer: whose product it is.
            tile: number of the part's first tile.
            columns: number of the blocks' columns; None where blocks have all.
        """
        planes: dict[int, Callable[[tuple[int, ...]], Tensor]] = {}

        def draw(shape: tuple[int, ...], device: torch.device, plane: int) -> Tensor:
            if plane not in planes:
                planes[plane] = self._stream(layer, tile, plane, columns).following(device)
            return planes[plane](shape)

        return draw

    def _stream(self, layer: Layer, tile: int, plane: int, columns: int | None = None) -> Stream:
        """The stream of a product's part on a tile and after it."""
        state = layer.analog
        step = (self.calls, plane) if columns is None else (self.calls, plane, columns)
        if layer.training:
            assert self.training is not None
            return self.training.at(layer=state.name, tile=tile, step=step)
        assert state.tiles is not None
        time = None if state.time is None else nanoseconds(state.time)
        stream: Stream = state.tiles[tile].stream
        return stream.at(process="product", time_ns=time, step=step)


def _count(noise: ProductNoise) -> None:
    noise.calls += 1


# What torch.compile leaves as it is; always to go through the wrapper would cost every eager product. Unlike
# torch.compiler.disable this does not load the compiler, which takes each process more than a second.
_count_uncompiled = torch._disable_dynamo(_count)
_draw_uncompiled = torch._disable_dynamo(ProductNoise._draw_whole)
