"""A two-pass step as two calls: ``first_step`` and ``second_step``, for training loops without a closure."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from analognoise.errors import MethodError
from analognoise.training.slope import norms
from analognoise.training.wrapper import WrappedOptimizer


@dataclass(frozen=True)
class _Open:
    """A climb between ``first_step`` and ``second_step``.

    Attributes:
        usable: whether the gradient was.
        statistics: running statistics after the first pass.
        versions: how often torch had written to each of the climbed weights; more by now means that somebody
            else has put weights there.
        guard: the hook on the model's ``state_dict``.
    """

    usable: bool
    statistics: list[tuple[Tensor, Tensor]]
    versions: list[int]
    guard: RemovableHandle


class InTwoCalls(WrappedOptimizer, ABC):
    """What lies between ``first_step`` and ``second_step``, however the step is ended or given up.

    A subclass says whether and how it climbs; :class:`analognoise.training.climb.SharpnessAware` tells users
    of the calls.
    """

    _open: _Open | None = None

    @abstractmethod
    def _climbs(self) -> bool:
        """Whether a step has a second pass at all."""

    @abstractmethod
    def _climb(self) -> bool:
        """Move the weights, with the gradients as scratch; False if their norm is not finite."""

    def _drop_gradients(self) -> None:
        """Clear the gradients for the second pass."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @property
    def _mid_step(self) -> bool:
        return super()._mid_step or self._open is not None

    def _forget(self) -> None:
        super()._forget()
        if self._open is not None:
            self._open.guard.remove()
            self._open = None

    @torch.no_grad()
    def first_step(self) -> None:
        """Climb, from the gradients that lie in ``.grad``; they are used up.

        After a second gradient without a step, as a ``GradScaler`` leaves it, the weights come back first. If
        that is only now and not with ``optimizer.zero_grad()``, a RuntimeWarning says that the gradients in
        ``.grad`` were taken at the climbed weights.

        Raises:
            MethodError: when a climb is open and no backward pass came after it, with noise, or for a sparse
                or complex gradient.
        """
        method = type(self).__name__
        if self._open is not None:
            if not self._gradients_there():
                raise MethodError(
                    f"{method}.first_step was called twice: a backward pass and second_step, or restore to "
                    "give up, come between"
                )
            self._give_up()
            warnings.warn(
                f"{method}.first_step, step {self.steps}: the step before had no second_step; the weights "
                "have come back only now, so this climb goes by a gradient at the climbed ones: call "
                "optimizer.zero_grad() before each first pass",
                RuntimeWarning,
                stacklevel=2,
            )
        if self.noise or self.computing is not None:
            raise MethodError(
                f"{method}.first_step comes too late for noise, which belongs before the first pass: "
                "use step(closure)"
            )
        statistics = self._replay.statistics()
        usable = self._climb() if self._climbs() else True
        self._drop_gradients()
        versions = [parameter._version for parameter in self._clean]
        guard = self.model.register_state_dict_pre_hook(self._before_saving)
        self._open = _Open(usable, statistics, versions, guard)

    def second_step(self) -> None:
        """Come back, and let the base optimizer step with the gradients that lie in ``.grad``.

        Raises:
            MethodError: when no climb is open.
        """
        if self._open is None:
            raise MethodError(f"{type(self).__name__}.second_step needs a first_step before it")
        self.step()

    @torch.no_grad()
    def restore(self) -> None:
        """Come back without a step; for a ``first_step`` that is given up.

        Call it after the last step of a training with a ``GradScaler``, which may have left that step out.
        Where no climb is open it does nothing. Running statistics are then those after the first pass.
        """
        self._restore()
        if self._open is not None:
            self._replay.give_back(self._open.statistics)
            self._forget()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients; a second one that no step has used gives that step up: weights come back."""
        if self._open is not None and self._gradients_there():
            self._give_up()
        super().zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state dict, with the number of steps and the seed under ``"analognoise"``.

        The model's own ``state_dict`` goes by the same rule between ``first_step`` and ``second_step``.

        Raises:
            MethodError: between ``first_step`` and ``second_step``, unless the second gradient is there and
                not finite, so that a ``GradScaler`` has left the step out: then the weights come back.
        """
        self._before_saving()
        return super().state_dict()

    def _before_saving(self, *_: Any) -> None:
        if self._open is None:
            return
        gradients = self._gradients_there()
        if not gradients or all(map(math.isfinite, norms(gradients, math.inf))):
            raise MethodError(
                f"{type(self).__name__}, step {self.steps}: the weights cannot be stored between first_step "
                "and second_step, where they are not the clean ones: call second_step, or restore to give up"
            )
        self._give_up()

    @torch.no_grad()
    def _give_up(self) -> None:
        """Come back, unless other weights were put into the model since the climb."""
        if self._open is not None and self._open.versions == [weight._version for weight in self._clean]:
            self.restore()
        self._forget()

    def _gradients_there(self) -> list[Tensor]:
        return [
            parameter.grad
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and parameter.numel()
        ]
