"""results.csv: one row per (run, chip, drift time), appended as soon as it is known, and read back after a
kill.

A dataclass says which columns a kind of file has: :class:`Row` where chips drift.

A file only grows. Its last line may be cut short by a kill: that line is dropped with a warning when the file
is next opened, and written again by the run that goes on. Anything else that does not read as a row is
damage, and an error that names the line. Numbers are written in their shortest exact form, so that a run that
was killed and resumed leaves the same bytes as one that was not.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import pandas as pd

from analognoise.errors import ResultsError
from analognoise.evaluation.lock import check_room
from analognoise.report.files import write_new

try:
    import fcntl
except ImportError:  # not on every system; without it two writers are only found out by the file's size
    fcntl = None  # type: ignore[assignment]


class AnyRow(ABC):
    """Base of every kind of row: a frozen dataclass whose fields are str, int, int | None or float, the
    position on the axis not negative, "count" above 0.

    Attributes:
        AXIS: the column with the position on the axis that a run sweeps.
    """

    __slots__ = ()
    AXIS: ClassVar[str]
    run_id: str
    method: str
    training_seed: int | None
    chip: int
    metric: str
    value: float

    @property
    @abstractmethod
    def condition(self) -> str:
        """What the model was measured under, besides the position."""

    @property
    def position(self) -> float:
        """The place on the axis."""
        return float(getattr(self, self.AXIS))

    @property
    @abstractmethod
    def place(self) -> str:
        """The row within its run, in words."""

    @property
    def key(self) -> tuple[str, int, float]:
        """What makes a row unique in a file."""
        return self.run_id, self.chip, self.position


@dataclass(frozen=True, slots=True)
class Row(AnyRow):
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

    AXIS: ClassVar[str] = "time_s"

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
    def condition(self) -> str:
        """The device."""
        return self.profile

    @property
    def place(self) -> str:
        """Chip and time."""
        return f"chip {self.chip} at {self.time_s:g} s"


R = TypeVar("R", bound=AnyRow)
COLUMNS = tuple(field.name for field in fields(Row))
HEADER = ",".join(COLUMNS) + "\n"
# About as long as rows are.
_ROW_BYTES = 150


def header_of(kind: type[AnyRow]) -> str:
    """The first line of a file of such rows."""
    return ",".join(_types(kind)) + "\n"


def _read_types(kind: Any) -> dict[str, str]:
    return {field.name: str(field.type) for field in fields(kind)}


# The type of every column, as the dataclass writes it; asked for with each line.
_types: Callable[[Any], dict[str, str]] = cache(_read_types)


def _of_type(kind: type[AnyRow], wanted: str) -> list[str]:
    return [name for name, found in _types(kind).items() if found == wanted]


def format_rows(rows: Iterable[AnyRow]) -> str:
    """The CSV lines of ``rows``, without header.

    Raises:
        ResultsError: when a name holds a line break, or a number is NaN or infinite.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        for name in _of_type(type(row), "str"):
            if any(c in getattr(row, name) for c in "\r\n\0"):
                raise ResultsError(
                    f"{name} {getattr(row, name)!r} holds a line break: names in results.csv are one line"
                )
        for name in _of_type(type(row), "float"):
            if not math.isfinite(getattr(row, name)):
                raise ResultsError(
                    f"{name} of {row.place} is {getattr(row, name)}: only finite numbers are stored"
                )
        writer.writerow([_format(getattr(row, name)) for name in _types(type(row))])
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


def rows_to_frame(rows: Sequence[AnyRow], kind: type[AnyRow] = Row) -> pd.DataFrame:
    """A DataFrame with the columns of the file; training_seed is a nullable integer."""
    types = {"str": "object", "int": "int64", "int | None": "Int64", "float": "float64"}
    columns = list(_types(kind))
    frame = pd.DataFrame([[getattr(row, name) for name in columns] for row in rows], columns=columns)
    return frame.astype({name: types[found] for name, found in _types(kind).items() if found != "str"})


def read_results(path: str | os.PathLike[str], kind: type[AnyRow] = Row) -> pd.DataFrame:
    """The rows of a results.csv, checked line by line; the file is not changed.

    Raises:
        ResultsError: when the file does not exist, or a line of it is not a row (it names the line).
    """
    file = Path(path)
    if not file.is_file():
        raise ResultsError(f"{file} does not exist: no results to read")
    return rows_to_frame(_parse(file, file.read_bytes(), None, kind=kind)[0], kind)


class ResultStore(Generic[R]):
    """An append-only results.csv that a killed run can go on with.

    Nothing is created or changed before the first :meth:`append`. One process may write to a file at a time.

    Args:
        path: the CSV file; it may exist.
        run_id: the one run whose rows the file may hold; None for a file that several runs share.
        difference: says in words what tells a stored row's run from this one, for the refusal.
        kind: the dataclass of its rows.

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
        difference: Callable[[R], str] | None = None,
        kind: type[R] = Row,  # type: ignore[assignment]
    ) -> None:
        self.path = Path(path)
        self.run_id, self.kind = run_id, kind
        self.rows: list[R] = []
        self._length = 0  # bytes that are sound
        self._size = 0  # bytes that were there when the file was read
        self._file: FileIO | None = None
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
            self.rows, self._length = _parse(self.path, raw, run_id, difference, kind)
            self._size = len(raw)
        self._index = {row.key: row for row in self.rows}

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, key: tuple[str, int, float]) -> bool:
        return key in self._index

    def get(self, run_id: str, chip: int, position: float) -> R | None:
        """The row of a run's chip at a time, or whatever the axis is, or None."""
        return self._index.get((run_id, chip, position))

    def of_run(self, run_id: str) -> list[R]:
        """The rows of one run, in the file's order."""
        return [row for row in self.rows if row.run_id == run_id]

    def append(self, rows: Iterable[R]) -> None:
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
                raise ResultsError(f"{self.path} already has {row.place} of run {row.run_id}")
            seen.add(row.key)
        data = format_rows(new).encode()
        file = self._file or self._open()
        if self._length == 0:
            data = header_of(self.kind).encode() + data
        try:
            written = 0
            while written < len(data):
                written += file.write(data[written:])
            os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                file.truncate(self._length)  # where it cannot be, the next run drops the half line
            raise ResultsError(
                f"{self.path} cannot be written to ({error.strerror}): the {len(self.rows)} rows in it are "
                "sound; make room and run again to go on"
            ) from error
        self._length += len(data)
        self.rows.extend(new)
        self._index.update((row.key, row) for row in new)

    def claim(self, rows: int = 0) -> None:
        """Hold the file against other writers from now on, and make sure that it can be written to.

        A file that is not there is made, and removed by :meth:`close` if nothing was written to it.

        Args:
            rows: how many are to come: there must be room for them.

        Raises:
            ResultsError: when another process writes to it, or it cannot be written.
        """
        if self._file is None:
            self._open()
        check_room(self.path, rows * _ROW_BYTES, f" for {rows} rows")

    def _open(self) -> FileIO:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Without a buffer: what could not be written must not be tried again later.
            file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise ResultsError(f"{self.path} cannot be written to: {error.strerror}") from error
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
            if self._length == 0:
                self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None
            self._size = self._length

    def __enter__(self) -> ResultStore[R]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _parse(
    path: Path,
    raw: bytes,
    run_id: str | None,
    difference: Callable[[Any], str] | None = None,
    kind: type[Any] = Row,
) -> tuple[list[Any], int]:
    """The rows in ``raw`` and the number of its bytes that are whole lines."""
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
    for number, line in enumerate(lines[1:], start=2):
        try:
            row = _parse_line(line, kind)
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
        rows.append(row)
    if whole < len(raw):
        warnings.warn(
            f"{path}: the last line (line {len(lines) + 1}) was cut short by a kill and is dropped; its "
            "result is computed again",
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
    types = _types(kind)
    if len(values) != len(types):
        raise ValueError(f"found {len(values)} fields, expected {len(types)} ({', '.join(types)})")
    found: dict[str, Any] = dict(zip(types, values, strict=True))
    for name in _of_type(kind, "float"):
        found[name] = _number(name, found[name])
    for name in _of_type(kind, "int"):
        found[name] = _integer(name, found[name])
    for name in _of_type(kind, "int | None"):
        found[name] = _integer(name, found[name]) if found[name] else None
    if not found["run_id"]:
        raise ValueError("run_id is empty")
    if found[kind.AXIS] < 0:
        raise ValueError(f"{kind.AXIS} is {found[kind.AXIS]:g}, expected a number that is not negative")
    if not found["count"] > 0:
        raise ValueError(f"count is {found['count']:g}, expected more than 0")
    return kind(**found)


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
