"""What the tests of evaluations share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from analognoise.chip import digital
from tests.evaluation.small_net import make


@pytest.fixture(autouse=True)
def _alone(one_thread: None) -> None:
    """Every test."""


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
