"""Folders that one process at a time works in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from analognoise.errors import ResultsError
from analognoise.files import lock_file


@contextmanager
def held(folder: Path, name: Path | None = None) -> Iterator[None]:
    """Make a folder and hold it against other processes; the lock is gone with its process, however it ends.

    A folder that was made here and is still empty at the end is removed again, and likewise those around it.

    Args:
        folder: what is locked.
        name: what it is called in the refusal, where that is another.

    Raises:
        ResultsError: when it cannot be made, or another process holds it.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ResultsError(f"cannot write to folder {name or folder}: {error.strerror}") from error
    try:
        try:
            lock_file(handle)  # without locks two runs in one folder are found out by results.csv only
        except BlockingIOError:
            raise ResultsError(
                f"another process is working in {name or folder}: wait for it, or choose another folder"
            ) from None
        yield
    finally:
        for place in made:
            with suppress(OSError):  # not empty
                place.rmdir()
        os.close(handle)
