"""``analognoise report``: tables and pictures out of what is stored, without computing anything else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from analognoise.comparison import conclude, conclude_faults, conclude_noise
from analognoise.comparison.folder import MODELS
from analognoise.errors import ResultsError, WriteError
from analognoise.evaluation.lock import held
from analognoise.jobs.compare import Compared
from analognoise.jobs.evaluated import evaluated_again
from analognoise.jobs.folder import read_run
from analognoise.jobs.output import Output
from analognoise.jobs.sensitivity import rank_again

# How each command's tables are made again, and what of its folder a run holds against other processes.
_COMMANDS: dict[str, tuple[Callable[[Path, dict[str, Any], bool], Output], str]] = {
    "compare": (lambda folder, _, write: Compared(conclude(folder, write=write)), MODELS),
    "faults": (lambda folder, _, write: Compared(conclude_faults(folder, write=write)), MODELS),
    "noise-sweep": (lambda folder, _, write: Compared(conclude_noise(folder, write=write)), MODELS),
    "evaluate": (evaluated_again, ""),
    "sensitivity": (rank_again, ""),
}


def report_again(folder: Path) -> tuple[Output, WriteError | None]:
    """Make summary, tables and pictures again from a folder's rows.

    Returns:
        What to show, and why the files could not be written; None where they were.

    Raises:
        ResultsError: when the folder is not one of a command that measures, another process works in it, or
            a file is damaged.
    """
    run = read_run(folder) or {}
    job = run.get("job", "compare")
    if job not in _COMMANDS:
        raise ResultsError(
            f"folder {folder} holds a run of 'analognoise {job}': name one of compare, faults, noise-sweep, "
            "evaluate or sensitivity"
        )
    again, lock = _COMMANDS[job]
    # A run that is at work there would write the same files, and its rows are not complete.
    with held(folder / lock, folder):
        try:
            return again(folder, run, True), None
        except WriteError as error:
            return again(folder, run, False), error
