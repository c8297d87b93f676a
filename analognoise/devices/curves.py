"""Functions of relative conductance x = G / g_max (or G / ``reference``) that a profile can name.

Every curve is a frozen model and a function of tensors: ``curve(x)`` gives a new tensor of x's shape, dtype
(float32 or float64) and device. It computes ``scale * clip(f(x), min, max)``, with f by kind:

=============  ==============================================  ==========================================
curve          fields                                          f(x)
=============  ==============================================  ==========================================
constant       value (or a bare number in the file)            value
polynomial     coefficients = [c0, c1, c2, …]                  c0 + c1 x + c2 x² + …
log            slope, intercept                                slope · ln x + intercept
power          coefficient, exponent                           coefficient · x^exponent
saturation     amplitude, knee                                 amplitude · (1 − exp(−x / knee))
piecewise      pieces = [{below, curve, …}, …, {curve, …}]     the first piece with x < below
table          x, y, or csv = "file.csv" beside the profile    linear between points, constant outside
=============  ==============================================  ==========================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, PlainSerializer, PlainValidator, ValidationError, ValidationInfo, model_validator
from torch import Tensor

from analognoise.devices.base import BaseCurve, Frozen, Function, in_schema, scalar
from analognoise.devices.measured import Numbers, Table
from analognoise.devices.problems import Nested, Problem, show
from analognoise.errors import nearest


class Constant(BaseCurve):
    """``value`` everywhere."""

    curve: Literal["constant"] = "constant"
    value: float = Field(description="the value everywhere")

    @property
    def _value(self) -> float | None:
        return self.value

    def _raw(self, factor: float, scale: float) -> Function:
        value = scale * self.value
        return lambda g: torch.full_like(g, value)


class Polynomial(BaseCurve):
    """``coefficients[0] + coefficients[1] x + coefficients[2] x² + …`` by Horner's rule."""

    curve: Literal["polynomial"] = "polynomial"
    coefficients: Numbers = Field(description="c0, c1, c2, … of c0 + c1 x + c2 x² + …")

    @property
    def _value(self) -> float | None:
        return None if any(self.coefficients[1:]) else self.coefficients[0]

    def _raw(self, factor: float, scale: float) -> Function:
        *lower, second, first = (
            scale * value * factor**power for power, value in enumerate(self.coefficients)
        )
        lower.reverse()

        def polynomial(g: Tensor) -> Tensor:
            result = torch.add(scalar(second, g.dtype, g.device), g, alpha=first)
            for value in lower:
                torch.addcmul(scalar(value, g.dtype, g.device), result, g, out=result)
            return result

        return polynomial


class Log(BaseCurve):
    """``slope · ln x + intercept``; infinite at x = 0 unless clipped there."""

    curve: Literal["log"] = "log"
    slope: float = Field(description="factor of ln x")
    intercept: float = Field(description="the value at x = 1")

    @property
    def _value(self) -> float | None:
        return None if self.slope else self.intercept

    def of_log(self, factor: float) -> Callable[..., Tensor]:
        """The function ``ln g -> curve(factor * g)``, for callers that need the logarithm more than once.

        It takes ``out``, a tensor for the result, which may be the argument.
        """
        line = self._line(factor, self.scale)
        low, high = self.limits
        if low is None and high is None:
            return line
        return lambda log, out=None: line(log, out).clamp_(low, high)

    def _line(self, factor: float, scale: float) -> Callable[..., Tensor]:
        slope, intercept = self.slope * scale, (self.intercept + self.slope * math.log(factor)) * scale

        def line(log: Tensor, out: Tensor | None = None) -> Tensor:
            return torch.add(scalar(intercept, log.dtype, log.device), log, alpha=slope, out=out)

        return line

    def _raw(self, factor: float, scale: float) -> Function:
        line = self._line(factor, scale)

        def logarithm(g: Tensor) -> Tensor:
            log = g.log()
            return line(log, out=log)

        return logarithm


class Power(BaseCurve):
    """``coefficient · x^exponent``; infinite at x = 0 for a negative exponent unless clipped there."""

    curve: Literal["power"] = "power"
    coefficient: float = Field(description="the value at x = 1")
    exponent: float = Field(description="the power of x")

    @property
    def _value(self) -> float | None:
        return None if self.exponent and self.coefficient else self.coefficient

    def _raw(self, factor: float, scale: float) -> Function:
        coefficient, exponent = scale * self.coefficient * factor**self.exponent, self.exponent
        return lambda g: g.pow(exponent).mul_(coefficient)


class Saturation(BaseCurve):
    """``amplitude · (1 − exp(−x / knee))``: proportional to x at first, then flat."""

    curve: Literal["saturation"] = "saturation"
    amplitude: float = Field(description="the value far above the knee")
    knee: Annotated[float, Field(gt=0)] = Field(description="x at which 63 % of the amplitude are reached")

    @property
    def _value(self) -> float | None:
        return None if self.amplitude else 0.0

    def _raw(self, factor: float, scale: float) -> Function:
        amplitude, rate = -scale * self.amplitude, -factor / self.knee
        return lambda g: (g * rate).expm1_().mul_(amplitude)


def _parse_curve(value: object, info: ValidationInfo) -> BaseCurve:
    """A curve from a number, a table with the field ``curve``, or a curve."""
    if isinstance(value, BaseCurve):
        return value
    kinds = ", ".join(CURVES)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise Problem("", f"is {show(value)} but must be a finite number")
        return Constant(value=value)
    if not isinstance(value, Mapping):
        raise Problem("", f"is {show(value)} but must be a number, or a table with curve = one of {kinds}")
    if "curve" not in value:
        raise Problem("", f"does not say which curve it is: it must have curve = one of {kinds}")
    kind = value["curve"]
    model = CURVES.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise Problem("curve", f"is {show(kind)}{nearest(str(kind), CURVES)} but must be one of {kinds}")
    try:
        return model.model_validate(value, context=info.context)
    except ValidationError as error:
        raise Nested(model, error) from None


def _as_dict(curve: BaseCurve | None) -> dict[str, Any] | None:
    return None if curve is None else curve.as_dict()


Curve = Annotated[
    BaseCurve,
    PlainValidator(_parse_curve, json_schema_input_type=in_schema("Curve")),
    PlainSerializer(_as_dict),
]
MaybeCurve = Annotated[
    BaseCurve | None,
    PlainValidator(
        lambda value, info: None if value is None else _parse_curve(value, info),
        json_schema_input_type=in_schema("Curve"),
    ),
    PlainSerializer(_as_dict),
]


class Piece(Frozen):
    """One piece of a piecewise curve: ``function`` holds where x < ``below``, and no piece before it does."""

    below: float | None = None
    function: Curve

    def as_dict(self) -> dict[str, Any]:
        """The piece as the file writes it: the curve's own fields with ``below`` among them."""
        return {**({} if self.below is None else {"below": self.below}), **self.function.as_dict()}


def _parse_piece(value: object, info: ValidationInfo) -> Piece:
    if isinstance(value, Piece):
        return value
    if not isinstance(value, Mapping):
        raise Problem(
            "", f"is {show(value)} but must be a table with a curve and, except in the last piece, below"
        )
    function = _parse_curve({name: item for name, item in value.items() if name != "below"}, info)
    try:
        return Piece(below=value.get("below"), function=function)
    except ValidationError as error:
        raise Nested(Piece, error) from None


class Piecewise(BaseCurve):
    """The first piece whose ``below`` is above x; the last piece has none and takes the rest."""

    curve: Literal["piecewise"] = "piecewise"
    pieces: Annotated[
        tuple[Annotated[Piece, PlainValidator(_parse_piece, json_schema_input_type=in_schema("Piece"))], ...],
        Field(strict=False, min_length=1, description="curves, each with below but the last"),
        PlainSerializer(lambda pieces: [piece.as_dict() for piece in pieces]),
    ]

    @property
    def joints(self) -> tuple[float, ...]:
        """The places where one piece gives way to the next, and those of the pieces."""
        own = tuple(piece.below for piece in self.pieces if piece.below is not None)
        return own + tuple(place for piece in self.pieces for place in piece.function.joints)

    def _raw(self, factor: float, scale: float) -> Function:
        functions = [piece.function.scaled(scale).function(factor) for piece in self.pieces]
        limits = [piece.below / factor for piece in self.pieces if piece.below is not None]
        rest = list(zip(limits, functions[:-1], strict=True))[::-1]
        last = functions[-1]

        def piecewise(g: Tensor) -> Tensor:
            result = last(g)
            for limit, function in rest:
                result = torch.where(g < limit, function(g), result)
            return result

        return piecewise

    @model_validator(mode="after")
    def _check_pieces(self) -> Self:
        for index, piece in enumerate(self.pieces):
            if piece.function.reference is not None:
                raise Problem(
                    f"pieces[{index}].reference",
                    f"is {piece.function.reference:g} but the whole curve has one argument: give reference "
                    "beside pieces",
                )
        limits = [piece.below for piece in self.pieces]
        for index, limit in enumerate(limits[:-1]):
            if limit is None:
                raise Problem(
                    f"pieces[{index}].below", "is missing: every piece but the last must say where it ends"
                )
        if limits[-1] is not None:
            raise Problem(
                f"pieces[{len(limits) - 1}].below", f"is {limits[-1]:g} but the last piece must have none"
            )
        for index, (limit, after) in enumerate(pairwise(limit for limit in limits if limit is not None), 1):
            if after <= limit:
                raise Problem(
                    f"pieces[{index}].below", f"is {after:g} but must be above the {limit:g} before it"
                )
        return self


CURVES: dict[str, type[BaseCurve]] = {
    "constant": Constant,
    "polynomial": Polynomial,
    "log": Log,
    "power": Power,
    "saturation": Saturation,
    "piecewise": Piecewise,
    "table": Table,
}
