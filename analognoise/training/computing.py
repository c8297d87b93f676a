"""Noise on computations while the gradient is taken: its level step by step, and the layers that it is on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from analognoise.computing.levels import fluctuating_sigma
from analognoise.computing.noise import ComputingNoise
from analognoise.errors import MethodError, NoiseError
from analognoise.seeds import Stream

Level = Callable[[int], float]
Closure = Callable[[], Any]


class TrainingNoise:
    """The noise of a training: what a step's closure is run in.

    Every pass of a step sees the same draws (the two passes of SAM differentiate one function, as with the
    same dropout masks), each forward in the pass its own, and each step others.

    Args:
        model: the module whose forwards are noisy.
        law: "additive" or "multiplicative".
        level: σ at each step.
        seed: root of the draws.
        layers: a kind of layer, or "all".
        walk: put it on one layer a step, drawn at random.

    Raises:
        MethodError: when the model has no such layer.
    """

    def __init__(
        self, model: nn.Module, law: str, level: Level, *, seed: int, layers: str = "all", walk: bool = False
    ) -> None:
        try:
            self.noise = ComputingNoise(
                model,
                0.0,
                law,
                None if layers == "all" else layers,
                seed=seed,
                process="computing-noise in training",
            )
        except NoiseError as error:
            raise MethodError(f"noise on computations: {error}") from error
        self.level, self.walk = level, walk

    def sigma(self, step: int) -> float:
        """σ at a step."""
        return self.level(step)

    def layer(self, step: int) -> str | None:
        """The layer that alone is noisy in a step; None for all."""
        if not self.walk:
            return None
        names = list(self.noise.layers)
        draw = Stream(self.noise.seed, "training-walk", step=step).uniform()
        return names[min(int(draw * len(names)), len(names) - 1)]

    def around(self, closure: Closure, step: int, rank: int = 0) -> Closure:
        """The closure, with this step's noise in it; processes have batches, and draws, of their own."""
        alone = self.layer(step)
        noise = self.noise if alone is None else self.noise.alone(alone)
        noise.set_sigma(self.sigma(step))
        noise.start = (step, rank)

        def noisy() -> Any:
            with noise:
                return closure()

        return noisy


@dataclass(frozen=True)
class Growing:
    """σ that grows linearly over the first ``steps`` steps, from σ / steps; 0 steps for none."""

    sigma_end: float
    steps: int

    def __call__(self, step: int) -> float:
        """σ at a step."""
        return self.sigma_end * min(1.0, (step + 1) / self.steps) if self.steps else self.sigma_end


@dataclass(frozen=True)
class Fluctuating:
    """σ drawn anew each epoch: α·σ₀ + θ·|N(0, 1)| (variance-aware training, arXiv 2503.16183)."""

    sigma: float
    alpha: float
    theta: float
    steps: int
    epochs: int
    seed: int

    def __call__(self, step: int) -> float:
        """σ at a step."""
        epoch = step * self.epochs // self.steps
        stream = Stream(self.seed, "training-sigma", step=epoch)
        return fluctuating_sigma(self.sigma, self.alpha, self.theta, stream)
