"""How an evaluation grows with parameters, chips, drift times and workers: ``python -m benchmarks.scaling``.

Processor time of one thread, which other load on the machine disturbs little; the median of several. The
exponent is the slope of a line through the logarithms: 1 means that twice as much takes twice as long.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import analognoise as an
from analognoise.devices.draws import Draws
from benchmarks.scaling.workers import by_workers

REPEATS = 5


class Operators(TorchDispatchMode):
    """Counts the operators that run inside; on a GPU most are a kernel each."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def seconds(work: Callable[[], object]) -> float:
    """Median processor time, after one run that does not count."""
    work()
    found = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return statistics.median(found)


def exponent(sizes: list[int], taken: list[float]) -> float:
    """Slope of log(seconds) over log(size)."""
    return float(np.polyfit(np.log(sizes), np.log(taken), 1)[0])


def layer(width: int) -> nn.Module:
    torch.manual_seed(0)
    return an.convert_to_analog(nn.Linear(width, width, bias=False), "pcm-ibm").eval()


def operators_per_tile() -> dict[str, float]:
    """Operators that a GPU would launch for a tile of 512 × 512; a processor draws such a tile in pieces."""
    model, found = layer(2048), {}
    with mock.patch.object(Draws, "come_in_pieces", False):
        for name, work in (("programming", an.program_), ("a drift time", lambda m: an.drift_to_(m, "1h"))):
            with Operators() as counted:
                work(model)
            found[name] = counted.count / 16
    return found


def by_parameters() -> None:
    widths = [512, 1024, 2048, 4096]
    programmed, drifted, drawn, passed = [], [], [], []
    for width in widths:
        model, x = layer(width), torch.randn(256, width)
        programmed.append(seconds(lambda model=model: an.program_(model)))
        drifted.append(seconds(lambda model=model: an.drift_to_(model, "1d")))
        drawn.append(seconds(lambda width=width: torch.randn(2, width, width)))
        with torch.no_grad():
            passed.append(seconds(lambda model=model, x=x: model(x)))
    sizes = [width * width for width in widths]
    print("\nby parameters (one linear layer, pcm-ibm)")
    print(f"{'':24}{'exponent':>9}{'ns per weight, largest':>24}")
    for name, taken in (
        ("programming a chip", programmed),
        ("bringing it to a time", drifted),
        ("two normals per weight", drawn),
        ("a pass of 256 vectors", passed),
    ):
        print(f"{name:24}{exponent(sizes, taken):9.2f}{1e9 * taken[-1] / sizes[-1]:24.1f}")
    for name, count in operators_per_tile().items():
        print(f"operators per tile of 512 × 512, drawn at once as on a GPU, {name}: {count:.0f}")


def by_chips_and_times() -> None:
    generator = torch.Generator().manual_seed(0)
    loader = [(torch.randn(256, 512, generator=generator), torch.zeros(256).long()) for _ in range(2)]
    model = layer(512)
    every = ["1s", "1min", "1h", "6h", "1d", "1w", "1mo", "1y"]

    def evaluate(chips: int, times: int) -> float:
        return seconds(lambda: an.evaluate_drift(model, loader, times=every[:times], chips=chips))

    counts = [2, 4, 8]
    print("\nwhole evaluations (512 × 512 weights, 512 samples)")
    for name, taken in (
        ("chips, 4 times each", [evaluate(count, 4) for count in counts]),
        ("times, 4 chips each", [evaluate(4, count) for count in counts]),
    ):
        start, slope = np.polyfit(counts, taken, 1)[::-1]
        off = np.abs((start + slope * np.array(counts)) / taken - 1).max()
        print(
            f"{name:24}{1000 * slope:8.1f} ms for one more, {1000 * start:8.1f} ms before the first, "
            f"largest deviation from the line {off:.0%}"
        )


def main() -> None:
    torch.set_num_threads(1)
    by_parameters()
    by_chips_and_times()
    by_workers()


if __name__ == "__main__":
    main()
