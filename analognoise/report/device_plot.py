"""One device in four panels: programming error, drift, conductance over time, read noise."""

from __future__ import annotations

import io
import math
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from analognoise.devices.behaviour import Behaviour, behaviour
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import ResultsError
from analognoise.files import write_whole
from analognoise.report.style import PALETTE
from analognoise.units import format_time, parse_times

USUAL_TIMES = ("1s", "1h", "1d", "1mo", "1y", "10y")
FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the range from g_min to g_max: the five conductances at which a device is described."""

_LINES = 4  # drift times in a panel over conductance
_POINTS = 101  # along an axis of conductance
_TIMES = 61  # along an axis of time
_LEAST_BIAS = 0.02  # of the standard deviation: smaller mean errors are not worth a line
_PAD = 24.0  # points between a panel and its title, with room for a line below the title and one of times
_ABOVE = 1.08  # of the largest value: where an axis ends
_ROOM = 0.055  # of a panel's height: what a label needs
_METADATA = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


def five_targets(profile: DeviceProfile) -> list[float]:
    """Five conductances from g_min to g_max, evenly."""
    low, high = profile.conductance.g_min, profile.conductance.g_max
    return [low + fraction * (high - low) for fraction in FRACTIONS]


def telling_times(profile: DeviceProfile) -> list[float]:
    """Drift times in seconds that show a device: 1 s to 10 years within its validity, and what it names; one
    alone where nothing depends on time.
    """
    first, last = profile.valid_times
    if not profile.has_drift:
        return [min(1.0, last)]
    named = profile.validity.default_times if profile.validity else None
    times = {*parse_times(USUAL_TIMES), *(named or ()), first, last}
    known = sorted(time for time in times if 0 < time < math.inf and first <= time <= last)
    return known or [first]


def not_known_later(profile: DeviceProfile) -> str:
    """Of a device without drift whose validity ends: that nothing is known after that; else empty."""
    last = profile.valid_times[1]
    if profile.has_drift or math.isinf(last):
        return ""
    age = f"{format_time(last)} after programming" if last > 0 else "programming"
    return f"not measured:\nnothing is known later than {age}"


def save_device_plot(path: str | os.PathLike[str], profile: DeviceProfile) -> Path:
    """Draw a device into a file, which appears whole or not at all.

    Means and standard deviations are over devices; conductances in the profile's unit, times in seconds.

    Args:
        path: its suffix says the format: png, pdf, svg.
        profile: the device.

    Raises:
        ResultsError: when the suffix is unknown, or the file cannot be written.
    """
    path = Path(path)
    kind = path.suffix.lstrip(".").lower()
    if kind not in FigureCanvasAgg.get_supported_filetypes():
        found = path.suffix or "no suffix"
        raise ResultsError(f"cannot write {path}: {found} is no picture format, use .png, .pdf or .svg")
    buffer = io.BytesIO()
    with matplotlib.style.context(["default", {"svg.hashsalt": "analognoise"}]):
        room = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.04)
        figure = Figure(figsize=(10.0, 7.6), layout=room)
        FigureCanvasAgg(figure)
        draw_device(figure, profile)
        figure.savefig(buffer, format=kind, dpi=150, metadata=_METADATA.get(kind))
    write_whole(path, buffer.getvalue())
    return path


def draw_device(figure: Figure, profile: DeviceProfile) -> None:
    """Draw the four panels on an empty figure. Each Axes carries a gid: programming, drift, time, read."""
    low, high = profile.conductance.g_min, profile.conductance.g_max
    times = telling_times(profile)
    across = behaviour(profile, list(np.linspace(low, high, _POINTS)), _few(times))
    title = profile.name + (f": {profile.technology}" if profile.technology else "")
    figure.suptitle("\n".join(textwrap.wrap(title, 95)), x=0.01, ha="left", fontsize=12, weight="bold")
    panels = figure.subplots(2, 2).ravel()
    for ax, name in zip(panels, ("programming", "drift", "time", "read"), strict=True):
        ax.set_gid(name)
        ax.spines[["top", "right"]].set_visible(False)
    _programming(panels[0], profile, across)
    _drift(panels[1], profile, across)
    _time(panels[2], profile, times)
    _read(panels[3], profile, across)


def _programming(ax: Axes, profile: DeviceProfile, across: Behaviour) -> None:
    std, bias = across.programmed.std, across.programmed.mean - across.targets
    if not std.any() and not bias.any():
        _title(ax, "Programming error", "")
        _nothing(ax, "no programming error:\ndevices hold their targets exactly")
        return
    _title(ax, "Programming error", _programming_note(profile))
    _over_conductance(ax, profile, f"error ({_unit(profile)})")
    ax.plot(across.targets, std, color=PALETTE[1], label="standard deviation")
    if bias.abs().max() > _LEAST_BIAS * std.max():
        ax.plot(across.targets, bias, color=PALETTE[2], linestyle="--", label="mean")
        ax.legend(frameon=False, fontsize=8.5)
    ax.set_ylim(min(0.0, 1.1 * float(bias.min())), _ABOVE * float(std.max()))


def _programming_note(profile: DeviceProfile) -> str:
    if profile.retention:
        return f"at the first age, {format_time(profile.retention.ages[0])}"
    return "standard deviation over devices, right after programming"


def _drift(ax: Axes, profile: DeviceProfile, across: Behaviour) -> None:
    if profile.drift or (profile.law and across.coefficients is not None):
        _coefficient(ax, profile, across)
        return
    changes = (
        not (across.drifted.std == across.programmed.std).all()
        or not (across.drifted.mean == across.programmed.mean).all()
    )
    if not changes:
        _title(ax, "Drift", "")
        unknown = not_known_later(profile)
        _nothing(ax, unknown or "no drift:\nconductances stay as programmed")
        return
    _title(ax, "Drift: spread by age", "standard deviation over devices, without read noise")
    _over_conductance(ax, profile, f"standard deviation ({_unit(profile)})")
    _by_time(ax, across, across.drifted.std)


def _coefficient(ax: Axes, profile: DeviceProfile, across: Behaviour) -> None:
    law = profile.law.name if profile.law else "G(t) = G_P · ((t + t_0) / t_0)^(−ν)"
    _title(ax, "Drift coefficient ν" if profile.drift else "Drift coefficient", law)
    found = across.coefficients
    assert found is not None
    _over_conductance(ax, profile, "ν (no unit)" if profile.drift else "coefficient of the law")
    ax.plot(across.targets, found.mean, color=PALETTE[1], label="mean")
    _band(ax, across.targets, found.mean, found.std, PALETTE[1], label="± standard deviation")
    ax.set_ylim(bottom=min(0.0, float((found.mean - found.std).min())))
    ax.legend(frameon=False, fontsize=8.5)


def _time(ax: Axes, profile: DeviceProfile, times: Sequence[float]) -> None:
    unknown = not_known_later(profile)
    if unknown:
        _title(ax, "Retention", "")
        _nothing(ax, unknown)
        return
    unit, first, last = _unit(profile), times[0], times[-1]
    known = "" if first < last or not profile.has_drift else f", known at {format_time(first)} alone"
    _title(ax, "Retention", f"mean ± standard deviation over devices, all effects together{known}")
    asked: Sequence[float] = times[:1]
    if first < last:
        asked = [first, *np.geomspace(first, last, _TIMES)[1:-1], last]  # not an ulp outside of the validity
    else:
        first, last = parse_times(["1s", "10y"])
    places = np.geomspace(first, last, _TIMES)
    targets = five_targets(profile)
    over = behaviour(profile, targets, asked)
    shape = (len(places), len(targets))
    mean, std = (np.broadcast_to(part.numpy(), shape) for part in (over.read.mean, over.read.std))
    for index in range(len(targets)):
        color = PALETTE[1 + index]
        ax.plot(places, mean[:, index], color=color)
        _band(ax, places, mean[:, index], std[:, index], color)
    _label_ends(ax, [(f"{target:.4g} {unit}", end) for target, end in zip(targets, mean[-1], strict=True)])
    ax.set_xscale("log")
    ax.set_xlim(first, last)
    ax.set_xlabel("time since programming (s)")
    ax.set_ylabel(f"{_quantity(profile)} ({unit})")
    ax.xaxis.set_major_locator(LogLocator(base=10, numticks=12))
    ax.xaxis.set_minor_formatter(NullFormatter())
    named = [time for time in parse_times(USUAL_TIMES) if first <= time <= last]
    for time in named:
        ax.axvline(time, color="#bbbbbb", linewidth=0.7, linestyle=":", zorder=0)
    top = ax.secondary_xaxis("top")
    top.set_xticks(named, [format_time(time) for time in named], fontsize=7.5, color="#444444")
    top.xaxis.set_minor_locator(NullLocator())
    top.tick_params(length=0, pad=1)
    top.spines["top"].set_visible(False)


def _label_ends(ax: Axes, labels: Sequence[tuple[str, float]]) -> None:
    """Write a label at the right end of each line, from the lowest up, and none over another."""
    low, high = ax.get_ylim()
    above = -math.inf
    for index, (label, end) in enumerate(labels):
        above = max((end - low) / (high - low), above + _ROOM)
        ax.annotate(
            label,
            (1, above),
            xytext=(5, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=PALETTE[1 + index],
            annotation_clip=False,
        )


def _read(ax: Axes, profile: DeviceProfile, across: Behaviour) -> None:
    if not across.read_noise.any():
        _title(ax, "Read noise", "")
        _nothing(ax, "no read noise")
        return
    _title(ax, "Read noise", "standard deviation of a device around its drifted value")
    _over_conductance(ax, profile, f"standard deviation ({_unit(profile)})")
    _by_time(ax, across, across.read_noise)


def _by_time(ax: Axes, across: Behaviour, values: object) -> None:
    """A line for each drift time, or a single one where all are the same."""
    rows = np.asarray(values)
    if np.allclose(rows, rows[0], rtol=0, atol=0.005 * rows.max()):
        ax.plot(across.targets, rows[0], color=PALETTE[1])
        ax.text(0.98, 0.03, "the same at all times", transform=ax.transAxes, ha="right", fontsize=8.5)
    else:
        for index, (time, row) in enumerate(zip(across.times, rows, strict=True)):
            ax.plot(across.targets, row, color=PALETTE[1 + index], label=format_time(time))
        ax.legend(frameon=False, fontsize=8.5, title="after", title_fontsize=8.5)
    ax.set_ylim(0.0, _ABOVE * rows.max())


def _few(times: Sequence[float]) -> list[float]:
    """At most ``_LINES`` of some times, the first and the last among them."""
    if len(times) <= _LINES:
        return list(times)
    return [times[round(place)] for place in np.linspace(0, len(times) - 1, _LINES)]


def _title(ax: Axes, text: str, below: str) -> None:
    ax.set_title(text, loc="left", fontsize=10.5, weight="bold", pad=_PAD)
    ax.annotate(
        below,
        (0, 1),
        xytext=(0, _PAD - 11),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=8,
        color="#444444",
    )


def _nothing(ax: Axes, text: str) -> None:
    """Say that a panel has nothing to show."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.set_facecolor("#f5f5f5")
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color="#444444")


def _over_conductance(ax: Axes, profile: DeviceProfile, label: str) -> None:
    ax.set_xlabel(f"target {_quantity(profile)} ({_unit(profile)})")
    ax.set_ylabel(label)
    ax.set_xlim(profile.conductance.g_min, profile.conductance.g_max)


def _band(ax: Axes, x: object, mean: object, std: object, color: str, label: str | None = None) -> None:
    center, half = np.asarray(mean), np.asarray(std)
    ax.fill_between(np.asarray(x), center - half, center + half, color=color, alpha=0.18, lw=0, label=label)


def _unit(profile: DeviceProfile) -> str:
    return {"uS": "µS"}.get(profile.conductance.unit, profile.conductance.unit)


def _quantity(profile: DeviceProfile) -> str:
    return "current" if profile.conductance.unit == "nA" else "conductance"
