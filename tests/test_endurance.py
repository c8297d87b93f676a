"""Runs that are killed at random moments, again and again, end as one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

MINE = """
import torch, time
from torch import nn
from dataclasses import replace
import analognoise as an
from analognoise.tasks import get_task

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4))

def data():
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(1))
    return [(x, x[:, :4].argmax(1))]

def slowly(model, batch):
    time.sleep(0.02)
    return model(batch[0])

def task():
    return replace(get_task("digits"), name="slow", epochs=2)
"""
EVALUATE = ["evaluate", "--model", "mine:build", "--data", "mine:data", "--forward", "mine:slowly"]
EVALUATE += ["--profile", "pcm-ibm", "--times", "1s,1d", "--chips", "60"]
COMPARE = ["compare", "--task", "mine:task", "--profile", "pcm-ibm", "--methods", "sgd,clip", "--seeds", "2"]
COMPARE += ["--times", "1s,1d", "--chips", "12"]


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "analognoise", *arguments],
        cwd=home,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run(home: Path, *arguments: str) -> str:
    process = start(home, *arguments)
    _, err = process.communicate(timeout=570)
    assert process.returncode == 0, err
    return err


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a run but the one that names its folder."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != "run.json"}


def workers_of(home: Path) -> list[psutil.Process]:
    """Processes that were started for runs in a folder, and are still there."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        line = " ".join(process.info["cmdline"] or ())
        if process.info["cwd"] == str(home) and ("multiprocessing" in line or "analognoise" in line):
            found.append(process)
    return found


def gone(home: Path, seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while workers_of(home):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def written(path: Path, lines: int, process: subprocess.Popen[str]) -> None:
    """Wait until a results file has so many lines, or the process is done."""
    while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= lines):
        time.sleep(0.01)


def killed_until_done(home: Path, command: list[str], kills: int, seed: int) -> None:
    """Start, kill at a random moment, start again; at last leave it alone."""
    dice, results, lines = random.Random(seed), home / "killed" / "results.csv", 2
    for _ in range(kills):
        process = start(home, *command, "--out", "killed")
        written(results, lines, process)
        time.sleep(dice.uniform(0, 0.5))
        process.kill()
        process.communicate()
        assert gone(home)
        there = results.read_bytes().count(b"\n") if results.exists() else 0
        lines = there + dice.randint(1, 12)
    run(home, *command, "--out", "killed")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def test_a_killed_evaluation_ends_as_one_left_alone(home: Path) -> None:
    run(home, *EVALUATE, "--out", "whole")
    killed_until_done(home, EVALUATE, 3, seed=0)
    assert files(home / "killed") == files(home / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("command", [EVALUATE, COMPARE], ids=["evaluate", "compare"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_kills_at_many_moments(home: Path, command: list[str], workers: str) -> None:
    alone = [*command, "--workers", "1"]
    run(home, *alone, "--out", "whole")
    killed_until_done(home, [*command, "--workers", workers], 8, seed=int(workers))
    assert files(home / "killed") == files(home / "whole")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_tidy_end_says_how_to_go_on_and_leaves_no_process(home: Path, number: int, status: int) -> None:
    command = [*EVALUATE, "--workers", "2", "--out", "out put", "--force"]
    process = start(home, *command)
    written(home / "out put" / "results.csv", 4, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (status, "")
    assert "Traceback" not in err
    assert err.rstrip().endswith(
        "run the same command again to go on:\n  analognoise evaluate --model mine:build --data mine:data "
        "--forward mine:slowly --profile pcm-ibm --times 1s,1d --chips 60 --workers 2 --out 'out put'"
    )
    assert gone(home)
    assert 1 < (home / "out put" / "results.csv").read_bytes().count(b"\n") < 121


def test_a_second_process_is_refused_and_the_lock_dies_with_its_process(home: Path) -> None:
    first = start(home, *EVALUATE[:-1], "100000", "--out", "out")
    written(home / "out" / "results.csv", 3, first)
    for force in ([], ["--force"]):
        second = start(home, *EVALUATE[:-1], "100000", "--out", "out", *force)
        _, err = second.communicate(timeout=120)
        assert second.returncode == 2
        assert "another process is working in out: wait for it, or choose another folder" in err
    before = (home / "out" / "results.csv").read_bytes()
    first.kill()
    first.communicate()
    assert before in (home / "out" / "results.csv").read_bytes()
    few = [*EVALUATE[:-1], "2"]
    assert "reused" in run(home, *few, "--out", "out")
