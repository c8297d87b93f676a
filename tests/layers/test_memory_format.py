"""Outputs of layers lie in memory as those of their digital layers do: forwards call ``view`` on them."""

import copy

import pytest
import torch
from torch import nn

import analognoise as an
from tests.layers.peripheries import PERIPHERIES, in_blocks, on_tiles

LAYERS = {
    "conv1d": (nn.Conv1d(4, 6, 3), (3, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, 3, padding=1), (3, 4, 9, 8)),
    "conv2d, groups": (nn.Conv2d(4, 6, 3, groups=2), (3, 4, 9, 8)),
    "conv2d, one image": (nn.Conv2d(4, 6, 3), (4, 9, 8)),
    "conv2d, 1 x 1": (nn.Conv2d(4, 6, 1), (3, 4, 9, 8)),
    "conv3d": (nn.Conv3d(2, 3, 2), (3, 2, 4, 5, 4)),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3), (3, 4, 9)),
    "transposed 2d": (nn.ConvTranspose2d(4, 6, 3, stride=2), (3, 4, 5, 6)),
    "transposed 3d": (nn.ConvTranspose3d(2, 3, 2), (3, 2, 4, 5, 4)),
    "linear": (nn.Linear(6, 5), (3, 4, 6)),
}
CHIPS = {"none": {}, **PERIPHERIES, "noise": {"out_noise": 0.1}}


def last(x):
    """The same numbers, channels last."""
    return x.to(memory_format=torch.channels_last_3d if x.dim() == 5 else torch.channels_last)


def assert_alike(analog, digital, x):
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            found, expected = analog(x), digital(x)
        assert (found.shape, found.stride()) == (expected.shape, expected.stride())


@pytest.mark.parametrize("periphery", CHIPS.values(), ids=CHIPS)
@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_outputs_lie_as_those_of_the_digital_layer(layer, shape, periphery, monkeypatch):
    torch.manual_seed(0)
    analog, x = on_tiles(copy.deepcopy(layer), periphery, rows=10), torch.randn(shape)
    assert_alike(analog, layer, x)
    assert_alike(analog, layer, torch.randn(*shape, 2)[..., 0])  # with gaps
    in_blocks(monkeypatch, 40)
    assert_alike(analog, layer, x)


@pytest.mark.parametrize("periphery", CHIPS.values(), ids=CHIPS)
@pytest.mark.parametrize("name", ["conv2d", "conv2d, groups", "conv3d", "transposed 2d", "transposed 3d"])
def test_channels_last_inputs_and_weights_make_outputs_that_lie_alike(name, periphery, monkeypatch):
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    analog, x = on_tiles(copy.deepcopy(layer), periphery, rows=10), torch.randn(shape)
    by_weights = copy.deepcopy(layer)
    by_weights.weight.data = last(by_weights.weight.data)
    other = on_tiles(copy.deepcopy(by_weights), periphery, rows=10)
    for numbers in (None, 40):
        if numbers is not None:
            in_blocks(monkeypatch, numbers)
        assert_alike(analog, layer, last(x))
        assert_alike(other, by_weights, x)
        if "out_noise" not in periphery:
            with torch.no_grad():
                torch.testing.assert_close(analog(last(x)), analog(x), rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(other(x), analog(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("periphery", CHIPS.values(), ids=CHIPS)
def test_a_forward_that_takes_a_view_of_a_convolution_is_evaluated(periphery):
    class LeNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 3, 3), nn.Linear(3 * 36, 4)

        def forward(self, x):
            return self.head(self.conv(x).relu().view(x.size(0), -1))

    torch.manual_seed(0)
    profile = an.load_profile("pcm-ibm").replace({"periphery": periphery})
    batch = torch.randn(20, 1, 8, 8), torch.arange(20) % 4
    report = an.evaluate_drift(
        an.convert_to_analog(LeNet(), profile), [batch], times=["1s"], chips=3, progress=False
    )
    assert len(report.rows) == 3


@pytest.mark.parametrize("periphery", CHIPS.values(), ids=CHIPS)
@pytest.mark.parametrize("rows", [512, 4])
def test_circular_padding_of_channels_last_inputs_is_contiguous(rows, periphery):
    torch.manual_seed(0)
    for layer, x in (
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), torch.randn(3, 4, 9, 8)),
        (nn.Conv3d(2, 3, 2, padding=1, padding_mode="circular"), torch.randn(3, 2, 4, 5, 4)),
    ):
        assert_alike(on_tiles(copy.deepcopy(layer), periphery, rows=rows), layer, last(x))
        layer.weight.data = last(layer.weight.data)
        assert_alike(on_tiles(copy.deepcopy(layer), periphery, rows=rows), layer, last(x))
        assert_alike(on_tiles(copy.deepcopy(layer), periphery, rows=rows), layer, x)
