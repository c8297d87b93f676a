"""The table of docs/speed.md: ``python -m benchmarks.speed targets``.

Every figure is a ratio of medians that were measured in turns, to plain torch (or to drawing random numbers),
with its limit and, where aihwkit's torch tile does the same, its ratio.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

import analognoise as an
from analognoise.conversion import analog_layers
from benchmarks.speed import memory, peer
from benchmarks.speed.by_hand import by_hand
from benchmarks.speed.by_hand_chip import ChipByHand
from benchmarks.speed.periphery import one_pass, with_normals
from benchmarks.speed.timing import medians
from benchmarks.speed.workloads import Batch, Workload

TIMES = (1.0, 60.0, 3600.0, 86400.0, 2592000.0, 31536000.0)
_8BIT = {
    "dac": {"bits": 8, "range": "fixed", "bound": 3.0},
    "adc": {"bits": 8, "range": "fixed", "bound": 10.0},
    "out_noise": 0.04,
}
_STEP_LIMITS = {"W1": (1.3, 2.0), "W2": (1.15, 1.5), "W3": (1.15, 1.5)}
ROWS = ("pass", "programming", "training", "memory", "evaluation", "evaluation, 8 bits")


@dataclass(frozen=True)
class Figure:
    """One cell of the table.

    Attributes:
        what: was measured.
        workload: on which.
        value: the ratio.
        limit: the largest that is wanted; None where none is.
        peer: the same of aihwkit's torch tile; None where it has no such thing.
        least: how many times faster than the peer is wanted.
    """

    what: str
    workload: str
    value: float
    limit: float | None = None
    peer: float | None = None
    least: float | None = None

    @property
    def met(self) -> bool:
        within = self.limit is None or round(self.value, 2) <= round(self.limit, 2)  # as shown
        ahead = self.least is None or self.peer is None or self.peer >= self.least * self.value
        return within and ahead


def passes(name: str, work: Workload, repeats: int) -> list[Figure]:
    """One pass over a batch of a chip, without periphery and with one."""
    plain, normals = work.model().eval(), with_normals(work.model().eval(), _profile().tile.rows)
    batch = work.batches(work.size)
    chips = {"chip": _chip(work, _profile()), "8 bits": _chip(work, _profile(periphery=True))}
    if peer.installed():
        for label, periphery in (("aihwkit", False), ("aihwkit, 8 bits", True)):
            chips[label] = peer.converted(work.model(), periphery=periphery).eval()
            chips[label].program_analog_weights()
            chips[label].drift_analog_weights(TIMES[3])
    if any(isinstance(layer, nn.Conv2d) for layer in plain.modules()):
        chips["by hand"] = by_hand(work.model().eval(), _8BIT, _profile().tile.rows)
    models = {"plain": plain, "normals": normals, **chips}
    seconds = medians(f"{name} passes", _calls(models, batch), repeats, work.device)
    ratio = {label: value / seconds["plain"] for label, value in seconds.items()}
    return [
        Figure("pass, no periphery", name, ratio["chip"], 1.05, ratio.get("aihwkit")),
        Figure(
            "pass, 8 bits, output noise",
            name,
            ratio["8 bits"],
            1.25 + max(0.0, ratio["normals"] - 1),
            ratio.get("aihwkit, 8 bits"),
        ),
        *_by_hand(name, ratio),
    ]


def programming(name: str, work: Workload, repeats: int) -> list[Figure]:
    """Programming a chip and letting it drift once, in units of drawing as many normals."""
    analog = _chip(work, _profile())
    weights = sum(t.numel() for layer in analog_layers(analog).values() for t in layer.targets().values())
    # What stays in the cache of a processor; other devices do better with all at once.
    numbers = torch.empty(1 << 18 if work.device.type == "cpu" else 6 * weights, device=work.device)
    generator = torch.Generator(work.device)

    def draw() -> None:
        for start in range(0, 6 * weights, len(numbers)):
            numbers[: 6 * weights - start].normal_(generator=generator)

    def ours() -> None:
        an.drift_to_(an.program_(analog, 0), TIMES[2])

    parts: dict[str, Callable[[], object]] = {"ours": ours, "draw": draw}
    if name == "W2":  # the one of many small tiles
        hand = ChipByHand(work.model(), _profile())
        parts["by hand"] = lambda: hand.drift(hand.program(), TIMES[2])
    if peer.installed():
        tile = peer.converted(work.model()).eval()

        def peers() -> None:
            tile.program_analog_weights()
            tile.drift_analog_weights(TIMES[2])

        parts["aihwkit"] = peers
    seconds = medians(f"{name} programming", parts, repeats, work.device)
    ratio = {label: value / seconds["draw"] for label, value in seconds.items()}
    return [
        Figure(
            "programming and one drift, × its normals",
            name,
            ratio["ours"],
            2.5,
            ratio.get("aihwkit"),
        ),
        *_by_hand(name, ratio),
    ]


def training(name: str, work: Workload, repeats: int) -> list[Figure]:
    """One training step by each method."""
    (batch,) = work.batches(work.size)
    options = {"lr": 1e-3, "momentum": 0.9}

    def base(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), **options)

    def ours(method: Callable[..., torch.optim.Optimizer], **given: object) -> Callable[[], object]:
        model = an.convert_to_analog(work.model(), _profile())
        return _stepper(model, method(base(model), model, **given), batch)

    plain = work.model()
    steps = {
        "plain": _stepper(plain, base(plain), batch),
        "noise": ours(an.GaussianNoise, noise=peer.NOISE, clip=None),
        "profile-noise": ours(an.ProfileNoise),
        "profile-noise:draw=net": ours(an.ProfileNoise, draw="net"),
        "sam": ours(an.SAM),
        "asam": ours(an.ASAM),
        "samson": ours(an.SAMSON),
    }
    if peer.installed():
        tile = peer.converted(work.model(), noise=True)
        steps["aihwkit"] = _stepper(tile, peer.optimizer(tile, **options), batch)
    seconds = medians(f"{name} training", steps, repeats, work.device)
    ratio = {label: value / seconds["plain"] for label, value in seconds.items()}
    noise, profile = _STEP_LIMITS.get(name, (None, None))
    limits = {"noise": noise, "profile-noise": None, "profile-noise:draw=net": profile}
    return [
        Figure(
            f"step: {label}",
            name,
            ratio[label],
            limits.get(label, 2.05),
            ratio.get("aihwkit") if label == "noise" else None,
        )
        for label in steps
        if label not in ("plain", "aihwkit")
    ]


def evaluation(
    name: str, work: Workload, repeats: int, chips: int, samples: int | None, periphery: bool
) -> list[Figure]:
    """A whole drift evaluation, against as many plain passes; aihwkit's is added up from its parts."""
    plain, profile = work.model().eval(), _profile(periphery=periphery)
    batches = work.batches(samples)

    def ours() -> None:
        analog = an.convert_to_analog(plain, profile)
        an.evaluate_drift(analog, batches, times=TIMES, chips=chips)

    parts = {"ours": ours, "pass": lambda: one_pass(plain, batches)}
    if peer.installed():
        tile = peer.converted(work.model(), periphery=periphery).eval()
        parts["program"] = tile.program_analog_weights
        parts["drift"] = lambda: tile.drift_analog_weights(TIMES[2])
        parts["read"] = lambda: one_pass(tile, batches[:1])
    seconds = medians(f"{name} evaluation", parts, repeats, work.device)
    states = chips * len(TIMES)
    whole = states * seconds["pass"]
    peers = None
    if peer.installed():
        each = seconds["drift"] + seconds["read"] * len(batches)
        peers = (chips * seconds["program"] + states * each) / whole
    limits: dict[str, float | None] = {"limit": 1.2}
    if name == "W2":
        limits["least"] = 10
    if periphery:
        limits = {"least": 15} if name == "W2" else {}
    count = sum(len(labels) for _, labels in batches)
    what = f"evaluation, {chips} × {len(TIMES)}, {'8 bits, ' if periphery else ''}{count:,} samples"
    return [Figure(what, name, seconds["ours"] / whole, peer=peers, **limits)]


def peak_memory(name: str, work: Workload) -> list[Figure]:
    """Most memory that an evaluation takes beside the model, over one chip's state and a plain pass's."""
    plain, batches = work.model().eval(), work.batches(work.size)
    one_pass(plain, batches)  # what libraries ask for once, for themselves
    one = memory.most_allocated(lambda: one_pass(plain, batches), work.device)
    chip = _chip(work, _profile())
    bound = memory.state_of(chip) + one

    def evaluated(chips: int) -> int:
        analog = an.convert_to_analog(plain, _profile())
        return memory.most_allocated(
            lambda: an.evaluate_drift(analog, batches, times=TIMES[:2], chips=chips), work.device
        )

    found = {chips: evaluated(chips) for chips in (1, 4)}
    return [
        Figure(f"peak memory, {chips} chip(s), × state and activations", name, most / bound, 1.0)
        for chips, most in found.items()
    ]


def markdown(figures: list[Figure], command: str, device: torch.device) -> str:
    """The table, with where and how it was measured."""
    where = f"{torch.get_num_threads()} thread(s), {platform.machine()}"
    if device.type != "cpu":
        where = f"{torch.get_device_module(device).get_device_name(device)} ({device})"
    lines = [
        f"`{command}`: torch {torch.__version__}, {where}. "
        "Numbers are × plain torch unless the row says otherwise.",
        "",
        "| | | analognoise | target | aihwkit's torch tile | faster than it | |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for figure in figures:
        wanted = [] if figure.limit is None else [f"≤ {figure.limit:.2f}"]
        wanted += [] if figure.least is None else [f"{figure.least:g} × faster"]
        peers = (
            ("", "") if figure.peer is None else (f"{figure.peer:.2f}", f"{figure.peer / figure.value:.1f} ×")
        )
        verdict = ("met" if figure.met else "**missed**") if wanted else ""
        cells = (figure.what, figure.workload, f"{figure.value:.2f}", ", ".join(wanted), *peers, verdict)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _by_hand(name: str, ratio: dict[str, float]) -> list[Figure]:
    return [Figure("the same by hand", name, ratio["by hand"])] if "by hand" in ratio else []


def _profile(*, periphery: bool = False) -> an.DeviceProfile:
    profile = an.load_profile("pcm-ibm")
    return profile.replace({"periphery": _8BIT}) if periphery else profile


def _chip(work: Workload, profile: an.DeviceProfile) -> nn.Module:
    analog = an.convert_to_analog(work.model(), profile).eval()
    return an.drift_to_(an.program_(analog), TIMES[3])


def _calls(models: dict[str, nn.Module], batch: list[Batch]) -> dict[str, Callable[[], object]]:
    return {label: lambda model=model: one_pass(model, batch) for label, model in models.items()}


def _stepper(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> Callable[[], object]:
    x, y = batch
    model.train()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return lambda: optimizer.step(closure)
