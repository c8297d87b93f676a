"""results.csv: one row per (run, chip, drift time), appended as soon as it is known, and read back after a
kill.

A file only grows. Its last line may be cut short by a kill: that line is dropped with a warning when the file
is next opened, and written again by the run that goes on, so that a run that was killed and resumed leaves
the same bytes as one that was not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

from analognoise.errors import ResultsError
from analognoise.evaluation.row_text import format_rows, header_of, parse_rows
from analognoise.evaluation.rows import AnyRow, Row
from analognoise.files import check_room, lock_file, why_unwritable
from analognoise.printing import counted

R = TypeVar("R", bound=AnyRow)
# About as long as rows are.
_ROW_BYTES = 150


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
        cut_short: whether it ends with a half line, which the next :meth:`append` or :meth:`claim` removes.

    Raises:
        ResultsError: when the file holds something that is not a row, a row twice, or rows of another run.
    """

    run_id: str | None = None
    cut_short = False

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
                if why := why_unwritable(folder):
                    raise ResultsError(f"{self.path} cannot be written: {why}")
                break
        if self.path.exists():
            raw = self.path.read_bytes()
            self.rows, self._length = parse_rows(self.path, raw, run_id, difference, kind)
            self._size = len(raw)
            self.cut_short = self._length < self._size
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
                f"{self.path} cannot be written to ({error.strerror}): what is in it "
                f"({counted(len(self.rows), 'row')}) is sound; make room and run again to go on"
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
        check_room(self.path, rows * _ROW_BYTES, f" for {counted(rows, 'row')}")

    def expect(self, rows: int) -> None:
        """:meth:`claim` the file for rows to come; where none are, only a half line is removed.

        Raises:
            ResultsError: as :meth:`claim`.
        """
        if rows or self.cut_short:
            self.claim(rows)

    def _open(self) -> FileIO:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Without a buffer: what could not be written must not be tried again later.
            file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise ResultsError(f"{self.path} cannot be written to: {error.strerror}") from error
        try:
            try:
                lock_file(file)  # without locks two writers are only found out by the file's size
            except BlockingIOError:
                raise ResultsError(
                    f"another process is writing to {self.path}: wait for it, or use another file"
                ) from None
            if os.fstat(file.fileno()).st_size != self._size:
                raise ResultsError(f"{self.path} was changed by another process since it was read: run again")
            file.truncate(self._length)
            self.cut_short = False
        except BaseException:
            file.close()
            raise
        self._file = file
        return file

    def close(self) -> None:
        """Close the file; a later append opens it again."""
        if self._file is not None:
            # Asked of the file: an interrupt between a write and its count leaves rows that are not counted.
            if os.fstat(self._file.fileno()).st_size == 0:
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
