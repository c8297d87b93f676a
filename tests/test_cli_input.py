"""Input that the command line must understand, or refuse with the right name: paths, callables, names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from safetensors.torch import save_file

from analognoise.cli import main
from analognoise.errors import nearest

MINE = """
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    def build():
        return nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 3))

    def _data(seed, samples):
        x = torch.randn(samples, 20, generator=torch.Generator().manual_seed(seed))
        return TensorDataset(x, x[:, :3].argmax(1))

    def batches():
        return DataLoader(_data(1, 40), batch_size=20)

    def shuffled():
        return DataLoader(_data(1, 40), batch_size=20, shuffle=True)

    def breaks(output, batch):
        return {}["nothing"]

    def bad_pair(output, batch):
        return "high"

    def breaks_late(output, batch):
        raise_ = batch[0][0, 0] == _data(1, 40).tensors[0][20, 0]
        return (1 / 0 if raise_ else 1.0), len(output)

    def bad_forward(model, batch):
        return model(batch["x"])
"""
PROFILE = """
    schema = 1
    name = "{name}"
    [conductance]
    unit = "uS"
    g_max = 50.0
    [programming]
    sigma = 1.0
"""
MODEL = ["--model", "mine:build", "--weights", "weights.safetensors"]
EVALUATE = ["evaluate", *MODEL, "--data", "mine:batches", "--profile", "gaussian", "--chips", "2"]
TRAIN = ["train", "--model", "mine:build", "--data", "mine:batches", "--epochs", "1", "--out", "out"]
SENSITIVITY = ["sensitivity", *EVALUATE[1:], "--out", "out"]
COMPARE = ["compare", "--methods", "sgd", "--epochs", "1", "--chips", "1", "--seeds", "1", "--out", "out"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's folder: a module, weights that fit."""
    (tmp_path / "mine.py").write_text(dedent(MINE))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("mine", None)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a refused command says; nothing may have been written."""
    before = sorted(path for path in Path().rglob("*") if "__pycache__" not in path.parts)
    capsys.readouterr()
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert sorted(path for path in Path().rglob("*") if "__pycache__" not in path.parts) == before
    return line


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ([*EVALUATE, "--out", ""], "--out"),
        ([*TRAIN[:-1], ""], "--out"),
        ([*COMPARE[:-1], " ", "--profile", "ideal"], "--out"),
        ([*EVALUATE, "--weights", ""], "--weights"),
        (["report", ""], "FOLDER"),
    ],
)
def test_an_empty_path_is_not_the_present_folder(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], option: str
) -> None:
    message = error_of(capsys, *arguments)
    assert option in message
    assert "empty" in message


def test_a_folder_of_weights_is_said_to_be_one(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "trained").mkdir()
    base = [*EVALUATE, "--weights", "trained"]
    assert error_of(capsys, *base).endswith("'trained' is a folder: name the safetensors file in it")
    (home / "weights.safetensors").rename(home / "trained" / "model.safetensors")
    assert "'trained/model.safetensors'" in error_of(capsys, *base)


@pytest.mark.parametrize(
    ("found", "known", "meant"),
    [
        ("IDEAL", ["gaussian", "ideal"], "ideal"),
        ("SGD", ["sgd", "sam"], "sgd"),
        ("T_0", ["t_0", "nu_mean"], "t_0"),
        ("weight", ["Weight"], "Weight"),
        ("a", ["a", "A"], "a"),
    ],
)
def test_capitals_do_not_hide_what_was_meant(found: str, known: list[str], meant: str) -> None:
    assert nearest(found, known) == f" (did you mean {meant!r}?)"


def test_far_names_are_not_suggested() -> None:
    assert nearest("zzz", ["sgd", "sam"]) == ""


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [([*EVALUATE, "--profile", "IDEAL"], "ideal"), ([*TRAIN, "--method", "SGD"], "sgd")],
)
def test_names_in_capitals(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], meant: str
) -> None:
    assert f"(did you mean '{meant}'?)" in error_of(capsys, *arguments)
