"""Files that appear whole or not at all."""

from __future__ import annotations

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
