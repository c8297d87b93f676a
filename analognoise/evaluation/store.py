"""results.csv: one row per (run, chip, drift time), appended as soon as it is known, and read back after a
kill.

A file only grows. Its last line may be cut short by a kill: that line is dropped with a warning when the file
is next opened, and written again by the run that goes on. Anything else that does not read as a row is
damage, and an error that names the line. Numbers are written in their shortest exact form, so that a run that
was killed and resumed leaves the same bytes as one that was not.
"""

from __future__ import annotations

import csv
import io
import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import pandas as pd

from analognoise.errors import ResultsError

try:
    import fcntl
except ImportError:  # not on every system; without it two writers are only found out by the file's size
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class Row:
    """The result of one chip at one drift time.

    Attributes:
        run_id: digest of profile, model, data, metric and settings.
        profile: name of the device profile.
        method: training method, "" when none is named.
        training_seed: seed of the training, None when none is named.
        chip: chip number.
        time_s: drift time in seconds.
        metric: name of the metric.
        sum: the metric's sum over the data.
        count: what the sum is divided by (samples, tokens).
        value: the metric: sum / count, or its exponential for perplexity.
        digital: the metric of the same model computed digitally.
    """

    run_id: str
    profile: str
    method: str
    training_seed: int | None
    chip: int
    time_s: float
    metric: str
    sum: float
    count: float
    value: float
    digital: float

    @property
    def key(self) -> tuple[str, int, float]:
        """What makes a row unique in a file."""
        return self.run_id, self.chip, self.time_s


COLUMNS = tuple(field.name for field in fields(Row))
HEADER = ",".join(COLUMNS) + "\n"
_TEXT = ("run_id", "profile", "method", "metric")
_FLOATS = ("time_s", "sum", "count", "value", "digital")


def format_rows(rows: Iterable[Row]) -> str:
    """The CSV lines of ``rows``, without header.

    Raises:
        ResultsError: when a name holds a line break, or a number is NaN or infinite.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        for name in _TEXT:
            if any(c in getattr(row, name) for c in "\r\n\0"):
                raise ResultsError(
                    f"{name} {getattr(row, name)!r} holds a line break: names in results.csv are one line"
                )
        for name in _FLOATS:
            if not math.isfinite(getattr(row, name)):
                raise ResultsError(
                    f"{name} of chip {row.chip} at {row.time_s:g} s is {getattr(row, name)}: only finite "
                    "numbers are stored"
                )
        writer.writerow([_format(value) for value in astuple(row)])
    return text.getvalue()


def _format(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, (float, np.floating)):
        number = float(value)  # numpy's own repr names its type
        return repr(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)
    return str(value)


def rows_to_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """A DataFrame with the columns of results.csv; training_seed is a nullable integer."""
    frame = pd.DataFrame([astuple(row) for row in rows], columns=list(COLUMNS))
    types = {"chip": "int64", "training_seed": "Int64"} | dict.fromkeys(_FLOATS, "float64")
    return frame.astype(types)


def read_results(path: str | os.PathLike[str]) -> pd.DataFrame:
    """The rows of a results.csv, checked line by line; the file is not changed.

    Raises:
        ResultsError: when the file does not exist, or a line of it is not a row (it names the line).
    """
    file = Path(path)
    if not file.is_file():
        raise ResultsError(f"{file} does not exist: no results to read")
    return rows_to_frame(_parse(file, file.read_bytes(), None)[0])


class ResultStore:
    """An append-only results.csv that a killed run can go on with.

    Nothing is created or changed before the first :meth:`append`. One process may write to a file at a time.

    Args:
        path: the CSV file; it may exist.
        run_id: the one run whose rows the file may hold; None for a file that several runs share.
        difference: says in words what tells a stored row's run from this one, for the refusal.

    Attributes:
        rows: what the file holds, in its order.

    Raises:
        ResultsError: when the file holds something that is not a row, a row twice, or rows of another run.
    """

    run_id: str | None = None

    def __init__(
        self,
        path: str | os.PathLike[str],
        run_id: str | None = None,
        difference: Callable[[Row], str] | None = None,
    ) -> None:
        self.path = Path(path)
        self.run_id = run_id
        self.rows: list[Row] = []
        self._length = 0  # bytes that are sound
        self._size = 0  # bytes that were there when the file was read
        self._file: BinaryIO | None = None
        if self.path.is_dir():
            raise ResultsError(f"{self.path} is a folder: name a CSV file in it")
        for folder in self.path.parents:
            if folder.exists():
                if not (folder.is_dir() and os.access(folder, os.W_OK)):
                    raise ResultsError(
                        f"{self.path} cannot be written: {folder} is not a folder that can be written to"
                    )
                break
        if self.path.exists():
            raw = self.path.read_bytes()
            self.rows, self._length = _parse(self.path, raw, run_id, difference)
            self._size = len(raw)
        self._index = {row.key: row for row in self.rows}

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, key: tuple[str, int, float]) -> bool:
        return key in self._index

    def get(self, run_id: str, chip: int, time_s: float) -> Row | None:
        """The row of a run's chip at a time, or None."""
        return self._index.get((run_id, chip, time_s))

    def of_run(self, run_id: str) -> list[Row]:
        """The rows of one run, in the file's order."""
        return [row for row in self.rows if row.run_id == run_id]

    def append(self, rows: Iterable[Row]) -> None:
        """Write rows and return when they are on the disk; an empty list does nothing.

        Raises:
            ResultsError: when a row is there already, belongs to another run, cannot be stored, or another
                process writes to the file.
        """
        new = list(rows)
        if not new:
            return
        seen = set(self._index)
        for row in new:
            if self.run_id is not None and row.run_id != self.run_id:
                raise ResultsError(f"{self.path} holds run {self.run_id}, not {row.run_id}: use another file")
            if row.key in seen:
                raise ResultsError(
                    f"{self.path} already has chip {row.chip} at {row.time_s:g} s of run {row.run_id}"
                )
            seen.add(row.key)
        data = format_rows(new).encode()
        file = self._file or self._open()
        if self._length == 0:
            data = HEADER.encode() + data
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        self._length += len(data)
        self.rows.extend(new)
        self._index.update((row.key, row) for row in new)

    def _open(self) -> BinaryIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("ab")
        try:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise ResultsError(
                        f"another process is writing to {self.path}: wait for it, or use another file"
                    ) from None
            if os.fstat(file.fileno()).st_size != self._size:
                raise ResultsError(f"{self.path} was changed by another process since it was read: run again")
            file.truncate(self._length)
        except BaseException:
            file.close()
            raise
        self._file = file
        return file

    def close(self) -> None:
        """Close the file; a later append opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._size = self._length

    def __enter__(self) -> ResultStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _parse(
    path: Path, raw: bytes, run_id: str | None, difference: Callable[[Row], str] | None = None
) -> tuple[list[Row], int]:
    """The rows in ``raw`` and the number of its bytes that are whole lines."""
    whole = raw.rfind(b"\n") + 1
    header = HEADER.encode()
    if not raw[: len(header)] == header[: len(raw)]:
        raise ResultsError(
            f"{path}, line 1: found {raw.splitlines()[0][:80]!r}, expected the columns {HEADER.strip()!r}"
        )
    lines = raw[:whole].split(b"\n")[:-1]
    rows: list[Row] = []
    seen: dict[tuple[str, int, float], int] = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            row = _parse_line(line)
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
                f"{path}, line {number}: chip {row.chip} at {row.time_s:g} s of run {row.run_id} is there "
                f"already, in line {seen[row.key]}"
            )
        seen[row.key] = number
        rows.append(row)
    if whole < len(raw):
        warnings.warn(
            f"{path}: the last line (line {len(lines) + 1}) was cut short by a kill and is dropped; its "
            "result is computed again",
            stacklevel=3,
        )
    return rows, whole


def _parse_line(line: bytes) -> Row:
    [values] = csv.reader([line.decode()], strict=True)
    if len(values) != len(COLUMNS):
        raise ValueError(f"found {len(values)} fields, expected {len(COLUMNS)} ({', '.join(COLUMNS)})")
    fields_ = dict(zip(COLUMNS, values, strict=True))
    numbers = {name: _number(name, fields_[name]) for name in _FLOATS}
    if not fields_["run_id"]:
        raise ValueError("run_id is empty")
    if numbers["time_s"] < 0:
        raise ValueError(f"time_s is {numbers['time_s']:g}, expected a time that is not negative")
    if not numbers["count"] > 0:
        raise ValueError(f"count is {numbers['count']:g}, expected more than 0")
    seed = fields_["training_seed"]
    return Row(
        run_id=fields_["run_id"],
        profile=fields_["profile"],
        method=fields_["method"],
        training_seed=_integer("training_seed", seed) if seed else None,
        chip=_integer("chip", fields_["chip"]),
        metric=fields_["metric"],
        **numbers,
    )


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
