"""Rows as CSV text, and back.

Numbers are written in their shortest exact form: the same rows are the same bytes. At each time, or whatever
the axis is, a run's chips come from 0 on, one after the other. What is otherwise is damage, and an error that
names the line; only a last line that a kill cut short is dropped, with a warning.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from analognoise.errors import ResultsError
from analognoise.evaluation.rows import AnyRow, Row, column_types, columns_of_type, rows_to_frame
from analognoise.files import write_new
from analognoise.printing import counted

R = TypeVar("R", bound=AnyRow)


def header_of(kind: type[AnyRow]) -> str:
    """The first line of a file of such rows."""
    return ",".join(column_types(kind)) + "\n"


def format_rows(rows: Iterable[AnyRow]) -> str:
    """The CSV lines of ``rows``, without header.

    Raises:
        ResultsError: when a name holds a line break, or a number is NaN or infinite.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        for name in columns_of_type(type(row), "str"):
            if any(c in getattr(row, name) for c in "\r\n\0"):
                raise ResultsError(
                    f"{name} {getattr(row, name)!r} holds a line break: names in results.csv are one line"
                )
        for name in columns_of_type(type(row), "float"):
            if not math.isfinite(getattr(row, name)):
                raise ResultsError(
                    f"{name} of {row.place} is {getattr(row, name)}: only finite numbers are stored"
                )
        writer.writerow([_format(getattr(row, name)) for name in column_types(type(row))])
    return text.getvalue()


def _format(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, (float, np.floating)):
        number = float(value)  # numpy's own repr names its type
        return repr(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)
    return str(value)


def write_rows(
    path: str | os.PathLike[str], rows: Sequence[AnyRow], kind: type[AnyRow] = Row, overwrite: bool = False
) -> Path:
    """Write rows as a CSV file, which appears whole or not at all.

    Raises:
        ResultsError: when the file exists with other content and ``overwrite`` is False, or cannot be
            written.
    """
    return write_new(path, (header_of(kind) + format_rows(rows)).encode(), overwrite)


def read_rows(path: str | os.PathLike[str], kind: type[R] = Row) -> list[R]:  # type: ignore[assignment]
    """The rows of a results.csv, checked line by line; the file is not changed.

    Raises:
        ResultsError: when the file does not exist, or a line of it is not a row (it names the line).
    """
    file = Path(path)
    if not file.is_file():
        raise ResultsError(f"{file} does not exist: no results to read")
    return parse_rows(file, file.read_bytes(), None, kind=kind)[0]


def read_results(path: str | os.PathLike[str], kind: type[AnyRow] = Row) -> pd.DataFrame:
    """As :func:`read_rows`, as a data frame with the columns of the file."""
    return rows_to_frame(read_rows(path, kind), kind)


def parse_rows(
    path: Path,
    raw: bytes,
    run_id: str | None,
    difference: Callable[[Any], str] | None = None,
    kind: type[Any] = Row,
) -> tuple[list[Any], int]:
    """The rows in a file's content ``raw`` and the number of its bytes that are whole lines.

    Args:
        path: the file, for messages.
        raw: what it holds.
        run_id: the one run whose rows it may hold; None for any.
        difference: says in words what tells a row's run from that one.
        kind: the dataclass of the rows.

    Raises:
        ResultsError: when a line is not a row, is there twice, is of another run, or comes before one that
            it follows (it names the line).
    """
    whole = raw.rfind(b"\n") + 1
    columns = header_of(kind)
    header = columns.encode()
    if raw.startswith(codecs.BOM_UTF8):
        raise ResultsError(
            f"{path}, line 1: begins with a byte order mark, as a spreadsheet may save it; restore the file "
            "or delete it"
        )
    _check_bytes(path, raw[:whole])
    if not raw[: len(header)] == header[: len(raw)]:
        raise ResultsError(
            f"{path}, line 1: found {raw.splitlines()[0][:80]!r}, expected the columns {columns.strip()!r}"
        )
    lines = raw[:whole].split(b"\n")[:-1]
    rows: list[Any] = []
    seen: dict[tuple[str, int, float], int] = {}
    first: dict[str, tuple[int, Any]] = {}
    chips: Counter[tuple[str, float]] = Counter()
    for number, line in enumerate(lines[1:], start=2):
        try:
            row: Any = _parse_line(line, kind)
        except (ValueError, csv.Error) as problem:
            raise ResultsError(f"{path}, line {number}: {problem}; restore the file or delete it") from None
        if run_id is not None and row.run_id != run_id:
            why = difference(row) if difference else "another model, profile, data, metric or setting"
            raise ResultsError(
                f"{path}, line {number}: holds run {row.run_id}, but this is run {run_id} ({why}): "
                "use another file"
            )
        if row.key in seen:
            raise ResultsError(
                f"{path}, line {number}: {row.place} of run {row.run_id} is there "
                f"already, in line {seen[row.key]}"
            )
        seen[row.key] = number
        series = row.run_id, row.position
        if row.chip != chips[series]:
            raise ResultsError(
                f"{path}, line {number}: found {row.place} of run {row.run_id}, but "
                f"{replace(row, chip=chips[series]).place} should be there before it: a line is missing, out "
                "of order or changed; restore the file or delete it"
            )
        chips[series] += 1
        if differs := _difference(row, *first.setdefault(row.run_id, (number, row))):
            raise ResultsError(f"{path}, line {number}: {differs}; restore the file or delete it")
        rows.append(row)
    written = format_rows(rows).encode().split(b"\n")
    for number, (line, expected) in enumerate(zip(lines[1:], written, strict=False), start=2):
        if line != expected:
            raise ResultsError(
                f"{path}, line {number}: found {line!r}, which is written as {expected!r}; restore the file "
                "or delete it"
            )
    if whole < len(raw):
        warnings.warn(
            f"{path}: the last line (line {len(lines) + 1}) was cut short by a kill and is dropped; its "
            "result is computed again where it is asked for",
            stacklevel=3,
        )
    return rows, whole


def _check_bytes(path: Path, raw: bytes) -> None:
    """Raise at the first byte that no row holds: what a spreadsheet or a damaged disk leaves."""
    for byte, what in (
        (b"\r", "a carriage return (Windows line ends, as a spreadsheet may save them)"),
        (b"\0", "a NUL byte"),
    ):
        if byte in raw:
            line = raw.count(b"\n", 0, raw.index(byte)) + 1
            raise ResultsError(f"{path}, line {line}: holds {what}; restore the file or delete it")


def _parse_line(line: bytes, kind: type[AnyRow]) -> AnyRow:
    [values] = csv.reader([line.decode()], strict=True)
    types = column_types(kind)
    if len(values) != len(types):
        raise ValueError(f"found {counted(len(values), 'field')}, expected {len(types)} ({', '.join(types)})")
    found: dict[str, Any] = dict(zip(types, values, strict=True))
    for name in columns_of_type(kind, "float"):
        found[name] = _number(name, found[name])
    for name in columns_of_type(kind, "int"):
        found[name] = _integer(name, found[name])
    for name in columns_of_type(kind, "int | None"):
        found[name] = _integer(name, found[name]) if found[name] else None
    if not found["run_id"]:
        raise ValueError("run_id is empty")
    if found[kind.AXIS] < 0:
        raise ValueError(f"{kind.AXIS} is {found[kind.AXIS]:g}, expected a number that is not negative")
    if not found["count"] > 0:
        raise ValueError(f"count is {found['count']:g}, expected more than 0")
    total, count, value = found["sum"], found["count"], found["value"]
    if not _makes(found["metric"], total / count, value):
        raise ValueError(
            f"value is {value!r}, which the sum {total!r} over the count {count!r} does not make"
        )
    return kind(**found)


def _makes(metric: str, mean: float, value: float) -> bool:
    if metric != "perplexity":
        return value == mean
    # Machines may differ in the last bits of an exponential.
    return value > 0 and math.isclose(math.log(value), mean, rel_tol=1e-9, abs_tol=1e-9)


def _difference(row: AnyRow, number: int, first: AnyRow) -> str:
    """In words, what tells a row from the first of the same run that all of its rows have in common."""
    varying = {"chip", row.AXIS, "sum", "count", "value"}
    for name in column_types(type(row)):
        here, there = getattr(row, name), getattr(first, name)
        if name not in varying and here != there:
            return f"{name} is {here!r}, but {there!r} in line {number} of the same run"
    return ""


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name} is {text!r}, expected a finite number")
    return value


def _integer(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{name} is {text!r}, expected a whole number that is not negative")
    return int(text)
