"""Splitting of layers and the pairs that hold a weight."""

import pytest
import torch

from analognoise.crossbar.mapping import scales, split, to_devices, to_weights
from analognoise.devices.catalog import load_profile

SHAPES = [
    # groups, columns, channels, kernel, max_rows, max_columns
    (1, 10, 16, 1, 512, 512),
    (1, 1030, 700, 1, 512, 512),
    (1, 64, 64, 9, 512, 512),
    (1, 7, 5, 9, 16, 3),
    (1, 3, 4, 49, 16, 16),
    (4, 6, 5, 9, 64, 64),
    (64, 1, 1, 9, 40, 40),
    (3, 700, 600, 1, 512, 512),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_cover_every_weight_once_and_fit(shape):
    groups, columns, channels, kernel, max_rows, max_columns = shape
    covered = torch.zeros(groups, columns, channels * kernel, dtype=torch.int64)
    for block in split(*shape):
        covered[block.index] += 1
        g, c, r = block.shape
        assert g * c <= max_columns
        assert g * r <= max_rows
        assert block.weights == g * c * r
    assert (covered == 1).all()


def test_rows_split_evenly_and_at_channels():
    # 64 channels of 3 x 3 are 576 rows: two tiles of 32 channels, not 512 and 64 rows.
    blocks = split(1, 64, 64, 9, 512, 512)
    assert [block.rows for block in blocks] == [(0, 288), (288, 576)]
    # 1030 columns in three tiles differ by at most one.
    widths = [block.columns[1] - block.columns[0] for block in split(1, 1030, 8, 1, 512, 512)]
    assert sum(widths) == 1030
    assert len(widths) == 3
    assert max(widths) - min(widths) <= 1


def test_a_kernel_larger_than_a_tile_is_cut_by_rows():
    rows = [block.rows for block in split(1, 2, 2, 49, 40, 40)]
    sizes = [end - start for start, end in rows]
    assert sum(sizes) == 98
    assert max(sizes) - min(sizes) <= 1


def test_groups_share_a_tile_along_its_diagonal():
    # 40 // 9 = 4 depthwise kernels on a tile of 40 x 40: 64 groups need 16 tiles.
    blocks = split(64, 1, 1, 9, 40, 40)
    assert len(blocks) == 16
    assert {block.shape for block in blocks} == {(4, 1, 9)}


@pytest.mark.parametrize("kind", ["column", "tile", "layer"])
@pytest.mark.parametrize("g_min", [0.0, 5.0])
def test_pairs_hold_the_weight(kind, g_min):
    profile = load_profile("ideal")
    profile = profile.replace({"mapping.scale": kind, "conductance.g_min": g_min})
    g_max = profile.conductance.g_max
    weights = torch.randn(2, 6, 11, generator=torch.Generator().manual_seed(1))
    weights[0, 2] = 0.0
    layer_max = torch.tensor(7.0)
    scale = scales(weights, profile, layer_max)
    pairs = to_devices(weights, scale, profile)
    assert pairs.min() >= g_min
    assert pairs.max() <= g_max
    # one device of each pair rests at g_min
    assert (pairs.amin(dim=0) == g_min).all()
    torch.testing.assert_close(to_weights(pairs, scale, profile), weights, rtol=2e-6, atol=2e-6)
    expected = {
        "column": weights.abs().amax(dim=2, keepdim=True),
        "tile": weights.abs().amax().reshape(1, 1, 1),
        "layer": layer_max.reshape(1, 1, 1),
    }[kind] / (g_max - g_min)
    expected = torch.where(expected > 0, expected, torch.ones(()))
    assert torch.equal(scale, expected)
    if kind == "column":
        assert scale[0, 2] == 1.0  # an all-zero column


def test_the_largest_weight_reaches_g_max_and_none_exceeds_it():
    profile = load_profile("pcm-ibm")
    weights = torch.randn(1, 500, 33, generator=torch.Generator().manual_seed(3))
    pairs = to_devices(weights, scales(weights, profile), profile)
    largest = pairs.amax(dim=(0, 3))
    torch.testing.assert_close(
        largest, torch.full_like(largest, profile.conductance.g_max), rtol=2e-7, atol=0
    )
    assert largest.max() <= profile.conductance.g_max
