"""A user's metric that is better when smaller: who is best, lifetimes, and a digital value of 0."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import analognoise as an
from analognoise.cli import main
from analognoise.errors import DataError
from analognoise.evaluation.statistics import direction_of
from analognoise.metrics import Metric
from analognoise.tasks import Task
from analognoise.tasks.base import TensorBatches

MINE = """
    import torch
    from torch import nn

    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))

    def exact():
        x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            return [(x, build()(x))]

    def shifted():
        return [(x, y + 0.5) for x, y in exact()]

    def mse(output, batch):
        return ((output - batch[1]) ** 2).sum(), batch[1].numel()

    mse.higher_is_better = False
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "mine.py").write_text(dedent(MINE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("mine", None)


def mse(output: Tensor, batch: Any) -> tuple[Tensor, int]:
    return ((output - batch[1]) ** 2).sum(), batch[1].numel()


def smaller(output: Tensor, batch: Any) -> tuple[Tensor, int]:
    return mse(output, batch)


smaller.higher_is_better = False  # type: ignore[attr-defined]


def test_a_metric_says_which_values_are_better() -> None:
    assert direction_of(Metric.of(mse)) is True
    assert direction_of(Metric.of(mse), False) is direction_of(Metric.of(smaller)) is False
    assert direction_of(Metric.of("loss")) is False
    with pytest.raises(DataError, match=r"contradicts the metric 'smaller', whose attribute .* is False"):
        direction_of(Metric.of(smaller), True)
    odd = lambda output, batch: (0.0, 1)  # noqa: E731
    odd.higher_is_better = "no"  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="has higher_is_better = 'no': write True or False"):
        direction_of(Metric.of(odd))


def test_compare_takes_the_smallest_error_as_best(tmp_path: Path) -> None:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    y = x[:, :2]
    task = Task(
        name="regression",
        description="Two of six inputs.",
        build=lambda seed: nn.Linear(6, 2),
        train=lambda seed, size: TensorBatches(x, y, 16, seed=seed),
        validation=[(x, y)],
        test=[(x, y)],
        epochs=1,
        metric=smaller,
        loss=nn.functional.mse_loss,
    )
    methods = ["sgd", "sgd:lr=1e-06"]
    found = an.compare(
        task, "pcm-ibm", methods, times="1d", chips=3, seeds=(0, 1), workers=1, out=tmp_path / "out"
    )
    rows = found.summary.set_index("method")
    assert rows.loc["sgd", "mean"] < rows.loc["sgd:lr=1e-06", "mean"]
    assert rows["best"].to_dict() == {"sgd": True, "sgd:lr=1e-06": False}
    assert (rows["worst"] >= rows["mean"]).all()
    assert rows["drop"].tolist() == pytest.approx((rows["mean"] - rows["digital"]).tolist(), abs=1e-12)


@pytest.mark.parametrize(
    ("data", "words"), [("exact", "digital mse of 0"), ("shifted", "the mean mse crosses")]
)
def test_evaluations_of_an_error_end_whatever_its_digital_value(
    home: Path, capsys: pytest.CaptureFixture[str], data: str, words: str
) -> None:
    command = ["evaluate", "--model", "mine:build", "--data", f"mine:{data}", "--metric", "mine:mse"]
    command += [
        "--profile",
        "pcm-ibm",
        "--times",
        "1s,1d",
        "--chips",
        "3",
        "--quantile",
        "0.5",
        "--out",
        "out",
    ]
    assert main(command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert words in shown
    assert "mse counts as better when smaller" in shown
    rows = pd.read_csv("out/results.csv")
    summary = pd.read_csv("out/summary.csv")
    assert summary["worst"].tolist() == rows.groupby("time_s")["value"].max().tolist()
    text = (home / "out" / "summary.md").read_text()
    assert words in text
    assert ("until 50 % of chips cross" in text) == (data == "shifted")
    assert main(["report", "out"]) == 0
    assert words in " ".join(capsys.readouterr().out.split())
    assert (home / "out" / "summary.md").read_text() == text
