"""One product of an array with its periphery: inputs in, noise, outputs out.

With w the net weights of a tile in parts of the largest that its column can hold (so within [-1, 1]), o the
weight units that 1 stands for, b the bound of the inputs, B that of the outputs:

    x' = DAC(x / b)                       rounded to 1/L of 1, limited to ±1
    y' = ADC(Σ w x' + noise)              rounded to B/L, limited to ±B
    y  = o b y'                           digital

Everything is computed in whole steps of the converters: the factors are folded into the weights once, and an
element costs a multiplication, a rounding and a limit on each side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from analognoise.crossbar.mapping import Block
from analognoise.crossbar.periphery.converters import bit_planes, limited
from analognoise.devices.periphery import Periphery

Bound = float | Tensor
Multiply = Callable[[Tensor, Tensor], Tensor]
Draw = Callable[[torch.Size, torch.device, int], Tensor]


@dataclass(frozen=True)
class Frame:
    """How one matrix lies on its tiles along the rows; each part's products are converted by themselves.

    Attributes:
        rows: first and last row (exclusive) of each part.
        tiles: number in the layer of the first tile of each part.
    """

    rows: tuple[tuple[int, int], ...]
    tiles: tuple[int, ...]

    @classmethod
    def of(cls, blocks: dict[int, Block]) -> Frame:
        """From the blocks of one matrix by number of their tile."""
        first: dict[tuple[int, int], int] = {}
        for number, block in blocks.items():
            first.setdefault(block.rows, number)
        return cls(tuple(first), tuple(first.values()))


@dataclass(frozen=True)
class Prepared:
    """One part of a matrix along the rows, in steps of the converters.

    Attributes:
        weights: ``[groups, columns, rows]``, output steps per input step.
        back: ``[groups, columns, 1]``, weight units per output step (times the bound of each vector, if it
            has one); None where outputs are in weight units already.
        noise: ``[groups, columns, 1]`` or a number, standard deviation of the outputs' noise in steps.
        variance: of the weights at one product, ``[groups, columns, rows]``; None without read noise.
        bound: of the inputs; None where each vector has its own.
        out_bound: of the outputs, in parts of a full input on a full weight; None for no limit.
    """

    weights: Tensor
    back: Tensor | None
    noise: Bound
    variance: Tensor | None
    bound: Bound | None
    out_bound: Bound | None


def joined(parts: list[Prepared]) -> Prepared:
    """The parts of a matrix as one, where outputs are only added.

    A sum of products is a product again, and a sum of normals a normal.
    """
    noise = torch.stack([torch.as_tensor(part.noise) ** 2 for part in parts]).sum(dim=0).sqrt()
    variances = [part.variance for part in parts if part.variance is not None]
    return Prepared(
        torch.cat([part.weights for part in parts], dim=2),
        None,
        noise,
        torch.cat(variances, dim=2) if variances else None,
        parts[0].bound,
        None,
    )


class Surroundings:
    """A periphery as numbers to compute with.

    Args:
        periphery: with every figure filled in (``DeviceProfile.surroundings``).
    """

    def __init__(self, periphery: Periphery) -> None:
        self.periphery = periphery
        dac, adc = periphery.dac, periphery.adc
        self.dynamic = dac is not None and dac.range == "dynamic"
        self.in_levels = dac.levels if dac else None
        self.out_levels = adc.levels if adc else None
        self.serial = periphery.input_mode == "bit-serial"
        self.out_noise = periphery.out_noise or 0.0
        self.reads = periphery.w_noise is not None
        self.noisy = self.reads or self.out_noise > 0
        # Inputs are the same for all parts and nothing is done to outputs but that noise is added.
        self.adds_only = adc is None and not self.serial and (dac is None or dac.range == "fixed")

    def prepare(
        self,
        weights: Tensor,
        scale: Tensor,
        variance: Tensor | None,
        bound: Bound | None,
        out_bound: Bound | None,
    ) -> Prepared:
        """A part of a matrix with the converters' steps folded in.

        Args:
            weights: ``[groups, columns, rows]``.
            scale: weight units of the largest net weight, broadcast to ``[groups, columns, 1]``.
            variance: of the net weights at one product, where the largest is 1; None without read noise.
            bound: of the inputs, None where each vector has its own.
            out_bound: of the outputs, None without limit.
        """
        per_input = 1.0 if self.in_levels is None or self.serial else 1.0 / self.in_levels
        last = 1.0 if not self.serial else 1.0 / (self.in_levels or 1)
        back: Tensor | None = None
        if self.periphery.adc is None and bound is not None:
            # Nothing is done to outputs but that noise is added: they may as well be in weight units at once.
            step: Bound = scale * bound * last
            factor: Bound = per_input * bound * last
        else:
            step = self._steps(out_bound)
            factor = step * per_input / scale
            back = scale * last / step if bound is None else scale * bound * last / step
        return Prepared(
            weights * factor,
            back,
            self.out_noise * step,
            None if variance is None else variance * (step * per_input) ** 2,
            bound,
            out_bound,
        )

    def multiply(
        self,
        inputs: Tensor,
        part: Prepared,
        product: Multiply,
        spread: Callable[[Tensor], Tensor],
        draw: Draw,
    ) -> Tensor:
        """The part's outputs in weight units, converted.

        Args:
            inputs: of the part's rows; where each vector has its own bound the last axis is along the rows.
            part: what :meth:`prepare` gave.
            product: multiplies inputs (in steps) with ``[groups, columns, rows]``.
            spread: brings ``[groups, columns, 1]`` into a shape that broadcasts to the outputs.
            draw: standard normals of a shape, for the given bit plane.
        """
        bound = self.peak(inputs) if part.bound is None else part.bound
        steps = self._converted(inputs, bound)
        if not self.serial:
            outputs = self._read(steps, part, product, spread, draw, 0)
        else:
            outputs = self._read_bits(steps, part, product, spread, draw)
        if part.back is not None:
            outputs = _times(outputs, spread(part.back))
        return outputs if part.bound is not None else _times(outputs, bound)

    def peak(self, inputs: Tensor) -> Tensor:
        """The largest absolute value of each vector; 1 for vectors of zeros, and of values so small that the
        factor to steps would overflow.
        """
        peak = inputs.detach().abs().amax(dim=-1, keepdim=True)
        smallest = torch.finfo(peak.dtype).tiny * (self.in_levels or 1)
        return peak.masked_fill_(peak < smallest, 1.0)

    def _converted(self, inputs: Tensor, bound: Bound) -> Tensor:
        if self.periphery.dac is None:
            return inputs
        return limited(inputs * ((self.in_levels or 1) / bound), self.in_levels, 1.0)

    def _read(
        self,
        steps: Tensor,
        part: Prepared,
        product: Multiply,
        spread: Callable[[Tensor], Tensor],
        draw: Draw,
        plane: int,
    ) -> Tensor:
        outputs = product(steps, part.weights)
        if self.noisy:
            with torch.no_grad():
                normal = draw(outputs.shape, outputs.device, plane).to(outputs.dtype)
                spread_of = self._spread_of_noise(steps, part, product, spread)
            outputs = _added(outputs, normal, spread_of)
        if self.periphery.adc is None:
            return outputs
        return limited(outputs, self.out_levels, part.out_bound)

    def _spread_of_noise(
        self, steps: Tensor, part: Prepared, product: Multiply, spread: Callable[[Tensor], Tensor]
    ) -> Bound:
        """Standard deviation of outputs' noise and of the devices' reading, to be drawn as one normal."""
        fixed = spread(part.noise) if isinstance(part.noise, Tensor) and part.noise.dim() else part.noise
        if part.variance is None:
            return fixed
        variance = product(steps.square(), part.variance)
        if self.out_noise:
            variance += fixed**2
        return variance.clamp_(min=0).sqrt_()

    def _read_bits(
        self,
        steps: Tensor,
        part: Prepared,
        product: Multiply,
        spread: Callable[[Tensor], Tensor],
        draw: Draw,
    ) -> Tensor:
        """Bit after bit, each a product by itself; the converted outputs are shifted and added digitally."""
        assert self.in_levels is not None
        with torch.no_grad():
            total: Tensor | None = None
            for number, plane in enumerate(bit_planes(steps.detach(), self.in_levels)):
                outputs = self._read(plane, part, product, spread, draw, number).mul_(2**number)
                total = outputs if total is None else total.add_(outputs)
            assert total is not None
        if not torch.is_grad_enabled():
            return total
        whole = product(steps, part.weights)
        return whole + (total - whole.detach())

    def _steps(self, out_bound: Bound | None) -> Bound:
        """Output steps per full input on a full weight; 1 where nothing is rounded."""
        if self.out_levels is None:
            return 1.0
        assert out_bound is not None, "an ADC with bits has a range"
        return self.out_levels / out_bound


def _times(values: Tensor, factor: Bound) -> Tensor:
    return values * factor if torch.is_grad_enabled() else values.mul_(factor)


def _added(values: Tensor, normal: Tensor, spread: Bound) -> Tensor:
    """Values and normals of a standard deviation, in one go."""
    if values.requires_grad:
        return values + normal * spread
    return (
        values.addcmul_(normal, spread) if isinstance(spread, Tensor) else values.add_(normal, alpha=spread)
    )
