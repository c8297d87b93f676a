"""A network, steps and a hand-made reference that the tests of SAM, ASAM and SAMSON share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from analognoise.training import ASAM, SAM, SAMSON

METHODS = {
    "sam": (SAM, {"rho": 0.3}),
    "asam": (ASAM, {"rho": 0.7, "eta": 0.02}),
    "samson-inf": (SAMSON, {"rho": 0.4, "p": math.inf, "eta": 0.03}),
    "samson-2": (SAMSON, {"rho": 0.5, "p": 2, "eta": 0.015}),
}
BN_EPS = 1e-5


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small run slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Net(nn.Module):
    """Linear, batch norm, tanh, linear; names chosen so that "weight" and "bias" say what they are."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(5, 7)
        self.bn = nn.BatchNorm1d(7, eps=BN_EPS)
        self.drop = nn.Dropout(dropout)
        self.fc2 = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.drop(torch.tanh(self.bn(self.fc1(x)))))


def make(
    seed: int = 0, dropout: float = 0.0, dtype: torch.dtype = torch.float64
) -> tuple[Net, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    model = Net(dropout).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.6)
    inputs = torch.randn(16, 5, generator=generator, dtype=torch.float64).to(dtype)
    return model, inputs, torch.randint(0, 4, (16,), generator=generator)


def closure_of(optimizer: torch.optim.Optimizer, model: nn.Module, x: Tensor, y: Tensor) -> Any:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def assert_identical(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


# The reference: forward and backward by hand, in float64.

Arrays = dict[str, np.ndarray]


def reference_gradient(w: Arrays, x: np.ndarray, y: np.ndarray) -> tuple[float, Arrays]:
    n = len(x)
    z = x @ w["fc1.weight"].T + w["fc1.bias"]
    centred = z - z.mean(0)
    inverse = 1.0 / np.sqrt((centred**2).mean(0) + BN_EPS)
    normal = centred * inverse
    hidden = np.tanh(w["bn.weight"] * normal + w["bn.bias"])
    logits = hidden @ w["fc2.weight"].T + w["fc2.bias"]
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    chance = shifted / shifted.sum(1, keepdims=True)
    loss = -np.log(chance[np.arange(n), y]).mean()
    d_logits = chance.copy()
    d_logits[np.arange(n), y] -= 1.0
    d_logits /= n
    d_hidden = (d_logits @ w["fc2.weight"]) * (1.0 - hidden**2)
    d_normal = d_hidden * w["bn.weight"]
    d_z = inverse * (d_normal - d_normal.mean(0) - normal * (d_normal * normal).mean(0))
    return loss, {
        "fc1.weight": d_z.T @ x,
        "fc1.bias": d_z.sum(0),
        "bn.weight": (d_hidden * normal).sum(0),
        "bn.bias": d_hidden.sum(0),
        "fc2.weight": d_logits.T @ hidden,
        "fc2.bias": d_logits.sum(0),
    }


def reference_climb(method: str, w: Arrays, g: Arrays, rho: Any, eta: Any, p: float, perturb: str) -> Arrays:
    """``rho`` and ``eta`` are numbers, or functions of the name."""
    rho_of = rho if callable(rho) else lambda name: rho
    eta_of = eta if callable(eta) else lambda name: eta
    scale: Arrays = {}
    for name, value in w.items():
        is_weight = "weight" in name
        if not is_weight and perturb == "weights":
            scale[name] = np.zeros_like(value)
        elif method == "sam" or not is_weight:
            scale[name] = np.ones_like(value)
        elif method == "asam":
            scale[name] = np.abs(value) + eta_of(name)
        else:
            size = np.abs(value).max() if p == math.inf else np.sqrt((value**2).sum())
            scale[name] = (np.abs(value) + eta_of(name)) / size
    norm = np.sqrt(sum(((scale[name] * g[name]) ** 2).sum() for name in w))
    return {name: w[name] + rho_of(name) * scale[name] ** 2 * g[name] / norm for name in w}


def arrays(model: nn.Module) -> Arrays:
    return {name: value.detach().numpy().copy() for name, value in model.named_parameters()}


def assert_close(model: nn.Module, expected: Arrays, bound: float = 1e-10) -> None:
    for name, value in model.named_parameters():
        np.testing.assert_allclose(
            value.detach().numpy(), expected[name], rtol=bound, atol=bound, err_msg=name
        )
