"""What every layer on tiles has in common.

A converted layer is the user's own module object with another class: a subclass of its digital one.
Parameters, buffers, hooks and whatever else hangs on the module stay where they are (contract 5 of the
design). The chip's state lives in one plain attribute that is neither Parameter nor buffer, so that
``.half()``, DistributedDataParallel and ``state_dict`` pass it by.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from analognoise.crossbar import CrossbarTile, split
from analognoise.errors import ConversionError, NotProgrammedError, StaleChipWarning
from analognoise.layers.on_chip import OnChip
from analognoise.layers.periphery import LayerPeriphery
from analognoise.layers.products import as_computed, matrix_product, no_autocast, of_vectors, with_bias
from analognoise.layers.state import AnalogState
from analognoise.layers.written import Sum, local_sums

STATE = "_analognoise"


class AnalogLayer(OnChip):
    """Base of layers on tiles; a subclass also inherits from the digital layer and says how its weights lie.

    In training mode, and inside :func:`analognoise.digital`, a layer computes with its digital weights. In
    eval mode it computes with what is programmed on its tiles.

    Attributes:
        digital_class: what the layer becomes again.
        supports_periphery: whether the forward goes through a periphery, as :meth:`multiply` does.
        uncalled: children whose weights the forward uses without calling them.
    """

    digital_class: ClassVar[type[nn.Module]]
    uncalled: ClassVar[tuple[str, ...]] = ()
    supports_periphery: ClassVar[bool] = False
    # Where the output holds its channels, if each is one output of a matrix on tiles plus its bias.
    channel_axis: ClassVar[int | None] = None

    @classmethod
    def vectors(cls, module: nn.Module, args: tuple[Any, ...], output: Any) -> dict[str, int]:
        """How many vectors one forward multiplies with each matrix, for the count of multiply-accumulates.

        Args:
            module: the layer.
            args: what its forward was given.
            output: what it returned.

        By default a layer with one matrix, whose columns are the last or second axis of the output.
        """
        return {
            name: output.numel() // max(geometry.groups * geometry.columns, 1)
            for name, geometry in cls.geometries(module).items()
        }

    @classmethod
    def place(cls, module: nn.Module, name: str, tile: CrossbarTile) -> None:
        """Turn a digital module into this class, in place, on tiles of the given kind."""
        size = tile.profile.tile
        placed = [
            (parameter, block)
            for parameter, g in cls.geometries(module).items()
            for block in split(g.groups, g.columns, g.channels, g.kernel, size.rows, size.columns)
        ]
        state = AnalogState(name, tile, placed)
        if tile.profile.surroundings is not None:
            shapes = cls.geometries(module)
            device = module.get_parameter(next(iter(shapes))).device
            state.periphery = LayerPeriphery(tile.profile, placed, shapes, device)
        setattr(module, STATE, state)
        module.register_forward_pre_hook(_is_called)  # the user may move it into an encoder layer
        module.__class__ = cls

    def remove(self) -> None:
        """Turn the module back into its digital class, in place."""
        delattr(self, STATE)
        for key in [key for key, hook in self._forward_pre_hooks.items() if hook is _is_called]:
            del self._forward_pre_hooks[key]
        self.__class__ = self.digital_class  # type: ignore[assignment]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The digital layer's forward, computed with the weights of the present mode."""
        # Asked for in every mode, so that whoever watches which weights are read sees it.
        now = {name: self.weight_now(name) for name in self._analognoise.parameters}
        if self.training or self._analognoise.digital:
            return super().forward(*args, **kwargs)
        kept = {name: self.target(name) for name in now}
        try:
            for name, weights in now.items():
                self._substitute(name, weights)
            return super().forward(*args, **kwargs)
        finally:
            for name, parameter in kept.items():
                self._substitute(name, parameter)

    @property
    def in_periphery(self) -> bool:
        """Whether a forward now goes through converters and whatever else surrounds the tiles.

        Raises:
            CalibrationError: when it would, but a range has no value yet.
        """
        state = self._analognoise
        around = state.periphery
        if around is None:
            return False
        if around.watched is not None:
            return True
        if around.surroundings.idle or state.digital or (self.training and around.training is None):
            return False
        around.check_known(state.name)
        return True

    def multiply(self, input: Tensor, name: str = "weight", columns: slice = slice(None)) -> Tensor:
        """Inputs times a matrix on tiles, in every mode and through the periphery where there is one.

        A layer of one's own computes with this alone, and says so with ``supports_periphery = True``: then it
        goes on devices with a periphery, too. The bias is the caller's to add.

        Args:
            input: ``[..., rows]``, or ``[..., groups, rows]`` where the matrix has groups.
            name: the weight Parameter.
            columns: the outputs that are asked for.

        Returns:
            ``[..., columns]``, or ``[..., groups, columns]``.

        Raises:
            RuntimeError: when the last axis is not as long as the matrix has rows, or the inputs are no
                floating-point numbers.
        """
        if not self.in_periphery:
            return matrix_product(input, self.matrix_of(name, self.weight_now(name))[:, columns])
        return self._by_vectors(input, name, columns)

    def _by_vectors(
        self, input: Tensor, name: str = "weight", columns: slice = slice(None), bias: Tensor | None = None
    ) -> Tensor:
        """What :meth:`multiply` gives where there is a periphery, and a bias."""
        state, around = self._analognoise, self._analognoise.periphery
        assert around is not None
        groups, wide, rows = state.sizes[name]
        if input.shape[-1:] != (rows,):  # parts are cut out by their rows, and would not notice
            raise RuntimeError(
                f"layer {state.name!r}: inputs of shape {tuple(input.shape)} do not fit a matrix of {rows} "
                "rows"
            )
        with no_autocast(input.device):
            given = as_computed(input, self.target(name), state.name)
            ahead = given.dim() - (1 if groups == 1 else 2)  # axes before those of a vector
            vectors = given if ahead == 1 else given.reshape(-1, *given.shape[ahead:])
            products = of_vectors(vectors, groups, wide)
            output = around.product(self, name, products, columns)
            if ahead != 1:
                output = output.view(*given.shape[:ahead], *output.shape[1:])
        if output.dtype is not input.dtype:
            output = output.to(input.dtype)
        return output if bias is None else with_bias(output, bias, products.followed)

    def matrix_of(self, name: str, weights: Tensor) -> Tensor:
        """``weights`` (of the shape of Parameter ``name``) as ``[groups, columns, rows]``; of half precision
        as float32.
        """
        if weights.dtype in (torch.float16, torch.bfloat16) and self.in_periphery:
            weights = weights.float()
        return self.matrix(name, weights.contiguous(), self.geometries(self)[name])

    def _substitute(self, name: str, weights: Tensor) -> None:
        owner, _, leaf = name.rpartition(".")
        self.get_submodule(owner)._parameters[leaf] = weights  # type: ignore[assignment]

    def weight_now(self, name: str = "weight") -> Tensor:
        """The weights that a forward computes with in the present mode.

        Raises:
            NotProgrammedError: in eval mode, before a chip was programmed.
        """
        state = self._analognoise
        if self.training or state.digital:
            return self.target(name)
        if name not in state.weights:
            raise NotProgrammedError(
                f"layer {state.name!r} is on tiles but no chip is programmed: "
                "call analognoise.program_(model, seed=0) first, "
                "or compute with the target weights inside 'with analognoise.digital(model):'"
            )
        # Asked first: compiled code would be guarded by what it sees of the weights, and compiled anew.
        looking = not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        if looking and state.written is not None and not state.written.told:
            target = self.target(name)
            if state.written.sharded:  # fully_shard may compute in another type than it keeps
                return state.weights[name].to(target.dtype)
            if not state.written.same_look(name, target):
                self._check_place(name, target)
                self.warn_if_stale({name: target}, local_sums([target]))
        return state.weights[name]

    def train(self, mode: bool = True) -> Any:
        """As in the digital layer; weights are looked at closely after training."""
        if self.training and not mode and self._analognoise.written is not None:
            self._analognoise.written.look_again()
        return super().train(mode)

    def __prepare_scriptable__(self) -> Any:
        """torch.jit.script asks for this, and would end in an error of its own."""
        raise ConversionError(
            f"layer {self._analognoise.name!r} is on tiles, and torch.jit.script cannot read its code: use "
            "torch.compile, torch.export or torch.jit.trace, or script what convert_to_digital gives back"
        )

    def is_stale(self) -> bool:
        """Whether the weights hold other numbers than those that were programmed, as far as is known."""
        targets = self.targets()
        return not self._holds(targets, local_sums(list(targets.values())))

    def _holds(self, targets: dict[str, nn.Parameter], sums: Iterable[tuple[bool, Sum]]) -> bool:
        written = self._analognoise.written
        return written is None or all(
            written.same_values(name, target, found)
            for (name, target), found in zip(targets.items(), sums, strict=True)
        )

    def warn_if_stale(self, targets: dict[str, nn.Parameter], sums: Iterable[tuple[bool, Sum]]) -> None:
        """Warn once when these Parameters of the layer, with these :func:`local_sums`, do not hold what was
        programmed.
        """
        state = self._analognoise
        if not self._holds(targets, sums):
            assert state.written is not None
            state.written.told = True
            warnings.warn(
                f"layer {state.name!r}: its weights have changed since the chip was programmed, "
                "so the chip is stale; call analognoise.program_ again",
                StaleChipWarning,
                stacklevel=4,
            )

    def _check_place(self, name: str, target: Tensor) -> None:
        own = self._analognoise.weights[name]
        if (own.dtype, own.device) != (target.dtype, target.device) and own.shape == target.shape:
            raise ConversionError(
                f"layer {self._analognoise.name!r}: its weight is {target.dtype} on {target.device} now, but "
                f"{own.dtype} on {own.device} on the chip: a model that shares it was moved; move this model "
                "alike with .to(...)"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        written = self._analognoise.written
        fresh = written is not None and not self.is_stale()
        before = {name: target.detach() for name, target in self.targets().items()} if fresh else {}
        super()._apply(fn, recurse)
        if written is not None and fresh:
            if any(target.is_meta for target in self.targets().values()):
                self._analognoise.written = None  # no values, nothing to compare
            else:
                written.follow(before, self.targets())
        del before
        if self._analognoise.periphery is not None:
            self._analognoise.periphery.to(next(iter(self.targets().values())).device)
        # Device state stays float32; only where it lives, and the type of the assembled weights, follow the
        # Parameters.
        state = self._analognoise
        if state.tiles is not None and any(
            (now.device, now.dtype) != (self.target(name).device, self.target(name).dtype)
            for name, now in state.weights.items()
        ):
            device = self.target(next(iter(state.weights))).device
            for tile in state.tiles:
                tile.to(device)
            state.weights, state.views = {}, None
            with torch.inference_mode(False), torch.no_grad():
                self._write(state.time)
        return self


def _is_called(module: nn.Module, args: Any) -> None:
    """Does nothing: torch's encoder layers take no fused path past a child that has a hook."""
