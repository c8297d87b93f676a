"""Midpoint noise levels by method: as tables, and by layer as bars."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analognoise.files import write_whole
from analognoise.report.numbers import numbers_of
from analognoise.report.style import styles
from analognoise.report.summary import MARK
from analognoise.report.table import ABSENT, FAILED, grid

_ON = " on "  # between a kind of noise and the one layer it is on


@dataclass(frozen=True)
class MidpointTables:
    """The tables of μ: notes, and titled rows of text, the first of them the heading; bold as in Markdown."""

    notes: list[str]
    tables: list[tuple[str, list[list[str]]]]

    def markdown(self) -> list[str]:
        """Lines of Markdown."""
        lines = []
        for number, (title, rows) in enumerate(self.tables):
            notes = [line for note in self.notes for line in (note, "")] if number == 0 else []
            lines += [f"## {title}", "", *notes, grid(rows), ""]
        return lines or self.notes

    def print(self, console: Console) -> None:
        """For the terminal."""
        for title, rows in self.tables:
            table = Table(title=title, title_style="bold", title_justify="left", box=box.SIMPLE_HEAD)
            for heading in rows[0]:
                table.add_column(heading, overflow="fold")
            for row in rows[1:]:
                table.add_row(*(Text(c.replace("**", ""), "bold" if "**" in c else "") for c in row))
            console.print(table)
        for note in self.notes:
            console.print(Text(note, style="dim"))


def midpoint_tables(middle: pd.DataFrame, summary: pd.DataFrame, confidence: float) -> MidpointTables:
    """μ by method for noise on all layers, and by layer where noise was on one at a time.

    Args:
        middle: one row per noise and method: noise, method, mu, low, high, n, lacking, above, below,
            sigma_min, sigma_max, p_best, best, marked.
        summary: of the metric, for its value without noise.
        confidence: coverage of the intervals.
    """
    if middle.empty:
        return MidpointTables(
            ["No midpoint: it needs a metric that noise makes smaller, and is above guessing without."], []
        )
    # In the summary's order: a method whose models all are as good as guessing has no midpoint.
    names = [str(name) for name in dict.fromkeys(summary["noise"])]
    whole, single = [n for n in names if _ON not in n], [n for n in names if _ON in n]
    methods = [str(name) for name in dict.fromkeys(summary["method"])]
    cells = {(row["noise"], row["method"]): row for row in middle.to_dict("records")}
    failed = set(summary.loc[summary["digital"].isna(), "method"])
    tested = bool(middle["p_best"].notna().any())
    numbers = numbers_of(summary)
    clean = summary.groupby("method", sort=False)["digital"].first()

    def cell(name: str, method: str) -> str:
        return FAILED if method in failed else _cell(cells.get((name, method)), tested)

    rows = [["method", f"noise-free{' (%)' if numbers.percent else ''}", *whole]] + [
        [
            method,
            FAILED if method in failed else numbers.value(float(clean[method])),
            *(cell(name, method) for name in whole),
        ]
        for method in methods
    ]
    tables = [("Midpoint noise level μ", rows)]
    for kind in dict.fromkeys(name.split(_ON)[0] for name in single):
        own = [name for name in single if name.split(_ON)[0] == kind]
        rows = [["layer", *methods]] + [
            [name.split(_ON, 1)[1], *(cell(name, method) for method in methods)] for name in own
        ]
        tables.append((f"μ of {kind} noise on one layer at a time", rows))
    notes = _notes(middle, confidence, tested)
    if middle["lacking"].any() or len(cells) < len(names) * (len(methods) - len(failed)):
        notes.append(
            f"{ABSENT}, or fewer models in brackets: the others are no better than guessing without noise; "
            "they have no μ and are left out."
        )
    return MidpointTables(notes, tables)


def _notes(middle: pd.DataFrame, confidence: float, tested: bool) -> list[str]:
    seeds = int(middle["n"].max())
    over = f"over {seeds} training seeds" if seeds > 1 else "of the one model, over repeats"
    lines = [
        "μ: the σ at which the metric is half way from noise-free to guessing, by a logistic fitted to each "
        f"model; geometric mean and {100 * confidence:g} % interval {over}."
    ]
    if middle["above"].any() or middle["below"].any():
        lines.append("> or <: some or all models are beyond the levels measured, where the last one counts.")
    if tested:
        lines.append(
            f"{MARK} not significantly below the best (bold) under the same noise, paired by training seed, "
            f"Holm-corrected, {100 * (1 - confidence):g} %."
        )
    return lines


def _cell(row: Mapping[Any, Any] | None, tested: bool) -> str:
    if row is None:
        return ABSENT
    text = _value(row)
    if not (row["above"] or row["below"] or math.isnan(row["low"])):
        low, high = (f"{row[end]:.3g}" if 0 < row[end] < math.inf else "…" for end in ("low", "high"))
        text += f" [{low}, {high}]" if (low, high) != ("…", "…") else ""
    if row["lacking"]:
        text += f" ({row['n']} of {row['n'] + row['lacking']})"
    if row["best"]:
        text = f"**{text}**"
    return f"{text} {MARK}" if (row["marked"] if tested else row["best"]) else text


def _value(row: Mapping[Any, Any]) -> str:
    sign = "> " if row["above"] else "< " if row["below"] else ""
    return f"{sign}{row['mu']:.3g}"


def draw_midpoints(path: Path, middle: pd.DataFrame, confidence: float) -> Path:
    """Draw μ of each layer that is noisy alone as bars, a panel per kind of noise, a bar per method.

    The same frame gives the same file. Artists carry gids: ``bar:METHOD``.

    Raises:
        ResultsError: when the file cannot be written.
    """
    single = middle[middle["noise"].str.contains(_ON)]
    kinds = list(dict.fromkeys(name.split(_ON)[0] for name in single["noise"]))
    methods = list(dict.fromkeys(single["method"]))
    looks = styles(methods)
    layers = max(len(set(single.loc[single["noise"].str.startswith(kind + _ON), "noise"])) for kind in kinds)
    buffer = io.BytesIO()
    with matplotlib.style.context("default"):
        width = max(7.6, 0.28 * layers * (len(methods) + 1) + 2.4)
        figure = Figure(figsize=(width, 4.2 * len(kinds)), layout="constrained")
        FigureCanvasAgg(figure)
        for ax, kind in zip(figure.subplots(len(kinds), 1, squeeze=False).ravel(), kinds, strict=True):
            rows = single[single["noise"].str.startswith(kind + _ON)]
            names = list(dict.fromkeys(rows["noise"]))
            low, high = float(rows["sigma_min"].min()), float(rows["sigma_max"].max())
            step = 0.8 / len(methods)
            for number, method in enumerate(methods):
                own = rows[rows["method"] == method].set_index("noise").reindex(names)
                x = [place + (number - (len(methods) - 1) / 2) * step for place in range(len(names))]
                mu = own["mu"].clip(low, high).to_numpy(float)
                ends = own[["low", "high"]].clip(low, high).to_numpy(float)
                look: dict[str, Any] = {"color": looks[method].color, "alpha": 0.85, "label": method}
                ax.bar(x, mu - low, 0.9 * step, bottom=low, gid=f"bar:{method}", **look)
                ax.vlines(x, ends[:, 0], ends[:, 1], color="#333333", linewidth=0.9)
                for mark, beyond in ((">", own["above"]), ("<", own["below"])):
                    for place, value, marked in zip(x, mu, beyond.eq(True), strict=True):
                        if marked:
                            ax.annotate(mark, (place, value), ha="center", va="bottom", fontsize=8)
            ax.set_yscale("log")
            ax.set_ylim(low, high * 1.5)
            ax.set_xticks(range(len(names)), [name.split(_ON, 1)[1] for name in names])
            ax.set_ylabel("midpoint noise level μ (logarithmic)")
            ax.set_xlabel("the one noisy layer, in the order in which they compute")
            ax.set_title(
                f"{kind[:1].upper()}{kind[1:]} noise on one layer at a time", loc="left", fontweight="bold"
            )
            ax.grid(axis="y", color="#dddddd", linewidth=0.6)
            ax.set_axisbelow(True)
            ax.spines[["top", "right"]].set_visible(False)
            ax.legend(
                frameon=False,
                fontsize=8,
                loc="upper left",
                bbox_to_anchor=(1.0, 1.0),
                title=f"{100 * confidence:g} % intervals;\n> or <: beyond all levels",
                title_fontsize=8,
            )
        figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    write_whole(path, buffer.getvalue())
    return path
