"""Labels that must not overlap: names at the lines' right ends, and tick labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.text import Annotation
from matplotlib.ticker import FixedFormatter

FONT = 8.5
_SMALLEST = 5.5
_LINE = 1.22  # distance of two labels in font sizes
_LEFT = 1.035  # where labels begin, in widths of the axes
_GID = "end-label"


@dataclass(frozen=True)
class End:
    """The right end of a line, in data coordinates, and what to write there."""

    x: float
    y: float
    text: str
    bold: bool
    color: str


def attach(ax: Axes, ends: Sequence[End]) -> None:
    """Write each label right of the axes, as near to its line's end as the others allow, linked to it."""
    for end in ends:
        ax.annotate(
            end.text,
            xy=(end.x, end.y),
            xytext=(_LEFT, 0.5),
            textcoords="axes fraction",
            va="center",
            fontsize=FONT,
            fontweight="bold" if end.bold else "normal",
            color=end.color,
            gid=_GID,
            arrowprops={
                "arrowstyle": "-",
                "color": end.color,
                "linewidth": 0.6,
                "alpha": 0.6,
                "shrinkA": 1,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )
    ax.add_artist(_Spreader())
    spread(ax)


class _Spreader(Artist):
    """Spreads the labels each time before they are drawn: a layout changes the axes' height."""

    def __init__(self) -> None:
        super().__init__()
        self.set_zorder(-1)
        self.set_in_layout(False)

    def draw(self, renderer: RendererBase) -> None:
        """Draw nothing, but before anything else is drawn."""
        if isinstance(self.axes, Axes):
            spread(self.axes)


def spread(ax: Axes) -> None:
    """Move the labels that `attach` made so that none overlaps, for the axes' present height."""
    found = [text for text in ax.texts if isinstance(text, Annotation) and text.get_gid() == _GID]
    if not found:
        return
    points = ax.get_window_extent().height / _pixels(ax)
    size = min(FONT, max(_SMALLEST, points / (_LINE * len(found))))
    low, high = ax.get_ylim()
    wanted = np.array([(text.xy[1] - low) / (high - low) for text in found])
    for text, place in zip(found, apart(wanted, _LINE * size / points), strict=True):
        # an interactive figure draws again after every change, so there must be none when nothing moved
        if abs(text.xyann[1] - place) > 1e-6 or text.get_fontsize() != size:
            text.set_fontsize(size)
            text.xyann = (_LEFT, float(place))


def apart(wanted: np.ndarray, distance: float) -> np.ndarray:
    """Positions nearest to the wanted ones (least squares) in their order, in [0, 1], ``distance`` apart.

    With y_i = z_i + i · distance the condition is that z does not decrease, so z is an isotonic regression.
    Where they cannot all fit, they are evenly spaced beyond both ends.
    """
    from scipy.optimize import isotonic_regression  # takes a while to load

    order = np.argsort(wanted, kind="stable")
    steps = distance * np.arange(len(wanted))
    room = 1 - steps[-1]
    placed = np.empty(len(wanted))
    fit = isotonic_regression(wanted[order] - steps).x
    placed[order] = (np.clip(fit, 0, room) if room >= 0 else room / 2) + steps
    return placed


def thin_ticks(ax: Axes) -> None:
    """Turn tick labels that would overlap, and leave out those that overlap even then; all ticks stay."""
    formatter = ax.xaxis.get_major_formatter()
    if not isinstance(formatter, FixedFormatter):
        return
    names, ticks = list(formatter.seq), ax.xaxis.get_major_locator()()
    at = ax.transData.transform([(tick, ax.get_ylim()[0]) for tick in ticks])[:, 0] / _pixels(ax)
    size = float(ax.xaxis.get_ticklabels()[0].get_fontsize())
    half = np.array([len(name) for name in names]) * 0.56 * size / 2
    if (np.diff(at) > half[1:] + half[:-1] + 3).all():
        return
    ax.tick_params(axis="x", labelrotation=40)
    for text in ax.xaxis.get_ticklabels():
        text.set_horizontalalignment("right")
        text.set_rotation_mode("anchor")
    shown = [0, len(names) - 1]
    for index in range(1, len(names) - 1):
        if all(abs(at[index] - at[other]) >= 1.35 * size for other in shown):
            shown.append(index)
    ax.xaxis.set_major_formatter(FixedFormatter([name if i in shown else "" for i, name in enumerate(names)]))


def _pixels(ax: Axes) -> float:
    """Pixels per point."""
    figure = ax.get_figure(root=True)
    return figure.dpi / 72 if figure is not None else 1.0
