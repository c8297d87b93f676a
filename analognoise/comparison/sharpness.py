"""Sharpness of a comparison's models, and whether it goes with the accuracy that they lose on chips."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analognoise.comparison.folder import Folder, read_record
from analognoise.comparison.jobs import Emit, task_of, write_json
from analognoise.comparison.plan import Plan
from analognoise.comparison.settings import Training
from analognoise.crossbar.compensation import split_name
from analognoise.errors import AnalogNoiseError
from analognoise.evaluation.statistics import better_when_higher
from analognoise.landscape import KINDS, sharpness
from analognoise.pool import Shared, enough, run_jobs
from analognoise.printing import number
from analognoise.report.layout import DRIFT, Layout
from analognoise.tasks import load_for_chip
from analognoise.units import format_time

FORMAT = 1
ENDING = ".sharpness.json"
VALUE_COLUMNS = (
    "method",
    "training_seed",
    "profile",
    "kind",
    "value",
    "standard_error",
    "low",
    "high",
    "converged",
    "error",
)
_RESAMPLES = 2000
_FEWEST = 4  # models; with three every order is one of six


@dataclass(frozen=True)
class SharpnessJob:
    """Measure every kind of sharpness of one stored model, and store them beside it.

    Attributes:
        source: the task; the data are its test data.
        training: how the model was trained.
        folder: where the model's file is.
        model: digest of that file.
        data: digest of the test data.
    """

    source: str | Shared
    training: Training
    folder: str
    model: str
    data: str

    @property
    def title(self) -> str:
        """What the job does, in words."""
        return f"sharpness of {self.training.title}"

    def run(self, emit: Emit) -> None:
        """Measure; a kind that cannot be measured is stored with the reason."""
        task = task_of(self.source)
        path = Path(self.folder) / f"{self.training.stem}.safetensors"
        model = load_for_chip(self.training.build(task), path)
        found: dict[str, Any] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # no direction of ascent: the value is 0
            for kind in KINDS:
                try:
                    measured = sharpness(model, task.test, kind, loss=task.loss, forward=task.forward)
                except AnalogNoiseError as error:
                    found[kind] = {"error": str(error)}
                else:
                    found[kind] = measured.to_dict()
        write_json(
            Path(self.folder) / f"{self.training.stem}{ENDING}",
            {"format": FORMAT, "model": self.model, "test_data": self.data, "kinds": found},
        )


def measure_all(
    plan: Plan,
    folder: Folder,
    records: dict[Training, dict[str, Any] | None],
    tell: Callable[[str, str], None],
) -> None:
    """Measure the models whose sharpness is not stored beside them.

    Args:
        plan: the comparison.
        folder: where its models are.
        records: what is known of each training.
        tell: gets the kind of event, "sharpness", and a message for each model.
    """
    jobs = [
        SharpnessJob(plan.source, training, folder.seen_by_workers, str(record["sha256"]), plan.test_data)
        for training, record in records.items()
        if record is not None
        and "error" not in record
        and _stored(folder.models, training.stem, plan.test_data) is None
    ]

    def done(job: SharpnessJob, _: None) -> Iterable[SharpnessJob]:
        tell("sharpness", job.training.title)
        return []

    if jobs:
        folder.check_versions()
        run_jobs(jobs, enough(plan.workers, len(jobs)), lambda *_: None, done)


def sharpness_table(folder: Path, run: dict[str, Any]) -> pd.DataFrame:
    """One row per model and kind, as far as they were measured; from the files in the folder alone.

    Columns: method, training_seed, profile (that the method trained for, or the variant, or empty), kind,
    value, standard_error, low and high (an eigenvalue's bracket), converged, error (why there is no value).
    """
    rows = []
    for stem in run["settings"]["trainings"]:
        kinds = _stored(folder, stem, run["settings"]["test_data"])
        record = read_record(folder / f"{stem}.json")
        if kinds is None or record is None:
            continue
        training = record["training"]
        for kind, item in kinds.items():
            low, high = item.get("bracket") or (None, None)
            rows.append(
                {
                    "method": training["method"],
                    "training_seed": training["training_seed"],
                    "profile": (training["profile"] or {}).get("name") or training.get("variant", ""),
                    "kind": kind,
                    "value": item.get("value", math.nan),
                    "standard_error": item.get("standard_error"),
                    "low": low,
                    "high": high,
                    "converged": item.get("converged"),
                    "error": item.get("error"),
                }
            )
    return pd.DataFrame(rows, columns=list(VALUE_COLUMNS))


def correlations(
    table: pd.DataFrame,
    results: pd.DataFrame,
    confidence: float,
    layout: Layout = DRIFT,
    higher_is_better: bool | None = None,
) -> pd.DataFrame:
    """Spearman's rank correlation over models between sharpness and what the metric loses on chips.

    A model's loss is its digital metric less the mean over its chips (the other way round for a metric that
    is better when lower). The interval is the percentile bootstrap's over models, with a seed of its own; it
    takes the models as independent, which several seeds of one method are not quite. NaN for fewer than four
    models, or where all are equally sharp or lose the same.

    Args:
        table: of :func:`sharpness_table`.
        results: rows of the comparison; where a method has several models for a seed, with a column
            "variant" that says which.
        confidence: coverage of the intervals.
        layout: names of the results' columns.
        higher_is_better: direction of a metric of the user's own.

    Returns:
        One row per profile, time and kind: columns profile, time_s (or what the layout calls them), kind,
        models, correlation, low, high.
    """
    results = layout.inwards(results)
    sign = 1 if better_when_higher(str(results["metric"].iloc[0]), higher_is_better) else -1
    model = ["method", "training_seed", *(["variant"] if "variant" in results else [])]
    lost = (
        results.assign(lost=sign * (results["digital"] - results["value"]))
        .groupby(["profile", "time_s", *model], sort=False)["lost"]
        .mean()
        .reset_index()
    )
    rows = []
    for (profile, time), part in lost.groupby(["profile", "time_s"], sort=False):
        own = table.rename(columns={"profile": "variant"})
        if "variant" not in model:
            own = own[own["variant"].isin(["", split_name(str(profile))[0]])].drop(columns="variant")
        joined = part.merge(own, on=model)
        for kind in table["kind"].drop_duplicates():
            pairs = joined.loc[joined["kind"] == kind, ["value", "lost"]].dropna().to_numpy(float)
            found = rank_correlation(pairs[:, 0], pairs[:, 1], confidence)
            rows.append((profile, time, kind, len(pairs), *found))
    columns = ["profile", "time_s", "kind", "models", "correlation", "low", "high"]
    frame: pd.DataFrame = layout.outwards(pd.DataFrame(rows, columns=columns))
    return frame


def rank_correlation(
    x: NDArray[np.float64], y: NDArray[np.float64], confidence: float
) -> tuple[float, float, float]:
    """Spearman's rank correlation, and its percentile bootstrap interval over the pairs."""
    if len(x) < _FEWEST or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan, math.nan, math.nan
    drawn = np.random.default_rng(0).integers(len(x), size=(_RESAMPLES, len(x)))
    resampled = _spearman(x[drawn], y[drawn])  # NaN where all values drawn are one
    low, high = np.nanquantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(_spearman(x[None], y[None])[0]), float(low), float(high)


def sharpness_markdown(
    table: pd.DataFrame, related: pd.DataFrame, confidence: float, layout: Layout = DRIFT
) -> list[str]:
    """The section of summary.md; empty where nothing was measured."""
    if table.empty:
        return []
    if layout is not DRIFT:  # models of one method in several variants are no repetitions
        names = zip(table["method"], table["profile"], strict=True)
        table = table.assign(method=[", ".join(filter(None, pair)) for pair in names])
    kinds = list(table["kind"].drop_duplicates())
    means = table.pivot_table("value", "method", "kind", aggfunc="mean", sort=False, dropna=False)
    lines = [
        "## Sharpness",
        "",
        f"Of the loss over the test data at the {layout.reference} weights, mean over the trainings of a "
        "method: rise at the worst point that one ascent step finds (sam, asam, samson), mean rise under "
        "random noise, largest eigenvalue and trace of the Hessian.",
        "",
        *_rows(
            ["method", *kinds],
            [[name, *(_short(means.loc[name].get(kind)) for kind in kinds)] for name in means.index],
        ),
        "",
        f"Rank correlation (Spearman) over the models between sharpness and what is lost on chips, with "
        f"{100 * confidence:g} % bootstrap intervals over the models; 1: the sharper, the more is lost.",
        "",
        *_related_rows(layout.inwards(related), kinds, layout),
    ]
    open_ = table[(table["kind"] == "eigenvalue") & table["converged"].eq(False)]
    lines += [
        f"- eigenvalue of {row.method}, seed {row.training_seed}: not converged, last bracket "
        f"{_short(row.low)} to {_short(row.high)}"
        for row in open_.itertuples()
    ]
    lines += [
        f"- {row.kind} of {row.method}, seed {row.training_seed}: {row.error}"
        for row in table[table["error"].notna()].itertuples()
    ]
    return [*lines, ""] if lines[-1] else lines


def _related_rows(related: pd.DataFrame, kinds: list[str], layout: Layout) -> list[str]:
    """A table per condition: its name is long, and as a column leaves a terminal no room."""
    label = format_time if layout is DRIFT else layout.label
    lines: list[str] = []
    for profile, own in related.groupby("profile", sort=False):
        rows = [
            [label(float(str(time))), *map(_interval, part.itertuples())]
            for time, part in own.groupby("time_s", sort=False)
        ]
        title = f"### {profile} ({own['models'].max()} models)"
        lines += [title, "", *_rows([layout.axis, *kinds], rows), ""]
    return lines


def _stored(models: Path, stem: str, data: str) -> dict[str, Any] | None:
    """What is stored of a model's sharpness, if it is of that model, these data and today's kinds."""
    record = read_record(models / f"{stem}.json")
    try:
        content = json.loads((models / f"{stem}{ENDING}").read_text(encoding="utf-8"))
        sound = (content["format"], content["model"], content["test_data"], set(content["kinds"])) == (
            FORMAT,
            (record or {})["sha256"],
            data,
            set(KINDS),
        )
        return dict(content["kinds"]) if sound else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy import stats  # takes a second to load

    a, b = (stats.rankdata(values, axis=1) for values in (x, y))
    a, b = (values - values.mean(axis=1, keepdims=True) for values in (a, b))
    with np.errstate(invalid="ignore"):
        ratio: NDArray[np.float64] = (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return ratio


def _rows(heading: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heading, ["---"] * len(heading), *rows)]


def _short(value: Any) -> str:
    return "–" if value is None or math.isnan(value) else number(value, ".4g")


def _interval(row: Any) -> str:
    if math.isnan(row.correlation):
        return "–"
    middle, low, high = (number(value, ".2f") for value in (row.correlation, row.low, row.high))
    return f"{middle} [{low}, {high}]"
