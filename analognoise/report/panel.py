"""One panel of a picture: lines, bands, the digital metric, labels, and the facts needed to read them."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from analognoise.report.axes import Limits, Scale, horizontal
from analognoise.report.labels import End, attach, thin_ticks
from analognoise.report.style import Style, styles
from analognoise.report.summary import MARK, Section, counts, failed, has_intervals, label, sampling_error

_MANY = 6  # methods above which lines and bands get thinner
_XLABELS = {
    "level": "programming noise (standard deviation, % of the largest conductance)",
    "single": "",
}
_TITLES = {"time": " over drift time", "level": " over noise level", "single": " right after programming"}


def draw_panel(ax: Axes, section: Section, limits: Limits, title: str | None, confidence: float) -> None:
    """Draw a section.

    Every artist that holds numbers carries a gid that says what it is: ``line:METHOD``, ``band:METHOD``,
    ``interval:METHOD``, ``digital:METHOD``. Lines are moved sideways a little, so that overlapping intervals
    stay readable; ticks stand at the exact times.
    """
    scale, looks, outside = horizontal(section), styles(section.methods), limits.outside(section)
    ax.set_xscale("log" if scale.log else "linear")
    ax.set_xlim(scale.at(scale.left), scale.at(scale.right))
    ax.set_ylim(limits.low, limits.high)
    _furnish(ax, section, scale)
    drawn = [method for method in section.methods if method not in outside and method not in failed(section)]
    ends = []
    for index, method in enumerate(drawn):
        shift = (index - (len(drawn) - 1) / 2) * scale.dodge
        end = _method(ax, section, method, looks[method], scale, shift)
        ends.append(End(*end, *_final(section, method), looks[method].text_color))
    attach(ax, ends)
    _headline(ax, title or section.title + _TITLES.get(section.kind, ""), _facts(section, limits, confidence))


def _furnish(ax: Axes, section: Section, scale: Scale) -> None:
    ax.xaxis.set_major_locator(FixedLocator([scale.at(slot) for slot in (scale.digital, *scale.slots)]))
    ax.xaxis.set_major_formatter(FixedFormatter([section.layout.undisturbed, *section.labels]))
    ax.xaxis.set_minor_locator(NullLocator())
    border = scale.at((scale.digital + scale.slots[0]) / 2)
    ax.axvspan(scale.at(scale.left), border, color="#f1f1f1", linewidth=0, zorder=0)
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_ylabel(section.numbers.heading)
    ax.set_xlabel(_XLABELS.get(section.kind, section.layout.axis_title))
    thin_ticks(ax)


def _method(
    ax: Axes, section: Section, method: str, look: Style, scale: Scale, shift: float
) -> tuple[float, float]:
    """Draw one method's band, line and digital metric; its right end in data coordinates."""
    factor, many = section.numbers.factor, len(section.methods) > _MANY
    pairs = zip(scale.slots, section.row(method), strict=True)
    known = [(scale.at(slot + shift), cell) for slot, cell in pairs if cell and not cell.failed]
    x = np.array([place for place, _ in known])
    y, low, high = (
        factor * np.array([getattr(c, name) for _, c in known]) for name in ("mean", "low", "high")
    )
    best = section.layout.ranks and section.best(known[-1][1])
    marks: dict[str, Any] = {
        "color": look.color,
        "marker": look.marker,
        "markersize": 4.0 if many else 5.0,
        "markerfacecolor": "white" if look.hollow else look.color,
        "zorder": 4 if best else 3,
    }
    thin: dict[str, Any] = {"color": look.color, "alpha": 0.55, "linewidth": 0.8, "zorder": 2}
    if np.isfinite(low).any():
        if len(x) > 1:
            faint = min(0.16, 0.5 / len(section.methods))  # overlapping bands must not turn to mud
            shade: dict[str, Any] = {"color": look.color, "alpha": faint, "linewidth": 0, "zorder": 1}
            ax.fill_between(x, low, high, gid=f"band:{method}", **shade)
        ax.vlines(x, low, high, gid=f"interval:{method}", **thin)
    width = (1.3 if many else 1.7) + (0.7 if best else 0)
    (line,) = ax.plot(x, y, linestyle=look.dash, linewidth=width, gid=f"line:{method}", **marks)
    line.set_label(label(method))
    first = section.first(method)
    if math.isfinite(first.digital):
        place, digital = scale.at(scale.digital + shift), first.digital * factor
        edges = (first.digital_low * factor, first.digital_high * factor)
        ax.vlines([place], *edges, gid=f"digital-interval:{method}", **thin)
        ax.plot([place, x[0]], [digital, y[0]], linestyle=":", **{**thin, "linewidth": 0.6, "zorder": 1})
        ax.plot([place], [digital], linestyle="none", gid=f"digital:{method}", **marks)
    return float(x[-1]), float(y[-1])


def _final(section: Section, method: str) -> tuple[str, bool]:
    """The label at a line's right end, and whether the method is the best there."""
    if not section.layout.ranks:
        return label(method), False
    cell = [cell for cell in section.row(method) if cell and not cell.failed][-1]
    return f"{section.numbers.value(cell.mean)}  {label(method)} {section.mark(cell)}".rstrip(), section.best(
        cell
    )


def _headline(ax: Axes, title: str, facts: list[str]) -> None:
    figure = ax.get_figure(root=True)
    points = ax.get_window_extent().width * 72 / (figure.dpi if figure else 72)
    letters = max(40, int(points / 3.25))  # of 8 points each, with the room that the labels at the right take
    lines = [line for fact in facts for line in textwrap.wrap(fact, letters, break_on_hyphens=False)]
    ax.annotate(
        "\n".join(lines),
        xy=(0, 1),
        xycoords="axes fraction",
        xytext=(0, 6),
        textcoords="offset points",
        va="bottom",
        fontsize=8,
        color="#555555",
        linespacing=1.25,
        gid="facts",
    )
    # 11 points each, and bold; what is too long would leave the picture.
    title = textwrap.fill(title, max(40, int(points / 5.2)), break_long_words=False, break_on_hyphens=False)
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=10 + 10.6 * len(lines))


def _facts(section: Section, limits: Limits, confidence: float) -> list[str]:
    """What a reader without the text beside it must know, a paragraph each."""
    outside = limits.outside(section)
    interval = f" and {100 * confidence:g}\u00a0% interval" if has_intervals(section) else ""
    error = sampling_error(section)
    sampling = f" · test set's standard error ≤ {error}, not included" if error else ""
    facts = [f"mean{interval} over {counts(section)}{sampling}"]
    if len(section.methods) > 1 and section.layout.ranks:
        test = f"paired by training seed, Holm-corrected, {100 * (1 - confidence):g}\u00a0%"
        worse = f"{MARK} not significantly worse than the best (bold) at the right end ({test})"
        facts.append(worse if section.tested else f"bold and {MARK}: best at the right end, not tested")
    if outside:
        facts.append(
            "outside the picture: " + ", ".join(f"{label(m)} ({text})" for m, text in outside.items())
        )
    if limits.cuts(section):
        facts.append("some intervals reach beyond the picture")
    if broken := failed(section):
        facts.append(f"failed: {', '.join(map(label, broken))}")
    return facts
