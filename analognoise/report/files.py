"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from analognoise.errors import ResultsError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file by way of a neighbour, so that a kill in between leaves no half of it.

    Raises:
        ResultsError: when the folder does not exist or cannot be written to.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ResultsError(f"cannot write {path}: {error.strerror or error}") from error


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
