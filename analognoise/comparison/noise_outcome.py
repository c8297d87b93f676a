"""What a sweep of noise levels found, made from the files in its folder alone."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from rich.console import Console

from analognoise.comparison.outcome import Comparison, finish, picture, plain, summarised
from analognoise.comparison.page import page
from analognoise.comparison.stored import Stored, stored
from analognoise.errors import DataError
from analognoise.evaluation.midpoint import fit_midpoint
from analognoise.evaluation.noise_rows import NoiseRow
from analognoise.evaluation.statistics import better_when_higher, summarise_methods
from analognoise.files import write_whole
from analognoise.report.layout import NOISE, Layout
from analognoise.report.midpoints import draw_midpoints, midpoint_tables

COMMAND, NOUN = "noise-sweep", "a sweep of noise levels"
MODEL_COLUMNS = ("noise", "method", "training_seed", "mu", "low", "high", "slope", "sigma_min", "sigma_max")


@dataclass(frozen=True)
class NoiseSweep(Comparison):
    """A finished sweep of noise levels; as :class:`Comparison`, with other columns.

    Attributes:
        models: one row per noise and trained model: its midpoint mu (inf above the largest level measured, 0
            below the smallest, NaN where there is none), the interval low, high over repeats, and the slope.
        midpoints: one row per noise and method: mu, the geometric mean over training seeds, with low, high,
            n, models ``lacking`` a midpoint (no better than guessing without noise: left out), whether some
            of the others are ``above`` or ``below`` all levels (they count with the last one, so
            that mu is a bound), p_best, best and marked, as in ``summary``.
    """

    models: pd.DataFrame = None  # type: ignore[assignment]  # defaults, as those before them have
    midpoints: pd.DataFrame = None  # type: ignore[assignment]

    layout: ClassVar[Layout] = NOISE

    def _print_tables(self, console: Console) -> None:
        midpoint_tables(self.midpoints, self.summary, self.confidence).print(console)

    def _about(self) -> list[str]:
        return [f"Accuracies at every level: {self.paths['summary'].name}."]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        frames = {"models": self.models, "midpoints": self.midpoints}
        return super().to_dict() | {
            name: plain(frame.replace([np.inf, -np.inf], np.nan)) for name, frame in frames.items()
        }


def conclude_noise(
    folder: str | os.PathLike[str], *, reused_models: int = 0, reused_rows: int = 0, write: bool = True
) -> NoiseSweep:
    """Fit the midpoints of the rows in such a sweep's folder, and write summary, text and pictures (again).

    Args:
        folder: output folder of :func:`analognoise.noise_sweep`.
        reused_models: for the result.
        reused_rows: for the result.
        write: whether the files are; without, the result names those that are there.

    Raises:
        ResultsError: when the folder is not such a sweep's, or a file in it is damaged.
    """
    found = stored(
        folder,
        lambda settings: settings["noises"],
        "sigmas",
        command=COMMAND,
        noun=NOUN,
        row=NoiseRow,
        layout=NOISE,
        writes=write,
    )
    broken = {failure.method for failure in found.failed}
    sound = found.sound(found.results["method"].isin(broken))
    summary = summarised(found, sound, product(set(sound["noise"]), broken))
    models = _models(sound, found.settings["chance"], found.confidence, found.higher_is_better)
    middle = _midpoints(models, found.confidence)
    sharp = found.sharpness()
    return finish(
        NoiseSweep,
        found,
        summary,
        pictures=_files(found, summary, middle),
        sharp=sharp,
        text=_text(found, summary, middle, sharp.text),
        reused_models=reused_models,
        reused_rows=reused_rows,
        models=models,
        midpoints=middle,
    )


def _files(found: Stored, summary: pd.DataFrame, middle: pd.DataFrame) -> dict[str, Path]:
    """The midpoints as a table, and the pictures, by what they are."""
    content = middle.to_csv(index=False, lineterminator="\n").encode()
    paths = {"midpoints": found.file("midpoints.csv", lambda path: write_whole(path, content))}
    paths["over_sigma"] = picture(found, summary[~summary["noise"].str.contains(" on ")], "sigma")
    if middle["noise"].str.contains(" on ").any():
        paths["by_layer"] = found.file(
            "midpoints.png", lambda path: draw_midpoints(path, middle, found.confidence)
        )
    return paths


def _models(
    rows: pd.DataFrame, chance: float | None, confidence: float, higher_is_better: bool | None
) -> pd.DataFrame:
    """The midpoint of every trained model under every noise; none for metrics that noise makes larger."""
    found: list[tuple[Any, ...]] = []
    fits = better_when_higher(str(rows["metric"].iloc[0]), higher_is_better)
    for (noise, method, seed), part in rows.groupby(["noise", "method", "training_seed"], sort=False):
        values = part.pivot(index="chip", columns="sigma", values="value").dropna()
        sigmas = np.array([float(sigma) for sigma in values.columns])
        clean = float(part["digital"].iloc[0])
        try:
            if not fits:
                raise DataError("noise makes the metric larger")
            fit = fit_midpoint(sigmas, values.to_numpy(float), clean, chance, confidence=confidence)
        except DataError:  # as good as guessing without noise, or too few levels
            found.append((noise, method, seed, *[math.nan] * 4, sigmas.min(), sigmas.max()))
        else:
            numbers = (fit.mu, fit.low, fit.high, fit.slope, fit.sigma_min, fit.sigma_max)
            found.append((noise, method, seed, *numbers))
    return pd.DataFrame(found, columns=list(MODEL_COLUMNS))


def _midpoints(models: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """By noise and method, from the midpoints' logarithms: means, intervals and tests over training seeds.

    One seed has the interval of its model, over repeats.
    """
    known = models.dropna(subset=["mu"])
    columns = ["noise", "method", "mu", "low", "high", "n", "lacking", "above", "below"]
    columns += ["sigma_min", "sigma_max", "p_best", "best", "marked"]
    if known.empty:
        return pd.DataFrame(columns=columns)
    logs = np.log(known["mu"].clip(known["sigma_min"], known["sigma_max"]).to_numpy(float))
    rows = known.assign(value=logs, profile=known["noise"], chip=0, time_s=0.0)
    rows = rows.assign(metric="ln mu", count=1.0, digital=0.0)
    found = summarise_methods(rows, confidence=confidence).rename(columns={"profile": "noise"})
    ends = known.groupby(["noise", "method"], sort=False).agg(
        above=("mu", lambda mu: bool((mu == math.inf).any())),
        below=("mu", lambda mu: bool((mu == 0).any())),
        sigma_min=("sigma_min", "min"),
        sigma_max=("sigma_max", "max"),
        first_low=("low", "first"),
        first_high=("high", "first"),
    )
    without = models["mu"].isna().groupby([models["noise"], models["method"]], sort=False).sum()
    found = found.join(ends, on=["noise", "method"]).join(without.rename("lacking"), on=["noise", "method"])
    # Where others are tested, one with too few midpoints for a test is not called as good as the best.
    tested = found.groupby("noise")["p_best"].transform(lambda p: p.notna().any())
    found["marked"] &= found["best"] | found["p_best"].notna() | ~tested
    several = found["n"] > 1
    return found.assign(
        mu=np.exp(found["mean"]),
        low=np.where(several, np.exp(found["low"]), found["first_low"]),
        high=np.where(several, np.exp(found["high"]), found["first_high"]),
    )[columns]


def _text(found: Stored, summary: pd.DataFrame, middle: pd.DataFrame, sharp: list[str]) -> str:
    settings = found.settings
    sigmas = ", ".join(map(NOISE.label, settings["sigmas"]))
    where = sorted({str(item["content"]["layers"]) for item in found.run["noises"].values()})
    layers = "all layers of a known kind" if where == ["None"] else "; ".join(where)
    return page(
        found,
        title="training methods under noisy computation",
        extent="for each model, noise and level",
        more=f"; noise at the outputs of {layers}",
        body=midpoint_tables(middle, summary, found.confidence).markdown(),
        sharp=sharp,
        about=[],
        end=f"Noise levels: {sigmas}; the metric at each: summary.csv. Settings and versions: run.json.",
    )
