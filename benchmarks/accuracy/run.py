"""The work itself: trainings and their evaluation, in worker processes, appended to CSV files that resume."""

from __future__ import annotations

import csv
import io
import math
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, fields
from pathlib import Path

import pandas as pd
import torch

import analognoise as an
from analognoise.errors import TrainingError
from analognoise.progress import progress_bar
from analognoise.tasks import get_task
from benchmarks.accuracy.plan import (
    FINAL_CHIP_SEED,
    FINAL_CHIPS,
    PROFILES,
    TIMES,
    TRIAL_CHIP_SEED,
    TRIAL_CHIPS,
    Training,
)

TASK = "digits"
TRAINING_COLUMNS = [field.name for field in fields(Training)]
TRIAL_COLUMNS = [*TRAINING_COLUMNS, "clean_accuracy", "clean_loss", *PROFILES]
RESULT_COLUMNS = [*TRAINING_COLUMNS, "profile", "chip", "time_s", "metric", "count", "value", "digital"]


def train(training: Training) -> torch.nn.Module:
    """The trained digital network.

    Raises:
        TrainingError: when the training broke down.
    """
    task = get_task(TASK)
    model = task.build(training.seed)
    an.fit(
        model,
        task.train(training.seed, task.batch_size),
        recipe=training.recipe,
        profile=an.load_profile(training.trained_for) if training.trained_for else None,
        epochs=task.epochs * training.epochs_factor,
        lr=training.lr,
        seed=training.seed,
    )
    return model


def chips_of(model: torch.nn.Module, data: object, profile: str, chips: int, seed: int) -> pd.DataFrame:
    analog = an.convert_to_analog(model, profile)
    return an.evaluate_drift(analog, data, times=TIMES[profile], chips=chips, seed=seed).frame


def run_trial(training: Training) -> list[dict[str, object]]:
    """One row: accuracy and loss without noise, and accuracy on chips of each profile, on the validation
    split.
    """
    torch.set_num_threads(1)
    validation = get_task(TASK).validation
    targets = (training.trained_for,) if training.trained_for else PROFILES
    row: dict[str, object] = {**asdict(training), **dict.fromkeys(PROFILES, math.nan)}
    try:
        model = train(training).eval()
    except TrainingError:
        # A collapsed training is a trial like any other; it is never chosen.
        return [row | {"clean_accuracy": 0.0, "clean_loss": math.inf} | dict.fromkeys(targets, 0.0)]
    with torch.inference_mode():
        batches = [(model(x), y) for x, y in validation]
    count = sum(len(y) for _, y in batches)
    loss = torch.nn.functional.cross_entropy
    row["clean_accuracy"] = sum(int((out.argmax(1) == y).sum()) for out, y in batches) / count
    row["clean_loss"] = sum(float(loss(out, y, reduction="sum")) for out, y in batches) / count
    for profile in targets:
        row[profile] = chips_of(model, validation, profile, TRIAL_CHIPS, TRIAL_CHIP_SEED)["value"].mean()
    return [row]


def run_final(training: Training, profiles: tuple[str, ...]) -> list[dict[str, object]]:
    """Rows per profile, chip and time, on the test split; NaN rows when the training broke down."""
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    try:
        model = train(training)
    except TrainingError:
        return [{**asdict(training), "profile": profile, "value": math.nan} for profile in profiles]
    for profile in profiles:
        frame = chips_of(model, get_task(TASK).test, profile, FINAL_CHIPS, FINAL_CHIP_SEED)
        wanted = frame[["profile", "chip", "time_s", "metric", "count", "value", "digital"]]
        rows += [{**asdict(training), **row} for row in wanted.to_dict("records")]
    return rows


class Ledger:
    """An append-only CSV of finished jobs; a job's rows are written at once, and what is there is not run
    again.
    """

    def __init__(self, path: Path, columns: list[str]) -> None:
        self.path, self.columns = path, columns
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(",".join(columns) + "\n")
        text = path.read_text()
        if not text.endswith("\n"):  # killed in the middle of a line
            path.write_text(text[: text.rfind("\n") + 1])

    def frame(self) -> pd.DataFrame:
        return pd.read_csv(
            self.path, keep_default_na=False, na_values=["nan", ""], dtype={"trained_for": str}
        )

    def append(self, rows: Iterable[dict[str, object]]) -> None:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, lineterminator="\n").writerows(rows)
        with self.path.open("a") as file:
            file.write(text.getvalue())
            file.flush()
            os.fsync(file.fileno())


def in_parallel(function: object, jobs: list[tuple], ledger: Ledger, description: str, workers: int) -> None:
    """Run ``function(*job)`` for every job and append its rows as they come."""
    if not jobs:
        return
    context = multiprocessing.get_context("spawn")
    with (
        progress_bar(description, len(jobs)) as advance,
        ProcessPoolExecutor(workers, mp_context=context) as pool,
    ):
        futures = [pool.submit(function, *job) for job in jobs]  # type: ignore[arg-type]
        try:
            for future in as_completed(futures):
                ledger.append(future.result())
                advance()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
