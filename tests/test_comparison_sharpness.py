"""Sharpness in a comparison: stored, reused, and set against what is lost on chips."""

from __future__ import annotations

import io
import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from rich.markdown import Markdown
from scipy import stats

import analognoise as an
from analognoise.comparison import Comparison, Event, compare, conclude
from analognoise.comparison.sharpness import VALUE_COLUMNS, correlations, rank_correlation, sharpness_markdown
from analognoise.landscape import KINDS
from analognoise.tasks import get_task, load_weights

BASIC = {
    "task": "digits",
    "profiles": "gaussian@10%",
    "methods": "sgd,sam",
    "chips": 2,
    "seeds": (0, 1),
    "epochs": 1,
    "workers": 1,
    "command": ["analognoise", "compare"],
}


def run(out: Path, **changes) -> Comparison:
    return compare(out=out, **(BASIC | changes))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Comparison:
    return run(tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture(scope="module")
def measured(plain, tmp_path_factory) -> Comparison:
    folder = tmp_path_factory.mktemp("measured") / "run"
    shutil.copytree(plain.folder, folder)
    return run(folder, sharpness=True)


def test_without_it_nothing_is_measured(plain):
    assert plain.sharpness.empty
    assert plain.correlations.empty
    assert "## Sharpness" not in plain.paths["text"].read_text()


def test_it_is_added_to_what_is_there_and_changes_no_row(plain, measured):
    assert (measured.reused_models, measured.reused_rows) == (4, 8)
    for name in ("results.csv", "summary.csv"):
        assert (measured.folder / name).read_bytes() == (plain.folder / name).read_bytes()
    assert list(measured.sharpness["kind"]) == [*KINDS] * 4
    assert list(measured.correlations["kind"]) == [*KINDS]
    assert (measured.correlations["models"] == 4).all()
    text = measured.paths["text"].read_text()
    assert "| method | sam | asam | samson | random | eigenvalue | trace |" in text
    assert json.dumps(measured.to_dict(), allow_nan=False)


class Counting(ThreadPoolExecutor):
    """Counts its tasks."""

    given = 0

    def submit(self, *args, **kwargs):
        self.given += 1
        return super().submit(*args, **kwargs)


def test_an_executor_measures_the_same(plain, measured, tmp_path):
    shutil.copytree(plain.folder, tmp_path / "run")
    with Counting(2) as executor:
        found = run(tmp_path / "run", sharpness=True, workers=None, executor=executor)
    assert executor.given >= 5  # one to see that it is open, and the models
    assert found.sharpness.equals(measured.sharpness)


def test_values_are_those_of_the_stored_models(measured):
    task = get_task("digits")
    model = task.build(1)
    load_weights(model, measured.folder / "models" / "sam-seed1.safetensors")
    frame = measured.sharpness
    for kind in ("samson", "eigenvalue"):
        found = frame[(frame["method"] == "sam") & (frame["training_seed"] == 1) & (frame["kind"] == kind)]
        assert found["value"].item() == an.sharpness(model, task.test, kind).value


def test_it_is_measured_once_and_again_for_another_model(measured, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(measured.folder, folder)
    events: list[Event] = []
    run(folder, sharpness=True, on_event=events.append)
    assert "sharpness" not in [event.kind for event in events]
    (folder / "models" / "sgd-seed0.sharpness.json").write_text("{")
    damaged = conclude(folder)
    assert len(damaged.sharpness) == 3 * len(KINDS)
    assert damaged.correlations["correlation"].isna().all()  # three models are too few
    again = run(folder, sharpness=True, on_event=events.append)
    assert [event.message for event in events if event.kind == "sharpness"] == ["sgd, seed 0"]
    pd.testing.assert_frame_equal(again.sharpness, measured.sharpness)
    assert (folder / "summary.md").read_bytes() == (measured.folder / "summary.md").read_bytes()


def test_force_deletes_it(measured, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(measured.folder, folder)
    run(folder, force=True, methods="sgd", seeds=(0,))
    assert {path.name for path in (folder / "models").iterdir()} == {
        "sgd-seed0.safetensors",
        "sgd-seed0.json",
    }


def test_rank_correlation_is_spearmans_and_its_interval_covers():
    rng = np.random.default_rng(1)
    x = rng.normal(size=40).round(1)  # with ties
    y = x + rng.normal(size=40)
    value, low, high = rank_correlation(x, y, 0.95)
    assert value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert low < value < high
    # Fisher's z has a standard error near sqrt((1 + r²/2)/(n - 3)) for ranks (Bonett and Wright 2000).
    half = 1.96 * math.sqrt((1 + value**2 / 2) / 37)
    assert high - low == pytest.approx(
        math.tanh(math.atanh(value) + half) - math.tanh(math.atanh(value) - half), rel=0.25
    )
    # With true correlation 0 about 95 % of the intervals hold it: 5 standard errors of 200 trials below.
    held = 0
    for _ in range(200):
        _, low, high = rank_correlation(rng.normal(size=20), rng.normal(size=20), 0.95)
        held += low <= 0 <= high
    assert held >= 200 * 0.95 - 5 * math.sqrt(200 * 0.95 * 0.05)
    assert all(map(math.isnan, rank_correlation(x[:3], y[:3], 0.95)))
    assert all(map(math.isnan, rank_correlation(np.ones(9), y[:9], 0.95)))


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_sharper_models_that_lose_more_give_one(metric):
    sign = 1 if metric == "accuracy" else -1
    rows, values = [], []
    for seed in range(5):
        # Models trained for this device; those of the same name for another one say nothing about it.
        values.append(("sgd", seed, "pcm", "sam", 0.1 * seed))
        values.append(("sgd", seed, "other", "sam", -0.1 * seed))
        for chip in range(3):
            # Each model's chips are averaged: chip 0 alone would order them the other way.
            lost = 0.01 * seed + (0.1 * (chip - 1) * seed)
            rows.append(("pcm (none)", "sgd", seed, chip, 1.0, metric, 0.9 - sign * lost, 0.9))
    results = pd.DataFrame(
        rows,
        columns=["profile", "method", "training_seed", "chip", "time_s", "metric", "value", "digital"],
    )
    table = pd.DataFrame(values, columns=["method", "training_seed", "profile", "kind", "value"])
    (found,) = correlations(table, results, 0.95).itertuples()
    assert (found.models, found.correlation) == (5, pytest.approx(1.0))


def test_what_has_no_value_or_has_not_converged_is_told():
    rows = [
        ("sgd", 0, "", "sam", 0.5, None, None, None, None, None),
        ("sgd", 0, "", "eigenvalue", 12.0, None, 11.0, 13.0, False, None),
        ("sgd", 0, "", "trace", math.nan, None, None, None, None, "no second derivative"),
    ]
    table = pd.DataFrame(rows, columns=list(VALUE_COLUMNS))
    related = pd.DataFrame(
        [("pcm", 86400.0, kind, 4, 0.8, 0.1, 0.9) for kind in ("sam", "eigenvalue")]
        + [("pcm", 86400.0, "trace", 0, math.nan, math.nan, math.nan)],
        columns=["profile", "time_s", "kind", "models", "correlation", "low", "high"],
    )
    lines = sharpness_markdown(table, related, 0.95)
    assert "| sgd | 0.5 | 12 | – |" in lines
    assert "### pcm (4 models)" in lines
    assert "| 1 day | 0.80 [0.10, 0.90] | 0.80 [0.10, 0.90] | – |" in lines
    for long in ("8 bits, sparsity top-k:0.3, flip, sign-magnitude", "pcm"):
        console = Console(width=80, file=io.StringIO())
        console.print(Markdown("\n".join(sharpness_markdown(table, related.assign(profile=long), 0.95))))
        assert "…" not in console.file.getvalue()
    assert "- eigenvalue of sgd, seed 0: not converged, last bracket 11 to 13" in lines
    assert "- trace of sgd, seed 0: no second derivative" in lines
