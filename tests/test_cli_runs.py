"""train, evaluate, compare and report: what they find and write, and what is used again."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from analognoise.cli import main
from tests.command import Run
from tests.own_model import MINE as MINE  # what the fixture home writes
from tests.own_model import equip, snapshot


@pytest.fixture
def home(home: Path) -> Path:
    """With a profile and weights that fit, too."""
    return equip(home)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network that knows the digits a little."""
    folder = tmp_path_factory.mktemp("digits") / "trained"
    assert main(["train", "--task", "digits", "--epochs", "6", "--out", str(folder), "--json"]) == 0
    return folder


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
