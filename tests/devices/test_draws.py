"""Numbers of a large tile, drawn and used a piece at a time."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from analognoise.crossbar import CrossbarTile
from analognoise.devices import DeviceProfile, load_profile
from analognoise.devices.draws import Draws
from analognoise.devices.laws import law_of
from analognoise.seeds import Stream

CPU = torch.device("cpu")
LEVELS = {"unit": "uS", "g_max": 25.0}
BY_AGE = {"ages": ["1s", "1h"], "sigma": [1.0, 3.0], "shift": [0.0, -1.0]}
READ = {"t_read": 2.5e-7, "sigma": {"curve": "polynomial", "coefficients": [0.1, 0.3]}}
PROFILES = {
    "pcm-ibm": "pcm-ibm",
    "gaussian": "gaussian@5%",
    "read noise in the unit": {"name": "a", "conductance": LEVELS | {"clamp_to_range": True}, "read": READ},
    "by age": {"name": "b", "conductance": LEVELS, "retention": BY_AGE, "read": READ},
}


def profile(given: str | dict[str, Any]) -> DeviceProfile:
    return load_profile(given) if isinstance(given, str) else DeviceProfile.from_dict(given)


@pytest.mark.parametrize(
    ("shape", "most"), [((2, 1, 64, 1024), 49152), ((2, 1, 1024, 1056), 49152), ((2, 2, 512, 600), 1 << 17)]
)
def test_pieces_are_the_numbers_of_all_at_once(shape: Sequence[int], most: int) -> None:
    draws = Draws(Stream(3, "", layer="a", time_ns=5), shape, CPU)
    found, state = torch.empty(tuple(shape)), torch.arange(torch.Size(shape).numel()).view(tuple(shape))
    start = 0
    for normal, own, none in draws.pieces("read", most, found, state, None):
        assert none is None
        assert own[0] == start
        assert len(own) == len(normal) <= most
        start += len(own)
    assert torch.equal(found, draws("read"))


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [401, 700, 768, 1001])
def test_a_piece_ends_for_every_thread_where_all_at_once_do(threads: int, rows: int) -> None:
    # A thread computes what is left over at the end of its part one by one, and powers round otherwise then.
    law, shape, before = law_of(profile("pcm-ibm")), (2, 1, rows, 400), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        target = torch.rand(shape, generator=torch.Generator().manual_seed(1)).mul_(25)
        draws = Draws(Stream(7, "", layer="a"), shape, CPU)
        state, nu = law.write(target, draws)
        found = law.conductances(state, nu, 60.0, draws)
        assert torch.equal(found, law.conductances(state, nu, 60.0, lambda process: draws(process)))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("given", PROFILES.values(), ids=PROFILES)
def test_laws_compute_in_pieces_what_they_compute_at_once(given: str | dict[str, Any]) -> None:
    # more devices than a stream gives without a new start, and no whole number of pieces
    law, shape = law_of(profile(given)), (2, 1, 1056, 513 * 2)
    target = torch.rand(shape, generator=torch.Generator().manual_seed(1)).mul_(25)
    draws = Draws(Stream(7, "", layer="a"), shape, CPU)

    def at_once(process: str) -> Tensor:
        return draws(process)

    state, nu = law.write(target, draws)
    expected = law.write(target, at_once)
    assert torch.equal(state, expected[0])
    assert (nu is None) == (expected[1] is None)
    assert nu is None or expected[1] is None or torch.equal(nu, expected[1])
    before = state.clone()
    for seconds in (1.0, 3600.0) if law.profile.retention else (0.0, 3600.0):
        found = law.conductances(state, nu, seconds, draws)
        assert torch.equal(found, law.conductances(state, nu, seconds, at_once))
    assert torch.equal(state, before)


@pytest.mark.parametrize("given", [*PROFILES.values(), "ideal"], ids=[*PROFILES, "ideal"])
def test_a_reading_leaves_the_state_of_its_tile_as_it_was(given: str | dict[str, Any]) -> None:
    weights = torch.randn(64, 1024, generator=torch.Generator().manual_seed(2))
    tile = CrossbarTile(profile(given)).program(weights, Stream(1, "", layer="a"))
    state, devices = tile.state.clone(), tile.conductances_at(60.0)
    net = (devices[0] - devices[1]) * tile.scale
    expected = net * (tile.reference / net.abs().mean())
    for _ in range(2):
        assert torch.equal(tile.weights_at(60.0), expected)
        assert torch.equal(tile.state, state)
