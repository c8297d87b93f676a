"""Small tiles that are computed together have the numbers that each has by itself."""

from __future__ import annotations

import pytest
import torch

import analognoise as an
from analognoise.crossbar import CrossbarTile, Request, conductances_all, program_all
from analognoise.seeds import Stream

# Whole vectors of devices, a rest at the end, several groups, more than one set of operations holds.
SHAPES = [(1, 16, 27), (1, 10, 64), (1, 3, 7), (4, 16, 18), *[(1, 128, 200)] * 4, (1, 300, 400), (1, 64, 64)]
FAULTY = an.load_profile("pcm-ibm").replace({"faults": {"stuck_at_g_min": 0.1}})


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def requests(profiles):
    draw = torch.Generator().manual_seed(3)
    for number, shape in enumerate(SHAPES):
        tile = CrossbarTile(profiles[number % len(profiles)])
        yield Request(tile, torch.randn(shape, generator=draw), Stream(1, "", "layer", tile=number), None)


@pytest.mark.parametrize("names", [[name] for name in an.list_profiles()] + [["pcm-ibm", "ideal"]])
@torch.no_grad()
def test_together_as_each_by_itself(names):
    profiles = [an.load_profile(name) for name in names]
    alone = [request.tile.program(*request[1:]) for request in requests(profiles)]
    together = list(program_all(requests(profiles)))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.state, other.state)
        assert (one.coefficients is None) == (other.coefficients is None)
        if one.coefficients is not None:
            assert torch.equal(one.coefficients, other.coefficients)
        assert torch.equal(one.reference, other.reference)
        assert other.state.untyped_storage().nbytes() == other.state.nbytes  # as a file needs it
    first, last = profiles[0].valid_times
    for seconds in (first, min(last, 3600.0)):
        found = list(conductances_all(together, seconds))
        assert any(devices is not None for devices in found)
        for tile, devices in zip(alone, found, strict=True):
            if devices is not None:
                assert torch.equal(devices, tile.conductances_at(seconds))


@torch.no_grad()
def test_what_has_faults_or_ends_within_a_vector_stays_alone():
    tiles = list(program_all(requests([FAULTY])))
    assert any(tile.faults is not None for tile in tiles)
    assert list(conductances_all([t for t in tiles if t.faults is not None], 1.0)).count(None) == sum(
        tile.faults is not None for tile in tiles
    )
    plain = list(program_all(requests([an.load_profile("pcm-ibm")])))
    apart = [
        shape for shape, found in zip(SHAPES, conductances_all(plain, 1.0), strict=True) if found is None
    ]
    assert apart == [(1, 3, 7), (1, 300, 400)]
