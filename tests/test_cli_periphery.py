"""Converters on the command line: presets, where ranges come from, what is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import analognoise as an
from analognoise.cli import main

MINE = """
    import torch
    from torch import nn
    from analognoise import Task
    from analognoise.tasks.base import TensorBatches

    def build(seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 3))

    def batches(seed, size=60):
        x = torch.randn(120, 20, generator=torch.Generator().manual_seed(seed))
        return TensorBatches(x, x[:, :3].argmax(1), size)

    def test_loader():
        return batches(1)

    def train_loader():
        return batches(2)

    def broken():
        return [(torch.randn(4, 21), torch.zeros(4))]

    def task():
        return Task(name="mine", description="a test", build=build, train=lambda seed, size: batches(2),
                    validation=batches(3), test=batches(1), epochs=2, batch_size=40, n_classes=3)
"""
MODEL = ["--model", "mine:build", "--weights", "weights.safetensors", "--data", "mine:test_loader"]
PCM = ["--profile", "pcm-ibm", "--chips", 2, "--times", "1d", "--periphery", "standard-8bit"]
NAME = "pcm-ibm(standard-8bit)"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture(autouse=True)
def home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With weights that fit, too."""
    monkeypatch.syspath_prepend(str(home))
    import mine

    save_file(mine.build().state_dict(), home / "weights.safetensors")
    return home


def expected(loader: str) -> an.DriftReport:
    """The same in Python, ranges from a loader."""
    import mine

    model = mine.build()
    model.load_state_dict(load_file("weights.safetensors"))
    profile = an.load_profile("pcm-ibm").replace({"periphery.preset": "standard-8bit", "name": NAME})
    analog = an.calibrate_(an.convert_to_analog(model, profile), getattr(mine, loader)())
    return an.evaluate_drift(analog, mine.test_loader(), times=["1d"], chips=2)


@pytest.mark.parametrize(
    ("options", "loader", "source"),
    [
        (MODEL, "test_loader", "the test data (name training data with --calibration)"),
        ([*MODEL, "--calibration", "mine:train_loader"], "train_loader", "data 'mine:train_loader'"),
        (
            ["--task", "mine:task", "--weights", "weights.safetensors"],
            "train_loader",
            "training data of task 'mine'",
        ),
    ],
    ids=["test data", "named", "task"],
)
def test_ranges_come_from_what_is_said(run, options, loader, source):
    status, out, err = run("evaluate", *options, *PCM, "--out", "out")
    assert status == 0, err
    assert "periphery: 8-bit DAC (calibrated)" in " ".join(out.split())
    assert f"ranges of the converters: from {source}" in err
    rows = pd.read_csv("out/results.csv")
    assert list(rows["value"]) == [row.value for row in expected(loader).rows]
    assert set(rows["profile"]) == {NAME}
    record = json.loads(Path("out/run.json").read_text())
    assert record["settings"]["periphery"] == "standard-8bit"
    assert record["settings"]["calibration"] == source
    before = Path("out/results.csv").read_bytes()
    assert run("evaluate", *options, *PCM, "--out", "out")[0] == 0
    assert Path("out/results.csv").read_bytes() == before


def test_none_takes_a_profiles_own_periphery_away(run):
    profile = an.load_profile("pcm-ibm").replace({"periphery.preset": "standard-8bit"})
    Path("mine.toml").write_text(
        "name = 'mine'\nconductance = { unit = 'uS', g_max = 25.0 }\n[periphery]\npreset = 'standard-8bit'\n"
    )
    assert an.load_profile("mine.toml").surroundings == profile.surroundings
    base = ["evaluate", *MODEL, "--chips", 1, "--profile", "mine.toml"]
    with_it = json.loads(run(*base, "--json")[1])
    without = json.loads(run(*base, "--periphery", "none", "--json")[1])
    assert with_it["evaluations"][0]["model"]["layers"][0]["periphery"]
    assert without["evaluations"][0]["model"]["layers"][0]["periphery"] == ""
    assert without["evaluations"][0]["profile"] == "mine(none)"


def test_compare_and_sensitivity_take_a_periphery(run):
    status, out, err = run("sensitivity", *MODEL, *PCM, "--out", "layers", "--json")
    assert status == 0, err
    assert json.loads(out)["model"]["layers"][0]["periphery"].startswith("8-bit DAC")
    methods = ["--methods", "sgd", "--epochs", 1, "--seeds", 1, "--workers", 1]
    status, out, err = run("compare", "--task", "mine:task", *PCM, *methods, "--out", "methods")
    assert status == 0, err
    assert set(pd.read_csv("methods/results.csv")["profile"]) == {NAME}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--periphery", "standard8"], "--periphery 'standard8' is unknown (did you mean 'standard-8bit'?)"),
        (
            ["--periphery", "none", "--calibration", "mine:train_loader"],
            "--calibration mine:train_loader: no converter takes its range from data",
        ),
        (
            ["--calibration", "mine:broken"],
            "data 'mine:broken': calibration data, batch 0: ",
        ),
        (["--set", "periphery.adc.bits=0"], "periphery.adc.bits is 0 but must be at least 2"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(run, options, words):
    status, _, err = run("evaluate", *MODEL, *PCM, *options, "--out", "out")
    assert status == 2
    assert words in err
    assert not Path("out").exists()


def test_seeds_of_torch_do_not_matter(run):
    torch.manual_seed(1)
    first = run("evaluate", *MODEL, *PCM, "--json")[1]
    torch.manual_seed(2)
    assert run("evaluate", *MODEL, *PCM, "--json")[1] == first
