"""What the README says to type works as it stands there."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer.main

import analognoise as an
from analognoise.cli import app, main
from analognoise.comparison import Contender

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [block for found, block in fenced if found == language]


def commands() -> list[list[str]]:
    """Every command line of analognoise in the README, without comments."""
    text = "\n".join(blocks("")).replace("\\\n", " ")
    lines = [
        shlex.split(line, comments=True) for line in text.splitlines() if line.startswith("analognoise ")
    ]
    return [line[1:] for line in lines if "COMMAND" not in line]


def block_with(language: str, words: str) -> str:
    (found,) = [block for block in blocks(language) if words in block]
    return found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The reader's folder with the files that the README has them write."""
    (tmp_path / "my-device.toml").write_text(block_with("toml", 'name = "my-device"'))
    (tmp_path / "mine.py").write_text(block_with("python", "def build()"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    sys.modules.pop("mine", None)


def test_readme_holds_the_commands_that_are_tested() -> None:
    sweeps = {"faults", "noise-sweep"}
    known = {"compare", "train", "evaluate", "profiles", "report"}
    assert {command[0] for command in commands()} == known | sweeps
    for command in commands():
        if command[0] in sweeps:  # run below with other methods: these can be read, and so can the options
            names = typer.main.get_command(app).commands[command[0]].params
            options = {option for name in names for option in name.opts}
            assert {word for word in command if word.startswith("--")} <= options
            for method in command[command.index("--methods") + 1].split(","):
                assert Contender.parse(method).name == method


def test_own_device_model_and_data(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = [line for line in commands() if any("my-device" in word or "mine:" in word for word in line)]
    assert [line[:2] for line in own] == [
        ["profiles", "new"],
        ["profiles", "check"],
        ["profiles", "show"],
        ["train", "--model"],
        ["evaluate", "--model"],
        ["compare", "--task"],
    ]
    shorter = {"compare": ["--epochs", "2", "--seeds", "2", "--chips", "2", "--workers", "1"]}
    (home / "my-device.toml").rename(home / "shown.toml")
    for line in own:
        if line[:2] == ["profiles", "check"]:
            (home / "shown.toml").replace(
                home / "my-device.toml"
            )  # from here on the file that the page shows
        status = main([*line, *shorter.get(line[0], [])])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        assert captured.out
    assert (home / "runs" / "mine" / "model.safetensors").is_file()


def test_digits_commands(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rest, made short: fewer epochs, seeds, methods and chips change nothing about what is accepted."""
    shorter = {
        "compare": ["--epochs", "1", "--seeds", "1", "--chips", "1", "--methods", "sgd", "--workers", "1"],
        "train": ["--epochs", "2"],
        "evaluate": ["--chips", "2"],
        "faults": ["--epochs", "1", "--seeds", "1", "--chips", "1", "--methods", "qat", "--workers", "1"],
        "noise-sweep": [
            "--epochs",
            "1",
            "--seeds",
            "1",
            "--repeats",
            "2",
            "--methods",
            "sgd",
            "--workers",
            "1",
        ],
    }
    for line in commands():
        if not any("my-device" in word or "mine:" in word for word in line):
            fewer = ["--chips", "10", "--max-chips", "10"] if "--precision" in line else None
            status = main([*line, *(fewer or shorter.get(line[0], []))])
            captured = capsys.readouterr()
            assert status == 0, captured.err
            assert captured.out
    files = {path.name for path in (home / "runs" / "digits").iterdir()}
    table = README.split("`runs/digits` then holds")[1].split("\n\n")[1]
    named = {name.strip("/") for name in re.findall(r"`([^`]+)`", table)}
    assert files == named


def test_python(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", lambda: None)
    import mine

    torch.manual_seed(0)
    model, loader = mine.build(), list(mine.test_loader())
    x, y = loader[0]
    names = {"model": model, "loader": loader, "x": x, "y": y, "torch": torch, "an": an}
    code = block_with("python", "evaluate_drift").replace("model, loader = ...", "pass")
    exec(compile(code, "README.md, quick start", "exec"), names)
    assert len(names["report"].rows) == 5 * 25
    assert names["y"].shape == (500, 3)
    assert (home / "drift.csv").is_file()

    names["y"] = y
    exec(compile(block_with("python", "an.SAMSON"), "README.md, training", "exec"), names)
    assert float(names["loss"].detach()) > 0
    (fit,) = re.findall(r"`(an\.fit\([^`]*)`", README)
    history = eval(fit.replace("epochs=40", "epochs=1"), names)
    assert len(history.train_loss) == 1
    plt.close("all")


def test_methods_of_the_table_are_all_there_are() -> None:
    table = README.split("## Training methods")[1].split("\n\n")[2]
    rows = [re.findall(r"`([a-z0-9-]+)`", line.split("|")[1]) for line in table.splitlines()[2:]]
    named = {name for row in rows for name in row} | {"samson"}
    assert named == set(an.METHODS)
    for line in table.splitlines()[2:]:
        for name in re.findall(r"`([a-z0-9-]+)`", line.split("|")[1]):
            assert an.METHODS[name].gradients_per_step == int(line.split("|")[3])
