"""A trial: train on the training split, judge on the validation split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields

import torch

import analognoise as an
from analognoise.errors import TrainingError
from analognoise.tasks import get_task
from analognoise.training.recipes import parse_method
from benchmarks.search.plan import TRIAL_CHIP_SEED, TRIAL_CHIPS, Trial

TASK = "digits"
TRIAL_COLUMNS = [field.name for field in fields(Trial)]
COLUMNS = [*TRIAL_COLUMNS, "clean", "score"]


def run_trial(study: str, trial: Trial, levels: Sequence[float]) -> list[dict[str, object]]:
    """One row: accuracy without disturbance, and its mean over the levels."""
    torch.set_num_threads(1)
    task = get_task(TASK)
    model = task.build(trial.seed)
    cell = dict(pair.split("=") for pair in trial.cell.split(":") if pair)
    row: dict[str, object] = asdict(trial)
    try:
        history = an.fit(
            model,
            task.train(trial.seed, task.batch_size),
            recipe=parse_method(trial.recipe).replace(**cell),
            epochs=task.epochs,
            lr=trial.lr,
            seed=trial.seed,
        )
    except TrainingError:
        # A collapsed training is a trial like any other; it is never chosen.
        return [row | {"clean": 0.0, "score": 0.0}]
    clean, score = JUDGES[study](history.trained.eval(), task.validation, levels)
    return [row | {"clean": clean, "score": score}]


def _faults(model: torch.nn.Module, data: object, levels: Sequence[float]) -> tuple[float, float]:
    report = an.evaluate_faults(model, data, rates=levels, chips=TRIAL_CHIPS, seed=TRIAL_CHIP_SEED)
    return report.quantized, float(report.frame["value"].mean())


def _noise(model: torch.nn.Module, data: object, levels: Sequence[float]) -> tuple[float, float]:
    report = an.evaluate_noise(model, data, levels, repeats=TRIAL_CHIPS, seed=TRIAL_CHIP_SEED)
    return report.digital, float(report.frame["value"].mean())


JUDGES = {"faults": _faults, "noise": _noise}
