"""What the tests of evaluations share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from analognoise.chip import digital
from tests.evaluation.small_net import make


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in the same order everywhere, and no waiting for a busy second core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
