"""The sections of a profile, each a frozen and checked part; an effect without its section does not happen.

``hardware_profiles/SCHEMA.md`` says what every field means.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator, model_validator

from analognoise.devices.base import Frozen
from analognoise.devices.curves import Curve, MaybeCurve
from analognoise.devices.measured import Numbers
from analognoise.devices.problems import Problem, show
from analognoise.errors import UnitError
from analognoise.units import format_time, parse_time

Positive = Annotated[float, Field(gt=0)]
# No device is outside these; a figure that is has another unit, or a typing error.
Conductances = Annotated[float, Field(gt=0, le=1e9)]
Seconds = Annotated[float, Field(gt=0, description="seconds")]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Name = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*(\([A-Za-z0-9._+*=,#-]+\))?(@[0-9.e+-]+%)?$")
]
# Two characters look like the micro sign.
_UNITS = {"\u00b5S": "uS", "\u03bcS": "uS"}
Unit = Annotated[
    Literal["uS", "nA"],
    BeforeValidator(
        lambda unit: _UNITS.get(unit, unit) if isinstance(unit, str) else unit,
        json_schema_input_type=Literal["uS", "nA", "\u00b5S", "\u03bcS"],
    ),
]


def _parse_times(value: object) -> tuple[float, ...]:
    """Seconds, from numbers or text with a unit."""
    if not isinstance(value, (list, tuple)):
        raise Problem("", f'is {show(value)} but must be a list of times, such as ["1s", "1d"]')
    try:
        return tuple(parse_time(time) for time in value)
    except UnitError as error:
        raise Problem("", f"is {show(list(value))}: {error}") from None


Times = Annotated[tuple[float, ...], PlainValidator(_parse_times, json_schema_input_type=list[float | str])]


class Source(Frozen):
    """Where the figures come from. Documentation only: not part of the digest."""

    citation: str | None = Field(default=None, description="the publication")
    doi: str | None = Field(default=None, description="its DOI, without https://doi.org/")
    url: str | None = Field(default=None, description="code or data that the constants were read in")
    license: str | None = Field(default=None, description="license of that code or data")
    measured: str | None = Field(default=None, description="what was measured: devices, temperature, ages")
    disagreements: str | None = Field(default=None, description="other sources that say something else")
    notes: str | None = Field(default=None, description="what was read where, and what was assumed")


class Validity(Frozen):
    """The drift times at which the profile may be asked. Not part of the digest: it changes no number."""

    measured: Times | None = Field(default=None, description="the first and the last age that was measured")
    default_times: Times | None = Field(default=None, description="drift times where none are asked for")
    extrapolate: bool | None = Field(default=None, description="whether other times may be asked for")

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.measured is not None and (len(self.measured) != 2 or self.measured[0] > self.measured[1]):
            raise Problem(
                "measured",
                f"is {show([format_time(time) for time in self.measured])} but must be two times, "
                "the first not after the second",
            )
        if self.default_times == ():
            raise Problem("default_times", "is empty but must hold at least one time")
        return self


class Conductance(Frozen):
    """The range of one device's conductance, in ``unit``."""

    unit: Unit = Field(description="microsiemens, or nanoampere where devices were measured as currents")
    g_max: Conductances = Field(description="the largest target conductance, in unit")
    g_min: NotNegative = Field(default=0.0, description="the smallest target conductance, in unit")
    clamp_to_range: bool | None = Field(
        default=None, description="whether a device cannot leave g_min to g_max, whatever noise it has"
    )

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.g_min >= self.g_max:
            raise Problem("g_min", f"is {self.g_min:g} but must be below g_max = {self.g_max:g}")
        return self


class WeightMapping(Frozen):
    """How a weight becomes conductances: the group that shares a scale, and the devices of a cell."""

    scale: Literal["column", "tile", "layer"] = Field(
        default="column", description="the group of weights whose largest absolute value maps to g_max"
    )
    cell: Literal["pair", "offset-column", "offset-digital"] | None = Field(
        default=None,
        description="devices of a weight: pairs G+ and G-, or one device less a column of devices, or less a "
        "number",
    )
    pairs: Numbers | None = Field(default=None, description="significance of each pair of a weight")
    share: Literal["fill", "equal"] | None = Field(
        default=None, description="whether pairs are filled one after the other, or hold equal shares"
    )
    clip_percentile: Annotated[float, Field(gt=0, le=100)] | None = Field(
        default=None, description="percentile of abs(w) that maps to g_max; larger weights are clipped"
    )

    @property
    def significances(self) -> tuple[float, ...]:
        """Factor of each pair of a weight."""
        return self.pairs or (1.0,)

    @property
    def signs(self) -> tuple[float, ...]:
        """Share of each device of a weight in its net conductance: f and -f for each pair."""
        if self.cell not in (None, "pair"):
            return (1.0,)
        return tuple(sign * f for f in self.significances for sign in (1.0, -1.0))

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        for index, value in enumerate(self.pairs or ()):
            if value <= 0:
                raise Problem(f"pairs[{index}]", f"is {value:g} but must be greater than 0")
        if self.cell not in (None, "pair") and (self.pairs is not None or self.share is not None):
            field = "pairs" if self.pairs is not None else "share"
            raise Problem(field, f'is given but cell = "{self.cell}" has one device per weight')
        return self


class Programming(Frozen):
    """G_P = G_T + sigma(G_T / g_max) · N, clamped at zero if asked; sigma in the unit of conductance."""

    sigma: Curve = Field(
        description="a number or a curve of G_T / g_max: standard deviation, in the unit of conductance"
    )
    clamp_at_zero: bool = Field(default=True, description="whether a negative conductance becomes 0")


class Drift(Frozen):
    """G(t) = G_P · (t / t_0)^(-nu) with t = seconds since programming + t_0.

    nu = abs(nu_mean + nu_std · N), both of them curves of G_T / g_max.
    """

    t_0: Seconds = Field(description="seconds from programming to the first read-out")
    nu_mean: Curve = Field(description="a number or a curve of G_T / g_max: mean exponent, no unit")
    nu_std: Curve = Field(description="a number or a curve of G_T / g_max: its standard deviation, no unit")


class Relaxation(Frozen):
    """G(t) = G_P + shift · ln t + max(0, sigma + sigma_slope · ln t) · N with t in seconds since programming.

    One N for each device; shift, sigma and sigma_slope in the unit of conductance, curves of G_P / g_max. At
    t = 0 a device is as it was programmed.
    """

    shift: Curve = Field(description="a number or a curve, in the unit of conductance per ln(t / 1 s)")
    sigma: Curve = Field(description="a number or a curve, in the unit of conductance: the spread at 1 s")
    sigma_slope: Curve = Field(description="a number or a curve, in the unit of conductance per ln(t / 1 s)")
    clamp_at_zero: bool = Field(default=True, description="whether a negative conductance becomes 0")


class Retention(Frozen):
    """G(t) = G_T + shift(G_T, t) + sigma(G_T, t) · N, known at some ages; in place of programming and drift.

    One N for each device, so that sigma may also shrink with time. Between two ages shift and sigma are
    linear in the logarithm of time, or in time. The first age stands for the state right after programming.
    """

    ages: Times = Field(description="seconds or text with a unit, increasing")
    sigma: Annotated[tuple[Curve, ...], Field(strict=False)] = Field(
        description="a number or a curve for each age, in the unit of conductance"
    )
    shift: Annotated[tuple[Curve, ...], Field(strict=False)] | None = Field(
        default=None, description="a number or a curve for each age, in the unit of conductance"
    )
    interpolate: Literal["log", "linear"] = Field(default="log", description="the axis of time between ages")
    clamp_at_zero: bool = Field(default=True, description="whether a negative conductance becomes 0")

    @model_validator(mode="after")
    def _check_ages(self) -> Self:
        if not self.ages:
            raise Problem("ages", "is empty but must hold at least one time")
        least = 0.0 if self.interpolate == "linear" else 5e-324
        if self.ages[0] < least:
            what = "at least 0" if self.interpolate == "linear" else 'above 0 (or interpolate = "linear")'
            raise Problem("ages[0]", f"is {self.ages[0]:g} but must be {what}")
        for index, (age, after) in enumerate(pairwise(self.ages), 1):
            if after <= age:
                raise Problem(f"ages[{index}]", f"is {after:g} but must be above the {age:g} before it")
        for name, curves in (("sigma", self.sigma), ("shift", self.shift)):
            if curves is not None and len(curves) != len(self.ages):
                raise Problem(
                    name,
                    f"has {len(curves)} curves but must have as many as ages, which has {len(self.ages)}",
                )
        return self

    def around(self, seconds: float | None) -> tuple[int, int, float]:
        """The two ages that a time lies between, by index, and how far it is from the first to the second.

        None, right after programming, is the first age, and so is 0 where it has no logarithm. Outside of
        all ages the nearest two go on.
        """
        ages = self.ages
        if seconds is None or len(ages) == 1 or seconds == ages[0]:
            return 0, 0, 0.0
        if seconds == 0 and self.interpolate == "log":
            return 0, 0, 0.0
        after = next((index for index, age in enumerate(ages) if age >= seconds), len(ages) - 1) or 1
        first, second = ages[after - 1], ages[after]
        if seconds == second:
            return after, after, 0.0
        if self.interpolate == "linear":
            return after - 1, after, (seconds - first) / (second - first)
        return after - 1, after, math.log(seconds / first) / math.log(second / first)


class Read(Frozen):
    """Read noise of standard deviation G(t) · relative_sigma(G_P / g_max) · growth, or sigma(G(t) / g_max) ·
    growth in the unit of conductance.

    growth = sqrt(ln((t + t_read) / (2 t_read))), t = seconds since programming + t_0, for accumulated 1/f
    noise, and 1 where ``growth`` is "none". ``t_0`` None means the one of drift, or 0 without drift;
    ``clamp_at_zero`` None means the one of programming or retention, or true without.
    """

    growth: Literal["1/f", "none"] | None = Field(default=None, description="how noise grows with time")
    t_read: Seconds | None = Field(default=None, description="seconds: duration of a read")
    relative_sigma: MaybeCurve = Field(
        default=None,
        description="a number or a curve of G_P / g_max: standard deviation divided by G(t), no unit",
    )
    sigma: MaybeCurve = Field(
        default=None,
        description="a number or a curve of G(t) / g_max: standard deviation, in the unit of conductance",
    )
    t_0: NotNegative | None = Field(default=None, description="seconds from programming to drift time 0")
    clamp_at_zero: bool | None = Field(default=None, description="whether a negative conductance becomes 0")

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if self.t_read is None and self.growth != "none":
            raise Problem("t_read", "is missing: it must be a number greater than 0 (seconds)")
        if self.sigma is not None and self.relative_sigma is not None:
            raise Problem("sigma", "is given and so is relative_sigma: give one of them")
        if self.sigma is None and self.relative_sigma is None:
            raise Problem(
                "relative_sigma", "is missing: it must be a number or a curve (or give sigma, in the unit)"
            )
        return self


class Law(Frozen):
    """A law of one's own, by the name under which a package announces it; its parameters stand beside."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(min_length=1)] = Field(description="name of an entry point")

    @property
    def parameters(self) -> dict[str, Any]:
        """What the section holds besides the name."""
        return dict(self.__pydantic_extra__ or {})

    def as_dict(self) -> dict[str, Any]:
        """Name and parameters."""
        return {"name": self.name, **self.parameters}


class TileSize(Frozen):
    """The largest crossbar array of the chip."""

    rows: Count = Field(default=512, description="inputs of the largest crossbar array")
    columns: Count = Field(default=512, description="outputs of the largest crossbar array")
