"""Convolutions behind a DAC whose range is that of each vector: every patch of the input by itself."""

import copy
from itertools import product as combinations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import analognoise as an
from tests.layers.peripheries import in_blocks, on_tiles

LAYERS = {
    "1d": (nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2), (5, 4, 13)),
    "2d": (nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(1, 0)), (5, 4, 7, 8)),
    "2d, 1 x 1": (nn.Conv2d(4, 6, 1, stride=2), (5, 4, 7, 8)),
    "2d, circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (5, 4, 7, 8)),
    "2d, same": (nn.Conv2d(4, 6, (2, 3), padding="same", dilation=(1, 2)), (5, 4, 7, 8)),
    "2d, groups": (nn.Conv2d(4, 6, 3, groups=2, dilation=2, padding=2), (5, 4, 7, 8)),
    "2d, depthwise": (nn.Conv2d(4, 4, 3, groups=4, padding=1), (5, 4, 7, 8)),
    "2d, depthwise, two columns": (nn.Conv2d(4, 8, 3, groups=4, padding=1), (5, 4, 7, 8)),
    "3d": (nn.Conv3d(2, 3, (2, 3, 2), padding=(0, 1, 0)), (5, 2, 4, 5, 4)),
}
LEVELS = 7  # of a DAC of 4 bits


def by_hand(layer, x, parts):
    """Patch by patch, part of the channels by part."""
    weights = layer.weight.detach().double()
    amounts = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = functional.pad(x.double(), amounts, mode=mode)
    spans = [step * (size - 1) + 1 for size, step in zip(layer.kernel_size, layer.dilation, strict=True)]
    places = [
        range((size - span) // stride + 1)
        for size, span, stride in zip(x.shape[2:], spans, layer.stride, strict=True)
    ]
    each, columns = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    found = torch.zeros(len(x), layer.out_channels, *map(len, places), dtype=torch.double)
    for place in combinations(*places):
        starts = [own * stride for own, stride in zip(place, layer.stride, strict=True)]
        cut = [slice(s, s + span, d) for s, span, d in zip(starts, spans, layer.dilation, strict=True)]
        for group in range(layer.groups):
            own = slice(group * columns, (group + 1) * columns)
            for start, end in parts:
                patch = x[(slice(None), slice(group * each + start, group * each + end), *cut)].flatten(1)
                peak = patch.abs().amax(dim=1, keepdim=True)
                peak[peak == 0] = 1.0
                rounded = (patch * LEVELS / peak).round() * peak / LEVELS
                found[(slice(None), own, *place)] += rounded @ weights[own, start:end].flatten(1).T
    bias = layer.bias.detach().double()
    return found + bias.view(-1, *(1,) * len(places))


@pytest.mark.parametrize("blocks", [None, 60])
@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_every_patch_has_the_range_of_its_largest_value(layer, shape, blocks, monkeypatch):
    torch.manual_seed(0)
    x = torch.randn(shape) * torch.logspace(-3, 3, shape[0]).view(-1, *(1,) * (len(shape) - 1))
    x[0, :, 2:] = 0  # patches of nothing
    if blocks is not None:
        in_blocks(monkeypatch, blocks)
    for rows in (512, 12):  # all channels on a tile, or one or two
        channels, kernel = shape[1] // layer.groups, layer.weight[0, 0].numel()
        most = max(1, rows // kernel)
        parts = [(start, min(start + most, channels)) for start in range(0, channels, most)]
        analog = on_tiles(copy.deepcopy(layer), {"dac": {"bits": 4}}, rows=rows)
        found, expected = analog(x).double(), by_hand(layer, x, parts)
        scale = expected.abs().amax(dim=tuple(range(1, expected.dim())), keepdim=True)
        assert ((found - expected).abs() / scale).max() < 2e-6
        with torch.no_grad():
            assert ((analog(x).double() - expected).abs() / scale).max() < 2e-6


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_gradients_pass_straight_through_the_rounding(layer, shape):
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=True)
    on_tiles(copy.deepcopy(layer), {"dac": {"bits": 4}})(x).sum().backward()
    other = x.detach().clone().requires_grad_()
    layer(other).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_gradients_of_gradients_and_transforms_agree(layer, shape):
    torch.manual_seed(0)
    analog = on_tiles(copy.deepcopy(layer), {"dac": {"bits": 20}})
    x = torch.randn(shape, requires_grad=True)

    def loss(model, x):
        return model(x).pow(3).sum()

    found = []
    for model in (analog, layer):
        (first,) = torch.autograd.grad(loss(model, x), x, create_graph=True)
        found.append((first.detach(), *torch.autograd.grad(first.square().sum(), x)))
    for own, expected in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    by_transform = torch.func.grad(lambda x: loss(analog, x))(x.detach())
    torch.testing.assert_close(by_transform, found[0][0], rtol=1e-5, atol=1e-4)


def test_torn_kernels_have_a_range_for_each_tile():
    torch.manual_seed(0)
    layer, x = nn.Conv1d(1, 2, 8, bias=False), torch.randn(3, 1, 20)
    analog = on_tiles(copy.deepcopy(layer), {"dac": {"bits": 4}}, rows=4)
    halves = [nn.Conv1d(1, 2, 4, bias=False) for _ in range(2)]
    expected = torch.zeros(3, 2, 13, dtype=torch.double)
    for start, half in zip((0, 4), halves, strict=True):
        half.weight.data = layer.weight.data[:, :, start : start + 4]
        half.bias = nn.Parameter(torch.zeros(2))
        expected += by_hand(half, x[:, :, start : start + 16], [(0, 1)])
    torch.testing.assert_close(analog(x).double(), expected)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(16, 16, 3, padding=1), (64, 16, 32, 32)),  # the patches of all images are 38 MB
        (nn.ConvTranspose2d(16, 16, 4, stride=2), (64, 16, 24, 24)),  # the products are 38 MB
    ],
    ids=["patches", "products of a transposed convolution"],
)
def test_a_pass_never_holds_more_than_inputs_or_outputs_of_all_images(layer, shape):
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor):
                largest = max(largest, found.untyped_storage().nbytes())
            return found

    analog, x = on_tiles(layer, {"dac": {"bits": 8}, "out_noise": 0.1}), torch.randn(shape)
    with torch.no_grad():
        output = analog(x)
        with Watch():
            analog(x)
    assert largest == max(x.nbytes, output.nbytes)


def test_noise_is_the_same_with_gradients_and_without():
    profile = an.load_profile("ideal").replace({"periphery": {"dac": {"bits": 8}, "out_noise": 0.1}})
    analog = an.program_(an.convert_to_analog(nn.Conv2d(16, 16, 3, padding=1), profile).eval())
    x = torch.randn(24, 16, 32, 32)  # in blocks where nothing follows
    found = []
    for grad in (True, False):
        an.program_(analog)
        with torch.set_grad_enabled(grad):
            found.append(analog(x))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
