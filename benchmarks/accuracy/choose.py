"""From trials to choices: the best trial of each method, by validation accuracy alone."""

from __future__ import annotations

import pandas as pd

from analognoise.training.recipes import parse_method
from benchmarks.accuracy.plan import CLEAN, FINAL_SEEDS, METHODS, PROFILES, TARGET, Training


def choose(trials: pd.DataFrame) -> pd.DataFrame:
    """One row per selection ("clean" or "target"), method and profile: the chosen trial and its validation
    score.

    The score is the mean over the trial's seeds of accuracy without noise (clean) or of accuracy on chips of
    the profile (target, mean over chips and times). Equal scores are decided by the loss without noise.
    """
    keys = ["method", "trained_for", "trial", "recipe", "lr"]
    means = trials.fillna({"trained_for": ""}).groupby(keys, sort=False).mean(numeric_only=True).reset_index()
    rows = []
    for method in METHODS:
        own = means[means["method"] == method]
        for profile in PROFILES:
            mine = own[own["trained_for"] == profile] if parse_method(method).needs_profile else own
            for selection, column in ((CLEAN, "clean_accuracy"), (TARGET, profile)):
                best = mine.sort_values([column, "clean_loss"], ascending=[False, True], kind="stable").iloc[
                    0
                ]
                rows.append(
                    {
                        "selection": selection,
                        "method": method,
                        "profile": profile,
                        "trained_for": best["trained_for"],
                        "trial": int(best["trial"]),
                        "recipe": best["recipe"],
                        "lr": best["lr"],
                        "validation_score": best[column],
                        "clean_accuracy": best["clean_accuracy"],
                    }
                )
    return pd.DataFrame(rows)


def final_jobs(choices: pd.DataFrame) -> list[tuple[Training, tuple[str, ...]]]:
    """Each distinct training with the profiles that it is tested on; one-gradient methods also at twice the
    epochs.
    """
    wanted: dict[Training, list[str]] = {}
    for row in choices.to_dict("records"):
        factors = (1, 2) if parse_method(row["recipe"]).gradients_per_step == 1 else (1,)
        for factor in factors:
            for seed in FINAL_SEEDS:
                training = Training(
                    row["method"], row["trained_for"], row["trial"], row["recipe"], row["lr"], factor, seed
                )
                profiles = wanted.setdefault(training, [])
                if row["profile"] not in profiles:
                    profiles.append(row["profile"])
    return [(training, tuple(profiles)) for training, profiles in wanted.items()]
