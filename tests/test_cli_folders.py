"""What evaluate and sensitivity leave in their folders, and say when asked for less than is there."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from analognoise.cli import main
from analognoise.errors import ResultsError
from analognoise.evaluation.lifetime import lifetime
from analognoise.evaluation.lock import held
from analognoise.jobs.folder import JobFolder
from analognoise.tasks.weights import file_digest
from analognoise.training.fit import fit

MINE = """
    import torch
    from torch import nn

    def build():
        return nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 3))

    def batches():
        x = torch.randn(60, 20, generator=torch.Generator().manual_seed(1))
        return [(x, build_as_trained()(x).argmax(1))]

    def build_as_trained():
        model = build()
        from safetensors.torch import load_file
        model.load_state_dict(load_file("weights.safetensors"))
        return model
"""
BASE = ["--model", "mine:build", "--weights", "weights.safetensors", "--data", "mine:batches", "--out", "out"]
EVALUATE = ["evaluate", *BASE, "--profile", "pcm-ibm,ideal"]
SENSITIVITY = ["sensitivity", *BASE, "--profile", "pcm-ibm"]


@pytest.fixture
def home(home: Path) -> Path:
    """With weights that fit, too."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    save_file(model.state_dict(), home / "weights.safetensors")
    return home


def files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("out").iterdir()}


def test_summary_says_what_was_evaluated(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*EVALUATE, "--times", "1s,1d,1y", "--chips", "4", "--floor", "0.97", "--seed", "3"]) == 0
    text = Path("out/summary.md").read_text()
    lines = text.splitlines()
    assert lines[0] == "# mine:build on analog chips"
    digest = file_digest("weights.safetensors")[:12]
    assert lines[2] == (
        f"Model mine:build; weights weights.safetensors, SHA-256 {digest}…; test data mine:batches; "
        "4 chips of each device, seed 3."
    )
    rows = pd.read_csv("out/results.csv")
    rows = rows[rows["profile"] == "pcm-ibm"]
    values = rows.pivot(index="chip", columns="time_s", values="value")
    life = lifetime(values.to_numpy(), list(values.columns), 1.0, 0.97)
    line = f"until the mean accuracy crosses 97.0 %: {life}"
    assert lines[lines.index("## Lifetime") + 2] == f"- Lifetime on pcm-ibm, {line}"
    assert "Lifetime on ideal" not in text
    # Made again from the folder alone.
    before = files()
    (home / "out" / "summary.md").unlink()
    shown = capsys.readouterr().out
    assert f"Lifetime, {line}\n" in shown
    assert main(["report", "out"]) == 0
    assert capsys.readouterr().out == shown
    assert files() == before


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_report_of_a_sensitivity_analysis(
    home: Path, capsys: pytest.CaptureFixture[str], layers: int
) -> None:
    code = (home / "mine.py").read_text()
    if layers == 3:
        code = code.replace("nn.Linear(8, 3))", "nn.Linear(8, 8), nn.Linear(8, 3))")
        (home / "mine.py").write_text(code)
        torch.manual_seed(0)
        wide = [torch.nn.Linear(20, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.Linear(8, 3)]
        save_file(torch.nn.Sequential(*wide).state_dict(), "weights.safetensors")
    command = [*SENSITIVITY, "--times", "1s,1d", "--chips", "3", *(["--digital", "0"] if layers == 1 else [])]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["layers"]) == 2 * layers
    before = files()
    for name in ("sensitivity.csv", "sensitivity.md", "sensitivity.png"):
        (home / "out" / name).unlink()
    assert main(["report", "out", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert files() == before
    lines = (home / "out" / "results.csv").read_text().splitlines(keepends=True)
    (home / "out" / "results.csv").write_text("".join(lines[:-1]))
    assert main(["report", "out"]) == 2
    assert "are not complete (chip 2 at 1 day is missing): run sensitivity again" in capsys.readouterr().err


def test_workers_change_no_byte_of_a_sensitivity_analysis(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*SENSITIVITY, "--times", "1s,1d", "--chips", "3"]
    assert main(command) == 0
    before = files()
    assert main([*command, "--workers", "2", "--force"]) == 0
    assert files() == before
    # Goes on where it was killed.
    lines = before["results.csv"].splitlines(keepends=True)
    (home / "out" / "results.csv").write_bytes(b"".join(lines[:9]))
    capsys.readouterr()
    assert main([*command, "--workers", "2"]) == 0
    assert "reused 8 of 18 results" in capsys.readouterr().err
    assert files() == before
    assert main([*command, "--workers", "2", "--scheduler", "tcp://127.0.0.1:9"]) == 2
    assert "leave one of them out" in capsys.readouterr().err


# evaluate: two devices, one of them without drift; sensitivity: all layers, and each of the two alone.
@pytest.mark.parametrize(
    ("command", "more"), [(EVALUATE, (4 * 3 - 2) + (4 - 2)), (SENSITIVITY, 3 * (4 * 3 - 2))]
)
def test_asking_for_less_is_not_silent(
    home: Path, capsys: pytest.CaptureFixture[str], command: list[str], more: int
) -> None:
    large = [*command, "--times", "1s,1d,1y", "--chips", "4"]
    small = [*command, "--times", "1d", "--chips", "2"]
    assert main(large) == 0
    before = files()
    assert "stay" not in capsys.readouterr().err
    assert main(small) == 0
    said = capsys.readouterr().err
    assert f"{more} more results of an earlier call stay in results.csv" in said
    assert "(4 chips there, 2 asked for; drift times 1 s, 1 year not asked for)" in said
    assert files()["results.csv"] == before["results.csv"]
    assert main(large) == 0
    assert files() == before


def test_precision_and_single_chips_are_shown_stored_and_shown_again(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["--times", "1s,1y", "--chips", "10", "--precision", "0.02", "--max-chips", "60"]
    single = ["--quantile", "0.1", "--yield-at", "0.5"]
    assert main([*EVALUATE, *wanted, *single, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["evaluations"]
    noisy, ideal = found
    counts = [row["n"] for row in noisy["over_time"]]
    assert 10 <= min(counts) < max(counts) <= 60
    assert (noisy["precision"]["half_width"], noisy["precision"]["pilot"]) == (0.02, 10)
    assert list(noisy["precision"]["reached"]) == ["1 s", "1 year"]
    assert [row["n"] for row in ideal["over_time"]] == [10]
    for row in noisy["over_time"]:
        assert (row["quantile_low"] is None) == (row["n"] < 36)  # log(0.025) / log(0.9) = 35.01
    assert set(noisy["lifetime_of_quantile"]) == set(noisy["lifetime"])

    frame = pd.read_csv(home / "out" / "summary.csv")
    assert frame["n"].tolist() == [*counts, 10]
    assert frame["quantile"].tolist()[:2] == [row["quantile"] for row in noisy["over_time"]]
    assert frame["yield"].tolist() == [
        row["yield"] for evaluation in found for row in evaluation["over_time"]
    ]
    markdown = (home / "out" / "summary.md").read_text()
    assert f"{counts[0]} at 1 s, {counts[1]} at 1 year" in markdown
    assert "90 % of chips keep at least on pcm-ibm" in markdown

    assert main(["report", "out"]) == 0
    assert "Chips that keep 50.0 % on pcm-ibm" in capsys.readouterr().out
    assert (home / "out" / "summary.md").read_text() == markdown
    assert pd.read_csv(home / "out" / "summary.csv").equals(frame)
    # More chips are there than the precision wants: the report goes on with as many as it wants.
    assert main([*EVALUATE, "--times", "1s,1y", "--chips", "70"]) == 0
    assert main([*EVALUATE, *wanted, *single]) == 0
    assert "result" in capsys.readouterr().err
    assert main(["report", "out"]) == 0
    assert (home / "out" / "summary.md").read_text() == markdown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precision", "0"], "precision is 0.0"),
        (["--precision", "nan"], "precision is nan"),
        (["--precision", "0.01", "--max-chips", "2"], "max_chips is 2"),
        (["--max-chips", "50"], "max_chips is 50, but no precision is given"),
        (["--precision", "0.01", "--chips", "3"], "chips is 3"),
        (["--quantile", "1"], "quantile is 1.0"),
        (["--yield-at", "97"], "is 97, but an accuracy lies between 0 and 1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_before_the_work(
    home: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert main([*EVALUATE, *options]) == 2
    assert words in capsys.readouterr().err
    assert not (home / "out").exists()


def test_a_first_stage_that_is_cut_is_said_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--times", "1s", "--precision", "0.2", "--max-chips", "12", "--json"]
    assert main([*EVALUATE, *asked]) == 0
    told = capsys.readouterr()
    assert told.err.count("max_chips is 12, fewer than the 25 chips of the first stage") == 1
    assert [each["precision"]["pilot"] for each in json.loads(told.out)["evaluations"]] == [12, 12]


def test_sampling_is_stored_and_shown_again(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = [*EVALUATE, "--times", "1s", "--chips", "3", "--sampling", "stratified"]
    assert main([*wanted, "--json"]) == 0
    noisy, _ = json.loads(capsys.readouterr().out)["evaluations"]
    assert (noisy["sampling"]["kind"], noisy["sampling"]["of"]) == ("stratified", 60)
    markdown = (home / "out" / "summary.md").read_text()
    assert (
        "pcm-ibm: Each chip was measured on some of the 60 samples, stratified by digital margin" in markdown
    )
    assert main(["report", "out"]) == 0
    assert "stratified by digital margin" in capsys.readouterr().out
    assert (home / "out" / "summary.md").read_text() == markdown
    assert main(wanted) == 0
    assert "reused" in capsys.readouterr().err
    assert main([*wanted, "--quantile", "0.1"]) == 2
    assert "measured on all samples" in capsys.readouterr().err
    for options, words in (
        ([], "sampling stratified there, full here)"),
        (["--seed", "4"], "sampling stratified there, full here; seed 0 there, 4 here)"),
    ):
        assert main([*EVALUATE, "--times", "1s", "--chips", "3", *options]) == 2
        assert words in capsys.readouterr().err


TRAIN = ["train", *BASE[:2], *BASE[4:6], "--epochs", "1", "--out", "out"]


@pytest.mark.parametrize("command", [EVALUATE, SENSITIVITY, TRAIN], ids=lambda command: command[0])
def test_a_folder_that_another_process_works_in_is_left_alone(
    command: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command]) == 0
    before = files()
    for words in ([*command, "--force"], [*command, "--seed", "7", "--force"]):
        with held(Path("out")):
            assert main(words) == 2
        assert "another process is working in out: wait for it" in capsys.readouterr().err
        assert files() == before


@pytest.mark.parametrize(
    ("command", "before", "after"),
    [
        (EVALUATE, "evaluate.checked_test_data", "evaluate.evaluate_drift"),
        (SENSITIVITY, "sensitivity.checked_test_data", "sensitivity.layer_sensitivity"),
    ],
    ids=["evaluate", "sensitivity"],
)
def test_an_interrupted_command_prints_one_that_goes_on(
    command: list[str],
    before: str,
    after: str,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    few = [*command, "--times", "1d", "--chips", "2"]
    assert main(few) == 0
    there = files()
    again = [*few, "--seed", "7", "--force"]
    for place, words in ((before, again), (after, again[:-1])):
        capsys.readouterr()
        with monkeypatch.context() as patched:
            patched.setattr(f"analognoise.jobs.{place}", interrupted)
            assert main(again) == 130
        assert capsys.readouterr().err.rstrip().endswith(shlex.join(["analognoise", *words]))
        assert (files() == there) == (place == before)
    assert main(words) == 0


def test_an_interrupted_training_by_force_leaves_what_it_replaces_until_it_is_done(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(TRAIN) == 0
    there = files()
    again = [*TRAIN, "--lr", "0.3", "--epochs", "4", "--force"]
    for kept, said, words in (
        (0, "no epoch was kept yet", again),
        (1, "1 of 4 epochs were kept", again[:-1]),
    ):
        capsys.readouterr()

        def stopping(*arguments: Any, kept: int = kept, **options: Any) -> Any:
            def on_epoch(epoch: Any) -> None:
                if epoch.epoch > kept:
                    raise KeyboardInterrupt

            return fit(*arguments, **options | {"on_epoch": on_epoch})

        with monkeypatch.context() as patched:
            patched.setattr("analognoise.jobs.train.fit", stopping)
            patched.setattr("analognoise.training.resuming.PAUSE", 0.0)
            patched.setattr("analognoise.training.resuming.SHARE", 0.0)
            assert main(again) == 130
        told = capsys.readouterr().err.rstrip()
        assert told.endswith(
            f"{said}, run the same command again to go on:\n  {shlex.join(['analognoise', *words])}"
        )
        assert {name: content for name, content in files().items() if "checkpoint" not in name} == there
    other = [*TRAIN, "--lr", "0.4"]
    assert main(other) == 2
    assert "out holds another run (epochs is 4 there" in capsys.readouterr().err
    Path("out", ".training.checkpoint.part").write_text("of a kill")
    assert main(words) == 0
    assert "training: goes on after 1 of 4 epochs" in capsys.readouterr().err
    assert "lr" in Path("out/run.json").read_text()
    assert not [name for name in files() if "checkpoint" in name]


def test_a_training_whose_method_was_written_otherwise_is_known(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until drift times had units, run.json and checkpoints said 'longest=2.592e+06'."""
    words = [*TRAIN, "--method", "profile-noise:longest=1mo", "--profile", "pcm-ibm"]
    assert main(words) == 0
    run = Path("out/run.json")
    now = run.read_text()
    before = now.replace("longest=1mo", "longest=2.592e+06")
    assert before != now
    run.write_text(before)
    capsys.readouterr()
    assert main(words) == 0
    assert "training: reused out/model.safetensors" in capsys.readouterr().err
    assert run.read_text() == before
    assert main([*TRAIN, "--method", "profile-noise", "--profile", "pcm-ibm"]) == 2
    assert 'method is "profile-noise:longest=1mo" there and "profile-noise" now' in capsys.readouterr().err

    def stopping(*arguments: Any, **options: Any) -> Any:
        def on_epoch(epoch: Any) -> None:
            if epoch.epoch > 1:
                raise KeyboardInterrupt

        return fit(*arguments, **options | {"on_epoch": on_epoch})

    words += ["--epochs", "2"]
    assert main([*words, "--force"]) == 0
    trained = files()["model.safetensors"]
    with monkeypatch.context() as patched:
        patched.setattr("analognoise.jobs.train.fit", stopping)
        patched.setattr("analognoise.training.resuming.PAUSE", 0.0)
        patched.setattr("analognoise.training.resuming.SHARE", 0.0)
        assert main([*words, "--force"]) == 130
    file = Path("out/training.checkpoint")
    assert file.read_bytes().count(b"longest=1mo") == 2
    file.write_bytes(file.read_bytes().replace(b"longest=1mo", b"longest=2.592e+06"))
    Path("out/model.safetensors").unlink()
    capsys.readouterr()
    assert main(words) == 0
    assert "training: goes on after 1 of 2 epochs" in capsys.readouterr().err
    assert files()["model.safetensors"] == trained


def test_a_damaged_checkpoint_is_named_and_left_alone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out", "training.checkpoint").write_text("{}\n")
    assert main(TRAIN) == 2
    assert "error: checkpoint out/training.checkpoint is damaged, or no checkpoint" in capsys.readouterr().err
    assert files() == {"training.checkpoint": b"{}\n"}
    assert main([*TRAIN, "--force"]) == 0
    assert "training.checkpoint" not in files()


def test_a_training_that_breaks_down_leaves_nothing_in_the_way(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analognoise.training.resuming.PAUSE", 0.0)
    monkeypatch.setattr("analognoise.training.resuming.SHARE", 0.0)
    assert main([*TRAIN, "--lr", "1e30", "--epochs", "5"]) == 2
    assert "broke down in epoch 2" in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_folder_that_was_filled_meanwhile_is_left_alone(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "out", "train", ("model.safetensors",))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text('{"job": "train"}')
    with pytest.raises(ResultsError, match=r"out was changed by another process: run again"), folder.held():
        pass


def test_a_training_that_cannot_be_stored_does_not_begin(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analognoise.jobs.train.fit", lambda *_, **__: pytest.fail("it was trained"))
    usage = shutil.disk_usage(home)._replace(free=500)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: usage)
        assert main(TRAIN) == 2
    said = capsys.readouterr().err
    assert "out/training.checkpoint needs about 0.403 MB for the training's checkpoint, and its disk" in said
    assert main([*TRAIN[:-1], "/proc/out"]) == 2
    assert "cannot write to folder /proc/out" in capsys.readouterr().err
    assert not Path("out").exists()


def test_report_tells_stein_from_student_and_what_a_quantile_keeps(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        "--times",
        "1s,1d",
        "--chips",
        "10",
        "--precision",
        "0.1",
        "--max-chips",
        "20",
        "--quantile",
        "0.2",
    ]
    assert main([*EVALUATE, *asked]) == 0
    said = " ".join(capsys.readouterr().out.split())
    text = Path("out/summary.md").read_text()
    assert "Mean ± 95 % two-stage (Stein) interval over" in text
    assert "Student" not in text
    [line] = [line for line in text.splitlines() if "until 20 % of chips cross 95.0 %: " in line]
    assert line.split(": ")[1] in said
    assert main(["report", "out", "--json"]) == 0
    life = json.loads(capsys.readouterr().out)["evaluations"][0]["lifetime_of_quantile"]
    assert line.endswith(life["text"])


# Every setting that the shown figures depend on: converters, recalibrations, layers that stay digital,
# chips and times that were measured before and are not asked for, precision, single chips, samples.
@pytest.mark.parametrize(
    "options",
    [
        ["--times", "1d", "--chips", "2", "--digital", "2", "--seed", "5", "--floor", "0.9"],
        ["--times", "1s,1d", "--chips", "3", "--compensation", "none,column", "--periphery", "standard-8bit"],
        ["--times", "1s,1d", "--chips", "10", "--precision", "0.02", "--max-chips", "40"],
        ["--times", "1s,1d", "--chips", "3", "--sampling", "stratified"],
        ["--times", "1s,1d", "--chips", "3", "--metric", "loss", "--quantile", "0.2", "--yield-at", "0.5"],
    ],
    ids=["less", "compensations", "precision", "stratified", "single chips"],
)
def test_report_shows_and_prints_what_evaluate_does(
    options: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [*options, "--times", "1s,1d,1y", "--chips", "12"]
    assert main([*EVALUATE, *more]) == 0
    assert main([*EVALUATE, *options]) == 0
    capsys.readouterr()
    for form in ([], ["--json"]):
        assert main([*EVALUATE, *options, *form]) == 0
        found = capsys.readouterr().out
        before = files()
        assert main(["report", "out", *form]) == 0
        assert capsys.readouterr().out == found
        assert files() == before


@pytest.mark.parametrize("command", [EVALUATE, SENSITIVITY], ids=lambda command: command[0])
def test_report_shows_the_tables_where_it_cannot_write_them(
    command: list[str],
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main([*command, "--times", "1s,1d", "--chips", "2"]) == 0
    before = files()
    shown = capsys.readouterr().out
    with monkeypatch.context() as read_only:
        read_only.setattr(Path, "write_bytes", refuse)
        read_only.setattr(Path, "unlink", refuse)
        assert main(["report", "out"]) == 2
    out, err = capsys.readouterr()
    assert out == shown
    [said] = err.splitlines()
    assert re.fullmatch(r"error: cannot write out/\w+\.csv: Read-only file system", said)
    assert files() == before


def refuse(path: Path, *_: object, **__: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))


@pytest.mark.parametrize(
    ("flags", "words"),
    [(os.ST_RDONLY, "is on a read-only file system"), (0, "no permission to write in")],
)
def test_a_place_that_cannot_be_written_to_is_said_before_the_work(
    flags: int, words: str, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = os.statvfs(home)
    fields = [*there[:8], flags, *there[9:]]
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))
    compare = ["compare", "--task", "digits", "--profile", "pcm-ibm", "--methods", "sgd", "--out", "out"]
    for command in ([*EVALUATE, "--times", "1s"], compare):
        assert main(command) == 2
        assert words in capsys.readouterr().err
    assert not Path("out").exists()


def test_report_of_what_is_no_folder_of_a_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    for name, words in (
        ("mine.py", "mine.py is a file: name a folder that compare"),
        ("empty", "folder empty holds no run.json: name one that compare"),
        ("nowhere", "folder nowhere does not exist: name one that compare"),
    ):
        assert main(["report", name]) == 2
        assert words in capsys.readouterr().err
