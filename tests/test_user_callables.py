"""A user's callable that goes wrong ends in one sentence that names it."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import analognoise as an
from analognoise.errors import DataError
from analognoise.tasks import get_task

MODULE = """
import sys
import torch
from torch import nn


def nothing():
    return nn.Sequential(nn.ReLU())


def leaves():
    sys.exit(0)


def data():
    return [(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))]
"""


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nothing", "error: nothing to convert in Sequential"),
        ("leaves", "error: model 'users:leaves' failed: SystemExit: 0"),
    ],
)
def test_models_that_cannot_be_evaluated(tmp_path: Path, model: str, words: str) -> None:
    (tmp_path / "users.py").write_text(MODULE)
    command = [
        "evaluate",
        "--model",
        f"users:{model}",
        "--data",
        "users:data",
        "--profile",
        "ideal",
        "--out",
        "o",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "analognoise", *command], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(words)
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_a_task_whose_training_data_cannot_be_made(tmp_path: Path) -> None:
    def train() -> list[tuple[torch.Tensor, torch.Tensor]]:
        return []

    task = replace(get_task("digits"), train=train)  # type: ignore[arg-type]
    with pytest.raises(
        DataError, match=r"train of task 'digits', called with \(seed, batch_size\), failed: TypeE"
    ):
        an.compare(task, ["ideal"], ["sgd"], out=tmp_path / "o", chips=2, times=["1s"])
    assert not (tmp_path / "o").exists()
