"""One trained network on both engines: accuracy and weight error over time, pairs kept and pairs merged.

``python -m benchmarks.fidelity`` trains the network of the digits task and prints the tables of
docs/aihwkit.md. aihwkit's column is all its own: conversion, tiles, noise model, drift compensation, forward.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import analognoise as an
from analognoise.evaluation.statistics import mean_interval
from analognoise.seeds import rng_preserved
from analognoise.tasks import get_task
from analognoise.units import parse_times

TIMES = ("1s", "1h", "1d", "1y")
Measured = dict[str, list[tuple[float, float]]]
"""Accuracy and relative weight error of each chip, by time."""


def trained() -> tuple[nn.Module, object]:
    task = get_task("digits")
    model = task.build(0)
    an.fit(model, task.train(0), recipe="sgd", epochs=task.epochs, lr=task.lr, seed=0)
    return model.eval(), task.test


def error(now: dict[str, Tensor], target: dict[str, Tensor]) -> float:
    """Root mean square of the change of all weights, relative to that of the weights."""
    off = sum(float((now[name] - target[name]).square().sum()) for name in target)
    return math.sqrt(off / sum(float(weights.square().sum()) for weights in target.values()))


@torch.no_grad()
def accuracy(model: nn.Module, data: object) -> float:
    right = total = 0
    for x, y in data:  # type: ignore[attr-defined]
        right += int((model(x).argmax(1) == y).sum())
        total += len(y)
    return right / total


def ours(model: nn.Module, data: object, profile: str, chips: int, collapse_pairs: bool) -> Measured:
    analog = an.convert_to_analog(model, profile, collapse_pairs=collapse_pairs).eval()
    target = {name: layer.target("weight").detach() for name, layer in layers_of(analog)}
    measured: Measured = {time: [] for time in TIMES}
    for chip in range(chips):
        an.program_(analog, seed=0, chip=chip)
        for time in TIMES:
            an.drift_to_(analog, time)
            now = {name: layer.weight_now().detach() for name, layer in layers_of(analog)}
            measured[time].append((accuracy(analog, data), error(now, target)))
    return measured


def layers_of(model: nn.Module) -> Iterator[tuple[str, an.AnalogLayer]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, an.AnalogLayer))


def aihwkit(model: nn.Module, data: object, profile: str, chips: int) -> Measured:
    from aihwkit.inference.compensation.drift import GlobalDriftCompensation
    from aihwkit.inference.noise.hermes import HermesNoiseModel
    from aihwkit.inference.noise.pcm import PCMLikeNoiseModel
    from aihwkit.nn.conversion import convert_to_analog
    from aihwkit.simulator.configs import TorchInferenceRPUConfig

    config = TorchInferenceRPUConfig()
    config.forward.is_perfect = True
    config.mapping.weight_scaling_omega = 1.0
    config.mapping.weight_scaling_columnwise = True
    config.noise_model = {
        "pcm-ibm": lambda: PCMLikeNoiseModel(g_max=25.0),
        "pcm-hermes-1": lambda: HermesNoiseModel(num_devices=1),
        "pcm-hermes-2": lambda: HermesNoiseModel(num_devices=2),
    }[profile]()
    config.drift_compensation = GlobalDriftCompensation()
    analog = convert_to_analog(model, config).eval()
    names = {name: name.removeprefix("module.") for name, _ in analog.named_analog_layers()}
    layers = {names[name]: layer for name, layer in analog.named_analog_layers()}
    target = {name: model.get_submodule(name).weight.detach().flatten(1) for name in layers}
    measured: Measured = {time: [] for time in TIMES}
    with rng_preserved(1):
        for _ in range(chips):
            analog.program_analog_weights()
            for time, seconds in zip(TIMES, parse_times(TIMES), strict=True):
                analog.drift_analog_weights(seconds)
                now = {
                    name: layer.get_weights()[0].flatten(1) * float(next(layer.analog_tiles()).alpha)
                    for name, layer in layers.items()
                }
                measured[time].append((accuracy(analog, data), error(now, target)))
    return measured


def interval(values: list[float]) -> str:
    found = mean_interval(values)
    return f"{100 * found.mean:.2f} ± {100 * (found.high - found.mean):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy and weight error on both engines.")
    parser.add_argument("--chips", type=int, default=400, help="chips of each engine and profile")
    chips = parser.parse_args().chips
    torch.set_num_threads(1)
    model, data = trained()
    columns: dict[str, Callable[[str], Measured]] = {
        "aihwkit": lambda profile: aihwkit(model, data, profile, chips),
        "pairs merged": lambda profile: ours(model, data, profile, chips, True),
        "pairs kept": lambda profile: ours(model, data, profile, chips, False),
    }
    profiles = ("pcm-ibm", "pcm-hermes-1", "pcm-hermes-2")
    found = {profile: {name: measure(profile) for name, measure in columns.items()} for profile in profiles}
    print(f"mean ± 95 % over {chips} chips; kept - merged is paired by chip\n")
    print(f"| | profile | time | {' | '.join(columns)} | kept - merged |\n|---|---|---|---:|---:|---:|---:|")
    for number, what in enumerate(("accuracy, %", "weight error, %")):
        for profile in profiles:
            for time in TIMES:
                values = {name: [chip[number] for chip in found[profile][name][time]] for name in columns}
                change = [a - b for a, b in zip(values["pairs kept"], values["pairs merged"], strict=True)]
                cells = [interval(item) for item in (*values.values(), change)]
                print(f"| {what} | `{profile}` | {time} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
