"""Chips that are passed by: every way to compute digitally in spite of a chip is named."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import analognoise as an
from analognoise.chip import digital
from analognoise.conversion import analog_layers, convert_to_analog
from analognoise.errors import DataError
from analognoise.evaluation import drift
from analognoise.evaluation.montecarlo import evaluate_drift
from analognoise.evaluation.reading import find_idle

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
BATCHES = [(x, torch.arange(20) % 3) for x in X.split(20)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.first(x)))

    def first(self, x: Tensor) -> Tensor:
        return self.a(x)


class Stubborn(nn.Linear):
    def train(self, mode: bool = True) -> nn.Module:
        return super().train(True)


class StaysInTraining(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a = Stubborn(6, 8)


class GoesIntoTraining(Net):
    def first(self, x: Tensor) -> Tensor:
        self.a.training = True
        return self.a(x)


class Bypasses(Net):
    def first(self, x: Tensor) -> Tensor:
        return self.a(x) * 0 + functional.linear(x, self.a.weight, self.a.bias)


class BypassesHalf(Net):
    def first(self, x: Tensor) -> Tensor:
        return (self.a(x) + functional.linear(x, self.a.weight, self.a.bias)) / 2


class BypassesLate(Net):
    """Only in the second batch."""

    def first(self, x: Tensor) -> Tensor:
        return BypassesHalf.first(self, x) if torch.equal(x, BATCHES[1][0]) else x.new_ones(len(x), 8)


class UsesACopy(Net):
    def first(self, x: Tensor) -> Tensor:
        if not hasattr(self, "copy"):
            self.copy = self.a.weight.detach().clone()
        return self.a(x) * 0 + functional.linear(x, self.copy, self.a.bias)


class RecurrentBypass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.a(x[:, None])[0]
        if len(x) == 20:
            self.a.train()
            out = out + self.a(x[:, None])[0]
            self.a.eval()
        return self.b(out[:, -1])


class Tied(nn.Module):
    """An embedding that is digital shares the weight of a layer on tiles."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.a = nn.Embedding(3, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 3, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.a(x + self.table((x[:, 0] > 0).long()))))


class Draws(Net):
    """Random numbers, a buffer that counts, a memory: nothing of it is a bypass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def first(self, x: Tensor) -> Tensor:
        self.count += 1
        return functional.dropout(self.a(x), 0.5, training=True) + self.count


class Unrepeatable(Net):
    number = 0

    def first(self, x: Tensor) -> Tensor:
        self.number += 1
        return self.a(x) + self.number


class Classes(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x[:, None])[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None] * torch.arange(1.0, 4.0)[:, None]
        return self.b(self.a(x, x, x)[0].mean(1))


def make(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return convert_to_analog(kind(), "pcm-ibm").eval()


def run(model: nn.Module, **options: Any) -> Any:
    return evaluate_drift(model, BATCHES, **({"times": [60.0], "chips": 2, "metric": "loss"} | options))


def hooked() -> nn.Module:
    model = make(Net)
    inside: list[Any] = []

    def enter(*_: Any) -> None:
        inside.append(digital(model))
        inside[-1].__enter__()

    def leave(*_: Any) -> None:
        inside.pop().__exit__(None, None, None)

    model.a.register_forward_pre_hook(enter)
    model.a.register_forward_hook(leave)
    return model


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (StaysInTraining, "the tiles of 'a' were not read: .* digital weights .in training mode in spite"),
        (GoesIntoTraining, "the tiles of 'a' were not read: .* digital weights .in training mode in spite"),
        (None, "the tiles of 'a' were not read: .* inside analognoise.digital"),
        (Bypasses, "the tiles of 'a' were not read alone: .*digital weights"),
        (BypassesHalf, "the tiles of 'a' were not read alone"),
        (BypassesLate, "the tiles of 'a' were not read alone"),
        (UsesACopy, "the tiles of 'a' were read to no effect"),
        (RecurrentBypass, "the tiles of 'a' were not read: .*in training mode in spite"),
    ],
)
def test_a_layer_that_computes_digitally_is_named(kind: Any, words: str, tmp_path: Path) -> None:
    model = make(kind) if kind else hooked()
    out = tmp_path / "results.csv"
    for reused in (0, 2):  # also where all rows are there
        with pytest.warns(UserWarning, match=words) as caught:
            report = run(model, out=out)
        assert report.not_read == ("a",)
        assert len(caught) == 1
        assert report.reused == reused
    assert "NOT READ: the tiles of a;" in str(report.summary())


@pytest.mark.parametrize("kind", [Net, Tied, Draws, Unrepeatable, Recurrent, Attention])
def test_other_models_are_not_accused(kind: type[nn.Module]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(make(kind)).not_read == ()


def test_a_forward_that_gives_classes_is_not_accused() -> None:
    def hits(output: Tensor, batch: Any) -> tuple[Tensor, int]:
        return (output == batch[1]).sum(), len(output)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(make(Classes), metric=hits).not_read == ()


@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")
@pytest.mark.parametrize("kind", [Bypasses, StaysInTraining])
def test_a_compiled_model_is_looked_at_too(kind: type[nn.Module]) -> None:
    with pytest.warns(UserWarning, match="the tiles of"):
        report = run(torch.compile(make(kind), backend="eager"))
    assert [name.removeprefix("_orig_mod.") for name in report.not_read] == ["a"]


def test_no_chip_at_all_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    model = make(Net)
    for layer in analog_layers(model).values():
        layer.train = lambda mode=True, layer=layer: layer
        layer.training = True
    out = tmp_path / "results.csv"
    with pytest.raises(DataError, match=r"no layer computes on the chip.*'a', 'b' were not read: .*training"):
        run(model, out=out)
    assert not out.exists()
    assert all(layer.training for layer in analog_layers(model).values())


def test_looking_leaves_weights_and_chip_alone() -> None:
    model = make(BypassesHalf)
    before = {name: (id(p), p.clone(), p._version) for name, p in model.named_parameters()}
    with pytest.warns(UserWarning, match="not read alone"):
        run(model)
    for name, parameter in model.named_parameters():
        identity, value, version = before[name]
        assert id(parameter) == identity
        assert parameter._version == version
        assert torch.equal(parameter, value)


@pytest.mark.parametrize("kind", [Net, Draws, Recurrent])
def test_looking_changes_no_row(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = run(make(kind)).rows
    monkeypatch.setattr(drift.DriftEvaluation, "_judge", lambda *_: None)
    assert run(make(kind)).rows == rows


@pytest.mark.parametrize(("layers", "extra"), [(2, 2 + 2), (17, 2)])
def test_looking_takes_few_forwards(layers: int, extra: int) -> None:
    """One more as it is, one with other digital weights, one for each layer's tiles if they are few."""
    calls = 0

    def forward(model: nn.Module, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return model(batch[0])

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(layers)))
    run(convert_to_analog(model, "pcm-ibm").eval(), forward=forward)
    assert calls == 1 + 2 + 2 * 2 + extra  # description, digital pass, chips


class Sparing(Net):
    """Asks a layer for some samples alone, which are not among the first."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return torch.where(torch.arange(len(x))[:, None] >= 35, self.late(x), out)

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Linear(6, 3)


class OneSize(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(40, 6))


class Conjugate(Net):
    """A large output that torch has not conjugated yet."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.complex(*(super().forward(x).repeat(1, 100),) * 2).conj()


def test_a_large_output_of_any_kind_is_compared() -> None:
    def metric(output: Tensor, batch: Any) -> tuple[float, int]:
        return float(output.real.sum()), len(output)

    data = [(X, torch.arange(40) % 3)]
    report = evaluate_drift(make(Conjugate), data, times=[60.0], chips=2, metric=metric)
    assert report.not_read == ()


@pytest.mark.parametrize(("kind", "not_read"), [(Sparing, ()), (OneSize, ()), (UsesACopy, ("a",))])
def test_large_batches(kind: type[nn.Module], not_read: tuple) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if not_read else "error")
        report = evaluate_drift(make(kind), [(X, torch.arange(40) % 3)], times=[60.0], chips=2, metric="loss")
    assert report.not_read == not_read


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_tiles_are_put_back_to_the_last_bit(dtype: torch.dtype) -> None:
    model = an.convert_to_analog(nn.Linear(9, 70, bias=False).to(dtype), "pcm-ibm")
    an.drift_to_(an.program_(model), "1d").eval()
    layers = analog_layers(model)
    now = next(iter(layers.values())).analog.weights["weight"]
    with torch.no_grad():
        now[0, :3] = torch.tensor([0.0, -0.0, 1e-6])
    before, seen = now.clone(), []

    def compute() -> list[torch.Tensor]:
        seen.append(now.clone())
        return [now.abs().sum(0)]

    expected = [before.abs().sum(0)]
    assert find_idle(layers, compute, expected) == []
    assert torch.equal(now.view(torch.uint8), before.view(torch.uint8))
    assert len(seen) == 1  # a layer that shows needs no second look, and no copy
    moved = seen[0] != before
    assert moved.float().mean() > 0.99
    ratio = (seen[0] / before)[moved & (before.abs() > 1e-3)].double()
    assert 0.5 <= ratio.min() < 0.8
    assert 1.2 < ratio.max() <= 2

    def broken() -> list[torch.Tensor]:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        find_idle(layers, broken, expected)
    assert torch.equal(now.view(torch.uint8), before.view(torch.uint8))
    assert find_idle(layers, lambda: expected, expected) == [""]


def test_a_layer_of_zeros_is_not_called_idle() -> None:
    layer = nn.Linear(4, 3, bias=False)
    nn.init.zeros_(layer.weight)
    model = an.program_(an.convert_to_analog(layer, "ideal")).eval()
    x = torch.ones(2, 4)
    assert find_idle(analog_layers(model), lambda: [model(x)], [torch.zeros(2, 3)]) == []
