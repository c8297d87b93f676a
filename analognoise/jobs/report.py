"""``analognoise report``: tables and pictures out of what is stored; evaluate uses parts of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console, RenderableType

from analognoise.comparison import conclude
from analognoise.errors import ResultsError
from analognoise.evaluation.statistics import summarise_methods
from analognoise.evaluation.store import read_results
from analognoise.jobs.compare import Compared
from analognoise.jobs.folder import RUN_FILE, read_run
from analognoise.jobs.output import Output, plain
from analognoise.report.onchip import analog_lines, analog_markdown
from analognoise.report.plot import save_figure
from analognoise.report.summary import sections
from analognoise.report.table import markdown_table, print_summary, summary_csv, write_whole

RESULTS_FILE = "results.csv"
FILES = (RESULTS_FILE, "summary.csv", "summary.md", "*_over_time.png", "*_over_level.png")


@dataclass(frozen=True)
class Reported(Output):
    """An evaluation that was shown again."""

    folder: Path
    summary: pd.DataFrame
    settings: dict[str, Any]
    models: dict[str, Any]

    def parts(self) -> Iterable[RenderableType]:
        """Where the files are."""
        yield f"results: {self.folder}"

    def show(self, console: Console) -> None:
        """Print the tables."""
        print_summary(
            self.summary,
            console,
            compensation=self.settings["compensation"],
            confidence=self.settings["confidence"],
        )
        for line in analog_lines(self.models):
            console.print(line, style="dim", markup=False)
        super().show(console)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "folder": str(self.folder),
            "settings": self.settings,
            "model": {"profiles": self.models},
            "summary": plain(self.summary),
        }


def report_again(folder: Path) -> Output:
    """Make summary, tables and pictures again from a folder's rows, and show them.

    Raises:
        ResultsError: when the folder is not one of compare or evaluate, or a file in it is damaged.
    """
    run = read_run(folder) or {}
    job = run.get("job", "compare")
    if job == "compare":
        return Compared(conclude(folder))
    if job != "evaluate":
        raise ResultsError(
            f"folder {folder} holds a run of 'analognoise {job}': name one of compare or evaluate"
        )
    try:
        settings = run["settings"]
        chips, times = int(settings["chips"]), [float(time) for time in settings["times_s"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ResultsError(
            f"{folder / RUN_FILE} lacks what a report needs ({error}): evaluate again"
        ) from error
    rows = read_results(folder / RESULTS_FILE)
    # An earlier call may have asked for more chips or other times than the last one.
    rows = rows[(rows["chip"] < chips) & (rows["time_s"].isin([*times, 0.0]))]
    summary = summarise(rows, settings)
    models = run.get("model", {}).get("profiles", {})
    write_summary(folder, summary, settings, models)
    return Reported(folder, summary, settings, models)


def summarise(rows: pd.DataFrame, settings: dict[str, Any]) -> pd.DataFrame:
    """The summary frame of an evaluation's rows."""
    return summarise_methods(
        rows, confidence=settings["confidence"], higher_is_better=settings["higher_is_better"]
    )


def write_summary(
    folder: Path, summary: pd.DataFrame, settings: dict[str, Any], models: dict[str, Any]
) -> None:
    """Write summary.csv, summary.md and the pictures; ``models`` says by profile what is on tiles.

    Raises:
        ResultsError: when the folder cannot be written to.
    """
    compensation, confidence = settings["compensation"], settings["confidence"]
    summary_csv(summary, folder / "summary.csv")
    text = markdown_table(summary, compensation=compensation, confidence=confidence, heading=2)
    if models:
        text = "\n".join([text, *analog_markdown(models), ""])
    write_whole(folder / "summary.md", text.encode())
    metric = re.sub(r"\W+", "_", str(summary["metric"].iloc[0])).strip("_") or "metric"
    for kind in ("time", "level"):
        names = [section.name for section in sections(summary) if section.kind == kind]
        shown = summary[
            summary["profile"].map(
                lambda name, names=names: str(name).split("@")[0] in names or name in names
            )
        ]
        if len(shown):
            save_figure(folder / f"{metric}_over_{kind}.png", shown, confidence=confidence)
