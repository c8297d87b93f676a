"""The ranking of layers by what a chip costs them, as a table on the terminal and as GitHub Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table

from analognoise.printing import counted
from analognoise.report.numbers import Numbers, numbers_of
from analognoise.report.onchip import digital_parts, share_on_tiles
from analognoise.report.table import grid
from analognoise.units import format_time

_WORDS = ("layer", "profile")
_LOSSES = ("lost, alone\non tiles", "regained,\nalone digital")
_SHARES = ("share of\nparameters", "share of\nMACs")


@dataclass(frozen=True)
class Facts:
    """What tables and pictures say besides the ranking.

    Attributes:
        metric: name of the metric.
        profile: name of the device, or devices.
        chips: number of chips.
        digital: the digital metric.
        total: rows of time_s, lost, lost_low, lost_high: what all layers together lose.
        confidence: coverage of the intervals.
        model: plain values of the description of the whole model on tiles.
        not_read: layers that no forward called.
    """

    metric: str
    profile: str
    chips: int
    digital: float
    total: pd.DataFrame
    confidence: float
    model: Mapping[str, Any]
    not_read: tuple[str, ...] = ()

    def total_at(self, time: float) -> dict[str, float]:
        """The row of ``total`` at a drift time."""
        rows = self.total[self.total["time_s"] == time].to_dict("records")
        return {str(key): float(value) for key, value in rows[0].items()}


def numbers_at(frame: pd.DataFrame, facts: Facts) -> Numbers:
    """How losses are written: in points for accuracies, else as the metric itself."""
    parts = [
        frame[[name, f"{name}_low", f"{name}_high"]].set_axis(["mean", "low", "high"], axis=1)
        for name in ("alone", "regained")
    ]
    return numbers_of(pd.concat(parts).assign(metric=facts.metric))


def sensitivity_table(frame: pd.DataFrame, facts: Facts, time: float) -> Table:
    """The ranking at one drift time for the terminal.

    Args:
        frame: as :class:`analognoise.evaluation.sensitivity_report.SensitivityReport` gives it.
        facts: of the same report.
        time: one of its drift times, in seconds.
    """
    headings, rows = _cells(frame, facts, time)
    table = Table(
        title=headline(frame, facts, time), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for heading in headings:
        if heading in _WORDS:
            table.add_column(heading, overflow="fold", min_width=min(10, _longest(frame, heading)))
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _longest(frame: pd.DataFrame, column: str) -> int:
    return int(frame[column].str.len().max())


def sensitivity_markdown(frame: pd.DataFrame, facts: Facts, heading: int = 2) -> str:
    """A table per drift time as GitHub Markdown, what the numbers mean below."""
    parts = []
    for time in facts.total["time_s"]:
        headings, rows = _cells(frame, facts, float(time))
        shown = [[cell.replace("\n", " ").replace("|", "\\|") for cell in row] for row in (headings, *rows)]
        parts += [f"{'#' * heading} {headline(frame, facts, float(time))}", grid(shown)]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in notes(facts))]) + "\n"


def headline(frame: pd.DataFrame, facts: Facts, time: float) -> str:
    """What the ranking at a drift time is about, and what all layers together lose."""
    numbers, total = numbers_at(frame, facts), facts.total_at(time)
    after = f" after {format_time(time)}" if time else ""
    unit = "points of accuracy" if numbers.percent and facts.metric == "accuracy" else facts.metric
    unit = f"{facts.metric} in points" if numbers.percent and facts.metric != "accuracy" else unit
    lost = _interval(total, "lost", numbers)
    return f"What each layer costs on {facts.profile}{after}: {unit}; all layers together {lost}"


def notes(facts: Facts) -> list[str]:
    """What a reader must know of the numbers, a sentence each."""
    over = counted(facts.chips, "chip")
    if facts.chips > 1:
        lines = [
            f"Mean ± {100 * facts.confidence:g} % Student-t interval over {over} of differences on the same "
            "chip, each for itself: among many layers some intervals miss by chance."
        ]
    else:
        lines = [f"{over}, too few for an interval."]
    lines.append(
        "Lost: the layer alone on tiles, against digital. Regained: it alone digital, against all on tiles. "
        "Losses of layers need not add up. The intervals hold for this trained model and these test data."
    )
    if facts.not_read:
        names = ", ".join(facts.not_read)
        lines.append(f"NOT READ: the tiles of {names}; what a chip does to them is not in the results.")
    model = facts.model
    lines.append(f"Drift compensation: {model['compensation']}. {share_on_tiles(model)}.")
    lines.append(f"Digital throughout: {digital_parts(model, 8)}.")
    return lines


def _cells(frame: pd.DataFrame, facts: Facts, time: float) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the ranking at one drift time."""
    shown, numbers = frame[frame["time_s"] == time], numbers_at(frame, facts)
    several = frame["profile"].nunique() > 1
    headings = ["layer", *(["profile"] if several else []), *_LOSSES, *_SHARES]
    rows = []
    for row in shown.to_dict("records"):
        losses = [_interval(row, name, numbers) for name in ("alone", "regained")]
        if not row["read"]:
            losses = ["not read", "not read"]
        rows.append(
            [
                str(row["layer"]),
                *([str(row["profile"])] if several else []),
                *losses,
                f"{100 * row['parameter_share']:.1f} %",
                f"{100 * row['mac_share']:.1f} %" if math.isfinite(row["mac_share"]) else "unknown",
            ]
        )
    return headings, rows


def _interval(row: Mapping[Any, Any], name: str, numbers: Numbers) -> str:
    half = (row[f"{name}_high"] - row[f"{name}_low"]) / 2
    value = numbers.value(row[name])
    return f"{value} ± {numbers.value(half)}" if math.isfinite(half) else value
