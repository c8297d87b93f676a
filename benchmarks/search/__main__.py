"""Choose hyperparameters on the validation split: ``python -m benchmarks.search faults``, or ``noise``.

What it prints goes to ``analognoise faults --methods`` or ``analognoise noise-sweep --methods``, which train
with other seeds and report on the test split.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from benchmarks.accuracy.run import Ledger, in_parallel
from benchmarks.search.plan import STUDIES, trials_of
from benchmarks.search.run import COLUMNS, TRIAL_COLUMNS, run_trial


def main(
    study: Annotated[str, typer.Argument(help=" or ".join(STUDIES))],
    trials: Annotated[int, typer.Option(help="Trials of each method.")] = 12,
    workers: Annotated[int, typer.Option(help="Worker processes, one thread each.")] = len(
        os.sched_getaffinity(0)
    ),
    out: Annotated[Path, typer.Option(help="Folder; an interrupted search goes on there.")] = Path(
        "runs/search"
    ),
    publish: Annotated[Path | None, typer.Option(help="Also write trials and choices here.")] = None,
) -> None:
    """Train every trial with every seed in every cell, and choose each method's best mean."""
    if study not in STUDIES:
        raise typer.BadParameter(f"{study!r} is not one of {', '.join(STUDIES)}")
    plan = STUDIES[study]
    wanted = trials_of(plan, trials)
    ledger = Ledger(out / study / "trials.csv", COLUMNS)
    there = set(_rows(ledger)[TRIAL_COLUMNS].itertuples(index=False, name=None))
    jobs = [
        (study, trial, plan.levels)
        for trial in wanted
        if tuple(getattr(trial, name) for name in TRIAL_COLUMNS) not in there
    ]
    typer.echo(f"trials: {len(wanted) - len(jobs)} there, {len(jobs)} to run", err=True)
    in_parallel(run_trial, jobs, ledger, "trials", workers)

    frame = _rows(ledger)
    order = {method: number for number, method in enumerate(plan.methods)}
    frame = frame.sort_values(
        ["method", "number", "cell", "seed"], key=lambda c: c.map(order) if c.name == "method" else c
    )
    means = (
        frame.groupby(["method", "number", "recipe", "lr"], sort=False)[["clean", "score"]]
        .mean()
        .reset_index()
    )
    best = means.loc[means.groupby("method", sort=False)["score"].idxmax()]
    if publish is not None:
        publish.mkdir(parents=True, exist_ok=True)
        frame.to_csv(publish / f"{study}-trials.csv", index=False)
        best.to_csv(publish / f"{study}-choices.csv", index=False)
    for row in best.to_dict("records"):
        judged = f"validation: {row['clean']:.4f} clean, {row['score']:.4f} disturbed"
        typer.echo(f"{row['recipe']}:lr={row['lr']:g}    {judged}")


def _rows(ledger: Ledger) -> pd.DataFrame:
    frame = ledger.frame()
    return frame.assign(cell=frame["cell"].astype("string").fillna("").astype(str))


if __name__ == "__main__":
    typer.run(main)
