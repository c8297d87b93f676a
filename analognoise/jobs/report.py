"""Tables and pictures of an evaluation, out of the rows that are stored."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console, RenderableType

from analognoise.errors import ResultsError
from analognoise.evaluation.lifetime import Lifetime, lifetime
from analognoise.evaluation.row_text import read_results
from analognoise.evaluation.statistics import summarise_methods
from analognoise.evaluation.stopping import Precision
from analognoise.files import write_whole
from analognoise.jobs.folder import RESULTS_FILE, RUN_FILE
from analognoise.jobs.output import Output, plain
from analognoise.jobs.single_chips import with_single_chips
from analognoise.report.numbers import one_value
from analognoise.report.onchip import analog_lines, analog_markdown
from analognoise.report.plot import save_figure
from analognoise.report.summary import sections
from analognoise.report.table import STUDENT, markdown_table, print_summary, summary_csv

FILES = (RESULTS_FILE, "summary.csv", "summary.md", "*_over_time.png", "*_over_level.png")


@dataclass(frozen=True)
class Reported(Output):
    """An evaluation that was shown again."""

    folder: Path
    summary: pd.DataFrame
    settings: dict[str, Any]
    models: dict[str, Any]
    lives: dict[str, Lives]
    notes: list[str]

    def parts(self) -> Iterable[RenderableType]:
        """What single chips keep, lifetimes, and where the files are."""
        yield from self.notes
        yield from lifetime_lines(self.lives, self.summary, self.settings)
        yield f"results: {self.folder}"

    def show(self, console: Console) -> None:
        """Print the tables."""
        print_summary(
            self.summary,
            console,
            compensation=self.settings["compensation"],
            confidence=self.settings["confidence"],
            interval=_interval(self.settings),
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
            "lifetimes": plain({profile: asdict(of.mean) for profile, of in self.lives.items()}),
            "lifetimes_of_quantile": plain(
                {profile: asdict(of.quantile) for profile, of in self.lives.items() if of.quantile}
            ),
        }


def evaluated_again(folder: Path, run: dict[str, Any]) -> Reported:
    """Make summary, table and picture of an evaluation again from the rows in its folder.

    Args:
        folder: what ``evaluate`` wrote.
        run: its run.json.

    Raises:
        ResultsError: when a file of it is damaged.
    """
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
    targets = _precisions(settings)
    if targets:
        rows = pd.concat(
            [targets[str(name)].kept(part) for name, part in rows.groupby("profile", sort=False)]
        )
    models = run.get("model", {}).get("profiles", {})
    summary, lives, notes = write_summary(folder, rows, settings, models)
    return Reported(folder, summary, settings, models, lives, notes)


def summarise(rows: pd.DataFrame, settings: dict[str, Any]) -> pd.DataFrame:
    """The summary frame of an evaluation's rows."""
    targets = _precisions(settings)
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


def _precisions(settings: Mapping[str, Any]) -> dict[str, Precision]:
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
    found, targets = {}, _precisions(settings)
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
    parts.append(f"{least}{chips} chip{'s' * (chips != 1)} of each device, seed {settings['seed']}")
    return [f"# {name} on analog chips", "", f"M{'; '.join(parts)[1:]}.", ""]


def write_summary(
    folder: Path, rows: pd.DataFrame, settings: dict[str, Any], models: dict[str, Any]
) -> tuple[pd.DataFrame, dict[str, Lives], list[str]]:
    """Write summary.csv, summary.md and the pictures; ``models`` says by profile what is on tiles.

    Returns:
        The summary frame, lifetimes by profile, and sentences on the numbers of chips and on single chips.

    Raises:
        ResultsError: when the folder cannot be written to.
    """
    summary, lives = summarise(rows, settings), lifetimes(rows, settings)
    summary, singles = with_single_chips(summary, rows, settings)
    targets = _precisions(settings)
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
    return summary, lives, [*reasons, *singles]
