"""Recalibration from unlabelled batches: exact statistics, nothing left behind, no test data, its cost."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from analognoise.chip import digital, drift_to_, program_
from analognoise.conversion import analog_layers, convert_to_analog
from analognoise.devices import load_profile
from analognoise.errors import ConversionError, DataError, ResultsError
from analognoise.evaluation.calibration import CalibrationData
from analognoise.evaluation.metrics import default_forward
from analognoise.evaluation.moments import Moments
from analognoise.evaluation.montecarlo import evaluate_drift
from analognoise.evaluation.recalibration import Recalibration
from analognoise.evaluation.surroundings import left_as_found
from analognoise.tasks import TensorBatches

YEAR = 31_536_000.0


class Normed(nn.Module):
    """A convolution and a linear layer, each with BatchNorm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(96, 12)
        self.last = nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(torch.relu(self.last(self.fc(x.flatten(1)))))


class Plain(nn.Module):
    """The same without BatchNorm; the linear layer serves twice in a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.fc = nn.Linear(96, 96)
        self.head = nn.Linear(96, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).flatten(1)
        return self.head(torch.relu(self.fc(torch.relu(self.fc(x)))))


def make(kind: type[nn.Module] = Normed, profile: str = "pcm-ibm", **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind().train()
        with torch.no_grad():
            for _ in range(40):  # running statistics of the data
                model(torch.randn(50, 1, 4, 4))
    return convert_to_analog(model.eval(), profile, **options)


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        x, y = torch.randn(200, 1, 4, 4), torch.randint(0, 4, (200,))
        calibration = torch.randn(120, 1, 4, 4)
    return {"test": list(zip(x.split(50), y.split(50), strict=True)), "calibration": calibration.split(40)}


def run(model: nn.Module, data: dict[str, Any], **options: Any) -> Any:
    given = {"times": [YEAR], "chips": 2, "seed": 3, "metric": "loss"}
    given["calibration"] = data.get("calibration")
    return evaluate_drift(model, data["test"], **(given | options))


def recalibrated(model: nn.Module, kind: str, batches: Any) -> Recalibration:
    found = CalibrationData(batches, torch.device("cpu"), None)
    return Recalibration(model, kind, found, default_forward, 0)


def test_moments_of_parts_are_those_of_the_whole() -> None:
    values = 100 + torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    pooled = Moments()
    for part in values.split(2):
        pooled.add(Moments(part, -2))
    rows = values.movedim(1, 0).flatten(1).double()
    torch.testing.assert_close(pooled.mean, rows.mean(1))
    torch.testing.assert_close(pooled.unbiased_variance, rows.var(1))
    torch.testing.assert_close(pooled.std, rows.std(1, unbiased=False))
    assert pooled.count == 21
    assert Moments(torch.full((10, 2), 0.1), 1).std.tolist() == [0.0, 0.0]


def test_batchnorm_statistics_are_those_of_the_chip(data: dict[str, Any]) -> None:
    """One batch: exactly what torch's own BatchNorm takes up in training mode with momentum 1."""
    model = make(compensation="none")
    program_(model, 0)
    drift_to_(model, YEAR)
    batch = data["calibration"][0]
    norms = [model.norm, model.last]
    with left_as_found(model) as buffers:
        for norm in norms:
            norm.train().momentum = 1.0
        model(batch)
        wanted = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
        for norm in norms:
            norm.eval().momentum = 0.1
        buffers.restore()
        before = [norm.running_mean.clone() for norm in norms]
        with recalibrated(model, "batchnorm", [batch]).applied((0, YEAR), buffers):
            assert not any(module.training for module in model.modules())
            for norm, (mean, variance), old in zip(norms, wanted, before, strict=True):
                torch.testing.assert_close(norm.running_mean, mean)
                torch.testing.assert_close(norm.running_var, variance)
                assert not torch.allclose(norm.running_mean, old, rtol=0.05)
    assert model.norm.num_batches_tracked == 40


@pytest.mark.parametrize("compensation", ["none", "global"])
def test_affine_gives_every_channel_its_digital_mean_and_spread(
    data: dict[str, Any], compensation: str
) -> None:
    """On one batch exactly: the corrected layers are what deeper ones were calibrated on."""
    model = make(compensation=compensation)
    program_(model, 0)
    drift_to_(model, YEAR)
    batch = data["calibration"][0]
    outputs: dict[str, list[Tensor]] = {}

    def note(name: str) -> Any:
        return lambda module, args, output: outputs.setdefault(name, []).append(output)

    with left_as_found(model) as buffers:
        correction = recalibrated(model, "affine", [batch])
        assert correction.left_out == ()
        assert correction.numbers == 2 * (6 + 12 + 4)
        correction.learn()
        for name in ("conv", "fc", "head"):
            getattr(model, name).register_forward_hook(note(name))
        with digital(model):
            model(batch)
        model(batch)
        with correction.applied((0, YEAR), buffers):
            model(batch)
        model(batch)
    for found in outputs.values():
        wanted, uncorrected, _, corrected, after = (Moments(output, 1) for output in found)
        torch.testing.assert_close(corrected.mean, wanted.mean, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(corrected.std, wanted.std, atol=1e-6, rtol=1e-5)
        assert not torch.allclose(uncorrected.std, wanted.std, rtol=0.01)
        assert torch.equal(after.mean, uncorrected.mean)


class Sequenced(nn.Module):
    """A recurrent layer, which has no single product to correct, before a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 8, batch_first=True)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x.squeeze(1))[0][:, -1])


class Strided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(1, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x).flatten(1)[:, :4]


def test_layers_that_affine_cannot_correct_are_named(data: dict[str, Any]) -> None:
    report = run(make(Sequenced), data, recalibrate="affine")
    assert report.left_out == ("rnn",)
    assert "Not recalibrated, as their outputs are more than one product: rnn." in " ".join(
        str(report.summary()).split()
    )
    assert report.cost.numbers == 2 * report.description.tiles + 2 * 4
    assert recalibrated(make(Strided), "affine", data["calibration"]).numbers == 2 * 3


def test_layers_that_affine_cannot_correct_alone_are_refused(data: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"can correct none of the layers on tiles \('rnn'\)"):
        run(
            convert_to_analog(Sequenced(), "pcm-ibm", filter_fn=lambda module, name: name == "rnn"),
            data,
            recalibrate="affine",
        )


def improvement(kind: type[nn.Module], data: dict[str, Any], recalibrate: str) -> tuple[float, float]:
    """Mean squared distance of logits from the digital ones, without and with the recalibration."""

    def distance(output: Tensor, batch: Any) -> tuple[Tensor, float]:
        return (output - wanted(batch[0])).square().sum(), output.numel()

    reference = make(kind)

    def wanted(x: Tensor) -> Tensor:
        with digital(reference), torch.no_grad():
            return reference(x)

    found = []
    for kind_of in (None, recalibrate):
        options = {} if kind_of else {"calibration": None}
        report = run(
            make(kind, compensation="none"), data, metric=distance, chips=6, recalibrate=kind_of, **options
        )
        found.append(float(report.values.mean()))
    return found[0], found[1]


@pytest.mark.parametrize(
    ("kind", "recalibrate"), [(Normed, "batchnorm"), (Normed, "affine"), (Plain, "affine")]
)
def test_recalibration_brings_the_logits_nearer_to_the_digital_ones(
    data: dict[str, Any], kind: type[nn.Module], recalibrate: str
) -> None:
    without, corrected = improvement(kind, data, recalibrate)
    assert corrected < 0.6 * without


@pytest.mark.parametrize(
    ("kind", "recalibrate"), [(Normed, "batchnorm"), (Normed, "affine"), (Plain, "affine")]
)
def test_the_model_is_left_as_found_and_rows_repeat(
    data: dict[str, Any], kind: type[nn.Module], recalibrate: str, tmp_path: Path
) -> None:
    model = make(kind, compensation="column").train()
    getattr(model, "norm", model.conv).eval()  # a mode of the user's own
    program_(model, 11)
    states = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    chip = {n: layer.analog.copy_weights() for n, layer in analog_layers(model).items()}
    modes = [module.training for module in model.modules()]
    attributes = [sorted(vars(module)) for module in model.modules()]
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    report = run(model, data, recalibrate=recalibrate, times=[1.0, YEAR], out=tmp_path / "rows.csv")
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert [module.training for module in model.modules()] == modes
    assert [sorted(vars(module)) for module in model.modules()] == attributes
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, states[name]), name
    for name, layer in analog_layers(model).items():
        assert torch.equal(layer.analog.weights["weight"], chip[name]["weight"])
    assert {row.profile for row in report.rows} == {f"pcm-ibm (column+{recalibrate})"}
    # any order, alone or not, and on a file
    assert run(model, data, recalibrate=recalibrate, times=[YEAR], chips=2).rows == report.rows[1::2]
    again = run(model, data, recalibrate=recalibrate, times=[1.0, YEAR], out=tmp_path / "rows.csv")
    assert (again.reused, again.rows) == (4, report.rows)
    assert (
        run(
            model, data, recalibrate=recalibrate, times=[1.0, YEAR], out=tmp_path / "rows.csv", chips=3
        ).reused
        == 4
    )


def test_calibration_data_are_part_of_the_run(data: dict[str, Any], tmp_path: Path) -> None:
    model, path = make(), tmp_path / "rows.csv"
    first = run(model, data, recalibrate="batchnorm", out=path)
    other = [batch + 0.01 for batch in data["calibration"]]
    for change in (
        {"calibration": other},
        {"calibration_batches": 2},
        {"recalibrate": "affine"},
        {"recalibrate": None, "calibration": None},
    ):
        with pytest.raises(ResultsError, match="use another file"):
            run(model, data, **({"recalibrate": "batchnorm", "out": path} | change))
    labelled = [(x, torch.randint(0, 4, (40,))) for x in data["calibration"]]
    same = run(model, data, recalibrate="batchnorm", calibration=labelled, out=path)
    assert (same.run_id, same.reused) == (first.run_id, 2)  # labels are not even looked at


def test_a_shuffling_loader_serves_and_is_left_as_found(data: dict[str, Any]) -> None:
    x = torch.cat(list(data["calibration"]))
    labels = torch.zeros(120)
    loader = DataLoader(TensorDataset(x, labels), batch_size=30, shuffle=True, generator=torch.Generator())
    state = loader.generator.get_state()
    first = run(make(), data, recalibrate="batchnorm", calibration=loader, calibration_batches=2)
    assert torch.equal(loader.generator.get_state(), state)
    assert (
        run(make(), data, recalibrate="batchnorm", calibration=loader, calibration_batches=2).rows
        == first.rows
    )
    own = TensorBatches(x, labels, 30, seed=4)
    own.set_epoch(7)
    assert CalibrationData(own, torch.device("cpu"), 2).samples == 60
    assert own.epoch == 7
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = DataLoader(TensorDataset(x, labels), batch_size=30, shuffle=True)
        one = CalibrationData(plain, torch.device("cpu"), 2).fingerprint
        assert CalibrationData(plain, torch.device("cpu"), 2).fingerprint == one


def test_cost_is_counted_in_tile_products(data: dict[str, Any]) -> None:
    """Rows 9 (conv), 96 (fc) and 12 (head), a tile each; 16 positions of the convolution."""
    rows, one = 9 + 96 + 12, 16 + 1 + 1
    samples = 120
    for compensation, recalibrate, numbers, each in (
        ("none", None, 0, 0),
        ("global", None, 2 * 3, rows),
        ("column", None, 2 * (6 + 12 + 4), rows),
        ("none", "batchnorm", 2 * (6 + 12), samples * one),
        ("global", "affine", 2 * 3 + 2 * (6 + 12 + 4), rows + samples * one),
    ):
        calibration = data["calibration"] if recalibrate else None
        report = run(
            make(compensation=compensation), data, recalibrate=recalibrate, calibration=calibration, chips=1
        )
        cost = report.cost
        assert (cost.each_time, cost.numbers, cost.one_input) == (each, numbers, one)
        assert cost.after_programming == (0 if compensation == "none" else rows)
        assert report.describe["compensation_cost"]["each_time"] == each
        text = " ".join(str(report.summary()).split())
        assert f"Drift compensation: {report.compensation}" in text
        if each:
            assert f"{each:,}" in text
            assert f"at each drift time (as {each / one:.3g} inputs of the model)" in text


def test_tiles_of_a_split_layer_each_get_their_part_of_every_vector(data: dict[str, Any]) -> None:
    small = load_profile("pcm-ibm").replace({"tile.rows": 40, "tile.columns": 8})
    report = run(make(profile=small), data, calibration=None, chips=1)
    # conv 1 tile, fc 3 by 2 tiles, head 1
    assert report.cost.one_input == 16 + 6 + 1
    assert report.cost.each_time == 9 + 2 * 96 + 12


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"recalibrate": "batchnom"}, r"unknown recalibration 'batchnom' \(did you mean 'batchnorm'\?\)"),
        ({"recalibrate": "affine", "calibration": None}, "recalibration by 'affine' needs inputs"),
        ({}, "calibration data is given but no recalibration"),
        ({"recalibrate": "affine", "calibration": []}, "calibration has no batch"),
        ({"recalibrate": "affine", "calibration": torch.ones(3)}, "calibration is a Tensor"),
        ({"recalibrate": "affine", "calibration": iter([torch.ones(3)])}, "pass a DataLoader or a list"),
        ({"recalibrate": "affine", "calibration_batches": 0}, "calibration_batches is 0.* at least 1"),
        (
            {"recalibrate": "batchnorm", "calibration": [torch.randn(1, 1, 4, 4)]},
            r"BatchNorm layer .last. gets one value per channel",
        ),
    ],
)
def test_what_is_refused(data: dict[str, Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        run(make(), data, **options)


def test_test_data_are_no_calibration_data(data: dict[str, Any]) -> None:
    x = torch.cat([x for x, _ in data["test"]])
    for calibration in (data["test"], [x[30:70]], DataLoader(TensorDataset(x), batch_size=64)):
        with pytest.raises(DataError, match="batch 0 of the calibration is test data"):
            run(make(), data, recalibrate="batchnorm", calibration=calibration)
    mixed = [torch.cat([x[:5], data["calibration"][0]])]  # a few that happen to be equal
    assert run(make(), data, recalibrate="batchnorm", calibration=mixed, chips=1).rows


def test_a_model_without_batchnorm(data: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"no BatchNorm layer with running statistics.*'affine'"):
        run(make(Plain), data, recalibrate="batchnorm")


def test_an_unknown_compensation_of_tiles() -> None:
    with pytest.raises(ConversionError, match="unknown drift compensation 'batchnorm'"):
        make(compensation="batchnorm")


def test_labels_of_dicts_never_reach_the_model(data: dict[str, Any]) -> None:
    seen = []

    class Named(Normed):
        def forward(self, x: Tensor, **more: Any) -> Tensor:
            seen.extend(more)
            return super().forward(x)

    batches = [{"x": x, "labels": torch.zeros(40)} for x in data["calibration"]]
    given = {"test": [{"x": x, "labels": y} for x, y in data["test"]]}
    report = run(make(Named), given, recalibrate="batchnorm", calibration=batches)
    assert report.rows[0].value == run(make(), data, recalibrate="batchnorm").rows[0].value
    assert seen == []


def test_compiled_models_are_recalibrated(data: dict[str, Any]) -> None:
    wanted = run(make(), data, recalibrate="affine").values
    model = make()
    model.compile(backend="eager")
    np.testing.assert_allclose(run(model, data, recalibrate="affine").values, wanted, rtol=1e-5)


def test_noise_of_products_is_repeatable_too(data: dict[str, Any]) -> None:
    model = make(profile=load_profile("pcm-ibm").replace({"periphery.out_noise": 0.02}))
    options = {"recalibrate": "batchnorm", "times": [1.0, YEAR]}
    rows = run(model, data, **options).rows
    assert run(model, data, **(options | {"times": [YEAR]})).rows == rows[1::2]


def test_calibration_data_that_give_no_numbers_are_named(data: dict[str, Any]) -> None:
    broken = [*data["calibration"][:2], torch.full((40, 1, 4, 4), float("nan"))]
    words = "the calibration data give layer '{}' NaN or infinite values {}"
    with pytest.raises(DataError, match=words.format("conv", "digitally")):
        run(make(), data, recalibrate="affine", calibration=broken)
    with pytest.raises(DataError, match=words.format("norm", "on the chip")):
        run(make(), data, recalibrate="batchnorm", calibration=broken)
