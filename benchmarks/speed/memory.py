"""Memory from the allocators' own records."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from analognoise.conversion import analog_layers


def most_allocated(work: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors that are live at the most on a device while something runs, beyond the start."""
    gc.collect()  # what goes meanwhile would count as given back
    if device.type != "cpu":
        allocator = torch.get_device_module(device)
        allocator.reset_peak_memory_stats(device)
        before = allocator.memory_allocated(device)
        work()
        return allocator.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    assert record.profiler is not None
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


def state_of(model: nn.Module) -> int:
    """Bytes of a programmed chip: conductances, drift coefficients and weights."""
    found = {}
    for layer in analog_layers(model).values():
        held = [value for tile in layer.analog.tiles or [] for value in vars(tile).values()]
        for tensor in (*held, *layer.analog.weights.values()):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())
