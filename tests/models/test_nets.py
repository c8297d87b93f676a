"""Convolutional nets in the manner of ResNet, MobileNet, DenseNet, U-Net and WaveNet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import analognoise as an
from analognoise.conversion import analog_layers


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.downsample is None else self.downsample(x)
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + kept).relu_()


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.layers = nn.Sequential(BasicBlock(8, 8, 1), BasicBlock(8, 16, 2), BasicBlock(16, 24, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.layers(self.stem(x))).flatten(1))


class InvertedResidual(nn.Module):
    """Widen by a 1 × 1 convolution, filter each channel alone, narrow again."""

    def __init__(self, inputs: int, outputs: int, stride: int, widen: int) -> None:
        super().__init__()
        wide = inputs * widen
        self.body = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.expand = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class MobileNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, 2, 1),
            InvertedResidual(8, 8, 1, 3),
            SqueezeExcite(8),
            InvertedResidual(8, 12, 2, 4),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(12, 5),
        )


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(self.norm1(torch.cat(features, 1)).relu())
        return self.conv2(self.norm2(x).relu())


class DenseNet(nn.Module):
    def __init__(self, growth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.block = nn.ModuleDict({f"layer{i}": DenseLayer(6 + growth * i, growth) for i in range(3)})
        self.transition = nn.Conv2d(6 + 3 * growth, 9, 1)
        self.classifier = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.block.values():
            features.append(layer(features))
        x = functional.avg_pool2d(self.transition(torch.cat(features, 1)), 2)
        return self.classifier(x.relu().mean((2, 3)))


def twice(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.GroupNorm(2, outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.ReLU(),
    )


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([twice(3, 4), twice(4, 8), twice(8, 16)])
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(16, 8, 2, stride=2), nn.ConvTranspose2d(8, 4, 2, stride=2)]
        )
        self.join = nn.ModuleList([twice(16, 8), twice(8, 4)])
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for number, block in enumerate(self.down):
            x = block(x if number == 0 else functional.max_pool2d(x, 2))
            skipped.append(x)
        for up, join, skip in zip(self.up, self.join, reversed(skipped[:-1]), strict=True):
            x = join(torch.cat((up(x), skip), 1))
        return self.head(x)


class GatedLayer(nn.Module):
    """A dilated convolution that sees only the past, gated, with a residual and a skip output."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.past = 2 * dilation
        self.filter = nn.Conv1d(channels, channels, 3, dilation=dilation)
        self.gate = nn.Conv1d(channels, channels, 3, dilation=dilation)
        self.residual, self.skip = nn.Conv1d(channels, channels, 1), nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        seen = functional.pad(x, (self.past, 0))
        y = self.filter(seen).tanh() * self.gate(seen).sigmoid()
        return x + self.residual(y), self.skip(y)


class WaveNet(nn.Module):
    def __init__(self, levels: int = 16, channels: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, channels, 1)
        self.layers = nn.ModuleList([GatedLayer(channels, 2**i) for i in range(4)])
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(channels, 12, 1), nn.ReLU(), nn.Conv1d(12, levels, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.stem(x), 0.0
        for layer in self.layers:
            x, skip = layer(x)
            total = total + skip
        return self.head(x + total)


IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SOUND = torch.randn(2, 1, 40, generator=torch.Generator().manual_seed(0))
# The batch, the number of layers on tiles, and of weights in them, counted by hand.
NETS: dict[str, tuple[type[nn.Module], Tensor, int, int]] = {
    "resnet": (
        ResNet,
        IMAGES,
        1 + 2 + 3 + 3 + 1,
        9 * (24 + 64 + 64 + 128 + 256 + 384 + 576) + 128 + 384 + 120,
    ),
    "mobilenet": (
        MobileNet,
        IMAGES,
        1 + 3 + 2 + 3 + 1,
        9 * 24 + (8 * 24 + 9 * 24 + 24 * 8) + 2 * 16 + (8 * 32 + 9 * 32 + 32 * 12) + 60,
    ),
    "densenet": (DenseNet, IMAGES, 1 + 6 + 1 + 1, 9 * 18 + 16 * (6 + 10 + 14) + 3 * 9 * 64 + 18 * 9 + 45),
    "unet": (
        UNet,
        IMAGES,
        6 + 2 + 4 + 1,
        9 * (12 + 16 + 32 + 64 + 128 + 256) + 4 * (128 + 32) + 9 * (128 + 64 + 32 + 16) + 12,
    ),
    "wavenet": (WaveNet, SOUND, 1 + 4 * 4 + 2, 6 + 4 * (2 * 108 + 2 * 36) + 72 + 192),
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    kind, batch, _, _ = NETS[name]
    model = kind()
    with torch.no_grad():
        for _ in range(3):  # statistics of normalization that are not the initial ones
            model(batch)
    return model.eval(), batch


def on_chip(model: nn.Module, profile: Any) -> nn.Module:
    return an.drift_to_(an.program_(an.convert_to_analog(model, profile), seed=1), "1d").eval()


@pytest.mark.parametrize("tile", [(512, 512), (19, 7)])
@pytest.mark.parametrize("name", NETS)
def test_equals_the_digital_net_on_an_ideal_device(name: str, tile: tuple[int, int]) -> None:
    model, batch = build(name)
    profile = an.load_profile("ideal").replace({"tile.rows": tile[0], "tile.columns": tile[1]})
    with torch.inference_mode():
        expected, found = model(batch), on_chip(model, profile)(batch)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", NETS)
def test_every_tile_is_read_and_every_device_counted(name: str) -> None:
    model, batch = build(name)
    _, _, count, weights = NETS[name]
    analog = on_chip(model, "pcm-ibm")
    text = an.describe(analog, batch)
    rows = {row.name: row for row in text.layers}
    assert len(rows) == count
    assert text.devices == 2 * weights
    assert text.mac_share == 1.0
    assert an.find_problems(model) == []
    with torch.inference_mode():
        before = analog(batch)
        for layer_name, layer in analog_layers(analog).items():
            state, row = layer.analog, rows[layer_name]
            assert layer.weight.numel() == row.weights
            assert sum(tile.programmed.numel() for tile in state.tiles) == row.devices == 2 * row.weights
            kept = state.weights["weight"].clone()
            state.weights["weight"].zero_()
            assert not torch.equal(analog(batch), before), layer_name
            state.weights["weight"].copy_(kept)
        assert torch.equal(analog(batch), before)


def test_multiply_accumulates_of_transposed_and_depthwise_convolutions() -> None:
    model, batch = build("unet")
    text = an.describe(an.convert_to_analog(model, "ideal"), batch)
    rows = {row.name: row.macs for row in text.layers}
    # Each of 3 · 4 · 4 positions times a 16 × (8 · 2 · 2) matrix; the padded 3 × 3 on 16 × 16 positions.
    assert rows["up.0"] == 3 * 16 * 16 * 8 * 4
    assert rows["up.1"] == 3 * 64 * 8 * 4 * 4
    assert rows["down.0.0"] == 3 * 256 * 27 * 4
    model, batch = build("mobilenet")
    rows = {row.name: row.macs for row in an.describe(an.convert_to_analog(model, "ideal"), batch).layers}
    assert rows["1.body.3"] == 3 * 64 * 24 * 9
    assert rows["3.body.3"] == 3 * 16 * 32 * 9


def test_depthwise_kernels_lie_along_the_diagonal() -> None:
    model, batch = build("mobilenet")
    rows = {row.name: row for row in an.describe(an.convert_to_analog(model, "pcm-ibm"), batch).layers}
    depthwise = rows["3.body.3"]
    assert depthwise.tiles == 1  # 32 · 9 rows and 32 columns fit on one
    assert depthwise.devices == 2 * 32 * 9
    assert depthwise.utilisation == 32 * 9 / 512**2


@pytest.mark.parametrize("name", NETS)
def test_gradients_in_training_are_the_digital_ones(name: str) -> None:
    model, batch = build(name)
    model(batch).square().sum().backward()
    expected = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    model.zero_grad()
    analog = an.convert_to_analog(model, "pcm-ibm").train()
    for module in analog.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.Dropout)):
            module.eval()
    analog(batch).square().sum().backward()
    for key, parameter in analog.named_parameters():
        assert torch.equal(parameter.grad, expected[key]), key
