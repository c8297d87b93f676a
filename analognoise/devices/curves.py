"""Functions of relative conductance x = G / g_max that a profile can name.

Every curve is a frozen model and a function of tensors: ``curve(x)`` gives a new tensor of x's shape, dtype (float32 or float64) and device.
``scale * clip(f(x), min, max)`` is what it computes, with f by kind:

=============  ==============================================  ==========================================
curve          fields                                          f(x)
=============  ==============================================  ==========================================
constant       value (or a bare number in the file)            value
polynomial     coefficients = [c0, c1, c2, …]                  c0 + c1 x + c2 x² + …
log            slope, intercept                                slope · ln x + intercept
power          coefficient, exponent                           coefficient · x^exponent
piecewise      pieces = [{below, curve, …}, …, {curve, …}]     the first piece with x < below
table          x, y, or csv = "file.csv" beside the profile    linear between points, constant outside
=============  ==============================================  ==========================================
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from torch import Tensor

from analognoise.devices.problems import Nested, Problem, show
from analognoise.errors import nearest

Function = Callable[[Tensor], Tensor]


class Frozen(BaseModel):
    """A part of a profile: immutable, strict about types, hashable and comparable by its content."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def as_dict(self) -> dict[str, Any]:
        """The part as TOML and JSON write it: nested dictionaries, without fields that are not set."""
        items = (
            (field.alias or name, getattr(self, name)) for name, field in type(self).model_fields.items()
        )
        return {name: _plain(value) for name, value in items if value is not None}

    @cached_property
    def canonical(self) -> str:
        """The content as JSON with sorted keys: equal for equal parts."""
        return json.dumps(self.as_dict(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.canonical == other.canonical  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash(self.canonical)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Any:
        # Immutable, and the compiled functions in it are worth keeping.
        return self

    def __getstate__(self) -> dict[Any, Any]:
        # Cached functions are closures, which pickle cannot write.
        state = super().__getstate__()
        fields = type(self).model_fields
        return {
            **state,
            "__dict__": {name: value for name, value in state["__dict__"].items() if name in fields},
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Frozen):
        return value.as_dict()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


class BaseCurve(Frozen):
    """What all curves share: limits, and a factor that stands outside of them."""

    curve: str
    min: float | None = None
    max: float | None = None
    scale: Annotated[float, Field(ge=0)] = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """The curve at relative conductance ``x``, as a new tensor of the same shape, dtype and device."""
        return self.function()(x)

    def function(self, factor: float = 1.0) -> Function:
        """The function ``g -> curve(factor * g)``, with the factor, the scale and all constants folded together."""
        try:
            return self._functions[factor]
        except KeyError:
            return self._functions.setdefault(factor, self._build(factor))

    @cached_property
    def constant(self) -> float | None:
        """The value of a curve that has the same everywhere, scale and limits applied; None for any other."""
        value = 0.0 if self.scale == 0 else self._value
        if value is None:
            return None
        low = value if self.min is None else max(value, self.min)
        return self.scale * (low if self.max is None else min(low, self.max))

    @property
    def _value(self) -> float | None:
        """f where it does not depend on x."""
        return None

    @property
    def joints(self) -> tuple[float, ...]:
        """The places in x where the curve has a kink or a jump, other than at its limits."""
        return ()

    def scaled(self, factor: float) -> BaseCurve:
        """The same curve times ``factor`` >= 0."""
        return type(self).model_validate({**self.as_dict(), "scale": self.scale * factor})

    @cached_property
    def _functions(self) -> dict[float, Function]:
        return {}

    def _build(self, factor: float) -> Function:
        value = self.constant
        if value is not None:
            return lambda g: torch.full_like(g, value)
        raw = self._raw(factor, self.scale)
        low = None if self.min is None else self.min * self.scale
        high = None if self.max is None else self.max * self.scale
        if low is None and high is None:
            return raw
        return lambda g: raw(g).clamp_(low, high)

    def _raw(self, factor: float, scale: float) -> Function:
        """The function ``g -> scale * f(factor * g)``, which returns a new tensor."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _check_limits(self) -> BaseCurve:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise Problem("min", f"is {self.min:g} but must not be above max = {self.max:g}")
        return self


class Constant(BaseCurve):
    """``value`` everywhere."""

    curve: Literal["constant"] = "constant"
    value: float

    @property
    def _value(self) -> float | None:
        return self.value


Numbers = Annotated[tuple[float, ...], Field(strict=False, min_length=1)]


class Polynomial(BaseCurve):
    """``coefficients[0] + coefficients[1] x + coefficients[2] x² + …`` by Horner's rule."""

    curve: Literal["polynomial"]
    coefficients: Numbers

    @property
    def _value(self) -> float | None:
        return self.coefficients[0] if len(self.coefficients) == 1 else None

    def _raw(self, factor: float, scale: float) -> Function:
        folded = [scale * value * factor**power for power, value in enumerate(self.coefficients)]
        *lower, second, first = folded
        lower.reverse()

        def polynomial(g: Tensor) -> Tensor:
            result = torch.add(_scalar(second, g.dtype, g.device), g, alpha=first)
            for value in lower:
                torch.addcmul(_scalar(value, g.dtype, g.device), result, g, out=result)
            return result

        return polynomial


class Log(BaseCurve):
    """``slope · ln x + intercept``; infinite at x = 0 unless clipped there."""

    curve: Literal["log"]
    slope: float
    intercept: float

    def of_log(self, factor: float) -> Function:
        """The function ``ln g -> curve(factor * g)``, for callers that need the logarithm more than once."""
        slope, intercept = (
            self.scale * self.slope,
            self.scale * (self.intercept + self.slope * math.log(factor)),
        )
        low = None if self.min is None else self.min * self.scale
        high = None if self.max is None else self.max * self.scale

        def line(log: Tensor) -> Tensor:
            result = torch.add(_scalar(intercept, log.dtype, log.device), log, alpha=slope)
            return result if low is None and high is None else result.clamp_(low, high)

        return line

    def _build(self, factor: float) -> Function:
        line = self.of_log(factor)
        return super()._build(factor) if self.constant is not None else lambda g: line(g.log())


class Power(BaseCurve):
    """``coefficient · x^exponent``; infinite at x = 0 for a negative exponent unless clipped there."""

    curve: Literal["power"]
    coefficient: float
    exponent: float

    def _raw(self, factor: float, scale: float) -> Function:
        coefficient, exponent = scale * self.coefficient * factor**self.exponent, self.exponent
        return lambda g: g.pow(exponent).mul_(coefficient)


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


Curve = Annotated[BaseCurve, PlainValidator(_parse_curve), PlainSerializer(lambda curve: curve.as_dict())]


class Piece(Frozen):
    """One piece of a piecewise curve: ``function`` holds below ``below``, and above the piece before it."""

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
            "", f"is {show(value)} but must be a table with a curve and, but for the last piece, below"
        )
    function = _parse_curve({name: item for name, item in value.items() if name != "below"}, info)
    try:
        return Piece(below=value.get("below"), function=function)
    except ValidationError as error:
        raise Nested(Piece, error) from None


class Piecewise(BaseCurve):
    """The first piece whose ``below`` is above x; the last piece has none and takes the rest."""

    curve: Literal["piecewise"]
    pieces: Annotated[
        tuple[Annotated[Piece, PlainValidator(_parse_piece)], ...],
        Field(strict=False, min_length=1),
        PlainSerializer(lambda pieces: [piece.as_dict() for piece in pieces]),
    ]

    @property
    def joints(self) -> tuple[float, ...]:
        """The places where one piece gives way to the next, and those of the pieces."""
        own = tuple(piece.below for piece in self.pieces if piece.below is not None)
        return own + tuple(place for piece in self.pieces for place in piece.function.joints)

    def _raw(self, factor: float, scale: float) -> Function:
        *firsts, last = [
            (piece.below, piece.function.scaled(scale).function(factor)) for piece in self.pieces
        ]

        def piecewise(g: Tensor) -> Tensor:
            result = last[1](g)
            for below, function in reversed(firsts):
                result = torch.where(g < below / factor, function(g), result)  # type: ignore[operator]
            return result

        return piecewise

    @model_validator(mode="after")
    def _check_pieces(self) -> Piecewise:
        limits = [piece.below for piece in self.pieces]
        if limits[-1] is not None:
            raise Problem(
                f"pieces[{len(limits) - 1}].below", f"is {limits[-1]:g} but the last piece must have no below"
            )
        for index, (limit, after) in enumerate(zip(limits, limits[1:], strict=False)):
            if limit is None:
                raise Problem(
                    f"pieces[{index}].below", "is missing: every piece but the last must say where it ends"
                )
            if after is not None and after <= limit:
                raise Problem(
                    f"pieces[{index + 1}].below", f"is {after:g} but must be above the {limit:g} before it"
                )
        return self


def _read_csv(value: object, info: ValidationInfo) -> object:
    """Take the points of a table from the CSV file that it names, so that the curve holds them itself."""
    if not isinstance(value, Mapping) or "csv" not in value:
        return value
    name, folder = value["csv"], (info.context or {}).get("folder")
    if not isinstance(name, str):
        raise Problem("csv", f"is {show(name)} but must be the name of a file beside the profile")
    if "x" in value or "y" in value:
        raise Problem("csv", f"is {show(name)} but x and y are given as well: give one or the other")
    if folder is None:
        raise Problem(
            "csv", f"is {show(name)} but this profile was not read from a file, so nothing lies beside it"
        )
    try:
        lines = folder.joinpath(name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise Problem("csv", f"is {show(name)}, which cannot be read beside the profile ({reason})") from None
    x, y = [], []
    for number, line in enumerate(lines, 1):
        cells = [cell.strip() for cell in line.split(",")]
        if not line.strip() or line.lstrip().startswith("#") or (not x and cells == ["x", "y"]):
            continue
        try:
            first, second = cells
            x.append(float(first))
            y.append(float(second))
        except ValueError:
            raise Problem(
                "csv", f"is {show(name)}, where line {number} is {show(line)} but must be two numbers x,y"
            ) from None
    return {**{key: item for key, item in value.items() if key != "csv"}, "x": x, "y": y}


class Table(BaseCurve):
    """Points (x, y), linear between them; below the first and above the last point the value stays (as numpy.interp).

    In the file the points may stand in a CSV beside it: ``csv = "points.csv"``, two columns x,y, ``#`` begins a comment.
    """

    curve: Literal["table"]
    x: Numbers
    y: Numbers

    @property
    def joints(self) -> tuple[float, ...]:
        """The x of every point."""
        return self.x

    @property
    def _value(self) -> float | None:
        return self.y[0] if len(self.y) == 1 else None

    def _raw(self, factor: float, scale: float) -> Function:
        knots = tuple(value / factor for value in self.x)
        values = tuple(scale * value for value in self.y)

        known: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}

        def table(g: Tensor) -> Tensor:
            kind = (g.dtype, g.device)
            inner, x, y, slope = known.get(kind) or known.setdefault(kind, _points(knots, values, *kind))
            segment = torch.bucketize(g, inner)
            result = g.clamp(knots[0], knots[-1]).sub_(x[segment]).mul_(slope[segment])
            return result.add_(y[segment])

        return table

    @model_validator(mode="before")
    @classmethod
    def _take_csv(cls, value: object, info: ValidationInfo) -> object:
        return _read_csv(value, info)

    @model_validator(mode="after")
    def _check_points(self) -> Table:
        if len(self.x) != len(self.y):
            raise Problem(
                "y", f"has {len(self.y)} values but must have as many as x, which has {len(self.x)}"
            )
        for index, (value, after) in enumerate(zip(self.x, self.x[1:], strict=False)):
            if after <= value:
                raise Problem(f"x[{index + 1}]", f"is {after:g} but must be above the {value:g} before it")
        return self


CURVES: dict[str, type[BaseCurve]] = {
    "constant": Constant,
    "polynomial": Polynomial,
    "log": Log,
    "power": Power,
    "piecewise": Piecewise,
    "table": Table,
}


@lru_cache(maxsize=4096)
def _scalar(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A constant as a tensor without dimensions: one fused operation instead of two where an operand must be a tensor."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=dtype, device=device)


def _points(
    knots: tuple[float, ...], values: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    """The inner knots of a table, and each segment's first x, first y and slope."""
    with torch.inference_mode(False):
        x, y = torch.tensor(knots, dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
        parts = (x[1:-1], x[:-1], y[:-1], y.diff() / x.diff())
        return tuple(part.to(device=device, dtype=dtype).contiguous() for part in parts)
