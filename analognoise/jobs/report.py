"""The files with tables and pictures of an evaluation, out of its rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from analognoise.evaluation.lifetime import Lifetime, lifetime
from analognoise.evaluation.statistics import summarise_methods
from analognoise.evaluation.stopping import Precision
from analognoise.files import write_whole
from analognoise.jobs.folder import RESULTS_FILE
from analognoise.jobs.single_chips import with_single_chips
from analognoise.printing import counted
from analognoise.report.numbers import one_value
from analognoise.report.onchip import analog_markdown
from analognoise.report.plot import save_figure
from analognoise.report.summary import sections
from analognoise.report.table import STUDENT, markdown_table, summary_csv

FILES = (RESULTS_FILE, "summary.csv", "summary.md", "*_over_time.png", "*_over_level.png")


def summarise(rows: pd.DataFrame, settings: dict[str, Any]) -> pd.DataFrame:
    """The summary frame of an evaluation's rows."""
    targets = precisions(settings)
    found = [
        summarise_methods(
            part,
            confidence=settings["confidence"],
            higher_is_better=settings["higher_is_better"],
            interval=targets[str(name)].interval if targets else None,
        )
        for name, part in rows.groupby("profile", sort=False)
    ]
    return pd.concat(found, ignore_index=True)


def precisions(settings: Mapping[str, Any]) -> dict[str, Precision]:
    """By profile, what the numbers of chips were to reach; empty where they were fixed beforehand."""
    return {name: Precision(**found) for name, found in settings.get("precision", {}).items()}


@dataclass(frozen=True)
class Lives:
    """How long a profile's chips stay good enough.

    Attributes:
        mean: until their mean is not.
        quantile: until the share that was asked for is not; None where none was.
    """

    mean: Lifetime
    quantile: Lifetime | None


def lifetimes(rows: pd.DataFrame, settings: dict[str, Any]) -> dict[str, Lives]:
    """By profile, how long the chips stay good enough; without devices on which nothing depends on time, and
    where nothing can be relative to the digital metric.
    """
    found, targets = {}, precisions(settings)
    floor = settings.get("floor") or (0.95 if settings["higher_is_better"] else 1.05)
    for profile, part in rows.groupby("profile", sort=False):
        values = part.pivot(index="chip", columns="time_s", values="value")
        if not targets:
            values = values.dropna()
        times, digital = [float(time) for time in values.columns], float(part["digital"].iloc[0])
        if times == [0.0] or values.empty or digital <= 0:
            continue
        of = partial(
            lifetime,
            values.to_numpy(),
            times,
            digital,
            floor,
            metric=settings["metric"],
            higher_is_better=settings["higher_is_better"],
            confidence=settings["confidence"],
            interval=targets[str(profile)].interval if targets else None,
        )
        share = settings.get("quantile")
        found[str(profile)] = Lives(of(), None if share is None else of(quantile=share))
    return found


def no_lifetime(metric: str, digital: float) -> str:
    """Why there is no lifetime on devices that drift."""
    return (
        f"Lifetime: none, as nothing can be relative to a digital {metric} of {digital:g}; in Python, "
        "report.lifetime(floor, relative=False) takes a value of the metric."
    )


def lifetime_lines(
    lives: Mapping[str, Lives], summary: pd.DataFrame, settings: Mapping[str, Any]
) -> list[str]:
    """The lifetimes in words, a line for each profile and question, or why there is none."""
    metric, share = settings["metric"], settings.get("quantile")
    lines = []
    for profile, of in lives.items():
        level = one_value(metric, of.mean.floor)
        lines.append(f"Lifetime on {profile}, until the mean {metric} crosses {level}: {of.mean}")
        if of.quantile is not None and share is not None:
            who = f"{100 * share:.4g} % of chips"
            lines.append(f"Lifetime on {profile}, until {who} cross {level}: {of.quantile}")
    digital = float(summary["digital"].iloc[0])
    if digital <= 0 and (summary["time_s"] > 0).any():
        lines.append(no_lifetime(metric, digital))
    return lines


def _interval(settings: Mapping[str, Any]) -> str:
    """Whose interval the tables show."""
    return "two-stage (Stein)" if settings.get("precision") else STUDENT


def _head(settings: Mapping[str, Any]) -> list[str]:
    """What was evaluated, in words."""
    name = settings["task"] or settings["model"]
    parts = [f"model {settings['model']}" if settings["model"] else f"model of task {settings['task']}"]
    if settings["weights"]:
        file = settings.get("weights_file")
        parts.append(f"weights {f'{file}, ' if file else ''}SHA-256 {settings['weights'][:12]}…")
    parts.append(f"test data {settings['data']}" if settings["data"] else "test data of the task")
    chips = settings["chips"]
    least = "up to " * bool(settings.get("precision"))
    parts.append(f"{least}{counted(chips, 'chip')} of each device, seed {settings['seed']}")
    return [f"# {name} on analog chips", "", f"M{'; '.join(parts)[1:]}.", ""]


def write_summary(folder: Path, rows: pd.DataFrame, settings: dict[str, Any], models: dict[str, Any]) -> None:
    """Write summary.csv, summary.md and the pictures; ``models`` says by profile what is on tiles.

    Raises:
        WriteError: when the folder cannot be written to.
    """
    summary, lives = summarise(rows, settings), lifetimes(rows, settings)
    summary, singles = with_single_chips(summary, rows, settings)
    targets = precisions(settings)
    reasons = [
        f"{name}: {target.sentence(summary[summary['profile'] == name])}" for name, target in targets.items()
    ]
    reasons += [f"{name}: {found['text']}" for name, found in settings.get("sampling", {}).items()]
    compensation, confidence = settings["compensation"], settings["confidence"]
    summary_csv(summary, folder / "summary.csv")
    lines = _head(settings)
    lines += [
        markdown_table(
            summary,
            compensation=compensation,
            confidence=confidence,
            interval=_interval(settings),
            heading=2,
        ).rstrip(),
        "",
    ]
    lines += [f"- {line}" for line in reasons] + [""] * bool(reasons)
    if singles:
        lines += ["## Single chips", "", *(f"- {line}" for line in singles), ""]
    if lasting := lifetime_lines(lives, summary, settings):
        lines += ["## Lifetime", "", *(f"- {line}" for line in lasting), ""]
    if models:
        lines += [*analog_markdown(models), ""]
    text = "\n".join(lines)
    write_whole(folder / "summary.md", text.encode())
    metric = re.sub(r"\W+", "_", str(summary["metric"].iloc[0])).strip("_") or "metric"
    for kind in ("time", "level"):
        names = [section.name for section in sections(summary) if section.kind == kind]
        shown = summary[
            summary["profile"].map(
                lambda name, names=names: re.sub(r"@[\d.]+%", "", str(name)) in names or name in names
            )
        ]
        if len(shown):
            save_figure(folder / f"{metric}_over_{kind}.png", shown, confidence=confidence)
