"""Weights on several pairs, on one device less an offset, with outliers clipped; compensation by column."""

import math

import pytest
import torch
from aihwkit.inference.converter.conductance import NPairConductanceConverter

import analognoise as an
from analognoise.crossbar import Block, CrossbarTile
from analognoise.crossbar.mapping import devices_of, full_scale, largest, scales, to_devices, to_weights
from analognoise.devices import load_profile
from analognoise.errors import ProfileError
from analognoise.seeds import Stream


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CELLS = [
    {},
    {"mapping.pairs": [2.0]},
    {"mapping.pairs": [1.0, 1.0]},
    {"mapping.pairs": [1.0, 4.0]},
    {"mapping.pairs": [1.0, 4.0], "mapping.share": "equal"},
    {"mapping.pairs": [1.0, 0.5, 3.0], "mapping.share": "fill"},
    {"mapping.cell": "offset-column"},
    {"mapping.cell": "offset-digital"},
]


@pytest.mark.parametrize("g_min", [0.0, 5.0])
@pytest.mark.parametrize("scale", ["column", "tile", "layer"])
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_every_cell_holds_the_weight_within_its_range(cell, scale, g_min):
    profile = load_profile("ideal").replace({**cell, "mapping.scale": scale, "conductance.g_min": g_min})
    weights = some(2, 6, 11)
    weights[0, 2] = 0.0
    s = scales(weights, profile, weights.abs().amax())
    devices = to_devices(weights, s, profile)
    assert devices.min() >= g_min
    assert devices.max() == pytest.approx(100.0)
    torch.testing.assert_close(to_weights(devices, s, profile), weights, rtol=3e-6, atol=3e-6)
    top = weights.abs().amax(dim=2, keepdim=True) if scale == "column" else weights.abs().amax()
    held = (s * full_scale(profile)).broadcast_to(2, 6, 1)
    wanted = top.broadcast_to(2, 6, 1)
    torch.testing.assert_close(held[wanted > 0], wanted[wanted > 0])
    assert devices.numel() == devices_of(Block((0, 2), (0, 6), (0, 11)), profile)


@pytest.mark.parametrize("pairs", [[1.0, 1.0], [1.0, 4.0], [0.5, 1.0, 2.0]])
def test_filled_pairs_are_those_of_aihwkit(pairs):
    profile = load_profile("pcm-ibm").replace({"mapping.pairs": pairs, "mapping.scale": "tile"})
    weights = some(1, 20, 30)
    converter = NPairConductanceConverter(f_lst=pairs, g_max=25.0)
    expected, _ = converter.convert_to_conductances(weights)
    found = to_devices(weights, scales(weights, profile), profile)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_noise_of_equal_pairs_averages_and_that_of_an_offset_column_is_shared():
    profile = load_profile("gaussian").replace({"mapping.scale": "tile"})
    weights = some(1, 200, 300)
    unit = weights.abs().max().item() * 5.0 / 100.0  # sigma in weight units, of one device

    def noise(**changes):
        changed = profile.replace({f"mapping.{name}": value for name, value in changes.items()})
        tile = CrossbarTile(changed, "none").program(weights, Stream(7, ""))
        return (tile.programmed_weights() - weights)[0]

    def spread(sample, sigma):
        assert sample.std().item() == pytest.approx(sigma, rel=4 / math.sqrt(2 * sample.numel()))

    spread(noise(), math.sqrt(2) * unit)
    spread(noise(pairs=[1.0, 1.0, 1.0, 1.0], share="equal"), math.sqrt(2) * unit / 2)
    # half the range for either sign: each device's noise counts twice
    digital = noise(cell="offset-digital")
    spread(digital, 2 * unit)
    column = noise(cell="offset-column")
    shared = column.mean(dim=0)
    # a row's offset device adds to all 200 of its weights alike
    spread(shared, 2 * unit * math.sqrt(1 + 1 / 200))
    spread(column - shared, 2 * unit * math.sqrt(1 - 1 / 200))
    assert digital.mean(dim=0).std().item() == pytest.approx(
        2 * unit / math.sqrt(200), rel=4 / math.sqrt(600)
    )


def test_outlier_weights_are_clipped_at_the_percentile():
    profile = load_profile("ideal").replace({"mapping.clip_percentile": 90.0})
    weights = torch.arange(1.0, 101.0).view(1, 1, 100)
    weights[..., ::2] *= -1
    assert largest(weights, profile, dim=2).item() == 90.0
    tile = CrossbarTile(profile).program(weights, Stream(0, ""))
    torch.testing.assert_close(tile.programmed_weights(), weights.clamp(-90.0, 90.0), rtol=1e-6, atol=0)
    assert largest(weights, profile.replace({"mapping.clip_percentile": 100.0})).item() == 100.0
    # mostly zeros: a percentile of zero would clip everything
    sparse = torch.zeros(1, 1, 100)
    sparse[..., 3] = 2.0
    assert largest(sparse, profile, dim=2).item() == 2.0
    model = torch.nn.Linear(40, 30)
    layer = profile.replace({"mapping.scale": "layer"})
    chip = an.program_(an.convert_to_analog(model, layer)).eval()
    bound = model.weight.abs().flatten().sort().values[round(0.9 * 1200) - 1].item()
    torch.testing.assert_close(
        chip.weight_now(), model.weight.detach().clamp(-bound, bound), rtol=1e-5, atol=1e-7
    )


def test_a_column_is_compensated_by_itself():
    profile = load_profile("pcm-ibm").replace({"read": None})
    weights = some(1, 8, 400) * torch.logspace(-3, 0, 8).view(1, 8, 1)
    tile = CrossbarTile(profile, "column").program(weights, Stream(2, ""))
    bare = CrossbarTile(profile, "none").program(weights, Stream(2, ""))
    before, after, raw = tile.programmed_weights(), tile.weights_at(1e7), bare.weights_at(1e7)
    torch.testing.assert_close(after.abs().mean(dim=2), before.abs().mean(dim=2), rtol=1e-5, atol=1e-9)
    alpha = before.abs().mean(dim=2, keepdim=True) / raw.abs().mean(dim=2, keepdim=True)
    torch.testing.assert_close(after, raw * alpha, rtol=1e-5, atol=1e-9)
    zero = CrossbarTile(load_profile("ideal"), "column").program(torch.zeros(3, 4), Stream(0, ""))
    assert torch.equal(zero.weights_at(1.0), torch.zeros(1, 3, 4))


def test_describe_counts_the_devices_of_a_cell():
    model = torch.nn.Linear(30, 20)
    for changes, count in [
        ({}, 1200),
        ({"mapping.pairs": [1.0, 2.0]}, 2400),
        ({"mapping.cell": "offset-digital"}, 600),
        ({"mapping.cell": "offset-column"}, 630),
    ]:
        chip = an.program_(an.convert_to_analog(model, load_profile("pcm-ibm").replace(changes)))
        assert (
            an.describe(chip).devices == count == sum(tile.programmed.numel() for tile in chip.analog.tiles)
        )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mapping.pairs": []}, "mapping.pairs is .* at least 1"),
        ({"mapping.pairs": [1.0, 0.0]}, r"mapping.pairs\[1\] is 0 but must be greater than 0"),
        ({"mapping.cell": "offset-column", "mapping.pairs": [1.0]}, "has one device per weight"),
        ({"mapping.cell": "offset"}, "mapping.cell is .*offset-column"),
        ({"mapping.clip_percentile": 0.0}, "mapping.clip_percentile is 0"),
        ({"mapping.clip_percentile": 100.5}, "mapping.clip_percentile is 100.5"),
    ],
)
def test_wrong_mappings(changes, words):
    with pytest.raises(ProfileError, match=words):
        load_profile("pcm-ibm").replace(changes)
