"""The results file of an evaluation: rows, going on after a kill, and runs that are others."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from analognoise.chip import program_
from analognoise.errors import ResultsError
from analognoise.evaluation.row_text import read_results
from analognoise.evaluation.store import ResultStore
from tests.evaluation.small_net import make, run


def test_file_holds_the_rows(batches: list, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "results.csv"
    report = run(make(), batches, out=path, method="sam", training_seed=2)
    assert read_results(path).equals(report.frame)
    assert set(report.frame["method"]) == {"sam"}
    assert set(report.frame["training_seed"]) == {2}
    report.to_csv(tmp_path / "copy.csv")
    assert (tmp_path / "copy.csv").read_bytes() == path.read_bytes()


def test_killed_at_any_point_and_resumed_gives_the_same_file(batches: list, tmp_path: Path) -> None:
    whole = tmp_path / "whole.csv"
    expected = run(make(), batches, metric="loss", out=whole)
    content = whole.read_bytes()
    generator = random.Random(0)
    for length in [0, 10, len(content) - 1, *generator.sample(range(len(content)), 7)]:
        cut = tmp_path / "cut.csv"
        cut.write_bytes(content[:length])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            report = run(make(), batches, metric="loss", out=cut)
        assert cut.read_bytes() == content
        assert report.rows == expected.rows
        assert report.reused == max(0, content[:length].count(b"\n") - 1)


def test_chips_before_a_failure_are_kept_and_not_computed_again(batches: list, tmp_path: Path) -> None:
    path, calls, killed = tmp_path / "results.csv", 0, False

    def forward(model: nn.Module, batch: Any) -> Tensor:
        nonlocal calls, killed
        calls += 1
        if calls > 30 and not killed:
            killed = True
            raise KeyboardInterrupt
        return model(batch[0])

    with pytest.raises(KeyboardInterrupt):
        run(make(), batches, forward=forward, out=path)
    done = len(path.read_text().splitlines()) - 1
    assert 0 < done < 12
    assert done % 3 == 0  # a chip's rows appear together
    calls = 0
    report = run(make(), batches, forward=forward, out=path)
    assert report.reused == done
    # description 1, digital pass 3, three batches for each row that was missing, and four looks at one batch
    # (as it is, with other digital weights, with other weights on each layer's tiles)
    assert calls == 4 + 3 * (12 - done) + 4
    calls = 0
    assert run(make(), batches, forward=forward, out=path).rows == report.rows
    assert (
        calls == 4 + 1 + 4
    )  # description and digital pass; tiles that are not read are looked for on one batch


def test_more_chips_and_times_are_added(batches: list, tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    run(make(), batches, out=path, chips=2, times=[60.0])
    report = run(make(), batches, out=path)
    assert report.reused == 2
    assert report.rows == run(make(), batches).rows
    assert len(read_results(path)) == 12


def test_another_digital_metric_is_refused(batches: list, tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    run(make(), batches, out=path, chips=2)
    path.write_text(path.read_text().replace(",0.9\n", ",0.95\n"))
    before = path.read_bytes()
    for chips in (2, 4):
        with pytest.raises(ResultsError, match=r"digital accuracy is 0.9 here, but 0.95 in .*results.csv"):
            run(make(), batches, out=path, chips=chips)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 8},
        {"metric": "loss"},
        {"forward": lambda m, b: m(b[0])},
        {"method": "sam"},
        {"training_seed": 1},
    ],
)
def test_another_setting_is_another_run(batches: list, tmp_path: Path, change: dict) -> None:
    path = tmp_path / "results.csv"
    first = run(make(), batches, out=path)
    before = path.read_bytes()
    with pytest.raises(ResultsError, match=f"line 2: holds run {first.run_id}, but this is run"):
        run(make(), batches, out=path, **change)
    assert path.read_bytes() == before


def test_another_model_profile_or_data_is_another_run(samples: tuple[Tensor, Tensor], batches: list) -> None:
    weights, buffer, structure = make(), make(), make()
    with torch.no_grad():
        weights.conv.weight[0, 0, 0, 0] += 1e-6
        buffer.norm.running_mean[1] += 1e-6
    structure.norm.eps = 1e-4
    ids = [
        run(model, data, chips=1).run_id
        for model, data in [
            (make(), batches),
            (weights, batches),
            (buffer, batches),
            (structure, batches),
            (make("gaussian"), batches),
            (make("gaussian@10%"), batches),
            (make(compensation="none"), batches),
            (make(filter_fn=lambda module, name: name == "fc"), batches),
            (make(), [samples]),
        ]
    ]
    assert len(set(ids)) == len(ids)
    programmed = make().train()
    program_(programmed, seed=1)
    assert run(programmed, batches, chips=2, times=5.0).run_id == ids[0]


def test_an_edited_function_is_another_function(batches: list) -> None:
    def build(power: str) -> Callable[[Any, Any], Any]:
        space: dict[str, Any] = {}
        exec(f"def score(o, b): return float((o ** {power}).sum()), 1", space)
        return space["score"]

    ids = [run(make(), batches, chips=1, metric=build(power)).run_id for power in ("2", "4", "2")]
    assert ids[0] == ids[2] != ids[1]


def test_runs_share_a_store(batches: list, tmp_path: Path) -> None:
    with ResultStore(tmp_path / "results.csv") as store:
        reports = [run(make(), batches, out=store, method=name) for name in ("sgd", "sam")]
        assert [r.method for r in store.rows] == ["sgd"] * 12 + ["sam"] * 12
    with ResultStore(tmp_path / "results.csv") as store:
        again = run(make(), batches, out=store, method="sam")
        assert again.reused == 12
        assert again.rows == reports[1].rows
    with pytest.raises(ResultsError, match="use another file"):
        run(make(), batches, out=ResultStore(tmp_path / "other.csv", "some-run"))


def test_a_folder_or_foreign_file_as_out(batches: list, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="is a folder"):
        run(make(), batches, out=tmp_path)
    (tmp_path / "notes.csv").write_text("mine\n")
    with pytest.raises(ResultsError, match="line 1"):
        run(make(), batches, out=tmp_path / "notes.csv")
    assert (tmp_path / "notes.csv").read_text() == "mine\n"


def test_a_half_line_goes_also_where_nothing_is_missing(batches: list, tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    run(make(), batches, chips=2, out=path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"half")
    with pytest.warns(UserWarning, match="cut short"):
        run(make(), batches, chips=2, out=path)
    assert path.read_bytes() == whole
