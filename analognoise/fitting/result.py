"""What a fit gives: the profile, how well each curve is known, and what the measurements cannot tell."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import tomlkit

from analognoise.devices.profile import DeviceProfile
from analognoise.errors import ResultsError
from analognoise.files import write_whole
from analognoise.fitting.choice import Candidate
from analognoise.report.fit_plot import save_fit
from analognoise.units import format_time


@dataclass(frozen=True)
class Estimate:
    """One number with its interval.

    Attributes:
        name: what it is: a parameter as profiles name it.
        value: the estimate.
        low: lower end of the interval.
        high: upper end.
    """

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Level:
    """What the devices at one level of conductance say, and the fitted curve there.

    Attributes:
        x: conductance relative to g_max.
        devices: number of programmed states behind it.
        value: measured, with read noise and limits taken out; no curve is behind it.
        low: lower end of its interval.
        high: upper end.
        fitted: the curve.
        fitted_low: lower end of the curve's interval.
        fitted_high: upper end.
    """

    x: float
    devices: int
    value: float
    low: float
    high: float
    fitted: float
    fitted_low: float
    fitted_high: float


@dataclass(frozen=True)
class FittedCurve:
    """One curve of the profile.

    Attributes:
        field: dotted name, as in ``"programming.sigma"``.
        form: name of the chosen form, with degree or limits; ``"table"`` where no curve fits.
        parameters: with intervals; none for a table.
        levels: the measured values and the curve at each.
        candidates: the forms tried, by cross-validated error.
        deviance: sum of squared residuals, in units of their variances.
        freedom: levels less parameters; a curve that is right has a deviance of about this.
    """

    field: str
    form: str
    parameters: tuple[Estimate, ...]
    levels: tuple[Level, ...]
    candidates: tuple[Candidate, ...]
    deviance: float
    freedom: int


@dataclass(frozen=True)
class Kept:
    """Conductance of the devices at one level of targets and one age, measured and as the profile has it.

    Attributes:
        target: mean target of the level.
        age_s: age in seconds since programming.
        mean: mean of the measured devices.
        std: their standard deviation.
        profile_mean: mean of the profile's samples, read as the devices were.
        profile_std: their standard deviation.
    """

    target: float
    age_s: float
    mean: float
    std: float
    profile_mean: float
    profile_std: float


@dataclass(frozen=True)
class ProfileFit:
    """A profile fitted to measurements.

    Attributes:
        profile: the profile; ``profile.source`` says what was measured.
        curves: how well each of its curves is known.
        kept: conductance over age, measured and as the profile has it.
        not_told: what the measurements cannot tell, a sentence each.
        remarks: what was noticed and may matter, a sentence each.
        facts: what was measured: file, reads, devices, targets, ages, repeats.
        confidence: level of the intervals.
        t_0: age in seconds at which drift time 0 is.
    """

    profile: DeviceProfile
    curves: tuple[FittedCurve, ...]
    kept: tuple[Kept, ...]
    not_told: tuple[str, ...]
    remarks: tuple[str, ...]
    facts: Mapping[str, Any]
    confidence: float
    t_0: float

    def __getitem__(self, field: str) -> FittedCurve:
        """The curve of a field, as in ``fit["programming.sigma"]``."""
        for curve in self.curves:
            if curve.field == field:
                return curve
        known = ", ".join(curve.field for curve in self.curves)
        raise KeyError(f"the fit has no curve {field!r}: it has {known}")

    @property
    def frame(self) -> pd.DataFrame:
        """Every level of every curve as a row: field, x, devices, value, low, high, fitted, …"""
        return pd.DataFrame(
            [{"field": curve.field, **asdict(level)} for curve in self.curves for level in curve.levels]
        )

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write the profile as a TOML file, with the intervals as comments.

        Args:
            path: the file.
            force: whether a file that is there is replaced.

        Raises:
            ResultsError: when the file is there already, or cannot be written.
        """
        path = Path(path)
        check_free(path, force)
        write_whole(path, toml_of(self).encode())
        return path

    def plot(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Draw measurements against profile into a PNG file.

        Args:
            path: the file.
            force: whether a file that is there is replaced.

        Raises:
            ResultsError: when the file is there already, or cannot be written.
        """
        path = Path(path)
        check_free(path, force)
        kept = pd.DataFrame([asdict(item) for item in self.kept])
        return save_fit(path, self.profile, self.frame, kept, self.confidence, self.t_0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "profile": self.profile.as_dict(),
            "digest": self.profile.digest,
            "confidence": self.confidence,
            "measured": dict(self.facts),
            "curves": [asdict(curve) for curve in self.curves],
            "kept": [asdict(item) for item in self.kept],
            "not_told": list(self.not_told),
            "remarks": list(self.remarks),
        }


def check_free(path: Path, force: bool) -> None:
    """Raises:
    ResultsError: when there is a file that must not be replaced.
    """
    if path.is_dir():
        raise ResultsError(f"{path} is a folder: name a file")
    if path.exists() and not force:
        raise ResultsError(f"{path} exists: name another file, or replace it with --force (force=True)")


def toml_of(fit: ProfileFit) -> str:
    """The profile as TOML, each curve with its intervals in a comment above it."""
    document = tomlkit.document()
    document.add(
        tomlkit.comment(f"Fitted to measurements; {100 * fit.confidence:g} % intervals beside each curve.")
    )
    comments = {curve.field: _comment(curve, fit) for curve in fit.curves}
    for key, value in fit.profile.as_dict().items():
        if not isinstance(value, dict):
            document.add(key, tomlkit.item(value))
            continue
        document.add(tomlkit.nl())
        section = tomlkit.table()
        for field, item in value.items():
            for line in comments.get(f"{key}.{field}", ()):
                section.add(tomlkit.comment(line))
            if isinstance(item, dict):
                inline = tomlkit.inline_table()
                inline.update({k: v for k, v in item.items() if (k, v) != ("scale", 1.0)})
                section.add(field, inline)
            elif key == "validity" and isinstance(item, list):
                section.add(field, [format_time(seconds) for seconds in item])
            else:
                section.add(
                    field, tomlkit.string(item, multiline=True) if _long(item) else tomlkit.item(item)
                )
        document.add(key, section)
    return tomlkit.dumps(document)


def _long(value: Any) -> bool:
    return isinstance(value, str) and len(value) > 120


def _comment(curve: FittedCurve, fit: ProfileFit) -> list[str]:
    if not curve.parameters:
        widths = [f"{level.value:.3g} ({level.low:.3g} … {level.high:.3g})" for level in curve.levels]
        return [f"no curve fits; measured: {', '.join(widths)}"]
    inside = [f"{item.name} {item.value:.4g} ({item.low:.4g} … {item.high:.4g})" for item in curve.parameters]
    return [f"{curve.form}: {', '.join(inside)}"]
