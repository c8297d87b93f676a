"""What converting and programming cost in memory, from the allocator's own record."""

from __future__ import annotations

import gc
from collections.abc import Callable

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


def test_an_evaluation_takes_one_chips_state_however_many_chips() -> None:
    torch.manual_seed(0)
    model = nn.Linear(2048, 2048, bias=False)
    weights = 4 * model.weight.numel()
    batches = [(torch.randn(8, 2048), torch.zeros(8, dtype=torch.int64))]

    def evaluated(chips: int) -> int:
        analog = an.convert_to_analog(model, "pcm-ibm")
        return allocated(lambda: an.evaluate_drift(analog, batches, times=[1.0, 60.0], chips=chips))[0]

    one = evaluated(1)
    # Five values per weight are the chip; the rest is what one tile needs while it is computed.
    assert one <= 5.8 * weights
    # A tile's values that are freed late count twice; a chip would be five.
    assert evaluated(3) <= one + 0.5 * weights


class Inputs(nn.Module):
    """Notes where its inputs lie, and may write into them."""

    def __init__(self, writes: bool) -> None:
        super().__init__()
        self.linear, self.writes, self.places = nn.Linear(6, 3), writes, list[int]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.places.append(x.data_ptr())
        found = self.linear(x)
        if self.writes:
            x.zero_()
        return found


def test_batches_are_copied_only_for_a_model_that_writes_into_them() -> None:
    values = {}
    for writes in (False, True):
        torch.manual_seed(0)
        model = an.convert_to_analog(Inputs(writes).eval(), "pcm-ibm")
        data = [(torch.randn(8, 6), torch.randint(3, (8,)))]
        report = an.evaluate_drift(model, data, times=["1s", "1d"], chips=3, metric="loss")
        values[writes] = report.frame["value"].tolist()
        probed_and_measured = model.places[-8:]  # the other five rows, and before them probing
        if not writes:
            assert len(set(probed_and_measured)) == 1
    assert values[True] == values[False]
