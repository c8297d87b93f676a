"""A metric over the noise level on computations; nothing global is touched, as in ``report.plot``."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from analognoise.report.numbers import numbers_of
from analognoise.report.style import styles


def plot_over_sigma(frame: pd.DataFrame, ax: Axes | None = None, *, confidence: float = 0.95) -> Axes:
    """Draw the mean over a logarithmic axis of noise levels, its interval as a band, the value without noise.

    Artists carry gids: ``line:NOISE``, ``band:NOISE``, ``digital``.

    Args:
        frame: as :class:`analognoise.evaluation.noise_report.NoiseSummary` has it; the first noise is drawn
            bold, the others (single layers) thin.
        ax: where to draw; a new pyplot figure when None.
        confidence: level of the frame's intervals.
    """
    if ax is None:
        from matplotlib import pyplot  # a figure that a notebook or a window shows

        ax = pyplot.figure(figsize=(7.6, 4.9), layout="constrained").subplots()
    noises = list(dict.fromkeys(frame["noise"]))
    looks, numbers = styles(noises), numbers_of(frame)
    for number, noise in enumerate(noises):
        rows, look = frame[frame["noise"] == noise], looks[noise]
        x, mean, low, high = (rows[name].to_numpy(float) for name in ("sigma", "mean", "low", "high"))
        width = 1.2 if number else 2.0
        ax.plot(
            x,
            mean * numbers.factor,
            color=look.color,
            marker=look.marker,
            markersize=3.5,
            linestyle=look.dash,
            linewidth=width,
            label=noise,
            gid=f"line:{noise}",
        )
        band: dict[str, Any] = {"color": look.color, "alpha": 0.08 if number else 0.18, "linewidth": 0}
        ax.fill_between(x, low * numbers.factor, high * numbers.factor, gid=f"band:{noise}", **band)
    clean = float(frame["digital"].iloc[0]) * numbers.factor
    ax.axhline(clean, color="#888888", linewidth=0.8, linestyle=":", gid="digital", label="without noise")
    ax.set_xscale("log")
    ax.set_xlabel("noise level σ (logarithmic)")
    ax.set_ylabel(numbers.heading)
    ax.set_title(f"{100 * confidence:g} % intervals over repeats", loc="left", fontsize=9)
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    return ax
