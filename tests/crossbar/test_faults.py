"""Faults of a tile: the same at all times, nothing else moved, spare columns in place of the worst."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import analognoise as an
from analognoise.chip_file import _digest_of_file
from analognoise.conversion import sample_chip
from analognoise.crossbar import CrossbarTile, ProgrammedTile
from analognoise.devices import DeviceProfile, load_profile
from analognoise.devices.faults import AT_G_MAX, AT_G_MIN, AT_RANDOM, OPEN, YieldMap
from analognoise.errors import ChipError
from analognoise.seeds import Stream
from analognoise.training import ProfileNoise

TIMES = [0.0, 1.0, 3600.0, 31536000.0]
SOME = {"faults.stuck_at_g_min": 0.02, "faults.stuck_at_g_max": 0.01, "faults.stuck_at_random": 0.03}
STREAM = Stream(1, "", layer="a")


def weights(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def with_map(profile: str, states: np.ndarray, **changes: object) -> DeviceProfile:
    """The profile with a yield map, and a tile of the map's size."""
    fields = {name.replace("__", "."): value for name, value in changes.items()}
    yields = YieldMap.of(states.astype(np.uint8))
    rows, columns = states.shape[-2:]
    columns -= int(fields.get("faults.spare_columns", 0))  # type: ignore[call-overload]
    columns -= fields.get("mapping.cell") == "offset-column"
    tile = {"tile.rows": rows, "tile.columns": columns}
    return load_profile(profile).replace({**tile, **fields, "faults.map": yields})


def stuck(tile: ProgrammedTile) -> Tensor:
    """Which devices of a tile are stuck."""
    shape = tuple(tile.state.shape)
    return torch.zeros(shape, dtype=torch.bool) if tile.faults is None else tile.faults.where(shape)


@pytest.mark.parametrize("name", ["pcm-ibm", "gaussian", "reram-wan-2022", "reram-cmo-2pct", "sonos-2022"])
def test_stuck_devices_stay_and_healthy_ones_are_as_without_faults(name: str) -> None:
    healthy = load_profile(name)
    faulty = healthy.replace(SOME)
    without = CrossbarTile(healthy, "none").program(weights(60, 50), STREAM)
    tile = CrossbarTile(faulty, "none").program(weights(60, 50), STREAM)
    places = stuck(tile)
    n = places.numel()
    assert abs(int(places.sum()) - 0.06 * n) < 4 * math.sqrt(n * 0.06 * 0.94)
    first = tile.programmed[places]
    assert tile.faults is not None
    assert torch.equal(first, tile.faults.conductances)
    ends = torch.tensor([healthy.conductance.g_min, healthy.conductance.g_max])
    assert torch.isin(ends, first).all()
    assert torch.equal(tile.programmed[~places], without.programmed[~places])
    times = [time for time in TIMES if healthy.valid_times[0] <= time <= healthy.valid_times[1]]
    for time in [*times, *reversed(times)]:
        now = tile.conductances_at(time)
        assert torch.equal(now[places], first)
        assert torch.equal(now[~places], without.conductances_at(time)[~places])


def test_faults_are_those_of_the_chip() -> None:
    tile = CrossbarTile(load_profile("gaussian").replace({"faults.stuck_at_g_max": 0.1}))
    one = stuck(tile.program(weights(200, 100), STREAM)).double().flatten()
    assert torch.equal(one, stuck(tile.program(-weights(200, 100), STREAM)).double().flatten())
    for change in ({"chip": 1}, {"tile": 1}, {"layer": "b"}, {"root": 2}):
        other = stuck(tile.program(weights(200, 100), STREAM.at(**change))).double().flatten()
        assert abs(torch.corrcoef(torch.stack((one, other)))[0, 1]) < 4 / math.sqrt(len(one))
    noise = tile.program(torch.zeros(200, 100), STREAM).state.flatten().double()
    assert abs(torch.corrcoef(torch.stack((one, noise)))[0, 1]) < 4 / math.sqrt(len(one))


def test_what_a_stuck_device_makes_of_a_weight() -> None:
    """A zero weight whose G+ is stuck at g_max is the largest weight of its column."""
    states = np.zeros((2, 4, 2), dtype=int)
    states[0, 1, 0] = AT_G_MAX  # G+ of weight [0, 1]
    states[1, 2, 0] = AT_G_MAX  # G- of weight [0, 2]
    states[0, 0, 1] = AT_G_MIN  # G+ of weight [1, 0]
    states[0, 1, 1] = OPEN
    target = torch.tensor([[2.0, 0.0, 0.0, -1.0], [3.0, 3.0, 1.5, -3.0]])
    exact = torch.tensor([[[2.0, 2.0, -2.0, -1.0], [0.0, 0.0, 1.5, -3.0]]])
    tile = CrossbarTile(with_map("ideal", states), "none").program(target, STREAM)
    torch.testing.assert_close(tile.weights_at(1.0), exact)
    # An open device carries less than g_min: the weight is -g_min/(g_max - g_min) of the largest.
    profile = with_map("ideal", states, conductance__g_min=load_profile("ideal").conductance.g_max / 5)
    exact[0, 1, 1] = -0.25 * 3.0
    torch.testing.assert_close(
        CrossbarTile(profile, "none").program(target, STREAM).programmed_weights(), exact
    )


def test_open_lines_carry_no_current() -> None:
    profile = load_profile("pcm-ibm").replace({"faults.dead_rows": 0.3, "faults.dead_columns": 0.2})
    tile = CrossbarTile(profile, "none").program(weights(400, 300), STREAM)
    for time in TIMES:
        silent = tile.conductances_at(time) == 0
        assert silent[stuck(tile)].all()
    rows = stuck(tile).all(dim=2)  # [devices, groups, rows]
    assert torch.equal(rows[0], rows[1])  # one line for both devices
    assert abs(int(rows[0].sum()) - 90) < 4 * math.sqrt(300 * 0.3 * 0.7)
    columns = stuck(tile).all(dim=3)
    assert not torch.equal(columns[0], columns[1])  # a line for each
    assert abs(int(columns.sum()) - 160) < 4 * math.sqrt(800 * 0.2 * 0.8)
    elsewhere = stuck(tile) & ~rows.unsqueeze(2) & ~columns.unsqueeze(3)
    assert not elsewhere.any()


def test_drift_compensation_reads_the_faults_as_a_chip_would() -> None:
    profile = load_profile("pcm-ibm").replace(SOME)
    for kind, dims in (("global", (0, 1, 2)), ("column", (2,))):
        tile = CrossbarTile(profile, kind).program(weights(60, 50), STREAM)
        raw = CrossbarTile(profile, "none").program(weights(60, 50), STREAM)
        before = raw.programmed_weights().abs().mean(dims, keepdim=True)
        now = raw.weights_at(3600.0)
        torch.testing.assert_close(tile.weights_at(3600.0), now * before / now.abs().mean(dims, keepdim=True))


def test_groups_lie_along_the_diagonal_of_a_map_and_the_offset_column_behind_the_weights() -> None:
    states = np.zeros((1, 6, 8), dtype=int)
    states[0, 0, 0], states[0, 2, 2], states[0, 5, 5], states[0, 3, 6] = 1, 2, 1, 2
    states[0, 0, 2], states[0, 3, 1] = 2, 2  # between the groups, where nothing is programmed
    profile = with_map(
        "ideal", states, mapping__cell="offset-column", faults__spare_columns=1, conductance__g_max=10.0
    )
    tile = CrossbarTile(profile, "none").program(torch.ones(3, 2, 2), STREAM)
    assert profile.tile.columns == 6
    # [group, column, row]; column 2 is the offset's. Fault by fault as above; the spare column is healthy and
    # takes the place of a column, in each case one that is at g_min where it should be at g_max.
    healthy = CrossbarTile(profile.replace({"faults": None})).program(torch.ones(3, 2, 2), STREAM)
    wrong = (tile.programmed - healthy.programmed)[0]
    assert {tuple(place) for place in wrong.nonzero().tolist()} == {(2, 1, 1), (1, 2, 1)}


@pytest.mark.parametrize("cell", ["pair", "offset-column", "offset-digital"])
def test_healthy_spare_columns_take_faulty_ones_away(cell: str) -> None:
    """Of F columns with a device at a wrong conductance, spare columns of which H are healthy leave F - H."""
    rate, spares = 0.004, 6
    profile = load_profile("ideal").replace(
        {"mapping.cell": cell, "faults.stuck_at_random": rate, "conductance.g_min": 1.0}
    )
    target = weights(90, 40)

    def faulty(profile: DeviceProfile, chip: int) -> int:
        found = stuck(CrossbarTile(profile).program(target, STREAM.at(chip=chip)))
        return int(found[:, 0, :90].any(dim=2).any(dim=0).sum())

    per_column = 40 * (2 if cell == "pair" else 1)
    healthy, left = 0, 0
    for chip in range(60):
        before = faulty(profile, chip)
        after = faulty(profile.replace({"faults.spare_columns": spares}), chip)
        # The states of the spare columns, seen by themselves.
        shape = (2 if cell == "pair" else 1, 1, spares, 40)
        beside = STREAM.at(chip=chip, process="spare-fault").uniforms(shape) < rate
        good = spares - int(beside.any(dim=3).any(dim=0).sum())
        assert after == max(0, before - good)
        healthy += good
        left += after
    share = (1 - rate) ** per_column
    n = 60 * spares
    assert abs(healthy - n * share) < 4 * math.sqrt(n * share * (1 - share))
    assert left > 0


def test_the_worst_columns_move_and_harmless_faults_stay() -> None:
    states = np.zeros((2, 4, 6), dtype=int)
    states[0, 0, 0] = AT_G_MIN  # where G+ is at g_min: no harm
    states[0, 0, 1] = AT_G_MAX  # off by the whole range
    states[1, 1, 2] = AT_G_MAX  # likewise, in a column of larger weights: the worst
    states[0, 2, 3] = AT_G_MIN  # off by half the range
    states[1, 3, 5] = AT_G_MAX  # in the second spare column: worse there than half the range
    target = torch.tensor(
        [[-1.0, 1.0, 1.0, 1.0], [-1.0, 1.0, 1.0, 1.0], [5.0, 5.0, 5.0, 5.0], [1.0, 1.0, 0.5, 1.0]]
    )
    tile = CrossbarTile(with_map("ideal", states, faults__spare_columns=2)).program(target, STREAM)
    # Column 2 moves to the healthy spare; column 1 would be as bad in the other, column 3 worse.
    places = [tuple(place) for place in stuck(tile).nonzero().tolist()]
    assert places == [(0, 0, 0, 0), (0, 0, 1, 0), (0, 0, 3, 2)]
    # Where the spare's fault does no harm, a column may well move there.
    states[1, 3, 5] = AT_G_MIN
    tile = CrossbarTile(with_map("ideal", states, faults__spare_columns=2)).program(target, STREAM)
    places = [tuple(place) for place in stuck(tile).nonzero().tolist()]
    assert places == [(0, 0, 0, 0), (0, 0, 3, 2), (1, 0, 1, 3)]


def test_a_tile_with_enough_spare_columns_is_as_without_faults() -> None:
    states = np.zeros((2, 40, 40), dtype=int)
    states[0, ::7, :30] = AT_RANDOM
    profile = with_map("pcm-ibm", states, faults__spare_columns=10)
    tile = CrossbarTile(profile).program(weights(10, 40), STREAM)
    assert tile.faults is None
    without = CrossbarTile(load_profile("pcm-ibm")).program(weights(10, 40), STREAM)
    assert torch.equal(tile.weights_at(3600.0), without.weights_at(3600.0))


def test_a_dead_row_stays_dead_in_a_spare_column() -> None:
    changes = {"faults.dead_rows": 0.2, "faults.stuck_at_random": 0.02, "faults.spare_columns": 50}
    profile = load_profile("ideal").replace(changes)
    found = stuck(CrossbarTile(profile).program(weights(20, 100), STREAM))
    alone = profile.replace({"faults.stuck_at_random": 0.0, "faults.spare_columns": 0})
    dead = stuck(CrossbarTile(alone).program(weights(20, 100), STREAM))
    assert dead.any()
    assert (found & dead).sum() == dead.sum()


def test_each_tile_takes_one_of_the_arrays_of_a_map() -> None:
    states = np.zeros((3, 2, 3, 3), dtype=int)
    for array in range(3):
        states[array, 0, 0, array] = AT_G_MAX
    profile = with_map("ideal", states)
    count = 3000
    tiles = [CrossbarTile(profile).program(torch.zeros(3, 3), STREAM.at(chip=i)) for i in range(count)]
    assert all(tile.faults is not None and len(tile.faults.places) == 1 for tile in tiles)
    taken = torch.tensor([int(tile.faults.places) for tile in tiles if tile.faults]) // 3
    numbers = taken.bincount(minlength=3)
    assert (numbers - count / 3).abs().max() < 4 * math.sqrt(count * 2 / 9)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 3)).eval()


def test_chips_are_saved_with_their_faults_and_copied_and_moved(tmp_path: Path) -> None:
    profile = load_profile("pcm-ibm").replace({**SOME, "faults.spare_columns": 1})
    x = torch.randn(5, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    analog = an.convert_to_analog(network(), profile)
    an.drift_to_(an.program_(analog, seed=2), "1d")
    y = analog(x)
    an.save_chip(analog, tmp_path / "chip.safetensors")
    again = an.convert_to_analog(network(), profile)
    an.load_chip(again, tmp_path / "chip.safetensors")
    assert torch.equal(again(x), y)
    assert torch.equal(an.drift_to_(again, "1y")(x), an.drift_to_(analog, "1y")(x))
    an.drift_to_(analog.double(), "1d")
    torch.testing.assert_close(analog(x.double()), y.double())
    with safe_open(tmp_path / "chip.safetensors", "pt") as file:
        metadata, held = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    places, values = held["0/0/faults"], held["0/0/stuck"]
    for wrong in ({"0/0/faults": places + 1000}, {"0/0/stuck": values[1:]}, {"0/0/faults": places.int()}):
        tensors = held | wrong
        metadata["digest"] = _digest_of_file(metadata["layers"], tensors)
        save_file(tensors, tmp_path / "bad", metadata)
        with pytest.raises(ChipError, match="the faults of tile '0/0' are incomplete or not of this layer"):
            an.load_chip(again, tmp_path / "bad")
    healthy = an.convert_to_analog(network(), "pcm-ibm")
    an.drift_to_(an.program_(healthy, seed=2), "1d")
    assert not torch.equal(healthy(x), y)


def test_spare_columns_are_counted_beside_the_devices() -> None:
    plain = an.describe(an.convert_to_analog(network(), "pcm-ibm"))
    profile = load_profile("pcm-ibm").replace({"faults.spare_columns": 3})
    counted = an.describe(an.convert_to_analog(network(), profile))
    assert (plain.devices, plain.spare_devices) == (counted.devices, 0)
    # Both devices of a pair in 36 rows of the convolution's two groups, and in 54 of the linear layer.
    assert counted.spare_devices == 3 * 2 * (36 + 54)
    assert "devices and 540 in spare columns" in str(counted)
    assert counted.to_dict()["layers"][0]["spare_devices"] == 216
    assert counted.layers[1].utilisation == pytest.approx(162 / (512 * 515))


def test_training_gradients_are_those_at_the_faulty_weights_and_stuck_ones_get_none() -> None:
    """Straight through to the digital weights, as for all noise of a chip; every step has other faults."""
    torch.manual_seed(0)
    model = nn.Linear(30, 20, bias=False)
    before = model.weight.detach().clone()
    profile = load_profile("ideal").replace({"faults.stuck_at_g_max": 0.05})
    analog = an.convert_to_analog(model, profile)
    optimizer = ProfileNoise(torch.optim.SGD(analog.parameters(), lr=0.5), analog, seed=4)
    x, seen = torch.randn(8, 30), []

    def closure() -> Tensor:
        optimizer.zero_grad()
        seen.append(analog.weight.detach().clone())
        loss = (analog(x) ** 2).sum()
        loss.backward()
        return loss

    analog.train()
    wrong = sample_chip(analog, seed=4, step=0, seconds=optimizer.drift_time(0)).stuck["weight"]
    optimizer.step(closure)
    torch.testing.assert_close(seen[0][~wrong], before[~wrong])
    gradient = 2 * seen[0] @ x.T @ x
    torch.testing.assert_close(model.weight.detach(), before - 0.5 * gradient.masked_fill(wrong, 0))
    share = 1 - 0.95**2
    assert abs(int(wrong.sum()) - 600 * share) < 4 * math.sqrt(600 * share * (1 - share))
    assert torch.equal(model.weight.detach()[wrong], before[wrong])
    assert (gradient != 0).all()
    optimizer.step(closure)
    again = sample_chip(analog, seed=4, step=1, seconds=optimizer.drift_time(1)).stuck["weight"]
    assert not torch.equal(wrong, again)
