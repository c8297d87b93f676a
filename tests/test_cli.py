"""The command line as its user sees it: help, look-ups, what is printed where, exit status, interrupts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from analognoise import __version__
from analognoise.cli import main
from analognoise.cli.shared import seed_list
from analognoise.errors import DataError
from analognoise.training.recipes import MODIFIERS
from tests.command import Result, Run
from tests.own_model import EVALUATE, equip, snapshot
from tests.own_model import MINE as MINE  # what the fixture home writes


@pytest.fixture
def home(home: Path) -> Path:
    """With a profile and weights that fit, too."""
    return equip(home)


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


SLOW_TO_LOAD = """
import sys, torch, analognoise as an
periphery = {"dac": {"bits": 8}, "adc": {"bits": 8, "range": "fixed", "bound": 10.0}, "out_noise": 0.04}
profile = an.load_profile("pcm-ibm").replace({"periphery": periphery})
data = [(torch.randn(8, 4), torch.randint(3, (8,)))]
report = an.evaluate_drift(an.convert_to_analog(torch.nn.Linear(4, 3), profile), data, times=("1s",), chips=3)
print(len(report.summary().frame), {"torch._dynamo", "scipy.stats", "sklearn"} & set(sys.modules))
"""


def test_an_evaluation_does_not_wait_for_what_it_does_not_use(tmp_path: Path) -> None:
    """torch's compiler and libraries of statistics take more than a second each, in every worker, too."""
    result = subprocess.run(
        [sys.executable, "-c", SLOW_TO_LOAD], cwd=tmp_path, capture_output=True, text=True
    )
    assert (result.stdout, result.returncode) == ("1 set()\n", 0), result.stderr


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


@pytest.mark.parametrize(("arguments", "status"), [(["profiles", "list"], 0), (["profiles", "show", "x"], 2)])
def test_closed_output_is_no_error(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int
) -> None:
    # What Python makes of streams that are closed, as in `analognoise … >&- 2>&-`.
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(arguments) == status


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
