"""What every layer on tiles has in common.

A converted layer is the user's own module object with another class: a subclass of its digital one.
Parameters, buffers, hooks and whatever else hangs on the module stay where they are (contract 5 of the
design). The chip's state lives in one plain attribute that is neither Parameter nor buffer, so that
``.half()``, DistributedDataParallel and ``state_dict`` pass it by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from analognoise.crossbar import Block, CrossbarTile, ProgrammedTile, split
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import ModelError, NotProgrammedError
from analognoise.seeds import Stream

STATE = "_analognoise"


class AnalogState:
    """A layer's place on the chip: its tiles and what is programmed on them.

    Attributes:
        name: qualified name of the layer at conversion; part of every random key.
        blocks: which part of the layer's weights each tile holds.
        tiles: the programmed tiles, or None before programming.
        weights: the weights that eval mode computes with, of the Parameter's shape and type; rewritten in
            place at each programming and drift, so that compiled code and CUDA graphs go on reading the right
            memory.
        time: drift time in seconds of ``weights``; None right after programming.
    """

    def __init__(self, name: str, profile: DeviceProfile, compensation: str, blocks: list[Block]) -> None:
        self.name = name
        self.tile = CrossbarTile(profile, compensation)
        self.blocks = blocks
        self.tiles: list[ProgrammedTile] | None = None
        self.weights: Tensor | None = None
        self.time: float | None = None
        self.digital = False

    @property
    def profile(self) -> DeviceProfile:
        """The device on the layer's tiles."""
        return self.tile.profile

    @property
    def compensation(self) -> str:
        """The drift compensation of the layer's tiles."""
        return self.tile.compensation


class AnalogLayer(nn.Module):
    """Base of layers on tiles; subclasses also inherit from the digital layer and give ``matrix``.

    In training mode, and inside :func:`analognoise.digital`, a layer computes with its digital weights. In
    eval mode it computes with what is programmed on its tiles.
    """

    digital_class: ClassVar[type[nn.Module]]
    weight: Tensor
    _analognoise: AnalogState

    @staticmethod
    def geometry(module: nn.Module) -> tuple[int, int, int, int]:
        """Groups, output columns per group, input channels per group, kernel positions of a digital layer."""
        raise TypeError("a layer on tiles says how its weights lie on the array")

    @classmethod
    def place(cls, module: nn.Module, name: str, profile: DeviceProfile, compensation: str) -> None:
        """Turn a digital module into this class, in place."""
        blocks = split(*cls.geometry(module), profile.tile.rows, profile.tile.columns)
        setattr(module, STATE, AnalogState(name, profile, compensation, blocks))
        module.__class__ = cls

    def remove(self) -> None:
        """Turn the module back into its digital class, in place."""
        delattr(self, STATE)
        self.__class__ = self.digital_class  # type: ignore[assignment]

    @property
    def analog(self) -> AnalogState:
        """The layer's place on the chip."""
        return self._analognoise

    def matrix(self, weights: Tensor) -> Tensor:
        """``weights`` (of the Parameter's shape) as ``[groups, columns, rows]``; a view."""
        groups, columns, channels, kernel = self.geometry(self)
        return weights.view(groups, columns, channels * kernel)

    def weight_now(self) -> Tensor:
        """The weights that a forward computes with in the present mode.

        Raises:
            NotProgrammedError: in eval mode, before a chip was programmed.
        """
        state = self._analognoise
        if self.training or state.digital:
            return self.weight
        if state.weights is None:
            raise NotProgrammedError(
                f"layer {state.name!r} is on tiles but no chip is programmed: "
                "call analognoise.program_(model, seed=0) first, "
                "or compute with the target weights inside 'with analognoise.digital(model):'"
            )
        return state.weights

    def program_tiles(self, stream: Stream) -> list[ProgrammedTile]:
        """Programmed tiles of the layer's present weights; nothing of the layer is changed.

        Raises:
            ModelError: when the weights hold NaN or inf, or have no data (``meta`` device).
        """
        state = self._analognoise
        weight = self.weight.detach()
        if weight.is_meta:
            raise ModelError(
                f"layer {state.name!r} cannot be programmed: its weight is on the 'meta' device "
                "and holds no values"
            )
        if not torch.isfinite(weight).all():
            bad = int((~torch.isfinite(weight)).sum())
            raise ModelError(
                f"layer {state.name!r} cannot be programmed: {bad} of its {weight.numel()} weights "
                "are NaN or infinite"
            )
        weights = self.matrix(weight)
        layer_max = weight.abs().amax().float() if state.profile.mapping.scale == "layer" else None
        stream = stream.at(layer=state.name)
        return [
            state.tile.program(weights[block.index], stream.at(tile=number), layer_max)
            for number, block in enumerate(state.blocks)
        ]

    def assemble(self, tiles: list[ProgrammedTile], seconds: float | None, out: Tensor) -> Tensor:
        """Write the tiles' weights at a drift time (None: right after programming) into ``out``, of the
        Parameter's shape.
        """
        matrix = self.matrix(out)
        for block, tile in zip(self._analognoise.blocks, tiles, strict=True):
            matrix[block.index] = tile.programmed_weights() if seconds is None else tile.weights_at(seconds)
        return out

    def program_(self, stream: Stream) -> None:
        """Program this layer's tiles; see :func:`analognoise.program_`."""
        self._analognoise.tiles = self.program_tiles(stream)
        self._write(None)

    def drift_to_(self, seconds: float) -> None:
        """Let this layer's tiles drift; see :func:`analognoise.drift_to_`."""
        if self._analognoise.tiles is None:
            raise NotProgrammedError(
                f"layer {self._analognoise.name!r} cannot drift: no chip is programmed; "
                "call analognoise.program_(model, seed=0) first"
            )
        self._write(seconds)

    def _write(self, seconds: float | None) -> None:
        state = self._analognoise
        assert state.tiles is not None
        if state.weights is None:
            state.weights = torch.empty_like(
                self.weight, requires_grad=False, memory_format=torch.contiguous_format
            )
        self.assemble(state.tiles, seconds, state.weights)
        state.time = seconds

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        # Device state stays float32; only where it lives, and the type of the assembled weights, follow the
        # Parameter.
        state = self._analognoise
        if state.tiles is not None and state.weights is not None:
            if state.weights.device != self.weight.device:
                for tile in state.tiles:
                    tile.to(self.weight.device)
            if (state.weights.device, state.weights.dtype) != (self.weight.device, self.weight.dtype):
                state.weights = None
                with torch.inference_mode(False), torch.no_grad():
                    self._write(state.time)
        return self
