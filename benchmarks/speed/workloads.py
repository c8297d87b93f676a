"""The four workloads that speed is measured on; both simulators know every layer that holds a matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.speed.timing import CPU

Batch = tuple[Tensor, Tensor]


class _Block(nn.Module):
    """A residual block of two 3 × 3 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in range(2))
        self.short = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](self.first(x)).relu()
        return (self.norms[1](self.second(y)) + self.short(x)).relu()


def resnet20() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    width = 16
    for outputs in (16, 32, 64):
        for _ in range(3):
            layers.append(_Block(width, outputs, 1 if width == outputs else 2))
            width = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def mlp() -> nn.Module:
    hidden = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(256, 10))


class _EncoderLayer(nn.Module):
    """Attention and feed-forward, normalized first; projections are linear layers of their own, so that
    either simulator puts all of them on tiles.
    """

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.projections = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        given = self.norms[0](x)
        query, key, value = (
            part(given).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.projections[:3]
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.projections[3](mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norms[1](x))))


class _Encoder(nn.Module):
    """Six layers and a classifier on the mean over the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(_EncoderLayer(256, 1024, 8) for _ in range(6)))
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean(dim=1))


@dataclass(frozen=True)
class Workload:
    """A network and the data that it is given.

    Attributes:
        label: for the table.
        build: makes the network.
        shape: of a sample.
        size: samples in a batch.
        samples: of a pass, and of the data set of a drift evaluation.
        classes: of the labels.
        device: where model and batches lie.
    """

    label: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    size: int
    samples: int
    classes: int = 10
    device: torch.device = CPU

    def on(self, device: torch.device) -> Workload:
        """The same elsewhere."""
        return replace(self, device=device)

    def model(self) -> nn.Module:
        """The network from a fixed seed."""
        torch.manual_seed(0)
        return self.build().to(self.device)

    def batches(self, samples: int | None = None) -> list[Batch]:
        """Standard normal inputs and random labels."""
        draw = torch.Generator().manual_seed(1)
        return [
            (
                torch.randn(self.size, *self.shape, generator=draw).to(self.device),
                torch.randint(self.classes, (self.size,), generator=draw).to(self.device),
            )
            for _ in range(-(-(samples or self.samples) // self.size))
        ]


WORKLOADS = {
    "W1": Workload("W1 MLP 784-512-256-10", mlp, (784,), 512, 10_240),
    "W2": Workload("W2 ResNet-20, 3 × 32 × 32", resnet20, (3, 32, 32), 128, 1_024),
    "W3": Workload("W3 Transformer encoder", _Encoder, (64, 256), 32, 1_024),
    "W4": Workload(
        "W4 4096 × 4096 on 64 tiles", lambda: nn.Linear(4096, 4096, bias=False), (4096,), 512, 1_024, 4096
    ),
}
