"""Noise that walks through a model, one layer at a time (Walking Noise, arXiv 2212.10430)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from analognoise.batches import to_device
from analognoise.chip import digital, evaluating
from analognoise.compiled import eager
from analognoise.computing.kinds import choose_layers
from analognoise.computing.noise import ComputingNoise
from analognoise.errors import NoiseError
from analognoise.metrics import default_forward
from analognoise.seeds import rng_preserved

Forward = Callable[[nn.Module, Any], Any]


def walking_noise(
    model: nn.Module,
    batch: Any,
    sigma: float | Mapping[str, float],
    kind: str = "additive",
    layers: str | Iterable[str] | None = None,
    *,
    multiplicative: float | Mapping[str, float] | None = None,
    seed: int = 0,
    repeat: int = 0,
    forward: Forward | None = None,
) -> Iterator[tuple[str, ComputingNoise]]:
    """Noise on one layer at a time: the layers in the order in which they compute, each with its context.

    ::

        for name, noise in an.walking_noise(model, batch, 0.1):
            with noise:
                ...

    Every layer's draws are those that it has when all are noisy with the same seed and repeat.

    Args:
        model: any module.
        batch: what one digital forward, which finds the order, is run with: ``(x, y)``, a dict, or what
            ``forward`` takes.
        sigma, kind, layers, multiplicative, seed, repeat: as for :func:`analognoise.computing_noise`.
        forward: ``forward(model, batch) -> output``; by default as in :func:`analognoise.evaluate_drift`.

    Raises:
        NoiseError: as :func:`analognoise.computing_noise`, or when none of the layers is called.
    """
    noise = ComputingNoise(
        model, sigma, kind, layers, multiplicative=multiplicative, seed=seed, repeat=repeat
    )
    order = order_of(model, noise.modules, batch, forward)
    return ((name, noise.alone(name)) for name in order)


def computing_order(
    model: nn.Module,
    batch: Any,
    layers: str | Iterable[str] | None = None,
    *,
    forward: Forward | None = None,
) -> tuple[str, ...]:
    """Names of the layers that are meant, in the order in which a forward first calls them; layers that it
    does not call are left out.

    The forward is digital and in eval mode; mode, buffers and global random generators are left as found.

    Raises:
        NoiseError: when none is called, or as :func:`analognoise.computing.choose_layers`.
    """
    return order_of(model, choose_layers(model, layers), batch, forward)


def order_of(
    model: nn.Module, chosen: Mapping[str, nn.Module], batch: Any, forward: Forward | None = None
) -> tuple[str, ...]:
    """As :func:`computing_order`, of layers that were chosen."""
    called: dict[str, None] = {}
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    some = next((tensor for tensor in (*model.parameters(), *model.buffers())), None)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(rng_preserved())
        stack.enter_context(evaluating(model))
        stack.enter_context(digital(model))
        stack.enter_context(eager())
        for name, module in chosen.items():
            note = module.register_forward_pre_hook(lambda *_, name=name: called.setdefault(name))
            stack.callback(note.remove)
        moved = batch if some is None else to_device(batch, some.device, copy=True)
        try:
            (forward or default_forward)(model, moved)
        finally:
            for buffer, content in kept:
                buffer.copy_(content)
    if not called:
        raise NoiseError(
            f"a forward of {type(model).__name__} calls none of the layers {', '.join(map(repr, chosen))}: "
            "noise on them would change nothing"
        )
    return tuple(called)
