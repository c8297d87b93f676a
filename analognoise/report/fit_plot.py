"""A fitted profile against its measurements as a picture; nothing global is touched."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.style
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analognoise.devices.base import BaseCurve
from analognoise.devices.contents import MIN_DRIFT_X
from analognoise.devices.profile import DeviceProfile
from analognoise.files import write_whole
from analognoise.report.style import PALETTE
from analognoise.units import format_time

_WIDE, _HIGH = 4.6, 3.4  # inches of a panel
_MOST = 5  # levels over time that can be told apart
_DATA, _CURVE = "#222222", "#0072B2"
_TITLES = {
    "programming.sigma": "Programming error",
    "drift.nu_mean": "Drift exponent, mean",
    "drift.nu_std": "Drift exponent, spread",
    "read.relative_sigma": "Read noise",
}


def save_fit(
    path: Path,
    profile: DeviceProfile,
    levels: pd.DataFrame,
    kept: pd.DataFrame,
    confidence: float,
    t_0: float,
) -> Path:
    """Draw a panel for each curve, and one for conductance over time, into a PNG file.

    The same fit gives the same file; it appears whole or not at all.

    Args:
        path: the file.
        profile: the fitted profile.
        levels: rows of field, x, value, low, high, fitted_low, fitted_high.
        kept: rows of target, age_s, mean, std, profile_mean, profile_std.
        confidence: level of the intervals.
        t_0: age at which drift time 0 is.

    Raises:
        ResultsError: when the file cannot be written.
    """
    fields = list(dict.fromkeys(levels["field"]))
    buffer = io.BytesIO()
    with matplotlib.style.context("default"):
        columns = 2 if len(fields) < 4 else 3
        rows = -(-(len(fields) + 1) // columns)
        figure = Figure(figsize=(_WIDE * columns, _HIGH * rows + 0.4), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for field, panel in zip(fields, panels, strict=False):
            _draw_curve(panel, profile, field, levels[levels["field"] == field])
        _draw_kept(panels[len(fields)], profile, kept)
        for panel in panels[len(fields) + 1 :]:
            panel.set_axis_off()
        figure.suptitle(
            f"{profile.name}: points measured, with {100 * confidence:g} % intervals; lines the profile "
            f"(drift time 0 is {format_time(t_0)} after programming)",
            fontsize=10,
            x=0.01,
            ha="left",
        )
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    write_whole(path, buffer.getvalue())
    return path


def _draw_curve(ax: Axes, profile: DeviceProfile, field: str, rows: pd.DataFrame) -> None:
    """One curve over conductance. Artists carry gids: ``measured``, ``curve``, ``band``."""
    g_max, unit = profile.conductance.g_max, profile.conductance.unit.replace("u", "µ")
    section, name = field.split(".")
    curve: BaseCurve = getattr(getattr(profile, section), name)
    factor = 100.0 if section == "read" else 1.0
    x = rows["x"].to_numpy()
    at, value = x * g_max, rows["value"].to_numpy() * factor
    whiskers = np.abs(rows[["low", "high"]].to_numpy().T * factor - value)
    low, high = (rows[end].to_numpy() * factor for end in ("fitted_low", "fitted_high"))
    ax.fill_between(at, low, high, color=_CURVE, alpha=0.2, linewidth=0, gid="band")
    fine = np.unique(np.concatenate([x, np.linspace(max(x[0], MIN_DRIFT_X), max(x[-1], 1.0), 400)]))
    line = curve(torch.from_numpy(np.maximum(fine, MIN_DRIFT_X))).numpy() * factor
    ax.plot(fine * g_max, line, color=_CURVE, linewidth=1.5, gid="curve", label=curve.curve)
    bars = ax.errorbar(
        at, value, yerr=whiskers, fmt="o", color=_DATA, markersize=3.5, elinewidth=1, capsize=2
    )
    bars.lines[0].set_gid("measured")
    ax.set_ylim(bottom=0, top=1.15 * max(float(value.max()), float(line.max())) or 1.0)
    labels = {
        "programming.sigma": f"standard deviation ({unit})",
        "read.relative_sigma": "Q (% of conductance, before it grows)",
    }
    ax.set_ylabel(labels.get(field, "ν" if name == "nu_mean" else "standard deviation of ν"), fontsize=9)
    what = "conductance" if section == "read" else "target"
    _finish(ax, f"{_TITLES[field]}: {curve.curve}", f"{what} ({unit})")


def _draw_kept(ax: Axes, profile: DeviceProfile, kept: pd.DataFrame) -> None:
    """Mean conductance over age, with the devices' spread, for some of the levels."""
    unit = profile.conductance.unit.replace("u", "µ")
    targets = np.unique(kept["target"])
    shown = targets[np.unique(np.linspace(0, len(targets) - 1, _MOST).round().astype(int))]
    for target, color in zip(shown, PALETTE[1:], strict=False):
        rows = kept[kept["target"] == target].sort_values("age_s")
        age, mean = rows["age_s"].to_numpy(), rows["profile_mean"].to_numpy()
        std = rows["profile_std"].to_numpy()
        ax.fill_between(age, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)
        ax.plot(age, mean, color=color, linewidth=1.5)
        ax.errorbar(
            age, rows["mean"], yerr=rows["std"], fmt="o", color=color, markersize=3.5, elinewidth=1, capsize=2
        )
        ax.annotate(f" {target:.3g}", (age[-1], mean[-1]), color=color, fontsize=8, va="center")
    ax.set_xscale("log")
    ax.margins(x=0.12)
    ax.set_ylim(bottom=0)
    ax.set_ylabel(f"conductance ({unit}), ± 1 standard deviation", fontsize=9)
    _finish(ax, f"Conductance over time, by target ({unit})", "age (s)")


def _finish(ax: Axes, title: str, below: str) -> None:
    ax.set_title(title, loc="left", fontsize=10, weight="bold")
    ax.set_xlabel(below, fontsize=9)
    ax.tick_params(labelsize=8)
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
