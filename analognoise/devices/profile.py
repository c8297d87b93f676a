"""A device profile: everything that is known about one memory technology, checked, immutable and comparable.

``hardware_profiles/SCHEMA.md`` says what every field means. A section that is absent (None here) means that
the device has no such effect.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from analognoise.devices.base import BaseCurve, Frozen, canonical_json
from analognoise.devices.contents import Contents, places
from analognoise.devices.problems import explain, show
from analognoise.errors import ProfileError
from analognoise.units import DEFAULT_TIMES, format_time, parse_times

_DOCUMENTATION = ("technology", "description", "source", "validity")


class DeviceProfile(Contents):
    """One memory technology.

    Two profiles are equal when their ``digest`` is. Profiles never change: ``replace``, ``scaled`` and
    ``at_noise_level`` give new ones. Make one with ``load_profile`` or ``DeviceProfile.from_dict``.
    """

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
    def max_noise_level(self) -> float:
        """The largest standard deviation of programming over all targets, as a fraction of g_max."""
        sigma, g_max = self.programming_sigma, self.conductance.g_max
        if sigma is None:
            return 0.0
        grid = places(self._min_x, 1.0, sigma, g_max)
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
