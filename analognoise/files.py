"""Files that appear whole or not at all, the room for them, and locks on them."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from io import FileIO
from pathlib import Path

from analognoise.errors import ResultsError, WriteError

try:
    import fcntl
except ImportError:  # not on every system; there nothing hinders two processes
    fcntl = None  # type: ignore[assignment]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file by way of a neighbour, so that a kill in between leaves no half of it.

    Raises:
        WriteError: when the folder does not exist or cannot be written to.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # what hinders the writing may hinder this, too
            part.unlink(missing_ok=True)


def write_new(path: str | os.PathLike[str], content: bytes, overwrite: bool) -> Path:
    """Write a file as :func:`write_whole`; one that holds the same already stays as it is.

    Raises:
        ResultsError: when the file exists with other content and ``overwrite`` is False, or cannot be
            written.
    """
    file = Path(path)
    if file.exists() and not overwrite:
        if file.is_file() and file.read_bytes() == content:
            return file
        raise ResultsError(f"{file} exists: name another file, or say overwrite=True")
    write_whole(file, content)
    return file


def check_room(path: Path, needed: int, why: str = "") -> None:
    """Raise unless there is room for so many bytes more.

    Args:
        path: a folder, or a file in one.
        needed: bytes.
        why: for what, beginning with a space.

    Raises:
        ResultsError: otherwise.
    """
    free = shutil.disk_usage(path if path.is_dir() else path.parent).free
    if free < needed:
        raise ResultsError(
            f"{path} needs about {needed / 1e6:.3g} MB{why}, and its disk has {free / 1e6:.3g} MB left: make "
            "room, or use another disk"
        )


def why_unwritable(folder: Path) -> str:
    """Why no file can be made in a folder that is there, in words; empty where one can be."""
    if not folder.is_dir():
        return f"{folder} is not a folder"
    if os.access(folder, os.W_OK | os.X_OK):
        return ""
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return f"{folder} is on a read-only file system"
    return f"no permission to write in {folder}"


def lock_file(file: int | FileIO) -> None:
    """Lock an open file or folder against other processes, for as long as it is open; where the system has no
    such locks, do nothing.

    Raises:
        BlockingIOError: when another process holds it.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
