"""What a comparison found: rows, summary, tables and pictures; made from the files in its folder alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pandas as pd
from rich.console import Console
from rich.markdown import Markdown

from analognoise.comparison.folder import SUMMARY, TEXT
from analognoise.comparison.sharpness import sharpness_markdown
from analognoise.comparison.stored import Failure, Sharp, Stored
from analognoise.evaluation.statistics import summarise_methods
from analognoise.files import write_whole
from analognoise.report.correlation_plot import save_correlations
from analognoise.report.layout import DRIFT, Layout
from analognoise.report.onchip import analog_lines
from analognoise.report.plot import save_figure
from analognoise.report.table import print_summary, summary_csv
from analognoise.units import format_time


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        folder: where everything is.
        results: one row per profile, method, training seed, chip and time that was asked for; the columns of
            results.csv.
        summary: one row per profile, method and time; see
            :func:`analognoise.evaluation.statistics.summarise_methods`. A method with a failed training has
            no figures there.
        failed: trainings that broke down.
        paths: files by what they are: "results", "summary", "text", "run", "over_time", "over_level" (where
            there is one).
        run: the content of run.json.
        sharpness: one row per model and kind, and
        correlations: one per profile, time and kind: rank correlation of sharpness and what is lost; both
            empty where sharpness was not measured.
        reused_models: models that were there already.
        reused_rows: rows that were there already.
    """

    folder: Path
    results: pd.DataFrame
    summary: pd.DataFrame
    failed: tuple[Failure, ...]
    paths: dict[str, Path]
    run: dict[str, Any]
    sharpness: pd.DataFrame
    correlations: pd.DataFrame
    reused_models: int = 0
    reused_rows: int = 0

    layout: ClassVar[Layout] = DRIFT

    @property
    def compensation(self) -> str | None:
        """The drift compensations used, with commas; None where nothing drifts."""
        return self.run["settings"].get("compensation")

    @property
    def confidence(self) -> float:
        """Coverage of the intervals."""
        return float(self.run["settings"]["confidence"])

    def print(self, console: Console | None = None) -> None:
        """Print the tables, what is analog, and which trainings failed."""
        console = console or Console()
        self._print_tables(console)
        sharp = sharpness_markdown(self.sharpness, self.correlations, self.confidence, self.layout)
        if sharp:
            console.print(Markdown("\n".join(sharp)))
        for line in self._about():
            console.print(line, style="dim", markup=False)
        for failure in self.failed:
            console.print(f"failed: {failure.sentence}", style="red", markup=False)

    def _print_tables(self, console: Console) -> None:
        print_summary(self.summary, console, compensation=self.compensation, confidence=self.confidence)

    def _about(self) -> list[str]:
        """What the numbers are of."""
        return analog_lines(self.run["model"]["profiles"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "folder": str(self.folder),
            "run_id": self.run["run_id"],
            "settings": self.run["settings"],
            "model": self.run["model"],
            "summary": plain(self.summary),
            "sharpness": plain(self.sharpness),
            "correlations": plain(self.correlations),
            "failed": [failure.to_dict() for failure in self.failed],
            "files": {name: str(path) for name, path in self.paths.items()},
            "reused": {"models": self.reused_models, "rows": self.reused_rows},
        }


C = TypeVar("C", bound=Comparison)


def summarised(found: Stored, sound: pd.DataFrame, lacking: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """The summary of a comparison's rows, by condition, method and position.

    Args:
        found: what the folder holds.
        sound: the rows that have figures.
        lacking: conditions and methods that have none, since a training broke down.
    """
    summary = summarise_methods(
        sound, confidence=found.confidence, higher_is_better=found.higher_is_better, layout=found.layout
    )
    return _with_failed(summary, {*lacking}, found.settings, found.layout)


def picture(found: Stored, summary: pd.DataFrame, axis: str) -> Path:
    """Draw a summary over ``axis``, as the file's name says."""
    metric = re.sub(r"\W+", "_", str(summary["metric"].iloc[0])).strip("_") or "metric"
    return found.file(
        f"{metric}_over_{axis}.png", lambda path: save_figure(path, summary, confidence=found.confidence)
    )


def finish(
    kind: type[C],
    found: Stored,
    summary: pd.DataFrame,
    *,
    pictures: dict[str, Path],
    sharp: Sharp,
    text: str,
    **more: Any,
) -> C:
    """Write the files that every comparison has, and sum up.

    Args:
        kind: of the result.
        found: what the folder holds.
        summary: by condition, method and position.
        pictures: files that were written already, by what they are.
        sharp: of the models.
        text: the content of summary.md.
        more: further fields of the result.
    """
    paths = found.paths | pictures
    found.file(SUMMARY, lambda path: summary_csv(summary, path))
    paths |= _sharpness_picture(found, sharp.related)
    found.file(TEXT, lambda path: write_whole(path, text.encode()))
    return kind(
        folder=found.path,
        results=found.results,
        summary=summary,
        failed=found.failed,
        paths={word: path for word, path in paths.items() if path.exists()},
        run=found.run,
        sharpness=sharp.table,
        correlations=sharp.related,
        **more,
    )


def _sharpness_picture(found: Stored, related: pd.DataFrame) -> dict[str, Path]:
    """The picture of the rank correlations, where there are any."""
    if related.empty:
        return {}
    layout = found.layout
    label = format_time if layout is DRIFT else layout.label

    def draw(path: Path) -> None:
        save_correlations(path, layout.inwards(related), label, layout.axis, found.confidence)

    return {"sharpness": found.file("sharpness.png", draw)}


def _with_failed(
    summary: pd.DataFrame,
    broken: Collection[tuple[str, str]],
    settings: dict[str, Any],
    layout: Layout,
) -> pd.DataFrame:
    """The summary with rows of NaN for what has no figures since a training broke down.

    Args:
        summary: by condition, method and position.
        broken: conditions and methods without figures; those that the summary has some of are let be.
        settings: of the run, for the order of the methods.
        layout: names of the summary's columns.
    """
    group, position = layout.group, layout.position
    names = [method["name"] for method in settings["methods"]]
    there = set(zip(summary[group], summary["method"], strict=True))
    places = summary.drop_duplicates([group, position])[[group, position, "metric", "unit"]]
    none = {"n": 0, "chips": 0, "best": False, "marked": False}
    rows = [places[places[group] == on].assign(method=name, **none) for on, name in {*broken} - there]
    rows = [row for row in rows if len(row)]
    if not rows:
        return summary
    whole = pd.concat([summary, *rows], ignore_index=True).reindex(columns=summary.columns)
    conditions = list(dict.fromkeys(summary[group]))
    keys = zip(whole[group], whole["method"], whole[position], whole.index, strict=True)
    order = sorted(keys, key=lambda row: (conditions.index(row[0]), names.index(row[1]), row[2]))
    found: pd.DataFrame = whole.loc[[index for *_, index in order]].reset_index(drop=True)
    return found


def plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A frame's rows as plain values, with None for what is missing."""
    return [
        {str(key): None if pd.isna(value) else value for key, value in row.items()}
        for row in frame.to_dict("records")
    ]
