"""What a drift compensation costs a chip: array reads that are no inference, and numbers to remember."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from analognoise.description import Description
from analognoise.evaluation.calibration import CalibrationData, size_of
from analognoise.evaluation.metrics import Forward
from analognoise.evaluation.recalibration import Recalibration
from analognoise.halving import until_it_fits
from analognoise.macs import count_macs
from analognoise.on_tiles import analog_layers


@dataclass(frozen=True)
class CompensationCost:
    """What one chip pays for its drift compensation, beside the inference itself.

    The unit is the product of one input vector with one tile; tiles work in parallel. A tile's read-out (for
    a factor per tile or column) takes one product with a one-hot vector for each row that is in use. A
    recalibration takes the products of its inputs' forwards.

    Attributes:
        after_programming: such products, once for a chip; the reference of later read-outs.
        each_time: such products at every drift time.
        one_input: for scale, such products of one input of the model; None where that is not known.
        numbers: numbers kept digitally.
    """

    after_programming: int
    each_time: int | None
    one_input: float | None
    numbers: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def compensation_cost(
    model: nn.Module,
    description: Description,
    batch: Any,
    recalibration: Recalibration | None = None,
) -> CompensationCost:
    """Count what a model's compensation costs.

    Args:
        model: a converted model.
        description: of it, made with ``batch``.
        batch: a batch of the evaluation.
        recalibration: the one in use.
    """
    reads = numbers = 0
    for layer in analog_layers(model).values():
        if layer.analog.compensation == "none":
            continue
        for _, block in layer.analog.placed:
            groups, columns, rows = block.shape
            reads += groups * rows
            # a reference and a factor each
            numbers += 2 * (groups * columns if layer.analog.compensation == "column" else 1)
    samples, products = size_of(batch), _sum(layer.tile_products for layer in description.layers)
    one = products / samples if samples and products is not None else None
    each: int | None = reads
    if recalibration is not None:
        calibrating = _of_calibration(model, recalibration.data, recalibration.forward)
        each = None if calibrating is None else reads + calibrating
        numbers += recalibration.numbers
    return CompensationCost(reads, each, one, numbers)


def described(
    description: Description, compensation: str, cost: CompensationCost | None, left_out: tuple[str, ...]
) -> dict[str, Any]:
    """Plain values of what is on tiles, of the compensation and what it costs, and of what it leaves out."""
    return description.to_dict() | {
        "compensation": compensation,
        "compensation_cost": None if cost is None else cost.to_dict(),
        "not_recalibrated": list(left_out),
    }


def _of_calibration(model: nn.Module, data: CalibrationData, forward: Forward) -> int | None:
    def counted() -> list[int | None]:
        counts = [count_macs(model, batch, forward).tile_products.values() for batch in data]
        return [count for several in counts for count in several]

    return _sum(until_it_fits(counted, data, lambda: None))


def _sum(counts: Iterable[int | None]) -> int | None:
    numbers = list(counts)
    return None if None in numbers else sum(number or 0 for number in numbers)
