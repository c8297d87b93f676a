"""The command that shows one device: its fields, its source, and what it does, in tables and in a picture."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from analognoise.devices import DeviceProfile, load_profile
from analognoise.devices.behaviour import Behaviour, behaviour
from analognoise.devices.problems import show
from analognoise.devices.whatif import Changes
from analognoise.errors import ResultsError
from analognoise.jobs.output import Output, plain
from analognoise.report.device_plot import five_targets, not_known_later, save_device_plot, telling_times
from analognoise.units import format_time, short_number

_UNCHANGED = Changes()


@dataclass(frozen=True)
class ProfileCard(Output):
    """One profile in full.

    Attributes:
        profile: the profile.
        behaviour: what its devices do at five conductances and some drift times.
        plot: the picture that was drawn, None without.
    """

    profile: DeviceProfile
    behaviour: Behaviour
    plot: Path | None = None

    def parts(self) -> Iterable[RenderableType]:
        """The fields and the source, then tables of noise and of conductance over time."""
        profile = self.profile
        yield f"{profile.name}: {profile.technology or 'no technology named'}"
        if profile.description:
            yield profile.description
        for key, value in (profile.source.as_dict() if profile.source else {}).items():
            if value:
                yield f"{key}: {value.strip()}"
        yield ""
        for name, fields in profile.as_dict().items():
            if isinstance(fields, dict) and name not in ("source", "validity"):
                yield f"{name:12} " + ", ".join(f"{key} = {as_toml(value)}" for key, value in fields.items())
        yield f"{'digest':12} {profile.digest}"
        first, last = profile.valid_times
        if last == 0:
            yield f"{'valid':12} right after programming"
        elif last < math.inf:
            yield f"{'valid':12} from {format_time(first)} to {format_time(last)} after programming"
        yield ""
        unit = profile.conductance.unit
        yield f"Noise of one device: standard deviations in {unit}, by target"
        yield self._noise()
        yield f"What it holds later: mean ± standard deviation in {unit} over devices, share of the target"
        yield self._retention()
        unknown = not_known_later(profile)
        if unknown:
            yield f"{unknown.replace(chr(10), ' ').capitalize()}."
        if self.plot:
            yield f"picture: {self.plot}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        found, first, last = self.behaviour, *self.profile.valid_times
        return plain(
            {
                "profile": self.profile.as_dict(),
                "digest": self.profile.digest,
                "max_noise_level": self.profile.max_noise_level,
                "has_drift": self.profile.has_drift,
                "valid_times_s": [first, last],
                "behaviour": [self._at(index) for index in range(len(found.targets))],
                "retention": [
                    self._after(row, index)
                    for row in range(len(found.times))
                    for index in range(len(found.targets))
                ],
                "plot": self.plot and str(self.plot),
            }
        )

    def _at(self, index: int) -> dict[str, Any]:
        """What a device does around one target."""
        found, target = self.behaviour, float(self.behaviour.targets[index])
        shown = found.coefficients if self._has_coefficients else None
        return {
            "target": target,
            "x": target / self.profile.conductance.g_max,
            "programmed_mean": found.programmed.mean[index],
            "programmed_std": found.programmed.std[index],
            "drift_coefficient_mean": shown and shown.mean[index],
            "drift_coefficient_std": shown and shown.std[index],
        }

    def _after(self, row: int, index: int) -> dict[str, Any]:
        """What is left of one target after a drift time."""
        found, target = self.behaviour, float(self.behaviour.targets[index])
        mean = float(found.read.mean[row, index])
        return {
            "time_s": found.times[row],
            "target": target,
            "mean": mean,
            "std": found.read.std[row, index],
            "retained": mean / target if target else None,
            "read_noise": found.read_noise[row, index],
        }

    @property
    def _has_coefficients(self) -> bool:
        return self.profile.drift is not None or self.profile.law is not None

    def _noise(self) -> Table:
        found, decimals = self.behaviour, self._decimals
        spread = found.coefficients if self._has_coefficients else None
        rows = sorted({0, len(found.times) - 1}) if found.read_noise.any() else []
        table = _table()
        headings = ["target", "programmed", "of g_max", *(["drift\ncoefficient"] if spread else [])]
        headings += [f"read noise\nafter {format_time(found.times[row])}" for row in rows]
        for heading in headings:
            table.add_column(heading, justify="right")
        for index, target in enumerate(found.targets.tolist()):
            std = float(found.programmed.std[index])
            share = 100 * std / self.profile.conductance.g_max
            cells = [f"{target:.4g}", f"± {std:.{decimals}f}", f"{share:.1f} %"]
            if spread:
                cells.append(f"{float(spread.mean[index]):.3f} ± {float(spread.std[index]):.3f}")
            cells += [f"± {float(found.read_noise[row, index]):.{decimals}f}" for row in rows]
            table.add_row(*cells)
        return table

    def _retention(self) -> Table:
        found, decimals = self.behaviour, self._decimals
        targets = found.targets.tolist()
        table = _table()
        table.add_column("after")
        for target in targets:
            table.add_column(f"{target:.4g}", justify="right")
        for row, time in enumerate(found.times):
            cells = []
            for index, target in enumerate(targets):
                mean, std = float(found.read.mean[row, index]), float(found.read.std[row, index])
                text = Text(f"{mean:.{decimals}f} ± {std:.{decimals}f}")
                if target:
                    text.append(f"\n{100 * mean / target:.1f} %", style="dim")
                cells.append(text)
            table.add_row(self._when(time), *cells)
        return table

    def _when(self, time: float) -> str:
        """What the table calls a drift time."""
        if self.profile.has_drift:
            return format_time(time)
        last = self.profile.valid_times[1]
        if last == math.inf:
            return "any time"
        return f"up to {format_time(last)}" if last > 0 else "programmed"

    @property
    def _decimals(self) -> int:
        """As many as show g_max to four digits."""
        return max(0, 3 - math.floor(math.log10(self.profile.conductance.g_max)))


def show_device(
    name: str, changes: Changes = _UNCHANGED, plot: str | None = None, force: bool = False
) -> ProfileCard:
    """One profile, with what devices of it do from programming to 10 years, within its validity.

    Args:
        name: of a shipped profile, or a file.
        changes: what to change in it before.
        plot: file for a picture of it, in four panels.
        force: replace a file that is there.

    Raises:
        ProfileError: when the profile cannot be loaded or changed.
        ResultsError: when the picture exists already, or cannot be written.
    """
    (profile,) = changes.apply([load_profile(name)])
    path = None if plot is None else Path(plot).expanduser()
    if path is not None and path.exists() and not force:
        raise ResultsError(f"{plot} exists already: name another file, or replace it with --force")
    found = behaviour(profile, five_targets(profile), telling_times(profile))
    if path is not None:
        save_device_plot(path, profile)
    return ProfileCard(profile, found, path)


def as_toml(value: Any) -> str:
    """A value as TOML would write it."""
    if isinstance(value, dict):
        # A curve's scale is 1 unless it was changed, and what is not said need not be read.
        items = [f"{key} = {as_toml(item)}" for key, item in value.items() if (key, item) != ("scale", 1.0)]
        return f"{{ {', '.join(items)} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, bool | str):
        return show(value)  # shortened: a yield map is long
    return short_number(value) if isinstance(value, float) else str(value)


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
