"""The README's figures are those of the benchmark's files."""

from pathlib import Path

import pandas as pd
import pytest

from analognoise.evaluation.statistics import mean_interval

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "accuracy"


@pytest.mark.parametrize("selection", ["clean", "target"])
def test_the_readme_shows_the_benchmark_s_tables(selection):
    assert (FOLDER / f"{selection}-compact.md").read_text().strip() in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("selection", ["clean", "target"])
def test_summaries_follow_from_the_seeds(selection):
    """The published summary, recomputed from the published means of each seed and the published choices."""
    seeds = pd.read_csv(FOLDER / "seeds.csv", keep_default_na=False)
    choices = pd.read_csv(FOLDER / "choices.csv", keep_default_na=False)
    choices = choices[choices["selection"] == selection]
    rows = seeds.merge(
        choices[["method", "trained_for", "trial", "profile"]],
        on=["method", "trained_for", "trial", "profile"],
    )
    summary = pd.read_csv(FOLDER / f"{selection}-summary.csv")
    assert len(summary) == 23 * 10
    for cell in summary.itertuples():
        own = rows[
            (rows["method"] == cell.method.removesuffix(" ×2"))
            & (rows["epochs_factor"] == (2 if cell.method.endswith("×2") else 1))
            & (rows["profile"] == cell.profile)
            & (rows["time_s"] == cell.time_s)
        ]
        assert len(own) == cell.n == 10
        over = mean_interval(own["mean"])
        assert (cell.mean, cell.low, cell.high) == pytest.approx((over.mean, over.low, over.high), abs=1e-12)


def test_every_method_had_the_same_budget():
    trials = pd.read_csv(FOLDER / "trials.csv", keep_default_na=False)
    per = trials.groupby(["method", "trained_for"]).agg(trials=("trial", "nunique"), rows=("seed", "size"))
    assert (per["trials"] == 12).all()
    assert (per["rows"] == 36).all()
    assert trials["method"].nunique() == 17
