"""What a comparison found: rows, summary, tables and pictures; made from the files in its folder alone."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markdown import Markdown

from analognoise.comparison.folder import MODELS, RESULTS, RUN, SUMMARY, TEXT, read_run
from analognoise.comparison.sharpness import correlations, sharpness_markdown, sharpness_table
from analognoise.crossbar.compensation import name_chips
from analognoise.evaluation.statistics import summarise_methods
from analognoise.evaluation.store import read_results
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
        profile: the device it trained for, if any.
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

    @property
    def compensation(self) -> str:
        """The drift compensations used, with commas."""
        return str(self.run["settings"]["compensation"])

    @property
    def confidence(self) -> float:
        """Coverage of the intervals."""
        return float(self.run["settings"]["confidence"])

    def print(self, console: Console | None = None) -> None:
        """Print the tables, what is analog, and which trainings failed."""
        console = console or Console()
        print_summary(self.summary, console, compensation=self.compensation, confidence=self.confidence)
        sharp = sharpness_markdown(self.sharpness, self.correlations, self.confidence)
        if sharp:
            console.print(Markdown("\n".join(sharp)))
        for line in analog_lines(self.run["model"]["profiles"]):
            console.print(line, style="dim", markup=False)
        for failure in self.failed:
            text = f"failed: {failure.message} (training seed {failure.training_seed})"
            console.print(text, style="red", markup=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "folder": str(self.folder),
            "run_id": self.run["run_id"],
            "settings": self.run["settings"],
            "model": self.run["model"],
            "summary": _plain(self.summary),
            "sharpness": _plain(self.sharpness),
            "correlations": _plain(self.correlations),
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
    path = Path(folder)
    run = read_run(path)
    settings = run["settings"]
    results = _asked(read_results(path / RESULTS), settings)
    failed = tuple(Failure(**item) for item in run.get("failed", []))
    broken = {failure.method for failure in failed}
    sound = results[~results["method"].isin(broken)]
    if sound.empty:
        # Nothing is complete; what there is, is shown all the same.
        sound = results
    summary = _with_failed(summarise_methods(sound, confidence=settings["confidence"]), broken, settings)
    paths = {"results": path / RESULTS, "summary": path / SUMMARY, "text": path / TEXT, "run": path / RUN}
    summary_csv(summary, paths["summary"])
    paths |= _pictures(path, summary)
    measured = sharpness_table(path / MODELS, run)
    related = correlations(measured, results, settings["confidence"])
    sharp = sharpness_markdown(measured, related, settings["confidence"])
    write_whole(paths["text"], _text(run, summary, failed, sharp).encode())
    return Comparison(
        path, results, summary, failed, paths, run, measured, related, reused_models, reused_rows
    )


def _with_failed(summary: pd.DataFrame, broken: set[str], settings: dict[str, Any]) -> pd.DataFrame:
    """The summary with rows of NaN for methods whose training broke down, where it has none of them."""
    names = [method["name"] for method in settings["methods"]]
    lacking = [name for name in names if name in broken - set(summary["method"])]
    if not lacking:
        return summary
    columns = ["profile", "time_s", "metric", "unit"]
    places = summary.drop_duplicates(columns[:2])[columns]
    none = {"n": 0, "chips": 0, "best": False, "marked": False}
    frames = [summary, *(places.assign(method=name, **none) for name in lacking)]
    whole = pd.concat(frames, ignore_index=True).reindex(columns=summary.columns)
    profiles = list(dict.fromkeys(summary["profile"]))
    rows = zip(whole["profile"], whole["method"], whole["time_s"], whole.index, strict=True)
    order = sorted(rows, key=lambda row: (profiles.index(row[0]), names.index(row[1]), row[2]))
    found: pd.DataFrame = whole.loc[[index for *_, index in order]].reset_index(drop=True)
    return found


def _asked(results: pd.DataFrame, settings: dict[str, Any]) -> pd.DataFrame:
    """The rows that the last call asked for: an earlier one may have asked for more."""
    methods = [method["name"] for method in settings["methods"]]
    # A device on which nothing depends on time has rows at 0 s alone, whatever the times.
    still = results.groupby("profile")["time_s"].transform("max") == 0
    kept = (
        results["method"].isin(methods)
        & results["profile"].isin(
            [name_chips(p, c) for p in settings["profiles"] for c in settings["compensation"].split(",")]
        )
        & results["training_seed"].isin(settings["training_seeds"])
        & (results["chip"] < settings["chips"])
        & (results["time_s"].isin(settings["times_s"]) | still)
    )
    return results[kept].reset_index(drop=True)


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


def _text(run: dict[str, Any], summary: pd.DataFrame, failed: tuple[Failure, ...], sharp: list[str]) -> str:
    settings = run["settings"]
    seeds = len(settings["training_seeds"])
    lines = [
        f"# {settings['task']}: training methods on analog chips",
        "",
        f"{settings['description'].rstrip('.')}. {seeds} training seed{'s' if seeds > 1 else ''}, "
        f"{settings['chips']} chip{'s' if settings['chips'] > 1 else ''} for each model and device, "
        f"{settings['epochs']} epochs, drift compensation: {settings['compensation']}.",
        "",
        markdown_table(
            summary, compensation=settings["compensation"], confidence=settings["confidence"], heading=2
        ).rstrip(),
        "",
    ]
    if failed:
        lines += ["## Failed trainings", ""]
        lines += [
            f"- {failure.method}, seed {failure.training_seed}: {failure.message}" for failure in failed
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
    lines += ["", *analog_markdown(run["model"]["profiles"])]
    if run.get("warnings"):
        lines += ["", "## Warnings", "", *(f"- {text}" for text in run["warnings"])]
    times = ", ".join(format_time(seconds) for seconds in settings["times_s"])
    lines += ["", f"Drift times: {times}. Settings, versions and profiles: run.json.", ""]
    return "\n".join(lines)


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A frame's rows as plain values, with None for what is missing."""
    return [
        {str(key): None if pd.isna(value) else value for key, value in row.items()}
        for row in frame.to_dict("records")
    ]


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
