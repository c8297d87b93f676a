"""Training on noisy weights: Gaussian, drawn from a device profile, or mixed with the clean gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from analognoise.crossbar.net import check_net
from analognoise.errors import MethodError, ModelError, TrainingError
from analognoise.on_tiles import require_analog, sample_chip
from analognoise.seeds import Stream
from analognoise.training.checks import check_gradient, check_number
from analognoise.training.wrapper import Closure, WrappedOptimizer, forget_casts, run_closure
from analognoise.units import parse_time

DRAWS = ("devices", "net")


class Clipped(WrappedOptimizer):
    """The base optimizer with each layer's weights clamped to ± clip · std(w_l) after every update.

    Args:
        base: optimizer instance over parameters of ``model``.
        model: the module being trained.
        clip: bound in standard deviations of the layer's weights.
        before_step: as in :class:`WrappedOptimizer`.

    Raises:
        MethodError: for a hyperparameter out of range, or a base that does not fit.
    """

    def __init__(
        self,
        base: Optimizer,
        model: nn.Module,
        *,
        clip: float = 2.0,
        before_step: Callable[[], Any] | None = None,
    ) -> None:
        check_number("Clipped", "clip", clip, above=True)
        super().__init__(base, model, clip=clip, before_step=before_step)


class GaussianNoise(WrappedOptimizer):
    """Gaussian noise on the weights in forward and backward, and clipping.

    Each step computes the gradient at w + N(0, (noise · max|w_l|)²) and applies it to the clean w. The
    defaults are the figures for CIFAR-10 of Joshi et al. 2020, doi 10.1038/s41467-020-16108-9.

    Args:
        base: optimizer instance over parameters of ``model``.
        model: the module being trained.
        noise: standard deviation relative to the layer's largest weight.
        clip: bound in standard deviations of the layer's weights, None for no clipping.
        noise_ramp, seed, before_step, sync: as in :class:`WrappedOptimizer`.

    Raises:
        MethodError: for a hyperparameter out of range, or a base that does not fit.
    """

    def __init__(
        self,
        base: Optimizer,
        model: nn.Module,
        *,
        noise: float = 0.038,
        clip: float | None = 2.0,
        noise_ramp: int = 0,
        seed: int = 0,
        before_step: Callable[[], Any] | None = None,
        sync: str = "all",
    ) -> None:
        check_number("GaussianNoise", "noise", noise)
        super().__init__(
            base,
            model,
            clip=clip,
            noise=noise,
            noise_ramp=noise_ramp,
            seed=seed,
            before_step=before_step,
            sync=sync,
        )


class ProfileNoise(WrappedOptimizer):
    """Training on weights as a fresh chip of the model's device profile would hold them.

    Each step draws a chip (programming noise, drift, read noise, drift compensation) at a drift time that is
    uniform in its logarithm, computes the gradient at that chip's weights, and applies it to the digital
    weights. Where a device is known for a shorter time only, the drift times stay within that.

    Devices of the chip may be stuck: a weight with such a device gets no gradient in that step, as a
    connection that DropConnect leaves out (Wan et al., ICML 2013), because its value there does not follow
    the digital one.

    Args:
        base: optimizer instance over parameters of ``model``.
        model: a converted model (:func:`analognoise.convert_to_analog`).
        times: shortest and longest drift time, in seconds or with a unit (``"1h"``), both above 0.
        draw: ``"devices"`` draws every device of the chip; ``"net"`` one normal for each pair, with the mean
            and the variance of its net weight: several times faster, and the same but for the skew that
            clamping at zero gives. Not for devices with faults, IR drop, several pairs or offsets.
        clip, seed, before_step, sync: as in :class:`WrappedOptimizer`.

    Raises:
        ConversionError: when the model is not on tiles.
        MethodError: for times out of order, a draw that is unknown or that the devices do not allow, or a
            base that does not fit.
        UnitError: for a time that cannot be read.
    """

    def __init__(
        self,
        base: Optimizer,
        model: nn.Module,
        *,
        times: Sequence[str | float] = (1.0, 31536000.0),
        draw: str = "devices",
        clip: float | None = None,
        seed: int = 0,
        before_step: Callable[[], Any] | None = None,
        sync: str = "all",
    ) -> None:
        seconds = [parse_time(time) for time in times] if isinstance(times, (tuple, list)) else []
        if len(seconds) != 2 or not 0 < seconds[0] <= seconds[1]:
            raise MethodError(
                "ProfileNoise: times must be the shortest and the longest drift time, both above 0, "
                f"found {times!r}"
            )
        if draw not in DRAWS:
            raise MethodError(f"ProfileNoise: draw must be one of {', '.join(DRAWS)}, found {draw!r}")
        super().__init__(base, model, clip=clip, seed=seed, before_step=before_step, sync=sync)
        layers = require_analog(model, "train on the noise of its profile").values()
        self.draw = draw
        for layer in layers:
            if draw == "net":
                check_net(layer.analog.tile, layer.analog.name)
        profiles = dict.fromkeys(layer.analog.profile for layer in layers)
        shortest = longest = 0.0  # as programmed, where nothing depends on time
        if any(profile.has_drift for profile in profiles):
            known = [profile.valid_times for profile in profiles]
            shortest = max(seconds[0], *(first for first, _ in known))
            longest = min(seconds[1], *(last for _, last in known))
        if shortest > longest:
            names = ", ".join(dict.fromkeys(profile.name for profile in profiles))
            raise MethodError(f"ProfileNoise: at none of the times {times!r} is the device known ({names})")
        self.times = (shortest, longest)
        self._masks: list[RemovableHandle] = []  # hooks that take the gradient from stuck entries

    @property
    def _needs_closure(self) -> bool:
        return True

    def drift_time(self, step: int) -> float:
        """Seconds since programming at which a step's chip is read."""
        if self.times[1] == 0:
            return 0.0
        shortest, longest = map(math.log, self.times)
        return math.exp(
            shortest + (longest - shortest) * Stream(self._noise_seed, "training-time", step=step).uniform()
        )

    def _perturb(self) -> None:
        try:
            drawn, stuck = sample_chip(
                self.model,
                seed=self._noise_seed,
                step=self.steps,
                seconds=self.drift_time(self.steps),
                net=self.draw == "net",
            )
        except ModelError as error:
            raise TrainingError(
                f"ProfileNoise, step {self.steps}: the training broke down, {error}"
            ) from error
        weights: list[Tensor] = [self._chip[name] for name in drawn if name in self._chip]
        copies = [self._rooms.copy_of(weight) for weight in weights]
        self._clean.update(zip(weights, copies, strict=True))
        torch._foreach_copy_(weights, [value for name, value in drawn.items() if name in self._chip])
        # While gradients are taken, not afterwards: those that processes average are already without, each
        # process's own chip's.
        for name, mask in stuck.items():
            if name in self._chip and self._chip[name].requires_grad:
                self._masks.append(self._chip[name].register_hook(_without(mask)))
        forget_casts()

    def _restore(self) -> None:
        while self._masks:
            self._masks.pop().remove()
        super()._restore()


def _without(stuck: Tensor) -> Callable[[Tensor], Tensor]:
    """A gradient without the entries of stuck devices."""
    return lambda gradient: gradient.masked_fill(stuck, 0)


class RandomWeightPerturbation(WrappedOptimizer):
    """Random weight perturbation: the mean of a clean and a noisy gradient (arXiv 2602.07320).

    The gradient applied is (1 − mix) · ∇L(w) + mix · ∇L(w + n) with n ~ N(0, (noise · max|w_l|)²) on the
    weights of the chip, growing over the first ``ramp`` steps. A step takes two passes, first the clean one,
    whose loss is returned; the second repeats its random numbers, and batch-normalization statistics count
    the first only. With ``noise`` or ``mix`` 0 a step takes one pass and is the base optimizer's, bit for
    bit.

    Args:
        base: optimizer instance over parameters of ``model``.
        model: the module being trained.
        noise: standard deviation relative to the layer's largest weight, after the ramp.
        ramp: number of steps over which the noise grows linearly.
        mix: share of the noisy gradient, 0 to 1.
        clip, seed, before_step, sync: as in :class:`WrappedOptimizer`.

    Raises:
        MethodError: for a hyperparameter out of range, or a base that does not fit.
    """

    def __init__(
        self,
        base: Optimizer,
        model: nn.Module,
        *,
        noise: float = 0.1,
        ramp: int = 0,
        mix: float = 0.5,
        clip: float | None = None,
        seed: int = 0,
        before_step: Callable[[], Any] | None = None,
        sync: str = "all",
    ) -> None:
        check_number("RandomWeightPerturbation", "noise", noise)
        check_number("RandomWeightPerturbation", "mix", mix, most=1.0)
        self.mix = mix
        super().__init__(
            base,
            model,
            clip=clip,
            noise=noise,
            noise_ramp=ramp,
            seed=seed,
            before_step=before_step,
            sync=sync,
        )

    @property
    def _needs_closure(self) -> bool:
        return True

    def _gradients(self, closure: Closure | None) -> tuple[Any, bool]:
        if closure is None:
            raise self._no_closure()
        if not self.noise or not self.mix:
            return run_closure(closure), True
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        with self._replay.begun(parameters):
            loss = run_closure(closure)
            clean = [parameter.grad for parameter in parameters]
            if self._processes.reuses_gradients:
                clean = [None if gradient is None else gradient.clone() for gradient in clean]
            for parameter, gradient in zip(parameters, clean, strict=True):
                if gradient is not None:
                    check_gradient(type(self).__name__, self._names[parameter], gradient)
                parameter.grad = None
            try:
                self._perturb()
                with self._replay.second_pass():
                    run_closure(closure)
            finally:
                self._restore()
        self._mix(parameters, clean)
        return loss, True

    def _mix(self, parameters: list[Tensor], clean: list[Tensor | None]) -> None:
        """Mix the clean gradients into those in ``.grad``; one that a pass did not give counts as zero."""
        noisy = [parameter.grad for parameter in parameters if parameter.grad is not None]
        pairs = [
            (parameter, gradient)
            for parameter, gradient in zip(parameters, clean, strict=True)
            if gradient is not None
        ]
        kept = [gradient for _, gradient in pairs]
        if noisy:
            torch._foreach_mul_(noisy, self.mix)
        if kept:
            torch._foreach_mul_(kept, 1.0 - self.mix)
        for parameter, gradient in pairs:
            parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)
