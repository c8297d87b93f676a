"""Timing side by side: everything that is compared takes turns, and medians are taken over the rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from analognoise.allocator import keep_freed_memory
from analognoise.progress import progress_bar

Work = Mapping[str, Callable[[], object]]


CPU = torch.device("cpu")


def clock(device: torch.device = CPU) -> float:
    """Processor time on one thread, which a busy machine changes little; time on the clock on several, and on
    another device, as soon as that has done what it was given.
    """
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def medians(title: str, work: Work, repeats: int, device: torch.device = CPU) -> dict[str, float]:
    """Median seconds of each; a first round warms up and does not count.

    Freed memory is kept, as in a process that evaluates or trains, for all that is compared: otherwise what
    came before, in which order, decides which of them pays for new pages.
    """
    keep_freed_memory()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    with progress_bar(title, repeats + 1) as advance:
        for round_number in range(repeats + 1):
            for name, function in work.items():
                start = clock(device)
                function()
                if round_number:
                    seconds[name].append(clock(device) - start)
            advance()
    return {name: statistics.median(values) for name, values in seconds.items()}
