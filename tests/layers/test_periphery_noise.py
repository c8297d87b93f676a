"""Noise of a periphery: moments by formula, draws that can be repeated."""

import math

import pytest
import torch
from torch import nn

import analognoise as an
from tests.layers.peripheries import PERIPHERIES, in_blocks, on_tiles

CHIP_NOISE = {"curve": "power", "coefficient": 0.0175, "exponent": 0.5}
DACS = {"none": None, "fixed": {"range": "fixed", "bound": 2.0}, "dynamic": {"bits": 8}}
ADCS = {"exact": None, "adc": {"bits": 24, "bound": 50.0}}
NOISES = {
    "out": {"out_noise": 0.04},
    "read": {"w_noise": CHIP_NOISE},
    "both": {"out_noise": 0.03, "w_noise": 0.02},
}


@pytest.mark.parametrize("dac", DACS.values(), ids=DACS)
@pytest.mark.parametrize("adc", ADCS.values(), ids=ADCS)
@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_noise_of_a_product_has_the_moments_of_its_formula(dac, adc, noise):
    torch.manual_seed(0)
    layer, count = nn.Linear(30, 40, bias=False), 4000
    x = torch.rand(1, 30) * 2 - 1
    periphery = {key: value for key, value in (("dac", dac), ("adc", adc)) if value}
    quiet = on_tiles(layer, periphery, rows=16) if periphery else layer
    noisy = on_tiles(layer, periphery | noise, rows=16)
    with torch.no_grad():
        drawn = noisy(x.expand(count, 30)) - quiet(x)
    variance = torch.zeros(40)
    for rows in (slice(0, 15), slice(15, 30)):
        weights, given = layer.weight.detach()[:, rows], x[0, rows]
        scale = weights.abs().amax(dim=1)
        bound = 1.0 if dac is None else 2.0 if "bound" in dac else given.abs().max()
        given = given / bound
        if dac and "bits" in dac:
            given = (given * 127).round() / 127
        relative = weights.abs() / scale[:, None]
        w = noise.get("w_noise", 0.0)
        # A pair's larger device holds the weight, the other nothing; a constant noise is that of both.
        sigma2 = 0.0175**2 * relative if isinstance(w, dict) else torch.full_like(relative, 2 * w**2)
        variance += (scale * bound) ** 2 * (sigma2 @ given.square() + noise.get("out_noise", 0.0) ** 2)
    # 40 outputs: five standard errors of a mean of 4,000, of a variance sqrt(2 / 4,000)
    assert (drawn.mean(dim=0).abs() < 5 * (variance / count).sqrt()).all()
    assert ((drawn.var(dim=0) / variance - 1).abs() < 5 * math.sqrt(2 / count)).all()
    mixed = torch.corrcoef(drawn.T).fill_diagonal_(0)
    assert mixed.abs().max() < 5.5 / math.sqrt(count)


def test_read_noise_of_a_convolution_is_that_of_its_patches():
    torch.manual_seed(0)
    layer, count = nn.Conv2d(3, 4, 3, bias=False, padding=1), 3000
    x = torch.rand(1, 3, 5, 5)
    noisy = on_tiles(layer, {"w_noise": CHIP_NOISE}, rows=18)
    with torch.no_grad():
        drawn = noisy(x.expand(count, 3, 5, 5)) - layer(x)
        variance = 0
        for channels in (slice(0, 1), slice(1, 3)):
            weights = layer.weight[:, channels]
            scale = weights.abs().amax(dim=(1, 2, 3))
            relative = weights.abs() / scale.view(-1, 1, 1, 1)
            part = nn.functional.conv2d(x[:, channels].square(), relative, padding=1)
            variance = variance + scale.view(-1, 1, 1).square() * 0.0175**2 * part
    assert ((drawn.var(dim=0) / variance[0] - 1).abs() < 5.5 * math.sqrt(2 / count)).all()


def test_bits_one_after_the_other_are_each_converted_and_noisy():
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(0.5)
    serial = {"dac": {"bits": 4, "range": "fixed", "bound": 7.0}, "input_mode": "bit-serial"}
    analog = on_tiles(layer, serial | {"adc": {"bits": 2, "bound": 0.4}})
    x = torch.tensor([[5.0], [-3.0], [0.0]])
    # Each bit gives 1, which the ADC cuts to 0.4: 5 = 101b, -3 = -011b.
    torch.testing.assert_close(analog(x), 0.5 * 0.4 * x)
    noisy = on_tiles(layer, serial | {"out_noise": 0.1})
    with torch.no_grad():
        drawn = noisy(torch.full((20000, 1), 5.0)) - 2.5
    # Three products, weighted 1, 2, 4, in units of one input step times the largest weight
    expected = (0.5 * 0.1) ** 2 * (1 + 4 + 16)
    assert drawn.var().item() == pytest.approx(expected, rel=5 * math.sqrt(2 / 20000))


def test_draws_depend_on_chip_time_and_number_of_the_product_alone():
    torch.manual_seed(0)
    pcm = an.load_profile("pcm-ibm")
    model, x = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), torch.randn(3, 6)
    chip = on_tiles(model, {"out_noise": 0.1, "w_noise": 0.01}, profile=pcm)
    twin = on_tiles(nn.Sequential(model[0], model[1]), {"out_noise": 0.1, "w_noise": 0.01}, profile=pcm)
    an.drift_to_(chip, "1h")
    first, second = chip(x), chip(x)
    assert not torch.equal(first, second)
    an.drift_to_(chip, "1d")
    assert not torch.equal(chip(x), first)
    global_state = torch.get_rng_state()
    for model_again in (an.drift_to_(chip, "1h"), an.drift_to_(twin, "1h")):
        torch.manual_seed(77)
        assert torch.equal(model_again(x), first)
        assert torch.equal(model_again(x), second)
    torch.set_rng_state(global_state)
    chip(x)
    assert torch.equal(torch.get_rng_state(), global_state)
    an.program_(chip, chip=1)
    assert not torch.equal(an.drift_to_(chip, "1h")(x), first)


@pytest.mark.parametrize("layer", [nn.Linear(16, 24, bias=False), nn.Conv1d(16, 24, 1, bias=False)], ids=str)
def test_noise_is_the_same_with_gradients_and_compiled(layer, monkeypatch):
    torch.manual_seed(4)
    x = torch.randn(40, 16) if isinstance(layer, nn.Linear) else torch.randn(40, 16, 3)
    noisy = [
        {"out_noise": 0.1},
        {"out_noise": 0.1, "w_noise": 0.1},
        PERIPHERIES["bit-serial"] | {"out_noise": 0.1},
    ]
    for periphery in noisy:
        analog = on_tiles(layer, periphery, rows=16)
        in_blocks(monkeypatch, 90)
        compiled = torch.compile(analog, backend="eager")
        with torch.no_grad():
            outputs = [an.drift_to_(analog, 1.0)(x)]
            an.drift_to_(analog, 1.0)
            outputs.append(compiled(x))
        outputs.append(an.drift_to_(analog, 1.0)(x.clone().requires_grad_()).detach())
        for output in outputs[1:]:
            assert torch.allclose(output, outputs[0], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("layer", [nn.Linear(16, 24, bias=False), nn.Conv1d(16, 24, 1, bias=False)], ids=str)
def test_noise_of_blocks_is_independent_and_as_large_as_said(layer, monkeypatch):
    in_blocks(monkeypatch, 4096)
    nn.init.ones_(layer.weight)
    analog = on_tiles(layer, {"out_noise": 0.1, "adc": {"bits": 24, "bound": 50.0}})
    x = torch.zeros(4096, 16) if isinstance(layer, nn.Linear) else torch.zeros(256, 16, 16)
    with torch.no_grad():
        first = analog(x)
        second = analog(x)
        again = an.drift_to_(analog, 1.0)(x)
        assert torch.equal(again, an.drift_to_(analog, 1.0)(x))
    count = first.numel()
    for noise in (first, second):
        assert abs(noise.mean()) < 5 * 0.1 / math.sqrt(count)
        assert abs(noise.std() / 0.1 - 1) < 5 / math.sqrt(2 * count)
        # Blocks of the first axis, and of the columns, do not repeat one another.
        parts = (
            noise.reshape(4, -1)
            if noise.dim() == 3
            else torch.cat([*noise.view(8, -1, 4, 6).transpose(1, 2)])
        )
        parts = parts.reshape(len(parts), -1)
        found = torch.corrcoef(parts) - torch.eye(len(parts))
        assert found.abs().max() < 6 / math.sqrt(parts.shape[1])
    assert torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].abs() < 6 / math.sqrt(count)
