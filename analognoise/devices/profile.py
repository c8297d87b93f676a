"""A device profile: everything that is known about one memory technology, checked, immutable and comparable.

``hardware_profiles/SCHEMA.md`` says what every field means. A section that is absent (None here) means that
the device has no such effect.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Literal, Self

import torch
from pydantic import Field, ValidationError, ValidationInfo, model_validator
from torch import Tensor

from analognoise.devices.base import BaseCurve, Frozen, canonical_json
from analognoise.devices.faults import Faults
from analognoise.devices.periphery import Periphery
from analognoise.devices.problems import Problem, explain, show
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
from analognoise.errors import ProfileError
from analognoise.units import DEFAULT_TIMES, format_time, parse_times

# Drift exponents depend on conductance only down to this x, as in aihwkit's PCM model: ln 0 is infinite.
MIN_DRIFT_X = 1e-7
# Programming can end above g_max: curves of what was programmed must hold this many standard deviations
# further.
_SPREAD = 6.0
_GRID = 4001
_DOCUMENTATION = ("technology", "description", "source", "validity")
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


class DeviceProfile(Frozen):
    """One memory technology.

    Two profiles are equal when their ``digest`` is. Profiles never change: ``replace``, ``scaled`` and
    ``at_noise_level`` give new ones. Make one with ``load_profile`` or ``DeviceProfile.from_dict``.
    """

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
        """What the digest is taken of: JSON of everything but technology, description, source, validity."""
        content = {name: value for name, value in self.as_dict().items() if name not in _DOCUMENTATION}
        content.pop("periphery", None)
        if self.surroundings is not None:  # a preset's figures, not its name
            content["periphery"] = self.surroundings.as_dict()
        return canonical_json(content)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (64 hexadecimal digits) of everything but technology, description, source and validity."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()

    @property
    def has_drift(self) -> bool:
        """Whether conductances depend on time, by drift of any kind or by accumulated read noise."""
        return any((self.drift, self.relaxation, self.retention, self.read, self.law))

    @property
    def is_random(self) -> bool:
        """Whether two chips can differ at all."""
        return self.has_drift or any((self.programming, self.faults, self.surroundings))

    @cached_property
    def default_times(self) -> tuple[float, ...]:
        """Drift times in seconds where none are asked for: those of the profile, or 1 s to 1 y."""
        own = self.validity.default_times if self.validity else None
        if own is not None:
            return own
        first, last = self.valid_times
        usual = parse_times(DEFAULT_TIMES)
        inside = tuple(time for time in usual if first <= time <= last)
        return inside or (first, last)

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

    def check_time(self, seconds: float) -> None:
        """Nothing, where the device is known at a drift time.

        Raises:
            ProfileError: where it is not.
        """
        first, last = self.valid_times
        if not first <= seconds <= last:
            if first == last:
                known, advice = f"at {format_time(first)}", "that time"
            else:
                known, advice = f"from {format_time(first)} to {format_time(last)}", "times in between"
            raise ProfileError(
                f"profile {self.name!r} is known {known} after programming, not at {format_time(seconds)}: "
                f"ask for {advice}, or set validity.extrapolate = true in a copy of it"
            )

    @cached_property
    def read_t_0(self) -> float:
        """Seconds by which the clock of the read noise is ahead of the drift time."""
        own = self.read.t_0 if self.read else None
        return own if own is not None else self.drift.t_0 if self.drift else 0.0

    @cached_property
    def read_clamps_at_zero(self) -> bool:
        """Whether conductances that read noise made negative are set to zero."""
        own = self.read.clamp_at_zero if self.read else None
        if own is not None:
            return own
        section = self.programming or self.retention
        return section.clamp_at_zero if section else True

    @cached_property
    def programming_sigma(self) -> BaseCurve | None:
        """Standard deviation right after programming as a curve of the target; None where it is exact."""
        if self.retention:
            return self.retention.sigma[0]
        return self.programming.sigma if self.programming else None

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

    @cached_property
    def max_noise_level(self) -> float:
        """The largest standard deviation of programming over all targets, as a fraction of g_max."""
        sigma, g_max = self.programming_sigma, self.conductance.g_max
        if sigma is None:
            return 0.0
        grid = _grid(self._min_x, 1.0, sigma, g_max)
        return float(sigma.of_conductance(g_max)(grid * g_max).max()) / g_max

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
        if self.max_noise_level == 0:
            raise ProfileError(
                f"profile {self.name!r} has no programming noise that could be set to a noise level"
            )
        name = f"{self.name.split('@')[0]}@{100 * fraction:g}%"
        return self.scaled(programming=fraction / self.max_noise_level).replace({"name": name})

    def scaled(self, programming: float = 1.0, drift: float = 1.0, read: float = 1.0) -> DeviceProfile:
        """The profile with its programming noise, its drift and its read noise times these factors.

        ``programming`` scales the spread of ``retention`` at all ages; ``drift`` scales drift exponents, and
        shift and spread of ``relaxation``, and the shift of ``retention``.

        Raises:
            ProfileError: when a factor is negative, NaN or infinite.
        """
        changes: dict[str, Any] = {}
        if self.programming:
            changes["programming.sigma"] = self.programming.sigma.scaled(programming)
        if self.drift:
            changes["drift.nu_mean"] = self.drift.nu_mean.scaled(drift)
            changes["drift.nu_std"] = self.drift.nu_std.scaled(drift)
        if self.relaxation:
            for field in ("shift", "sigma", "sigma_slope"):
                changes[f"relaxation.{field}"] = getattr(self.relaxation, field).scaled(drift)
        if self.retention:
            changes["retention.sigma"] = [curve.scaled(programming) for curve in self.retention.sigma]
            if self.retention.shift is not None:
                changes["retention.shift"] = [curve.scaled(drift) for curve in self.retention.shift]
        if self.read:
            for field in ("sigma", "relative_sigma"):
                curve = getattr(self.read, field)
                if curve is not None:
                    changes[f"read.{field}"] = curve.scaled(read)
        return self.replace(changes)

    def replace(self, changes: Mapping[str, Any]) -> DeviceProfile:
        """The profile with some fields changed, or removed where the new value is None.

        ``profile.replace({"drift.t_0": 10.0, "programming.sigma": 0.5, "read": None})``; it keeps its name,
        which results show, unless ``"name"`` is changed, too.

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
            table[last] = _plain(value)
        return self.from_dict(data, where=where)

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
        if largest > 0:
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
            self._check("read.sigma", self.read.sigma, low, high)
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
        places = _grid(low, high, curve, g_max)
        values = curve.of_conductance(g_max)(places * g_max)
        wrong = ~values.isfinite() if signed else ~((values >= 0) & values.isfinite())
        if wrong.any():
            index = int(wrong.nonzero()[0])
            right = "finite" if signed else "finite and not negative"
            raise Problem(
                field,
                f"is {float(values[index]):.4g} at x = G/g_max = {float(places[index]):.4g} "
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


def drift_times(profiles: Iterable[DeviceProfile], times: Any = None) -> tuple[float, ...]:
    """Drift times in seconds at which devices can be asked, increasing.

    Args:
        profiles: the devices.
        times: what :func:`analognoise.units.parse_times` takes, or None for those that the profiles name: of
            several, those at which all of them are known. Devices on which nothing depends on time name none
            beside others.

    Raises:
        ProfileError: when a device is not known at one of the times, or no default suits all.
        UnitError: when a time cannot be read.
    """
    devices = list(dict.fromkeys(profiles))
    if times is not None:
        seconds = parse_times(times)
        for profile in devices:
            for time in seconds:
                profile.check_time(time)
        return seconds
    naming = [profile for profile in devices if profile.has_drift] or devices
    usual = sorted({time for profile in naming for time in profile.default_times}) or parse_times(
        DEFAULT_TIMES
    )
    first = max((profile.valid_times[0] for profile in devices), default=0.0)
    last = min((profile.valid_times[1] for profile in devices), default=math.inf)
    seconds = tuple(time for time in usual if first <= time <= last)
    if not seconds:
        raise ProfileError(
            f"profiles {', '.join(profile.name for profile in devices)} are known at no common default drift "
            "time: name times"
        )
    return seconds


def _plain(value: Any) -> Any:
    if isinstance(value, Frozen):
        return value.as_dict()
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _check_most(field: str, largest: float, most: float, what: str) -> None:
    if largest > most:
        raise Problem(field, f"reaches {largest:.4g} but must be at most {most:.4g}, {what}")


def _grid(low: float, high: float, curve: BaseCurve, g_max: float) -> Tensor:
    """Places x in [low, high] that show a curve's range: even steps, finer near zero, both sides of kinks."""
    even = torch.linspace(low, high, _GRID, dtype=torch.float64)
    near_zero = torch.logspace(math.log10(MIN_DRIFT_X), 0, 301, dtype=torch.float64)
    joints = torch.tensor(curve.joints, dtype=torch.float64) * (curve.unit(g_max) / g_max)
    before = joints.nextafter(torch.full_like(joints, -math.inf))
    places = torch.cat([even, near_zero, joints, before])
    return places[(places >= low) & (places <= high)].sort().values
