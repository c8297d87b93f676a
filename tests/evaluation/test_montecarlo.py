"""evaluate_drift on real tiles: what it measures, what it leaves alone, how it goes on, what it refuses."""

from __future__ import annotations

import io
import random
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from analognoise.chip import digital, drift_to_, program_
from analognoise.conversion import analog_layers, convert_to_analog
from analognoise.errors import (
    AnalogNoiseError,
    ConversionError,
    DataError,
    ModelError,
    NotProgrammedError,
    ResultsError,
    UnitError,
)
from analognoise.evaluation import walk
from analognoise.evaluation.data import EvaluationData
from analognoise.evaluation.montecarlo import evaluate_drift
from analognoise.evaluation.row_text import read_results
from analognoise.evaluation.store import ResultStore

TIMES = (0.0, 60.0, 3.0e7)


class Net(nn.Module):
    """A small network with a buffer that only training may change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(torch.relu(self.norm(self.conv(x)))).flatten(1))


def make(profile: str = "pcm-ibm", kind: type[nn.Module] = Net, **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return convert_to_analog(kind(), profile, **options).eval()


@pytest.fixture(scope="module")
def samples() -> tuple[Tensor, Tensor]:
    """Inputs, and as labels what the digital network says of them, one in ten replaced."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        x = torch.randn(60, 1, 4, 4)
        model = make()
        with digital(model), torch.no_grad():
            y = model(x).argmax(1)
        y[::10] = (y[::10] + 1) % 5
        return x, y


@pytest.fixture
def batches(samples: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(samples[0].split(25), samples[1].split(25), strict=True))


def run(model: nn.Module, data: Any, **options: Any) -> Any:
    return evaluate_drift(model, data, **({"times": TIMES, "chips": 4, "seed": 7} | options))


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


# -- left as found
# ---------------------------------------------------------------------------------------------------


def state_of(model: nn.Module, loader: DataLoader) -> list[Any]:
    assert isinstance(loader.generator, torch.Generator)
    return [
        [module.training for module in model.modules()],
        [
            (layer.analog.time, layer.analog.digital, id(layer.analog.tiles))
            for layer in analog_layers(model).values()
        ],
        [
            {name: weights.tolist() for name, weights in layer.analog.weights.items()}
            for layer in analog_layers(model).values()
        ],
        {name: value.tolist() for name, value in model.state_dict().items()},
        [p.requires_grad for p in model.parameters()],
        torch.get_rng_state().tolist(),
        random.getstate(),
        repr(np.random.get_state()),
        loader.generator.get_state().tolist(),
        torch.backends.cudnn.deterministic,
        torch.is_grad_enabled(),
    ]


@pytest.mark.parametrize("programmed", [False, True])
@pytest.mark.parametrize("fails", [None, "forward", "metric"])
def test_everything_is_left_as_found(
    samples: tuple[Tensor, Tensor], programmed: bool, fails: str | None
) -> None:
    model = make()
    loader = DataLoader(TensorDataset(*samples), batch_size=25, generator=torch.Generator().manual_seed(5))
    if programmed:
        program_(model, seed=3)
        drift_to_(model, "1d")
    model.fc.train()  # a mixture of modes
    calls = 0

    def forward(m: nn.Module, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if fails == "forward" and calls > 20:
            raise KeyError("a user's mistake")
        random.random(), np.random.random(), torch.rand(3)
        return m(batch[0])

    def metric(output: Tensor, batch: Any) -> tuple[float, int]:
        return (float("nan") if fails == "metric" and calls > 20 else 1.0), 2

    before = state_of(model, loader)
    if fails is None:
        run(model, loader, forward=forward, metric=metric)
    else:
        error = KeyError if fails == "forward" else DataError
        with pytest.raises(error) as raised:
            run(model, loader, forward=forward, metric=metric)
        said = str(raised.value) + " ".join(getattr(raised.value, "__notes__", []))
        assert "chip" in said
        assert "batch" in said
    assert state_of(model, loader) == before
    if not programmed:
        with pytest.raises(NotProgrammedError):
            model.eval()(samples[0])


def test_a_programmed_chip_goes_on_as_before(batches: list) -> None:
    model, other = make(), make()
    for m in (model, other):
        program_(m, seed=3, chip=5)
        drift_to_(m, "1h")
    run(model, batches)
    with torch.no_grad():
        assert torch.equal(model(batches[0][0]), other(batches[0][0]))
        drift_to_(model, "1y")
        drift_to_(other, "1y")
        assert torch.equal(model(batches[0][0]), other(batches[0][0]))


def test_chips_are_chips_inside_digital_and_inference_mode(batches: list) -> None:
    model, expected = make(), run(make(), batches).rows
    with digital(model), torch.inference_mode():
        assert run(model, [(x.clone(), y) for x, y in batches]).rows == expected
        assert all(layer.analog.digital for layer in analog_layers(model).values())


class Forgetful(Net):
    """A forward that also draws, counts in a buffer, writes into its input and keeps a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.ones(5, device=x.device)
        self.calls += 1
        x = x.sub_(0.1 * self.calls)
        return functional.dropout(super().forward(x), 0.3, training=True) * self.table


def test_a_forward_with_side_effects_is_repeatable(batches: list, tmp_path: Path) -> None:
    original = [x.clone() for x, _ in batches]
    model = make(kind=Forgetful)
    first = run(model, batches, metric="loss")
    assert run(make(kind=Forgetful), batches, metric="loss", times=[60.0]).values[:, 0] == pytest.approx(
        first.values[:, 1], rel=0
    )
    assert model.calls == 0
    assert all(map(torch.equal, original, (x for x, _ in batches)))
    assert model.table is not None
    assert not model.table.is_inference()  # training may go on with it
    whole = tmp_path / "whole.csv"
    run(make(kind=Forgetful), batches, metric="loss", out=whole)
    cut = tmp_path / "cut.csv"
    cut.write_bytes(b"".join(whole.read_bytes().splitlines(keepends=True)[:6]))
    run(make(kind=Forgetful), batches, metric="loss", out=cut)
    assert cut.read_bytes() == whole.read_bytes()


def by_data(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    batch["x"].data.mul_(0.5)
    return model(batch["x"])


def by_numpy(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    batch["x"].numpy()[:] *= 0.5
    return model(batch["x"])


def by_entry(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    batch["x"] = batch["x"] * 0.5
    return model(batch["x"])


def by_removal(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(batch.pop("x") * 0.5)


def by_attribute(model: nn.Module, batch: Any) -> Tensor:
    batch["held"].x = batch["held"].x * 0.5
    return model(batch["held"].x)


@pytest.mark.parametrize("forward", [by_data, by_numpy, by_entry, by_removal, by_attribute])
def test_what_a_forward_makes_of_its_batch_meets_no_other_pass(batches: list, forward: Any) -> None:
    """Autograd's counter of writes shows none of these."""

    def given() -> list[dict[str, Any]]:
        return [{"x": x.clone(), "held": SimpleNamespace(x=x.clone()), "labels": y} for x, y in batches]

    data = given()
    expected = run(make(), data, forward=lambda model, batch: model(batch["x"] * 0.5), metric="loss").values
    assert np.array_equal(run(make(), data, forward=forward, metric="loss").values, expected)
    for batch, before in zip(data, given(), strict=True):
        assert torch.equal(batch["x"], before["x"])
        assert torch.equal(batch["held"].x, before["held"].x)


@pytest.mark.parametrize("width", [100, 80, 60, 50, 46])
def test_figures_of_the_summary_stay_whole_on_a_narrow_terminal(batches: list, width: int) -> None:
    summary = run(make(), batches, times=["1s", "1mo"]).summary()
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(summary)
    text = console.file.getvalue().partition("Student-t")[0]
    for row in summary.frame.to_dict("records"):
        for column in ("mean", "low", "high", "std", "worst", "drop"):
            assert re.search(rf"(^|\s){100 * row[column]:.2f}(\s|$)", text, re.MULTILINE), column
    assert max(map(len, text.splitlines())) <= width
    assert len(re.findall(rf"\s{summary.frame['n'][0]} *$", text, re.MULTILINE)) == 2


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


# -- results file
# ----------------------------------------------------------------------------------------------------


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
        ({"data": 3}, DataError, "data is a int"),
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


def test_a_folder_or_foreign_file_as_out(batches: list, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="is a folder"):
        run(make(), batches, out=tmp_path)
    (tmp_path / "notes.csv").write_text("mine\n")
    with pytest.raises(ResultsError, match="line 1"):
        run(make(), batches, out=tmp_path / "notes.csv")
    assert (tmp_path / "notes.csv").read_text() == "mine\n"


# -- report
# ----------------------------------------------------------------------------------------------------------


def test_summary_by_time(batches: list) -> None:
    report = run(make(), batches)
    frame = report.summary().frame
    assert frame["mean"].to_numpy() == pytest.approx(report.values.mean(axis=0))
    assert frame["std"].to_numpy() == pytest.approx(report.values.std(axis=0, ddof=1))
    assert frame["worst"].to_numpy() == pytest.approx(report.values.min(axis=0))
    assert list(frame["n"]) == [4, 4, 4]
    assert set(frame["unit"]) == {"chip"}
    text = str(report.summary())
    for word in (
        "pcm-ibm",
        "digital 90.00",
        "worst chip",
        "0 s",
        "1 min",
        f"{100 * report.values[:, 2].mean():.2f}",
    ):
        assert word in text
    assert "Drift compensation: global" in text
    assert "conv.bias" in text
    assert repr(report.summary()) == text


def test_one_chip_says_that_it_has_no_interval(batches: list) -> None:
    report = run(make(), batches, chips=1)
    assert "One chip: no interval" in str(report.summary())
    assert "no interval" in str(report.lifetime(0.5)) or report.lifetime(0.5).seconds is None


def test_lifetime_of_a_report(batches: list) -> None:
    report = run(make(compensation="none"), batches, times=[1.0, 1e3, 1e6, 1e9], chips=6)
    means = report.values.mean(axis=0)
    assert means[0] > means[-1]
    level = (means[0] + means[-1]) / 2
    absolute = report.lifetime(level, relative=False)
    assert 1.0 < absolute.seconds < 1e9
    assert report.lifetime(level / report.digital).seconds == pytest.approx(absolute.seconds, rel=1e-6)
    assert report.lifetime(0.01).text.startswith("not within")


def test_csv_is_not_overwritten_unasked(batches: list, tmp_path: Path) -> None:
    report, path = run(make(), batches), tmp_path / "rows.csv"
    path.write_text("mine")
    with pytest.raises(ResultsError, match="overwrite=True"):
        report.to_csv(path)
    assert path.read_text() == "mine"
    report.to_csv(path, overwrite=True)
    assert read_results(path).equals(report.frame)
    report.to_csv(path)  # the same content is no overwriting
    with pytest.raises(ResultsError, match="cannot write"):
        report.to_csv(tmp_path / "nowhere" / "rows.csv")


def test_plot_draws_on_the_axes_given(batches: list) -> None:
    from matplotlib.figure import Figure

    backend = mpl.get_backend()
    ax = Figure().add_subplot()
    assert run(make(), batches).plot(ax) is ax
    assert ax.lines or ax.collections
    assert mpl.get_backend() == backend


def test_own_metric_that_is_better_when_smaller(batches: list) -> None:
    def errors(output: Tensor, batch: Any) -> tuple[Tensor, int]:
        return (output.argmax(1) != batch[1]).sum(), len(batch[1])

    up, down = (run(make(), batches, metric=errors, higher_is_better=better) for better in (None, False))
    assert up.higher_is_better
    assert up.summary().frame["worst"].to_numpy() == pytest.approx(up.values.min(axis=0))
    assert down.summary().frame["worst"].to_numpy() == pytest.approx(up.values.max(axis=0))
    assert "errors counts as better when larger" in str(up.summary())


def test_a_half_line_goes_also_where_nothing_is_missing(batches: list, tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    run(make(), batches, chips=2, out=path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"half")
    with pytest.warns(UserWarning, match="cut short"):
        run(make(), batches, chips=2, out=path)
    assert path.read_bytes() == whole
