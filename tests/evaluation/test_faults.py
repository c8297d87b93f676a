"""evaluate_faults: what it measures, what it leaves alone, how it goes on, what it refuses."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import analognoise as an
from analognoise.errors import DataError, FaultError, ModelError, QuantizationError, ResultsError
from analognoise.evaluation import FaultRow, ResultStore, evaluate_faults, read_results
from analognoise.evaluation.statistics import mean_interval
from analognoise.memory import FaultModel, memory_faults

mpl.use("Agg")
RATES = (0.0, 1e-2, 1e-1)


def make(bits: int = 4, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 3))
    return an.quantize(net, bits, **options)


@pytest.fixture
def samples() -> tuple[Tensor, Tensor]:
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(1))
    return x, make()(x).argmax(1)


@pytest.fixture
def batches(samples: tuple[Tensor, Tensor]) -> list:
    x, y = samples
    return [(x[:25], y[:25]), (x[25:50], y[25:50]), (x[50:], y[50:])]


def run(model: nn.Module, data: Any, **options: Any) -> Any:
    return evaluate_faults(model, data, **({"rates": RATES, "chips": 4, "seed": 7} | options))


@pytest.mark.parametrize("kind", ["flip", "stuck-at-1", {"stuck-at-0": 0.5, "flip": 0.5}])
@pytest.mark.parametrize("encoding", ["twos-complement", "sign-magnitude"])
def test_rows_are_what_memory_faults_gives(batches: list, kind: Any, encoding: str) -> None:
    model = make().eval()
    report = run(model, batches, kind=kind, encoding=encoding, positions=(0, "sign"), metric="loss")
    x, y = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
    for row in report.rows:
        faults = FaultModel.of(kind, row.rate, positions=(0, "sign"), encoding=encoding)
        with memory_faults(model, faults, chip=row.chip, seed=7):
            expected = nn.functional.cross_entropy(model(x), y).detach()
        assert row.value == pytest.approx(float(expected), rel=1e-5)
        assert row.count == 60
    assert [(row.chip, row.rate) for row in report.rows] == list(itertools.product(range(4), RATES))
    assert report.values.shape == (4, 3)
    assert (report.values[:, 0] == report.quantized).all()  # rate 0
    floats = an.dequantize(model, keep="float")
    assert report.unquantized == pytest.approx(
        float(nn.functional.cross_entropy(floats(x), y).detach()), rel=1e-5
    )


def test_summary_is_student_t_over_chips(batches: list) -> None:
    report = run(make(), batches, chips=6, confidence=0.9)
    frame = report.summary().frame
    assert list(frame["rate"]) == list(RATES)
    for number, row in enumerate(frame.to_dict("records")):
        expected = mean_interval(report.values[:, number], 0.9)
        assert (row["mean"], row["low"], row["high"], row["n"]) == (
            expected.mean,
            expected.low,
            expected.high,
            6,
        )
        assert row["unit"] == "chip"
        assert row["quantized"] == report.quantized
    text = str(report.summary())
    assert "In faulty memory: 576 bits of weights, 4 per weight" in text
    assert "Activation sparsity without faults: " in text
    assert report.bits == {"0.weight": 4, "3.weight": 4}
    assert report.faults == "flip"


def test_the_model_is_left_as_found(batches: list) -> None:
    model = make(activation_bits=4).train()
    model(torch.randn(9, 6))
    model[0].eval()
    model[3].put_codes(torch.ones(3, 16, dtype=torch.int8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    run(model, batches)
    after = model.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert [module.training for module in model] == [False, True, True, True]
    assert (model[3].codes() == 1).all()
    assert not model[0].has_other_codes
    assert torch.equal(torch.get_rng_state(), generator)

    def broken(output: Tensor, batch: Any) -> Any:
        raise ValueError("mine")

    with pytest.raises(DataError, match="mine"):
        run(model, batches, metric=broken)
    assert (model[3].codes() == 1).all()
    assert not model[0].has_other_codes


def test_chips_and_rates_do_not_depend_on_each_other(batches: list, samples: tuple) -> None:
    few = run(make(), batches, rates="1e-1", chips=2, metric="loss")
    many = run(make(), batches, rates=[0.1, 0.05], chips=3, metric="loss")
    assert many.rates == (0.05, 0.1)
    assert (few.values[:, 0] == many.values[:2, 1]).all()
    loader = DataLoader(TensorDataset(*samples), batch_size=7)
    assert (run(make(), loader).values == run(make(), batches).values).all()
    assert (
        run(make(), batches, metric="loss").values[:, 2]
        != run(make(), batches, metric="loss", seed=8).values[:, 2]
    ).all()


def test_a_run_that_was_killed_goes_on(batches: list, tmp_path: Path) -> None:
    whole, part = tmp_path / "whole.csv", tmp_path / "part.csv"
    first = run(make(), batches, out=whole, method="qat", training_seed=3)
    run(make(), batches, out=part, chips=2, method="qat", training_seed=3)
    with part.open("ab") as file:
        file.write(b"cut sho")
    with pytest.warns(UserWarning, match="cut short"):
        second = run(make(), batches, out=part, method="qat", training_seed=3)
    assert (first.reused, second.reused) == (0, 6)
    assert part.read_bytes() == whole.read_bytes()
    assert first.rows == second.rows
    frame = read_results(whole, FaultRow)
    assert list(frame["method"].unique()) == ["qat"]
    assert first.to_csv(tmp_path / "copy.csv").read_bytes() == whole.read_bytes()
    for other, said in (
        ({"seed": 8}, "seed 7 there, 8 here"),
        ({"kind": "stuck-at-0"}, "condition 'flip' there, 'stuck-at-0' here"),
        ({"method": "saq"}, "method 'qat' there, 'saq' here"),
    ):
        with pytest.raises(ResultsError, match=said):
            run(make(), batches, out=whole, **({"method": "qat", "training_seed": 3} | other))
    with pytest.raises(ResultsError, match="another model"):
        run(make(clipping="max"), batches, out=whole, method="qat", training_seed=3)


def test_a_file_is_held_before_the_work_and_cleaned_without_any(batches: list, tmp_path: Path) -> None:
    path, seen = tmp_path / "faults.csv", []

    def forward(model: nn.Module, batch: Any) -> Tensor:
        seen.append(batch)
        return model(batch[0])

    run(make(), batches, chips=1, rates=(0.1,), forward=forward)
    before, seen[:] = len(seen) - len(batches), []
    with ResultStore(path, kind=FaultRow) as other:
        other.claim()
        with pytest.raises(ResultsError, match="another process is writing"):
            run(make(), batches, out=path, forward=forward)
    assert len(seen) == before
    run(make(), batches, out=path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"half")
    with pytest.warns(UserWarning, match="cut short"):
        assert run(make(), batches, out=path).reused == 12
    assert path.read_bytes() == whole


def test_runs_share_a_store(batches: list, tmp_path: Path) -> None:
    with ResultStore(tmp_path / "both.csv", kind=FaultRow) as store:
        for kind in ("flip", "stuck-at-0"):
            run(make(), batches, kind=kind, out=store)
    frame = read_results(tmp_path / "both.csv", FaultRow)
    assert list(frame["faults"].unique()) == ["flip", "stuck-at-0"]
    assert list(frame["bits"].unique()) == ["4"]


def test_picture(batches: list) -> None:
    report = run(make(), batches, rates=(1e-3, 1e-2, 1e-1))
    ax = report.plot()
    assert ax.get_xscale() == "log"
    (line,) = [line for line in ax.get_lines() if line.get_gid() == "line:"]
    np.testing.assert_allclose(line.get_xdata(), [1e-3, 1e-2, 1e-1])
    np.testing.assert_allclose(line.get_ydata(), 100 * report.values.mean(0))


def test_a_long_title_stays_in_the_picture(batches: list) -> None:
    kind = {"stuck-at-0": 0.5, "stuck-at-1": 0.5}
    ax = run(make(), batches, kind=kind, positions=(0, "sign"), encoding="sign-magnitude").plot()
    figure = ax.get_figure(root=True)
    figure.canvas.draw()
    (title,) = [text for text in ax.findobj(mpl.text.Text) if "sign-magnitude" in text.get_text()]
    box = title.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.bbox.y1


def test_dead_and_sparse_layers_are_told(batches: list) -> None:
    sparse = an.sparsify(make(), keep=0.25)
    assert run(sparse, batches, chips=1).sparsity.overall >= 0.75
    with torch.no_grad():
        sparse[0].bias.fill_(-1000)
    with pytest.warns(UserWarning, match="activation layer '1' is dead"):
        report = run(sparse, batches, chips=1)
    assert "DEAD activation layers: 1." in str(report.summary())
    linear = an.quantize(nn.Sequential(nn.Linear(6, 3)), 4)
    assert run(linear, batches, chips=1).sparsity is None


def test_ranges_of_inputs_are_those_without_faults(batches: list) -> None:
    fresh = make(activation_bits=3).eval()
    with pytest.raises(
        QuantizationError, match=r"cannot evaluate faults: .* '0', '3', and none came yet: run"
    ):
        run(fresh, batches)
    assert fresh[0].awaits_inputs
    with torch.no_grad():
        fresh(batches[0][0])
    report = run(fresh, batches, metric="loss")
    x, y = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
    for row in report.rows:
        with memory_faults(fresh, FaultModel(flip=row.rate), chip=row.chip, seed=7):
            expected = nn.functional.cross_entropy(fresh(x), y).detach()
        assert row.value == pytest.approx(float(expected), rel=1e-5)


def test_codes_put_in_place_and_shares_are_another_run(batches: list, tmp_path: Path) -> None:
    model, path = make(), tmp_path / "faults.csv"
    first = run(model, batches, out=path, chips=1, kind={"flip": 0.5, "stuck-at-1": 0.5})
    other = run(model, batches, chips=1, kind={"flip": 0.5000001, "stuck-at-1": 0.4999999})
    assert first.run_id != other.run_id
    codes = model[0].codes()
    codes[0, 0] = -8
    model[0].put_codes(codes)
    changed = run(model, batches, chips=1, kind={"flip": 0.5, "stuck-at-1": 0.5})
    assert changed.run_id != first.run_id
    with pytest.raises(FaultError, match=r"the shares of flip add up to 0\.5"):
        run(model, batches, out=path, kind={"flip": 0.5})


class Passing(nn.Module):
    """Uses the weight of its second layer without calling it, and has an activation that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.attention, self.unused = nn.MultiheadAttention(8, 2, batch_first=True), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).unsqueeze(1)
        mixed = self.attention(hidden, hidden, hidden)[0].squeeze(1)
        return nn.functional.linear(torch.relu(mixed), self.second.weight, self.second.bias)


def test_what_faults_do_not_reach_is_named(batches: list) -> None:
    torch.manual_seed(0)
    model = an.quantize(Passing(), 4)
    with pytest.warns(UserWarning, match=r"does not read the quantized weights 'second\.weight': it uses"):
        report = run(model, batches, chips=1)
    assert report.not_read == ("second.weight",)
    assert report.sparsity is None
    text = " ".join(str(report.summary()).split())
    assert "NOT READ by the model, so that faults there do nothing: second.weight." in text
    assert "Float, so protected: attention (216 parameters), attention.out_proj (72 parameters)." in text
    assert "quantized_weight" not in vars(model.first)
    assert run(make(), batches, chips=1).not_read == ()
    only = an.quantize(Passing(), 4, filter_fn=lambda module, name: name == "second")
    with pytest.raises(DataError, match=r"does not read .* 'second\.weight': .* nothing to measure"):
        run(only, batches)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"rates": [1.5]}, FaultError, r"the fault rate is 1\.5: give a probability"),
        ({"rates": [math.nan]}, FaultError, "the fault rate is nan"),
        ({"rates": "1e-3,x"}, FaultError, "the fault rate is 'x'"),
        ({"rates": []}, FaultError, "rates is empty"),
        ({"kind": "flop"}, FaultError, "unknown kind of fault 'flop'.*did you mean 'flip'"),
        ({"encoding": "ones"}, FaultError, "unknown encoding 'ones'"),
        ({"positions": 4}, FaultError, r"0\.weight: bit position 4 is outside a word of 4 bits"),
        ({"chips": 0}, DataError, "chips is 0: give a whole number, at least 1"),
        ({"seed": 0.5}, DataError, r"seed is 0\.5"),
        ({"metric": "acuracy"}, DataError, "unknown metric 'acuracy'"),
        ({"model": nn.Linear(6, 3)}, QuantizationError, "Linear has no quantized layer"),
        ({"data": []}, DataError, "the data has no batch"),
        ({"confidence": 2}, DataError, "confidence is 2"),
    ],
)
def test_bad_input_is_named(batches: list, arguments: dict, error: type[Exception], said: str) -> None:
    given = {"model": make(), "data": batches} | arguments
    with pytest.raises(error, match=said):
        run(given.pop("model"), given.pop("data"), **given)


def test_weights_that_are_not_finite_are_named(batches: list) -> None:
    model = make()
    with torch.no_grad():
        model[3].weight[0, 0] = math.nan
    with pytest.raises(ModelError, match=r"3\.weight"):
        run(model, batches)
