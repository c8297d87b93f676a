"""What is searched: studies, their methods, and the trials of each."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from scipy.stats import qmc

from analognoise.seeds import derive_seed
from analognoise.training.recipes import Range, parse_method

LEARNING_RATE = Range(0.02, 0.2, log=True)
# Far from the seeds of the comparisons that the choices are made for (0, 1, 2, …).
TRIAL_SEEDS = (1000, 1001)
TRIAL_CHIPS, TRIAL_CHIP_SEED = 5, 1


@dataclass(frozen=True)
class Study:
    """A comparison whose methods' hyperparameters are searched.

    Attributes:
        methods: each gets the same number of trials.
        cells: settings that the comparison sweeps; a trial is run in each, and judged by the mean.
        levels: fault rates or noise levels of the judgement, on the validation split.
    """

    methods: tuple[str, ...]
    cells: tuple[dict[str, str | float], ...]
    levels: tuple[float, ...]


STUDIES = {
    "faults": Study(
        methods=("qat", "qat+clip", "saq", "asaq", "samson-saq"),
        cells=tuple(
            {"bits": bits, "sparsity": sparsity}
            for bits, sparsity in itertools.product((4, 8), ("none", "high"))
        ),
        levels=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    ),
    "noise": Study(
        methods=(
            "sgd",
            "clip",
            "qat-const:bits=4",
            "qat-const",
            "qat-const:bits=16",
            "noisy",
            "noisy:sigma_ramp=0.5",
            "vant",
            "qat-const+noisy",
            "sam",
            "samson",
            "samson+noisy",
        ),
        cells=({},),
        levels=tuple(round(10 ** (power / 4), 4) for power in range(-8, 9)),
    ),
}


@dataclass(frozen=True, order=True)
class Trial:
    """One training: everything that decides its weights."""

    method: str
    number: int
    recipe: str
    lr: float
    cell: str
    seed: int


def settings_of(method: str, trials: int) -> list[tuple[str, float]]:
    """``(recipe, learning rate)`` of each trial: a scrambled Halton sequence over the stated ranges."""
    base = parse_method(method)
    sequence = qmc.Halton(1 + len(base.ranges), seed=derive_seed("search", method) % (1 << 32))
    drawn = []
    for point in sequence.random(trials):
        values = {
            name: search.at(x) for (name, search), x in zip(base.ranges.items(), point[1:], strict=True)
        }
        drawn.append((base.replace(**values).label, LEARNING_RATE.at(point[0])))
    return drawn


def trials_of(study: Study, trials: int) -> list[Trial]:
    """All trainings of a search."""
    return [
        Trial(method, number, recipe, lr, ":".join(f"{key}={value}" for key, value in cell.items()), seed)
        for method in study.methods
        for number, (recipe, lr) in enumerate(settings_of(method, trials))
        for cell in study.cells
        for seed in TRIAL_SEEDS
    ]
