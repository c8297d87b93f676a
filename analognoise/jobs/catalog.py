"""The commands that only look things up: profiles and training methods."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich import box
from rich.console import RenderableType
from rich.table import Column, Table

from analognoise.devices import DeviceProfile, list_profiles, load_profile
from analognoise.devices.physics import drift_moments, read_growth, relative_read_sigma, written_sigma
from analognoise.devices.whatif import Changes
from analognoise.jobs.output import Output
from analognoise.training.recipes import METHODS, MODIFIERS
from analognoise.units import format_time

_SHOWN = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
_DAY = 86400.0
_UNCHANGED = Changes()


@dataclass(frozen=True)
class Entry:
    """One profile in a list."""

    name: str
    technology: str
    effects: tuple[str, ...]
    digest: str
    file: str

    @classmethod
    def of(cls, profile: DeviceProfile, file: str) -> Entry:
        """The entry of a loaded profile."""
        sections = ("programming", "drift", "relaxation", "retention", "read", "law")
        effects = [name for name in sections if getattr(profile, name) is not None]
        return cls(profile.name, profile.technology, tuple(effects), profile.digest, file)


@dataclass(frozen=True)
class ProfileList(Output):
    """Several profiles, in a table.

    Attributes:
        entries: the profiles.
        checked: whether the user's own files were checked, rather than the shipped profiles listed.
    """

    entries: tuple[Entry, ...]
    checked: bool = False

    def parts(self) -> Iterable[RenderableType]:
        """A table, or a line for each checked file."""
        if self.checked:
            for entry in self.entries:
                effects = _and(entry.effects)
                yield f"{entry.file}: valid, {entry.name!r} with {effects} (digest {entry.digest[:12]})"
            return
        table = Table(Column("name", no_wrap=True), "technology", "effects")
        for entry in self.entries:
            table.add_row(entry.name, entry.technology, ", ".join(entry.effects) or "none")
        yield table
        yield "'analognoise profiles show NAME' shows one; NAME@10% sets its programming noise to 10 %."

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"profiles": [asdict(entry) for entry in self.entries]}


@dataclass(frozen=True)
class Behaviour:
    """What one device does around one target conductance, by the profile's formulas.

    Attributes:
        x: target conductance relative to g_max.
        target: target conductance in the profile's unit.
        sigma: standard deviation of programming, in the profile's unit.
        nu_mean: mean of the drift exponent before its absolute value is taken, None without drift.
        nu_std: its standard deviation.
        kept: share of the conductance left after one day at the mean exponent, None without drift.
        read: relative standard deviation of the read noise after one day, None without read noise.
    """

    x: float
    target: float
    sigma: float
    nu_mean: float | None
    nu_std: float | None
    kept: float | None
    read: float | None


@dataclass(frozen=True)
class ProfileCard(Output):
    """One profile in full."""

    profile: DeviceProfile
    behaviour: tuple[Behaviour, ...]

    def parts(self) -> Iterable[RenderableType]:
        """The fields, then a table of behaviour."""
        profile, unit = self.profile, self.profile.conductance.unit
        yield f"{profile.name}: {profile.technology or 'no technology named'}"
        for text in (profile.description, *_source(profile)):
            if text:
                yield text
        yield ""
        for name, fields in profile.as_dict().items():
            if isinstance(fields, dict) and name != "source":
                yield f"{name:12} " + ", ".join(f"{key} = {_value(value)}" for key, value in fields.items())
        yield f"{'digest':12} {profile.digest}"
        yield ""
        table = Table(title="What one device does", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        headings = ["\nG/g_max", f"target\n({unit})", f"written\n± ({unit})", "of\ng_max"]
        if profile.drift:
            headings += ["drift\nexponent ν", "kept after\n1 day"]
        if profile.read and profile.read.relative_sigma:
            headings.append("read noise\nafter 1 day")
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self.behaviour:
            cells = [
                f"{row.x:g}",
                f"{row.target:g}",
                f"{row.sigma:.3g}",
                f"{100 * row.sigma / profile.conductance.g_max:.1f} %",
            ]
            if row.nu_mean is not None:
                cells += [f"{row.nu_mean:.3g} ± {row.nu_std:.2g}", f"{100 * (row.kept or 0.0):.1f} %"]
            if row.read is not None:
                cells.append(f"{100 * row.read:.1f} %")
            table.add_row(*cells)
        yield table

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "profile": self.profile.as_dict(),
            "digest": self.profile.digest,
            "max_noise_level": self.profile.max_noise_level,
            "has_drift": self.profile.has_drift,
            "behaviour": [asdict(row) for row in self.behaviour],
        }


@dataclass(frozen=True)
class MethodList(Output):
    """The training methods and their hyperparameters."""

    def parts(self) -> Iterable[RenderableType]:
        """A table, and the modifiers below."""
        table = Table("method", "what it does", "gradients\nper step", "hyperparameters = default")
        for name, method in METHODS.items():
            defaults = ", ".join(_setting(item) for item in method.hyperparameters.values())
            table.add_row(name, method.summary, str(method.gradients_per_step), defaults or "–")
        yield table
        for name, modifier in MODIFIERS.items():
            yield f"+{name} (hyperparameter {_setting(modifier)}): {modifier.meaning}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "methods": [
                {
                    "name": name,
                    "summary": method.summary,
                    "gradients_per_step": method.gradients_per_step,
                    "needs_profile": method.needs_profile,
                    "hyperparameters": _hyperparameters(method.hyperparameters.values()),
                }
                for name, method in METHODS.items()
            ],
            "modifiers": _hyperparameters(MODIFIERS.values()),
        }


def list_devices() -> ProfileList:
    """The shipped profiles."""
    return ProfileList(tuple(Entry.of(load_profile(name), name) for name in list_profiles()))


def check_devices(files: Sequence[str]) -> ProfileList:
    """Load profiles, by file or name.

    Raises:
        ProfileError: for the first that is not valid.
    """
    return ProfileList(tuple(Entry.of(load_profile(file), file) for file in files), checked=True)


def show_device(name: str, changes: Changes = _UNCHANGED) -> ProfileCard:
    """One profile, with what a device of it does at some target conductances.

    Raises:
        ProfileError: when it cannot be loaded.
    """
    (profile,) = changes.apply([load_profile(name)])
    low, top = profile.conductance.g_min, profile.conductance.g_max
    shares = sorted({low / top, *(x for x in _SHOWN if x * top >= low)})
    target = torch.tensor(shares, dtype=torch.float64) * top
    sigma, relative = (
        _each(written_sigma(target, profile), target),
        _each(relative_read_sigma(target, profile), target),
    )
    mean, std = (_each(moment, target) for moment in drift_moments(target, profile))
    growth = read_growth(_DAY, profile)
    rows = []
    for i, x in enumerate(shares):
        kept = (1 + _DAY / profile.drift.t_0) ** -abs(mean[i]) if profile.drift else None
        rows.append(
            Behaviour(
                x,
                float(target[i]),
                sigma[i],
                mean[i] if profile.drift else None,
                std[i] if profile.drift else None,
                kept,
                relative[i] * growth if profile.read and profile.read.relative_sigma else None,
            )
        )
    return ProfileCard(profile, tuple(rows))


def list_methods() -> MethodList:
    """The table of training methods."""
    return MethodList()


def _each(value: torch.Tensor | float, like: torch.Tensor) -> list[float]:
    return [float(item) for item in torch.as_tensor(value, dtype=like.dtype).expand_as(like)]


def _hyperparameters(items: Iterable[Any]) -> list[dict[str, Any]]:
    return [{"name": i.name, "default": i.default, "meaning": i.meaning, "source": i.source} for i in items]


def _setting(item: Any) -> str:
    value = format_time(item.default) if item.is_time else _value(item.default).strip('"')
    return f"{item.name}={value}"


def _source(profile: DeviceProfile) -> list[str]:
    given = profile.source.as_dict() if profile.source else {}
    return [f"{key}: {value}" for key, value in given.items()]


def _value(value: Any) -> str:
    """A value as TOML would write it."""
    if isinstance(value, dict):
        # A curve's scale is 1 unless it was changed, and what is not said need not be read.
        items = [f"{key} = {_value(item)}" for key, item in value.items() if (key, item) != ("scale", 1.0)]
        return f"{{ {', '.join(items)} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words) or "no noise"
