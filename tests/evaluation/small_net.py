"""A small network on tiles, and an evaluation of it, for the tests of evaluate_drift."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from analognoise.conversion import convert_to_analog
from analognoise.evaluation.montecarlo import evaluate_drift

TIMES = (0.0, 60.0, 3.0e7)


class Net(nn.Module):
    """A small network with a buffer that only training may change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(torch.relu(self.norm(self.conv(x)))).flatten(1))


def make(profile: str = "pcm-ibm", kind: type[nn.Module] = Net, **options: Any) -> nn.Module:
    """The same network on tiles each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return convert_to_analog(kind(), profile, **options).eval()


def run(model: nn.Module, data: Any, **options: Any) -> Any:
    """Evaluate it on few chips."""
    return evaluate_drift(model, data, **({"times": TIMES, "chips": 4, "seed": 7} | options))
