"""The summary as a table: on the terminal, as GitHub Markdown, and as CSV.

One row per method; first its digital metric, then one column per drift time or noise level. Accuracies are in
percent. The best of each column is bold, and it and every method not significantly worse carry the same mark.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from analognoise.crossbar.compensation import DEFAULT, split_name
from analognoise.files import write_whole
from analognoise.report.layout import layout_of
from analognoise.report.numbers import Numbers
from analognoise.report.summary import (
    COLUMNS,
    MARK,
    Cell,
    Section,
    counts,
    has_intervals,
    label,
    only_section,
    sampling_error,
    sections,
)

FAILED = "failed"
ABSENT = "–"
STUDENT = "Student-t"
_NAMES = 22  # characters of a line of a method's name where room is short


def terminal_table(
    frame: pd.DataFrame,
    *,
    compensation: str | None = None,
    confidence: float = 0.95,
    interval: str = STUDENT,
    width: int | None = None,
) -> Table:
    """One profile, or one family of noise levels, as a table for the terminal, with its notes as the caption.

    Each cell holds mean ± half width of the interval and, dim on a second line, the change from the method's
    digital metric.

    Args:
        frame: summary frame with one row per method and drift time.
        compensation: the drift compensations used, with commas; the caption names the section's.
        confidence: level of the frame's intervals.
        interval: whose they are.
        width: columns of the terminal. A table that needs more puts the half widths on lines of their own,
            and breaks long names of methods between hyperparameters. None: no limit.

    Raises:
        ResultsError: when the frame is not a summary, or holds several profiles that are no family.
    """
    section = only_section(frame)
    table = _fitting(section, width)
    table.caption = "\n".join(notes(section, compensation, confidence, interval, change="below it"))
    return table


def print_summary(
    frame: pd.DataFrame,
    console: Console | None = None,
    *,
    compensation: str | None = None,
    confidence: float = 0.95,
    interval: str = STUDENT,
) -> None:
    """Print a table per profile, and below each what its numbers mean. What is wider than the console is cut
    into several tables, each with some of the columns.

    Raises:
        ResultsError: when the frame is not a summary.
    """
    console = console or Console()
    for section in sections(frame):
        for table in _several(section, console.width):
            console.print(table)
        for line in notes(section, compensation, confidence, interval, change="below it"):
            console.print(Text(line, style="dim"))
        console.print()


def markdown_table(
    frame: pd.DataFrame,
    *,
    compensation: str | None = None,
    confidence: float = 0.95,
    interval: str = STUDENT,
    heading: int = 3,
) -> str:
    """The same tables as GitHub Markdown, each under a heading of the given level, its notes below.

    Raises:
        ResultsError: when the frame is not a summary.
    """
    parts = []
    for section in sections(frame):
        rows = [["method", section.layout.undisturbed, *section.labels]]
        for method in section.methods:
            cells = [_markdown(cell, section) for cell in section.row(method)]
            digital = " ± ".join(part for part in _digital(section.first(method), section.numbers) if part)
            rows.append([label(method).replace("|", "\\|"), digital, *cells])
        lines = notes(section, compensation, confidence, interval, change="in brackets")
        parts += [f"{'#' * heading} {_title(section)}", grid(rows), "\n".join(f"- {line}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def summary_csv(frame: pd.DataFrame, path: str | os.PathLike[str]) -> Path:
    """Write the summary frame, all digits kept, known columns first; the file appears whole or not at all.

    Raises:
        ResultsError: when the frame is not a summary, or the file cannot be written.
    """
    sections(frame)
    path = Path(path)
    names = layout_of(frame).names
    known = [found for column in COLUMNS if (found := names.get(column, column)) in frame.columns]
    ordered = frame[[*known, *(column for column in frame.columns if column not in known)]]
    write_whole(path, ordered.to_csv(index=False, lineterminator="\n").encode())
    return path


def notes(
    section: Section, compensation: str | None, confidence: float, interval: str, change: str
) -> list[str]:
    """What a reader must know of the numbers, a sentence each; ``change`` says where the change stands."""
    over, base = counts(section), section.layout.undisturbed
    if has_intervals(section):
        lines = [
            f"Mean ± {100 * confidence:g} % {interval} interval over {over}; {change}: change from {base}."
        ]
        if section.first(section.methods[0]).unit == section.layout.unit:
            lines.append("One trained model: the interval says nothing about training it again.")
    else:
        lines = [f"Mean over {over}, too few for an interval; {change}: change from {base}."]
    if section.tested:
        lines.append(
            f"{MARK} not significantly worse than the best (bold) of its column, "
            f"paired by training seed, Holm-corrected, {100 * (1 - confidence):g} %."
        )
    elif len(section.methods) > 1:
        lines.append(f"Bold and {MARK}: best of its column; testing the others needs two training seeds.")
    error = sampling_error(section)
    if error:
        lines.append(f"Not in the intervals: the test set's own sampling, a standard error of up to {error}.")
    broken = [m for m in section.methods if any(cell and cell.failed for cell in section.row(m))]
    if broken:
        lines.append(f"Failed (training or evaluation broke down): {', '.join(map(label, broken))}.")
    if compensation is not None:
        # Of several, each but the default stands behind the device's name.
        named = split_name(section.name)[1] or (DEFAULT if "," in compensation else compensation)
        lines.append(f"Drift compensation: {named}.")
    return lines


def _title(section: Section) -> str:
    return f"{section.title}{' (%)' if section.numbers.percent else ''}"


def _fitting(section: Section, width: int | None) -> Table:
    """The section's table; with half widths below the means, and names on several lines, when it would not
    fit otherwise.
    """
    table = _table(section, stacked=False)
    for names in (None, _NAMES):
        if width is None or _width(table) <= width:
            break
        table = _table(section, stacked=True, names=names)
    return table


def _several(section: Section, width: int) -> list[Table]:
    """The section's table, or as few as fit, each with some of the columns."""
    tables, count = [_fitting(section, width)], len(section.positions)
    for each in range(count - 1, 0, -1):
        if all(_width(table) <= width for table in tables):
            break
        parts = [slice(start, start + each) for start in range(0, count, each)]
        tables = [_table(section, stacked=True, names=_NAMES, part=part) for part in parts]
    return tables


def _width(table: Table) -> int:
    console = Console(width=100_000)
    return Measurement.get(console, console.options, table).maximum


def _table(section: Section, stacked: bool, names: int | None = None, part: slice = slice(None)) -> Table:
    """The section's table; with lines of at most ``names`` characters for the methods, and with the columns
    of one part.
    """
    table = Table(
        title=_title(section),
        title_style="bold",
        title_justify="left",
        caption_style="dim",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    columns = [_digital_column(section, stacked)]
    for position in section.positions[part]:
        cells = [section.cells.get((method, position)) for method in section.methods]
        columns.append(_column(cells, section, stacked))
    table.add_column("method", overflow="fold")
    for heading in (section.layout.undisturbed, *section.labels[part]):
        table.add_column(heading, no_wrap=True)
    for method, *texts in zip(section.methods, *columns, strict=True):
        table.add_row(Text(_broken(label(method), names)), *texts)
    return table


def _broken(name: str, width: int | None) -> str:
    """A method's name on lines of that many characters, ended after its colons; longer parts stay whole."""
    lines = [""]
    for part in re.split(r"(?<=:)", name):
        if width is not None and lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _digital_column(section: Section, stacked: bool) -> list[Text]:
    pairs = [_digital(section.first(method), section.numbers) for method in section.methods]
    values, halves = (_align(texts) for texts in zip(*pairs, strict=True))
    return [_lines(value, half, "", "", stacked) for value, half in zip(values, halves, strict=True)]


def _column(cells: Sequence[Cell | None], section: Section, stacked: bool) -> list[Text]:
    """The texts of one column, numbers below each other aligned at their points."""
    numbers = section.numbers
    shown = [cell for cell in cells if cell is not None and not cell.failed]
    pairs = [text for cell in shown for text in (numbers.value(cell.mean), _change(cell, numbers))]
    aligned = _align(pairs)
    halves = _align([_half(cell.mean, cell.low, cell.high, numbers) for cell in shown])
    texts = iter(
        _lines(value, half, section.mark(cell), change, stacked, best=section.best(cell))
        for cell, value, change, half in zip(shown, aligned[::2], aligned[1::2], halves, strict=True)
    )
    absent, broken = Text(ABSENT, style="dim"), Text(FAILED, style="red")
    return [absent if cell is None else broken if cell.failed else next(texts) for cell in cells]


def _lines(value: str, half: str, mark: str, change: str, stacked: bool, best: bool = False) -> Text:
    half, mark = half if half.strip() else "", f" {mark}" if mark else ""
    text = Text(style="bold" if best else "")
    if stacked:
        text.append(value + mark)
        text.append(f"\n± {half.strip()}" if half else "", style="not bold")
    else:
        text.append((f"{value} ± {half}" if half else value) + mark)
    text.append(f"\n{change}" if change.strip() else "", style="dim not bold")
    return text


def _markdown(cell: Cell | None, section: Section) -> str:
    if cell is None:
        return ABSENT
    if cell.failed:
        return FAILED
    half = _half(cell.mean, cell.low, cell.high, section.numbers)
    value = section.numbers.value(cell.mean) + (f" ± {half}" if half else "")
    change = _change(cell, section.numbers)
    parts = [
        f"**{value}**" if section.best(cell) else value,
        section.mark(cell),
        f"({change})" * bool(change),
    ]
    return " ".join(part for part in parts if part)


def _digital(cell: Cell, numbers: Numbers) -> tuple[str, str]:
    """The digital metric and the half width of its interval."""
    if not math.isfinite(cell.digital):
        return FAILED, ""
    half = _half(cell.digital, cell.digital_low, cell.digital_high, numbers)
    return numbers.value(cell.digital), half


def _half(middle: float, low: float, high: float, numbers: Numbers) -> str:
    half = max(high - middle, middle - low)  # that of equal chips is wider on one side
    return numbers.value(half) if math.isfinite(half) else ""


def _change(cell: Cell, numbers: Numbers) -> str:
    change = cell.mean - cell.digital
    return numbers.change(change) if math.isfinite(change) else ""


def _align(texts: Sequence[str]) -> list[str]:
    width = max(map(len, texts), default=0)
    return [text.rjust(width) for text in texts]


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Markdown rows padded so that the source reads as a table too: first column left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for first, *others in (rows[0], rule, *rows[1:]):
        numbers = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        lines.append(f"| {' | '.join([first.ljust(widths[0]), *numbers])} |")
    return "\n".join(lines)
