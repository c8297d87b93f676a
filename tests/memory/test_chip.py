"""Quantized models in faulty memory: what is read, and that nothing of it stays."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import analognoise as an
from analognoise.errors import FaultError, ModelError, QuantizationError
from analognoise.memory import FaultModel, StoredWeights, decode, memory_faults
from analognoise.seeds import Stream


def make(bits: int = 4) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    return an.quantize(net, bits)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("encoding", ["twos-complement", "sign-magnitude"])
def test_computes_with_the_words_that_are_read(x: Tensor, encoding: str) -> None:
    model = make()
    linear = model[3]
    before, own = model(x), linear.codes()
    faults = FaultModel(flip=0.1, encoding=encoding)
    with memory_faults(model, faults, chip=2, seed=7):
        inside, read = model(x), linear.codes()
        # by hand: the uniform numbers of each bit, and what the changed bits are worth
        words = torch.zeros(own.shape, dtype=torch.int64)
        sign = own < 0
        stored = own.long() % 16 if encoding == "twos-complement" else own.long().abs() + 8 * sign
        for bit in range(4):
            stream = Stream(7, "memory-flip", "3", chip=2, step=bit)
            holds = stored >> bit & 1
            words += (holds ^ (stream.uniforms(tuple(own.shape)) < 0.1).long()) << bit
        if encoding == "twos-complement":
            expected = torch.where(words >= 8, words - 16, words)
        else:
            expected = torch.where(words >= 8, 8 - words, words)
        assert torch.equal(read.long(), expected)
        by_hand = nn.functional.linear(model[2](model[1](model[0](x))), read * linear.scale, linear.bias)
        torch.testing.assert_close(inside, by_hand)
    assert not torch.equal(before, inside)
    assert torch.equal(model(x), before)
    assert not linear.has_other_codes


def test_no_faults_change_nothing_and_chips_differ(x: Tensor) -> None:
    model = make()
    before = model(x)
    with memory_faults(model, FaultModel()):
        assert torch.equal(model(x), before)
    outputs = []
    for chip in (0, 1, 0):
        with memory_faults(model, FaultModel(flip=0.05), chip=chip):
            outputs.append(model(x))
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], outputs[1])


def test_a_layer_more_or_another_order_changes_no_other_layers_faults() -> None:
    model = make()
    alone = an.quantize(
        nn.Sequential(*[an.dequantize(model, keep="float")[i] for i in range(4)]),
        4,
        filter_fn=lambda module, name: name == "3",
    )
    faults = FaultModel(flip=0.05)
    both, one = (StoredWeights(net, faults.encoding).read(faults, 0, 3) for net in (model, alone))
    assert list(both) == ["0.weight", "3.weight"]
    assert list(one) == ["3.weight"]
    assert torch.equal(both["3.weight"], one["3.weight"])


def test_the_model_is_left_as_found_when_something_goes_wrong_or_other_codes_were_there(x: Tensor) -> None:
    model = make()
    model[3].put_codes(torch.ones(10, 144, dtype=torch.int8))
    before = model(x)
    with pytest.raises(RuntimeError, match="2 channels"), memory_faults(model, FaultModel(stuck_at_0=1.0)):
        model(torch.zeros(1, 2 + int(model[3].codes().sum()), 8, 8))
    assert torch.equal(model(x), before)
    assert (model[3].codes() == 1).all()


def test_twos_complement_reaches_a_code_that_rounding_never_gives(x: Tensor) -> None:
    model = make()
    with memory_faults(model, FaultModel(stuck_at_1=1.0, positions=("sign",))):
        found = model[3].codes()
    with memory_faults(model, FaultModel(stuck_at_0=1.0, positions=(0, 1, 2))):
        lowest = model[3].codes()
    assert found.max() == -1
    assert set(lowest.unique().tolist()) == {-8, 0}


def test_tied_weights_are_stored_once() -> None:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    model = an.quantize(nn.Sequential(first, nn.ReLU(), second), 4)
    stored = StoredWeights(model, "twos-complement")
    assert stored.bits == 8 * 8 * 4
    with memory_faults(model, FaultModel(flip=0.2)):
        assert torch.equal(model[0].codes(), model[2].codes())
        assert model[2].has_other_codes
    assert not model[2].has_other_codes


def test_faulty_activations_never_decide_about_ranges(x: Tensor) -> None:
    torch.manual_seed(0)
    model = an.quantize(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3)), 4, activation_bits=4
    )
    with (
        pytest.raises(QuantizationError, match="'0', '2', and none came yet: run a batch"),
        memory_faults(model, FaultModel(flip=0.1)),
    ):
        pass
    model(x)
    before = model.state_dict()
    with memory_faults(model, FaultModel(flip=0.1)):
        model(10 * x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_that_are_not_finite_have_no_codes() -> None:
    model = make()
    with torch.no_grad():
        model[0].weight[0] = math.nan
    with pytest.raises(ModelError, match=r"0\.weight"), memory_faults(model, FaultModel(flip=0.1)):
        pass


def test_layers_quantized_apart_under_one_name_are_refused() -> None:
    parts = [an.quantize(nn.Linear(4, 4), 4) for _ in range(2)]
    with pytest.raises(
        FaultError, match=r"0\.weight and 1\.weight were quantized apart, both under the name ''"
    ):
        StoredWeights(nn.Sequential(*parts), "twos-complement")


def test_words_are_the_codes() -> None:
    model = make(8)
    stored = StoredWeights(model, "sign-magnitude")
    words = stored.words["3.weight"]
    assert torch.equal(decode(words, 8, "sign-magnitude").short(), model[3].codes())


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"model": nn.Linear(2, 2)}, QuantizationError, "no quantized layer"),
        ({"faults": 0.1}, FaultError, "faults is a float: give a FaultModel"),
        (
            {"faults": FaultModel(flip=0.1, positions=(6,))},
            FaultError,
            r"0\.weight: bit position 6 is",
        ),
        ({"chip": 0.5}, FaultError, r"chip must be a whole number, found 0\.5"),
    ],
)
def test_bad_input_is_named(arguments: dict, error: type[Exception], said: str) -> None:
    given = {"model": make(), "faults": FaultModel()} | arguments
    with pytest.raises(error, match=said), memory_faults(given.pop("model"), given.pop("faults"), **given):
        pass


def test_a_code_that_sign_magnitude_has_not_is_named() -> None:
    model = make()
    model[3].put_codes(torch.full((10, 144), -8))
    with pytest.raises(FaultError, match=r"3\.weight: code -8 does not fit"):
        StoredWeights(model, "sign-magnitude")
    with pytest.raises(FaultError, match="the faults are of sign-magnitude, the words of twos-complement"):
        StoredWeights(model, "twos-complement").read(FaultModel(encoding="sign-magnitude"))
