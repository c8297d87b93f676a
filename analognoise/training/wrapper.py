"""Noise on the weights while the gradient is taken, and clipping after each update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from analognoise.allocator import Rooms, in_huge_pages
from analognoise.errors import MethodError
from analognoise.on_tiles import chip_weights
from analognoise.quantized import QuantizedLayer, quantized_weights
from analognoise.scalars import as_numbers
from analognoise.seeds import Stream
from analognoise.training.checks import check_number, check_steps
from analognoise.training.computing import TrainingNoise
from analognoise.training.delegate import OptimizerAround

Closure = Callable[[], Any]

_DRAW = 1 << 14  # normal numbers drawn at once for a tensor, for as many steps as they last


class WrappedOptimizer(OptimizerAround):
    """A base optimizer with noise on the weights while the gradient is taken, and clipping after each update.

    With neither option it is the base optimizer. The methods of this package are subclasses.

    ``step(closure)`` runs the closure itself, once or twice::

        def closure():
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            return loss

        loss = optimizer.step(closure)

    To accumulate gradients, let the closure run forward and backward for several micro-batches after one
    ``zero_grad``; all of them then see the same noise. The closure must use the same data each time it is
    called. ``param_groups``, ``state`` and ``defaults`` are the base's own, so learning-rate schedulers may
    be built on either of the two; weight decay is the base's and enters once. torch's global step hooks
    (``register_optimizer_step_post_hook``) see two optimizers, this one and its base.

    Noise and clipping act on the weights of the layers on tiles, or, in a model not converted, of the layers
    that would be (:func:`analognoise.on_tiles.chip_weights`, at construction). Noise also falls on frozen
    weights, as on a chip; clipping leaves alone what the base does not train.

    Mixed precision: ``torch.autocast`` may stand in the closure or around ``step``. The bfloat16 copies of
    weights that an open autocast context keeps are dropped whenever the weights move.

    Noise: each step draws w + N(0, (noise · max|w_l|)²) for layer l, computes the gradient there, and applies
    it to the clean w. Clipping: after each update the weights of layer l are clamped to ± clip · std(w_l). In
    a quantized model (:func:`analognoise.quantize`) the noise is added to Q(w_l) and measured by its maximum,
    and quantized layers alone are noisy or clipped.
    Source of both: Joshi et al. 2020, doi 10.1038/s41467-020-16108-9 (that clipping follows each update is
    recalled, not confirmed).

    Args:
        base: optimizer instance over parameters of ``model``; LBFGS, which calls closures itself, is refused.
        model: the module being trained, converted or not.
        clip: bound in standard deviations of the layer's weights; None for no clipping. Layers whose weights
            are all equal (standard deviation 0) are left alone.
        noise: standard deviation relative to the layer's largest weight; None or 0 for none.
        noise_ramp: number of steps over which the noise grows linearly to its full size; 0 for none.
        seed: root of the noise's random keys; global generators are never used.
        before_step: called without arguments right before the base's update, with the gradients in place:
            clip gradients here.
        sync: for a model in ``DistributedDataParallel``, whose perturbation a process takes. ``"all"``: all
            take the same, as one process would with all their batches together. ``"worker"``: each its own.
            Either way weights stay equal in all processes. (docs/methods.md, "In several processes")

    Raises:
        MethodError: for a base that is not an optimizer instance over the model's parameters, or a
            hyperparameter out of range.
    """

    _drawn: dict[str, tuple[Any, Tensor]]

    def __init__(
        self,
        base: Optimizer,
        model: nn.Module,
        *,
        clip: float | None = None,
        noise: float | None = None,
        noise_ramp: int = 0,
        seed: int = 0,
        before_step: Callable[[], Any] | None = None,
        sync: str = "all",
    ) -> None:
        method = type(self).__name__
        if clip is not None:
            check_number(method, "clip", clip, above=True)
        if noise is not None:
            check_number(method, "noise", noise)
        check_steps(method, "noise_ramp", noise_ramp)
        if before_step is not None and not callable(before_step):
            raise MethodError(
                f"{method}: before_step must be a function without arguments, found {before_step!r}"
            )
        self.clip = clip
        self.noise = noise
        self.noise_ramp = noise_ramp
        self.before_step = before_step
        self.computing: TrainingNoise | None = None  # noise on computations, as a recipe asks for it
        self._clean: dict[Tensor, Tensor] = {}  # while weights are perturbed: each one's clean copy
        self._rooms = Rooms()  # for these copies
        super().__init__(base, model, seed, sync)
        if (clip is not None or noise) and not self._chip:
            raise MethodError(
                f"{method}: {type(model).__name__} has no layer that would be on a chip: clip and noise "
                "have nothing to act on"
            )

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take one optimization step.

        Args:
            closure: clears the gradients, runs forward and backward, and returns the loss. Without noise it
                may be left out: the gradients are then taken as they lie in ``.grad``.

        Returns:
            What the first call of the closure returned.

        Raises:
            MethodError: when the method needs a closure and none is given.
            Exception: whatever the closure raises; the weights are then as they were before the step. So are
                the running statistics of normalization layers where the method takes two passes; after one
                pass they keep what it counted, as with torch's own optimizers.
        """
        if self.computing is not None:
            if closure is None:
                raise self._no_closure()
            closure = self.computing.around(closure, self.steps, self._processes.rank)
        loss, usable = self._gradients(closure)
        if usable:
            self._average_ranges()
            if self.before_step is not None:
                self.before_step()
            self.base.step()
            self._clip_weights()
            forget_casts()
        self.steps += 1
        return loss

    @property
    def _mid_step(self) -> bool:
        return bool(self._clean or self._offset)

    @property
    def _apart(self) -> bool:
        """Whether this process is one of several that perturb the weights each in its own way."""
        return self.sync == "worker" and self._processes.count > 1

    @property
    def _noise_seed(self) -> int:
        return self._processes.own_seed(self.seed) if self._apart else self.seed

    def _average_ranges(self) -> None:
        """Average the gradients of learned ranges, which DistributedDataParallel does not know."""
        self._processes.average_gradients(self._ranges)

    def _forget(self) -> None:
        self._clean.clear()

    def _gradients(self, closure: Closure | None) -> tuple[Any, bool]:
        """Leave the clean weights and the gradient; return the loss and whether the gradient is usable."""
        if closure is None:
            if self._needs_closure:
                raise self._no_closure()
            return None, True
        try:
            self._perturb()
            return run_closure(closure), True
        finally:
            self._restore()

    @property
    def _needs_closure(self) -> bool:
        return bool(self.noise)

    def _no_closure(self) -> MethodError:
        return MethodError(
            f"{type(self).__name__}.step needs a closure that clears the gradients, runs forward and "
            "backward and returns the loss"
        )

    def _perturb(self) -> None:
        """Put this step's noise on the chip's weights."""
        level = (self.noise or 0.0) * self._ramp(self.noise_ramp)
        if not level:
            return
        weights: list[Tensor] = list(self._chip.values())
        draws = self._normals()
        if self._quantized:
            # On the quantized weights: on those before rounding most of it would be rounded away.
            for layer, draw in zip(self._quantized.values(), draws, strict=True):
                self._put_offset(layer, draw * (level * layer.quantized_weight().abs().max()))
            return
        # The norm of infinite order would take some fifty times as long as the largest size on a CPU.
        copies = self._rooms.absolutes(weights)
        largest = torch._foreach_max(copies)
        torch._foreach_copy_(copies, weights)
        self._clean.update(zip(weights, copies, strict=True))
        torch._foreach_addcmul_(weights, draws, largest, value=level)
        forget_casts()

    def _put_offset(self, layer: QuantizedLayer, offset: Tensor) -> None:
        """Let a layer compute with Q(w) + offset until :meth:`_restore`."""
        layer.offset = offset
        self._offset.append(layer)

    def _normals(self) -> list[Tensor]:
        """This step's standard normals for each weight tensor, from a stream of its own."""
        return [self._drawn_for(name, weight) for name, weight in self._chip.items()]

    def _drawn_for(self, name: str, weight: Tensor) -> Tensor:
        # A small tensor's are drawn for many steps at once: starting a stream costs more than the numbers.
        steps = max(1, _DRAW // weight.numel())
        block, row = divmod(self.steps, steps)
        stream = Stream(self._noise_seed, "training-noise", layer=name, step=block)
        key = (stream, weight.device, weight.dtype)
        known, draws = self._drawn.get(name, (None, weight))
        if known != key:
            room = torch.empty((steps, *weight.shape), dtype=torch.float32, device=weight.device)
            draws = stream.normal_(in_huge_pages(room)).to(weight.dtype)
            if steps > 1:
                self._drawn[name] = (key, draws)
        return draws[row]

    def _ramp(self, steps: int) -> float:
        """1/steps in the first step, growing linearly to 1 in the last of ``steps``."""
        return min(1.0, (self.steps + 1) / steps) if steps else 1.0

    def _restore(self) -> None:
        """Put the clean weights back."""
        while self._offset:
            self._offset.pop().offset = None
        if self._clean:
            torch._foreach_copy_(list(self._clean), list(self._clean.values()))
            self._rooms.give_back(self._clean.values())
            self._clean.clear()
            forget_casts()

    def _clip_weights(self) -> None:
        if self.clip is None:
            return
        trained = {id(parameter) for group in self.param_groups for parameter in group["params"]}
        weights = [w for w in self._chip.values() if id(w) in trained and w.requires_grad and w.numel() > 1]
        for weight, deviation in zip(weights, as_numbers([weight.std() for weight in weights]), strict=True):
            # A bound of 0 would erase a layer that was set to one constant; NaN shows itself in the loss.
            if deviation > 0:
                weight.clamp_(-self.clip * deviation, self.clip * deviation)

    def _index(self) -> None:
        super()._index()
        stored = quantized_weights(self.model)
        self._quantized = {name: layer for name, layer in stored.items() if layer.float_weight.numel()}
        self._offset: list[QuantizedLayer] = []
        chip = {name: layer.float_weight for name, layer in stored.items()} or chip_weights(self.model)
        self._chip = {name: weight for name, weight in chip.items() if weight.numel()}
        self._drawn = {}


def run_closure(closure: Closure) -> Any:
    """Call the closure with gradients enabled, as torch's optimizers do."""
    with torch.enable_grad():
        return closure()


def forget_casts() -> None:
    """Drop the copies of weights that an open autocast context keeps; call it whenever weights have moved.

    It costs less than asking whether one is open; a disabled one around an enabled one keeps copies too.
    """
    torch.clear_autocast_cache()
