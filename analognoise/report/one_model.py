"""What the tables of one trained model on many chips share: figures, the cells of a row, and notes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analognoise.printing import number
from analognoise.report.numbers import in_percent


def heading(metric: str) -> str:
    """The metric with its unit: ``"accuracy (%)"``."""
    return f"{metric} (%)" if in_percent(metric) else metric


def figure(metric: str, value: float) -> str:
    """A value of the metric: ``"94.30"`` (percent), ``"0.2713"``."""
    return number(100 * value, ".2f") if in_percent(metric) else number(value, ".4g")


def row_cells(metric: str, row: Mapping[Any, Any]) -> tuple[str, ...]:
    """Mean, interval, standard deviation, worst chip, loss and number of chips, of a row of a summary."""
    mean, low, high, std, worst, drop = (
        figure(metric, row[name]) for name in ("mean", "low", "high", "std", "worst", "drop")
    )
    single = row["n"] == 1
    return mean, "–" if single else f"{low} to {high}", "–" if single else std, worst, drop, str(row["n"])


def interval_note(chips: int) -> str:
    """What the interval is over."""
    if chips == 1:
        return "One chip: no interval, it needs two or more."
    return (
        f"Student-t interval over {chips} chips of one trained model: it says nothing about training it "
        "again."
    )


def metric_notes(metric: str, higher_is_better: bool, test_error: float) -> list[str]:
    """What to know of the figures besides.

    Args:
        metric: its name.
        higher_is_better: its direction; said of the user's own metrics.
        test_error: the largest standard error of the test set's own sampling; NaN where it is not known.
    """
    notes = []
    if test_error == test_error:
        notes.append(
            f"The test set's own sampling adds a standard error of up to {100 * test_error:.2g} % to all, "
            "not in the intervals."
        )
    if metric not in ("accuracy", "loss", "perplexity"):
        notes.append(f"{metric} counts as better when {'larger' if higher_is_better else 'smaller'}.")
    return notes
