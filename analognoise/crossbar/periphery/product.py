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
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from analognoise.crossbar.mapping import Block
from analognoise.crossbar.periphery.converters import bit_planes, differentiated, limited, rounded
from analognoise.devices.periphery import Periphery

Bound = float | Tensor

_SURELY_ROUNDED = 1 << 21  # levels that the error of a product in float32 does not reach beyond
Draw = Callable[[tuple[int, ...], torch.device, int], Tensor]


def _peak_of_rows(vectors: Tensor) -> Tensor:
    return vectors.abs().amax(dim=-1, keepdim=True)


@dataclass(eq=False)
class Products:
    """How a layer multiplies its inputs with its matrix; made for each product, so not frozen, which takes
    four times as long.

    Attributes:
        inputs: float32 or float64; the first axis holds what is multiplied independently.
        size: numbers that one entry of the first axis is, as input or as output, roughly.
        take: of some of the inputs those of the rows from one number to another.
        multiply: inputs (in steps, as ``scaled`` gives them) times a part ``[groups, columns, rows]`` of the
            matrix that begins with the given row.
        spread: brings ``[groups, columns, 1]`` into a shape that broadcasts to the outputs.
        onto: a multiple of a tensor, which may be overwritten, plus a product ``[vectors, columns]``, in one
            go. None where the outputs are no matrix.
        followed: whether torch records or transforms what is computed; else it may be overwritten.
        scaled: what ``take`` gave, times a factor: a number, or one for each vector.
        peak: of what ``take`` gave, the largest absolute value of each vector, in a shape that broadcasts to
            the vectors' outputs. By default vectors lie along the last axis.
        finish: what becomes of the outputs of some inputs, when those of all parts are added up; None where
            they stay as they are.
        outputs: makes the memory for what all inputs give with so many columns of each group; None where only
            a product tells its shape.
    """

    inputs: Tensor
    size: int
    take: Callable[[Tensor, int, int], Tensor]
    multiply: Callable[[Tensor, Tensor, int], Tensor]
    spread: Callable[[Tensor], Tensor]
    onto: Callable[[Tensor, float, Tensor, Tensor], Tensor] | None
    followed: bool
    scaled: Callable[[Tensor, Bound], Tensor] = torch.mul
    peak: Callable[[Tensor], Tensor] = _peak_of_rows
    finish: Callable[[Tensor], Tensor] | None = None
    outputs: Callable[[int], Tensor] | None = None

    def finished(self, outputs: Tensor) -> Tensor:
        """The outputs of some inputs, when those of all parts are added up."""
        return outputs if self.finish is None else self.finish(outputs)


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
        start: number of the part's first row.
        weights: ``[groups, columns, rows]``, output steps per input step.
        back: ``[groups, columns, 1]``, weight units per output step (times the bound of each vector, if it
            has one); None where outputs are in weight units already.
        noise: ``[groups, columns, 1]`` or a number, standard deviation of the outputs' noise in steps.
        variance: of the weights at one product, ``[groups, columns, rows]``; None without read noise.
        bound: of the inputs; None where each vector has its own.
        out_bound: of the outputs, in parts of a full input on a full weight; None for no limit.
    """

    start: int
    weights: Tensor
    back: Tensor | None
    noise: Bound
    variance: Tensor | None
    bound: Bound | None
    out_bound: Bound | None

    def of_columns(self, columns: slice) -> Prepared:
        """The same of some columns."""
        if columns == slice(None):
            return self
        variance = None if self.variance is None else self.variance[:, columns]
        back = None if self.back is None else self.back[:, columns]
        noise = self.noise
        if isinstance(noise, Tensor) and noise.dim():
            noise = noise[:, columns]
        return replace(self, weights=self.weights[:, columns], back=back, noise=noise, variance=variance)


def joined(parts: list[Prepared]) -> Prepared:
    """The parts of a matrix as one, where outputs are only added.

    A sum of products is a product again, and a sum of normals a normal.
    """
    noise = torch.stack([torch.as_tensor(part.noise) ** 2 for part in parts]).sum(dim=0).sqrt()
    variances = [part.variance for part in parts if part.variance is not None]
    return Prepared(
        parts[0].start,
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
        # IR drop is in the weights; a product by itself is as without a periphery.
        self.idle = dac is None and adc is None and not self.noisy
        # Inputs are the same for all parts and nothing is done to outputs but that noise is added.
        self.adds_only = adc is None and not self.serial and (dac is None or dac.range == "fixed")

    def prepare(
        self,
        start: int,
        weights: Tensor,
        scale: Tensor,
        variance: Tensor | None,
        bound: Bound | None,
        out_bound: Bound | None,
    ) -> Prepared:
        """A part of a matrix with the converters' steps folded in.

        Args:
            start: number of the part's first row.
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
            start,
            weights * factor,
            back,
            self.out_noise * step,
            None if variance is None else variance * (step * per_input) ** 2,
            bound,
            out_bound,
        )

    def converted(self, inputs: Tensor, part: Prepared, products: Products) -> tuple[Tensor, Bound]:
        """The inputs of a part in steps of the DAC, and their bound.

        Args:
            inputs: of the part's rows.
            part: what :meth:`prepare` gave.
            products: how the layer multiplies.
        """
        bound = self.peak(inputs, products) if part.bound is None else part.bound
        if self.periphery.dac is None:
            return inputs, bound
        steps = products.scaled(inputs, (self.in_levels or 1) / bound)
        if part.bound is None and self.in_levels is not None and self.in_levels < _SURELY_ROUNDED:
            # The largest is the last level.
            return rounded(steps) if products.followed else steps.round_(), bound
        return limited(steps, self.in_levels, 1.0, followed=products.followed), bound

    def add(
        self,
        total: Tensor | None,
        steps: Tensor,
        bound: Bound,
        part: Prepared,
        products: Products,
        draw: Draw,
        into: Tensor | None = None,
    ) -> Tensor:
        """The part's outputs in weight units, converted and added to those of the parts before it.

        Args:
            total: the sum so far, which is overwritten where no gradient is wanted; None for the first part.
            steps: inputs that :meth:`converted` gave, and
            bound: their bound.
            part: what :meth:`prepare` gave.
            products: how the layer multiplies.
            draw: standard normals of a shape, for the given bit plane.
            into: where the first part's outputs go if no gradient is wanted; None for new memory.
        """
        if not self.serial:
            outputs = self._read(steps, part, products, draw, 0)
        else:
            outputs = self._read_bits(steps, part, products, draw)
        back = None if part.back is None else products.spread(part.back)
        if part.bound is None:
            outputs = _times(outputs, bound)
        if total is None and into is not None:
            return into.copy_(outputs) if back is None else torch.mul(outputs, back, out=into)
        if total is None:
            return outputs if back is None else _times(outputs, back)
        if torch.is_grad_enabled():
            return total + (outputs if back is None else outputs * back)
        return total.add_(outputs) if back is None else total.addcmul_(outputs, back)

    def peak(self, inputs: Tensor, products: Products) -> Tensor:
        """The largest absolute value of each vector; 1 for vectors of zeros, and of values so small that the
        factor to steps would overflow.
        """
        peak = products.peak(inputs.detach())
        smallest = torch.finfo(peak.dtype).tiny * (self.in_levels or 1)
        return peak.masked_fill_(peak < smallest, 1.0)

    def _read(self, steps: Tensor, part: Prepared, products: Products, draw: Draw, plane: int) -> Tensor:
        noise, onto = part.noise, products.onto
        if self.noisy and not isinstance(noise, Tensor) and part.variance is None and onto is not None:
            normal = draw((steps.shape[0], part.weights.shape[1]), steps.device, plane)
            outputs = onto(_like(normal, steps), noise, steps, part.weights)
        else:
            outputs = products.multiply(steps, part.weights, part.start)
            if self.noisy:
                with torch.no_grad():
                    normal = _like(draw(tuple(outputs.shape), outputs.device, plane), outputs)
                    spread_of = self._spread_of_noise(steps, part, products)
                outputs = _added(outputs, normal, spread_of)
        if self.periphery.adc is None:
            return outputs
        return limited(outputs, self.out_levels, part.out_bound, followed=products.followed)

    def _spread_of_noise(self, steps: Tensor, part: Prepared, products: Products) -> Bound:
        """Standard deviation of outputs' noise and of the devices' reading, to be drawn as one normal."""
        noise = part.noise
        fixed = products.spread(noise) if isinstance(noise, Tensor) and noise.dim() else noise
        if part.variance is None:
            return fixed
        variance = products.multiply(steps.detach().square(), part.variance, part.start)
        if self.out_noise:
            variance += fixed**2
        return variance.clamp_(min=0).sqrt_()

    def _read_bits(self, steps: Tensor, part: Prepared, products: Products, draw: Draw) -> Tensor:
        """Bit after bit, each a product by itself; the converted outputs are shifted and added digitally."""
        assert self.in_levels is not None
        with torch.no_grad():
            total: Tensor | None = None
            for number, plane in enumerate(bit_planes(steps.detach(), self.in_levels)):
                outputs = self._read(plane, part, products, draw, number).mul_(2**number)
                total = outputs if total is None else total.add_(outputs)
            assert total is not None
        if not (torch.is_grad_enabled() or differentiated(steps)):
            return total
        whole = products.multiply(steps, part.weights, part.start)
        return whole + (total.detach() - whole.detach())  # no_grad lets forward derivatives pass

    def _steps(self, out_bound: Bound | None) -> Bound:
        """Output steps per full input on a full weight; 1 where nothing is rounded."""
        if self.out_levels is None:
            return 1.0
        assert out_bound is not None, "an ADC with bits has a range"
        return self.out_levels / out_bound


def _like(normal: Tensor, values: Tensor) -> Tensor:
    return normal if normal.dtype is values.dtype else normal.to(values.dtype)


def _times(values: Tensor, factor: Bound) -> Tensor:
    return values * factor if torch.is_grad_enabled() else values.mul_(factor)


def _added(values: Tensor, normal: Tensor, spread: Bound) -> Tensor:
    """Values and normals of a standard deviation, in one go."""
    if values.requires_grad:
        return values + normal * spread
    return (
        values.addcmul_(normal, spread) if isinstance(spread, Tensor) else values.add_(normal, alpha=spread)
    )
