"""What converting and programming cost in memory, from the allocator's own record."""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import analognoise as an
from analognoise.conversion import analog_layers
from analognoise.crossbar.tile import levels_kept


def allocated(work: Callable[[], object]) -> tuple[int, int]:
    """Bytes of tensors that are live at the most while something runs, and when it ends, beyond the start."""
    gc.collect()  # what goes meanwhile would count as given back
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert events
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most, live


def held(model: nn.Module) -> int:
    """Bytes of the storages in the chip's state, each once."""
    storages = {}
    for layer in analog_layers(model).values():
        tensors = [value for tile in layer.analog.tiles or [] for value in vars(tile).values()]
        for tensor in (*tensors, *layer.analog.weights.values()):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def test_converting_takes_no_memory_and_programming_five_values_per_weight() -> None:
    with torch.device("meta"):
        shape = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(3)))
    model = shape.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.1, 0.1)
    layers = [layer.weight.numel() for layer in model]
    weights = sum(layers)
    own = 4 * sum(parameter.numel() for parameter in model.parameters())
    kept: list[nn.Module] = []
    most, left = allocated(lambda: kept.append(an.convert_to_analog(model, "pcm-ibm")))
    analog = kept[0]
    assert most <= 0.1 * own
    assert left <= 0.001 * own
    assert held(analog) == 0
    most, left = allocated(lambda: an.program_(analog, seed=0))
    # Two conductances, two drift coefficients and the weight; a scale per column of each tile and one
    # scalar more for every tile.
    tiles = 3 * 4 * 4
    assert held(analog) == 4 * (5 * weights + tiles * 512 + tiles)
    assert held(analog) <= 1.001 * 5 * 4 * weights
    assert abs(left - held(analog)) <= 4096
    assert most <= 1.02 * held(analog)  # and what one tile needs in between
    most, left = allocated(lambda: an.drift_to_(analog, "1d"))
    assert most <= 0.15 * 4 * weights
    assert left == 0
    # Programming again replaces a layer's devices when the new ones are there.
    most, left = allocated(lambda: an.program_(analog, seed=1))
    assert most <= 4 * (4 * max(layers) + 0.15 * weights)
    assert left == 0


def test_half_precision_costs_no_more() -> None:
    model = nn.Linear(1024, 1024, bias=False).bfloat16()
    analog = an.convert_to_analog(model, "pcm-ibm")
    an.program_(analog)
    assert held(analog) == 4 * (4 * 1024**2 + 4 * 512 + 4) + 2 * 1024**2


def test_small_tiles_cost_no_more_either() -> None:
    torch.manual_seed(0)
    profile = an.load_profile("pcm-ibm").replace({"tile.rows": 64, "tile.columns": 64})
    analog = an.program_(an.convert_to_analog(nn.Linear(256, 256), profile))
    bound = 4 * (5 * 256**2 + 16 * 64 + 16)
    assert held(analog) == bound
    # An evaluation of a small model keeps more meanwhile, and the numbers are the same.
    an.drift_to_(analog, "1d")
    expected = analog.analog.weights["weight"].clone()
    with levels_kept(True):
        an.program_(analog)
    assert held(analog) == bound + 4 * 2 * 256**2
    an.drift_to_(analog, "1d")
    assert torch.equal(analog.analog.weights["weight"], expected)
    an.program_(analog).eval()
    an.evaluate_drift(analog, [(torch.ones(2, 256), torch.zeros(2).long())], times=["1s"], chips=2)
    assert held(analog) == bound


@pytest.mark.parametrize(("sizes", "batch"), [((2048, 2048), 512), ((784, 512, 256, 10), 512)])
def test_an_evaluation_takes_one_chip_s_state_and_activations_however_many_chips(
    sizes: tuple[int, ...], batch: int
) -> None:
    torch.manual_seed(0)
    layers = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.ReLU())]
    model = nn.Sequential(*layers[:-1]).eval()
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
    batches = [(torch.randn(batch, sizes[0]), torch.zeros(batch, dtype=torch.int64))]

    def evaluated(chips: int) -> int:
        analog = an.convert_to_analog(model, "pcm-ibm")
        return allocated(lambda: an.evaluate_drift(analog, batches, times=[1.0, 60.0], chips=chips))[0]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # pieces of a tile are as large as there are threads for
    try:
        activations = allocated(lambda: torch.no_grad()(model)(batches[0][0]))[0]
        found = [evaluated(chips) for chips in (1, 3)]
    finally:
        torch.set_num_threads(threads)
    # Two conductances, two drift exponents and the weight; scales, buffers and what is compared are small.
    assert max(found) <= 1.005 * (4 * 5 * weights + activations)
