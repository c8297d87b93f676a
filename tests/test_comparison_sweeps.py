"""Comparisons on faulty memories and under noisy computation: the engine of those on chips."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import analognoise as an
from analognoise.cli import main
from analognoise.comparison import Event, conclude_faults, conclude_noise
from analognoise.comparison.fault_job import MemoryRow
from analognoise.comparison.noise_outcome import _midpoints
from analognoise.comparison.sparse import SparsityChoice
from analognoise.errors import AnalogNoiseError, ResultsError, SparsityError
from analognoise.evaluation.noise_rows import NoiseRow
from analognoise.evaluation.row_text import read_results
from analognoise.evaluation.statistics import mean_interval
from analognoise.report.midpoints import draw_midpoints, midpoint_tables
from analognoise.report.summary import sections
from analognoise.tasks import get_task

COMMON = {"seeds": (0, 1), "epochs": 1, "workers": 1, "command": ["test"]}
FAULTS = COMMON | {"methods": "qat,saq", "bits": (4,), "rates": "1e-2,1e-1", "chips": 2, "sharpness": False}
NOISE = COMMON | {"methods": "sgd,sam", "sigmas": "0.01:10:4", "repeats": 2}


def faults(out: Path, **changes) -> an.FaultComparison:
    return an.compare_faults("digits", out=out, **(FAULTS | changes))


def noise(out: Path, **changes) -> an.NoiseSweep:
    return an.noise_sweep("digits", out=out, **(NOISE | changes))


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> an.FaultComparison:
    return faults(tmp_path_factory.mktemp("faults") / "run")


@pytest.fixture(scope="module")
def noisy(tmp_path_factory) -> an.NoiseSweep:
    return noise(tmp_path_factory.mktemp("noise") / "run", per_layer=True)


def test_faults_leave_a_row_for_everything_in_its_order(faulty):
    frame = read_results(faulty.folder / "results.csv", MemoryRow)
    keys = frame[["sparsity", "method", "training_seed", "chip", "rate"]].itertuples(index=False, name=None)
    assert list(keys) == [
        (sparsity, method, seed, chip, rate)
        for sparsity in ("none", "high")
        for method in ("qat", "saq")
        for seed in (0, 1)
        for chip in (0, 1)
        for rate in (0.01, 0.1)
    ]
    assert set(frame["bits"]) == {4}
    assert set(frame["faults"]) == {"flip"}
    names = {path.name for path in faulty.folder.iterdir()}
    assert names == {
        "results.csv",
        "summary.csv",
        "summary.md",
        "accuracy_over_rate.png",
        "run.json",
        "models",
    }


def test_fault_rows_are_those_of_the_stored_model(faulty):
    task = get_task("digits")
    model = an.load_quantized(task.build(1), faulty.folder / "models" / "saq@4bit-high-seed1.safetensors")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    report = an.evaluate_faults(model, task.test, (0.01, 0.1), 2, method="saq", training_seed=1)
    torch.set_num_threads(threads)
    rows = faulty.results
    rows = rows[(rows["method"] == "saq") & (rows["training_seed"] == 1) & (rows["sparsity"] == "high")]
    assert list(rows["value"]) == list(report.frame["value"])
    assert set(rows["quantized"]) == {report.quantized}
    assert set(rows["unquantized"]) == {report.unquantized}
    models = faulty.models
    mine = models[
        (models["method"] == "saq") & (models["training_seed"] == 1) & (models["sparsity"] == "high")
    ]
    assert mine["activation_sparsity"].item() == report.sparsity.overall
    dense = models[models["sparsity"] == "none"]["activation_sparsity"]
    assert models[models["sparsity"] == "high"]["activation_sparsity"].min() > dense.max()


def test_fault_summary_takes_the_interval_over_training_seeds(faulty):
    rows = faulty.results
    rows = rows[(rows["method"] == "qat") & (rows["sparsity"] == "none") & (rows["rate"] == 0.1)]
    interval = mean_interval(rows.groupby("training_seed")["value"].mean().to_numpy())
    found = faulty.summary
    found = found[(found["method"] == "qat") & (found["sparsity"] == "none") & (found["rate"] == 0.1)]
    assert found["mean"].item() == pytest.approx(interval.mean, rel=1e-12)
    assert found["low"].item() == pytest.approx(interval.low, rel=1e-12)
    assert found["unit"].item() == "training seed"
    drop = (rows["quantized"] - rows["value"]).mean()
    assert found["drop"].item() == pytest.approx(drop, rel=1e-12)
    assert "| 4 bits, none, qat" in faulty.paths["text"].read_text()


@pytest.mark.parametrize("which", ["faulty", "noisy"])
def test_a_second_call_reuses_all_of_it(which, request, tmp_path, monkeypatch):
    finished = request.getfixturevalue(which)
    copied = Path(shutil.copytree(finished.folder, tmp_path / "run"))
    before = contents(copied)

    def refuse(*args, **options):
        raise AssertionError("work was done again")

    for place in ("jobs.fit", "fault_job.evaluate_faults", "noise_job.NoiseEvaluation"):
        monkeypatch.setattr(f"analognoise.comparison.{place}", refuse)
    again = faults(copied) if which == "faulty" else noise(copied, per_layer=True)
    assert again.reused_rows == len(finished.results)
    assert contents(copied) == before
    (copied / "summary.md").unlink()
    (conclude_faults if which == "faulty" else conclude_noise)(copied)
    assert contents(copied) == before


@pytest.mark.parametrize("which", ["faulty", "noisy"])
def test_an_interrupted_run_goes_on(which, request, tmp_path):
    finished = request.getfixturevalue(which)
    start = faults if which == "faulty" else lambda out, **more: noise(out, per_layer=True, **more)

    def interrupt(event: Event) -> None:
        if event.kind == "evaluated" and event.done > event.total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "run", on_event=interrupt)
    found = start(tmp_path / "run")
    assert 0 < found.reused_rows < len(found.results)
    assert contents(tmp_path / "run") == contents(finished.folder)


def test_a_killed_process_is_gone_on_with(faulty, tmp_path):
    """A kill -9 in the middle of rows; what there is then is used, and the end is the same."""
    script = (
        "import analognoise as an\n"
        f"an.compare_faults('digits', out={str(tmp_path / 'run')!r}, **{FAULTS!r})\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(Path(an.__file__).parents[1])},
        stderr=subprocess.DEVNULL,
    )
    results = tmp_path / "run" / "results.csv"
    try:
        for _ in range(1200):
            if results.exists() and results.read_bytes().count(b"\n") > 5:
                break
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = faults(tmp_path / "run")
    assert found.reused_rows > 0
    assert contents(tmp_path / "run") == contents(faulty.folder)


def test_more_of_everything_is_added_as_if_asked_for_at_once(faulty, tmp_path):
    copied = Path(shutil.copytree(faulty.folder, tmp_path / "run"))
    more = {"rates": "1e-3,1e-2,1e-1", "chips": 3, "sparsity": "none", "kinds": "flip,stuck-at-1"}
    events: list[Event] = []
    found = faults(copied, **more, on_event=events.append)
    assert (found.reused_models, found.reused_rows) == (4, 16)
    [kept] = [event.message for event in events if event.kind == "kept"]
    assert "faults 4 bits, sparsity high, flip" in kept
    fresh = faults(tmp_path / "fresh", **more)
    pd.testing.assert_frame_equal(found.results, fresh.results)
    pd.testing.assert_frame_equal(found.summary, fresh.summary)
    assert set(found.summary["faults"]) == {
        "4 bits, sparsity none, flip",
        "4 bits, sparsity none, stuck-at-1",
    }


def test_what_an_earlier_call_asked_for_more_is_said_in_its_own_words(faulty, noisy, tmp_path):
    events: list[Event] = []
    copied = Path(shutil.copytree(faulty.folder, tmp_path / "faults"))
    faults(copied, methods="qat", sparsity="none", chips=1, on_event=events.append)
    copied = Path(shutil.copytree(noisy.folder, tmp_path / "noise"))
    noise(copied, repeats=1, on_event=events.append)
    first, second = [event.message for event in events if event.kind == "kept"]
    assert "(method saq; faults 4 bits, sparsity high, flip; 2 chips)" in first
    assert second.endswith("; 2 repeats): the tables are without them")
    noise(copied, sigmas="0.01,0.1,0.5", per_layer=True, on_event=events.append)
    assert "(σ 1, 10)" in [event.message for event in events if event.kind == "kept"][-1]
    events.clear()
    copied = Path(shutil.copytree(faulty.folder, tmp_path / "two"))
    faults(copied, sparsity="none", kinds="stuck-at-0", on_event=events.append)
    [third] = [event.message for event in events if event.kind == "kept"]
    assert "(faults 4 bits, sparsity none, flip, 4 bits, sparsity high, flip)" in third


def test_workers_change_no_byte(noisy, tmp_path):
    noise(tmp_path / "two", per_layer=True, workers=2)
    assert contents(tmp_path / "two") == contents(noisy.folder)


def test_noise_rows_are_those_of_the_stored_model(noisy):
    task = get_task("digits")
    model = task.build(0)
    an.load_weights(model, noisy.folder / "models" / "sam-seed0.safetensors")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    report = an.evaluate_noise(
        model, task.test, "0.01:10:4", repeats=2, per_layer=True, method="sam", training_seed=0
    )
    torch.set_num_threads(threads)
    rows = noisy.results[(noisy.results["method"] == "sam") & (noisy.results["training_seed"] == 0)]
    whole = rows[rows["noise"] == "additive"]
    assert list(whole["value"]) == [row.value for row in report.rows]
    assert list(dict.fromkeys(rows["noise"])) == [
        "additive",
        *(f"additive on {name}" for name in report.by_layer),
    ]
    for name, found in report.by_layer.items():
        mine = rows[rows["noise"] == f"additive on {name}"]
        assert list(mine["value"]) == [row.value for row in found]
    middle = report.midpoint()
    mine = noisy.models
    mine = mine[(mine["noise"] == "additive") & (mine["method"] == "sam") & (mine["training_seed"] == 0)]
    assert (mine["mu"].item(), mine["high"].item()) == (middle.mu, middle.high)


def test_midpoints_of_methods_are_geometric_means_with_t_intervals():
    table = pd.DataFrame(
        {
            "noise": "additive",
            "method": ["a", "a", "a", "b", "b", "b"],
            "training_seed": [0, 1, 2] * 2,
            "mu": [1.0, 2.0, 4.0, 5.0, math.inf, 6.0],
            "low": 0.5,
            "high": 9.0,
            "slope": 1.0,
            "sigma_min": 0.1,
            "sigma_max": 10.0,
        }
    )
    found = _midpoints(table, 0.95).set_index("method")
    interval = mean_interval(np.log([1.0, 2.0, 4.0]))
    assert found.loc["a", "mu"] == pytest.approx(2.0)
    assert found.loc["a", "low"] == pytest.approx(math.exp(interval.low))
    assert found.loc["a", "high"] == pytest.approx(math.exp(interval.high))
    assert not found.loc["a", "above"]
    assert found.loc["b", "above"]
    assert found.loc["b", "mu"] == pytest.approx((5 * 10 * 6) ** (1 / 3))  # the last level counts
    assert found.loc["b", "best"]
    one = _midpoints(table.iloc[:1], 0.95)
    assert (one["low"].item(), one["high"].item()) == (0.5, 9.0)  # of the model, over repeats


def test_models_at_guessing_are_counted_and_their_method_is_not_called_as_good_as_the_best():
    columns = ["noise", "method", "training_seed", "mu", "low", "high", "slope", "sigma_min", "sigma_max"]
    found = {"sgd": (1.0, 1.1, 0.9), "sam": (0.5, 0.55, 0.45), "vant": (math.nan, math.nan, 0.02)}
    rows = [
        ("additive", method, seed, mu, 0.0, 3.0, 2.0, 0.01, 10.0)
        for method, values in found.items()
        for seed, mu in enumerate(values)
    ]
    middle = _midpoints(pd.DataFrame(rows, columns=columns), 0.95)
    own = middle.set_index("method")
    assert own["lacking"].to_dict() == {"sgd": 0, "sam": 0, "vant": 2}
    assert own["n"].to_dict() == {"sgd": 3, "sam": 3, "vant": 1}
    assert own["marked"].to_dict() == {"sgd": True, "sam": False, "vant": False}
    figures = dict.fromkeys(("digital", "mean", "low", "high", "drop", "test_error"), 0.9)
    summary = pd.DataFrame({"noise": "additive", "method": list(found), "metric": "accuracy", **figures})
    text = "\n".join(midpoint_tables(middle, summary, 0.95).markdown())
    assert "0.02 […, 3] (1 of 3)" in text
    assert "no better than guessing" in text


def test_guessing_is_known_from_the_data_of_a_task_that_does_not_say_its_classes(noisy, tmp_path):
    task = dataclasses.replace(get_task("digits"), n_classes=None)
    out = tmp_path / "run"
    an.noise_sweep(task, out=out, **(NOISE | {"methods": "sgd", "seeds": (0,)}))
    assert json.loads((out / "run.json").read_text())["settings"]["chance"] == 0.1


@pytest.mark.parametrize(
    "command",
    [
        "faults --methods qat,qat:lr=1e30 --bits 4 --sparsity none --no-sharpness",
        "noise-sweep --methods sgd,sgd:lr=1e30 --sigmas 0.1,1,10",
    ],
)
def test_a_failed_training_is_said_by_the_exit_status(command, tmp_path):
    few = "--chips 1 --rates 0.1" if command.startswith("faults") else "--repeats 1"
    words = f"{command} {few} --epochs 1 --seeds 1 --workers 1 --out {tmp_path / 'run'} --json"
    assert main(words.split()) == 1


@pytest.mark.parametrize("kind", ["faults", "noise"])
def test_a_method_whose_training_failed_stands_in_the_tables(kind, tmp_path):
    if kind == "faults":
        found = faults(tmp_path, methods="qat,qat:lr=1e30", seeds=(0,), chips=1)
        text = re.sub(" +", " ", found.paths["text"].read_text())
        assert text.count(f"| {found.failed[0].method} | failed | failed | failed |") == 2  # none and high
        assert set(found.summary["bits"]) == {4}
        assert set(found.summary["sparsity"]) == {"none", "high"}
    else:
        found = noise(tmp_path, methods="sgd:lr=1e30,sgd", seeds=(0,), repeats=1, per_layer=True)
        text = re.sub(" +", " ", found.paths["text"].read_text())
        assert f"| {found.failed[0].method} | failed | failed |" in text
        assert text.count("| failed |") == 5  # also alone on each of the model's layers
        assert "no better than guessing" not in text
        assert set(found.midpoints["method"]) == {"sgd"}
    own = found.summary[found.summary["n"] == 0]
    assert set(own["method"]) == {found.failed[0].method}
    assert len(own) == len(found.summary) / 2
    assert own["mean"].isna().all()
    assert not own["marked"].any()


def mine() -> an.Task:
    """As in the README: build has no use for a seed, and batches are shuffled by the global one."""
    x = torch.randn(64, 20, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(x, x[:, :3].argmax(1))
    return an.Task(
        name="mine",
        description="which of three numbers is the largest",
        build=lambda seed: torch.nn.Sequential(
            torch.nn.Linear(20, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        ),
        train=lambda seed, batch_size: torch.utils.data.DataLoader(data, batch_size=16, shuffle=True),
        validation=None,
        test=torch.utils.data.DataLoader(data, batch_size=64),
        epochs=1,
    )


@pytest.mark.parametrize("command", ["compare", "faults", "noise"])
def test_a_task_that_builds_without_its_seed_can_be_resumed(command, tmp_path):
    def call(seeds: tuple[int, ...]) -> an.Comparison:
        torch.manual_seed(len(list(tmp_path.iterdir())) + len(seeds))
        options = {"seeds": seeds, "workers": 1, "command": ["test"], "out": tmp_path / "run"}
        if command == "compare":
            found = an.compare(mine(), "ideal", "sgd", chips=1, **options)
        elif command == "faults":
            found = an.compare_faults(mine(), "qat", 4, 0.1, 1, sparsity="none", sharpness=False, **options)
        else:
            found = an.noise_sweep(mine(), "sgd", "0.1,1,10", 1, **options)
        return found

    first = call((0,))
    again = call((0, 1))
    assert (again.reused_models, again.reused_rows) == (1, len(first.results))
    weights = [path.read_bytes() for path in sorted((tmp_path / "run" / "models").glob("*.safetensors"))]
    assert len(set(weights)) == 2


def test_models_of_a_task_leave_the_global_generators_as_found():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (mine().model(seed)[0].weight for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_task_that_builds_by_its_seed_is_left_as_it_is():
    task = get_task("digits")
    own, model = task.build(3).state_dict(), task.model(3).state_dict()
    assert all(torch.equal(own[name], model[name]) for name in own)


@pytest.mark.parametrize(
    ("first", "other", "message"),
    [
        ({}, {"layers": "linear"}, r'noises\.additive\.layers is null there and \["linear"\] here'),
        (
            {"fluctuating": True},
            {"fluctuating": (0.5, 0.25)},
            r"noises\.additive \(fluctuating\)\.fluctuating",
        ),
        (
            {"kinds": "mixed", "multiplicative": 0.1},
            {"kinds": "mixed", "multiplicative": 0.2},
            r"noises\.mixed\.multiplicative is 0\.1 there and 0\.2 here",
        ),
    ],
)
def test_noises_of_one_name_do_not_mix(tmp_path, first, other, message):
    few = {"methods": "sgd", "seeds": (0,), "repeats": 1}
    noise(tmp_path, **few, **first)
    before = contents(tmp_path)
    with pytest.raises(ResultsError, match=message):
        noise(tmp_path, **few, **other)
    assert contents(tmp_path) == before


def test_bars_beyond_the_levels_have_marks(tmp_path, monkeypatch):
    marks = []
    monkeypatch.setattr("matplotlib.axes.Axes.annotate", lambda self, text, *_, **__: marks.append(text))
    ends = {"low": 1.0, "high": 2.0, "sigma_min": 0.1, "sigma_max": 10.0, "noise": "additive on fc"}
    rows = [("sgd", 1.5, False, False), ("sam", 0.1, False, True), ("vant", 10.0, True, False)]
    middle = pd.DataFrame(rows, columns=["method", "mu", "above", "below"]).assign(**ends)
    draw_midpoints(tmp_path / "midpoints.png", middle, 0.95)
    assert marks == ["<", ">"]


def test_titles_say_noise(noisy):
    titles = [section.title for section in sections(noisy.summary)]
    assert titles[0] == "Accuracy, additive noise"
    assert titles[1].startswith("Accuracy, additive noise on ")


def test_noise_folder_and_tables(noisy):
    names = {path.name for path in noisy.folder.iterdir()}
    assert names == {
        "results.csv",
        "summary.csv",
        "midpoints.csv",
        "summary.md",
        "accuracy_over_sigma.png",
        "midpoints.png",
        "run.json",
        "models",
    }
    text = noisy.paths["text"].read_text()
    assert "## Midpoint noise level μ" in text
    assert "## μ of additive noise on one layer at a time" in text
    assert "| layer " in text
    assert len(read_results(noisy.folder / "results.csv", NoiseRow)) == 5 * 2 * 2 * 2 * 4
    assert json.dumps(noisy.to_dict(), allow_nan=False)


def test_quantized_methods_are_measured_quantized_and_fluctuating_noise_has_its_rows(tmp_path):
    found = noise(tmp_path / "run", methods="qat:activation_bits=4", seeds=(0,), fluctuating=True)
    assert set(found.results["noise"]) == {"additive", "additive (fluctuating)"}
    task = get_task("digits")
    file = tmp_path / "run" / "models" / "qat_activation_bits=4-seed0.safetensors"
    model = an.load_quantized(task.build(0), file)
    report = an.evaluate_noise(model, task.test, "0.01:10:4", repeats=2, fluctuating=True)
    fluctuating = found.results[found.results["noise"] == "additive (fluctuating)"]
    np.testing.assert_allclose(fluctuating["value"], [row.value for row in report.rows], atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": (1,)}, "bits must be whole numbers from 2 to 8, found 1"),
        ({"bits": (4, 4)}, "bits holds 4 twice"),
        ({"encodings": "grey"}, "unknown encoding 'grey'"),
        ({"rates": "1e-2,1e-2"}, "rates holds 0.01 twice: leave one out"),
        ({"rates": "0.1,1.5"}, "the fault rate is 1.5: give a probability of at least 0 and at most 1"),
        ({"kinds": "flop"}, r"unknown kind of fault 'flop' \(did you mean 'flip'\?\)"),
        ({"methods": "sgd"}, "method 'sgd' does not quantize.*take qat, saq, asaq, samson-saq"),
        ({"methods": "qat:bits=3"}, r"method 'qat:bits=3' has bits of its own: leave that to bits="),
        ({"methods": "qat:sparsity=high"}, r"has sparsity of its own: leave that to sparsity="),
        ({"sparsity": "hi"}, r"unknown sparsity 'hi' \(did you mean 'high'\?\)"),
        ({"sparsity": "l1:much"}, "sparsity 'l1:much' needs a number behind 'l1', found 'much'"),
        ({"digital": ["nope"]}, "'nope' matches no layer"),
        ({"chips": 0}, "chips must be a whole number of at least 1, found 0"),
    ],
)
def test_wrong_faults_write_nothing(tmp_path, changes, message):
    with pytest.raises(AnalogNoiseError, match=message):
        faults(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigmas": "10:0.1:5"}, "the range must go upwards"),
        ({"sigmas": "0.1:10"}, "a range is written FROM:TO:COUNT"),
        ({"sigmas": "-1,1,2"}, "give finite numbers above 0"),
        ({"sigmas": "1,2"}, r"sigmas has 2 levels: a midpoint needs three or more"),
        ({"kinds": "addative"}, r"kind is 'addative' \(did you mean 'additive'\?\)"),
        ({"kinds": "mixed"}, "kind 'mixed' needs multiplicative="),
        ({"layers": "norm"}, "has no layer of the kind 'norm'"),
        ({"methods": "profile-noise"}, "method 'profile-noise' trains for a device"),
        ({"repeats": 0}, "repeats must be a whole number of at least 1, found 0"),
    ],
)
def test_wrong_noise_writes_nothing(tmp_path, changes, message):
    with pytest.raises(AnalogNoiseError, match=message):
        noise(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_folders_of_other_commands_and_settings_are_left_alone(faulty, noisy, tmp_path):
    copied = Path(shutil.copytree(faulty.folder, tmp_path / "run"))
    before = contents(copied)
    with pytest.raises(ResultsError, match="holds a run of 'analognoise faults'"):
        noise(copied, force=True)
    with pytest.raises(ResultsError, match="holds a run of 'analognoise faults'"):
        an.compare("digits", "ideal", "sgd", out=copied, force=True)
    with pytest.raises(ResultsError, match=r"method qat\.epochs is 1 there and 2 here"):
        faults(copied, epochs=2)
    with pytest.raises(ResultsError, match="holds a run of 'analognoise noise-sweep'"):
        faults(noisy.folder)
    assert contents(copied) == before
    again = faults(copied, methods="qat", sparsity="none", seeds=(0,), force=True)
    assert again.reused_models == 0
    assert {path.stem for path in (copied / "models").iterdir()} == {"qat@4bit-none-seed0"}


def test_sharpness_is_set_against_what_faults_cost(faulty, tmp_path):
    copied = Path(shutil.copytree(faulty.folder, tmp_path / "run"))
    found = faults(copied, sharpness=True)
    assert (found.reused_models, found.reused_rows) == (8, len(faulty.results))
    assert set(found.sharpness["profile"]) == {"4bit-none", "4bit-high"}
    counts = found.correlations.groupby("faults", sort=False)["models"].first().to_dict()
    assert counts == {
        "4 bits, sparsity none, flip": 4,
        "4 bits, sparsity high, flip": 4,
        "all models, flip": 8,
    }
    assert "at the quantized weights" in found.paths["text"].read_text()


def test_a_penalty_makes_activations_sparser(tmp_path):
    options = {"methods": "qat", "seeds": (0,), "chips": 1, "epochs": 3}
    found = faults(tmp_path, sparsity="none,hoyer:0.5,threshold:0.3", **options)
    shares = found.models.set_index("sparsity")["activation_sparsity"]
    assert shares["hoyer:0.5"] > shares["none"] + 0.02
    assert shares["threshold:0.3"] > shares["none"] + 0.02


@pytest.mark.parametrize(
    "text", ["none", "high", "top-k:0.1", "top-k:5", "threshold:0.5", "l1:0.01", "hoyer:0.1"]
)
def test_sparsity_by_a_word(text):
    assert SparsityChoice.parse(f" {text} ").name == text


def test_a_share_of_more_than_all_is_refused():
    with pytest.raises(SparsityError, match="keep"):
        SparsityChoice.parse("top-k:1.5")


def test_commands_and_their_report(tmp_path, capsys):
    out = str(tmp_path / "faults")
    arguments = ["faults", "--bits", "2", "--sparsity", "none", "--methods", "qat", "--rates", "0.1"]
    arguments += [
        "--chips",
        "1",
        "--seeds",
        "1",
        "--epochs",
        "1",
        "--workers",
        "1",
        "--no-sharpness",
        "--out",
        out,
    ]
    assert main([*arguments, "--encoding", "sign-magnitude", "--kinds", "0to1", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert list(plain["settings"]["memories"]) == ["2 bits, sparsity none, flip-0-to-1 (sign-magnitude)"]
    assert main(["report", out]) == 0
    assert "2 bits, sparsity none, flip-0-to-1" in " ".join(capsys.readouterr().out.split())
    out = str(tmp_path / "noise")
    arguments = ["noise-sweep", "--methods", "sgd", "--sigmas", "0.1,1,10", "--repeats", "1", "--seeds", "1"]
    assert main([*arguments, "--epochs", "1", "--workers", "1", "--layers", "conv,fc", "--out", out]) == 0
    assert main(["report", out]) == 0
    assert "Midpoint noise level μ" in capsys.readouterr().out
    assert main(["faults", "--bits", "x", "--out", out]) == 2
    assert capsys.readouterr().err == "error: bits must be whole numbers from 2 to 8, found 'x'\n"
