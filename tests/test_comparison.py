"""Comparisons of methods: complete, repeatable, resumable, and nothing written for wrong arguments."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from analognoise.cli import main
from analognoise.comparison import Comparison, Contender, Event, compare, conclude
from analognoise.comparison.jobs import write_json
from analognoise.conversion import convert_to_analog
from analognoise.devices.catalog import load_profile
from analognoise.errors import (
    AnalogNoiseError,
    DataError,
    MethodError,
    ProfileError,
    ResultsError,
    TrainingError,
)
from analognoise.evaluation.montecarlo import evaluate_drift
from analognoise.evaluation.row_text import read_results
from analognoise.evaluation.statistics import summarise_methods
from analognoise.tasks import get_task, load_weights, save_weights
from analognoise.training.fit import fit
from analognoise.training.measure import measure
from analognoise.training.recipes import parse_method

BASIC = {
    "task": "digits",
    "profiles": "pcm-ibm",
    "methods": "sgd,samson+clip",
    "times": "1s,1d",
    "chips": 3,
    "seeds": (0, 1),
    "epochs": 2,
    "workers": 1,
    "command": ["analognoise", "compare"],
}
FILES = {"results.csv", "summary.csv", "summary.md", "accuracy_over_time.png", "run.json", "models"}
STEMS = {"sgd-seed0", "sgd-seed1", "samson+clip-seed0", "samson+clip-seed1"}


def run(out: Path, **changes) -> Comparison:
    return compare(out=out, **(BASIC | changes))


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Comparison:
    return run(tmp_path_factory.mktemp("comparison") / "run")


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A finished run to do damage to."""
    return Path(shutil.copytree(finished.folder, tmp_path / "run"))


@pytest.fixture
def no_work(monkeypatch):
    """Any training or evaluation is an error."""

    def refuse(*args, **options):
        raise AssertionError("work was done again")

    monkeypatch.setattr("analognoise.comparison.jobs.fit", refuse)
    monkeypatch.setattr("analognoise.comparison.drift_job.evaluate_drift", refuse)


def test_the_folder_holds_what_was_promised(finished):
    folder = finished.folder
    assert {path.name for path in folder.iterdir()} == FILES
    names = {path.name for path in (folder / "models").iterdir()}
    assert names == {f"{stem}{suffix}" for stem in STEMS for suffix in (".safetensors", ".json")}
    assert set(finished.paths) == {"results", "summary", "text", "run", "over_time"}
    assert all(path.is_file() for path in finished.paths.values())
    assert finished.paths["over_time"].read_bytes()[:4] == b"\x89PNG"


def test_one_row_for_everything_in_its_order(finished):
    frame = read_results(finished.folder / "results.csv")
    keys = list(frame[["method", "training_seed", "chip", "time_s"]].itertuples(index=False, name=None))
    assert keys == [
        (method, seed, chip, time)
        for method in ("sgd", "samson+clip")
        for seed in (0, 1)
        for chip in range(3)
        for time in (1.0, 86400.0)
    ]
    assert set(frame["profile"]) == {"pcm-ibm"}
    assert set(frame["count"]) == {360}
    pd.testing.assert_frame_equal(frame, finished.results)
    pd.testing.assert_frame_equal(finished.summary, summarise_methods(frame))


def test_rows_are_those_of_the_stored_models(finished):
    task = get_task("digits")
    for method, seed in (("sgd", 1), ("samson+clip", 0)):
        stem = finished.folder / "models" / f"{method}-seed{seed}"
        model = task.build(99)
        load_weights(model, stem.with_suffix(".safetensors"))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        report = evaluate_drift(
            convert_to_analog(model, "pcm-ibm"),
            task.test,
            times="1s,1d",
            chips=3,
            seed=0,
            method=method,
            training_seed=seed,
        )
        torch.set_num_threads(threads)
        rows = finished.results[
            (finished.results["method"] == method) & (finished.results["training_seed"] == seed)
        ]
        pd.testing.assert_frame_equal(rows.reset_index(drop=True), report.frame)
        record = json.loads(stem.with_suffix(".json").read_text())
        assert record["digital"]["test"] == report.digital
        assert record["digital"]["validation"] == measure(model, task.validation).value
        assert record["history"]["validation"][-1] == record["digital"]["validation"]
        assert record["history"]["gradients"] == ([17, 34] if method == "sgd" else [34, 68])
        assert record["training"]["training_seed"] == seed


def test_methods_start_from_the_same_weights(finished):
    starts = {
        stem: json.loads((finished.folder / "models" / f"{stem}.json").read_text())["training"][
            "initial_weights"
        ]
        for stem in STEMS
    }
    assert starts["sgd-seed0"] == starts["samson+clip-seed0"] != starts["sgd-seed1"]


def test_run_json_says_everything(finished):
    run = json.loads((finished.folder / "run.json").read_text())
    profile = load_profile("pcm-ibm")
    assert run["settings"]["times_s"] == [1.0, 86400.0]
    assert run["settings"]["training_seeds"] == [0, 1]
    assert (run["settings"]["chips"], run["settings"]["epochs"], run["settings"]["lr"]) == (3, 2, 0.05)
    assert run["settings"]["compensation"] == "global"
    clip = run["settings"]["methods"][1]
    assert clip["name"] == "samson+clip"
    assert clip["hyperparameters"] == {"rho": 0.2, "eta": 0.01, "warmup": 0.1, "perturb": "all", "clip": 2.0}
    assert run["profiles"]["pcm-ibm"]["digest"] == profile.digest
    assert run["profiles"]["pcm-ibm"]["content"] == profile.as_dict()
    assert run["versions"]["torch"] == torch.__version__
    assert run["command"] == ["analognoise", "compare"]
    described = run["model"]["profiles"]["pcm-ibm"]
    assert [layer["name"] for layer in described["layers"]] == ["conv1", "conv2", "fc"]
    assert [part["name"] for part in described["digital"]] == ["conv1.bias", "conv2.bias", "fc.bias"]


def test_summary_in_words(finished):
    text = finished.paths["text"].read_text()
    assert "2 training seeds, 3 chips for each model and device, 2 epochs, drift compensation: global" in text
    assert "- pcm-ibm: 100.0 % of the multiply-accumulates and 98.2 % of the parameters are on tiles" in text
    assert re.search(r"^\| conv2\.bias +\| +16 \| +0 \| +biases are added digitally \|$", text, re.MULTILINE)
    assert (
        "- samson+clip: rho = 0.2, eta = 0.01, warmup = 0.1, perturb = all, clip = 2; 2 epochs, lr 0.05"
        in text
    )


def test_workers_change_no_byte(finished, tmp_path):
    events: list[Event] = []
    run(tmp_path / "two", workers=2, on_event=events.append)
    assert contents(tmp_path / "two") == contents(finished.folder)
    kinds = [event.kind for event in events]
    assert kinds[0] == "plan"
    assert kinds[-1] == "done"
    assert (kinds.count("trained"), kinds.count("evaluated"), kinds.count("epoch")) == (4, 4, 8)
    assert events[-1].done == events[-1].total
    assert [event.done for event in events] == sorted(event.done for event in events)


def test_a_second_run_does_nothing_again(copied, no_work):
    before = contents(copied)
    events: list[Event] = []
    again = run(copied, on_event=events.append)
    assert contents(copied) == before
    assert [e.message for e in events if e.kind == "reused"] == [
        "4 of 4 models reused",
        "24 of 24 rows reused",
    ]
    assert (again.reused_models, again.reused_rows) == (4, 24)
    assert events[0].total == 0


def test_a_run_goes_on_where_it_stopped(copied, finished, monkeypatch):
    # As if killed: one model unfinished, its rows and some others not there, the last line cut short.
    (copied / "models" / "samson+clip-seed1.json").unlink()
    (copied / "models" / "samson+clip-seed1.safetensors.part").write_bytes(b"half")
    for name in ("summary.csv", "summary.md", "accuracy_over_time.png"):
        (copied / name).unlink()
    lines = (copied / "results.csv").read_bytes().splitlines(keepends=True)
    (copied / "results.csv").write_bytes(b"".join(lines[:4]) + lines[5] + lines[6][:20])
    trained = []
    monkeypatch.setattr(
        "analognoise.comparison.jobs.fit", lambda *a, **o: trained.append(o["seed"]) or fit(*a, **o)
    )
    with pytest.warns(UserWarning, match="cut short") as caught:
        again = run(copied)
    assert len(caught) == 1
    assert trained == [1]
    assert (again.reused_models, again.reused_rows) == (3, 4)
    assert contents(copied) == contents(finished.folder)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_run_goes_on(tmp_path, finished, workers):
    def interrupt(event: Event) -> None:
        if event.kind == "rows" and event.done > 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", workers=workers, on_event=interrupt)
    assert (tmp_path / "run" / "results.csv").stat().st_size > 100
    assert run(tmp_path / "run").reused_models > 0
    assert contents(tmp_path / "run") == contents(finished.folder)


def test_a_training_that_was_interrupted_goes_on(tmp_path, finished, monkeypatch):
    monkeypatch.setattr("analognoise.training.resuming.PAUSE", 0.0)
    monkeypatch.setattr("analognoise.training.resuming.SHARE", 0.0)
    folder, events = tmp_path / "run", []

    def interrupt(event: Event) -> None:
        events.append(event.kind)
        if events.count("epoch") == 2:  # the second of two, before it counts
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, on_event=interrupt)
    [left] = (folder / "models").iterdir()
    assert left.name == "sgd-seed0.checkpoint"
    again = []
    run(folder, on_event=again.append)
    [said] = [event.message for event in again if "goes on" in event.message]
    assert said == "training sgd, seed 0 goes on after 1 of 2 epochs"
    assert [event.kind for event in again].count("epoch") == 7
    assert again[-1].done == again[-1].total
    assert contents(folder) == contents(finished.folder)
    left.write_text("of a kill when the model was stored")
    run(folder)
    assert not left.exists()


def test_a_damaged_model_is_trained_again(copied, finished):
    path = copied / "models" / "sgd-seed0.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    again = run(copied)
    assert (again.reused_models, again.reused_rows) == (3, 18)
    assert contents(copied) == contents(finished.folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 3}, r"another run \(method sgd\.epochs is 2 there and 3 here\)"),
        (
            {"epochs": 3, "methods": "samson+clip,sam"},
            r"another run \(method samson\+clip\.epochs is 2 there",
        ),
        ({"evaluation_seed": 1}, r"evaluation_seed is 0 there and 1 here"),
        ({"batch_size": 32}, r"batch_size is 64 there and 32 here"),
        ({"digital": ["conv1"]}, r"digital is only here"),
    ],
)
def test_another_run_is_left_alone(copied, no_work, changes, message):
    before = contents(copied)
    with pytest.raises(ResultsError, match=message):
        run(copied, **changes)
    assert contents(copied) == before


def test_other_initial_weights_are_another_run(tmp_path):
    task = get_task("digits")
    run(tmp_path, task=task, methods="sgd", seeds=(0,), epochs=1)
    other = replace(task, build=lambda seed: task.build(seed + 1))
    with pytest.raises(ResultsError, match="what sgd-seed0 starts from is not the same: initial weights"):
        run(tmp_path, task=other, methods="sgd", seeds=(0,), epochs=1)


def test_force_starts_over_and_deletes_only_what_such_a_run_leaves(copied):
    (copied / "notes.txt").write_text("mine")
    (copied / "models" / "notes.txt").write_text("mine too")
    again = run(copied, methods="sgd", seeds=(0,), force=True)
    assert (again.reused_models, again.reused_rows) == (0, 0)
    assert {path.name for path in copied.iterdir()} == FILES | {"notes.txt"}
    names = {path.name for path in (copied / "models").iterdir()}
    assert names == {"sgd-seed0.json", "sgd-seed0.safetensors", "notes.txt"}
    assert set(again.results["method"]) == {"sgd"}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"results.csv": "mine\n"}, r"holds results\.csv but no run\.json that says whose it is"),
        ({"models/resnet-seed0.safetensors": "mine"}, r"holds models but no run\.json that says whose it is"),
        ({"run.json": '{"speed": 3}'}, r"run\.json is not the description of a comparison"),
        ({"run.json": "half of"}, r"run\.json cannot be read .*restore it"),
        ({"run.json": '{"job": "train", "settings": {}}'}, "holds a run of 'analognoise train'"),
        ({"run.json": '{"job": "evaluate", "settings": {}}'}, "holds a run of 'analognoise evaluate'"),
    ],
)
def test_what_is_not_of_a_comparison_is_left_alone(tmp_path, files, message, force):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    with pytest.raises(ResultsError, match=message + ".*choose another folder$"):
        run(tmp_path, force=force)
    assert contents(tmp_path) == before


def test_more_of_everything_is_added_as_if_asked_for_at_once(copied, tmp_path, monkeypatch):
    more = {"methods": "sgd,sam,samson+clip", "chips": 4, "times": "1s,1h,1d", "seeds": (0, 1, 2)}
    more["profiles"] = "pcm-ibm,gaussian"
    trained = []
    monkeypatch.setattr(
        "analognoise.comparison.jobs.fit",
        lambda *a, **o: trained.append((o["recipe"].label, o["seed"])) or fit(*a, **o),
    )
    events: list[Event] = []
    found = run(copied, **more, on_event=events.append)
    assert sorted(trained) == [("sam", 0), ("sam", 1), ("sam", 2), ("samson+clip", 2), ("sgd", 2)]
    assert (found.reused_models, found.reused_rows) == (4, 24)
    assert "kept" not in {event.kind for event in events}
    fresh = run(tmp_path / "fresh", **more)
    assert contents(copied) == contents(fresh.folder)


def test_less_is_shown_alone_and_the_rest_is_kept(copied, finished, no_work):
    before = contents(copied)
    events: list[Event] = []
    found = run(copied, methods="samson+clip", chips=2, times="1d", seeds=(1,), on_event=events.append)
    assert (found.reused_models, found.reused_rows) == (1, 2)
    [kept] = [event.message for event in events if event.kind == "kept"]
    assert "keeps 22 rows that an earlier call asked for" in kept
    assert "(method sgd; training seed 0; time 1 s; 3 chips)" in kept
    everything = finished.results
    asked = everything[
        (everything["method"] == "samson+clip")
        & (everything["training_seed"] == 1)
        & (everything["time_s"] == 86400)
        & (everything["chip"] < 2)
    ].reset_index(drop=True)
    pd.testing.assert_frame_equal(found.results, asked)
    pd.testing.assert_frame_equal(found.summary, summarise_methods(asked))
    pd.testing.assert_frame_equal(conclude(copied).results, asked)
    rows = read_results(copied / "results.csv")
    assert sorted(map(tuple, rows.to_numpy())) == sorted(map(tuple, everything.to_numpy()))
    # Asked for all of it again, it is what it was.
    run(copied)
    assert contents(copied) == before


def test_a_killed_extension_goes_on(copied, tmp_path):
    more = {"methods": "sam,sgd", "chips": 5}

    def interrupt(event: Event) -> None:
        if event.kind == "rows":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(copied, **more, on_event=interrupt)
    found = run(copied, **more)
    fresh = run(tmp_path / "fresh", **more)
    pd.testing.assert_frame_equal(found.results, fresh.results)
    pd.testing.assert_frame_equal(found.summary, fresh.summary)


def test_what_was_there_is_checked_also_where_the_last_call_left_it_out(copied, no_work, tmp_path):
    run(copied, methods="sgd")
    before = contents(copied)
    with pytest.raises(ResultsError, match=r"samson\+clip-seed0\.recipe is samson\+clip there and "):
        run(copied, methods=["sgd", Contender("samson+clip:rho=0.5", name="samson+clip")])
    other = load_profile("pcm-ibm").replace({"drift.t_0": 10.0})
    with pytest.raises(ResultsError, match=r"profiles\.pcm-ibm\.drift\.t_0 is 20\.0 there and 10\.0 here"):
        run(copied, methods="sgd", profiles=[other])
    assert contents(copied) == before


def test_force_after_less_was_asked_for_deletes_all_models(copied):
    run(copied, methods="sgd")
    run(copied, methods="sgd", seeds=(0,), force=True)
    assert {path.stem for path in (copied / "models").iterdir()} == {"sgd-seed0"}


def test_force_leaves_models_that_no_comparison_trained(copied):
    (copied / "models" / "resnet.safetensors").write_bytes(b"mine")
    (copied / "models" / "config.json").write_text("{}")
    run(copied, methods="sgd", seeds=(0,), force=True)
    names = {path.name for path in (copied / "models").iterdir()}
    assert names == {"sgd-seed0.json", "sgd-seed0.safetensors", "resnet.safetensors", "config.json"}


def test_rows_that_are_not_of_the_run_are_named(copied):
    path = copied / "results.csv"
    path.write_text(path.read_text().replace("sgd,1,2,", "sam,1,2,"))
    with pytest.raises(
        ResultsError, match=r"results\.csv, line \d+: method is 'sam', but 'sgd' in line \d+ of the same run"
    ):
        run(copied)


def test_rows_that_no_job_asked_for_are_named(copied):
    path = copied / "results.csv"
    path.write_text(path.read_text().replace("sgd,1,", "sam,1,"))
    with pytest.raises(
        ResultsError, match=r"a row that is not of this run .*method sam, training seed 1, chip 0"
    ):
        run(copied)


def test_rows_of_another_model_are_found_out(copied):
    path = copied / "results.csv"
    lines = path.read_text().splitlines(keepends=True)
    run_id = lines[1][:16]
    del lines[max(number for number, line in enumerate(lines) if line.startswith(run_id))]
    path.write_text("".join(lines).replace(run_id, "0" * 16))
    with pytest.raises(ResultsError, match="holds rows of another model for sgd, seed 0, on pcm-ibm"):
        run(copied)


def test_a_run_is_finished_with_the_versions_it_began_with(copied, monkeypatch):
    monkeypatch.setattr(
        "analognoise.comparison.folder.version", lambda name: "0.0" if name == "torch" else "1.0"
    )
    content = json.loads((copied / "run.json").read_text())
    for name in content["versions"]:
        if name not in ("python", "machine", "torch"):
            content["versions"][name] = "1.0"
    (copied / "run.json").write_text(json.dumps(content))
    assert run(copied).reused_rows == 24
    (copied / "models" / "sgd-seed0.json").unlink()
    with pytest.raises(ResultsError, match=r"began with torch .*, here is 0\.0"):
        run(copied)


def test_models_that_cannot_be_stored_are_not_trained(tmp_path, no_work, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    size = sum(value.nbytes for value in get_task("digits").model(0).state_dict().values())
    models = len(STEMS)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=models * size - 1))
    with pytest.raises(ResultsError, match=f"models needs about .* MB for {models} models, and its disk has"):
        run(tmp_path / "run")


def test_a_folder_in_use_is_refused(copied):
    fcntl = pytest.importorskip("fcntl")
    handle = os.open(copied / "models", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(ResultsError, match="another process is working in"):
            run(copied)
    finally:
        os.close(handle)


OWN = """
import torch
from safetensors.torch import load_file
from torch import nn
from dataclasses import replace
from analognoise.tasks import TensorBatches, get_task

digits = get_task("digits")

def nothing_to_convert(): return replace(digits, build=lambda seed: nn.PReLU())
def no_test(): return replace(digits, test=None)
def shuffled(): return replace(digits, test=digits.train(0, 64))
def misfit(): return replace(digits, build=lambda seed: nn.Sequential(nn.Flatten(), nn.Linear(5, 10)))
def no_model(): return replace(digits, build=lambda seed: "a model")
def no_batches(): return replace(digits, train=lambda seed, size: None)
def broken(value, place):
    x, y = digits.test.inputs.clone(), digits.test.targets
    x[70, 0, 3, 3] = value
    return replace(digits, **{place: TensorBatches(x, y, 64)})
def nan_in_test(): return broken(float("nan"), "test")
def inf_in_validation(): return broken(float("inf"), "validation")
class Careful(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net
    def forward(self, x): return self.net(x.nan_to_num())
def careful():
    task = nan_in_test()
    return replace(task, build=lambda seed: Careful(digits.build(seed)))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_comparison.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "digit"}, "unknown task 'digit'"),
        ({"profiles": "pcm-imb"}, r"unknown profile 'pcm-imb' \(did you mean 'pcm-ibm'\?\)"),
        ({"profiles": ()}, "no device profile given"),
        ({"profiles": "pcm-ibm,pcm-ibm"}, "two profiles are named 'pcm-ibm'"),
        ({"methods": "sgd,samsom"}, "unknown method 'samsom'"),
        ({"methods": ()}, "no method given"),
        ({"methods": "sgd,sgd"}, "method 'sgd' is given twice"),
        ({"methods": "samson,samson-inf"}, "method 'samson-inf' is the same training as 'samson'"),
        ({"times": "1 fortnight"}, "unknown unit 'fortnight'"),
        ({"times": ()}, "no drift time given"),
        ({"chips": 0}, "chips must be a whole number of at least 1, found 0"),
        ({"chips": 10**9}, "chips must be a whole number of at most 100000, found 1000000000"),
        ({"task": "own_comparison:nan_in_test"}, "test data of task 'digits', batch 1: 1 value is NaN"),
        (
            {"task": "own_comparison:inf_in_validation"},
            "validation of task 'digits', batch 1: 1 value is NaN",
        ),
        ({"chips": True}, "chips must be a whole number of at least 1, found True"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1, found 0"),
        ({"lr": -1.0}, "lr of method 'sgd' must be finite and above 0, found -1.0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, found 0"),
        ({"workers": 0}, "workers must be a whole number of at least 1, found 0"),
        ({"seeds": ()}, "training seeds must be different and at least one"),
        ({"seeds": 3}, r"training seeds are 3: give each of them, for example range\(3\)"),
        ({"seeds": (1, 1)}, r"training seeds must be different and at least one, found \[1, 1\]"),
        ({"seeds": (-1,)}, "a training seed must be a whole number of at least 0, found -1"),
        ({"compensation": "globall"}, r"'globall' \(did you mean 'global'\?\)"),
        ({"confidence": 95}, "confidence is 95"),
        ({"task": "own_comparison:nothing_to_convert"}, "nothing to convert in PReLU"),
        ({"task": "own_comparison:no_test"}, "has no test data"),
        ({"task": "own_comparison:shuffled"}, "differs between two passes"),
        ({"task": "own_comparison:misfit"}, "cannot compute a batch of its test data: RuntimeError: mat1"),
        ({"task": "own_comparison:no_model"}, r"gave str, expected a torch\.nn\.Module"),
        ({"task": "own_comparison:no_batches"}, "train of task 'digits' gave None"),
    ],
)
def test_wrong_arguments_write_nothing(own, changes, message):
    with pytest.raises(AnalogNoiseError, match=message):
        run(own / "out", **changes)
    assert not (own / "out").exists()


def test_nan_that_the_model_is_made_for_are_no_error(own):
    found = run(own / "out", task="own_comparison:careful", methods="sgd", seeds=(0,), epochs=1, chips=1)
    assert found.results["value"].notna().all()


def test_progress_is_in_the_units_of_the_tables(tmp_path):
    events: list[Event] = []
    found = run(tmp_path, methods="sgd", seeds=(0,), epochs=1, chips=1, on_event=events.append)
    [message] = [event.message for event in events if event.kind == "trained"]
    assert message == f"sgd, seed 0: digital accuracy {100 * found.results['digital'][0]:.1f} %"


def test_an_output_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(ResultsError, match=r"cannot be used: .*file is not a folder"):
            run(out)
    assert contents(tmp_path) == {"file": b"mine"}


def test_tasks_that_cannot_travel_need_one_worker(own):
    digits, lock = get_task("digits"), threading.Lock()
    task = replace(digits, name="guarded", build=lambda seed: lock.locked() or digits.build(seed))
    with pytest.raises(DataError, match=r"task .guarded. cannot be sent to workers: .*lock"):
        run(own / "out", task=task, workers=2)


def test_noise_levels_and_devices_without_drift(tmp_path):
    profiles = ["gaussian@5%", "gaussian@0.1", "pcm-ibm"]
    found = run(tmp_path, profiles=profiles, methods="sgd", seeds=(0,), epochs=1)
    times = found.results.groupby("profile")["time_s"].agg(lambda x: sorted(set(x)))
    assert times.to_dict() == {"gaussian@5%": [0.0], "gaussian@10%": [0.0], "pcm-ibm": [1.0, 86400.0]}
    assert list(dict.fromkeys(found.results["profile"])) == ["gaussian@5%", "gaussian@10%", "pcm-ibm"]
    assert (tmp_path / "accuracy_over_level.png").is_file()
    assert (tmp_path / "accuracy_over_time.png").is_file()
    assert {"over_level", "over_time"} <= set(found.paths)


def test_an_ideal_device_loses_nothing(tmp_path):
    found = run(tmp_path, profiles="ideal", methods="sgd", seeds=(0,))
    assert (found.results["value"] == found.results["digital"]).all()
    assert found.paths.keys() == {"results", "summary", "text", "run"}


def test_profile_noise_is_trained_for_each_profile(tmp_path):
    found = run(tmp_path, profiles="pcm-ibm,gaussian", methods="sgd,profile-noise", seeds=(3,), epochs=1)
    names = {path.name for path in (tmp_path / "models").glob("*.safetensors")}
    assert names == {
        "sgd-seed3.safetensors",
        "profile-noise@pcm-ibm-seed3.safetensors",
        "profile-noise@gaussian-seed3.safetensors",
    }
    counts = found.results.groupby(["profile", "method"]).size().to_dict()
    assert counts == {
        ("pcm-ibm", "sgd"): 6,
        ("pcm-ibm", "profile-noise"): 6,
        ("gaussian", "sgd"): 3,
        ("gaussian", "profile-noise"): 3,
    }


def test_contenders_with_settings_of_their_own(tmp_path):
    longer = Contender("sgd", name="sgd, twice as long", epochs=4)
    found = run(tmp_path, methods=["sgd", longer], seeds=(0,))
    assert list(found.summary["method"].unique()) == ["sgd", "sgd, twice as long"]
    record = json.loads((tmp_path / "models" / "sgd__twice_as_long-seed0.json").read_text())
    assert len(record["history"]["train_loss"]) == 4
    with pytest.raises(MethodError, match="would be stored under the name 'a_b-seed0'"):
        run(tmp_path / "other", methods=[Contender("sgd", "a b"), Contender("sam", "a:b")])


def test_a_method_s_text_may_say_its_own_learning_rate_and_epochs(tmp_path):
    assert Contender.parse("sam:lr=0.02:rho=0.1:epochs=3") == Contender(
        parse_method("sam:rho=0.1"), "sam:rho=0.1:lr=0.02:epochs=3", 3, 0.02
    )
    for text in ("sgd:lr=0.12345678", "sgd:epochs=1000000", "sgd:lr=0.05:epochs=1234567"):
        assert Contender.parse(text).name == text  # it names files: no two are to share one
    found = run(tmp_path, methods="sgd,sgd:epochs=1:lr=0.01", seeds=(0,))
    assert list(found.summary["method"].unique()) == ["sgd", "sgd:lr=0.01:epochs=1"]
    record = json.loads(next((tmp_path / "models").glob("sgd*lr*-seed0.json")).read_text())
    assert (record["training"]["lr"], record["training"]["epochs"]) == (0.01, 1)
    for text, words in {
        "sam:lr=fast": "lr in method 'sam:lr=fast' must be a number, found 'fast'",
        "sam:epochs=1.5": "epochs in method 'sam:epochs=1.5' must be a whole number, found '1.5'",
        "sam:lr=1:lr=2": "lr is given twice",
        "sam:lr=0.1+clip": "modifiers follow the method's name, as in 'sam+clip:lr=0.1'",
        "sam:lr=0": "lr of method 'sam:lr=0' must be finite and above 0",
        "sam:epochs=0": "at least 1, found 0",
    }.items():
        with pytest.raises(AnalogNoiseError, match=re.escape(words)):
            run(tmp_path / "other", methods=text)
    assert not (tmp_path / "other").exists()


def test_a_method_that_breaks_down_is_reported_and_the_others_go_on(tmp_path):
    events: list[Event] = []
    methods = ["sgd", Contender("sam", lr=1e20)]
    found = run(tmp_path, methods=methods, seeds=(0,), epochs=1, on_event=events.append)
    [failure] = found.failed
    assert (failure.method, failure.training_seed, failure.profile) == ("sam", 0, None)
    assert failure.message.startswith("training by method 'sam' broke down in epoch 1, step 2: ")
    told = [event.message for event in events if event.kind == "failed"]
    assert told == [f"sam, seed 0: {failure.message}"]
    assert found.summary["method"].tolist() == ["sgd"] * 2 + ["sam"] * 2
    assert found.summary["mean"].notna().tolist() == [True] * 2 + [False] * 2
    assert failure.message in (tmp_path / "summary.md").read_text()
    assert re.search(r"\| sam +\|( +failed \|){3}", (tmp_path / "summary.md").read_text())
    assert json.loads((tmp_path / "run.json").read_text())["failed"] == [failure.to_dict()]
    before = contents(tmp_path)
    again = run(tmp_path, methods=methods, seeds=(0,), epochs=1)
    assert again.failed == found.failed
    assert contents(tmp_path) == before


class OnlyInTraining(nn.Module):
    """Its outputs are NaN in eval mode, for one of the seeds; its losses and parameters are not."""

    def __init__(self, net: nn.Module, seed: int) -> None:
        super().__init__()
        self.net, self.broken = net, seed == 1

    def forward(self, x):
        return self.net(x) * (float("nan") if self.broken and not self.training else 1.0)


def test_outputs_that_are_not_finite_on_test_data_stop_that_training_alone(tmp_path):
    task = get_task("digits")
    odd = replace(task, build=lambda seed: OnlyInTraining(task.build(seed), seed), validation=None)
    found = run(tmp_path, task=odd, methods="sgd,clip", seeds=(0, 1), epochs=1)
    assert {(failure.method, failure.training_seed) for failure in found.failed} == {("sgd", 1), ("clip", 1)}
    words = "training by method 'sgd' broke down in epoch 1: test data, batch 0: the accuracy has the sum nan"
    assert any(failure.message.startswith(words) for failure in found.failed)
    assert set(found.results["training_seed"]) == {0}
    before = contents(tmp_path)
    assert run(tmp_path, task=odd, methods="sgd,clip", seeds=(0, 1), epochs=1).failed == found.failed
    assert contents(tmp_path) == before


def test_the_exit_status_says_that_a_method_broke_down(tmp_path, capsys):
    methods = "sgd,sgd:lr=1e30,noise:noise=1e30"  # the recipe's name alone would not tell which one it was
    asked = ["--methods", methods, "--chips", "2", "--seeds", "1", "--epochs", "1"]
    out = str(tmp_path / "run")
    assert main(["compare", "--profile", "pcm-ibm", "--times", "1s", "--out", out, *asked]) == 1
    found = capsys.readouterr()
    printed = " ".join(found.out.split())
    assert re.search(r"noise:noise=1e\+30 failed failed", printed)
    for said in (printed, found.err):
        for name, recipe in (("noise:noise=1e+30", "noise:noise=1e+30"), ("sgd:lr=1e+30", "sgd")):
            assert f"failed: {name}, seed 0: training by method '{recipe}' broke down in epoch 1" in said


def test_when_every_method_breaks_down(tmp_path):
    with pytest.raises(TrainingError, match="every training failed; the first: sgd, seed 0: training by"):
        run(tmp_path, methods="sgd", seeds=(0,), lr=1e20)
    assert not (tmp_path / "results.csv").exists()


DEADLY = """
import multiprocessing, os, signal
from dataclasses import replace
from analognoise.tasks import get_task

digits = get_task("digits")

def build(seed):
    if multiprocessing.parent_process() is not None and seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return digits.build(seed)

def task(): return replace(digits, build=build)
"""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_worker_that_dies_is_an_error_and_the_rest_is_kept(tmp_path, monkeypatch):
    (tmp_path / "deadly_task.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AnalogNoiseError, match=r"a worker process died .*training sgd, seed 1"):
        run(tmp_path / "out", task="deadly_task:task", methods="sgd", workers=2)
    # One worker does the same work in this process, and goes on from what was finished.
    assert len(run(tmp_path / "out", task="deadly_task:task", methods="sgd").results) == 12


def test_the_number_of_threads_is_left_as_found(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(tmp_path, methods="sgd", seeds=(0,), epochs=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_tables_are_made_again_from_the_folder_alone(copied, finished, capsys):
    for name in ("summary.csv", "summary.md", "accuracy_over_time.png"):
        (copied / name).unlink()
    again = conclude(copied)
    assert contents(copied) == contents(finished.folder)
    again.print()
    assert "samson+clip" in capsys.readouterr().out
    plain = again.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    with pytest.raises(
        ResultsError, match=r"holds no run\.json: it is not the output folder of a comparison"
    ):
        conclude(copied / "models")


def test_profiles_by_file_and_object(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'schema = 1\nname = "mine"\n[conductance]\nunit = "uS"\ng_max = 10.0\n[programming]\nsigma = 1.0\n'
    )
    profiles = [str(tmp_path / "mine.toml"), load_profile("ideal")]
    found = run(tmp_path / "out", profiles=profiles, methods="sgd", seeds=(0,), epochs=1)
    assert set(found.results["profile"]) == {"mine", "ideal"}
    with pytest.raises(ProfileError, match="does not exist"):
        run(tmp_path / "out", profiles=str(tmp_path / "none.toml"))


def test_a_disk_without_room_is_told_before_the_work(tmp_path, no_work, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=500)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResultsError, match=r"models needs about .* 4 models, and its disk has 0\.0005 MB"):
        run(tmp_path / "out")
    assert not (tmp_path / "out" / "results.csv").exists()
    with pytest.raises(ResultsError, match=r"cannot write .*nowhere.run\.json: No such file"):
        write_json(tmp_path / "nowhere" / "run.json", {})
    with pytest.raises(ResultsError, match=r"cannot write .*nowhere.m\.safetensors: No such file"):
        save_weights(torch.nn.Linear(2, 2), tmp_path / "nowhere" / "m.safetensors")


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows = nn.LSTM(8, 10, batch_first=True)

    def forward(self, x):
        return self.rows(x.reshape(-1, 8, 8))[0][:, -1]


def test_methods_that_cannot_train_the_model_are_told_before_the_work(tmp_path, no_work):
    flat = replace(get_task("digits"), build=lambda seed: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with pytest.raises(
        MethodError, match=r"^method 'qat:sparsity=high': the method trains with sparse activ"
    ):
        run(tmp_path / "out", task=flat, methods="sgd,qat:sparsity=high")
    recurrent = replace(flat, build=lambda seed: Recurrent())
    with pytest.raises(MethodError, match=r"^method 'saq': the method trains a quantized model: nothing to"):
        run(tmp_path / "out", task=recurrent, methods="sgd,saq")
    assert not (tmp_path / "out").exists()


RELOADED = """
import torch
from safetensors.torch import load_file
import analognoise as an

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))

def data(*_):
    return [(X, X[:, :2].argmax(1))]

def task():
    return an.Task("own", "", lambda seed: torch.nn.Linear(4, WIDE), data, data(), data(), 1, n_classes=2)
"""


def test_a_task_is_loaded_anew_for_each_comparison(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for wide in (2, 3):
        sys.modules.pop("own_task", None)
        (tmp_path / "own_task.py").write_text(RELOADED.replace("WIDE", str(wide)))
        importlib.invalidate_caches()
        asked = {"methods": ["sgd"], "profiles": "ideal", "seeds": [0], "chips": 2, "workers": 1}
        compare("own_task:task", out=tmp_path / str(wide), **asked)
        stored = load_file(tmp_path / str(wide) / "models" / "sgd-seed0.safetensors")
        assert stored["weight"].shape == (wide, 4)
    sys.modules.pop("own_task")
