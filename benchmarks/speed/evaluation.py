"""What a drift evaluation costs, as a ratio to plain torch.

A drift evaluation of the demo network (programming, drift, read noise, compensation, metric and all) is timed
against the same number of plain digital passes over the same data with the same metric, with aihwkit's torch
tile beside it. The three take turns, so that a busy machine slows all of them; the medians are compared.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from rich.table import Table
from torch import nn

import analognoise as an
from analognoise.progress import progress_bar
from analognoise.tasks import get_task
from analognoise.units import parse_times

TIMES = ("1s", "1h", "1d", "1mo", "1y")
LIMIT = 1.5  # times the plain passes


@torch.inference_mode()
def plain_passes(model: nn.Module, batches: list, passes: int) -> float:
    accuracy = 0.0
    for _ in range(passes):
        correct = torch.zeros((), dtype=torch.int64)
        count = 0
        for x, y in batches:
            correct += (model(x).argmax(1) == y).sum()
            count += len(y)
        accuracy = correct.item() / count
    return accuracy


def ours(model: nn.Module, data: object, chips: int) -> float:
    analog = an.convert_to_analog(model, "pcm-ibm")
    return float(an.evaluate_drift(analog, data, times=TIMES, chips=chips).frame["value"].mean())


def aihwkit_torch_tile(model: nn.Module, batches: list, chips: int) -> float:
    """The same work on aihwkit's torch tile, with its PCM noise model and global drift compensation."""
    from aihwkit.inference import GlobalDriftCompensation
    from aihwkit.inference.noise.pcm import PCMLikeNoiseModel
    from aihwkit.nn.conversion import convert_to_analog
    from aihwkit.simulator.configs import TorchInferenceRPUConfig

    config = TorchInferenceRPUConfig()
    config.forward.is_perfect = True  # no converters, no output noise: weight noise alone, as in ours
    config.noise_model = PCMLikeNoiseModel(g_max=25.0)
    config.drift_compensation = GlobalDriftCompensation()
    analog = convert_to_analog(model, config).eval()
    accuracies = []
    with torch.no_grad():
        for _ in range(chips):
            analog.program_analog_weights()
            for seconds in parse_times(TIMES):
                analog.drift_analog_weights(seconds)
                accuracies.append(plain_passes(analog, batches, 1))
    return statistics.fmean(accuracies)


def timed(work: Callable[[], float]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(chips: int, repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds of each, and as a ratio to the plain passes."""
    task = get_task("digits")
    model = task.build(0).eval()
    batches = list(task.test)
    passes = chips * len(TIMES)
    work: dict[str, Callable[[], float]] = {
        "plain digital passes": lambda: plain_passes(model, batches, passes),
        "analognoise": lambda: ours(model, task.test, chips),
    }
    try:
        import aihwkit.simulator.configs  # noqa: F401

        work["aihwkit, torch tile"] = lambda: aihwkit_torch_tile(model, batches, chips)
    except ImportError as error:
        print(f"aihwkit is left out: {error}", file=sys.stderr)
    times: dict[str, list[float]] = {name: [] for name in work}
    with progress_bar("drift evaluations", repeats + 1) as advance:
        for round_number in range(repeats + 1):
            for name, function in work.items():
                seconds = timed(function)
                if round_number:  # the first round warms up
                    times[name].append(seconds)
            advance()
    plain = statistics.median(times["plain digital passes"])
    return {
        name: {
            "seconds": statistics.median(values),
            "ratio": statistics.median(values) / plain,
            "lowest": min(values) / plain,
            "highest": max(values) / plain,
        }
        for name, values in times.items()
    }


def table(rows: dict[str, dict[str, float]], chips: int) -> Table:
    shown = Table(
        title=f"Drift evaluation, {chips} chips × {len(TIMES)} times, 360 images", title_justify="left"
    )
    for heading in ("", "seconds (median)", "× plain", "range"):
        shown.add_column(heading, justify="right" if heading else "left")
    for name, row in rows.items():
        span = f"{row['lowest']:.2f}–{row['highest']:.2f}"
        shown.add_row(name, f"{row['seconds']:.3f}", f"{row['ratio']:.2f}", span)
    return shown
