"""Measured conductances: read from a CSV file or a data frame, checked row by row.

A file is read in pieces of a million rows, of which only numbers are kept.
"""

from __future__ import annotations

import csv
import gzip
import os
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analognoise.errors import DataError
from analognoise.fitting.columns import Columns, understand
from analognoise.printing import counted

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
_ROWS = 1_000_000
_ADVICE = {
    "target": "give the conductance that was aimed at",
    "time": "count from the end of programming",
    "conductance": "leave out reads that failed; where noise around zero makes reads negative, "
    "let them count as zero with --clamp-negative (clamp_negative=True)",
}


@dataclass(frozen=True)
class Measurements:
    """Reads of programmed devices.

    Attributes:
        where: the file, or another name of where they come from.
        unit: of all conductances, "uS" or "nA".
        state: of each read, the index of what was read: one device programmed to one target.
        time: age of each read in seconds, as the file counts it.
        conductance: of each read.
        target: of each state.
        devices: number of different devices.
        clamped: number of negative reads that were set to zero.
        dropped: number of reads that stood there before and were left out.
        unused: headings of columns that were not used.
        names: headings of target and conductance, for messages.
        origin: from the index of a read, as long as none was dropped, to its place and its device's name.
    """

    where: str
    unit: str
    state: Integers
    time: Floats
    conductance: Floats
    target: Floats
    devices: int
    clamped: int = 0
    dropped: int = 0
    unused: tuple[str, ...] = ()
    names: tuple[str, str] = ("target_uS", "conductance_uS")
    origin: Callable[[int], tuple[str, str]] | None = None

    @property
    def rows(self) -> int:
        """Number of reads."""
        return len(self.conductance)


def read_measurements(
    source: str | os.PathLike[str] | pd.DataFrame,
    *,
    target_unit: str | None = None,
    conductance_unit: str | None = None,
    clamp_negative: bool = False,
) -> Measurements:
    """Measurements from a CSV file (also gzipped) or a data frame, in the long or the wide form.

    Args:
        source: the file, or a frame with the same columns.
        target_unit: unit of the targets, in place of the one in their heading.
        conductance_unit: likewise for the conductances.
        clamp_negative: whether negative reads count as zero, instead of being refused.

    Raises:
        DataError: when the file cannot be read, a column is missing, or a cell is not what it must be; the
            message names file, line, column and what was found.
    """
    if isinstance(source, pd.DataFrame):
        columns = understand(list(source.columns), "the frame", target_unit, conductance_unit)
        table = source.iloc[:, list(columns.used)].set_axis(list(columns.used), axis=1)
        place: _Place = _FramePlace(source, columns)
        pieces = iter([table.astype({columns.device: "category"})])
    else:
        place = _FilePlace(Path(source))
        columns = understand(place.headings, place.where, target_unit, conductance_unit)
        place.columns = columns
        pieces = _pieces(place, columns)
    return _gather(pieces, columns, place, clamp_negative)


class _Place(ABC):
    """Where a wrong cell stands, in words."""

    where: str
    columns: Columns

    @abstractmethod
    def records(self) -> Iterator[tuple[str, list[str]]]:
        """Place and cells of each row."""

    def refuse(self, clamp_negative: bool) -> DataError:
        """The error about the first cell that is not what it must be."""
        for place, cells in self.records():
            problem = _problem(cells, self.columns, clamp_negative)
            if problem:
                return DataError(f"{place}: {problem}")
        return DataError(f"{self.where} cannot be read as numbers")


class _FilePlace(_Place):
    def __init__(self, path: Path) -> None:
        self.path, self.where = path, str(path)
        self.separator, self.headings, self.first = _header(path)

    def records(self) -> Iterator[tuple[str, list[str]]]:
        with _open(self.path) as file:
            reader = csv.reader(file, delimiter=self.separator, skipinitialspace=True)
            for cells in reader:
                if reader.line_num > self.first and cells and not cells[0].startswith("#"):
                    yield f"{self.where}, line {reader.line_num}", cells


class _FramePlace(_Place):
    where = "the frame"

    def __init__(self, frame: pd.DataFrame, columns: Columns) -> None:
        self.frame, self.columns = frame, columns

    def records(self) -> Iterator[tuple[str, list[str]]]:
        for number, row in enumerate(self.frame.itertuples(index=False, name=None)):
            yield f"the frame, row {number}", ["" if pd.isna(cell) else str(cell) for cell in row]


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _header(path: Path) -> tuple[str, list[str], int]:
    """Separator, headings and line number of the first line that is neither empty nor a comment."""
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip() and not line.startswith("#"):
                    separator = max(",;\t", key=line.count)
                    return separator, next(csv.reader([line], delimiter=separator)), number
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text: measurements are a CSV file") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    raise DataError(f"{path} is empty: it must begin with a line of headings")


def _pieces(place: _FilePlace, columns: Columns) -> Iterator[pd.DataFrame]:
    kinds: dict[Any, Any] = dict.fromkeys(range(len(columns.names)), "category")
    kinds |= dict.fromkeys((index for index in columns.used if index != columns.device), np.float64)
    try:
        with _open(place.path) as file:
            for _ in range(place.first):
                file.readline()
            reader = pd.read_csv(
                file,
                sep=place.separator,
                header=None,
                names=list(range(len(columns.names))),  # and no usecols, with which rows may be too long
                index_col=False,
                dtype=kinds,
                comment="#",
                skipinitialspace=True,
                chunksize=_ROWS,
            )
            while True:
                with warnings.catch_warnings():
                    # Of cells beyond the headings pandas only warns, and drops them.
                    warnings.simplefilter("error", pd.errors.ParserWarning)
                    piece = next(reader, None)
                if piece is None:
                    break
                yield piece
    except (ValueError, UnicodeDecodeError, pd.errors.ParserWarning) as error:
        refused = place.refuse(True)
        known = str(refused) != f"{place.where} cannot be read as numbers"
        raise refused if known else DataError(f"{place.where} cannot be read: {error}") from None


def _gather(
    pieces: Iterator[pd.DataFrame], columns: Columns, place: _Place, clamp_negative: bool
) -> Measurements:
    codes: dict[Any, int] = {}
    devices: list[NDArray[np.int32]] = []
    targets: list[Floats] = []
    ages: list[Floats] = []
    conductances: list[Floats] = []
    rows: list[Integers] = []  # of each read, in the wide form
    clamped = begin = 0
    for piece in pieces:
        names = piece[columns.device].cat
        known = np.array([codes.setdefault(str(name), len(codes)) for name in names.categories], np.int32)
        code = names.codes.to_numpy()
        try:
            target = piece[columns.target].to_numpy(np.float64)
            reads = piece[list(columns.reads)].to_numpy(np.float64)
            age = None if columns.time is None else piece[columns.time].to_numpy(np.float64)
        except (TypeError, ValueError):
            raise place.refuse(clamp_negative) from None
        taken = np.isfinite(reads) if age is None else np.ones(reads.shape, bool)
        wrong = (code < 0) | ~(target >= 0) | ~np.isfinite(target)
        wrong |= (np.isinf(reads) | (reads < 0 if not clamp_negative else False)).any(axis=1)
        if age is not None:
            wrong |= ~(age >= 0) | ~np.isfinite(age) | np.isnan(reads[:, 0])
        if wrong.any():
            raise place.refuse(clamp_negative)
        row, column = np.nonzero(taken)
        if age is None:
            rows.append(begin + row)
        begin += len(piece)
        values = reads[row, column] * columns.conductance_factor
        clamped += int((values < 0).sum())
        devices.append(known[code][row])
        targets.append(target[row] * columns.target_factor)
        ages.append(np.array(columns.ages)[column] if age is None else age * columns.time_factor)
        conductances.append(np.maximum(values, 0.0))
    if not sum(map(len, devices)):
        raise DataError(f"{place.where} holds no reads: there must be a row for each device or read")
    row_of = np.concatenate(rows) if rows else None

    def origin(read: int) -> tuple[str, str]:
        number = read if row_of is None else int(row_of[read])
        where, cells = next(islice(place.records(), number, None))
        return where, cells[columns.device].strip()

    device, target = np.concatenate(devices), np.concatenate(targets)
    state, of_state = _states(device, target, len(codes))
    return Measurements(
        where=place.where,
        unit=columns.unit,
        state=state,
        time=np.concatenate(ages),
        conductance=np.concatenate(conductances),
        target=of_state,
        devices=len(codes),
        clamped=clamped,
        unused=columns.unused,
        names=(columns.names[columns.target], columns.names[columns.reads[0]]),
        origin=origin,
    )


def _states(device: NDArray[np.int32], target: Floats, devices: int) -> tuple[Integers, Floats]:
    """Which device was programmed to which target: an index for each read, and the targets by index."""
    first = np.full(devices, np.nan)
    first[device] = target
    if np.array_equal(first[device], target):
        return device.astype(np.int64), first
    levels, level = np.unique(target, return_inverse=True)
    keys, state = np.unique(device.astype(np.int64) * len(levels) + level, return_inverse=True)
    return state.astype(np.int64), levels[keys % len(levels)]


def _problem(cells: list[str], columns: Columns, clamp_negative: bool) -> str | None:
    """What is wrong in a row, None where nothing is."""
    if len(cells) > len(columns.names):
        return f"has {counted(len(cells), 'cell')} but the heading has {len(columns.names)}"
    roles = [("device", columns.device), ("target", columns.target)]
    roles += [("time", columns.time)] if columns.time is not None else []
    roles += [("conductance", index) for index in columns.reads]
    for role, index in roles:
        cell = cells[index].strip() if index < len(cells) else ""
        name = columns.names[index]
        if role == "device":
            if not cell:
                return f"{name} is empty but must name the device"
            continue
        if not cell and columns.ages and role == "conductance":
            continue
        try:
            value = float(cell)
        except ValueError:
            value = np.nan
        if np.isfinite(value) and (value >= 0 or (role == "conductance" and clamp_negative)):
            continue
        found = cell or "empty"
        if re.fullmatch(r"[+-]?\d+,\d+", cell):
            found += " (numbers have a point, as in 0.5)"
        return f"{name} is {found} but must be a number of at least 0: {_ADVICE[role]}"
    return None
