"""What a comparison's folder holds, read back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from analognoise.comparison.folder import MODELS, RESULTS, RUN, SUMMARY, TEXT, read_run
from analognoise.comparison.settings import Training
from analognoise.comparison.sharpness import correlations, sharpness_markdown, sharpness_table
from analognoise.errors import ResultsError
from analognoise.evaluation.row_text import read_rows
from analognoise.evaluation.rows import AnyRow, Row, rows_to_frame
from analognoise.report.layout import DRIFT, Layout


@dataclass(frozen=True)
class Failure:
    """A training that broke down.

    Attributes:
        method: name of the method.
        training_seed: which training.
        profile: the device it trained for, or which of the method's models it is, if there is more than one.
        message: what happened.
    """

    method: str
    training_seed: int
    profile: str | None
    message: str

    @classmethod
    def of(cls, training: Training, message: str) -> Failure:
        """What happened to a training of a comparison."""
        profile = training.profile.name if training.profile else training.variant or None
        return cls(training.method, training.seed, profile, message)

    @property
    def sentence(self) -> str:
        """What happened, and to which training: the message knows the recipe alone."""
        model = f" ({self.profile})" if self.profile else ""
        return f"{self.method}{model}, seed {self.training_seed}: {self.message}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Stored:
    """What a comparison's folder holds.

    Attributes:
        path: the folder.
        run: the content of run.json.
        results: the rows that the last call asked for, with the condition in the layout's column.
        failed: trainings that broke down.
        layout: the names of the rows' columns.
        writes: whether tables and pictures are written into the folder.
    """

    path: Path
    run: dict[str, Any]
    results: pd.DataFrame
    failed: tuple[Failure, ...]
    layout: Layout
    writes: bool

    def file(self, name: str, make: Callable[[Path], object]) -> Path:
        """The path of a file in the folder, written by ``make`` where files are written."""
        path = self.path / name
        if self.writes:
            make(path)
        return path

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for."""
        return dict(self.run["settings"])

    @property
    def confidence(self) -> float:
        """Coverage of the intervals."""
        return float(self.run["settings"]["confidence"])

    @property
    def higher_is_better(self) -> bool | None:
        """What the task's own metric says of itself; None where it says nothing, or is a built-in one."""
        found: bool | None = self.run["settings"].get("higher_is_better")
        return found

    @property
    def paths(self) -> dict[str, Path]:
        """The files that every comparison has."""
        names = {"results": RESULTS, "summary": SUMMARY, "text": TEXT, "run": RUN}
        return {word: self.path / name for word, name in names.items()}

    def sound(self, broken: pd.Series) -> pd.DataFrame:
        """The rows without those of methods with a failed training; all, where nothing is complete."""
        found = self.results[~broken]
        return self.results if found.empty else found

    def sharpness(self, results: pd.DataFrame | None = None) -> Sharp:
        """What was measured of the models' sharpness, and how it goes with what the metric loses."""
        table = sharpness_table(self.path / MODELS, self.run)
        rows = self.results if results is None else results
        related = correlations(table, rows, self.confidence, self.layout, self.higher_is_better)
        return Sharp(table, related, sharpness_markdown(table, related, self.confidence, self.layout))


class Sharp(NamedTuple):
    """Sharpness of the models: by model, its rank correlation with losses, and both in words."""

    table: pd.DataFrame
    related: pd.DataFrame
    text: list[str]


def stored(
    folder: str | os.PathLike[str],
    names: Callable[[dict[str, Any]], Iterable[str]],
    positions: str,
    *,
    command: str = "compare",
    noun: str = "a comparison",
    row: type[AnyRow] = Row,
    layout: Layout = DRIFT,
    writes: bool = True,
) -> Stored:
    """Read a comparison's folder.

    Args:
        folder: where it is.
        names: gives the conditions that the settings ask for.
        positions: the setting with the positions.
        command: whose folder it must be.
        noun: such a comparison in words.
        row: kind of its rows.
        layout: names of their columns.
        writes: whether tables and pictures are to be written.

    Raises:
        ResultsError: when the folder is not such a comparison's, or a file in it is damaged.
    """
    path = Path(folder)
    run = read_run(path, command, noun)
    settings = run["settings"]
    rows = read_rows(path / RESULTS, row)
    if not rows:
        raise ResultsError(f"{path / RESULTS} holds no rows: run the same command again")
    results = rows_to_frame(rows, row)
    conditions = [one.condition for one in rows]
    # A device on which nothing depends on time has rows at 0 s alone, whatever the times.
    still = results.groupby(conditions)[layout.position].transform("max") == 0
    kept = (
        results["method"].isin([method["name"] for method in settings["methods"]])
        & pd.Series(conditions).isin([*names(settings)])
        & results["training_seed"].isin(settings["training_seeds"])
        & (results["chip"] < settings[f"{layout.unit}s"])
        & (results[layout.position].isin(settings[positions]) | (still if layout is DRIFT else False))
    )
    results[layout.group] = conditions
    failed = tuple(Failure(**item) for item in run.get("failed", []))
    return Stored(path, run, results[kept].reset_index(drop=True), failed, layout, writes)
