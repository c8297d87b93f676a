"""Rows on their way from a worker to the process that writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from analognoise.evaluation.store import R, ResultStore


class Relay(ResultStore[R]):
    """A store that knows some rows and hands new ones on: one process alone writes the file.

    Args:
        known: rows that are there already.
        emit: gets the new rows of each chip as a list.
    """

    def __init__(self, known: Iterable[R], emit: Callable[[list[R]], None]) -> None:
        self.rows = list(known)
        self._index = {row.key: row for row in self.rows}
        self._emit = emit

    def append(self, rows: Iterable[R]) -> None:
        """Hand rows to whoever writes them."""
        new = list(rows)
        if new:
            self._emit(new)

    def claim(self, rows: int = 0) -> None:
        """There is no file here."""

    def close(self) -> None:
        """Nothing is open."""
