"""Digital recalibration of a chip at its drift time, from what a few unlabelled inputs give on it.

Two kinds. Both run the calibration batches once through the chip, each batch corrected by its own statistics
so that deeper layers see corrected inputs, and pool these over the batches; then the data are evaluated with
the pooled correction.

*batchnorm*: the BatchNorm layers' running mean and variance are those of the chip (AdaBN, Li et al. 2016,
arXiv 1603.04779; for drifting phase-change memory "AdaBS", Joshi et al. 2020, doi 10.1038/s41467-020-16108-9,
there by moving averages). *affine*: for models without them each output channel y of a layer on tiles becomes
a·y + c, so that its mean m and standard deviation s are M and S, those of the digital network on the same
inputs: a = S / s, c = M - a·m.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from analognoise.chip import digital, restart_products
from analognoise.compiled import eager
from analognoise.crossbar.compensation import RECALIBRATIONS
from analognoise.errors import DataError, nearest
from analognoise.evaluation.calibration import CalibrationData
from analognoise.evaluation.metrics import Forward
from analognoise.evaluation.moments import Moments
from analognoise.evaluation.surroundings import At, Buffers, seed_all
from analognoise.halving import until_it_fits
from analognoise.layers import AnalogLayer
from analognoise.on_tiles import analog_layers
from analognoise.seeds import derive_seed

_Found = TypeVar("_Found")


class Recalibration:
    """A model's correction at a drift time; see the module.

    Args:
        model: a converted model.
        kind: ``"batchnorm"`` or ``"affine"``.
        data: unlabelled batches.
        forward: ``forward(model, batch) -> output``.
        seed: root seed of the chips.

    Attributes:
        left_out: layers on tiles that ``"affine"`` cannot correct: their outputs are more than one product
            and a bias (recurrent layers, attention).
        numbers: how many numbers the correction keeps digitally.

    Raises:
        DataError: when there is no such kind, or the model has nothing that it could correct.
    """

    def __init__(
        self, model: nn.Module, kind: str, data: CalibrationData, forward: Forward, seed: int
    ) -> None:
        if kind not in RECALIBRATIONS:
            raise DataError(
                f"unknown recalibration {kind!r}{nearest(str(kind), RECALIBRATIONS)}: known are "
                f"{', '.join(RECALIBRATIONS)}"
            )
        self.model, self.kind, self.data, self.forward, self.seed = model, kind, data, forward, seed
        self.left_out: tuple[str, ...] = ()
        self._modules: dict[str, nn.Module]
        if kind == "batchnorm":
            self._modules = {
                name: module
                for name, module in model.named_modules()
                if isinstance(module, _BatchNorm) and module.running_mean is not None
            }
            if not self._modules:
                raise DataError(
                    "the model has no BatchNorm layer with running statistics, so there is nothing to "
                    "re-estimate: recalibrate by 'affine'"
                )
            self.numbers = sum(2 * len(norm.running_mean) for norm in self._norms())
        else:
            layers = analog_layers(model)
            self._modules = {n: layer for n, layer in layers.items() if layer.channel_axis is not None}
            self.left_out = tuple(name for name in layers if name not in self._modules)
            if not self._modules:
                raise DataError(
                    f"recalibration by 'affine' can correct none of the layers on tiles "
                    f"({', '.join(map(repr, self.left_out))}): it takes linear layers and convolutions"
                )
            self.numbers = sum(2 * _channels(layer) for layer in self._modules.values())
        # Of every call of a layer in the order of a pass over the batches, what it gives digitally.
        self._wanted: dict[str, list[Moments]] = {}

    @property
    def identity(self) -> list[Any]:
        """What tells two recalibrations apart, besides the model."""
        return [self.kind, self.data.fingerprint]

    def learn(self) -> None:
        """Note what the digital network gives on the calibration data, as far as that is needed."""
        if self.kind != "affine" or self._wanted:
            return
        self._wanted = until_it_fits(self._digital_moments, self.data, lambda: None)

    def _digital_moments(self) -> dict[str, list[Moments]]:
        found: dict[str, list[Moments]] = {name: [] for name in self._modules}

        def watching(name: str, axis: int) -> _Change:
            def change(output: Tensor) -> Tensor:
                if output.is_nested:
                    raise DataError(
                        f"layer {name!r} gives a nested tensor, and recalibration by 'affine' needs ordinary "
                        "ones: give the model padded inputs, or do without recalibration"
                    )
                found[name].append(Moments(output, axis))
                return output

            return change

        changes = {name: watching(name, _axis(layer)) for name, layer in self._modules.items()}
        with At("the digital pass over the calibration"), digital(self.model), self._changed(changes):
            self._pass("digital")
        for name, several in found.items():
            for moments in several:
                self._check(name, moments, "digitally")
        return found

    @contextmanager
    def applied(self, place: tuple[int, float], buffers: Buffers) -> Iterator[None]:
        """Calibrate the chip in its present state, and compute with the correction inside.

        Args:
            place: chip and drift time, the key of whatever a forward draws.
            buffers: of the model, put back at the end.
        """
        if self.kind == "batchnorm":
            statistics = self._until_it_fits(lambda: self._norm_statistics(place), buffers)
            buffers.restore()
            for name, norm in zip(self._modules, self._norms(), strict=True):
                if statistics[name].count:
                    norm.running_mean.copy_(statistics[name].mean)
                    norm.running_var.copy_(statistics[name].unbiased_variance)
            try:
                yield
            finally:
                buffers.restore()
            return
        changes = self._until_it_fits(lambda: self._affine(place), buffers)
        buffers.restore()
        with eager(), self._changed(changes):
            yield

    def _until_it_fits(self, work: Callable[[], _Found], buffers: Buffers) -> _Found:
        """A pass over the chip; what it is compared with is learned anew where batches are halved."""

        def again() -> None:
            buffers.restore()
            self._wanted = {}
            self.learn()
            buffers.restore()
            restart_products(self.model)

        return until_it_fits(work, self.data, again)

    def _norm_statistics(self, place: object) -> dict[str, Moments]:
        """Moments of what each BatchNorm layer gets on the chip, itself normalising batch by batch."""
        found = {name: Moments() for name in self._modules}

        def watching(name: str, norm: nn.Module) -> Callable[..., Any]:
            inner = norm.forward

            def forward(input: Tensor) -> Any:
                if input.numel() == input.shape[1]:
                    raise DataError(
                        f"BatchNorm layer {name!r} gets one value per channel, which has no spread: give "
                        "calibration batches of two inputs or more"
                    )
                found[name].add(Moments(input, 1))
                return inner(input)

            return forward

        norms = list(self._norms())
        modes = [norm.training for norm in norms]
        try:
            for norm in norms:
                norm.training = True
            with _forwards({norm: watching(n, norm) for n, norm in self._modules.items()}):
                self._pass(place)
            for name, moments in found.items():
                self._check(name, moments, "on the chip")
        finally:
            for norm, mode in zip(norms, modes, strict=True):
                norm.training = mode
        return found

    def _affine(self, place: object) -> dict[str, _Change]:
        """Scale and offset by channel of each layer, from a pass over the chip."""
        pooled = {name: Moments() for name in self._modules}
        calls = dict.fromkeys(self._modules, 0)

        def correcting(name: str, axis: int) -> _Change:
            def change(output: Tensor) -> Tensor:
                number, wanted = calls[name], self._wanted[name]
                calls[name] += 1
                if number >= len(wanted):
                    raise DataError(
                        f"layer {name!r} is called more often on the chip than digitally, so that its "
                        "outputs cannot be compared: recalibration by 'affine' is not for such a model"
                    )
                own = Moments(output, axis)
                pooled[name].add(own)
                return _corrected(output, *_line(own, wanted[number]), axis)

            return change

        with self._changed({name: correcting(name, _axis(m)) for name, m in self._modules.items()}):
            self._pass(place)
        for name, moments in pooled.items():
            self._check(name, moments, "on the chip")

        def fixed(scale: Tensor, offset: Tensor, axis: int) -> _Change:
            return lambda output: _corrected(output, scale, offset, axis)

        changes = {}
        for name, layer in self._modules.items():
            if pooled[name].count:
                goal = Moments()
                for moments in self._wanted[name]:
                    goal.add(moments)
                changes[name] = fixed(*_line(pooled[name], goal), _axis(layer))
        return changes

    @contextmanager
    def _changed(self, changes: Mapping[str, _Change]) -> Iterator[None]:
        """Let the layers' outputs go through functions."""

        def through(layer: nn.Module, change: _Change) -> Callable[..., Any]:
            inner = layer.forward
            return lambda *args, **kwargs: change(inner(*args, **kwargs))

        with _forwards({self._modules[n]: through(self._modules[n], c) for n, c in changes.items()}):
            yield

    def _check(self, name: str, moments: Moments, where: str) -> None:
        """Raise where there is no mean to correct by.

        Raises:
            DataError: naming the layer.
        """
        if not torch.isfinite(moments.mean).all():
            raise DataError(
                f"recalibration by {self.kind!r}: the calibration data give layer {name!r} NaN or infinite "
                f"values {where}: leave such inputs out"
            )

    def _pass(self, place: object) -> None:
        seed_all(derive_seed("calibration", self.seed, place), _device_of(self._modules))
        with eager():
            for number, batch in enumerate(self.data):
                with At("batch {} of the calibration", number):
                    self.forward(self.model, batch)

    def _norms(self) -> Iterator[Any]:
        yield from self._modules.values()


_Change = Callable[[Tensor], Tensor]


def _line(own: Moments, wanted: Moments) -> tuple[Tensor, Tensor]:
    """Scale and offset that take mean and standard deviation to the wanted ones."""
    spread = own.std
    scale = torch.where(spread > 0, wanted.std / spread, torch.ones_like(spread))
    return scale, wanted.mean - scale * own.mean


def _corrected(output: Tensor, scale: Tensor, offset: Tensor, axis: int) -> Tensor:
    shape = (-1, *[1] * (-axis - 1))
    return output * scale.to(output.dtype).view(shape) + offset.to(output.dtype).view(shape)


def _axis(layer: nn.Module) -> int:
    assert isinstance(layer, AnalogLayer)
    assert layer.channel_axis is not None
    return layer.channel_axis


def _channels(layer: nn.Module) -> int:
    """Output channels; a transposed convolution's columns are theirs times the kernel's positions."""
    found = getattr(layer, "out_channels", None) or getattr(layer, "out_features", None)
    if found is None:
        assert isinstance(layer, AnalogLayer)
        found = sum(shape.groups * shape.columns for shape in layer.geometries(layer).values())
    return int(found)


def _device_of(modules: Mapping[str, nn.Module]) -> torch.device:
    module = next(iter(modules.values()))
    return next(module.parameters(), next(module.buffers(), torch.empty(0))).device


@contextmanager
def _forwards(replacements: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules another forward, also where it is called past ``__call__``."""
    missing = object()
    kept = [(module, vars(module).get("forward", missing)) for module in replacements]
    try:
        for module, forward in replacements.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, before in kept:
            if before is missing:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = before
