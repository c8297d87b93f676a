"""The honest comparison of training methods: ``make accuracy`` runs it, ``--help`` shows its options."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

import analognoise as an
from analognoise.training.recipes import parse_method
from benchmarks.accuracy import report
from benchmarks.accuracy.choose import choose, final_jobs
from benchmarks.accuracy.plan import (
    FINAL_CHIP_SEED,
    FINAL_CHIPS,
    FINAL_SEEDS,
    METHODS,
    PROFILES,
    TIMES,
    TRIAL_CHIP_SEED,
    TRIAL_CHIPS,
    TRIAL_SEEDS,
    TRIALS,
    ranges,
    trial_trainings,
)
from benchmarks.accuracy.run import (
    RESULT_COLUMNS,
    TASK,
    TRAINING_COLUMNS,
    TRIAL_COLUMNS,
    Ledger,
    in_parallel,
    run_final,
    run_trial,
)


def settings() -> dict[str, object]:
    """Everything that decides the figures."""
    return {
        "task": TASK,
        "methods": {method: parse_method(method).hyperparameters for method in METHODS},
        "profiles": {name: an.load_profile(name).digest for name in PROFILES},
        "times": TIMES,
        "trials": TRIALS,
        "trial_seeds": TRIAL_SEEDS,
        "trial_chips": [TRIAL_CHIPS, TRIAL_CHIP_SEED],
        "final_seeds": FINAL_SEEDS,
        "final_chips": [FINAL_CHIPS, FINAL_CHIP_SEED],
        "versions": {
            "analognoise": an.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def done(frame: pd.DataFrame, columns: list[str]) -> set[tuple]:
    return set(map(tuple, frame[columns].fillna("").itertuples(index=False)))


def main(
    out: Annotated[Path, typer.Option(help="Folder of the run; an interrupted run goes on there.")] = Path(
        "runs/accuracy"
    ),
    workers: Annotated[int, typer.Option(help="Worker processes, one thread each.")] = len(
        os.sched_getaffinity(0)
    ),
    publish: Annotated[
        Path | None, typer.Option(help="Also copy tables, pictures and small CSV files here.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Forget what is there and start over.")] = False,
) -> None:
    """Search, choose, train anew, test once, and write the tables and pictures."""
    begun = time.monotonic()
    if force:
        for name in ("run.json", "trials.csv", "results.csv"):
            (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    record = out / "run.json"
    now = json.dumps(settings(), indent=1)
    if record.exists() and json.loads(record.read_text()) != json.loads(now):
        typer.echo(
            f"error: {out} holds a run with other settings (see run.json): choose another --out", err=True
        )
        raise typer.Exit(2)
    record.write_text(now)
    pd.DataFrame(ranges()).to_csv(out / "ranges.csv", index=False)

    trials = Ledger(out / "trials.csv", TRIAL_COLUMNS)
    finished = done(trials.frame(), TRAINING_COLUMNS)
    jobs = [(training,) for training in trial_trainings() if _key(training) not in finished]
    typer.echo(f"trials: {len(finished)} there, {len(jobs)} to run")
    in_parallel(run_trial, jobs, trials, "trials", workers)

    order = {_key(training): number for number, training in enumerate(trial_trainings())}
    frame = trials.frame()
    frame = frame.iloc[[i for _, i in sorted((order[key], i) for i, key in enumerate(_keys(frame)))]]
    choices = choose(frame)
    choices.to_csv(out / "choices.csv", index=False)

    finals = Ledger(out / "results.csv", RESULT_COLUMNS)
    finished = done(finals.frame(), [*TRAINING_COLUMNS, "profile"])
    jobs = []
    for training, profiles in final_jobs(choices):
        missing = tuple(name for name in profiles if (*_key(training), name) not in finished)
        if missing:
            jobs.append((training, missing))
    typer.echo(f"final trainings: {len(jobs)} to run")
    in_parallel(run_final, jobs, finals, "final trainings", workers)

    written = report.write(out, finals.frame(), choices)
    frame.to_csv(out / "trials-sorted.csv", index=False)
    typer.echo("\n".join(str(path) for path in written))
    typer.echo(f"{(time.monotonic() - begun) / 60:.0f} minutes with {workers} workers", err=True)
    if publish is not None:
        publish.mkdir(parents=True, exist_ok=True)
        for path in [*written, out / "ranges.csv", out / "choices.csv", record]:
            shutil.copy(path, publish / path.name)
        shutil.copy(out / "trials-sorted.csv", publish / "trials.csv")


def _key(training: object) -> tuple:
    return tuple(getattr(training, name) for name in TRAINING_COLUMNS)


def _keys(frame: pd.DataFrame) -> list[tuple]:
    return list(map(tuple, frame[TRAINING_COLUMNS].fillna({"trained_for": ""}).itertuples(index=False)))


if __name__ == "__main__":
    typer.run(main)
