"""The command line as its user sees it: what is printed where, exit status, and what is (not) written."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from analognoise import __version__
from analognoise.cli import main
from analognoise.cli.shared import seed_list
from analognoise.errors import DataError
from analognoise.training.recipes import MODIFIERS
from tests.command import Result, Run

MINE = """
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    def build():
        return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 3))

    def nothing_to_convert():
        return nn.Sequential(nn.Flatten(), nn.LayerNorm(20))

    def broken():
        raise KeyError("no such backbone")

    def no_model():
        return {"layers": 2}

    def _data(seed, samples):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(samples, 20, generator=generator)
        return TensorDataset(x, x[:, :3].argmax(1))

    def train_loader(batch_size=50):
        return DataLoader(_data(0, 600), batch_size=batch_size, shuffle=True)

    def test_loader():
        return DataLoader(_data(1, 200), batch_size=100)

    def shuffled():
        return DataLoader(_data(1, 200), batch_size=100, shuffle=True)

    def wrong_shape():
        return [(torch.zeros(4, 7), torch.zeros(4, dtype=torch.long))]

    def wrong_labels():
        return [(torch.zeros(4, 20), torch.tensor([0, 1, 2, 3]))]

    def no_loader():
        return 42

    def no_batches():
        return [torch.zeros(4, 20)]

    def margin(output, batch):
        return output.max(1).values.sum(), len(output)

    def bad_metric(output, batch):
        return "high"

    def swapped(model, batch):
        return model(-batch[0])
"""
PROFILE = """
    schema = 1
    name = "mine"
    technology = "a device of the user's own"

    [conductance]
    unit = "uS"
    g_max = 50.0
    g_min = 2.0

    [programming]
    sigma = { curve = "polynomial", coefficients = [0.4, 1.2] }

    [drift]
    t_0 = 1.0
    nu_mean = 0.02
    nu_std = { curve = "table", x = [0.0, 0.5, 1.0], y = [0.012, 0.006, 0.005] }

    [tile]
    rows = 16
    columns = 16
"""


@pytest.fixture
def home(home: Path) -> Path:
    """With a profile and weights that fit, too."""
    (home / "my.toml").write_text(dedent(PROFILE))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
    save_file(model.state_dict(), home / "weights.safetensors")
    return home


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network that knows the digits a little."""
    folder = tmp_path_factory.mktemp("digits") / "trained"
    assert main(["train", "--task", "digits", "--epochs", "6", "--out", str(folder), "--json"]) == 0
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    found |= {f"{path.relative_to(folder)}/": b"" for path in folder.rglob("*") if path.is_dir()}
    return {name: content for name, content in found.items() if "__pycache__" not in name}


# What every command must be able to do


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["compare"],
        ["train"],
        ["evaluate"],
        ["report"],
        ["methods"],
        ["profiles"],
        ["profiles", "list"],
        ["profiles", "show"],
        ["profiles", "check"],
        ["profiles", "new"],
        ["profiles", "schema"],
    ],
    ids=" ".join,
)
def test_help_is_on_standard_output_and_shows_an_example(run: Run, command: list[str]) -> None:
    result = run(*command, "--help")
    assert (result.status, result.err) == (0, "")
    assert "Usage: analognoise" in result.out
    if command and command != ["profiles"]:
        assert "--json" in result.out or command == ["profiles", "schema"]  # which is JSON in any case
        assert f"analognoise {' '.join(command)}" in result.out.split("Examples")[1]


@pytest.mark.parametrize(
    "option", ["--profile", "--methods", "--times", "--chips", "--seeds", "--out", "--force"]
)
def test_help_of_compare_names_the_options(run: Run, option: str) -> None:
    assert option in run("compare", "--help").out


def test_version(run: Run) -> None:
    assert run("--version") == Result(0, f"analognoise {__version__}\n", "")


def test_bare_command_shows_help_and_is_wrong_use(run: Run) -> None:
    result = run()
    assert result.status == 2
    assert "Usage: analognoise" in result.out + result.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["comprae"], "compare"),
        (["compare", "--profile", "ideal"], "--out"),
        (["compare", "--out", "x"], "--profile"),
        (["train", "--metod", "sgd", "--out", "x"], "--method"),
        (["evaluate", "--profile", "ideal", "--chips", "many"], "--chips"),
        (["evaluate", "--profile", "ideal", "stray"], "stray"),
        (["profiles", "show"], "NAME|FILE"),
    ],
)
def test_wrong_use_is_one_sentence(run: Run, home: Path, arguments: list[str], text: str) -> None:
    before = snapshot(home)
    result = run(*arguments)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert text in result.err
    assert snapshot(home) == before


# Looking things up


def test_profiles_list(run: Run) -> None:
    text = run("profiles", "list")
    assert text.status == 0
    assert all(name in text.out for name in ("ideal", "pcm-ibm", "gaussian"))
    entries = {entry["name"]: entry for entry in run("profiles", "list", "--json").json["profiles"]}
    assert entries["pcm-ibm"]["effects"] == ["programming", "drift", "read"]
    assert entries["ideal"]["effects"] == []


def test_methods_lists_names_hyperparameters_and_modifiers(run: Run) -> None:
    found = run("methods", "--json").json
    names = {method["name"]: method for method in found["methods"]}
    assert {"sgd", "clip", "noise", "profile-noise", "rwp", "sam", "asam", "samson"} <= set(names)
    assert names["sam"]["gradients_per_step"] == 2
    assert {item["name"]: item["default"] for item in names["asam"]["hyperparameters"]}["rho"] == 0.5
    assert [item["name"] for item in found["modifiers"]] == list(MODIFIERS)
    assert "samson-2" in run("methods").out


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("1", (0,)), ("3", (0, 1, 2)), ("0,4,7", (0, 4, 7)), ("4,", (4,)), (" 1 , 2 ", (1, 2))],
)
def test_seeds(text: str, seeds: tuple[int, ...]) -> None:
    assert seed_list(text) == seeds


@pytest.mark.parametrize("text", ["0", "", "x", "1,x", "-1", "1.5", ","])
def test_seeds_that_are_none(text: str) -> None:
    with pytest.raises(DataError, match="--seeds"):
        seed_list(text)


# Training


def test_train_writes_weights_history_and_settings(run: Run, digits: Path) -> None:
    assert set(snapshot(digits)) == {"model.safetensors", "history.csv", "run.json"}
    history = pd.read_csv(digits / "history.csv")
    assert list(history["epoch"]) == [1, 2, 3, 4, 5, 6]
    assert history["validation"].iloc[-1] > 0.5
    settings = json.loads((digits / "run.json").read_text())["settings"]
    assert (settings["method"], settings["epochs"], settings["seed"]) == ("sgd", 6, 0)


def test_train_again_reuses_what_is_there(run: Run, digits: Path) -> None:
    before = snapshot(digits)
    result = run("train", "--task", "digits", "--epochs", 6, "--out", digits, "--json")
    assert result.status == 0
    assert "reused" in result.err
    assert result.json["reused"] is True
    assert snapshot(digits) == before


def test_train_force_starts_over_and_finds_the_same(run: Run, home: Path) -> None:
    arguments = [
        "train",
        "--task",
        "digits",
        "--epochs",
        1,
        "--method",
        "sam",
        "--out",
        home / "out",
        "--json",
    ]
    first = run(*arguments)
    before = snapshot(home / "out")
    (home / "out" / "model.safetensors").write_bytes(b"damaged")
    again = run(*arguments, "--force")
    assert again.json["reused"] is False
    assert snapshot(home / "out") == before
    assert first.json["history"] == again.json["history"]


def test_train_damaged_weights_are_trained_anew(run: Run, home: Path) -> None:
    arguments = ["train", "--task", "digits", "--epochs", 1, "--out", home / "out", "--json"]
    run(*arguments)
    before = snapshot(home / "out")
    (home / "out" / "model.safetensors").write_bytes(b"damaged")
    assert run(*arguments).json["reused"] is False
    assert snapshot(home / "out") == before


def test_train_own_model_and_go_on_from_its_weights(run: Run, home: Path) -> None:
    own = ["--model", "mine:build", "--data", "mine:train_loader", "--validation", "mine:test_loader"]
    first = run("train", *own, "--method", "sam+clip:rho=0.02", "--epochs", 4, "--out", "a", "--json")
    assert first.status == 0, first.err
    accuracy = first.json["history"]["validation"]
    assert accuracy[-1] > 0.6
    tuned = run(
        *[
            "train",
            *own,
            "--weights",
            "a/model.safetensors",
            "--epochs",
            1,
            "--lr",
            0.001,
            "--batch-size",
            100,
        ],
        *["--out", "b", "--json"],
    )
    assert tuned.status == 0, tuned.err
    # It begins where the other ended, not at the start.
    assert tuned.json["history"]["validation"][0] > accuracy[0]
    assert tuned.json["settings"]["batch_size"] == 100
    before, after = (load_file(f"{name}/model.safetensors")["0.weight"] for name in "ab")
    assert 0 < float((after - before).abs().max()) < 0.05


def test_train_without_validation_shows_none(run: Run, home: Path) -> None:
    result = run("train", "--model", "mine:build", "--data", "mine:train_loader", "--epochs", 1, "--out", "a")
    assert result.status == 0, result.err
    assert "validation" not in result.out
    assert "gradient evaluations" in result.out


# Evaluating


def test_evaluate_own_model_data_and_profile(run: Run, home: Path) -> None:
    arguments = ["--model", "mine:build", "--weights", "weights.safetensors", "--data", "mine:test_loader"]
    result = run(
        *["evaluate", *arguments, "--profile", "my.toml", "--profile", "ideal", "--times", "1h,1y"],
        *["--chips", 3, "--out", "out", "--json"],
    )
    assert result.status == 0, result.err
    mine, ideal = result.json["evaluations"]
    assert (mine["profile"], mine["chips"]) == ("mine", 3)
    assert [row["time_s"] for row in mine["over_time"]] == [3600.0, 31536000.0]
    assert mine["lifetime"]["text"]
    assert mine["model"]["devices"] == 2 * (20 * 32 + 32 * 3)
    # Without any noise the chip is the digital model, and time changes nothing.
    assert [row["mean"] for row in ideal["over_time"]] == [ideal["digital"]]
    rows = pd.read_csv(home / "out" / "results.csv")
    assert list(rows.groupby("profile", sort=False).size()) == [6, 3]
    assert np.allclose(
        rows[rows["profile"] == "mine"].groupby("time_s")["value"].mean(),
        [row["mean"] for row in mine["over_time"]],
    )
    expected = {"results.csv", "summary.csv", "summary.md", "run.json", "accuracy_over_time.png"}
    assert set(snapshot(home / "out")) == expected


def test_evaluate_without_out_writes_nothing(run: Run, home: Path) -> None:
    before = snapshot(home)
    result = run(
        *["evaluate", "--model", "mine:build", "--data", "mine:test_loader", "--profile", "my.toml"],
        *["--times", "1h", "--chips", 2],
    )
    assert result.status == 0, result.err
    assert "chips of mine" in result.out
    assert snapshot(home) == before


def test_evaluate_goes_on_and_adds_chips(run: Run, digits: Path, tmp_path: Path) -> None:
    base = ["evaluate", "--task", "digits", "--weights", digits / "model.safetensors", "--profile", "pcm-ibm"]
    base += ["--times", "1h,1y", "--out", tmp_path / "out"]
    assert run(*base, "--chips", 2).status == 0
    # As a kill leaves it: the last line cut short, and nothing but the rows.
    results = tmp_path / "out" / "results.csv"
    whole = results.read_text()
    results.write_text(whole[:-10])
    for path in (tmp_path / "out").iterdir():
        if path != results:
            path.unlink()
    again = run(*base, "--chips", 2, "--json")
    assert again.status == 0, again.err
    assert again.json["evaluations"][0]["reused_rows"] == 3
    assert "warning: " in again.err
    assert results.read_text() == whole
    more = run(*base, "--chips", 3, "--json")
    assert more.json["evaluations"][0]["reused_rows"] == 4
    assert results.read_text().startswith(whole)


def test_evaluate_metric_and_forward_of_ones_own(run: Run, home: Path) -> None:
    base = [
        "evaluate",
        "--model",
        "mine:build",
        "--weights",
        "weights.safetensors",
        "--data",
        "mine:test_loader",
    ]
    base += ["--profile", "ideal", "--chips", 1, "--json"]
    own = run(*base, "--metric", "mine:margin").json["evaluations"][0]
    assert own["metric"] == "margin"
    plain = run(*base).json["evaluations"][0]["digital"]
    swapped = run(*base, "--forward", "mine:swapped").json["evaluations"][0]["digital"]
    assert plain != swapped
    loss = run(*base, "--metric", "loss").json["evaluations"][0]
    assert loss["digital"] > 0


def test_report_shows_again_what_evaluate_found(run: Run, home: Path) -> None:
    result = run(
        *[
            "evaluate",
            "--model",
            "mine:build",
            "--data",
            "mine:test_loader",
            "--profile",
            "my.toml,gaussian@5%",
        ],
        *["--profile", "gaussian@10%", "--times", "1h,1d", "--chips", 2, "--out", "out"],
    )
    assert result.status == 0, result.err
    before = snapshot(home / "out")
    assert {"accuracy_over_time.png", "accuracy_over_level.png"} <= set(before)
    for name in before:
        if name not in ("run.json", "results.csv"):
            (home / "out" / name).unlink()
    again = run("report", "out")
    assert again.status == 0, again.err
    assert "mine" in again.out
    assert snapshot(home / "out") == before
    assert [len(one["over_time"]) for one in run("report", "out", "--json").json["evaluations"]] == [2, 1, 1]


# Comparing


def test_compare_and_report(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    arguments = [
        "compare",
        "--profile",
        "pcm-ibm",
        "--methods",
        "sgd,sam:rho=0.1",
        "--times",
        "1h,1y",
        "--chips",
        2,
    ]
    arguments += ["--seeds", 2, "--epochs", 3, "--workers", 1, "--out", out]
    first = run(*arguments, "--json")
    assert first.status == 0, first.err
    assert len(first.json["summary"]) == 4
    rows = pd.read_csv(out / "results.csv")
    assert len(rows) == 2 * 2 * 2 * 2
    before = snapshot(out)
    assert {"results.csv", "summary.csv", "summary.md", "run.json", "accuracy_over_time.png"} <= set(before)
    assert len([name for name in before if name.endswith(".safetensors")]) == 4

    again = run(*arguments)
    assert again.status == 0, again.err
    assert "reused" in again.err
    assert "sam:rho=0.1" in again.out
    assert snapshot(out) == before

    (out / "summary.md").unlink()
    shown = run("report", out)
    assert shown.status == 0, shown.err
    assert "sam:rho=0.1" in shown.out
    assert snapshot(out) == before

    with monkeypatch.context() as read_only:
        full = OSError(errno.ENOSPC, "No space left on device")
        read_only.setattr(Path, "write_bytes", Mock(side_effect=full))
        unwritten = run("report", out)
    assert (unwritten.status, unwritten.out) == (2, shown.out)
    assert unwritten.err == f"error: cannot write {out / 'accuracy_over_time.png'}: No space left on device\n"
    assert snapshot(out) == before

    # The models are those that `train` makes of the same settings.
    trained = run(
        "train",
        "--task",
        "digits",
        "--method",
        "sam:rho=0.1",
        "--epochs",
        3,
        "--seed",
        1,
        "--out",
        tmp_path / "one",
    )
    assert trained.status == 0, trained.err
    name = next(name for name in before if "sam" in name and name.endswith("seed1.safetensors"))
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == before[name]


# Bad input: one sentence, exit status 2, nothing written

EVALUATE = ["evaluate", "--model", "mine:build", "--data", "mine:test_loader", "--chips", "2", "--out", "out"]
TRAIN = ["train", "--model", "mine:build", "--data", "mine:train_loader", "--epochs", "1", "--out", "out"]
COMPARE = ["compare", "--methods", "sgd", "--epochs", "1", "--chips", "1", "--seeds", "1", "--out", "out"]
PROFILE_ERRORS = {
    "TOML syntax": ("g_min = 2.0", "g_min = = 2", ["bad.toml", "line 9"]),
    "unknown field": ("g_min", "g_mni", ["bad.toml", "g_mni", "g_min"]),
    "wrong type": ("g_max = 50.0", 'g_max = "50"', ["bad.toml", "conductance.g_max", '"50"', "number"]),
    "wrong unit": ('"uS"', '"mS"', ["bad.toml", "conductance.unit", "mS", "uS"]),
    "g_min >= g_max": ("g_min = 2.0", "g_min = 50.0", ["bad.toml", "g_min", "50", "g_max"]),
    "negative t_0": ("t_0 = 1.0", "t_0 = -1.0", ["bad.toml", "drift.t_0", "-1", "greater than 0"]),
    "negative sigma": ("[0.4, 1.2]", "[-0.4, -1.2]", ["bad.toml", "programming.sigma", "not negative"]),
    "negative in range": ("[0.4, 1.2]", "[0.4, -1.2]", ["bad.toml", "programming.sigma", "not negative"]),
}


def refused(run: Run, home: Path, arguments: list[str], words: list[str]) -> None:
    before = snapshot(home)
    result = run(*arguments)
    assert result.status == 2, result.err
    assert result.out == ""
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.err
    assert result.err.endswith(errors[0] + "\n")
    for word in words:
        assert word in errors[0]
    assert snapshot(home) == before


@pytest.mark.parametrize("kind", PROFILE_ERRORS)
@pytest.mark.parametrize("command", ["show", "evaluate", "compare"])
def test_bad_profile_file(run: Run, home: Path, kind: str, command: str) -> None:
    old, new, words = PROFILE_ERRORS[kind]
    assert old in PROFILE
    (home / "bad.toml").write_text(dedent(PROFILE).replace(old, new))
    arguments = {
        "show": ["profiles", "show", "bad.toml"],
        "evaluate": [*EVALUATE, "--profile", "bad.toml"],
        "compare": [*COMPARE, "--profile", "bad.toml"],
    }
    refused(run, home, arguments[command], words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*EVALUATE, "--profile", "pcm-imb"], ["'pcm-imb'", "'pcm-ibm'"]),
        ([*COMPARE, "--profile", "pcm-imb"], ["'pcm-imb'", "'pcm-ibm'"]),
        (["profiles", "show", "gausian"], ["'gausian'", "'gaussian'"]),
        ([*EVALUATE, "--profile", "nowhere.toml"], ["nowhere.toml", "does not exist"]),
        ([*EVALUATE, "--profile", "ideal,ideal"], ["'ideal'"]),
        ([*EVALUATE, "--profile", "gaussian@200%"], ["200%"]),
        ([*EVALUATE, "--profile", ","], ["--profile"]),
        ([*EVALUATE, "--profile", "ideal", "--times", "1 fortnight"], ["'1 fortnight'", "'fortnight'"]),
        ([*COMPARE, "--profile", "ideal", "--times", "1 fortnight"], ["'1 fortnight'", "'fortnight'"]),
        ([*EVALUATE, "--profile", "ideal", "--times", "-1s"], ["-1s"]),
        ([*EVALUATE, "--profile", "ideal", "--chips", "0"], ["chips", "0"]),
        ([*COMPARE, "--profile", "ideal", "--chips", "0"], ["chips", "0"]),
        ([*COMPARE, "--profile", "ideal", "--seeds", "0"], ["--seeds", "0"]),
        ([*COMPARE, "--profile", "ideal", "--methods", "sgd,samm"], ["'samm'", "'sam'"]),
        ([*COMPARE, "--profile", "ideal", "--methods", "sam:roh=1"], ["'roh'", "'rho'"]),
        ([*COMPARE, "--profile", "ideal", "--compensation", "globl"], ["'globl'", "global"]),
        ([*EVALUATE, "--profile", "ideal", "--compensation", "globl"], ["'globl'", "global"]),
        ([*COMPARE, "--profile", "ideal", "--task", "digit"], ["'digit'", "'digits'"]),
        ([*COMPARE, "--profile", "ideal", "--workers", "0"], ["workers", "0"]),
        ([*EVALUATE, "--profile", "ideal", "--floor", "1.5"], ["floor", "1.5"]),
        ([*EVALUATE, "--profile", "ideal", "--metric", "loss", "--floor", "0.9"], ["floor", "0.9", "loss"]),
        ([*TRAIN, "--method", "samm"], ["'samm'", "'sam'"]),
        ([*TRAIN, "--method", "sam:rho=-1"], ["'rho'", "'-1'"]),
        ([*TRAIN, "--method", "profile-noise"], ["profile-noise", "--profile"]),
        ([*TRAIN, "--epochs", "0"], ["epochs", "0"]),
        ([*TRAIN, "--lr", "-0.1"], ["lr", "-0.1"]),
        ([*TRAIN, "--threads", "0"], ["--threads", "0"]),
        ([*TRAIN, "--device", "abacus"], ["'abacus'"]),
        ([*TRAIN, "--batch-size", "0"], ["batch", "0"]),
        ([*TRAIN, "--seed", "-1"], ["--seed", "-1"]),
        (["train", "--out", "out"], ["--task", "--model"]),
        (["train", "--task", "digits", "--model", "mine:build", "--out", "out"], ["--task", "--model"]),
        (["train", "--model", "mine:build", "--out", "out"], ["--data"]),
        (["train", "--task", "digits", "--data", "mine:test_loader", "--out", "out"], ["--data", "--model"]),
        (["evaluate", "--task", "digits", "--profile", "ideal"], ["--weights"]),
        (["evaluate", "--model", "mine:build", "--profile", "ideal"], ["--data"]),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) and len(value) > 2 else "",
)
def test_bad_option(run: Run, home: Path, arguments: list[str], words: list[str]) -> None:
    refused(run, home, arguments, words)


@pytest.mark.parametrize(
    ("option", "spec", "words"),
    [
        ("--model", "mine:nothing_to_convert", ["nothing to convert"]),
        ("--model", "mine:no_model", ["mine:no_model", "dict", "torch.nn.Module"]),
        ("--model", "mine:broken", ["mine:broken", "KeyError", "no such backbone"]),
        ("--model", "mine:biuld", ["'biuld'", "'build'"]),
        ("--model", "mien:build", ["'mien'"]),
        ("--model", "mine", ["'mine'", "package.module:callable"]),
        ("--data", "mine:no_loader", ["mine:no_loader", "int"]),
        ("--data", "mine:no_batches", ["mine:no_batches", "Tensor"]),
        ("--data", "mine:wrong_shape", ["mine:wrong_shape", "first batch", "shape"]),
        ("--data", "mine:wrong_labels", ["mine:wrong_labels", "3"]),
        ("--data", "mine:shuffled", ["shuffle"]),
        ("--metric", "mine:bad_metric", ["metric", "str"]),
        ("--metric", "acuracy", ["'acuracy'", "'accuracy'"]),
        ("--forward", "mine:nowhere", ["'nowhere'"]),
    ],
)
def test_bad_callable_in_evaluate(run: Run, home: Path, option: str, spec: str, words: list[str]) -> None:
    refused(run, home, [*EVALUATE, "--profile", "my.toml", option, spec], words)


@pytest.mark.parametrize(
    ("option", "spec", "words"),
    [
        ("--model", "mine:no_model", ["mine:no_model", "dict"]),
        ("--data", "mine:no_loader", ["mine:no_loader", "int"]),
        ("--data", "mine:wrong_shape", ["training data", "first batch", "shape"]),
        ("--data", "mine:wrong_labels", ["training data", "first batch"]),
        ("--validation", "mine:shuffled", ["shuffle"]),
        ("--validation", "mine:wrong_shape", ["validation data", "first batch"]),
    ],
)
def test_bad_callable_in_train(run: Run, home: Path, option: str, spec: str, words: list[str]) -> None:
    refused(run, home, [*TRAIN, option, spec], words)


def damaged(home: Path, kind: str) -> list[str]:
    """A weights file that must be refused, and what the message must hold."""
    state = load_file(home / "weights.safetensors")
    path = home / "bad.safetensors"
    if kind == "missing file":
        return ["bad.safetensors", "does not exist"]
    if kind == "no safetensors":
        path.write_bytes(b"\x80\x04 a pickle")
        return ["bad.safetensors", "safetensors"]
    if kind == "nan":
        state["0.weight"][3, 4] = float("nan")
        words = ["'0.weight'", "NaN"]
    elif kind == "inf":
        state["2.bias"][1] = float("inf")
        words = ["'2.bias'", "infinite"]
    elif kind == "shape":
        state["2.weight"] = torch.zeros(3, 31)
        words = ["'2.weight'", "(3, 31)", "(3, 32)"]
    else:
        state["2.wieght"] = state.pop("2.weight")
        words = ["'2.weight'", "'2.wieght'"]
    save_file(state, path)
    return words


@pytest.mark.parametrize("kind", ["missing file", "no safetensors", "nan", "inf", "shape", "name"])
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_bad_weights(run: Run, home: Path, kind: str, command: str) -> None:
    words = damaged(home, kind)
    base = TRAIN if command == "train" else [*EVALUATE, "--profile", "my.toml"]
    refused(run, home, [*base, "--weights", "bad.safetensors"], words)


def test_folder_that_holds_another_run(run: Run, home: Path) -> None:
    evaluate = [*EVALUATE, "--profile", "my.toml", "--times", "1h"]
    assert run(*evaluate).status == 0
    refused(run, home, [*evaluate, "--seed", "1"], ["out", "another run", "--force"])
    refused(run, home, [*evaluate[:-2], "--weights", "weights.safetensors"], ["out", "another run"])
    refused(run, home, TRAIN, ["out", "evaluate"])
    refused(run, home, [*COMPARE, "--profile", "ideal"], ["out"])
    assert run(*evaluate, "--seed", "1", "--force").status == 0


def test_folder_of_train_refuses_other_settings(run: Run, home: Path) -> None:
    assert run(*TRAIN).status == 0
    refused(run, home, [*TRAIN, "--method", "sam"], ["out", "another run", "method", "sgd", "sam", "--force"])
    refused(run, home, [*TRAIN, "--lr", "0.01"], ["out", "another run", "lr", "0.05", "0.01"])
    refused(run, home, [*EVALUATE, "--profile", "my.toml"], ["out", "train"])
    refused(run, home, ["report", "out"], ["out", "train"])
    for force in ([], ["--force"]):
        refused(run, home, [*COMPARE, "--profile", "ideal", *force], ["out", "'analognoise train'"])
    # An edited function is other data.
    (home / "mine.py").write_text((home / "mine.py").read_text().replace("_data(0, 600)", "_data(5, 600)"))
    sys.modules.pop("mine", None)
    refused(run, home, TRAIN, ["out", "another run"])


@pytest.mark.parametrize("command", [TRAIN, [*EVALUATE, "--profile", "my.toml"]], ids=["train", "evaluate"])
def test_folder_with_other_files_is_left_alone(run: Run, home: Path, command: list[str]) -> None:
    (home / "out").mkdir()
    (home / "out" / "thesis.tex").write_text("chapter one")
    refused(run, home, command, ["out", "thesis.tex"])
    refused(run, home, [*command, "--force"], ["out", "thesis.tex"])


def test_folder_with_a_model_of_ones_own_is_not_overwritten(run: Run, home: Path) -> None:
    (home / "out").mkdir()
    (home / "out" / "model.safetensors").write_bytes(b"mine")
    refused(run, home, TRAIN, ["out", "model.safetensors"])


@pytest.mark.parametrize(
    ("folder", "words"),
    [("nowhere", ["nowhere", "does not exist"]), (".", ["run.json"]), ("mine.py", ["mine.py"])],
)
def test_report_of_what_is_no_run(run: Run, home: Path, folder: str, words: list[str]) -> None:
    refused(run, home, ["report", folder], words)


def test_out_that_is_a_file(run: Run, home: Path) -> None:
    for command in (TRAIN, [*EVALUATE, "--profile", "my.toml"], [*COMPARE, "--profile", "ideal"]):
        refused(
            run,
            home,
            [*command[: command.index("--out")], *command[command.index("--out") + 2 :], "--out", "mine.py"],
            ["mine.py"],
        )


# As a process


def command(*arguments: object, cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "analognoise", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


def test_process_prints_data_on_standard_output_only(home: Path) -> None:
    result = command(
        *["evaluate", "--model", "mine:build", "--data", "mine:test_loader", "--profile", "my.toml"],
        *["--times", "1h", "--chips", 2, "--json"],
        cwd=home,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["evaluations"][0]["chips"] == 2
    assert result.stderr == ""


def test_process_ends_with_status_2(home: Path) -> None:
    result = command("evaluate", "--profile", "pcm-imb", cwd=home)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr


def test_help_does_not_wait_for_torch(tmp_path: Path) -> None:
    code = "import sys; from analognoise.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Usage: analognoise" in result.stdout


def test_output_that_nobody_reads_is_no_error(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "analognoise", "profiles", "list", "--json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.wait(60)


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_interrupt_says_how_to_go_on(home: Path) -> None:
    arguments = [*EVALUATE, "--profile", "my.toml", "--chips", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "analognoise", *arguments],
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts something in the background has it ignore the signal, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    results = home / "out" / "results.csv"
    deadline = time.monotonic() + 240
    try:
        # The file is there before its first row is.
        while (
            not (results.exists() and results.read_bytes().count(b"\n") > 1)
            and process.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert out == ""
    assert "run the same command again to go on" in err
    assert "Traceback" not in err
    rows = pd.read_csv(results)
    assert 0 < len(rows) < 500_000
