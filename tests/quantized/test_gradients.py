"""Gradients of the quantizers against their definitions, inputs on their grid, and torch as witness."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import analognoise as an


def by_definition(x: Tensor, log_range: Tensor, low: int, high: int) -> Tensor:
    """The same value with the gradients that autograd finds when only the rounding is passed by."""
    step = log_range.exp() / high
    ratio = x / step
    inside = ((ratio.round() >= low) & (ratio.round() <= high)).detach()
    kept = torch.where(inside, ratio, ratio.round().clamp(low, high).detach())
    return (kept + (kept.round() - kept).detach()) * step


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_gradients_of_weights_and_ranges(bits: int, per: str) -> None:
    torch.manual_seed(0)
    layer = an.quantize(nn.Conv2d(3, 4, 3).double(), bits=bits, per=per)
    with torch.no_grad():
        layer.log_range -= 0.7  # so that some weights are cut off
    high = 2 ** (bits - 1) - 1
    weight = layer.weight.detach().clone().requires_grad_()
    log_range = layer.log_range.detach().clone().requires_grad_()
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    goal = torch.randn(5, 4, 4, 4, dtype=torch.float64)
    (layer(x) * goal).sum().backward()
    expected = by_definition(weight, log_range, -high, high)
    (nn.functional.conv2d(x, expected, layer.bias) * goal).sum().backward()
    torch.testing.assert_close(layer.weight.grad, weight.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.log_range.grad, log_range.grad, rtol=1e-12, atol=1e-12)
    cut = (layer.weight / layer.scale).round().abs() > high
    assert 0 < int(cut.sum()) < cut.numel()
    assert not layer.weight.grad[cut].any()
    assert layer.log_range.grad.all()


def test_with_the_largest_weight_as_range_every_weight_has_its_gradient() -> None:
    torch.manual_seed(0)
    layer = an.quantize(nn.Linear(9, 5), bits=2, clipping="max")
    layer(torch.rand(4, 9)).sum().backward()
    assert layer.weight.grad.all()


def test_torch_rounds_to_the_same_grid() -> None:
    torch.manual_seed(1)
    layer = an.quantize(nn.Linear(400, 50), bits=5, clipping="max")
    scale = layer.scale.flatten()
    witness = torch.fake_quantize_per_channel_affine(
        layer.weight.detach(), scale, torch.zeros(50, dtype=torch.int32), 0, -15, 15
    )
    torch.testing.assert_close(layer.quantized_weight().detach(), witness, rtol=1e-5, atol=1e-8)


def test_gradient_passes_to_the_inputs() -> None:
    torch.manual_seed(0)
    layer = an.quantize(nn.Linear(6, 3).double(), bits=8, activation_bits=4)
    start = torch.randn(50, 6, dtype=torch.float64)
    layer(start)
    with torch.no_grad():
        layer.log_input_range -= 0.5
    x = start.clone().requires_grad_()
    layer(x).pow(2).sum().backward()
    again = start.clone().requires_grad_()
    log_range = layer.log_input_range.detach().clone().requires_grad_()
    weight = layer.quantized_weight().detach()
    quantized = by_definition(again, log_range, -7, 7)
    nn.functional.linear(quantized, weight, layer.bias.detach()).pow(2).sum().backward()
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.log_input_range.grad, log_range.grad, rtol=1e-11, atol=1e-11)
    assert (x.grad == 0).any()


def identity(**settings: object) -> nn.Module:
    layer = nn.Linear(4, 4, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4))
    return an.quantize(layer, clipping="max", **settings)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_inputs_lie_on_the_grid_of_their_range(bits: int, signed: bool) -> None:
    x = np.linspace(-1.3 if signed else 0.0, 1.3, 40).reshape(10, 4)
    high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    low = -high if signed else 0
    for settings, step in (
        ({"activation_range": "max"}, 1.3 / high),
        ({"activation_range": 0.9}, 0.9 / high),
        ({"activation_scale": 0.01}, 0.01),
        ({}, min(2 * np.abs(x).mean() * math.sqrt(high), 1.3) / high),
    ):
        layer = identity(activation_bits=bits, **settings)
        found = layer(torch.from_numpy(x)).detach().numpy()
        expected = np.clip(np.round(x / step), low, high) * step
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 + step * 1e-6, err_msg=str(settings))
        assert int(layer.input_signed) == int(signed)


def test_a_constant_scale_reaches_scale_times_the_largest_code() -> None:
    layer = identity(activation_bits=4, activation_scale=0.1)
    assert layer(torch.full((1, 4), 99.0, dtype=torch.float64)).max().item() == pytest.approx(
        0.1 * 15, rel=1e-6
    )


def test_the_first_inputs_decide_and_later_ones_do_not() -> None:
    layer = identity(activation_bits=4)
    layer(torch.tensor([[0.0, 0.5, 1.0, 0.2]], dtype=torch.float64))
    before = layer.log_input_range.clone()
    out = layer(torch.tensor([[-3.0, 0.5, 9.0, 0.2]], dtype=torch.float64))
    assert torch.equal(layer.log_input_range, before)
    assert out.min() == 0
    fresh = identity(activation_bits=4)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(
        fresh(torch.full((1, 4), -1.0, dtype=torch.float64)), torch.zeros(1, 4, dtype=torch.float64)
    )
    given = identity(activation_bits=4, activation_signed=True)
    given(torch.rand(2, 4, dtype=torch.float64))
    assert int(given.input_signed) == 1


def test_half_precision_has_the_codes_of_single() -> None:
    torch.manual_seed(0)
    model = nn.Linear(64, 8).half()
    half, single = an.quantize(model, clipping="max"), an.quantize(model.float(), clipping="max")
    assert torch.equal(half.codes(), single.codes())
