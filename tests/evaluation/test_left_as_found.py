"""What an evaluation leaves as it found it, and what a forward with side effects changes: nothing."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from analognoise.chip import digital, drift_to_, program_
from analognoise.conversion import analog_layers
from analognoise.errors import DataError, NotProgrammedError
from tests.evaluation.small_net import Net, make, run


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


def test_a_batch_that_is_changed_on_chips_alone_is_named(batches: list) -> None:
    """The chips would be measured on data that others have changed."""
    reference = make()

    def forward(model: nn.Module, batch: Any) -> Tensor:
        with digital(reference):
            expected = reference(batch[0])
        found = model(batch[0])
        if not torch.equal(found, expected):
            batch[0].mul_(0.9)
        return found

    with pytest.raises(DataError, match="batch 0 of the data was changed by a pass"):
        run(make(), [(x.clone(), y) for x, y in batches], forward=forward)


def test_a_batch_that_is_written_into_without_a_change_is_any(batches: list) -> None:
    def forward(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0].mul_(1))

    assert np.array_equal(run(make(), batches, forward=forward).values, run(make(), batches).values)
