"""Transposed convolutions, bilinear, recurrent and attention layers, and layers of the user's own."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import analognoise as an
from analognoise.conversion import analog_layers
from analognoise.errors import ConversionError
from analognoise.layers import AnalogLayer, Geometry, register_analog_layer
from analognoise.layers.registry import _REGISTERED

SMALL = an.load_profile("ideal").replace({"tile.rows": 7, "tile.columns": 5})


def on_chip(model, profile=SMALL):
    return an.drift_to_(an.program_(an.convert_to_analog(model, profile), seed=1), "1d").eval()


def close(analog, digital):
    if isinstance(digital, (tuple, list)):
        for a, d in zip(analog, digital, strict=True):
            close(a, d)
    elif isinstance(digital, torch.Tensor):
        assert (analog - digital).abs().max() <= 1e-5 * digital.abs().max().clamp(min=1e-3)
    else:
        assert analog is digital


def every_matrix_is_read(analog, run):
    """Zero the chip's matrices one at a time: each must change the output."""
    before = run(analog)
    before = before[0] if isinstance(before, tuple) else before
    for name, layer in analog_layers(analog).items():
        for key, weights in layer.analog.weights.items():
            kept = weights.clone()
            weights.zero_()
            after = run(analog)
            after = after[0] if isinstance(after, tuple) else after
            assert not torch.equal(after, before), (name, key)
            weights.copy_(kept)


def test_transposed_convolutions():
    torch.manual_seed(0)
    count = 0
    for dims, groups, stride, dilation, padding, bias in itertools.product(
        (1, 2, 3), (1, 2, 4), (1, 2), (1, 2), (0, 1), (True, False)
    ):
        for output_padding in range(max(stride, dilation)):
            kernel = (3, 2, 3)[:dims]
            layer = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1](
                4,
                8,
                kernel,
                groups=groups,
                stride=stride,
                dilation=dilation,
                padding=padding,
                output_padding=output_padding,
                bias=bias,
            )
            x = torch.randn(2, 4, *(5, 4, 4)[:dims])
            close(on_chip(layer)(x), layer(x))
            count += 1
    assert count == 252
    layer = nn.ConvTranspose2d(3, 4, 3, stride=2)
    x = torch.randn(1, 3, 5, 5)
    close(on_chip(layer)(x, output_size=(12, 12)), layer(x, output_size=(12, 12)))


@pytest.mark.parametrize("bias", [True, False])
def test_bilinear(bias):
    layer = nn.Bilinear(9, 11, 4, bias=bias)
    a, b = torch.randn(3, 2, 9), torch.randn(3, 2, 11)
    close(on_chip(layer)(a, b), layer(a, b))
    geometry = on_chip(layer).geometries(layer)["weight"]
    assert (geometry.rows, geometry.columns) == (11, 36)


RECURRENT = [
    (kind, layers, bidirectional, first, bias, projection)
    for kind, layers, bidirectional, first, bias, projection in itertools.product(
        (nn.RNN, nn.LSTM, nn.GRU), (1, 2), (False, True), (False, True), (True, False), (0, 3)
    )
    if not (projection and kind is not nn.LSTM)
]


@pytest.mark.parametrize(("kind", "layers", "bidirectional", "first", "bias", "projection"), RECURRENT)
def test_recurrent_layers(kind, layers, bidirectional, first, bias, projection):
    torch.manual_seed(0)
    options = {"proj_size": projection} if projection else {}
    dropout = 0.5 if layers > 1 else 0.0
    layer = kind(
        6,
        9,
        layers,
        bias=bias,
        batch_first=first,
        bidirectional=bidirectional,
        dropout=dropout,
        **options,
    ).eval()
    analog = on_chip(layer)
    x = torch.randn(4, 7, 6)
    close(analog(x)[0], layer(x)[0])
    close(analog(x)[1], layer(x)[1])
    packed = pack_padded_sequence(
        x if first else x.transpose(0, 1), [7, 5, 5, 2], batch_first=first, enforce_sorted=True
    )
    close(pad_packed_sequence(analog(packed)[0])[0], pad_packed_sequence(layer(packed)[0])[0])
    close(analog(x[0])[0], layer(x[0])[0])  # unbatched
    every_matrix_is_read(analog, lambda net: net(x))
    assert analog._flat_weights[0] is analog.weight_ih_l0 is layer.weight_ih_l0
    weights = sum(p.numel() for n, p in layer.named_parameters() if n.startswith("weight"))
    assert an.describe(analog).devices == 2 * weights


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
@pytest.mark.parametrize("bias", [True, False])
def test_recurrent_cells(kind, bias):
    cell = kind(5, 6, bias=bias)
    analog = on_chip(cell)
    x, h = torch.randn(3, 5), torch.randn(3, 6)
    state = (h, torch.randn(3, 6)) if kind is nn.LSTMCell else h
    close(analog(x, state), cell(x, state))
    close(analog(x[0]), cell(x[0]))
    every_matrix_is_read(analog, lambda net: net(x, state))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"kdim": 6, "vdim": 5}, {"add_bias_kv": True}, {"add_zero_attn": True}],
    ids=["plain", "separate", "bias_kv", "zero"],
)
def test_attention(first, bias, options):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, bias=bias, batch_first=first, **options).eval()
    analog = on_chip(layer)
    q = torch.randn(3, 4, 8)
    k = torch.randn(3, 7, options.get("kdim", 8))
    v = torch.randn(3, 7, options.get("vdim", 8))
    if not first:
        q, k, v = (part.transpose(0, 1) for part in (q, k, v))
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[1, 5:] = True
    mask = torch.zeros(4, 7, dtype=torch.bool).masked_fill_(torch.arange(7) > 5, True)
    for needed, average, pad, attend in itertools.product(
        (True, False), (True, False), (None, padding), (None, mask)
    ):
        arguments = {
            "need_weights": needed,
            "average_attn_weights": average,
            "key_padding_mask": pad,
            "attn_mask": attend,
        }
        with torch.inference_mode():
            close(analog(q, k, v, **arguments), layer(q, k, v, **arguments))
    every_matrix_is_read(analog, lambda net: net(q, k, v))
    with torch.inference_mode():
        every_matrix_is_read(analog, lambda net: net(q, k, v, need_weights=False))


def test_self_attention_in_torch_s_fused_path():
    layer = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    analog = on_chip(layer, "pcm-ibm")
    x = torch.randn(2, 5, 8)
    with torch.inference_mode():
        every_matrix_is_read(analog, lambda net: net(x, x, x, need_weights=False))
        with an.digital(analog):
            assert torch.equal(analog(x, x, x)[0], layer(x, x, x)[0])


@pytest.mark.parametrize("norm_first", [True, False])
def test_transformer_reads_every_tile(norm_first):
    torch.manual_seed(0)
    net = nn.Transformer(8, 2, 2, 1, 16, dropout=0.0, batch_first=True, norm_first=norm_first).eval()
    analog = on_chip(net)
    source, target = torch.randn(2, 5, 8), torch.randn(2, 4, 8)
    with torch.inference_mode():
        close(analog(source, target), net(source, target))
        noisy = on_chip(net, "pcm-ibm")
        every_matrix_is_read(noisy, lambda model: model(source, target))
    names = set(analog_layers(analog))
    assert {
        "encoder.layers.0.self_attn",
        "decoder.layers.0.multihead_attn",
        "encoder.layers.1.linear2",
    } <= names


def test_attention_counts_its_products_of_activations_as_digital():
    analog = an.convert_to_analog(nn.MultiheadAttention(8, 2, batch_first=True), "ideal")
    x = torch.randn(2, 5, 8)
    for needed in (True, False):
        text = an.describe(
            analog, x, forward=lambda net, batch, n=needed: net(batch, batch, batch, need_weights=n)
        )
        assert text.layers[0].macs == 2 * 5 * (3 * 8 * 8 + 8 * 8)
        products = next(part for part in text.digital if "products" in part.reason)
        assert products.macs == 2 * (2 * 5 * 5 * 8)


class Scaled(nn.Module):
    """A linear-like layer of a user, weight as [in, out]."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x):
        return 2 * x @ self.weight


class Quiet(nn.Linear):
    """A subclass that computes as its parent does."""


class Loud(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_layer_of_one_s_own():
    with pytest.raises(ConversionError, match=r"no analog form of Scaled.*register_analog_layer"):
        an.convert_to_analog(nn.Sequential(Scaled(5, 3)), "ideal")

    @register_analog_layer(Scaled)
    class AnalogScaled(AnalogLayer, Scaled):
        @staticmethod
        def geometries(module):
            rows, columns = module.weight.shape
            return {"weight": Geometry(1, columns, rows)}

        @staticmethod
        def matrix(name, weights, geometry):
            return weights.t().unsqueeze(0)

    try:
        layer = Scaled(5, 3)
        analog = on_chip(nn.Sequential(layer))
        x = torch.randn(2, 5)
        close(analog(x), layer(x))
        every_matrix_is_read(on_chip(nn.Sequential(layer), "pcm-ibm"), lambda net: net(x))
        assert isinstance(analog[0], Scaled)
        assert type(an.convert_to_digital(analog)[0]) is Scaled
    finally:
        del _REGISTERED[Scaled]


def test_subclasses():
    quiet, loud = Quiet(4, 3), Loud(4, 3)
    analog = on_chip(nn.Sequential(quiet))
    x = torch.randn(2, 4)
    close(analog(x), quiet(x))
    assert isinstance(analog[0], Quiet)
    for twin in (copy.deepcopy(analog), pickle.loads(pickle.dumps(analog))):
        assert torch.equal(twin(x), analog(x))
        assert type(twin[0]) is type(analog[0])
    assert type(an.convert_to_digital(analog)[0]) is Quiet
    with pytest.raises(ConversionError, match="a subclass of Linear that computes in its own way"):
        an.convert_to_analog(loud, "ideal")


def test_registration_refuses_what_cannot_work():
    with pytest.raises(ConversionError, match=r"takes a subclass of torch.nn.Module, found 'Linear'"):
        register_analog_layer("Linear")
    with pytest.raises(ConversionError, match=r"Wrong must inherit from analognoise.AnalogLayer"):

        @register_analog_layer(Scaled)
        class Wrong(nn.Module):
            pass
