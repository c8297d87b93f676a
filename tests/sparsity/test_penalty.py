"""Regularisers: their values and gradients by hand, and that they make activations sparse."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

import analognoise as an
from analognoise.errors import SparsityError
from analognoise.tasks import digits

A = torch.tensor([[3.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("kind", "value", "gradient"),
    [
        # mean |a| = 4 / 8, gradient sign(a) / 8
        ("l1", 0.5, [[0.125, -0.125, 0, 0], [0, 0, 0, 0]]),
        # (4² / (4 · 10) + 0) / 2 = 0.2; gradient of S²/(8 Q): (2 S sign(a) Q − 2 a S²) / (8 Q²)
        ("hoyer", 0.2, [[(80 - 96) / 800, (-80 + 32) / 800, 0, 0], [0, 0, 0, 0]]),
    ],
)
def test_by_hand(kind: str, value: float, gradient: list) -> None:
    model = nn.Sequential(nn.Identity(), nn.LeakyReLU(1.0))
    a = A.clone().requires_grad_()
    with an.activation_penalty(model, 2.0, kind) as penalty:
        model(a)
        found = penalty()
        assert float(found.detach()) == pytest.approx(2 * value)
        found.backward()
        torch.testing.assert_close(a.grad, 2 * torch.tensor(gradient))
        assert penalty() == 0.0  # one forward's alone
        with torch.no_grad():
            model(a)
        assert penalty() == 0.0
    model(a)
    assert penalty() == 0.0  # nothing is left on the model
    assert pickle.loads(pickle.dumps(penalty)).strength == 2.0


@pytest.mark.parametrize("kind", ["l1", "hoyer"])
def test_calls_and_layers_add_up_and_gradients_are_right(kind: str) -> None:
    torch.manual_seed(1)
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 4), relu, nn.Linear(4, 5), relu).double()
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)

    def penalised(x: torch.Tensor) -> torch.Tensor:
        with an.activation_penalty(model, 1.0, kind) as penalty:
            model(x)
            return penalty()

    first = model[1](model[0](x))
    second = model[3](model[2](first))

    def alone(a: torch.Tensor) -> torch.Tensor:
        if kind == "l1":
            return a.abs().mean()
        q = a.square().sum(1)
        return (a.sum(1)[q > 0].square() / q[q > 0]).sum() / a.numel()

    torch.testing.assert_close(penalised(x), alone(first) + alone(second))
    assert torch.autograd.gradcheck(penalised, x)


@pytest.mark.parametrize(("kind", "strength"), [("l1", 0.3), ("hoyer", 1.0)])
def test_training_with_it_is_sparser(kind: str, strength: float) -> None:
    train = list(digits.train_batches(0))
    found = []
    for weight in (0.0, strength):
        model = digits.build(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        with an.activation_penalty(model, weight, kind) as penalty:
            for _ in range(6):
                for x, y in train:
                    optimizer.zero_grad()
                    (functional.cross_entropy(model(x), y) + penalty()).backward()
                    optimizer.step()
        found.append(an.activation_sparsity(model, digits.task().validation).overall)
    assert found[1] > found[0] + 0.1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"kind": "l2"}, "unknown kind of penalty 'l2'"),
        ({"strength": -1}, "strength is -1"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"layers": "nothing"}, "'nothing' is no kind of layer"),
    ],
)
def test_bad_input_is_named(arguments: dict, said: str) -> None:
    given = {"strength": 1.0} | arguments
    with pytest.raises(SparsityError, match=said), an.activation_penalty(digits.build(0), **given):
        pass
