"""The commands that only look things up: profiles and training methods."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.table import Column, Table

from analognoise.devices import DeviceProfile, list_profiles, load_profile
from analognoise.jobs.card import as_toml
from analognoise.jobs.output import Output
from analognoise.jobs.profiles import effects_of
from analognoise.training.recipes import METHODS, MODIFIERS
from analognoise.units import format_time


@dataclass(frozen=True)
class ProfileList(Output):
    """The shipped profiles, in a table."""

    profiles: tuple[DeviceProfile, ...]

    def parts(self) -> Iterable[RenderableType]:
        """A table, and what to do next."""
        table = Table(Column("name", no_wrap=True), "technology", "effects")
        for profile in self.profiles:
            table.add_row(profile.name, profile.technology, ", ".join(effects_of(profile)) or "none")
        yield table
        yield "'analognoise profiles show NAME' shows one; NAME@10% sets its programming noise to 10 %."

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "profiles": [
                {
                    "name": profile.name,
                    "technology": profile.technology,
                    "effects": effects_of(profile),
                    "digest": profile.digest,
                }
                for profile in self.profiles
            ]
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
            settings = ", ".join(_setting(item) for item in modifier.hyperparameters.values())
            yield f"+{name} ({settings}): {modifier.summary}"

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
            "modifiers": [
                {
                    "name": name,
                    "summary": modifier.summary,
                    "hyperparameters": _hyperparameters(modifier.hyperparameters.values()),
                }
                for name, modifier in MODIFIERS.items()
            ],
        }


def list_devices() -> ProfileList:
    """The shipped profiles."""
    return ProfileList(tuple(load_profile(name) for name in list_profiles()))


def list_methods() -> MethodList:
    """The table of training methods."""
    return MethodList()


def _hyperparameters(items: Iterable[Any]) -> list[dict[str, Any]]:
    return [{"name": i.name, "default": i.default, "meaning": i.meaning, "source": i.source} for i in items]


def _setting(item: Any) -> str:
    value = format_time(item.default) if item.is_time else as_toml(item.default).strip('"')
    return f"{item.name}={value}"
