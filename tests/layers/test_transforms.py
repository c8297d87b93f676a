"""Torch's function transforms, and the look at whether weights are those of the chip."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jvp, vjp

import analognoise as an
from analognoise.errors import StaleChipWarning
from tests.layers.peripheries import on_tiles

CONVERTERS = {
    "fixed": {"dac": {"bits": 6, "range": "fixed", "bound": 2.0}, "adc": {"bits": 6, "bound": 6.0}},
    "dynamic": {"dac": {"bits": 6}, "adc": {"bits": 6, "bound": 6.0}},
    "bit-serial": {"dac": {"bits": 6}, "adc": {"bits": 8, "bound": 6.0}, "input_mode": "bit-serial"},
}
each_converter = pytest.mark.parametrize("periphery", CONVERTERS.values(), ids=CONVERTERS)


def test_weights_are_looked_at_inside_a_transform() -> None:
    model = an.convert_to_analog(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), "pcm-ibm")
    an.program_(model)
    x = torch.randn(3, 8)

    def loss(x: torch.Tensor, model: nn.Module) -> torch.Tensor:
        return model(x).square().sum()

    unseen = copy.deepcopy(model)  # its weights are other objects: only their values can tell
    own = x.clone().requires_grad_()
    loss(own, model).backward()
    assert torch.equal(torch.func.grad(loss)(x, unseen), own.grad)
    with torch.no_grad():
        unseen[2].weight.add_(1.0)
    with pytest.warns(StaleChipWarning, match="'2'"):
        torch.func.grad(loss)(x, unseen)


@each_converter
def test_derivatives_pass_through_transforms_of_something_else(periphery: dict) -> None:
    torch.manual_seed(0)
    model, x, by = on_tiles(nn.Linear(40, 6), periphery, rows=16), torch.randn(3, 40), torch.randn(3, 6)
    along, cotangent = torch.randn(3, 40), torch.randn(3, 6)
    own = x.clone().requires_grad_()
    forward = torch.autograd.functional.jvp(model, x, along)[1]
    [backward] = torch.autograd.grad(model(own), own, cotangent)
    assert backward.abs().max() > 0.1

    def gradient(x: torch.Tensor) -> torch.Tensor:
        return grad(lambda by: (model(x) * by).sum())(by)

    def derivative(x: torch.Tensor) -> torch.Tensor:
        return jvp(lambda by: model(x) * by, (by,), (torch.ones_like(by),))[1]

    for inner in (gradient, derivative):
        torch.testing.assert_close(jvp(inner, (x,), (along,))[1], forward)
        torch.testing.assert_close(vjp(inner, x)[1](cotangent)[0], backward)
        torch.testing.assert_close(torch.autograd.grad(inner(own), own, cotangent)[0], backward)
    twice = jvp(lambda x: jvp(lambda x: model(x).square(), (x,), (along,))[1], (x,), (along,))[1]
    torch.testing.assert_close(twice, 2 * forward.square())


@each_converter
def test_compiled_transforms(periphery: dict) -> None:
    torch.manual_seed(0)
    model, x, along = on_tiles(nn.Linear(10, 6), periphery), torch.randn(3, 10), torch.randn(3, 10)
    expected = torch.autograd.functional.jvp(model, x, along)[1]

    def derivative(x: torch.Tensor) -> torch.Tensor:
        return jvp(model, (x,), (along,))[1]

    torch.testing.assert_close(torch.compile(derivative, backend="eager")(x), expected)


@each_converter
def test_forward_derivatives_without_gradients_of_products_in_blocks(
    periphery: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layers = [(nn.Linear(40, 14), (31, 40)), (nn.Conv2d(4, 6, 3, groups=2), (7, 4, 9, 9))]
    for layer, shape in layers:
        model, x, along = on_tiles(layer, periphery, rows=18), torch.randn(shape), torch.randn(shape)
        expected = torch.autograd.functional.jvp(model, x, along)[1]
        with monkeypatch.context() as changes, torch.no_grad(), forward_ad.dual_level():
            changes.setattr("analognoise.layers.products._WHOLE", 80)
            changes.setattr("analognoise.layers.products._BLOCK", 40)
            found = forward_ad.unpack_dual(model(forward_ad.make_dual(x, along))).tangent
            torch.testing.assert_close(found, expected)


def test_infinite_inputs_inside_a_transform_are_cut_off_as_outside() -> None:
    model = on_tiles(nn.Linear(3, 2), CONVERTERS["fixed"])
    x = torch.tensor([[float("inf"), -float("inf"), 0.3]])
    with torch.no_grad():
        expected = model(x)
    assert expected.isfinite().all()
    assert torch.equal(jvp(model, (x,), (torch.ones_like(x),))[0], expected)
    assert jacfwd(model)(x).isfinite().all()


@each_converter
def test_forward_derivatives_in_weights_while_training(periphery: dict) -> None:
    torch.manual_seed(0)
    model, x = on_tiles(nn.Linear(24, 5), periphery, rows=18).train(), torch.randn(3, 24)
    weights = model.weight.detach().clone()
    along, by = torch.randn(5, 24), torch.randn(3, 5)

    def run(weights: torch.Tensor) -> torch.Tensor:
        return functional_call(model, {"weight": weights}, (x,))

    with an.periphery_in_training(model):
        expected = torch.autograd.functional.jvp(run, weights, along)[1]
        assert expected.abs().max() > 1
        torch.testing.assert_close(jvp(run, (weights,), (along,))[1], expected)
        further_out = jvp(lambda w: grad(lambda by: (run(w) * by).sum())(by), (weights,), (along,))[1]
        torch.testing.assert_close(further_out, expected)
