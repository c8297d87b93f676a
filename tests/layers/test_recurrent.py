"""Recurrent layers whose Parameters are replaced: torch lists them, and must not bypass the chip by it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import analognoise as an
from analognoise.conversion import analog_layers
from analognoise.evaluation.expected import Expected
from analognoise.evaluation.reading import find_bypassed

X = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
KINDS = pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])


def layer(kind: type[nn.RNNBase]) -> nn.Module:
    torch.manual_seed(0)
    return kind(6, 6, num_layers=2, bidirectional=True, batch_first=True)


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assigned(model: nn.Module) -> nn.Module:
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    return model


def replaced(model: nn.Module, name: str) -> nn.Module:
    setattr(model, name, nn.Parameter(getattr(model, name).detach() / 2))
    return model


def called_with_others(model: nn.Module) -> nn.Module:
    functional_call(model, values(model), (X,))
    return model


CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "assigned": assigned,
    "weight": lambda model: replaced(model, "weight_hh_l1"),
    "bias": lambda model: replaced(model, "bias_hh_l0_reverse"),
    "functional_call": called_with_others,
}


@KINDS
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("before_conversion", [True, False])
def test_the_first_forward_after_a_replacement_is_on_the_chip(
    kind: type[nn.RNNBase], change: str, before_conversion: bool
) -> None:
    if before_conversion:
        model = an.convert_to_analog(CHANGES[change](layer(kind)), "gaussian@20%", inplace=True)
    else:
        model = CHANGES[change](an.program_(an.convert_to_analog(layer(kind), "gaussian@20%")).eval())
    an.program_(model, seed=1).eval()
    expected = an.program_(an.convert_to_analog(CHANGES[change](layer(kind)), "gaussian@20%"), seed=1).eval()
    with torch.no_grad():
        first, second = model(X)[0], model(X)[0]
        expected(X)
        assert torch.equal(first, second)
        assert torch.equal(first, expected(X)[0])
        with an.digital(model):
            assert not torch.equal(first, model(X)[0])


@KINDS
def test_a_model_made_without_memory_and_then_loaded(kind: type[nn.RNNBase]) -> None:
    with torch.device("meta"):
        empty = layer(kind)
    model = an.convert_to_analog(empty, "gaussian@20%")
    model.load_state_dict(layer(kind).state_dict(), assign=True)
    an.program_(model).eval()
    plain = an.program_(an.convert_to_analog(layer(kind), "gaussian@20%")).eval()
    with torch.no_grad():
        assert torch.equal(model(X)[0], plain(X)[0])


@KINDS
def test_a_call_with_other_parameters_computes_on_the_chip(kind: type[nn.RNNBase]) -> None:
    model = an.program_(an.convert_to_analog(layer(kind), "gaussian@20%")).eval()
    with torch.no_grad():
        expected = model(X)[0]
        assert torch.equal(functional_call(model, values(model), (X,))[0], expected)
        assert torch.equal(model(X)[0], expected)


@KINDS
def test_a_search_for_bypassed_layers_leaves_torch_s_list_as_it_was(kind: type[nn.RNNBase]) -> None:
    model = an.program_(an.convert_to_analog(layer(kind), "ideal")).eval()
    with torch.no_grad():
        compute = lambda: [model(X)[0]]  # noqa: E731
        assert find_bypassed(analog_layers(model), compute, Expected(compute)) == []
    listed = zip(model._flat_weights_names, model._flat_weights, model._flat_weight_refs, strict=True)
    assert all(own is model.get_parameter(name) and ref() is own for name, own, ref in listed)
