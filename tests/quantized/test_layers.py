"""Quantized layers: grid and codes against NumPy, sharing, copies, other codes in their place."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import analognoise as an
from analognoise.errors import AnalogNoiseError, ConversionError, QuantizationError
from analognoise.tasks import get_task


def digits() -> nn.Module:
    return get_task("digits").build(0)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("per", ["channel", "tensor"])
@pytest.mark.parametrize("clipping", ["max", 0.1, "learned"])
def test_codes_and_values_are_those_of_numpy(bits: int, per: str, clipping: str | float) -> None:
    model = an.quantize(digits().double(), bits=bits, per=per, clipping=clipping)
    high = 2 ** (bits - 1) - 1
    for layer in an.quantized_layers(model).values():
        w = layer.weight.detach().numpy()
        axes = tuple(range(1, w.ndim)) if per == "channel" else tuple(range(w.ndim))
        size = np.abs(w)
        top = size.max(axes, keepdims=True)
        if clipping == "max":
            step = top / high
        elif clipping == "learned":
            step = np.minimum(2 * size.mean(axes, keepdims=True) * np.sqrt(high), top) / high
        else:
            step = np.full((1,) * w.ndim, clipping / high)
        codes = np.clip(np.round(w / step), -high, high)
        assert layer.scale.shape == step.shape
        np.testing.assert_allclose(layer.scale.numpy(), step, rtol=1e-13)
        np.testing.assert_array_equal(layer.codes().numpy(), codes)
        np.testing.assert_allclose(layer.quantized_weight().detach().numpy(), codes * step, rtol=1e-12)
        assert np.abs(codes).max() == high or clipping == 0.1


def test_parameters_buffers_and_names_are_shared() -> None:
    model = digits()
    quantized = an.quantize(model, clipping="max")
    assert list(quantized.state_dict()) == list(model.state_dict())
    for (name, mine), (other, theirs) in zip(
        model.named_parameters(), quantized.named_parameters(), strict=True
    ):
        assert name == other
        assert mine is theirs
    assert isinstance(quantized.conv1, nn.Conv2d)
    assert type(model.conv1) is nn.Conv2d
    back = an.dequantize(quantized, keep="float")
    assert type(back.fc) is nn.Linear
    assert back.fc.weight is model.fc.weight


def test_copies_compute_the_same_and_have_their_own_state() -> None:
    model = an.quantize(digits(), bits=4, activation_bits=8)
    x = torch.rand(3, 1, 8, 8)
    expected = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), expected)
        twin.fc.put_codes(-twin.fc.codes())
        assert not torch.equal(twin(x), expected)
    assert torch.equal(model(x), expected)
    other = an.quantize(digits(), bits=4, activation_bits=8)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), expected)


def test_other_codes_take_the_place_of_the_weights_own_and_leave_no_trace() -> None:
    model = an.quantize(digits(), bits=4)
    x = torch.rand(3, 1, 8, 8)
    before = model(x)
    layer = model.fc
    lowest = torch.full_like(layer.codes(), -8)  # a word that rounding never gives
    layer.put_codes(lowest)
    assert torch.equal(layer.codes(), lowest)
    assert torch.equal(layer.quantized_weight(), (-8 * layer.scale).expand_as(layer.weight))
    assert not torch.equal(model(x), before)
    layer.remove_codes()
    assert torch.equal(model(x), before)
    with pytest.raises(QuantizationError, match=r"'fc': codes of 4 bits lie from -8 to 7, found -8 to 8"):
        layer.put_codes(torch.where(torch.rand(10, 64) < 0.5, lowest, -lowest))
    with pytest.raises(QuantizationError, match=r"\(10, 64\), found \(10, 63\)"):
        layer.put_codes(lowest[:, 1:])
    with pytest.raises(QuantizationError, match=r"whole numbers, found torch.float32"):
        layer.put_codes(lowest.float())
    assert torch.equal(model(x), before)


def test_tied_weights_are_one_memory() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    model[1].weight = model[0].weight
    quantized = an.quantize(model, bits=4)
    assert quantized[0].log_range is quantized[1].log_range
    assert list(an.quantized_weights(quantized)) == ["0.weight"]
    quantized[0].put_codes(-quantized[0].codes())
    assert torch.equal(quantized[1].codes(), quantized[0].codes())


class Tied(nn.Module):
    """A convolution and the transposed one with its weight, whose channels lie along other axes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(2, 4, 3)
        self.decoder = nn.ConvTranspose2d(4, 2, 3)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.relu(self.encoder(x)))


@pytest.mark.parametrize("clipping", ["learned", "max"])
def test_weights_tied_along_other_axes_are_one_memory_too(clipping: str) -> None:
    quantized, x = an.quantize(Tied(), bits=4, clipping=clipping), torch.randn(2, 2, 6, 6)
    assert torch.equal(quantized.decoder.scale, quantized.encoder.scale)
    assert torch.equal(quantized.decoder.codes(), quantized.encoder.codes())
    assert torch.equal(an.dequantize(quantized)(x), quantized(x))
    with an.memory_faults(quantized, an.FaultModel(flip=0.3)):
        assert quantized.decoder.has_other_codes
        assert torch.equal(quantized.decoder.codes(), quantized.encoder.codes())


def test_layers_get_their_own_settings_one_call_after_the_other(tmp_path: Path) -> None:
    model, x = digits(), torch.rand(3, 1, 8, 8)
    mixed = an.quantize(model, bits=4, per="tensor", filter_fn=lambda module, name: name == "conv1")
    with pytest.raises(
        QuantizationError, match=r"'conv1' is quantized already: .* a filter_fn that leaves it"
    ):
        an.quantize(mixed, bits=8)
    mixed = an.quantize(mixed, bits=8, activation_bits=6, filter_fn=lambda module, name: name != "conv1")
    layers = an.quantized_weights(mixed)
    assert {name: layer.bits for name, layer in layers.items()} == {
        "conv1.weight": 4,
        "conv2.weight": 8,
        "fc.weight": 8,
    }
    assert {layer.name for layer in layers.values()} == {"conv1", "conv2", "fc"}
    assert mixed.fc.weight is model.fc.weight
    expected = mixed(x)
    an.save_weights(mixed, tmp_path / "mixed.safetensors")
    loaded = an.load_quantized(digits(), tmp_path / "mixed.safetensors")
    assert torch.equal(loaded(x), expected)


def test_a_layer_tied_to_one_that_is_quantized_is_refused() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    model[1].weight = model[0].weight
    first = an.quantize(model, filter_fn=lambda module, name: name == "0")
    with pytest.raises(QuantizationError, match="layer '1' has the weight of layer '0', which is quantized"):
        an.quantize(first, filter_fn=lambda module, name: name == "1")


def test_a_layer_that_computes_with_the_float_weight_of_a_quantized_one_is_named() -> None:
    model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 5), nn.Linear(5, 7, bias=False))
    model[2].weight = model[0].weight
    described = an.describe_quantization(an.quantize(model, bits=4))
    named = {layer.name: (layer.parameters, layer.reason) for layer in described.floating}
    assert named["0"] == (35, "computes with the float weight of 2.weight, tied to it")
    assert set(named) == {"0", "1.bias"}


def test_a_sign_that_was_given_needs_no_inputs_where_nothing_is_learned_from_them() -> None:
    given = {"bits": 4, "activation_bits": 4, "activation_signed": True}
    for options, awaits in (
        ({"activation_range": "max"}, False),
        ({"activation_range": 2.0}, False),
        ({"activation_scale": 0.1}, False),
        ({}, True),
    ):
        layer = an.quantize(nn.Linear(3, 3), **given, **options)
        assert layer.awaits_inputs is awaits
        layer(torch.ones(2, 3))
        assert int(layer.input_signed) == 1


def test_tiles_and_quantizers_are_put_one_after_the_other() -> None:
    quantized = an.quantize(digits(), bits=4)
    with pytest.raises(ConversionError, match=r"conv1.*dequantize\(model\)"):
        an.convert_to_analog(quantized, "ideal")
    with pytest.raises(QuantizationError, match=r"'conv1' is on tiles"):
        an.quantize(an.convert_to_analog(digits(), "ideal"))
    with pytest.raises(QuantizationError, match=r"'conv1' is quantized already"):
        an.quantize(quantized)
    model = an.dequantize(quantized)
    assert torch.equal(model.fc.weight, quantized.fc.quantized_weight())
    assert model.fc.weight is not quantized.fc.weight
    analog = an.program_(an.convert_to_analog(model, "ideal")).eval()
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(analog(x), quantized(x))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 1}, "bits must be a whole number from 2 to 8, found 1"),
        ({"bits": 9}, "from 2 to 8, found 9"),
        ({"bits": 4.5}, "found 4.5"),
        ({"bits": True}, "found True"),
        ({"activation_bits": 1}, "activation_bits must be a whole number from 2 to 16 or None, found 1"),
        ({"activation_bits": 17}, "found 17"),
        ({"activation_scale": 0.1}, r"activation_scale is 0\.1, but activation_bits is None"),
        ({"activation_range": "max"}, "activation_range is 'max', but activation_bits is None"),
        ({"activation_signed": False}, "activation_signed is False, but activation_bits is None"),
        ({"per": "chanel"}, "did you mean 'channel'"),
        ({"per": None}, "found None"),
        ({"clipping": "lerned"}, "did you mean 'learned'"),
        ({"clipping": 0}, "number above 0, found 0"),
        ({"clipping": float("inf")}, "found inf"),
        ({"activation_range": -1.0}, "activation_range must be"),
        ({"activation_scale": 0.0}, "activation_scale must be"),
        ({"activation_scale": 0.1, "activation_range": 2.0}, "give one of them"),
        ({"activation_signed": 1}, "activation_signed must be"),
        ({"filter_fn": lambda module, name: False}, "filter_fn chose none of its 3 layers"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(AnalogNoiseError, match=message):
        an.quantize(digits(), **settings)


def test_a_model_with_nothing_to_quantize_is_refused() -> None:
    with pytest.raises(QuantizationError, match="nothing to quantize in Sequential"):
        an.quantize(nn.Sequential(nn.ReLU(), nn.LayerNorm(4)))
    with pytest.raises(QuantizationError, match="found dict"):
        an.quantize({})
