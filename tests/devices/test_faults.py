"""The section [faults]: shares, yield maps, and the draw of stuck devices."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from analognoise.devices import DeviceProfile, load_profile
from analognoise.devices.faults import Faults, stuck_devices
from analognoise.devices.sections import Conductance
from analognoise.errors import ProfileError
from analognoise.seeds import Stream

MINE = """
name = "mine"
[conductance]
unit = "uS"
g_max = 25.0
[tile]
rows = 4
columns = 5
[faults]
spare_columns = 1
map = "yield.npy"
"""
RANGE = Conductance(unit="uS", g_max=10.0, g_min=2.0)


def draw(process: str, shape: tuple[int, ...]) -> Tensor:
    return Stream(3, process).uniforms(shape)


def write(folder: Path, states: np.ndarray | None, text: str = MINE, name: str = "yield.npy") -> Path:
    if states is not None:
        np.save(folder / name, states)
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_numbers_of_stuck_devices_are_binomial_and_their_conductances_right() -> None:
    n = 10_000_000
    shares = {2.0: 0.003, 10.0: 0.0005}
    faults = Faults(stuck_at_g_min=0.003, stuck_at_g_max=0.0005, stuck_at_random=0.02)
    stuck = stuck_devices(faults, RANGE, (n,), draw)
    for value, share in shares.items():
        assert abs(int((stuck == value).sum()) - n * share) < 4 * math.sqrt(n * share * (1 - share))
    between = stuck[~stuck.isnan() & (stuck != 2.0) & (stuck != 10.0)].double()
    assert abs(len(between) - n * 0.02) < 4 * math.sqrt(n * 0.02 * 0.98)
    assert 2 < between.min() < 2.001
    assert 9.999 < between.max() < 10
    assert abs(between.mean() - 6) < 4 * 8 / math.sqrt(12 * len(between))
    # The variance of (x - mean)² of a uniform number on a unit interval is 1/180.
    assert abs(between.var() - 64 / 12) < 4 * 64 / math.sqrt(180 * len(between))


def test_a_larger_share_keeps_the_faults_of_a_smaller_one() -> None:
    few = stuck_devices(Faults(stuck_at_g_min=0.01, stuck_at_g_max=0.02), RANGE, (100_000,), draw)
    many = stuck_devices(Faults(stuck_at_g_min=0.05, stuck_at_g_max=0.1), RANGE, (100_000,), draw)
    assert torch.equal(few[~few.isnan()], many[~few.isnan()])
    assert int((~few.isnan()).sum()) < int((~many.isnan()).sum())


def test_all_and_none() -> None:
    assert stuck_devices(Faults(), RANGE, (10_000,), draw).isnan().all()
    assert (stuck_devices(Faults(stuck_at_g_max=1.0), RANGE, (10_000,), draw) == 10).all()
    assert (stuck_devices(Faults(stuck_at_g_min=1.0), RANGE, (10_000,), draw) == 2).all()
    whole = Faults(stuck_at_g_min=0.3, stuck_at_g_max=0.3, stuck_at_random=0.4)
    assert not stuck_devices(whole, RANGE, (1_000_000,), draw).isnan().any()


def test_shares_are_of_the_devices_that_a_map_says_are_good() -> None:
    states = torch.arange(5, dtype=torch.uint8).repeat(200_000)
    stuck = stuck_devices(Faults(stuck_at_g_max=0.25), RANGE, (1_000_000,), draw, states)
    good, low, high, between, opened = (stuck[states == state] for state in range(5))
    assert abs(int((good == 10).sum()) - 50_000) < 4 * math.sqrt(200_000 * 0.25 * 0.75)
    assert good[good != 10].isnan().all()
    assert (low == 2).all()
    assert (high == 10).all()
    assert (opened == 0).all()
    assert abs(between.double().mean() - 6) < 4 * 8 / math.sqrt(12 * 200_000)


def test_a_map_belongs_to_the_device_and_its_files_name_does_not(tmp_path: Path) -> None:
    states = np.zeros((2, 4, 6), dtype=np.int64)
    states[0, 1, 2], states[1, 3, 5] = 2, 4
    profile = load_profile(write(tmp_path, states))
    faults = profile.faults
    assert faults is not None
    assert faults.map is not None
    assert torch.equal(faults.map.states[0], torch.from_numpy(states))
    other = load_profile(
        write(tmp_path, states.astype(np.uint8), MINE.replace("yield", "other"), "other.npy")
    )
    assert other == profile
    assert other.digest == profile.digest
    again = pickle.loads(pickle.dumps(profile))
    assert torch.equal(again.faults.map.states, faults.map.states)
    assert DeviceProfile.from_dict(profile.as_dict()).digest == profile.digest
    states[0, 0, 0] = 1
    assert load_profile(write(tmp_path, states)).digest != profile.digest


def test_a_map_of_several_arrays(tmp_path: Path) -> None:
    states = np.random.default_rng(0).integers(0, 5, (3, 2, 4, 6))
    faults = load_profile(write(tmp_path, states)).faults
    assert faults is not None
    assert faults.map is not None
    assert torch.equal(faults.map.states, torch.from_numpy(states))


@pytest.mark.parametrize(
    ("states", "wrong"),
    [
        (
            np.zeros((2, 5, 4), int),
            r'mine\.toml, line 11: faults\.map is "yield\.npy", of shape \[2, 5, 4\] but must have the shape '
            r"\[2, 4, 6\]",
        ),
        (
            np.zeros((2, 4, 5), int),
            r"of shape \[2, 4, 5\] but must have the shape \[2, 4, 6\]: .*spare_columns",
        ),
        (np.zeros((7, 1, 4, 6), int), r"of shape \[1, 4, 6\] but must"),
        (np.zeros((4, 6), int), r"an array of int64 of shape \[4, 6\], but must be one of whole numbers"),
        (np.zeros((2, 4, 6)), r"an array of float64 of shape \[2, 4, 6\], but must be one of whole numbers"),
        (np.full((2, 4, 6), 5), r"holds 5 at \[0, 0, 0\] but must hold the states 0 \(good\)"),
        (np.full((2, 4, 6), -1), r"holds -1 at \[0, 0, 0\]"),
        (np.full((2, 4, 6), 256), r"holds 256 at \[0, 0, 0\]"),
        (np.array([None]), r"is no \.npy file of numbers"),
        (None, r"cannot be read beside the profile \(No such file"),
    ],
)
def test_maps_that_do_not_fit(tmp_path: Path, states: np.ndarray | None, wrong: str) -> None:
    with pytest.raises(ProfileError, match=wrong):
        load_profile(write(tmp_path, states))


def test_no_pickle_and_no_text_is_read_as_a_map(tmp_path: Path) -> None:
    path = write(tmp_path, None)
    for content in (pickle.dumps([1]), b"0,0,1\n", b""):
        (tmp_path / "yield.npy").write_bytes(content)
        with pytest.raises(ProfileError, match=r'map is "yield\.npy", which is no \.npy file of numbers'):
            load_profile(path)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"faults.stuck_at_g_min": 1.5}, r"faults\.stuck_at_g_min is 1\.5 but must be at most 1 \(share of"),
        ({"faults.dead_rows": -0.1}, r"faults\.dead_rows is -0\.1 but must be at least 0"),
        (
            {"faults.stuck_at_g_min": 0.5, "faults.stuck_at_random": 0.6},
            r"stuck_at_random is 0\.6 and all shares of stuck devices are 1\.1 together, but",
        ),
        ({"faults.spare_columns": 1.5}, r"faults\.spare_columns is 1\.5 but must be a whole number"),
        ({"faults.stuck_at_gmin": 0.1}, r"unknown field faults\.stuck_at_gmin = 0\.1 \(did you mean"),
        ({"faults.map": "x.npy"}, r'is "x\.npy" but nothing lies beside a profile that is not read from a'),
        (
            {"tile.rows": 4, "tile.columns": 6, "faults.map": {"shape": [1, 2, 4, 6], "runs": "3x0"}},
            r'faults\.map\.runs is "3x0" but must hold states 0 to 4',
        ),
        (
            {"faults.map": {"shape": [1, 2, 4, 6], "runs": "48x0"}},
            r"faults\.map has the shape \[2, 4, 6\] but must have the shape \[2, 512, 512\]",
        ),
    ],
)
def test_wrong_fields(changes: dict, wrong: str) -> None:
    with pytest.raises(ProfileError, match=wrong):
        load_profile("pcm-ibm").replace(changes)
