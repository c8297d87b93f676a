"""Small tiles that are computed together have the numbers that each has by itself."""

from __future__ import annotations

import pickle

import pytest
import torch

import analognoise as an
from analognoise.crossbar import CrossbarTile, Place, Request, program_all, read_all, together
from analognoise.errors import NotProgrammedError
from analognoise.seeds import Stream

# Whole vectors of devices, a rest at the end, several groups, more than one set of operations holds.
SHAPES = [(1, 16, 27), (1, 10, 64), (1, 3, 7), (4, 16, 18), *[(1, 128, 200)] * 4, (1, 300, 400), (1, 64, 64)]
NOISY = an.load_profile("pcm-ibm").replace({"periphery": {"w_noise": 0.02}})
FAULTY = an.load_profile("pcm-ibm").replace({"faults": {"stuck_at_g_min": 0.1}})


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def requests(profiles, compensation="global"):
    draw = torch.Generator().manual_seed(3)
    for number, shape in enumerate(SHAPES):
        tile = CrossbarTile(profiles[number % len(profiles)], compensation)
        yield Request(tile, torch.randn(shape, generator=draw), Stream(1, "", "layer", tile=number), None)


def same(one, other):
    return (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize("names", [[name] for name in an.list_profiles()] + [["pcm-ibm", "ideal"], [NOISY]])
@pytest.mark.parametrize("compensation", ["global", "column", "none"])
@torch.no_grad()
def test_together_as_each_by_itself(names, compensation):
    profiles = [an.load_profile(name) for name in names]
    alone = [request.tile.program(*request[1:4]) for request in requests(profiles, compensation)]
    together = list(program_all(requests(profiles, compensation)))
    for one, (other, reading) in zip(alone, together, strict=True):
        assert torch.equal(one.state, other.state)
        assert torch.equal(one.scale, other.scale)
        assert same(one.coefficients, other.coefficients)
        assert torch.equal(one.reference, other.reference)
        assert all(map(same, one.reading(None), reading or other.reading(None)))
        sent = pickle.loads(pickle.dumps(other))  # without the memory of the others
        for held in (sent.state, sent.scale, sent.reference):
            assert held.untyped_storage().nbytes() == held.nbytes
        assert torch.equal(sent.state, other.state)
    first, last = profiles[0].valid_times
    for seconds in (first, min(last, 3600.0)):
        found = list(read_all([Place(tile) for tile, _ in together], seconds))
        assert any(reading is not None for reading in found)
        for tile, reading in zip(alone, found, strict=True):
            assert reading is None or all(map(same, reading, tile.reading(seconds)))


@torch.no_grad()
def test_how_many_are_taken_together_changes_nothing(monkeypatch):
    profile = an.load_profile("pcm-ibm")
    tiles = [tile for tile, _ in program_all(requests([profile]))]
    drifted = list(read_all(map(Place, tiles), 3600.0))
    for mapped, in_cache in ((1 << 16, 1 << 17), (1 << 20, 1 << 12), (1 << 12, 1 << 12)):
        monkeypatch.setattr(together, "_TOGETHER", mapped)
        monkeypatch.setattr(together, "_IN_CACHE", in_cache)
        others = [tile for tile, _ in program_all(requests([profile]))]
        assert all(torch.equal(one.state, other.state) for one, other in zip(tiles, others, strict=True))
        for one, other in zip(drifted, read_all(map(Place, others), 3600.0), strict=True):
            assert (one is None and other is None) or all(map(same, one, other))


@torch.no_grad()
def test_what_has_faults_or_ends_within_a_vector_stays_alone():
    tiles = [tile for tile, _ in program_all(requests([FAULTY]))]
    faulty = [tile for tile in tiles if tile.faults is not None]
    assert faulty
    assert list(read_all(map(Place, faulty), 1.0)) == [None] * len(faulty)
    plain = [tile for tile, _ in program_all(requests([an.load_profile("pcm-ibm")]))]
    apart = [
        shape for shape, found in zip(SHAPES, read_all(map(Place, plain), 1.0), strict=True) if found is None
    ]
    assert apart == [(1, 3, 7), (1, 300, 400)]


@pytest.mark.parametrize("threads", [2, 3, 5])
@torch.no_grad()
def test_threads_split_no_tile_otherwise_than_by_itself(threads):
    torch.set_num_threads(threads)
    profiles = [an.load_profile("pcm-ibm")]
    found = [tile for tile, _ in program_all(requests(profiles))]
    alone = [request.tile.program(*request[1:4]) for request in requests(profiles)]
    for one, other in zip(found, alone, strict=True):
        assert torch.equal(one.state, other.state)
        assert same(one.coefficients, other.coefficients)
    for tile, reading in zip(found, read_all(map(Place, found), 3600.0), strict=True):
        assert reading is None or all(map(same, reading, tile.reading(3600.0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("compensation", ["global", "column"])
@torch.no_grad()
def test_layers_compute_with_what_each_tile_reads_by_itself(dtype, compensation):
    torch.manual_seed(2)
    gates = torch.nn.LSTM(16, 32)
    model = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3, groups=2), torch.nn.Linear(640, 32), gates).to(
        dtype
    )
    profile = an.load_profile("pcm-ibm").replace({"tile": {"rows": 512, "columns": 100}})
    analog = an.convert_to_analog(model, profile, compensation=compensation).eval()
    for time, seconds in ((None, None), ("1h", 3600.0)):
        an.program_(analog, seed=4)
        if time is not None:
            an.drift_to_(analog, time)
        for layer in (analog[0], analog[1], analog[2]):
            alone = layer.assemble(layer.analog.tiles, seconds, layer.empty_weights())
            assert all(torch.equal(alone[name], now) for name, now in layer.analog.weights.items())
    assert [len(layer.analog.tiles) for layer in analog] == [1, 2, 4]


def test_a_programming_that_fails_leaves_nothing_to_compute_with(monkeypatch):
    analog = an.convert_to_analog(torch.nn.Linear(32, 16), "pcm-ibm").eval()

    def fails(*args, **kwargs):
        raise RuntimeError("no numbers")

    with monkeypatch.context() as patched:
        patched.setattr(together, "read_outs", fails)
        with pytest.raises(RuntimeError, match="no numbers"):
            an.program_(analog)
    with pytest.raises(NotProgrammedError):
        analog(torch.ones(1, 32))
    found = an.program_(analog.double()).weight_now()
    assert found.dtype == torch.float64
    assert torch.equal(found[None], analog.analog.tiles[0].programmed_weights().double())
