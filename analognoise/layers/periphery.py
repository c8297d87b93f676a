"""A layer's periphery: its ranges, what it must know of the chip, and the products of its matrices."""

from __future__ import annotations

from functools import partial
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from analognoise.crossbar import Block, Reading
from analognoise.crossbar.mapping import full_scale, largest, scales, to_devices
from analognoise.crossbar.periphery import Frame, Magnitudes, Products, Surroundings, weight_variance
from analognoise.crossbar.periphery.converters import log_of, range_of
from analognoise.crossbar.periphery.product import Bound, Prepared, joined
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import CalibrationError
from analognoise.layers.geometry import Geometry
from analognoise.layers.product_noise import Layer, ProductNoise
from analognoise.layers.products import blocks, layout_of

SIDES = {"input": "dac", "output": "adc"}

Kept = tuple[list[Tensor], list[Any], list[Prepared]]
"""What a matrix was prepared of, its state then, and the matrix."""


class LayerPeriphery(ProductNoise):
    """What surrounds the tiles of one layer.

    Args:
        profile: the device, with a periphery.
        placed: the Parameter and block of each tile.
        geometries: how each weight Parameter lies on the array.
        device: where the layer is.

    Attributes:
        surroundings: the figures.
        frames: how each weight Parameter lies on tiles along its rows.
        tensors: what follows from the chip at its drift time: ``"NAME.scale"``, the weight units of the
            largest net weight, ``[parts, groups, columns, 1]``, and with read noise ``"NAME.variance"``,
            ``[groups, columns, rows]``. Rewritten in place, as the weights are.
        ranges: bounds from data or training, a value for each part along the rows, by ``"NAME.input"`` and
            ``"NAME.output"``; an output's in parts of a full input on a full weight. Learned ones are
            Parameters that hold the logarithm, but no Parameters of the module: they are not in its
            ``state_dict``.
        known: the ranges that have a value.
        watched: magnitudes of what each range is to hold, part by part, while they are collected.
    """

    def __init__(
        self,
        profile: DeviceProfile,
        placed: list[tuple[str, Block]],
        geometries: dict[str, Geometry],
        device: torch.device,
    ) -> None:
        super().__init__()
        assert profile.surroundings is not None
        self.profile = profile
        self.surroundings = Surroundings(profile.surroundings)
        self.frames: dict[str, Frame] = {}
        self.tensors: dict[str, Tensor] = {}
        self.ranges: dict[str, Tensor] = {}
        self.known: set[str] = set()
        self.watched: dict[str, list[Magnitudes]] | None = None
        self._cache: dict[str, Kept] = {}
        for name, g in geometries.items():
            frame = Frame.of({tile: block for tile, (own, block) in enumerate(placed) if own == name})
            self.frames[name] = frame
            self.tensors[f"{name}.scale"] = torch.ones(len(frame.rows), g.groups, g.columns, 1, device=device)
            if self.surroundings.reads:
                self.tensors[f"{name}.variance"] = torch.zeros(g.groups, g.columns, g.rows, device=device)
        for side, section in SIDES.items():
            converter = getattr(self.surroundings.periphery, section)
            if converter is None or not converter.has_data_range:
                continue
            for name, frame in self.frames.items():
                values = torch.full((len(frame.rows),), converter.bound or 1.0, device=device)
                key = f"{name}.{side}"
                self.ranges[key] = nn.Parameter(log_of(values)) if converter.range == "learned" else values
                if converter.bound is not None:
                    self.known.add(key)
        # Where what a matrix is prepared of is kept, so that no key is put together for each product.
        self._keys = {
            name: (
                [key for own in ("scale", "variance") if (key := f"{name}.{own}") in self.tensors],
                [key for side in SIDES if (key := f"{name}.{side}") in self.ranges],
            )
            for name in self.frames
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_cache": {}}

    def known_ranges(self) -> dict[str, Tensor]:
        """The ranges that have a value, in the order of their names."""
        return {key: self.range_now(key).detach() for key in sorted(self.known)}

    def range_now(self, key: str) -> Tensor:
        """A range's values."""
        values = self.ranges[key]
        return range_of(values) if isinstance(values, nn.Parameter) else values

    def set_range(self, key: str, values: Tensor) -> None:
        """Give a range its values; a learned one stays the same Parameter."""
        with torch.no_grad():
            own = self.ranges[key]
            own.copy_(log_of(values) if isinstance(own, nn.Parameter) else values)
        self.known.add(key)

    def to(self, device: torch.device) -> None:
        """Move ranges and tensors; an optimizer's Parameters stay the same objects."""
        for key, values in self.ranges.items():
            if isinstance(values, nn.Parameter):
                data = values.data.float() if device.type == "mps" else values.data  # which has no float64
                values.data = data.to(device)
            else:
                self.ranges[key] = values.to(device)
        self.tensors = {key: values.to(device) for key, values in self.tensors.items()}
        self._cache.clear()

    def note(self, name: str, block: Block, reading: Reading) -> None:
        """Keep what products must know of a tile's state."""
        part, (groups, columns, _) = self.frames[name].rows.index(block.rows), block.index
        self.tensors[f"{name}.scale"][part, groups, columns] = reading.scale * full_scale(self.profile)
        if reading.variance is not None:
            self.tensors[f"{name}.variance"][block.index] = reading.variance

    # Products

    def product(self, layer: Layer, name: str, products: Products, columns: slice = slice(None)) -> Tensor:
        """Inputs times one matrix, part by part along the rows, each converted by itself and added digitally.

        On a CPU large products are computed a block at a time, so that all steps of one find its numbers in
        the cache.

        Args:
            layer: whose matrix it is.
            name: the weight Parameter.
            products: the inputs, and how the layer multiplies them.
            columns: the part of the columns that is asked for.
        """
        if self.watched is not None:
            return self._watch(layer, name, products, columns)
        parts = self._parts(layer, name, products.followed)
        if columns != slice(None):
            parts = [part.of_columns(columns) for part in parts]
        if self.surroundings.noisy:
            self.count(products.followed)
        if not (products.followed or layer.training):
            wide = parts[0].weights.shape[1]
            high, narrow = blocks(products, wide)
            if high < products.inputs.shape[0] or narrow < wide:
                return self._by_blocks(layer, name, products, parts, high, narrow)
        return self._whole(layer, name, products, parts)

    def _by_blocks(
        self, layer: Layer, name: str, products: Products, parts: list[Prepared], high: int, narrow: int
    ) -> Tensor:
        """A product of so many entries of the inputs with so many columns at a time."""
        inputs, wide = products.inputs, parts[0].weights.shape[1]
        columns_of_blocks = [slice(start, start + narrow) for start in range(0, wide, narrow)]
        several = len(columns_of_blocks) > 1
        across = [
            (
                [part.of_columns(own) for part in parts] if several else parts,
                [
                    self.draw_blocks(layer, tile, along if several else None)
                    for tile in self._tiles(name, parts)
                ],
                (slice(None), own) if several else (),
            )
            for along, own in enumerate(columns_of_blocks)
        ]
        # Several parts are added up in a block's own memory, which stays in the cache.
        at_once = len(parts) == 1 and products.finish is None
        # Memory that lasts is asked for first: what is freed with each block leaves no gap before it.
        output = None if products.outputs is None else products.outputs(wide)
        for start in range(0, len(inputs), high):
            some = inputs[start : start + high]
            steps = [self._converted(products, some, part) for part in parts]
            for own_parts, draws, place in across:
                into = None if output is None else output[start : start + high][place]
                total: Tensor | None = None
                for part, given, draw in zip(own_parts, steps, draws, strict=True):
                    target = into if at_once else None
                    total = self.surroundings.add(total, *given, part, products, draw, target)
                assert total is not None, "a matrix has at least one row"
                total = products.finished(total)
                if output is None:
                    shape = len(inputs), wide if several else total.shape[1], *total.shape[2:]
                    layout = layout_of(total)
                    output = torch.empty(shape, dtype=total.dtype, device=total.device, memory_format=layout)
                    into = output[:high][place]
                if total is not into:
                    assert into is not None
                    into.copy_(total)
        assert output is not None
        return output

    def _whole(self, layer: Layer, name: str, products: Products, parts: list[Prepared]) -> Tensor:
        """A product in one go. Where torch follows it, with the noise that it has in blocks; training knows
        none.
        """
        cut: tuple[int, int | None] | None = None
        if products.followed and self.surroundings.noisy:
            wide = parts[0].weights.shape[1]
            high, narrow = blocks(products, wide) if not layer.training else (len(products.inputs), wide)
            cut = high, narrow if narrow < wide else None
        total: Tensor | None = None
        for part, tile in zip(parts, self._tiles(name, parts), strict=True):
            draw = (
                partial(self.draw, layer, tile)
                if cut is None
                else partial(self.draw_whole, layer, tile, *cut)
            )
            given = self._converted(products, products.inputs, part)
            total = self.surroundings.add(total, *given, part, products, draw)
        assert total is not None, "a matrix has at least one row"
        return products.finished(total)

    def _tiles(self, name: str, parts: list[Prepared]) -> tuple[int, ...]:
        """Whose streams the parts of a matrix have; parts that are one have the first's."""
        return self.frames[name].tiles[: len(parts)]

    def _converted(self, products: Products, inputs: Tensor, part: Prepared) -> tuple[Tensor, Bound]:
        rows = part.weights.shape[2]
        return self.surroundings.converted(
            products.take(inputs, part.start, part.start + rows), part, products
        )

    def _parts(self, layer: Layer, name: str, followed: bool) -> list[Prepared]:
        """The matrix with all factors folded in, kept as long as nothing of it changes."""
        weights = layer.weight_now(name)
        if layer.training:
            return self._prepare(name, *self._nominal(layer, name, weights), exact=False)
        chip, data = self._keys[name]
        tensors = [weights, *(self.tensors[key] for key in chip), *(self.ranges[key] for key in data)]
        kept = self._cache.get(name)
        if not followed and kept is not None and _unchanged(kept, tensors):
            return kept[2]

        def prepared(*, exact: bool) -> list[Prepared]:
            matrix = layer.matrix_of(name, weights)
            variance = self.tensors.get(f"{name}.variance")
            return self._prepare(name, matrix, self.tensors[f"{name}.scale"], variance, exact=exact)

        learning = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        if learning or torch.compiler.is_compiling() or any(tensor.is_inference() for tensor in tensors):
            return prepared(exact=False)
        if kept is None or not _unchanged(kept, tensors):
            with torch.inference_mode(False), torch.no_grad():  # kept for products with gradients, too
                kept = self._cache[name] = tensors, _states(tensors), prepared(exact=True)
        return kept[2]

    def _prepare(
        self, name: str, matrix: Tensor, scale: Tensor, variance: Tensor | None, *, exact: bool
    ) -> list[Prepared]:
        parts = []
        for number, (start, end) in enumerate(self.frames[name].rows):
            bounds = [self._bound(name, side, number, exact) for side in SIDES]
            cut = None if variance is None else variance[:, :, start:end].to(matrix.dtype)
            factors = scale[number].to(matrix.dtype)
            parts.append(self.surroundings.prepare(start, matrix[:, :, start:end], factors, cut, *bounds))
        if len(parts) > 1 and self.surroundings.adds_only:
            return [joined(parts)]
        return parts

    def _bound(self, name: str, side: str, part: int, exact: bool) -> Bound | None:
        """The range of a converter; a number where that can be known once and for all (``exact``)."""
        converter = getattr(self.surroundings.periphery, SIDES[side])
        if converter is None:
            return 1.0 if side == "input" else None
        if not converter.has_data_range:
            return converter.bound
        values = self.range_now(f"{name}.{side}")
        return float(values[part]) if exact else values[part]

    @torch.no_grad()
    def _nominal(self, layer: Layer, name: str, weights: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Matrix, scale and variance as for a chip without any noise, drift or wire."""
        with torch.enable_grad():
            matrix = layer.matrix_of(name, weights)
        values = matrix.detach().float()
        scale = torch.ones_like(self.tensors[f"{name}.scale"])
        variance = torch.zeros_like(values) if self.surroundings.reads else None
        most = largest(values, self.profile) if self.profile.mapping.scale == "layer" else None
        for own, block in layer.analog.placed:
            if own == name:
                part, (groups, columns, _) = self.frames[name].rows.index(block.rows), block.index
                factor = scales(values[block.index], self.profile, most)
                scale[part, groups, columns] = factor * full_scale(self.profile)
                if variance is not None:
                    devices = to_devices(values[block.index], factor, self.profile)
                    variance[block.index] = weight_variance(devices, self.profile)
        return matrix, scale, variance

    # Calibration

    def _watch(self, layer: Layer, name: str, products: Products, columns: slice) -> Tensor:
        """The exact product; the ranges that its converters would need are noted."""
        assert self.watched is not None
        matrix, scale, _ = self._nominal(layer, name, layer.target(name))
        total: Tensor | None = None
        for number, (start, end) in enumerate(self.frames[name].rows):
            inputs = products.take(products.inputs, start, end)
            outputs = products.multiply(products.scaled(inputs, 1.0), matrix[:, columns, start:end], start)
            seen = {"input": inputs}
            if f"{name}.output" in self.ranges:
                relative = outputs / products.spread(scale[number][:, columns])
                if self.surroundings.dynamic:
                    relative = relative / self.surroundings.peak(inputs, products)
                seen["output"] = relative
            for side, values in seen.items():
                if f"{name}.{side}" in self.watched:
                    converter = getattr(self.surroundings.periphery, SIDES[side])
                    wanted = converter.percentile is not None
                    self.watched[f"{name}.{side}"][number].add(values, percentile=wanted)
            total = outputs if total is None else total + outputs
        assert total is not None
        return products.finished(total)

    def check_known(self, layer: str) -> None:
        """Raise unless every range has a value.

        Raises:
            CalibrationError: naming the layer and the converter.
        """
        if self.known >= self.ranges.keys():
            return
        for side, section in SIDES.items():
            missing = [key for key in self.ranges if key.endswith(f".{side}") and key not in self.known]
            if missing:
                kind = getattr(self.surroundings.periphery, section).range
                raise CalibrationError(
                    f"layer {layer!r}: the range of its {section.upper()} is {kind!r} and has no value yet: "
                    "call analognoise.calibrate_(model, loader) first"
                )


def _states(tensors: list[Tensor]) -> list[Any]:
    """What changes when a tensor is written to."""
    # Fused optimizers and whoever writes to .data leave the version of a Parameter as it is.
    return [
        t.tolist() if type(t) is not Tensor and isinstance(t, nn.Parameter) else t._version for t in tensors
    ]


def _unchanged(kept: Kept, tensors: list[Tensor]) -> bool:
    """Whether these are the tensors that a matrix was prepared of, with the same numbers."""
    return all(map(is_, kept[0], tensors)) and kept[1] == _states(tensors)
