"""Bad input on the command line: one sentence, exit status 2, nothing written."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.command import Run
from tests.own_model import COMPARE, EVALUATE, PROFILE, TRAIN, equip, snapshot
from tests.own_model import MINE as MINE  # what the fixture home writes


@pytest.fixture
def home(home: Path) -> Path:
    """With a profile and weights that fit, too."""
    return equip(home)


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
    refused(run, home, [*TRAIN, "--seed", "7"], ["out", "another run", "seed is 0 there and 7 now"])
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
