"""evaluate_drift on real tiles: what it measures, that nothing is silently digital, and what it refuses."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from analognoise.chip import digital, drift_to_, program_
from analognoise.conversion import analog_layers
from analognoise.errors import AnalogNoiseError, ConversionError, DataError, ModelError, UnitError
from analognoise.evaluation import walk
from analognoise.evaluation.data import EvaluationData
from analognoise.evaluation.row_text import read_results
from tests.evaluation.small_net import TIMES, Net, make, run


def by_hand(model: nn.Module, data: Any, chip: int, time: float) -> int:
    program_(model, seed=7, chip=chip)
    drift_to_(model, time)
    with torch.no_grad():
        return sum(int((model(x).argmax(1) == y).sum()) for x, y in data)


def test_rows_are_what_a_plain_loop_gives(batches: list) -> None:
    report = run(make(), batches)
    model = make()
    with digital(model), torch.no_grad():
        hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    assert report.digital == hits / 60 == 0.9
    assert [(r.chip, r.time_s) for r in report.rows] == [(c, t) for c in range(4) for t in TIMES]
    for row in report.rows:
        assert row.sum == by_hand(model, batches, row.chip, row.time_s)
        assert (row.count, row.value, row.digital) == (60, row.sum / 60, 0.9)
        assert (row.profile, row.method, row.training_seed, row.metric) == ("pcm-ibm", "", None, "accuracy")
    assert len({row.sum for row in report.rows}) > 3  # chips and times do differ


def test_ideal_devices_give_the_digital_metric(batches: list) -> None:
    accuracy = run(make("ideal"), batches)
    assert {row.value for row in accuracy.rows} == {accuracy.digital}
    loss = run(make("ideal"), batches, metric="loss")
    assert loss.values == pytest.approx(loss.digital, rel=1e-5)


@pytest.mark.parametrize("metric", ["accuracy", "loss", "perplexity"])
def test_repeats_give_the_same_rows(batches: list, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(make(), batches, metric=metric)
    torch.manual_seed(99)
    assert run(make(), batches, metric=metric).rows == first.rows
    monkeypatch.setattr(walk, "_AHEAD_BYTES", 0)  # each chip and time by itself
    assert run(make(), batches, metric=metric).rows == first.rows
    monkeypatch.setattr(walk, "_AHEAD_BYTES", 3000)  # blocks that split a chip's times
    assert run(make(), batches, metric=metric).rows == first.rows


def test_a_chip_does_not_depend_on_what_else_is_asked_for(batches: list) -> None:
    rows = {(r.chip, r.time_s): r for r in run(make(), batches, metric="loss").rows}
    few = run(make(), batches, metric="loss", chips=2, times=[TIMES[2], TIMES[0]])
    assert [r.time_s for r in few.rows[:2]] == [0.0, 3e7]
    assert all(rows[r.chip, r.time_s] == r for r in few.rows)


def test_another_seed_gives_other_chips(batches: list) -> None:
    values = [run(make(), batches, metric="loss", seed=seed).values for seed in (7, 8)]
    assert not (values[0] == values[1]).any()


@pytest.mark.parametrize("size", [1, 7, 60])
def test_batch_size_changes_no_count(samples: tuple[Tensor, Tensor], batches: list, size: int) -> None:
    other = DataLoader(TensorDataset(*samples), batch_size=size)
    assert (run(make(), other).values == run(make(), batches).values).all()
    one, two = (run(make(), data, metric="loss").values for data in (other, batches))
    np.testing.assert_allclose(one, two, rtol=1e-5)


def test_data_that_is_not_cached_gives_the_same(batches: list, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(make(), batches, metric="loss").rows
    monkeypatch.setattr(EvaluationData.__init__, "__defaults__", (0,))
    assert run(make(), batches, metric="loss").rows == expected


def test_loss_and_perplexity(batches: list) -> None:
    loss, perplexity = (run(make(), batches, metric=m) for m in ("loss", "perplexity"))
    assert perplexity.values == pytest.approx(np.exp(loss.values), rel=1e-12)
    model = make()
    program_(model, seed=7, chip=2)
    drift_to_(model, 60.0)
    with torch.no_grad():
        expected = (
            sum(functional.cross_entropy(model(x).double(), y, reduction="sum") for x, y in batches) / 60
        )
    assert loss.values[2, 1] == pytest.approx(expected.item(), rel=1e-6)
    assert not loss.higher_is_better


def test_dicts_a_forward_hook_and_an_own_metric(samples: tuple[Tensor, Tensor], batches: list) -> None:
    x, y = samples
    expected = run(make(), batches).values
    dicts = [{"x": x[:25], "label": y[:25]}, {"x": x[25:], "label": y[25:]}]
    assert (run(make(), dicts).values == expected).all()
    odd = [(x, y, "extra")]
    hook = run(
        make(),
        odd,
        forward=lambda m, b: m(b[0]),
        metric=lambda o, b: ((o.argmax(1) != b[1]).sum(), len(b[1])),
    )
    assert hook.values == pytest.approx(1 - expected)
    assert hook.metric == "<lambda>"


# -- never silently digital
# ------------------------------------------------------------------------------------------


class Around(Net):
    """Uses one layer's weight without the layer, another by ``forward``, and one only in late batches."""

    def __init__(self) -> None:
        super().__init__()
        self.late, self.never = nn.Linear(5, 5), nn.Linear(5, 5)
        self.functional = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.linear(super().forward(x), self.functional.weight)
        return self.late.forward(x) if len(x) == 10 else x


def test_tiles_that_are_not_read_are_named(batches: list) -> None:
    with pytest.warns(UserWarning, match="the tiles of 'never', 'functional' were not read"):
        report = run(make(kind=Around), batches)
    assert report.not_read == ("never", "functional")
    assert report.describe["not_read"] == ["never", "functional"]
    assert "NOT READ: the tiles of never, functional" in str(report.summary())


def test_the_warning_comes_also_when_all_rows_are_reused(batches: list, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.warns(UserWarning, match="were not read"):
            report = run(make(kind=Around), batches, out=tmp_path / "results.csv")
    assert report.reused == 12
    assert report.not_read == ("never", "functional")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.encoder(x.flatten(1)[:, None].expand(-1, 3, -1)).mean(1))


def test_what_attention_does_is_named_truly(batches: list) -> None:
    model = make(kind=Attention)
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        report = run(model, batches, chips=1)
    read = set(analog_layers(model)) - set(report.not_read)
    assert {"encoder.linear1", "encoder.linear2", "fc"} <= read
    assert bool(report.not_read) == any("not read" in str(n.message) for n in notices)


def test_share_of_the_work(batches: list) -> None:
    report = run(make(), batches)
    assert report.not_read == ()
    assert report.describe["mac_share"] == 1.0
    assert report.describe["compensation"] == "global"
    macs = {layer["name"]: layer["macs"] for layer in report.describe["layers"]}
    assert macs == {"conv": 25 * 4 * 9 * 16, "fc": 25 * 64 * 5}


@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")
@pytest.mark.parametrize("inplace", [False, True])
def test_a_compiled_model(batches: list, inplace: bool) -> None:
    model = make()
    if inplace:
        model.compile(backend="eager")
    report = run(model if inplace else torch.compile(model, backend="eager"), batches)
    assert report.not_read == ()
    assert (report.values == run(make(), batches).values).all()


# -- bad input
# -------------------------------------------------------------------------------------------------------


class Broken(Net):
    def __init__(self) -> None:
        super().__init__()
        self.fc.weight.data[0, 3] = float("nan")


def generator_of(items: list) -> Iterator:
    yield from items


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"chips": 0}, DataError, "chips is 0.*at least 1"),
        ({"chips": -3}, DataError, "chips is -3"),
        ({"chips": 2.5}, DataError, "chips is 2.5"),
        ({"chips": True}, DataError, "chips is True"),
        ({"chips": np.int64(0)}, DataError, "chips is .*at least 1"),
        ({"seed": None}, DataError, "seed is None: give a whole number"),
        ({"seed": 1.5}, DataError, "seed is 1.5"),
        ({"seed": "x"}, DataError, "seed is 'x'"),
        ({"training_seed": -1}, DataError, "training_seed is -1: give a whole number, at least 0"),
        ({"training_seed": "x"}, DataError, "training_seed is 'x'"),
        ({"training_seed": 1.0}, DataError, "training_seed is 1.0"),
        ({"training_seed": True}, DataError, "training_seed is True"),
        ({"times": [None]}, UnitError, "None"),
        ({"times": "1 fortnight"}, UnitError, "fortnight"),
        ({"times": []}, UnitError, "no drift time"),
        ({"times": [-1.0]}, UnitError, "not be negative|not negative"),
        ({"metric": "acc"}, DataError, "unknown metric 'acc'"),
        ({"confidence": 95}, DataError, "confidence is 95"),
        ({"higher_is_better": False}, DataError, "contradicts"),
        ({"forward": "model"}, DataError, "forward is a str"),
        ({"data": []}, DataError, "no batch"),
        ({"data": 3}, DataError, "data is an int"),
        ({"data": [torch.zeros(3, 1, 4, 4)]}, DataError, "batch 0: found a Tensor"),
        ({"data": [(torch.zeros(3, 1, 4, 4), torch.zeros(4).long())]}, DataError, "batch 0: logits of shape"),
        ({"data": [(torch.zeros(3, 1, 4, 4), torch.full((3,), 9))]}, DataError, "batch 0: label 9"),
        ({"data": [{"x": torch.zeros(3, 1, 4, 4)}]}, DataError, "batch 0: has no labels"),
        ({"metric": lambda o, b: 1.0}, DataError, "batch 0: the metric '<lambda>' returned a float"),
        ({"metric": lambda o, b: (1.0, 0)}, DataError, "digital pass: batch 0: .*count 0"),
        ({"model": Net()}, ConversionError, "convert_to_analog"),
        ({"model": make(kind=Broken)}, ModelError, "fc.weight"),
        ({"model": make().to("meta")}, ModelError, "'conv.weight' is on the 'meta' device"),
    ],
)
def test_bad_input_writes_nothing(
    batches: list, tmp_path: Path, change: dict, error: type[AnalogNoiseError], words: str
) -> None:
    change = dict(change)
    model, data = change.pop("model", None) or make(), change.pop("data", batches)
    with pytest.raises(error, match=words):
        run(model, data, out=tmp_path / "results.csv", **change)
    assert list(tmp_path.iterdir()) == []


def test_numpy_numbers_are_plain_numbers(batches: list, tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    expected = run(make(), batches, metric="loss", training_seed=3)
    numbers = {"chips": np.int64(4), "seed": np.int64(7), "training_seed": np.uint8(3)}
    report = run(make(), batches, metric="loss", out=path, **numbers)
    assert report.rows == expected.rows
    assert report.run_id == expected.run_id
    assert read_results(path).equals(expected.frame)
    assert report.lifetime(np.float32(1.5)).floor == pytest.approx(1.5 * report.digital)


def test_a_one_shot_generator_is_refused_before_it_is_used_up(batches: list) -> None:
    data = generator_of(batches)
    with pytest.raises(DataError, match="read only once"):
        run(make(), data)
    assert len(list(data)) == 3
