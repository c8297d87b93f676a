"""Whole chips against the formulas: what is drawn, from what, and what is independent of what.

The physics of one device is tested elsewhere; here a fault in the wiring (the wrong target, a key too few)
must show.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import analognoise as an

CHIPS = 400
X = 0.6  # relative conductance of every weight but the largest of its column


@pytest.fixture(scope="module")
def chips():
    """G_prog, nu and conductances at a day of two tiles on many chips: [chips, tiles, devices]."""
    layer = nn.Linear(80, 6, bias=False)
    with torch.no_grad():
        layer.weight.fill_(X)
        layer.weight[:, ::40] = 1.0  # the column's largest weight on each of the two tiles
    profile = an.load_profile("pcm-ibm").replace({"tile.rows": 40})
    analog = an.convert_to_analog(layer, profile)
    found = {"programmed": [], "nu": [], "day": [], "hour": []}
    for chip in range(CHIPS):
        an.program_(analog, seed=3, chip=chip)
        tiles = analog.analog.tiles
        assert len(tiles) == 2
        found["programmed"].append([tile.programmed[0, 0, :, 1:].flatten() for tile in tiles])
        found["nu"].append([tile.coefficients[0, 0, :, 1:].flatten() for tile in tiles])
        for name, time in (("day", 86400.0), ("hour", 3600.0)):
            now = [tile.conductances_at(time)[0, 0, :, 1:].flatten() for tile in tiles]
            found[name].append(now)
    stacked = {name: torch.stack([torch.stack(row) for row in rows]) for name, rows in found.items()}
    return {name: tensor.double().numpy() for name, tensor in stacked.items()}


def correlation(a, b):
    """Pearson correlation and the number of standard errors it is from zero."""
    r = np.corrcoef(a.ravel(), b.ravel())[0, 1]
    return abs(r) * math.sqrt(a.size)


def read_noise(chips, time, seconds):
    """The standard normals behind the read noise of each device."""
    t = seconds + 20.0
    drifted = chips["programmed"] * (t / 20.0) ** -chips["nu"]
    q = np.minimum(0.0088 / (chips["programmed"] / 25.0) ** 0.65, 0.2)
    return (chips[time] / drifted - 1) / (q * math.sqrt(math.log((t + 250e-9) / 500e-9)))


def test_programming_is_that_of_the_target(chips):
    sigma = 0.26348 + 1.9650 * X - 1.1731 * X**2
    z = (chips["programmed"] - 25.0 * X) / sigma
    n = z.size
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.std() - 1) < 4 / math.sqrt(2 * n)


def test_drift_coefficients_are_those_of_the_target_not_of_what_was_written(chips):
    mean, std = 0.049, 0.008  # both at their clips at x = 0.6
    z = (chips["nu"] - mean) / std
    n = z.size
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.std() - 1) < 4 / math.sqrt(2 * n)
    assert correlation(chips["nu"], chips["programmed"]) < 4


def test_drift_of_small_targets_follows_the_target_s_curve():
    """Where nu depends on the conductance, that of the target counts: a folded normal, at x = 0.1."""
    layer = nn.Linear(10_000, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(0.1)
        layer.weight[0, ::500] = 1.0  # the first of the 500 rows of each tile
    tiles = an.program_(an.convert_to_analog(layer, "pcm-ibm"), seed=1).analog.tiles
    assert [tile.coefficients.shape[-1] for tile in tiles] == [500] * 20
    nu = torch.cat([tile.coefficients[0, 0, 0, 1:] for tile in tiles]).double().numpy()
    mu, s = -0.0155 * math.log(0.1) + 0.0244, -0.0125 * math.log(0.1) - 0.0059
    folded = stats.foldnorm(mu / s, scale=s)
    assert abs(nu.mean() - folded.mean()) < 4 * folded.std() / math.sqrt(len(nu))
    assert abs(nu.std() - folded.std()) < 4 * folded.std() / math.sqrt(2 * len(nu))


def test_read_noise_is_standard_normal(chips):
    z = read_noise(chips, "day", 86400.0)
    n = z.size
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.std() - 1) < 4 / math.sqrt(2 * n)


@pytest.mark.parametrize("what", ["programmed", "nu", "read"])
def test_chips_and_tiles_are_independent(chips, what):
    values = read_noise(chips, "day", 86400.0) if what == "read" else chips[what]
    for lag in (1, 2, 3, 7, 64, 256):
        assert correlation(values[lag:], values[:-lag]) < 4, lag
    assert correlation(values[:, 0], values[:, 1]) < 4


def test_processes_and_times_are_independent(chips):
    day, hour = read_noise(chips, "day", 86400.0), read_noise(chips, "hour", 3600.0)
    assert correlation(day, hour) < 4
    assert correlation(day, chips["programmed"]) < 4
    assert correlation(day, chips["nu"]) < 4


def test_right_after_programming_there_is_no_read_noise():
    layer = nn.Linear(50, 6)
    analog = an.program_(an.convert_to_analog(layer, "pcm-ibm"))
    tile = analog.analog.tiles[0]
    exact = (tile.programmed[0] - tile.programmed[1]) * tile.scale
    assert torch.equal(analog.analog.weights["weight"], exact[0])
    an.drift_to_(analog, 0.0)
    assert not torch.equal(analog.analog.weights["weight"], exact[0])


def test_scale_by_layer_takes_the_largest_weight_of_the_whole_layer():
    layer = nn.Linear(80, 6, bias=False)
    profile = an.load_profile("ideal").replace({"mapping.scale": "layer", "tile.rows": 40, "tile.columns": 3})
    tiles = an.program_(an.convert_to_analog(layer, profile)).analog.tiles
    assert len(tiles) == 4
    span = profile.conductance.g_max - profile.conductance.g_min
    for tile in tiles:
        assert tile.scale.item() == pytest.approx(layer.weight.abs().max().item() / span, rel=1e-6)


def test_the_papers_noise_of_gaussian_is_that_of_the_layer_s_largest_weight():
    """sqrt(2) · sigma · W_max for every weight, also in columns of small weights (arXiv 2205.01707)."""
    layer = nn.Linear(3000, 4, bias=False)
    with torch.no_grad():
        layer.weight.mul_(torch.tensor([[1.0], [0.1], [0.01], [0.0]]))
    analog = an.program_(an.convert_to_analog(layer, "gaussian@10%"), seed=2)
    error = (analog.analog.weights["weight"] - layer.weight).detach().double()
    expected = math.sqrt(2) * 0.1 * layer.weight.abs().max().item()
    for column in error:
        assert column.std().item() == pytest.approx(expected, rel=4 / math.sqrt(2 * 3000))
