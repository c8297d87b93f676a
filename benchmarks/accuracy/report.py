"""Tables and pictures of the accuracy benchmark, from its CSV files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analognoise.evaluation.statistics import summarise_methods
from analognoise.report.plot import save_figure
from analognoise.report.table import markdown_table, summary_csv
from benchmarks.accuracy.plan import CLEAN, LEVELS, PCM, TARGET
from benchmarks.accuracy.run import TRAINING_COLUMNS

# All rows would hide each other in a picture; the tables have them all.
SHOWN = (
    "sgd",
    "clip",
    "noise+clip ×2",
    "profile-noise ×2",
    "profile-noise+clip ×2",
    "rwp",
    "rwp+clip",
    "sam",
    "sam+clip",
    "samson-inf",
    "samson-inf+clip",
    "samson-inf+clip+noise",
)
TITLES = {
    CLEAN: "hyperparameters chosen by clean validation accuracy (no knowledge of the device)",
    TARGET: "hyperparameters chosen by validation accuracy on chips of the device",
}


def joined(results: pd.DataFrame, choices: pd.DataFrame, selection: str) -> pd.DataFrame:
    """The test rows of one selection, with the names that tables show: ``method`` or ``method ×2`` (twice the
    epochs).
    """
    own = choices[choices["selection"] == selection]
    keys = ["method", "trained_for", "trial", "profile"]
    rows = results.fillna({"trained_for": ""}).merge(own.fillna({"trained_for": ""})[keys], on=keys)
    doubled = rows["epochs_factor"] == 2
    rows["method"] = rows["method"] + doubled.map({True: " ×2", False: ""})
    return rows.rename(columns={"seed": "training_seed"})


def summaries(results: pd.DataFrame, choices: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The summary frame of each selection."""
    found = {}
    order = {name: index for index, name in enumerate(choices["method"].unique())}
    for selection in (CLEAN, TARGET):
        rows = joined(results, choices, selection)
        rows = rows.sort_values(
            ["method"],
            key=lambda names: names.map(lambda n: 2 * order[n.removesuffix(" ×2")] + n.endswith("×2")),
        )
        found[selection] = summarise_methods(rows.dropna(subset=["value"]))
    return found


def seed_means(results: pd.DataFrame) -> pd.DataFrame:
    """Mean over chips of every trained network at every profile and time: what the statistics rest on."""
    keys = [*TRAINING_COLUMNS, "profile", "time_s"]
    grouped = results.groupby(keys, sort=False, dropna=False)
    return grouped.agg(
        chips=("chip", "nunique"),
        mean=("value", "mean"),
        worst=("value", "min"),
        digital=("digital", "first"),
    ).reset_index()


def write(folder: Path, results: pd.DataFrame, choices: pd.DataFrame) -> list[Path]:
    """Write summaries, tables and pictures into ``folder``; returns what was written."""
    written = []
    for selection, frame in summaries(results, choices).items():
        part = {"pcm": frame[frame["profile"] == PCM], "gaussian": frame[frame["profile"].isin(LEVELS)]}
        text = [f"## Test accuracy, {TITLES[selection]}", ""]
        for name, table in part.items():
            text += [markdown_table(table, compensation="global"), ""]
            picture = folder / f"{selection}-{name}.png"
            save_figure(picture, table[table["method"].isin(SHOWN)])
            written.append(picture)
        path = folder / f"{selection}.md"
        path.write_text("\n".join(text))
        written += [path, summary_csv(frame, folder / f"{selection}-summary.csv")]
    path = folder / "seeds.csv"
    seed_means(results).to_csv(path, index=False)
    return [*written, path]
