"""Speed as ratios to plain torch in one run: ``make bench``, or ``python -m benchmarks.speed --help``.

A drift evaluation of the demo network (programming, drift, read noise, compensation, metric and all) is timed
against the same number of plain digital passes over the same data with the same metric, with aihwkit's torch
tile beside it. The three take turns, so that a busy machine slows all of them; the medians are compared.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

import analognoise as an
from analognoise.progress import progress_bar
from analognoise.tasks import get_task
from analognoise.units import parse_times

TIMES = ("1s", "1h", "1d", "1mo", "1y")
LIMIT = 1.5


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


def main(
    chips: Annotated[int, typer.Option(help="Chips of the drift evaluation.")] = 25,
    repeats: Annotated[int, typer.Option(help="Rounds; medians are taken over them.")] = 7,
    threads: Annotated[int, typer.Option(help="Torch threads.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Time the demo network's drift evaluation; exit with 1 when it costs more than its limit."""
    torch.set_num_threads(threads)
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
    with progress_bar("rounds", repeats + 1) as advance:
        for round_number in range(repeats + 1):
            for name, function in work.items():
                seconds = timed(function)
                if round_number:  # the first round warms up
                    times[name].append(seconds)
            advance()
    plain = statistics.median(times["plain digital passes"])
    rows = {
        name: {
            "seconds": statistics.median(values),
            "ratio": statistics.median(values) / plain,
            "lowest": min(values) / plain,
            "highest": max(values) / plain,
        }
        for name, values in times.items()
    }
    if as_json:
        print(json.dumps({"chips": chips, "times": len(TIMES), "threads": threads, "rows": rows}, indent=1))
    else:
        table = Table(title=f"{chips} chips × {len(TIMES)} times, 360 images, {threads} thread(s)")
        for heading in ("", "seconds (median)", "× plain", "range"):
            table.add_column(heading, justify="right" if heading else "left")
        for name, row in rows.items():
            span = f"{row['lowest']:.2f}–{row['highest']:.2f}"
            table.add_row(name, f"{row['seconds']:.3f}", f"{row['ratio']:.2f}", span)
        Console().print(table)
    ratio = rows["analognoise"]["ratio"]
    if ratio > LIMIT:
        print(f"over the limit: {ratio:.2f} × the plain passes, at most {LIMIT} wanted", file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
