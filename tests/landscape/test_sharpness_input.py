"""What the measurement of sharpness refuses, and where it says what is wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import analognoise as an
from analognoise.errors import DataError, MethodError
from analognoise.metrics import NotFiniteError
from tests.landscape.small_losses import POINT, Quadratic, classes, net, output_mean


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("sma", {}, r"unknown kind 'sma' \(did you mean 'sam'\?\): known are sam, asam"),
        ("Trace", {}, r"did you mean 'trace'"),
        ("sam", {"rho": 0}, r"rho must be a number above 0, found 0"),
        ("sam", {"rho": -0.1}, r"rho must be a number above 0, found -0\.1"),
        ("asam", {"rho": math.nan}, r"rho must be a number above 0, found nan"),
        ("samson", {"p": 3}, r"p must be 2 or math\.inf, found 3"),
        ("asam", {"eta": -1}, r"eta must be a number, at least 0, found -1"),
        ("sam", {"steps": 0}, r"steps must be a whole number, at least 1, found 0"),
        ("random", {"noise": 0.0}, r"noise must be a number above 0, found 0\.0"),
        ("random", {"draws": 1}, r"draws must be a whole number, at least 2, found 1"),
        ("trace", {"rho": 0.1}, r"kind 'trace' takes no rho; it takes draws"),
        ("eigenvalue", {"tolerance": 0}, r"tolerance must be a number above 0, found 0"),
        ("sam", {"perturb": "weight"}, r"perturb must be .* found 'weight' \(did you mean 'weights'\?\)"),
        ("sam", {"seed": 0.5}, r"seed must be a whole number, found 0\.5"),
    ],
)
def test_wrong_arguments(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        an.sharpness(net(), classes(), kind, **options)


def test_nothing_to_move() -> None:
    with pytest.raises(MethodError, match="Tanh has no parameters to move"):
        an.sharpness(nn.Tanh(), classes())
    with pytest.raises(MethodError, match="has no parameter that requires a gradient"):
        an.sharpness(net().requires_grad_(False), classes())
    model = nn.Linear(5, 3).double()
    model.weight.requires_grad_(False)
    with pytest.raises(MethodError, match="no parameter whose name contains 'weight' that requires"):
        an.sharpness(model, classes(), perturb="weights")


def test_data_that_is_none() -> None:
    with pytest.raises(DataError, match="has no batch"):
        an.sharpness(net(), [])
    with pytest.raises(DataError, match="no batch of the data has a label that counts"):
        an.sharpness(net(), [(torch.zeros(2, 5).double(), torch.tensor([-100, -100]))])
    data = TensorDataset(*classes()[0])
    with pytest.raises(DataError, match="shuffles"):
        an.sharpness(net(), DataLoader(data, batch_size=4, shuffle=True))


def test_nan_names_the_batch() -> None:
    batches = classes()
    batches[1][0][0, 0] = math.nan
    with pytest.raises(NotFiniteError, match="batch 1: the loss is nan at the weights as they are"):
        an.sharpness(net(), batches)


def test_an_infinite_gradient_names_the_parameter() -> None:
    model = Quadratic([1.0], [0.0], [0.0])
    with pytest.raises(NotFiniteError, match=r"the gradient holds NaN .* in parameter 'weight'"):
        an.sharpness(model, POINT, "sam", loss=lambda output, _: output.mean().sqrt())


def test_an_operator_without_second_derivative_is_said() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 1.0

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient * 1.0

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Tensor) -> Any:
            return Once.apply(self.inner(x))

    with pytest.raises(MethodError, match="Model has an operator without second derivative"):
        an.sharpness(Model(), classes(), "trace")
    assert an.sharpness(Model(), classes(), "sam").value > 0


def test_an_exact_minimum_has_no_direction_of_ascent() -> None:
    model = Quadratic([1.0, 2.0], [0.0, 0.0], [0.0, 0.0])
    with pytest.warns(RuntimeWarning, match="the gradient is zero at these weights"):
        found = an.sharpness(model, POINT, "sam", loss=output_mean)
    assert found.value == 0.0
