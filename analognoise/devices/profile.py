"""A device profile: everything that is known about one memory technology, checked, immutable and comparable.

``hardware_profiles/SCHEMA.md`` says what every field means. A section that is absent (None here) means that
the device has no such effect.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BeforeValidator, Field, ValidationError, model_validator
from torch import Tensor

from analognoise.devices.base import BaseCurve, Frozen, canonical_json
from analognoise.devices.curves import Curve
from analognoise.devices.problems import Problem, explain, show
from analognoise.errors import ProfileError

# Drift exponents depend on conductance only down to this x, as in aihwkit's PCM model: ln 0 is infinite.
MIN_DRIFT_X = 1e-7
# Programming can end above g_max: curves of what was programmed must hold this many standard deviations
# further.
_SPREAD = 6.0
_GRID = 4001
_DOCUMENTATION = ("technology", "description", "source")

Positive = Annotated[float, Field(gt=0)]
# No device is outside these; a figure that is has another unit, or a typing error.
Conductances = Annotated[float, Field(gt=0, le=1e9)]
Seconds = Annotated[float, Field(gt=0, description="seconds")]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
_MOST_NU = 10.0
_MOST_SIGMA = 10.0  # times g_max
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*(@[0-9.e+-]+%)?$")]
# Two characters look like the micro sign.
_UNITS = {"\u00b5S": "uS", "\u03bcS": "uS"}
Unit = Annotated[
    Literal["uS", "nA"],
    BeforeValidator(lambda unit: _UNITS.get(unit, unit) if isinstance(unit, str) else unit),
]


class Source(Frozen):
    """Where the figures come from. Documentation only: not part of the digest."""

    citation: str | None = None
    doi: str | None = None
    url: str | None = None
    license: str | None = None
    notes: str | None = None


class Conductance(Frozen):
    """The range of one device's conductance, in ``unit``."""

    unit: Unit = Field(description="microsiemens, or nanoampere where devices were measured as currents")
    g_max: Conductances = Field(description="the largest target conductance, in unit")
    g_min: NotNegative = Field(default=0.0, description="the smallest target conductance, in unit")

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.g_min >= self.g_max:
            raise Problem("g_min", f"is {self.g_min:g} but must be below g_max = {self.g_max:g}")
        return self


class WeightMapping(Frozen):
    """The group of weights whose largest absolute value maps to g_max."""

    scale: Literal["column", "tile", "layer"] = "column"


class Programming(Frozen):
    """G_P = G_T + sigma(G_T / g_max) · N, clamped at zero if asked; sigma in the unit of conductance."""

    sigma: Curve = Field(description="a number or a curve, in the unit of conductance")
    clamp_at_zero: bool = True


class Drift(Frozen):
    """G(t) = G_P · (t / t_0)^(-nu) with t = seconds since programming + t_0.

    nu = abs(nu_mean + nu_std · N), both of them curves of G_T / g_max.
    """

    t_0: Seconds
    nu_mean: Curve = Field(description="a number or a curve")
    nu_std: Curve = Field(description="a number or a curve")


class Read(Frozen):
    """Accumulated 1/f noise of standard deviation G(t) · relative_sigma(G_P / g_max) · growth.

    growth = sqrt(ln((t + t_read) / (2 t_read))) with t = seconds since programming + t_0. ``t_0`` None means
    the one of drift, or 0 without drift; ``clamp_at_zero`` None means the one of programming, or true without
    programming.
    """

    t_read: Seconds
    relative_sigma: Curve = Field(description="a number or a curve")
    t_0: NotNegative | None = Field(default=None, description="seconds")
    clamp_at_zero: bool | None = None


class TileSize(Frozen):
    """The largest crossbar array of the chip."""

    rows: Count = 512
    columns: Count = 512


class DeviceProfile(Frozen):
    """One memory technology.

    Two profiles are equal when their ``digest`` is. Profiles never change: ``replace``, ``scaled`` and
    ``at_noise_level`` give new ones. Make one with ``load_profile`` or ``DeviceProfile.from_dict``.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: Name = Field(description="a short name")
    technology: str = ""
    description: str = ""
    source: Source | None = None
    conductance: Conductance = Field(description="a table with unit, g_max and g_min")
    mapping: WeightMapping = WeightMapping()
    programming: Programming | None = None
    drift: Drift | None = None
    read: Read | None = None
    tile: TileSize = TileSize()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "profile", folder: Any = None) -> DeviceProfile:
        """A profile from nested dictionaries as ``tomllib`` reads them.

        Args:
            data: the fields of SCHEMA.md.
            where: what error messages call the profile: the file it came from.
            folder: directory (``Path`` or resource) of the CSV files that tables name; None where there is
                none.

        Raises:
            ProfileError: one sentence that names ``where``, the field, the value found and what would be
                right.
        """
        try:
            return cls.model_validate(data, context={"folder": folder})
        except ValidationError as error:
            raise explain(error, cls, where) from None

    @cached_property
    def canonical(self) -> str:
        """What the digest is taken of: JSON of everything but technology, description and source."""
        content = {name: value for name, value in self.as_dict().items() if name not in _DOCUMENTATION}
        return canonical_json(content)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (64 hexadecimal digits) of everything but technology, description and source."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()

    @property
    def has_drift(self) -> bool:
        """Whether conductances depend on time, by drift or by accumulated read noise."""
        return self.drift is not None or self.read is not None

    @cached_property
    def read_t_0(self) -> float:
        """Seconds by which the clock of the read noise is ahead of the drift time."""
        own = self.read.t_0 if self.read else None
        return own if own is not None else self.drift.t_0 if self.drift else 0.0

    @cached_property
    def read_clamps_at_zero(self) -> bool:
        """Whether conductances that read noise made negative are set to zero."""
        own = self.read.clamp_at_zero if self.read else None
        return own if own is not None else self.programming.clamp_at_zero if self.programming else True

    @cached_property
    def max_noise_level(self) -> float:
        """The largest standard deviation of programming over all targets, as a fraction of g_max."""
        if self.programming is None:
            return 0.0
        sigma = self.programming.sigma
        return float(sigma(_grid(self._min_x, 1.0, sigma)).max()) / self.conductance.g_max

    def at_noise_level(self, fraction: float) -> DeviceProfile:
        """The profile with programming noise scaled so that its largest standard deviation is a fraction of
        g_max.

        ``fraction`` 0.1 names the result ``NAME@10%``. Other effects stay as they are.

        Raises:
            ProfileError: when the fraction is not in [0, 1], or there is no programming noise to scale.
        """
        if not 0 <= fraction <= 1:
            raise ProfileError(
                f"noise level of profile {self.name!r} is {fraction:g} but must be between 0 and 1"
            )
        if self.programming is None or self.max_noise_level == 0:
            raise ProfileError(
                f"profile {self.name!r} has no programming noise that could be set to a noise level"
            )
        name = f"{self.name.split('@')[0]}@{100 * fraction:g}%"
        sigma = self.programming.sigma.scaled(fraction / self.max_noise_level)
        return self.replace({"name": name, "programming.sigma": sigma})

    def scaled(self, programming: float = 1.0, drift: float = 1.0, read: float = 1.0) -> DeviceProfile:
        """The profile with its programming noise, its drift exponents and its read noise times these factors.

        Raises:
            ProfileError: when a factor is negative, NaN or infinite.
        """
        changes: dict[str, Any] = {}
        if self.programming:
            changes["programming.sigma"] = self.programming.sigma.scaled(programming)
        if self.drift:
            changes["drift.nu_mean"] = self.drift.nu_mean.scaled(drift)
            changes["drift.nu_std"] = self.drift.nu_std.scaled(drift)
        if self.read:
            changes["read.relative_sigma"] = self.read.relative_sigma.scaled(read)
        return self.replace(changes)

    def replace(self, changes: Mapping[str, Any]) -> DeviceProfile:
        """The profile with some fields changed, or removed where the new value is None.

        ``profile.replace({"drift.t_0": 10.0, "programming.sigma": 0.5, "read": None})``

        Raises:
            ProfileError: when a field does not exist, or the changed profile is not valid.
        """
        where = f"profile {self.name!r} with {', '.join(changes)} changed"
        data = self.as_dict()
        for path, value in changes.items():
            *parents, last = path.split(".")
            table = data
            for parent in parents:
                table = table.setdefault(parent, {})
                if not isinstance(table, dict):
                    raise ProfileError(f"{where}: {path} does not exist, because {parent} is {show(table)}")
            table[last] = value.as_dict() if isinstance(value, Frozen) else value
        return self.from_dict(data, where=where)

    @property
    def _min_x(self) -> float:
        return self.conductance.g_min / self.conductance.g_max

    @model_validator(mode="after")
    def _check_curves(self) -> Self:
        low, high = self._min_x, 1.0
        if self.programming:
            largest = _check("programming.sigma", self.programming.sigma, low, 1.0)
            most = _MOST_SIGMA * self.conductance.g_max
            _check_most("programming.sigma", largest, most, f"10 × g_max ({self.conductance.unit})")
            low = 0.0 if largest > 0 else low
            high = 1.0 + _SPREAD * largest / self.conductance.g_max
        if self.drift:
            for name, curve in (("nu_mean", self.drift.nu_mean), ("nu_std", self.drift.nu_std)):
                largest = _check(f"drift.{name}", curve, max(self._min_x, MIN_DRIFT_X), 1.0)
                _check_most(f"drift.{name}", largest, _MOST_NU, "an exponent of the drift")
        if self.read:
            _check("read.relative_sigma", self.read.relative_sigma, low, high)
        return self


def _check_most(field: str, largest: float, most: float, what: str) -> None:
    if largest > most:
        raise Problem(field, f"reaches {largest:.4g} but must be at most {most:.4g}, {what}")


def _grid(low: float, high: float, curve: BaseCurve) -> Tensor:
    """Places in [low, high] that show a curve's range: even steps, finer near zero, both sides of kinks."""
    even = torch.linspace(low, high, _GRID, dtype=torch.float64)
    near_zero = torch.logspace(math.log10(MIN_DRIFT_X), 0, 301, dtype=torch.float64)
    joints = torch.tensor(curve.joints, dtype=torch.float64)
    before = joints.nextafter(torch.full_like(joints, -math.inf))
    places = torch.cat([even, near_zero, joints, before])
    return places[(places >= low) & (places <= high)].sort().values


def _check(field: str, curve: BaseCurve, low: float, high: float) -> float:
    """The largest value of a curve, which must be finite and not negative at every x in [low, high]."""
    places = _grid(low, high, curve)
    values = curve(places)
    wrong = ~((values >= 0) & values.isfinite())
    if wrong.any():
        index = int(wrong.nonzero()[0])
        raise Problem(
            field,
            f"is {float(values[index]):.4g} at x = G/g_max = {float(places[index]):.4g} "
            f"but must be finite and not negative for every x from {low:.4g} to {high:.4g}",
        )
    return float(values.max())
