"""What a periphery costs: drift evaluations of an MLP and of a ResNet-20, as ratios to the same without one.

Converters are held against a limit. Output noise is compared with drawing and adding as many normals (torch's
own, with hooks on the layers of the plain model), read noise of products with one further pass of the plain
model; both by the time that they add to a pass. All take turns, and the medians of processor time (one
thread) are compared: a busy machine changes it less than time on the clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

import analognoise as an
from analognoise.progress import progress_bar
from benchmarks.speed.workloads import resnet20

LIMIT = 1.25  # times the evaluation without converters
TIMES = ("1s", "1d", "1y")
_8BIT = {"bits": 8, "range": "fixed"}
PERIPHERIES: dict[str, dict[str, Any] | None] = {
    "none": None,
    "converters": {"dac": {**_8BIT, "bound": 3.0}, "adc": {**_8BIT, "bound": 10.0}},
    "converters, dynamic": {"dac": {"bits": 8}, "adc": {**_8BIT, "bound": 10.0}},
    "converters, calibrated": {side: {"bits": 8, "range": "calibrated"} for side in ("dac", "adc")},
    "output noise": {"out_noise": 0.04},
    "read noise": {"w_noise": {"curve": "power", "coefficient": 0.0175, "exponent": 0.5}},
    "standard-8bit": {"preset": "standard-8bit"},
}
CONVERTERS = ("converters", "converters, calibrated")


def mlp() -> nn.Module:
    hidden = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(512, 10))


# Network, shape of a sample, samples, samples in a batch.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int]] = {
    "MLP 784-512-512-10": (mlp, (1, 28, 28), 1024, 512),
    "ResNet-20": (resnet20, (3, 32, 32), 128, 128),
}


@torch.no_grad()
def one_pass(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    for x, _ in batches:
        model(x)


def one_gradient(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()


def with_normals(model: nn.Module, rows: int | None = None) -> nn.Module:
    """The plain model, with as many normals drawn and added as its layers have outputs; on tiles of so many
    rows, where each part of a matrix along the rows has its own noise, as those have together.
    """

    def hook(parts: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            for _ in range(parts):
                output = output.add_(torch.empty_like(output).normal_(), alpha=0.04)
            return output

        return add

    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            along = layer.weight[0].numel()
            layer.register_forward_hook(hook(-(-along // (rows or along))))
    return model


def measure_one(name: str, repeats: int) -> dict[str, dict[str, float]]:
    make, shape, samples, size = NETWORKS[name]
    torch.manual_seed(0)
    model = make().eval()
    batches = [(torch.randn(size, *shape), torch.randint(0, 10, (size,))) for _ in range(samples // size)]
    work: dict[str, Callable[[], object]] = {}
    training = ExitStack()
    for label, periphery in PERIPHERIES.items():
        profile = an.load_profile("pcm-ibm").replace({"periphery": periphery})
        analog = an.convert_to_analog(model, profile)
        if label in ("converters, calibrated", "standard-8bit"):
            an.calibrate_(analog, batches)
        chip = an.drift_to_(an.program_(an.convert_to_analog(model, profile).eval()), "1d")
        an.set_ranges_(chip, an.ranges(analog))
        work[label] = lambda analog=analog: an.evaluate_drift(analog, batches, times=TIMES, chips=2)
        work[f"pass: {label}"] = lambda chip=chip: one_pass(chip, batches)
        student = an.convert_to_analog(make(), profile).train()
        if periphery is not None:
            an.set_ranges_(student, an.ranges(analog))
            training.enter_context(an.periphery_in_training(student, seed=0))
        work[f"step: {label}"] = lambda student=student: one_gradient(student, batches[0])
    noisy = with_normals(an.convert_to_digital(an.convert_to_analog(make().eval(), "ideal")))
    work["pass: normals"] = lambda: one_pass(noisy, batches)
    times: dict[str, list[float]] = {label: [] for label in work}
    with training, progress_bar(name, repeats + 1) as advance:
        for round_number in range(repeats + 1):
            for label, function in work.items():
                start = time.process_time()
                function()
                if round_number:
                    times[label].append(time.process_time() - start)
            advance()
    return figures({label: statistics.median(values) for label, values in times.items()})


def figures(seconds: dict[str, float]) -> dict[str, dict[str, float]]:
    """Ratios of evaluations, and what noise adds to a pass in units of what it is compared with."""
    plain = seconds["pass: none"]
    found = {label: {"ratio": seconds[label] / seconds["none"]} for label in PERIPHERIES}
    normals = seconds["pass: normals"] - plain
    found["output noise"]["of normals"] = (seconds["pass: output noise"] - plain) / normals
    further = seconds["pass: read noise"] - seconds["pass: output noise"]
    found["read noise"]["of products"] = further / plain
    for label in PERIPHERIES:
        found[label]["pass"] = seconds[f"pass: {label}"] / plain
        found[label]["step"] = seconds[f"step: {label}"] / seconds["step: none"]
    return found


def measure(repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """By network and periphery: ratio of the evaluation and of a pass, and what noise adds."""
    return {name: measure_one(name, repeats) for name in NETWORKS}


def slowest_converters(rows: dict[str, dict[str, dict[str, float]]]) -> float:
    """The largest ratio of an evaluation with converters alone."""
    return max(found[label]["ratio"] for found in rows.values() for label in CONVERTERS)


def table(rows: dict[str, dict[str, dict[str, float]]]) -> Table:
    shown = Table(title=f"Periphery: 2 chips × {len(TIMES)} times, pcm-ibm", title_justify="left")
    for heading in ("", "", "evaluation", "pass", "gradients", "added, in …"):
        shown.add_column(heading, justify="right" if heading else "left")
    for name, found in rows.items():
        for label, row in found.items():
            added = ""
            if "of normals" in row:
                added = f"{row['of normals']:.2f} drawn and added normals"
            elif "of products" in row:
                added = f"{row['of products']:.2f} further passes"
            shown.add_row(
                name, label, f"{row['ratio']:.2f} ×", f"{row['pass']:.2f} ×", f"{row['step']:.2f} ×", added
            )
    return shown
