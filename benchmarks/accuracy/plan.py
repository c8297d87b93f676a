"""What the accuracy benchmark trains: methods, trials, seeds and devices."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.stats import qmc

from analognoise.seeds import derive_seed
from analognoise.training.recipes import Range, parse_method

METHODS = (
    "sgd",
    "clip",
    "noise",
    "noise+clip",
    "profile-noise",
    "profile-noise+clip",
    "rwp",
    "rwp+clip",
    "sam",
    "sam+clip",
    "asam",
    "asam+clip",
    "samson-inf",
    "samson-inf+clip",
    "samson-2",
    "samson-2+clip",
    "samson-inf+clip+noise",
)
PCM = "pcm-ibm"
LEVELS = ("gaussian@2.5%", "gaussian@5%", "gaussian@10%", "gaussian@15%", "gaussian@20%")
PROFILES = (PCM, *LEVELS)
TIMES = {PCM: ("1s", "1h", "1d", "1mo", "1y")} | dict.fromkeys(LEVELS, ("0s",))

LEARNING_RATE = Range(0.02, 0.2, log=True)
TRIALS = 12
# Seeds of trials, of final trainings, and of the chips that each is judged on have nothing in common.
TRIAL_SEEDS = (1000, 1001, 1002)
FINAL_SEEDS = tuple(range(10))
TRIAL_CHIPS, TRIAL_CHIP_SEED = 5, 1
FINAL_CHIPS, FINAL_CHIP_SEED = 25, 0

# Table (a) chooses without knowing the device, table (b) on chips of the device.
CLEAN, TARGET = "clean", "target"


@dataclass(frozen=True, order=True)
class Training:
    """One training: everything that decides its weights."""

    method: str
    trained_for: str  # the profile that profile-noise draws from; "" for methods that know no device
    trial: int
    recipe: str
    lr: float
    epochs_factor: int
    seed: int


def trials(method: str) -> list[tuple[str, float]]:
    """``(recipe, learning rate)`` of each trial: a scrambled Halton sequence over the stated ranges.

    Sharpness-aware methods climb with all parameters in every other trial and with the weights alone in the
    rest, because the two want other ranges of rho.
    """
    base = parse_method(method)
    climbs = "perturb" in base.hyperparameters
    dimensions = 1 + len(base.ranges)
    points = qmc.Halton(dimensions, seed=derive_seed("accuracy benchmark", method) % (1 << 32)).random(TRIALS)
    drawn = []
    for number, point in enumerate(points):
        recipe = base.replace(perturb=("all", "weights")[number % 2]) if climbs else base
        values = {
            name: search.at(x) for (name, search), x in zip(recipe.ranges.items(), point[1:], strict=True)
        }
        drawn.append((recipe.replace(**values).label, LEARNING_RATE.at(point[0])))
    return drawn


def ranges() -> list[dict[str, object]]:
    """Every range that is searched, for the record."""
    rows: list[dict[str, object]] = []
    for method in METHODS:
        base = parse_method(method)
        kinds = ("all", "weights") if "perturb" in base.hyperparameters else ("",)
        for kind in kinds:
            recipe = base.replace(perturb=kind) if kind else base
            searched = {"lr": LEARNING_RATE, **recipe.ranges}
            for name, search in searched.items():
                rows.append(
                    {
                        "method": method,
                        "perturb": kind,
                        "hyperparameter": name,
                        "low": search.low,
                        "high": search.high,
                        "scale": "log" if search.log else "linear",
                    }
                )
    return rows


def trial_trainings() -> list[Training]:
    """All trainings of the search."""
    found = []
    for method in METHODS:
        targets = PROFILES if parse_method(method).needs_profile else ("",)
        for target in targets:
            for number, (recipe, lr) in enumerate(trials(method)):
                found += [Training(method, target, number, recipe, lr, 1, seed) for seed in TRIAL_SEEDS]
    return found
