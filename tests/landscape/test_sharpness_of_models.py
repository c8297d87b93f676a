"""Sharpness of models of every kind: what is measured of them, and that they are left as found."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import analognoise as an
from analognoise.errors import MethodError
from analognoise.landscape import KINDS
from analognoise.metrics import NotFiniteError
from tests.landscape.small_losses import POINT, Batches, Quadratic, classes, mean_loss, net


class Rich(nn.Module):
    """BatchNorm, dropout, a frozen layer and a recurrent one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.3)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.recurrent = nn.LSTM(6, 4, batch_first=True)
        self.last = nn.Linear(4, 3)
        self.broken = False

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.frozen(self.drop(torch.relu(self.norm(self.first(x)))))
        if self.broken and torch.is_grad_enabled():
            raise RuntimeError("out of order")
        return self.last(self.recurrent(hidden[:, None])[0][:, 0])


def snapshot(model: nn.Module) -> list[Any]:
    return [
        {name: value.clone() for name, value in model.state_dict().items()},
        [(id(p), p.grad, p.grad if p.grad is None else p.grad.clone()) for p in model.parameters()],
        [module.training for module in model.modules()],
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
    ]


def check_same(before: list[Any], after: list[Any]) -> None:
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    for (one, grad, kept), (other, now, _) in zip(before[1], after[1], strict=True):
        assert one == other
        assert grad is now
        assert grad is None or torch.equal(kept, now)
    assert before[2] == after[2]
    assert torch.equal(before[3], after[3])
    assert before[4:] == after[4:]


@pytest.mark.parametrize("eval_mode", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_model_is_left_as_found_and_the_seed_settles_all(kind: str, eval_mode: bool) -> None:
    torch.manual_seed(3)
    model = Rich().train()
    model.norm.eval()
    data = TensorDataset(*(torch.cat(parts) for parts in zip(*classes(dtype=torch.float32), strict=True)))
    loader = DataLoader(data, batch_size=7, generator=torch.Generator().manual_seed(4))
    functional.cross_entropy(model(data.tensors[0]), data.tensors[1]).backward()
    before = snapshot(model)
    with torch.no_grad():
        found = an.sharpness(model, loader, kind, eval_mode=eval_mode, seed=5)
    check_same(before, snapshot(model))
    torch.rand(3)
    assert an.sharpness(model, loader, kind, eval_mode=eval_mode, seed=5) == found
    assert found.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    if kind in ("random", "trace"):
        assert an.sharpness(model, loader, kind, eval_mode=eval_mode, seed=6).value != found.value
    model.broken = True
    before = snapshot(model)
    if kind == "random":  # takes no gradient: let the loss break down
        model.first.weight.data[0, 0] = math.nan
        before = snapshot(model)
        with pytest.raises(NotFiniteError):
            an.sharpness(model, loader, kind)
        before[0]["first.weight"][0, 0] = model.first.weight.data[0, 0] = 0.0
    else:
        with pytest.raises(RuntimeError, match="out of order"):
            an.sharpness(model, loader, kind)
    check_same(before, snapshot(model))


def test_weights_come_back_when_the_climb_ends_in_nan() -> None:
    model = Quadratic([1.0], [1.0], [0.0])
    calls = []

    def failing(output: Tensor, _: Tensor) -> Tensor:
        calls.append(0)
        return output.mean() * (math.nan if len(calls) > 2 else 1.0)

    with pytest.raises(NotFiniteError, match=r"batch 0: the loss is nan at the weights moved as asked"):
        an.sharpness(model, POINT, "sam", loss=failing)
    assert model.weight.tolist() == [1.0]
    assert model.weight.grad is None
    assert model.state_dict()  # no climb is left open


def test_batchnorm_counts_with_its_running_statistics_unless_asked() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double().train()
    batches = classes()
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    measured = an.sharpness(model, batches, "sam").loss
    own = an.sharpness(model, batches, "sam", eval_mode=False).loss
    reference = sum(functional.cross_entropy(model(x), y).item() * len(y) for x, y in batches) / 24
    assert own == pytest.approx(reference, abs=1e-12)
    fresh = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double()
    fresh[0].load_state_dict(model[0].state_dict())
    fresh[2].load_state_dict(model[2].state_dict())
    assert measured == pytest.approx(functional.cross_entropy(fresh.eval()(x), y).item(), abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_model_is_as_sharp_as_its_digital_weights_and_its_chip_stays(kind: str) -> None:
    model, batches = net(torch.float32), classes(dtype=torch.float32)
    digital = an.sharpness(model, batches, kind)
    analog = an.convert_to_analog(model, an.load_profile("pcm-ibm")).eval()
    assert an.sharpness(analog, batches, kind) == digital  # no chip is needed
    an.drift_to_(an.program_(analog, seed=1), "1d")
    with torch.no_grad():
        before = analog(batches[0][0])
    assert an.sharpness(analog, batches, kind) == digital
    with torch.no_grad():
        assert torch.equal(analog(batches[0][0]), before)  # warnings are errors: the chip is not stale


def test_attention_has_second_derivatives_here() -> None:
    torch.manual_seed(0)

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.last = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.inner(x).mean(1))

    x, y = torch.randn(6, 4, 8), torch.arange(6) % 3
    assert an.sharpness(Attending(), [(x, y)], "eigenvalue", tolerance=0.1).value > 0


@pytest.mark.parametrize(("layer", "cudnn"), [(nn.LSTM(5, 3), False), (nn.Linear(5, 3), True)])
def test_cudnn_stays_on_where_it_has_the_derivatives(layer: nn.Module, cudnn: bool) -> None:
    seen = []

    def forward(model: nn.Module, batch: Any) -> Tensor:
        seen.append((torch.backends.cudnn.enabled, torch.backends.cudnn.deterministic))
        output = model(batch[0])
        return output[0] if isinstance(output, tuple) else output

    an.sharpness(layer, classes(dtype=torch.float32), "eigenvalue", iterations=1, forward=forward)
    assert set(seen) == {(cudnn, True)}
    assert torch.backends.cudnn.enabled


def test_a_compiled_model_gives_the_same() -> None:
    model, batches = net(), classes()
    for kind in ("random", "eigenvalue"):
        assert an.sharpness(torch.compile(model), batches, kind) == an.sharpness(model, batches, kind)


def test_forward_loss_and_dicts_of_ones_own() -> None:
    model, batches = net(), classes()
    plain = an.sharpness(model, batches, "asam")
    dicts = [{"features": x, "labels": y} for x, y in batches]
    own = an.sharpness(
        model,
        dicts,
        "asam",
        forward=lambda model, batch: model(batch["features"]),
        loss=lambda output, target: 2 * functional.cross_entropy(output, target),
    )
    assert own.value == pytest.approx(2 * plain.value, rel=1e-12)


def test_tied_weights_move_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False)).double()
    model[2].weight = model[0].weight
    x, y = torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 4
    found = an.sharpness(model, [(x, y)], "eigenvalue", tolerance=1e-6)
    assert found.parameters == 16
    hessian = torch.autograd.functional.hessian(
        lambda w: functional.cross_entropy(torch.tanh(x @ w.T) @ w.T, y), model[0].weight.detach()
    )
    exact = torch.linalg.eigvalsh(hessian.reshape(16, 16))
    assert found.value == pytest.approx(exact[-1].item(), rel=1e-9)


@pytest.mark.parametrize("clipping", ["learned", "max"])
def test_of_a_quantized_model_what_it_computes_with_is_moved(clipping: str) -> None:
    model = an.quantize(net(), bits=3, clipping=clipping)
    batches = classes()
    at = an.dequantize(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for kind in KINDS:
        found, expected = (an.sharpness(one, batches, kind) for one in (model, at))
        assert found.value == expected.value
        assert found.loss == pytest.approx(float(mean_loss(model, batches).detach()), rel=1e-12)
        assert found.parameters == expected.parameters  # learned ranges are no weights
    # Moves that rounding would swallow count.
    gradient = sum(float(p.grad.square().sum()) for p in backward(at, batches).parameters()) ** 0.5
    tiny = an.sharpness(model, batches, "sam", rho=1e-5).value
    assert tiny == pytest.approx(1e-5 * gradient, rel=1e-3)
    at.zero_grad()  # it shares the biases
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    an.sharpness(model, batches, "sam")
    assert all(p.grad is None for p in model.parameters())


def backward(model: nn.Module, batches: Batches) -> nn.Module:
    model.zero_grad()
    mean_loss(model, batches).backward()
    return model


def test_inputs_stay_quantized_and_must_have_been_seen() -> None:
    model, batches = an.quantize(net(), bits=8, activation_bits=2), classes()
    with pytest.raises(MethodError, match=r"layer '0' takes the range of its inputs .* run a batch"):
        an.sharpness(model, batches)
    model(batches[0][0])
    expected = float(mean_loss(model, batches).detach())
    assert an.sharpness(model, batches, "random").loss == pytest.approx(expected, rel=1e-12)
    assert an.sharpness(an.dequantize(model), batches, "random").loss != pytest.approx(expected, rel=1e-3)
