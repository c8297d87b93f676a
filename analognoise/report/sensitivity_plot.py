"""The ranking of layers as a bar chart; nothing global is touched, as in ``report.plot``."""

from __future__ import annotations

import io
import os
import textwrap
from pathlib import Path

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analognoise.files import write_whole
from analognoise.report.numbers import numbers_of
from analognoise.report.sensitivity import Facts, numbers_at
from analognoise.units import format_time

MOST = 30  # layers in one picture
_FEW = 12  # layers up to which there is room for a second line by each
_BARS = (
    ("alone", "lost with it alone on tiles", "#0072B2"),
    ("regained", "regained with it alone digital", "#E69F00"),
)
_WIDE, _ROW, _FRAME = 7.6, 0.25, 1.7  # inches: width, height of a layer, height of all else


def plot_sensitivity(frame: pd.DataFrame, facts: Facts, time: float, ax: Axes | None = None) -> Axes:
    """Draw two bars per layer with intervals as whiskers, the costliest layer on top.

    Args:
        frame: as :class:`analognoise.evaluation.sensitivity_report.SensitivityReport` gives it.
        facts: of the same report.
        time: one of its drift times, in seconds.
        ax: where to draw; a new pyplot figure when None. Of more layers than fit, the first by rank.
    """
    if ax is None:
        from matplotlib import pyplot  # a figure that a notebook or a window shows

        figure = pyplot.figure(figsize=_size(frame, 1), layout="constrained")
        ax = figure.subplots()
    order = list(frame[frame["time_s"] == time].sort_values("rank")["layer"])
    _draw(ax, frame, facts, time, order[:MOST], names=True)
    ax.legend(loc="best", frameon=False, fontsize=8)
    return ax


def save_sensitivity(path: str | os.PathLike[str], frame: pd.DataFrame, facts: Facts) -> Path:
    """Draw a panel per drift time into a PNG file, layers in the order of the longest time.

    The same frame gives the same file; it appears whole or not at all.

    Raises:
        ResultsError: when the file cannot be written.
    """
    path, times = Path(path), sorted(set(frame["time_s"]))
    order = list(frame[frame["time_s"] == times[-1]].sort_values("rank")["layer"])
    buffer = io.BytesIO()
    with matplotlib.style.context("default"):
        figure = Figure(figsize=_size(frame, len(times)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(times), sharex=True, squeeze=False)[0]
        for index, (panel, time) in enumerate(zip(panels, times, strict=True)):
            _draw(panel, frame, facts, time, order[:MOST], names=index == 0)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
        figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    write_whole(path, buffer.getvalue())
    return path


def _size(frame: pd.DataFrame, panels: int) -> tuple[float, float]:
    layers = min(MOST, frame["layer"].nunique())
    row = _ROW if layers > _FEW else 1.5 * _ROW
    return _WIDE + 4.0 * (panels - 1), _FRAME + row * max(layers, 2)


def _draw(ax: Axes, frame: pd.DataFrame, facts: Facts, time: float, order: list[str], *, names: bool) -> None:
    """One panel. Artists carry gids: ``alone``, ``regained`` for bars, ``all`` for the line."""
    numbers = numbers_at(frame, facts)
    rows = frame[frame["time_s"] == time].set_index("layer").loc[order]
    places = np.arange(len(order), dtype=float)
    for index, (name, label, color) in enumerate(_BARS):
        mean = rows[name].to_numpy(float) * numbers.factor
        ends = rows[[f"{name}_low", f"{name}_high"]].to_numpy(float).T * numbers.factor
        whiskers = np.abs(ends - mean)
        at = places + (index - 0.5) * 0.38
        bars = ax.barh(at, mean, 0.36, color=color, label=label, zorder=2)
        for bar in bars:
            bar.set_gid(name)
        known = np.isfinite(whiskers).all(axis=0)
        ax.errorbar(
            mean[known],
            at[known],
            xerr=whiskers[:, known],
            fmt="none",
            ecolor="#222222",
            elinewidth=1,
            capsize=2.5,
            zorder=3,
        )
    for place in places[~rows["read"].to_numpy(bool)]:  # no loss is no finding where no tile was read
        note = " its tiles were not read"
        ax.text(0, place, note, fontsize=7.5, va="center", color="#444444", gid="not read", zorder=4)
    total = facts.total_at(time)["lost"] * numbers.factor
    ax.axvline(total, color="#555555", linestyle="--", linewidth=1, label="lost with all on tiles", gid="all")
    ax.axvline(0, color="#222222", linewidth=0.8)
    ax.set_ylim(len(order) - 0.4, -0.6)
    shares = [
        f"{_short(layer)}\n{100 * share:.1f} % of parameters" if len(order) <= _FEW else _short(layer)
        for layer, share in zip(order, rows["parameter_share"], strict=True)
    ]
    ax.set_yticks(places, shares if names else [""] * len(order), fontsize=8)
    ax.grid(axis="x", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    unit = f"percentage points of {facts.metric}" if numbers.percent else facts.metric
    ax.set_xlabel(f"worse on tiles by ({unit})")
    after = f" after {format_time(time)}" if time else ""
    caption = _caption(frame, facts, len(order))
    ax.text(0, 1.01, caption, transform=ax.transAxes, fontsize=7.5, va="bottom", color="#444444")
    title = f"What each layer costs on {facts.profile}{after}"
    pad = 8 + 10 * (caption.count("\n") + 1)
    ax.set_title("\n".join(textwrap.wrap(title, 62)), loc="left", fontsize=10.5, weight="bold", pad=pad)


def _caption(frame: pd.DataFrame, facts: Facts, shown: int) -> str:
    layers = frame["layer"].nunique()
    digital = numbers_of(
        pd.DataFrame({"metric": [facts.metric], "mean": [facts.digital], "low": [0.0], "high": [0.0]})
    )
    unit = " %" if digital.percent else ""
    text = f"Digital {facts.metric} {digital.value(facts.digital)}{unit}. "
    if facts.chips > 1:
        text += f"Whiskers: {100 * facts.confidence:g} % interval over {facts.chips} chips, paired by chip."
    else:
        text += "One chip: no interval."
    if shown < layers:
        text += f" {shown} of {layers} layers: those that cost most."
    return "\n".join(textwrap.wrap(text, 72))


def _short(layer: str, most: int = 34) -> str:
    return layer if len(layer) <= most else "…" + layer[1 - most :]
