"""Programmed tiles: one draw for good, drift compensation, both devices of a pair kept."""

import math
import random

import pytest
import torch

from analognoise.crossbar import CrossbarTile
from analognoise.crossbar.tile import levels_kept
from analognoise.devices import physics
from analognoise.devices.catalog import load_profile
from analognoise.errors import ConversionError
from analognoise.seeds import Stream

TIMES = [0.0, 1.0, 3600.0, 86400.0, 2592000.0, 31536000.0]


def weights(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_weights_at_any_time_do_not_depend_on_what_was_asked_before():
    tile = CrossbarTile(load_profile("pcm-ibm")).program(weights(40, 30), Stream(1, "", layer="a"))
    first = {time: tile.weights_at(time) for time in TIMES}
    order = TIMES * 2
    random.Random(0).shuffle(order)
    for time in order:
        assert torch.equal(tile.weights_at(time), first[time])
    again = CrossbarTile(load_profile("pcm-ibm")).program(weights(40, 30), Stream(1, "", layer="a"))
    for time in reversed(TIMES):
        assert torch.equal(again.weights_at(time), first[time])


@pytest.mark.parametrize("compensation", ["global", "column", "none"])
@pytest.mark.parametrize(
    ("name", "together"),
    [("pcm-ibm", 1), ("gaussian", 1), ("ideal", 1), ("reram-cmo-2pct", 0), ("sonos-2022", 0)],
)
def test_several_times_at_once_are_each_of_them_to_the_last_bit(name, together, compensation):
    profile = load_profile(name)
    times = [time for time in TIMES if profile.valid_times[0] <= time <= profile.valid_times[1]]
    with levels_kept(True):
        tile = CrossbarTile(profile, compensation).program(weights(3, 37, 29), Stream(1, "", layer="a"))
    assert (tile._pairs_through(times) is not None) == together
    through = tile.weights_through(times)
    assert len(through) == len(times)
    for time, found in zip(times, through, strict=True):
        assert torch.equal(found, tile.weights_at(time))


@pytest.mark.parametrize("change", [{"chip": 1}, {"tile": 1}, {"layer": "b"}, {"root": 2}])
def test_another_key_gives_an_unrelated_chip(change):
    tile = CrossbarTile(load_profile("pcm-ibm"), "none")
    stream = Stream(1, "", layer="a")
    target = torch.ones(1, 200, 100)
    one = tile.program(target, stream).programmed
    other = tile.program(target, stream.at(**change)).programmed
    n = one[0].numel()
    correlation = torch.corrcoef(torch.stack((one[0].flatten(), other[0].flatten())))[0, 1]
    assert abs(correlation) < 4 / math.sqrt(n)
    assert not torch.equal(one, other)


def test_read_noise_is_drawn_anew_at_each_time_and_alike_for_both_devices_of_a_pair_never():
    profile = load_profile("pcm-ibm")
    tile = CrossbarTile(profile, "none").program(torch.ones(1, 300, 100), Stream(5, ""))
    parts = []
    for time in (0.0, 3600.0):
        drifted = physics.drift(tile.programmed, tile.coefficients, time, profile)
        parts.append(((tile.conductances_at(time) - drifted) / drifted)[0].flatten())
    correlation = torch.corrcoef(torch.stack(parts))[0, 1]
    assert abs(correlation) < 4 / math.sqrt(parts[0].numel())
    noise = tile.programmed - profile.conductance.g_max * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
    assert noise[0].std() > 0.5
    assert (tile.programmed[1] > 0).float().mean() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(30000))


def test_global_compensation_restores_the_mean_read_out_of_the_tile():
    tile = CrossbarTile(load_profile("pcm-ibm"), "global").program(weights(50, 60), Stream(3, ""))
    raw = CrossbarTile(load_profile("pcm-ibm"), "none").program(weights(50, 60), Stream(3, ""))
    before = tile.programmed_weights()
    for time in TIMES:
        now, bare = tile.weights_at(time), raw.weights_at(time)
        assert now.abs().mean().item() == pytest.approx(before.abs().mean().item(), rel=1e-5)
        alpha = before.abs().mean() / bare.abs().mean()
        torch.testing.assert_close(now, bare * alpha, rtol=1e-6, atol=1e-7)
    # without compensation a year costs about half of the conductance
    assert raw.weights_at(TIMES[-1]).abs().mean() < 0.7 * before.abs().mean()


def test_an_all_zero_block_stays_finite_and_zero_without_noise():
    ideal = CrossbarTile(load_profile("ideal")).program(torch.zeros(4, 5), Stream(0, ""))
    assert torch.equal(ideal.weights_at(86400.0), torch.zeros(1, 4, 5))
    noisy = CrossbarTile(load_profile("pcm-ibm")).program(torch.zeros(4, 5), Stream(0, ""))
    assert torch.isfinite(noisy.weights_at(86400.0)).all()


def test_programmed_weights_scatter_by_the_profile_s_noise_on_both_devices():
    """A pair scatters by both of its devices: the one that holds the weight and the resting one."""
    profile = load_profile("gaussian")
    sigma = profile.max_noise_level
    n = 200_000
    tile = CrossbarTile(profile).program(torch.full((1, 1, n), 0.7), Stream(11, ""))
    error = (tile.programmed_weights() - 0.7).flatten() / 0.7
    # the generic noise: independent on G+ and G-, not clamped: sqrt(2) * sigma in units of the largest weight
    assert error.std().item() == pytest.approx(math.sqrt(2) * sigma, rel=4 / math.sqrt(2 * n))
    assert abs(error.mean().item()) < 4 * math.sqrt(2) * sigma / math.sqrt(n)


def test_unknown_compensation():
    with pytest.raises(
        ConversionError, match=r"unknown drift compensation 'globl' \(did you mean 'global'\?\)"
    ):
        CrossbarTile(load_profile("ideal"), "globl")
