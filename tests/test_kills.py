"""Every command that can be resumed, killed at random moments or by a full disk, ends as one left alone.

Runs are forked from a process that has everything imported, so that one takes fractions of a second.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from analognoise.cli import main
from analognoise.evaluation.lock import held

MINE = """
import time
from pathlib import Path
import torch
from torch import nn
import analognoise as an
from analognoise.tasks.base import TensorBatches

X = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
Y = X[:, :4].argmax(1)

def build(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))

def data():
    return [(X, Y)]

def slowly(model, batch):
    time.sleep(0.2 if Path("slow").exists() else 0.002)
    return model(batch[0])

def task():
    def train(seed, size):
        return TensorBatches(X, Y, 32, seed=seed)

    return an.Task("mine", "the largest of four", build, train, None, data(), 3, forward=slowly, n_classes=4)
"""
MODEL = "--model mine:build --data mine:data --forward mine:slowly --profile pcm-ibm --times 1s,1d"
COMMANDS = {
    "evaluate": f"evaluate {MODEL} --chips 30",
    "precision": f"evaluate {MODEL} --chips 10 --precision 0.01 --max-chips 60",
    "sensitivity": f"sensitivity {MODEL} --chips 10",
    "compare": "compare --task mine:task --profile pcm-ibm --methods sgd,clip --seeds 2 --times 1s,1d "
    "--chips 8 --sharpness",
    "faults": "faults --task mine:task --methods qat --bits 4 --rates 1e-2,1e-1 --chips 5 --seeds 2 "
    "--no-sharpness",
    "noise-sweep": "noise-sweep --task mine:task --methods sgd,noisy --sigmas 0.1:10:4 --repeats 3 --seeds 2",
    "train": "train --task mine:task --method samson+noise --epochs 60",
}
WITH_ROWS = [name for name in COMMANDS if name != "train"]
SERVER = multiprocessing.get_context("forkserver")
# A pipe takes what is said also where files may not grow. Trainings leave a checkpoint after every epoch.
CHILD = """
import os, resource, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of scripts ignore it
os.dup2(os.open("said", os.O_WRONLY), 2)
if {limit}:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from analognoise.cli import main
from analognoise.training import resuming
resuming.PAUSE = resuming.SHARE = 0.0
sys.exit(main({arguments}))
"""


class Run:
    """A command in a process of its own.

    Args:
        command: its words.
        out: its folder.
        workers: how many.
        limit: bytes beyond which no file grows; 0 for none.
    """

    def __init__(self, command: str, out: str, workers: int = 1, limit: int = 0) -> None:
        many = [] if command.startswith("train") else ["--workers", str(workers)]
        arguments = [*command.split(), *many, "--out", out]
        Path("said").unlink(missing_ok=True)
        os.mkfifo("said")
        self._said = os.open("said", os.O_RDONLY | os.O_NONBLOCK)
        self.begun = time.monotonic()
        code = CHILD.format(limit=limit, arguments=arguments)
        self.process = SERVER.Process(target=exec, args=(code, {}))
        self.process.start()

    def status(self, seconds: float | None = 300) -> tuple[int | None, str]:
        """Wait; exit status and what was said."""
        self.process.join(seconds)
        with suppress(BlockingIOError):  # nothing, by a process that is still there
            return self.process.exitcode, os.read(self._said, 1 << 16).decode()
        return self.process.exitcode, ""


@dataclass(frozen=True)
class Whole:
    """What a run leaves, and how long it takes."""

    files: dict[str, bytes]
    seconds: float


def finish(command: str, out: str, workers: int = 1) -> Whole:
    """Run a command to its end."""
    run = Run(command, out, workers)
    status, said = run.status()
    assert status == 0, said
    assert Path(out, "run.json").is_file()
    return Whole(files(out), time.monotonic() - run.begun)


def files(folder: str) -> dict[str, bytes]:
    """Every file of a run but the one that names its folder."""
    found = {path.relative_to(folder): path for path in Path(folder).rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in found.items() if name.name != "run.json"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("mine", None)


@pytest.fixture(scope="module")
def wholes() -> Callable[[str], Whole]:
    """What each command leaves when nobody disturbs it."""
    jobs = [f"analognoise.jobs.{name}" for name in ("compare", "evaluate", "sensitivity", "sweeps", "train")]
    SERVER.set_forkserver_preload(["analognoise.cli", *jobs])
    return cache(lambda name: finish(COMMANDS[name], "whole"))


def killed_until_done(command: str, kills: int, seed: int, seconds: float, workers: int = 1) -> None:
    """Kill at random moments, each time later, and at last let it end."""
    dice = random.Random(seed)
    for number in range(kills):
        run = Run(command, "killed", workers)
        run.status(dice.uniform(0, seconds * (number + 1) / kills))
        run.process.kill()
        run.process.join()
    finish(command, "killed", workers)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_run_ends_as_one_left_alone(name: str, wholes: Callable[[str], Whole]) -> None:
    whole = wholes(name)
    killed_until_done(COMMANDS[name], 3, len(name), whole.seconds)
    assert files("killed") == whole.files


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", COMMANDS)
def test_kills_at_many_moments(name: str, workers: int, wholes: Callable[[str], Whole]) -> None:
    seconds = finish(COMMANDS[name], "shared", workers).seconds
    assert files("shared") == wholes(name).files
    killed_until_done(COMMANDS[name], 8, workers, seconds, workers)
    assert files("killed") == wholes(name).files


@pytest.mark.parametrize("name", WITH_ROWS)
def test_a_disk_that_fills_up_is_told_and_what_is_there_is_gone_on_with(
    name: str, wholes: Callable[[str], Whole]
) -> None:
    whole = wholes(name)
    sizes = sorted(len(content) for content in whole.files.values())
    rows = len(whole.files["results.csv"])
    for limit in (rows // 2, sizes[-1] - 1, rows - 40):
        status, said = Run(COMMANDS[name], "full", limit=limit).status()
        assert status == 2, said
        assert re.search(r"^error: .*full\S* .*(File too large|make room)", said, re.MULTILINE), said
        assert "Traceback" not in said
    finish(COMMANDS[name], "full")
    assert files("full") == whole.files


@pytest.mark.parametrize("name", WITH_ROWS)
def test_a_folder_at_work_is_refused_and_left_alone(
    name: str, wholes: Callable[[str], Whole], capsys: pytest.CaptureFixture[str]
) -> None:
    command = COMMANDS[name].split()
    assert finish(COMMANDS[name], "out").files == wholes(name).files
    place = Path("out", "models") if Path("out", "models").exists() else Path("out")
    for words in ([*command, "--out", "out"], [*command, "--out", "out", "--force"], ["report", "out"]):
        with held(place):
            assert main(words) == 2
        assert "another process is working in out: wait for it" in capsys.readouterr().err
    assert files("out") == wholes(name).files
    assert main(["report", "out"]) == 0
    assert files("out") == wholes(name).files


def test_workers_leave_what_one_process_leaves_when_the_number_of_chips_grows(
    wholes: Callable[[str], Whole],
) -> None:
    assert finish(COMMANDS["precision"], "shared", workers=2).files == wholes("precision").files


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_says_what_is_kept_and_goes_on(
    number: signal.Signals, wholes: Callable[[str], Whole]
) -> None:
    whole, checkpoint, slow = wholes("train"), Path("out", "training.checkpoint"), Path("slow")
    slow.touch()  # so that it cannot end before the signal
    run = Run(COMMANDS["train"], "out")
    while not checkpoint.exists():
        assert run.process.is_alive()
        time.sleep(0.01)
    os.kill(run.process.pid or 0, number)
    status, said = run.status()
    assert status == 128 + number
    [kept] = re.findall(r"^interrupted: (\d+) of 60 epochs were kept, run the same command again", said, re.M)
    assert said.endswith(f"to go on:\n  analognoise {COMMANDS['train']} --out out\n")
    with checkpoint.open("rb") as file:
        assert json.loads(file.readline())["epoch"] == int(kept) > 0
    slow.unlink()
    again = Run(COMMANDS["train"], "out")
    assert again.status() == (0, f"training: goes on after {kept} of 60 epochs\n")
    assert files("out") == whole.files


def test_a_training_whose_checkpoint_does_not_fit_the_disk_is_told_and_gone_on_with(
    wholes: Callable[[str], Whole],
) -> None:
    whole = wholes("train")
    status, said = Run(COMMANDS["train"], "full", limit=8000).status()
    assert (status, said) == (2, "error: cannot write full/training.checkpoint: File too large\n")
    assert finish(COMMANDS["train"], "full").files == whole.files
