"""Net noise of pairs as one normal: mean, variance and compensation of the exact draw."""

import math

import pytest
import torch
from torch import nn

from analognoise.conversion import convert_to_analog, sample_chip
from analognoise.crossbar.net import check_net
from analognoise.devices.catalog import load_profile
from analognoise.errors import MethodError
from analognoise.training import ProfileNoise

_COPIES = 60  # rows of the layer that hold the same weights
_CHIPS = 120


def drawn(analog, seconds, net):
    """``[draws, targets]`` of a layer whose rows are all the same weights."""
    chips = (sample_chip(analog, seed=3, step=step, seconds=seconds, net=net) for step in range(_CHIPS))
    return torch.cat([chip.weights["weight"] for chip in chips]).double()


@pytest.mark.parametrize("compensation", ["none", "column"])
@pytest.mark.parametrize(
    ("name", "seconds"),
    [("pcm-ibm", 3600.0), ("pcm-ibm", 31536000.0), ("gaussian", 1.0), ("sonos-2022", 86400.0)],
)
def test_mean_and_spread_are_those_of_devices(name, seconds, compensation):
    model = nn.Linear(64, _COPIES, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linspace(-0.4, 0.4, 64))
    analog = convert_to_analog(model, name, compensation=compensation)
    exact, net = drawn(analog, seconds, False), drawn(analog, seconds, True)
    n, spread = len(exact), exact.std(0)
    assert ((net.mean(0) - exact.mean(0)).abs() < 5 * spread * math.sqrt(2 / n)).all()
    kurtosis = ((exact - exact.mean(0)) / spread).pow(4).mean(0)
    # standard error of a standard deviation: sqrt((kurtosis - 1) / 4n), of the normal draw with kurtosis 3
    error = ((kurtosis - 1) / (4 * n) + 2 / (4 * n)).sqrt()
    assert ((net.std(0) / spread - 1).abs() < 5 * error).all()


def test_ideal_devices_hold_the_weights():
    torch.manual_seed(0)
    model = nn.Linear(30, 20, bias=False)
    (weights,) = sample_chip(
        convert_to_analog(model, "ideal"), seed=0, step=0, seconds=1.0, net=True
    ).weights.values()
    torch.testing.assert_close(weights, model.weight.detach(), rtol=1e-5, atol=1e-6)


def test_every_step_and_tile_has_its_own_noise_and_the_same_step_the_same():
    profile = load_profile("pcm-ibm").replace({"tile": {"rows": 16, "columns": 16}})
    model = nn.Linear(32, 16, bias=False)
    nn.init.constant_(model.weight, 0.1)
    analog = convert_to_analog(model, profile)

    def chip(step):
        return sample_chip(analog, seed=0, step=step, seconds=60.0, net=True).weights["weight"]

    assert torch.equal(chip(1), chip(1))
    assert not torch.equal(chip(1), chip(2))
    assert not torch.equal(chip(1)[:, :16], chip(1)[:, 16:])


def test_profile_noise_takes_it_and_says_where_it_cannot():
    model = nn.Linear(8, 4)
    analog = convert_to_analog(model, "pcm-ibm")
    optimizer = ProfileNoise(torch.optim.SGD(model.parameters(), lr=0.0), analog, draw="net", seed=5)
    seen = []

    def closure():
        seen.append(model.weight.detach().clone())
        loss = analog(torch.ones(2, 8)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = sample_chip(analog, seed=5, step=0, seconds=optimizer.drift_time(0), net=True)
    assert torch.equal(seen[0], expected.weights["weight"])
    for change, words in (
        ({"faults": {"stuck_at_g_min": 0.01}}, "faults"),
        ({"mapping": {"cell": "offset-digital"}}, "offset-digital"),
        ({"mapping": {"pairs": [1.0, 0.1]}}, "2 pairs"),
    ):
        other = convert_to_analog(nn.Linear(8, 4), load_profile("gaussian").replace(change))
        with pytest.raises(MethodError, match=f"{words}.*draw='devices'"):
            check_net(other.analog.tile, "fc")
    with pytest.raises(MethodError, match="devices, net, found 'both'"):
        ProfileNoise(torch.optim.SGD(model.parameters(), lr=0.0), analog, draw="both")
