"""The summary as a picture: a metric over drift time or noise level, one line per method, intervals as bands.

Nothing global is touched: files are drawn on a `Figure` of their own with a non-interactive canvas, and
pyplot is imported only when the caller gives no `Axes` to draw on.
"""

from __future__ import annotations

import io
import math
import os
from pathlib import Path

import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analognoise.errors import ResultsError
from analognoise.files import write_whole
from analognoise.report.axes import vertical
from analognoise.report.labels import thin_ticks
from analognoise.report.panel import draw_panel
from analognoise.report.summary import Section, sections

_INCHES = (7.6, 4.9)  # of one panel
_METADATA = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}  # no clock in a file


def plot_over_time(
    frame: pd.DataFrame, ax: Axes | None = None, title: str | None = None, *, confidence: float = 0.95
) -> Axes:
    """Draw the metric over drift time on a logarithmic axis, each method's digital metric at the far left.

    Args:
        frame: summary frame. With several profiles and no ``ax`` there is one panel for each, and the first
            is returned. Families of noise levels are left to `plot_over_level`.
        ax: where to draw; a new pyplot figure when None.
        title: replaces the title; with several profiles it stands above all panels.
        confidence: level of the frame's intervals.

    Raises:
        ResultsError: when the frame is not a summary, holds nothing but noise levels, or several profiles
            although ``ax`` is given.
    """
    shown = [section for section in sections(frame) if section.kind != "level"]
    if not shown:
        raise ResultsError(
            "a picture over drift time needs a profile of its own: the summary has only noise levels"
        )
    return _draw_on(shown, ax, title, confidence)


def plot_over_level(
    frame: pd.DataFrame, ax: Axes | None = None, title: str | None = None, *, confidence: float = 0.95
) -> Axes:
    """Draw the metric over the noise level of profiles named ``NAME@PERCENT%``; else as `plot_over_time`.

    Raises:
        ResultsError: when the frame is not a summary, holds no family of noise levels, or several although
            ``ax`` is given.
    """
    shown = [section for section in sections(frame) if section.kind == "level"]
    if not shown:
        names = ", ".join(dict.fromkeys(map(str, frame["profile"])))
        raise ResultsError(
            f"a picture over noise level needs profiles like gaussian@5%, gaussian@10%: found {names}"
        )
    return _draw_on(shown, ax, title, confidence)


def save_figure(
    path: str | os.PathLike[str],
    frame: pd.DataFrame,
    *,
    title: str | None = None,
    dpi: int = 160,
    confidence: float = 0.95,
) -> Path:
    """Draw all that the frame holds, a panel per profile or family of noise levels, into a file.

    The same frame gives the same file. It appears whole or not at all, and its look does not depend on the
    user's matplotlib settings.

    Args:
        path: its suffix says the format: png, pdf, svg.
        frame: summary frame.
        title: as in `plot_over_time`.
        dpi: pixels per inch.
        confidence: level of the frame's intervals.

    Raises:
        ResultsError: when the frame is not a summary, the suffix is unknown, or the file cannot be written.
    """
    path, shown = Path(path), sections(frame)
    kind = path.suffix.lstrip(".").lower()
    if kind not in FigureCanvasAgg.get_supported_filetypes():
        found = path.suffix or "no suffix"
        raise ResultsError(f"cannot write {path}: {found} is no picture format, use .png, .pdf or .svg")
    buffer = io.BytesIO()
    with matplotlib.style.context(["default", {"svg.hashsalt": "analognoise"}]):
        figure = Figure(figsize=_size(len(shown)), layout="constrained")
        FigureCanvasAgg(figure)
        _draw_panels(figure, shown, title, confidence)
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=_METADATA.get(kind))
    write_whole(path, buffer.getvalue())
    return path


def _draw_on(shown: list[Section], ax: Axes | None, title: str | None, confidence: float) -> Axes:
    if ax is not None:
        if len(shown) > 1:
            names = ", ".join(section.name for section in shown)
            raise ResultsError(
                f"one Axes holds one profile, the summary has {len(shown)} ({names}): select one's rows"
            )
        draw_panel(ax, shown[0], vertical(shown), title, confidence)
        return ax
    from matplotlib import pyplot  # a figure that a notebook or a window shows

    figure = pyplot.figure(figsize=_size(len(shown)), layout="constrained")
    return _draw_panels(figure, shown, title, confidence)[0]


def _size(panels: int) -> tuple[float, float]:
    return _INCHES[0] * min(panels, 2), _INCHES[1] * math.ceil(panels / 2)


def _draw_panels(figure: Figure, shown: list[Section], title: str | None, confidence: float) -> list[Axes]:
    alone = len(shown) == 1
    if title is not None and not alone:
        figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    grid = figure.subplots(math.ceil(len(shown) / 2), min(len(shown), 2), squeeze=False).ravel()
    for spare in grid[len(shown) :]:
        spare.remove()
    panels: list[Axes] = list(grid[: len(shown)])
    for ax, section in zip(panels, shown, strict=True):
        # drift and noise level are different questions: a common range serves panels that ask the same one
        limits = vertical([other for other in shown if (other.kind == "level") == (section.kind == "level")])
        draw_panel(ax, section, limits, title if alone else None, confidence)
    figure.draw_without_rendering()  # the layout decides which tick labels fit
    for ax in panels:
        thin_ticks(ax)
    return panels
