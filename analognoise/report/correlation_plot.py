"""Does sharpness go with what is lost? Rank correlations with their intervals; nothing global is touched."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analognoise.files import write_whole
from analognoise.report.style import PALETTE

MOST_TIMES, _COLUMNS = 4, 3
_WIDE, _KIND, _FRAME = 4.4, 0.42, 1.4  # inches: width of a panel, height of a kind, height of all else


def save_correlations(
    path: str | os.PathLike[str],
    related: pd.DataFrame,
    label: Callable[[float], str],
    axis: str,
    confidence: float,
) -> Path | None:
    """Draw a panel for each condition into a PNG file: a row for each kind of sharpness, marks by time.

    The same frame gives the same file; it appears whole or not at all.

    Args:
        path: of the file.
        related: columns profile, time_s, kind, models, correlation, low, high, as
            :func:`analognoise.comparison.sharpness.correlations` gives them.
        label: words for a value of time_s.
        axis: what time_s is, for the legend.
        confidence: coverage of the intervals.

    Returns:
        The file, or None where no correlation is known.

    Raises:
        ResultsError: when the file cannot be written.
    """
    known = related[related["correlation"].notna()]
    if known.empty:
        return None
    profiles = list(known["profile"].drop_duplicates())
    kinds = list(related["kind"].drop_duplicates())
    rows = -(-len(profiles) // _COLUMNS)
    columns = min(len(profiles), _COLUMNS)
    path, buffer = Path(path), io.BytesIO()
    with matplotlib.style.context("default"):
        size = (_WIDE * columns, rows * (_KIND * len(kinds) + _FRAME))
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, profile in zip(axes, profiles, strict=False):
            _draw(ax, known[known["profile"] == profile], str(profile), kinds, label, axis)
        for ax in axes[len(profiles) :]:
            ax.set_visible(False)
        figure.supxlabel(
            f"rank correlation over models, {100 * confidence:g} % intervals; 1: the sharper, the more lost",
            fontsize=9,
        )
        figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    write_whole(path, buffer.getvalue())
    return path


def _draw(
    ax: Axes,
    own: pd.DataFrame,
    profile: str,
    kinds: Sequence[str],
    label: Callable[[float], str],
    axis: str,
) -> None:
    times = sorted(set(own["time_s"]))
    if len(times) > MOST_TIMES:  # the last ones: where most is lost
        times = times[-MOST_TIMES:]
    offsets = np.linspace(-0.27, 0.27, len(times)) if len(times) > 1 else np.zeros(1)
    for time, offset, color in zip(times, offsets, PALETTE, strict=False):
        part = own[own["time_s"] == time].set_index("kind").reindex(kinds)
        middle = part["correlation"].to_numpy(float)
        reach = np.vstack([middle - part["low"].to_numpy(float), part["high"].to_numpy(float) - middle])
        ax.errorbar(
            middle,
            np.arange(len(kinds)) + offset,
            xerr=np.maximum(reach, 0),
            fmt="o",
            markersize=4,
            linewidth=1.1,
            color=color,
            label=label(float(time)),
        )
    ax.axvline(0, color="0.6", linewidth=0.8)
    ax.set_xlim(-1.05, 1.05)
    ax.set_yticks(np.arange(len(kinds)), kinds, fontsize=9)
    ax.invert_yaxis()
    ax.grid(axis="x", color="0.9")
    ax.set_title(f"{profile} ({int(own['models'].max())} models)", fontsize=10, loc="left")
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    if len(times) > 1:
        legend = ax.legend(title=axis, fontsize=8, title_fontsize=8, frameon=False, loc="upper left")
        legend.set_bbox_to_anchor((1, 1))
