"""How fast a model of the size of ResNet-18 gets onto a chip: weights a second, beside a plain copy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from rich.table import Table
from torch import nn

import analognoise as an


def resnet18_layers() -> nn.Module:
    """The convolutions and the classifier of ResNet-18: 11.2 million weights."""
    shapes = [(3, 64, 7)]
    width = 64
    for out in (64, 128, 256, 512):
        shapes += [(width, out, 3), (out, out, 3), (out, out, 3), (out, out, 3)]
        if out != width:
            shapes.append((width, out, 1))
        width = out
    convolutions = [nn.Conv2d(inputs, outputs, kernel, bias=False) for inputs, outputs, kernel in shapes]
    return nn.Sequential(*convolutions, nn.Linear(512, 1000))


def measure(repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds, weights a second and ratio to the copy, of each step onto the chip."""
    model = resnet18_layers()
    weights = sum(layer.weight.numel() for layer in model)
    analog = an.program_(an.convert_to_analog(model, "pcm-ibm"))
    work: dict[str, Callable[[], object]] = {
        "copy of the weights": lambda: [layer.weight.detach().clone() for layer in model],
        "convert_to_analog": lambda: an.convert_to_analog(model, "pcm-ibm"),
        "program_": lambda: an.program_(analog),
        "drift_to_": lambda: an.drift_to_(analog, "1d"),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for round_number in range(repeats + 1):
        for name, function in work.items():
            start = time.perf_counter()
            function()
            if round_number:
                times[name].append(time.perf_counter() - start)
    copy = statistics.median(times["copy of the weights"])
    return {
        name: {
            "seconds": statistics.median(values),
            "weights_per_second": weights / statistics.median(values),
            "ratio": statistics.median(values) / copy,
        }
        for name, values in times.items()
    }


def table(rows: dict[str, dict[str, float]]) -> Table:
    shown = Table(title="Onto a chip: ResNet-18's 11.2 million weights, pcm-ibm", title_justify="left")
    for heading in ("", "seconds (median)", "million weights / s", "× copy"):
        shown.add_column(heading, justify="right" if heading else "left")
    for name, row in rows.items():
        rate = f"{row['weights_per_second'] / 1e6:,.1f}"
        shown.add_row(name, f"{row['seconds']:.3f}", rate, f"{row['ratio']:.1f}")
    return shown
