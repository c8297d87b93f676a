"""``analognoise report``: tables and pictures out of what is stored, without computing anything else."""

from __future__ import annotations

from pathlib import Path

from analognoise.comparison import conclude, conclude_faults, conclude_noise
from analognoise.errors import ResultsError
from analognoise.jobs.compare import Compared
from analognoise.jobs.folder import read_run
from analognoise.jobs.output import Output
from analognoise.jobs.report import evaluated_again
from analognoise.jobs.sensitivity import rank_again


def report_again(folder: Path) -> Output:
    """Make summary, tables and pictures again from a folder's rows, and show them.

    Raises:
        ResultsError: when the folder is not one of a command that measures, or a file is damaged.
    """
    run = read_run(folder) or {}
    job = run.get("job", "compare")
    if job == "compare":
        return Compared(conclude(folder))
    if job == "faults":
        return Compared(conclude_faults(folder))
    if job == "noise-sweep":
        return Compared(conclude_noise(folder))
    if job == "evaluate":
        return evaluated_again(folder, run)
    if job == "sensitivity":
        return rank_again(folder, run)
    raise ResultsError(
        f"folder {folder} holds a run of 'analognoise {job}': name one of compare, faults, noise-sweep, "
        "evaluate or sensitivity"
    )
