"""What sampling by digital margin saves: evaluations of the same chips on all samples and on some, in turns.

Both give a mean over chips of the same expectation; what they cost differs, and so does the variance between
chips. The time to a precision is the time of a chip times that variance, so the gain is

    (seconds of all · variance of all) / (seconds of some · variance of some).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

import analognoise as an
from analognoise.seeds import rng_preserved
from analognoise.tasks import get_task

TIMES = ("1s", "1y")


@dataclass(frozen=True)
class Gain:
    """One case at one drift time.

    Attributes:
        case: model, device and number of samples.
        time: drift time.
        samples: of each chip, of how many.
        of: see there.
        bias: difference of the means in standard errors of the difference, chip by chip.
        variance: between chips, times that of all samples.
        seconds: processor time of the evaluation of all times, planning included, times that of all samples.
        gain: in time to a precision.
    """

    case: str
    time: str
    samples: int
    of: int
    bias: float
    variance: float
    seconds: float
    gain: float


class WideCNN(nn.Module):
    """The digits network eight times as wide: forwards outweigh programming, as in networks of use."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(256, 10)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def many_digits(samples: int) -> list[tuple[Tensor, Tensor]]:
    """The test and validation images of the digits task again and again, each time with other noise."""
    task = get_task("digits")
    batches = [*task.test, *(task.validation or ())]
    x, y = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
    index = torch.arange(samples) % len(y)
    with rng_preserved(0):
        noise = torch.randn(samples, *x.shape[1:])
    noisy = x[index] + 0.1 * noise
    return list(zip(noisy.split(512), y[index].split(512), strict=True))


def cases(samples: int) -> list[tuple[str, nn.Module, Sequence[tuple[Tensor, Tensor]]]]:
    """Trained networks with their data."""
    task = get_task("digits")
    with rng_preserved(0):
        wide = WideCNN()
    found: list[tuple[str, nn.Module, Sequence[tuple[Tensor, Tensor]]]] = [
        ("digits", task.build(0), list(task.test)),
        ("digits", task.build(0), many_digits(samples)),
        ("wide", wide, many_digits(samples)),
    ]
    for _, model, _ in found:
        an.fit(model, task.train(0, task.batch_size), recipe="sgd", epochs=20, lr=task.lr)
    return found


def measure(chips: int, samples: int, repeats: int) -> list[Gain]:
    """The gain of each case.

    Args:
        chips: of each evaluation.
        samples: of the large data set.
        repeats: of which the median time counts; plain and sampled evaluations take turns.
    """
    found = []
    for name, model, data in cases(samples):
        size = sum(len(y) for _, y in data)
        for profile in ("pcm-ibm", "gaussian@5%"):
            analog = an.convert_to_analog(model.eval(), profile)
            seconds: dict[str, list[float]] = {"full": [], "stratified": []}
            reports = {}
            for _ in range(repeats):
                for kind, taken in seconds.items():
                    start = time.process_time()
                    reports[kind] = an.evaluate_drift(analog, data, times=TIMES, chips=chips, sampling=kind)
                    taken.append(time.process_time() - start)
            full, some = reports["full"], reports["stratified"]
            cost = float(np.median(seconds["stratified"]) / np.median(seconds["full"]))
            for column, when in enumerate(full.times if profile == "pcm-ibm" else full.times[:1]):
                all_of, part = full.values[:, column], some.values[:, column]
                ratio = float(part.var(ddof=1) / all_of.var(ddof=1))
                gap = part - all_of
                error = float(gap.std(ddof=1)) / chips**0.5
                bias = float(gap.mean()) / error if error else 0.0
                label = f"{name}, {profile}, {size} samples"
                drawn = some.sampling.samples[when]
                found.append(Gain(label, TIMES[column], drawn, size, bias, ratio, cost, 1 / (ratio * cost)))
    return found


def as_dicts(found: list[Gain]) -> list[dict[str, object]]:
    return [asdict(gain) for gain in found]


def table(found: list[Gain], chips: int) -> Table:
    """One row per case and time."""
    shown = Table(
        title=f"Stratified by digital margin against all samples, {chips} chips", title_justify="left"
    )
    for heading in ("case", "time", "samples", "bias (σ)", "variance ×", "time ×", "gain"):
        shown.add_column(heading, justify="left" if heading == "case" else "right")
    for gain in found:
        shown.add_row(
            gain.case,
            gain.time,
            f"{gain.samples} of {gain.of}",
            f"{gain.bias:+.1f}",
            f"{gain.variance:.2f}",
            f"{gain.seconds:.3f}",
            f"{gain.gain:.1f}",
        )
    return shown
