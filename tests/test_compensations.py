"""Several drift compensations in one comparison or evaluation: rows, tables, files, going on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import analognoise as an
from analognoise.comparison import Comparison, compare
from analognoise.crossbar.compensation import (
    compensation_list,
    name_chips,
    name_compensation,
    split_compensation,
    split_name,
)
from analognoise.errors import AnalogNoiseError, ConversionError, DataError, ResultsError
from analognoise.evaluation.row_text import read_results
from analognoise.jobs.again import report_again
from analognoise.jobs.evaluate import evaluate_model
from analognoise.tasks import TensorBatches


def build(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def batches(seed: int, count: int, shuffle: int | None = None) -> TensorBatches:
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return TensorBatches(x, x[:, :3].argmax(1), 50, seed=shuffle)


def task() -> an.Task:
    return an.Task(
        name="small",
        description="the largest of three",
        build=build,
        train=lambda seed, batch_size: batches(0, 200, seed),
        validation=None,
        test=batches(1, 200),
        epochs=2,
        lr=0.1,
    )


def calibration() -> TensorBatches:
    return batches(2, 100)


def run(out: Path, compensation: str, **changes) -> Comparison:
    given = {"methods": "sgd", "times": "1s,1y", "chips": 2, "seeds": (0,), "workers": 1}
    options = given | {"command": ["analognoise", "compare"]} | changes
    return compare(task(), "pcm-ibm", out=out, compensation=compensation, **options)


@pytest.mark.parametrize(
    ("text", "parts", "name"),
    [
        ("global", ("global", None), "global"),
        ("batchnorm", ("none", "batchnorm"), "batchnorm"),
        ("none+affine", ("none", "affine"), "affine"),
        (" column+affine", ("column", "affine"), "column+affine"),
    ],
)
def test_names(text, parts, name):
    assert split_compensation(text) == parts
    assert name_compensation(*parts) == name
    chips = name_chips("gaussian@5%", name)
    assert split_name(chips) == ("gaussian@5%", None if name == "global" else name)
    assert split_name("mine (2 V)") == ("mine (2 V)", None)


@pytest.mark.parametrize("text", ["globl", "global+batchnom", "batchnorm+global", "global+", "", "none,none"])
def test_wrong_names(text):
    with pytest.raises(ConversionError, match="drift compensation"):
        compensation_list(text)


def test_a_comparison_sweeps_compensations(tmp_path):
    found = run(tmp_path / "run", "global,none,global+batchnorm")
    names = ["pcm-ibm", "pcm-ibm (none)", "pcm-ibm (global+batchnorm)"]
    assert list(dict.fromkeys(found.results["profile"])) == names
    assert len(found.results) == 3 * 2 * 2
    summary = found.summary.set_index(["profile", "time_s"])["mean"]
    year = [summary[name, 31_536_000.0] for name in names]
    assert len(set(year)) == 3, year
    text = (tmp_path / "run" / "summary.md").read_text()
    for name, compensation in zip(names, ("global", "none", "global+batchnorm"), strict=True):
        part = text[text.index(f"## Accuracy on {name} (%)\n") :]
        line = next(line for line in part.splitlines() if line.startswith("- Drift compensation"))
        assert line == f"- Drift compensation: {compensation}."
    assert "- pcm-ibm (none): Drift compensation: none." in text
    # 8 + 16 rows; 4 batches of 50 through two tiles
    assert "24 products of a vector with a tile after programming, 424 at each drift time" in text
    run_json = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run_json["settings"]["compensation"] == "global,none,global+batchnorm"
    assert run_json["settings"]["calibration_batches"] == 10
    cost = run_json["model"]["profiles"]["pcm-ibm (global+batchnorm)"]["compensation_cost"]
    assert cost == {"after_programming": 24, "each_time": 424, "one_input": 2.0, "numbers": 4 + 32}


def test_rows_are_those_of_evaluate_drift(tmp_path):
    found = run(tmp_path / "run", "column+batchnorm", calibration_batches=2)
    model = build()
    an.load_weights(model, tmp_path / "run" / "models" / "sgd-seed0.safetensors")
    report = an.evaluate_drift(
        an.convert_to_analog(model, "pcm-ibm", compensation="column"),
        task().test,
        times="1s,1y",
        chips=2,
        method="sgd",
        training_seed=0,
        recalibrate="batchnorm",
        calibration=task().train(0, None),
        calibration_batches=2,
    )
    assert list(found.results["value"]) == [row.value for row in report.rows]


def test_a_comparison_is_extended_by_compensations(tmp_path):
    out = tmp_path / "run"
    first = run(out, "global")
    wider = run(out, "global,none,batchnorm")
    assert (wider.reused_models, wider.reused_rows) == (1, 4)
    whole = run(tmp_path / "whole", "global,none,batchnorm")
    assert (out / "results.csv").read_bytes() == (tmp_path / "whole" / "results.csv").read_bytes()
    assert (out / "summary.md").read_text() == (tmp_path / "whole" / "summary.md").read_text()
    again = run(out, "global")
    assert again.reused_rows == 4
    assert list(again.results["value"]) == list(first.results["value"])
    assert len(read_results(out / "results.csv")) == len(whole.results)
    run(out, "global,none,batchnorm")
    with pytest.raises(ResultsError, match="calibration_batches is 10 there and 3 here"):
        run(out, "batchnorm", calibration_batches=3)


def test_what_a_comparison_refuses_before_it_trains(tmp_path):
    for compensation, words in (("globl", "did you mean 'global'"), ("none,none", "given twice")):
        with pytest.raises(AnalogNoiseError, match=words):
            run(tmp_path / "run", compensation)
    with pytest.raises(DataError, match="no BatchNorm layer"):
        compare("digits", "pcm-ibm", "sgd", out=tmp_path / "run", compensation="batchnorm")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def weights(tmp_path):
    an.save_weights(build(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def evaluate(tmp_path, weights, **changes):
    options = {
        "profiles": ["pcm-ibm"],
        "model": f"{__name__}:build",
        "data": f"{__name__}:data_of_test",
        "weights": weights,
        "times": "1s,1y",
        "chips": 2,
        "out": tmp_path / "out",
        "say": lambda text: None,
    }
    return evaluate_model(**(options | changes))


def data_of_test() -> TensorBatches:
    """Test data for the jobs, by name."""
    return batches(1, 200)


def test_an_evaluation_sweeps_compensations_and_goes_on(tmp_path, weights):
    names = ["pcm-ibm", "pcm-ibm (affine)", "gaussian@5%", "gaussian@5% (affine)", "gaussian@10%"]
    options = {
        "calibration": f"{__name__}:calibration",
        "profiles": ["pcm-ibm", "gaussian@5%", "gaussian@10%"],
    }
    found = evaluate(tmp_path, weights, compensation="global,affine", **options)
    assert [report.rows[0].profile for report in found.reports] == [*names, "gaussian@10% (affine)"]
    text = (tmp_path / "out" / "summary.md").read_text()
    for title in ("pcm-ibm", "pcm-ibm (affine)", "gaussian", "gaussian (affine)"):
        assert f"## Accuracy on {title} (%)" in text
    assert "- pcm-ibm (affine): Drift compensation: affine, at the cost to each chip of 200 products" in text
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    assert settings["compensation"] == "global,affine"
    assert settings["recalibration"] == f"{__name__}:calibration"
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        "accuracy_over_time.png",
        "accuracy_over_level.png",
    }
    more = evaluate(tmp_path, weights, compensation="global,affine,none", **options)
    assert sum(report.reused for report in more.reports) == sum(len(report.rows) for report in found.reports)
    again, unwritten = report_again(tmp_path / "out")
    there, before = (output.to_dict()["evaluations"] for output in (again, more))
    assert [(item["profile"], item["over_time"]) for item in there] == [
        (item["profile"], item["over_time"]) for item in before
    ]
    assert unwritten is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"compensation": "batchnorm"}, "needs inputs that are no test data: .*--calibration"),
        ({"calibration": f"{__name__}:calibration"}, "no recalibration is asked for"),
        ({"compensation": "affine", "calibration": f"{__name__}:data_of_test"}, "calibration is test data"),
        ({"compensation": "batchnorm", "calibration_batches": 0}, "--calibration-batches is 0"),
    ],
)
def test_what_an_evaluation_refuses(tmp_path, weights, changes, words):
    with pytest.raises(DataError, match=words):
        evaluate(tmp_path, weights, **changes)
    assert not (tmp_path / "out").exists()


def build_plain() -> nn.Module:
    """A model without BatchNorm, by name."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def test_a_sweep_is_checked_before_its_first_chip(tmp_path):
    an.save_weights(build_plain(), tmp_path / "plain.safetensors")
    options = {"model": f"{__name__}:build_plain", "calibration": f"{__name__}:calibration"}
    with pytest.raises(DataError, match="BatchNorm"):
        evaluate(tmp_path, tmp_path / "plain.safetensors", compensation="none,global,batchnorm", **options)
    assert not (tmp_path / "out").exists()
