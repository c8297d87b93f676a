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


# What the README shows of the tables: the device after a while, and three noise levels.
COMPACT = {
    "PCM, 1 s": (PCM, 1.0),
    "PCM, 1 day": (PCM, 86400.0),
    "PCM, 1 year": (PCM, 31536000.0),
    "5 %": ("gaussian@5%", 0.0),
    "10 %": ("gaussian@10%", 0.0),
    "20 %": ("gaussian@20%", 0.0),
}


def compact(frame: pd.DataFrame) -> str:
    """A table of a few columns for the README: mean ± half width in percent, marks as in the full tables."""
    at = {(row.method, row.profile, row.time_s): row for row in frame.itertuples()}
    rows = [["method", "digital", *COMPACT], ["---", *["---:"] * (len(COMPACT) + 1)]]
    for method in frame["method"].unique():
        own = [at[method, *place] for place in COMPACT.values()]
        texts = [f"{100 * cell.mean:.1f} ± {50 * (cell.high - cell.low):.1f}" for cell in own]
        marked = [
            f"**{text}** ★" if cell.best else f"{text} ★" if cell.marked else text
            for text, cell in zip(texts, own, strict=True)
        ]
        rows.append([method, f"{100 * own[0].digital:.1f}", *marked])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


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
        path = folder / f"{selection}-compact.md"
        path.write_text(compact(frame) + "\n")
        written.append(path)
    path = folder / "seeds.csv"
    seed_means(results).to_csv(path, index=False)
    return [*written, path]
