"""What a comparison found: rows, summary, tables and pictures; made from the files in its folder alone."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pandas as pd
from rich.console import Console
from rich.markdown import Markdown

from analognoise.comparison.folder import MODELS, RESULTS, RUN, SUMMARY, TEXT, read_run
from analognoise.comparison.sharpness import correlations, sharpness_markdown, sharpness_table
from analognoise.crossbar.compensation import name_chips
from analognoise.errors import ResultsError
from analognoise.evaluation.rows import AnyRow, Row, rows_to_frame
from analognoise.evaluation.statistics import summarise_methods
from analognoise.evaluation.store import ResultStore
from analognoise.report.correlation_plot import save_correlations
from analognoise.report.layout import DRIFT, Layout
from analognoise.report.onchip import analog_lines, analog_markdown
from analognoise.report.plot import save_figure
from analognoise.report.summary import sections
from analognoise.report.table import markdown_table, print_summary, summary_csv, write_whole
from analognoise.units import format_time


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
    """

    path: Path
    run: dict[str, Any]
    results: pd.DataFrame
    failed: tuple[Failure, ...]
    layout: Layout

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

    Raises:
        ResultsError: when the folder is not such a comparison's, or a file in it is damaged.
    """
    path = Path(folder)
    run = read_run(path, command, noun)
    settings = run["settings"]
    rows: ResultStore[AnyRow] = ResultStore(path / RESULTS, kind=row)
    if not rows.rows:
        raise ResultsError(f"{path / RESULTS} holds no rows: run the same command again")
    results = rows_to_frame(rows.rows, row)
    conditions = [one.condition for one in rows.rows]
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
    return Stored(path, run, results[kept].reset_index(drop=True), failed, layout)


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
            text = f"failed: {failure.message} (training seed {failure.training_seed})"
            console.print(text, style="red", markup=False)

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


def conclude(folder: str | os.PathLike[str], *, reused_models: int = 0, reused_rows: int = 0) -> Comparison:
    """Summarise the rows in a comparison's folder and write summary, text and pictures (again).

    Args:
        folder: output folder of :func:`analognoise.comparison.compare`.
        reused_models: for the result.
        reused_rows: for the result.

    Raises:
        ResultsError: when the folder is not a comparison's, or a file in it is damaged.
    """
    found = stored(folder, _asked_for, "times_s")
    broken = {failure.method for failure in found.failed}
    sound = found.sound(found.results["method"].isin(broken))
    summary = summarise_methods(sound, confidence=found.confidence, higher_is_better=found.higher_is_better)
    summary = with_failed(summary, [*product(set(summary["profile"]), broken)], found.settings)
    paths = found.paths
    summary_csv(summary, paths["summary"])
    paths |= _pictures(found.path, summary)
    sharp = found.sharpness()
    paths |= sharpness_picture(found.path, sharp.related, found.confidence, found.layout)
    write_whole(paths["text"], _text(found, summary, sharp.text).encode())
    return Comparison(
        found.path,
        found.results,
        summary,
        found.failed,
        paths,
        found.run,
        sharp.table,
        sharp.related,
        reused_models,
        reused_rows,
    )


def sharpness_picture(
    path: Path, related: pd.DataFrame, confidence: float, layout: Layout
) -> dict[str, Path]:
    """The picture of the rank correlations, where there are any."""
    if related.empty:
        return {}
    label = format_time if layout is DRIFT else layout.label
    drawn = save_correlations(path / "sharpness.png", layout.inwards(related), label, layout.axis, confidence)
    return {} if drawn is None else {"sharpness": drawn}


def with_failed(
    summary: pd.DataFrame,
    broken: Collection[tuple[str, str]],
    settings: dict[str, Any],
    layout: Layout = DRIFT,
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


def _asked_for(settings: dict[str, Any]) -> list[str]:
    """Devices with compensations."""
    return [name_chips(p, c) for p in settings["profiles"] for c in settings["compensation"].split(",")]


def _pictures(path: Path, summary: pd.DataFrame) -> dict[str, Path]:
    metric = re.sub(r"\W+", "_", str(summary["metric"].iloc[0])).strip("_") or "metric"
    kinds: dict[str, list[str]] = {"time": [], "level": []}
    for profile in dict.fromkeys(summary["profile"]):
        drifts = any(time > 0 for time in summary.loc[summary["profile"] == profile, "time_s"])
        kinds["time" if drifts else "level"].append(profile)
    paths = {}
    timed = summary[summary["profile"].isin(kinds["time"])]
    if len(timed):
        paths["over_time"] = save_figure(path / f"{metric}_over_time.png", timed)
    still = summary[summary["profile"].isin(kinds["level"])]
    if len(still) and any(section.kind == "level" for section in sections(still)):
        paths["over_level"] = save_figure(path / f"{metric}_over_level.png", still)
    return paths


def _text(found: Stored, summary: pd.DataFrame, sharp: list[str]) -> str:
    settings = found.settings
    table = markdown_table(
        summary, compensation=settings["compensation"], confidence=found.confidence, heading=2
    )
    times = ", ".join(format_time(seconds) for seconds in settings["times_s"])
    return page(
        found,
        title="training methods on analog chips",
        extent="for each model and device",
        more=f", drift compensation: {settings['compensation']}",
        body=[table.rstrip(), ""],
        sharp=sharp,
        about=["", *analog_markdown(found.run["model"]["profiles"])],
        end=f"Drift times: {times}. Settings, versions and profiles: run.json.",
    )


def page(
    found: Stored,
    *,
    title: str,
    extent: str,
    more: str = "",
    body: list[str],
    sharp: list[str],
    about: list[str],
    end: str,
) -> str:
    """The content of summary.md.

    Args:
        found: what the folder holds.
        title: stands behind the task's name.
        extent: what each number of chips is for.
        more: further settings, for the first sentence.
        body: the tables.
        sharp: the section on sharpness.
        about: what the models are, after the methods.
        end: the last sentence.
    """
    settings, failed = found.settings, found.failed
    seeds, unit = len(settings["training_seeds"]), found.layout.unit
    chips = settings[f"{unit}s"]
    lines = [
        f"# {settings['task']}: {title}",
        "",
        f"{settings['description'].rstrip('.')}. {seeds} training seed{'s' if seeds > 1 else ''}, "
        f"{chips} {unit}{'s' if chips > 1 else ''} {extent}, "
        f"{settings['epochs']} epochs{more}.",
        "",
        *body,
    ]
    if failed:
        lines += ["## Failed trainings", ""]
        lines += [
            f"- {failure.method}{_variant(failure, found.layout)}, seed {failure.training_seed}: "
            f"{failure.message}"
            for failure in failed
        ]
        lines += [
            "",
            "A method with a failed training has no figures in the tables; results.csv has its other seeds.",
            "",
        ]
    lines += [*sharp, "## Methods", ""]
    for method in settings["methods"]:
        values = ", ".join(f"{key} = {_number(value)}" for key, value in method["hyperparameters"].items())
        lines.append(
            f"- {method['name']}: {values or 'no hyperparameters'}; {method['epochs']} epochs, lr "
            f"{_number(method['lr'])}, "
            f"{method['gradients_per_step']} gradient{'s' if method['gradients_per_step'] > 1 else ''} per "
            "step"
        )
    lines += about
    if found.run.get("warnings"):
        lines += ["", "## Warnings", "", *(f"- {text}" for text in found.run["warnings"])]
    return "\n".join([*lines, "", end, ""])


def _variant(failure: Failure, layout: Layout) -> str:
    """Which of a method's models, where it has several."""
    return "" if layout is DRIFT or not failure.profile else f" ({failure.profile})"


def plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A frame's rows as plain values, with None for what is missing."""
    return [
        {str(key): None if pd.isna(value) else value for key, value in row.items()}
        for row in frame.to_dict("records")
    ]


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
