"""What a profile says, section by section, and whether the sections make sense together."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from functools import cached_property
from typing import Literal, Self

import torch
from pydantic import Field, ValidationInfo, model_validator
from torch import Tensor

from analognoise.devices.base import BaseCurve, Frozen
from analognoise.devices.faults import Faults
from analognoise.devices.periphery import Periphery
from analognoise.devices.problems import Problem
from analognoise.devices.sections import (
    Conductance,
    Drift,
    Law,
    Name,
    Programming,
    Read,
    Relaxation,
    Retention,
    Source,
    TileSize,
    Validity,
    WeightMapping,
)
from analognoise.units import format_time

# Drift exponents depend on conductance only down to this x, as in aihwkit's PCM model: ln 0 is infinite.
MIN_DRIFT_X = 1e-7
# Programming can end above g_max: curves of what was programmed must hold this many standard deviations
# further.
_SPREAD = 6.0
_GRID = 4001
_MOST_NU = 10.0
_MOST_SIGMA = 10.0  # times g_max
# Curves by section that are not negative anywhere.
_NOT_NEGATIVE = {
    "programming": ("sigma",),
    "drift": ("nu_mean", "nu_std"),
    "relaxation": ("sigma",),
    "retention": ("sigma",),
    "read": ("relative_sigma", "sigma"),
}

RANGE_UNKNOWN = "range unknown"
"""Key of the validation context: the range of conductance is not known, and no curve is compared with it."""


class Contents(Frozen):
    """The sections of a profile; one that is absent (None) means that the device has no such effect."""

    schema_version: Literal[1] = Field(default=1, alias="schema", description="version of this format")
    name: Name = Field(description="a short name: letters, digits and . _ + -")
    technology: str = Field(default="", description="what the device is made of")
    description: str = Field(default="", description="one sentence for lists")
    source: Source | None = None
    conductance: Conductance = Field(description="a table with unit, g_max and g_min")
    mapping: WeightMapping = WeightMapping()
    programming: Programming | None = None
    drift: Drift | None = None
    relaxation: Relaxation | None = None
    retention: Retention | None = None
    read: Read | None = None
    law: Law | None = None
    tile: TileSize = TileSize()
    faults: Faults | None = None
    periphery: Periphery | None = None
    validity: Validity | None = None

    @property
    def has_drift(self) -> bool:
        """Whether conductances depend on time, by drift of any kind or by accumulated read noise."""
        return any((self.drift, self.relaxation, self.retention, self.read, self.law))

    @cached_property
    def valid_times(self) -> tuple[float, float]:
        """The shortest and the longest drift time in seconds at which the device may be asked.

        A device without drift is known from the end of programming on, up to the last age that was measured.
        """
        validity = self.validity or Validity()
        extrapolate = validity.extrapolate
        if extrapolate or (extrapolate is None and self.retention is None):
            return 0.0, math.inf
        if validity.measured is not None:
            first, last = validity.measured
            return first if self.has_drift else 0.0, last
        if self.retention is not None:
            return self.retention.ages[0], self.retention.ages[-1]
        return 0.0, math.inf

    @cached_property
    def surroundings(self) -> Periphery | None:
        """The periphery with every figure filled in; None where there is none or it does nothing."""
        found = None if self.periphery is None else self.periphery.resolved
        return found if found is not None and found.as_dict() else None

    @cached_property
    def wire_ratios(self) -> tuple[float, float] | None:
        """Resistance of the wire from one cell to the next, along rows and along columns, times the unit of
        conductance; None without IR drop.
        """
        drop = self.surroundings.ir_drop if self.surroundings else None
        if drop is None:
            return None
        ratio = drop.ratio(self.conductance.g_max, self.conductance.unit) / self.conductance.g_max
        return (ratio if drop.wires == "both" else 0.0, ratio)

    @property
    def _min_x(self) -> float:
        return self.conductance.g_min / self.conductance.g_max

    @model_validator(mode="after")
    def _check_sections(self) -> Self:
        for problem in clashes([name for name in type(self).model_fields if getattr(self, name) is not None]):
            raise problem
        if self.faults:
            self.faults.check_map(self.tile, self.mapping)
        first, last = self.valid_times
        for time in (self.validity and self.validity.default_times) or ():
            if not first <= time <= last:
                raise Problem(
                    "validity.default_times",
                    f"holds {format_time(time)} but the device is known from {format_time(first)} to "
                    f"{format_time(last)}",
                )
        return self

    @model_validator(mode="after")
    def _check_curves(self, info: ValidationInfo) -> Self:
        if (info.context or {}).get(RANGE_UNKNOWN):
            self._check_constants()
            return self
        low, high, unit = self._min_x, 1.0, self.conductance.unit
        most = _MOST_SIGMA * self.conductance.g_max
        spreads: list[tuple[str, BaseCurve]] = []
        if self.programming:
            spreads = [("programming.sigma", self.programming.sigma)]
        elif self.retention:
            spreads = [(f"retention.sigma[{i}]", curve) for i, curve in enumerate(self.retention.sigma)]
            for i, curve in enumerate(self.retention.shift or ()):
                self._check(f"retention.shift[{i}]", curve, low, 1.0, signed=True)
        largest = 0.0
        for field, curve in spreads:
            largest = max(largest, self._check(field, curve, self._min_x, 1.0))
            _check_most(field, largest, most, f"10 × g_max ({unit})")
        shifted = self.retention is not None and self.retention.shift is not None
        if largest > 0 or shifted:
            low = 0.0
            high = 1.0 + _SPREAD * largest / self.conductance.g_max
        if self.conductance.clamp_to_range:
            low, high = self._min_x, 1.0
        if self.drift:
            for name, curve in (("nu_mean", self.drift.nu_mean), ("nu_std", self.drift.nu_std)):
                largest = self._check(f"drift.{name}", curve, max(self._min_x, MIN_DRIFT_X), 1.0)
                _check_most(f"drift.{name}", largest, _MOST_NU, "an exponent of the drift")
        if self.relaxation:
            for name in ("shift", "sigma", "sigma_slope"):
                self._check(
                    f"relaxation.{name}", getattr(self.relaxation, name), low, high, signed=name != "sigma"
                )
        if self.read and self.read.relative_sigma is not None:
            self._check("read.relative_sigma", self.read.relative_sigma, low, high)
        if self.read and self.read.sigma is not None:
            # With time a device may leave what it was programmed to.
            falls = not self.conductance.clamp_to_range and any((self.drift, self.relaxation, self.law))
            self._check("read.sigma", self.read.sigma, 0.0 if falls else low, high)
        if self.surroundings and self.surroundings.w_noise:
            self._check("periphery.w_noise", self.surroundings.w_noise, 0.0, max(high, 1.0))
        _ = self.wire_ratios  # raises where the unit does not fit
        return self

    def _check_constants(self) -> None:
        """Constants that are negative, which are wrong whatever the range of conductance is."""
        for section, names in _NOT_NEGATIVE.items():
            for name in names:
                value = getattr(getattr(self, section), name, None)
                curves: tuple[BaseCurve | None, ...] = value if isinstance(value, tuple) else (value,)
                for index, curve in enumerate(curves):
                    if curve is not None and curve.constant is not None and curve.constant < 0:
                        field = f"{section}.{name}{f'[{index}]' if isinstance(value, tuple) else ''}"
                        raise Problem(field, f"is {curve.constant:g} but must not be negative")

    def _check(self, field: str, curve: BaseCurve, low: float, high: float, *, signed: bool = False) -> float:
        """The largest value of a curve, which must be finite, and not negative unless it is signed, at every
        x in [low, high].
        """
        g_max = self.conductance.g_max
        grid = places(low, high, curve, g_max)
        values = curve.of_conductance(g_max)(grid * g_max)
        wrong = ~values.isfinite() if signed else ~((values >= 0) & values.isfinite())
        if wrong.any():
            index = int(wrong.nonzero()[0])
            right = "finite" if signed else "finite and not negative"
            raise Problem(
                field,
                f"is {float(values[index]):.4g} at x = G/g_max = {float(grid[index]):.4g} "
                f"but must be {right} for every x from {low:.4g} to {high:.4g}",
            )
        return float(values.max())


def clashes(sections: Collection[str]) -> Iterator[Problem]:
    """Sections that exclude each other, among the names of those that are given."""
    forms = [name for name in ("drift", "relaxation", "retention") if name in sections]
    for form in forms[1:]:
        yield Problem(
            form, f"is given and so is {forms[0]}: a device drifts, relaxes or has a retention by age"
        )
    if "retention" in sections and "programming" in sections:
        yield Problem("programming", "is given but the first age of retention stands for it")


def _check_most(field: str, largest: float, most: float, what: str) -> None:
    if largest > most:
        raise Problem(field, f"reaches {largest:.4g} but must be at most {most:.4g}, {what}")


def places(low: float, high: float, curve: BaseCurve, g_max: float) -> Tensor:
    """Places x in [low, high] that show a curve's range: even steps, finer near zero, both sides of kinks."""
    even = torch.linspace(low, high, _GRID, dtype=torch.float64)
    near_zero = torch.logspace(math.log10(MIN_DRIFT_X), 0, 301, dtype=torch.float64)
    joints = torch.tensor(curve.joints, dtype=torch.float64) * (curve.unit(g_max) / g_max)
    before = joints.nextafter(torch.full_like(joints, -math.inf))
    found = torch.cat([even, near_zero, joints, before])
    return found[(found >= low) & (found <= high)].sort().values
