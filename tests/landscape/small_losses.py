"""A small network with its data, and losses whose sharpness is known, for the tests of sharpness."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

Batches = list[tuple[Tensor, Tensor]]


def classes(count: int = 24, dtype: torch.dtype = torch.float64) -> Batches:
    """Two batches of unequal size, five inputs, three classes."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 5, generator=generator, dtype=dtype)
    y = torch.randint(0, 3, (count,), generator=generator)
    return [(x[:17], y[:17]), (x[17:], y[17:])]


def net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """The same network each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def mean_loss(model: nn.Module, batches: Batches) -> Tensor:
    """The cross entropy over all batches."""
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return functional.cross_entropy(model(x), y)


class Quadratic(nn.Module):
    """L = ½ wᵀ diag(curvatures) w + slope · w for whatever input."""

    def __init__(self, curvatures: list[float], start: list[float], slope: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(start, dtype=torch.float64))
        self.register_buffer("curvatures", torch.tensor(curvatures, dtype=torch.float64))
        self.register_buffer("slope", torch.tensor(slope, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        value = 0.5 * (self.curvatures * self.weight**2).sum() + (self.slope * self.weight).sum()
        return value.expand(len(x))


def output_mean(output: Tensor, _: Tensor) -> Tensor:
    return output.mean()


POINT: Batches = [(torch.zeros(1, 1), torch.zeros(1))]
