"""A batch that memory does not suffice for is halved. A model that refuses large batches stands in."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import analognoise as an
from analognoise.batches import is_out_of_memory, parts_of
from analognoise.cli import main
from analognoise.errors import DataError

ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 99999999999 bytes."
)
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    MemoryError("Unable to allocate 20.0 GiB for an array"),
    RuntimeError(ALLOCATOR),
]
GENERATOR = torch.Generator().manual_seed(1)
X = torch.randn(50, 6, generator=GENERATOR)
Y = torch.randint(0, 3, (50,), generator=GENERATOR)


class Small(nn.Module):
    """Computes at most ``most`` samples at once."""

    def __init__(self, most: int, error: Exception = ERRORS[0], only_on_chips: bool = False) -> None:
        super().__init__()
        # No exception itself: copies of a model would copy the frames that it passed (with tblib).
        self.kind, self.words, self.most, self.only_on_chips = type(error), str(error), most, only_on_chips
        self.one, self.two = nn.Linear(6, 16), nn.Linear(16, 3)
        for number, parameter in enumerate(self.parameters()):
            nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(number))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        on_chip = not getattr(getattr(self.one, "analog", None), "digital", True)
        if len(x) > self.most and (on_chip or not self.only_on_chips):
            raise self.kind(self.words)
        return self.two(self.one(x).tanh())


def rows(model: Small, loader: Any, profile: Any = "pcm-ibm", **options: Any) -> list[tuple[float, float]]:
    analog = an.convert_to_analog(model, profile, inplace=True)  # whose forwards "seen" counts
    report = an.evaluate_drift(analog, loader, times=["1h", "1y"], chips=3, **options)
    return [(row.sum, row.count) for row in report.rows]


def batches(size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(X.split(size), Y.split(size), strict=True))


@pytest.mark.filterwarnings("ignore:there is not enough memory")
@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "numpy", "cpu"])
@pytest.mark.parametrize("only_on_chips", [False, True])
def test_halved_until_it_fits_with_the_same_counts(error: Exception, only_on_chips: bool) -> None:
    model = Small(5, error, only_on_chips)
    with pytest.warns(UserWarning, match="for a batch of 20 samples.* in parts of at most 5 ") as caught:
        found = rows(model, batches(20))
    assert len(caught) == 1
    assert found == rows(Small(100), batches(20))
    # Tried again and again it would not be: after the first pass that found out nothing larger was given
    # (20, 10; before, where the digital passes had memory, the three batches and the first once more).
    assert [size for size in model.seen if size > 5] == [20, 20, 10, 20] * only_on_chips + [20, 10]
    losses = rows(Small(100), batches(20), metric="loss"), rows(Small(5), batches(20), metric="loss")
    for (one, count), (other, again) in zip(*losses, strict=True):
        assert one / count == pytest.approx(other / again, abs=1e-5)


@pytest.mark.filterwarnings("ignore:there is not enough memory")
def test_noise_of_products_is_that_of_the_smaller_batches() -> None:
    noisy = an.load_profile("pcm-ibm").replace({"periphery.out_noise": 0.3})
    # 20 and 20 and 10 samples in halves are fives and tens: batches of 10 give the same products.
    assert rows(Small(10), batches(20), noisy) == rows(Small(100), batches(10), noisy)


class SmallWithNoise(Small):
    """Without noise on it it computes any number of samples."""

    def forward(self, x: Tensor) -> Tensor:
        most, self.most = self.most, self.most if self.one._forward_hooks else len(x)
        try:
            return super().forward(x)
        finally:
            self.most = most


@pytest.mark.filterwarnings("ignore:there is not enough memory")
def test_noise_on_computations_is_that_of_the_smaller_batches() -> None:
    def values(model: nn.Module, size: int) -> list[float]:
        report = an.evaluate_noise(model, batches(size), [0.5], metric="loss", repeats=2, layers=["one"])
        return [row.value for row in report.rows]

    assert values(SmallWithNoise(10), 20) == values(Small(100), 10)


@pytest.mark.filterwarnings("ignore:there is not enough memory")
def test_dicts_and_longer_tuples_are_cut_along_the_batch() -> None:
    def forward(model: nn.Module, batch: Any) -> Tensor:
        assert len(batch[2]) == len(batch[0])
        assert batch[3].dim() == 0
        return model(batch[0]) * batch[3]

    wide = [(x, [str(n) for n in range(len(x))], y, torch.tensor(2.0)) for x, y in batches(20)]
    tuples = [(x, y, names, scale, y) for x, names, y, scale in wide]
    expected = rows(Small(100), batches(20))
    assert rows(Small(7), tuples, forward=forward) == expected
    assert rows(Small(7), [{"x": x, "labels": y} for x, y in batches(20)]) == expected


@pytest.mark.filterwarnings("ignore:there is not enough memory")
@pytest.mark.parametrize("only_on_chips", [False, True])
def test_chips_measured_on_some_samples_are_halved_too(only_on_chips: bool) -> None:
    model = Small(5, only_on_chips=only_on_chips)
    with pytest.warns(UserWarning, match="for a batch of 20 samples.* in parts of at most 5 ") as caught:
        found = rows(model, batches(20), sampling="stratified")
    assert len(caught) == 1
    assert found == rows(Small(100), batches(20), sampling="stratified")
    whole = Small(100)
    rows(whole, batches(20), sampling="stratified")
    assert max(whole.seen) == 20  # samples of several batches go together in no more than that


@pytest.mark.parametrize("only_on_chips", [False, True])
@pytest.mark.parametrize("kind", ["affine", "batchnorm"])
def test_batches_of_the_calibration_are_halved(kind: str, only_on_chips: bool) -> None:
    inputs = torch.randn(60, 6, generator=torch.Generator().manual_seed(2))
    options: dict[str, Any] = {"recalibrate": kind, "metric": "loss"}

    def small(most: int) -> Small:
        model = Small(most, only_on_chips=only_on_chips)
        model.two = nn.Sequential(nn.BatchNorm1d(16), model.two) if kind == "batchnorm" else model.two
        return model.eval()

    with pytest.warns(UserWarning, match="batch of the calibration of 30 .* most 15 .* corrections are by"):
        found = rows(small(25), batches(20), calibration=list(inputs.split(30)), **options)
    # Every statistic is that of the halves, those of the digital network included.
    assert found == rows(small(100), batches(20), calibration=list(inputs.split(15)), **options)


class Once:
    """No memory for one large forward, the n-th."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        if len(batch[0]) > 10:
            self.left -= 1
            if not self.left:
                raise type(ERRORS[0])(str(ERRORS[0]))
        return model(batch[0])


@pytest.mark.filterwarnings("ignore:there is not enough memory")
def test_wherever_memory_runs_out_the_counts_are_the_same() -> None:
    model = an.convert_to_analog(Small(100), "pcm-ibm")
    quantized = an.quantize(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)), bits=4)

    def chips(forward: Any, **options: Any) -> Any:
        options = {"times": ["1h"], "chips": 2} | options
        report = an.evaluate_drift(model, batches(20), forward=forward, **options)
        assert not report.not_read
        return [row.sum for row in report.rows], str(report.description)

    def some_samples(forward: Any) -> Any:
        return chips(forward, sampling="stratified")

    def growing(forward: Any) -> Any:
        return chips(forward, times=["1s", "1y"], chips=10, precision=0.03, max_chips=25)

    def faults(forward: Any) -> Any:
        report = an.evaluate_faults(quantized, batches(20), rates=[0.05], chips=2, forward=forward)
        return [row.sum for row in report.rows], report.sparsity

    for evaluate in (chips, some_samples, growing, faults):
        counting = Once(0)
        expected = evaluate(counting)
        for number in range(1, 1 - counting.left):
            failing = Once(number)
            assert evaluate(failing)[0] == expected[0]
            assert failing.left <= 0


def test_what_cannot_be_halved_is_said() -> None:
    with pytest.raises(DataError, match=r"single sample: take a device with more.*CUDA out of memory"):
        rows(Small(0), batches(20))

    def forward(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0])

    uneven = [(x, X[:3], y) for x, y in batches(20)]
    with pytest.raises(DataError, match="cannot be halved: the batch holds tensors of length 3 and 20 along"):
        rows(Small(5), uneven, forward=forward)
    with pytest.raises(DataError, match="cannot be halved: the batch holds a slice that cannot be cut"):
        rows(Small(5), [(x, slice(3), y) for x, y in batches(20)], forward=forward)


def test_other_errors_are_the_models_own() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
            rows(Small(5, RuntimeError("mat1 and mat2 shapes cannot be multiplied")), batches(20))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_an_allocation_that_this_machine_refuses_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_parts_hold_every_sample_once() -> None:
    found = list(parts_of({"x": X, "n": 3, "pair": (Y, [X])}, 16))
    assert [len(part["x"]) for part in found] == [16, 16, 16, 2]
    assert torch.equal(torch.cat([part["pair"][1][0] for part in found]), X)
    assert torch.equal(torch.cat([part["pair"][0] for part in found]), Y)
    assert {part["n"] for part in found} == {3}


@pytest.mark.parametrize("recipe", ["sgd", "sam"])
def test_training_is_not_halved_but_says_what_to_do(recipe: str) -> None:
    model = Small(10)
    before = [parameter.clone() for parameter in model.parameters()]
    words = (
        rf"'{recipe}' ran out of memory in epoch 1, step 1, on a batch of 20 samples: give smaller batches, "
        "of 10 for example"
    )
    with pytest.raises(DataError, match=words):
        an.fit(model, batches(20), recipe=recipe, epochs=1, lr=0.1)
    for parameter, clean in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, clean)


def trained(most: int) -> tuple[Small, an.History]:
    small = Small(most)
    return small, an.fit(small, batches(10), recipe="sgd", epochs=3, lr=0.05, validation=batches(50))


def test_validation_data_are_halved_once_for_all_epochs() -> None:
    _, whole = trained(50)
    with pytest.warns(UserWarning, match=r"memory for a batch of 50 samples: .* at most 25") as said:
        small, history = trained(25)
    assert len(said) == 1
    assert small.seen.count(50) == 1
    assert history.validation == whole.validation


def test_a_validation_sample_that_does_not_fit_is_told() -> None:
    class Never(Small):
        def forward(self, x: Tensor) -> Tensor:
            self.most = 50 if self.training else 0
            return super().forward(x)

    with pytest.raises(DataError, match=r"validation data, there is not enough memory .* a single sample"):
        an.fit(Never(50), batches(10), recipe="sgd", epochs=1, lr=0.05, validation=batches(50))


class Forgetful(Small):
    """Runs out of memory only when all of its layers have computed."""

    def forward(self, x: Tensor) -> Tensor:
        found = self.two(self.one(x).tanh())
        if len(x) > self.most:
            raise self.kind(self.words)
        return found


CALIBRATED = {"periphery": {"dac": {"bits": 8, "range": "calibrated", "percentile": 90.0}}}


@pytest.mark.filterwarnings("ignore:there is not enough memory")
def test_calibration_batches_are_halved_and_nothing_is_counted_twice() -> None:
    def ranges(most: int) -> dict[str, Tensor]:
        profile = an.load_profile("pcm-ibm").replace(CALIBRATED)
        analog = an.convert_to_analog(Forgetful(most), profile)
        return an.ranges(an.calibrate_(analog, batches(20)))

    with pytest.warns(UserWarning, match="for a batch of 20 samples.* in parts of at most 5 ") as caught:
        found = ranges(6)
    assert len(caught) == 1
    whole = ranges(100)
    assert found.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(found[name], value)
    with pytest.raises(DataError, match=r"calibration data, batch 0: there is not enough .* a single sample"):
        ranges(0)


@pytest.mark.filterwarnings("ignore:there is not enough memory")
def test_activation_sparsity_is_that_of_the_whole_batches() -> None:
    class Sparse(Forgetful):
        def __init__(self, most: int) -> None:
            super().__init__(most)
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            self.relu(self.one(x))
            self.relu(x)
            return super().forward(x)

    with pytest.warns(UserWarning, match="for a batch of 20 samples.* in parts of at most 5 "):
        found = an.activation_sparsity(Sparse(6), batches(20))
    assert found == an.activation_sparsity(Sparse(100), batches(20))
    assert found.samples == 50


@pytest.mark.filterwarnings("ignore:there is not enough memory")
@pytest.mark.parametrize("kind", ["sam", "samson", "random", "eigenvalue", "trace"])
def test_sharpness_is_that_of_the_smaller_batches(kind: str) -> None:
    small = Forgetful(5)
    before = [parameter.clone() for parameter in small.parameters()]
    found = an.sharpness(small, batches(20), kind)
    for parameter, clean in zip(small.parameters(), before, strict=True):
        assert torch.equal(parameter, clean)
        assert parameter.grad is None
    cut = [part for batch in batches(20) for part in parts_of(batch, 5)]
    assert found == an.sharpness(Forgetful(100), cut, kind)
    assert found.value == pytest.approx(an.sharpness(Forgetful(100), batches(20), kind).value, rel=1e-3)


def test_sharpness_of_layers_in_training_mode_is_not_halved() -> None:
    with pytest.raises(DataError, match="with eval_mode=False it is not halved, because layers in training"):
        an.sharpness(Forgetful(5), batches(20), eval_mode=False)


TASK = """
import torch
from torch import nn
import analognoise as an

X = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
X[0] = float("nan")
Y = X[:, :3].argmax(1)

class Small(nn.Module):
    backward_too = False

    def __init__(self, most):
        super().__init__()
        self.most, self.net = most, nn.Linear(6, 3)

    def forward(self, x):
        if len(x) > self.most or (self.training and self.backward_too):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.net(torch.nan_to_num(x))

def build(most=20):
    torch.manual_seed(0)
    return Small(most)

def data():
    return [(X, Y)]

def train(seed=0, batch_size=16):
    return list(zip(X.split(16), Y.split(16)))

def task(most=20):
    return an.Task("small", "", lambda seed: build(most), train, data(), data(), 1, n_classes=3)
"""
MODEL = "--model mine:build --data mine:data --profile pcm-ibm --chips 2"
COMMANDS = {
    "evaluate": f"evaluate {MODEL} --times 1d",
    "sensitivity": f"sensitivity {MODEL}",
    "train": "train --model mine:build --data mine:train --validation mine:data --epochs 2",
    "compare": "compare --task mine:task --profile pcm-ibm --methods sgd --chips 2 --seeds 2 --times 1d "
    "--workers 1",
    "faults": "faults --task mine:task --methods qat --bits 4 --rates 1e-2 --chips 2 --seeds 2 --workers 1 "
    "--sparsity none --no-sharpness",
    "noise-sweep": "noise-sweep --task mine:task --methods sgd --sigmas 0.1:10:3 --repeats 2 --seeds 2 "
    "--workers 1",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_halves_what_it_measures(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        status = main([*COMMANDS[name].split(), "--out", "out"])
    finally:
        sys.modules.pop("mine", None)
    said = capsys.readouterr().err
    assert status == 0, said
    assert "not enough memory for a batch of 48 samples" in said


def test_train_names_the_option_for_smaller_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    command = ["train", "--model", "mine:build", "--data", "mine:data", "--out", "out"]
    try:
        status = main(command)
        first = capsys.readouterr().err
        sys.modules["mine"].Small.backward_too = True
        again = main([*command[:-4], "--data", "mine:train", *command[-2:]])
    finally:
        sys.modules.pop("mine", None)
    for said, how in (
        (first, "let 'mine:data' give them, or take an argument 'batch_size' for --batch-size 24"),
        (capsys.readouterr().err, "--batch-size 8"),
    ):
        assert said.rstrip().endswith(f"for smaller batches: {how}"), said
    assert (status, again) == (2, 2)
    assert not Path("out").exists()
