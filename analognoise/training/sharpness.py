"""Sharpness-aware training: SAM, ASAM and SAMSON.

They differ in the scaling T of the climb alone: see :mod:`analognoise.training.climb`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from analognoise.errors import MethodError
from analognoise.scalars import as_numbers
from analognoise.training.climb import SharpnessAware
from analognoise.training.slope import norms


class Options(TypedDict, total=False):
    """Options that SAM, ASAM and SAMSON share: see :class:`SAM` and :class:`WrappedOptimizer`."""

    perturb: str
    rho_warmup: int
    clip: float | None
    noise: float | None
    noise_ramp: int
    seed: int
    before_step: Callable[[], Any] | None
    sync: str


class SAM(SharpnessAware):
    """Sharpness-aware minimization: T = 1 (Foret et al. 2020, arXiv 2010.01412).

    Args:
        base: optimizer instance over parameters of ``model``.
        model: the module being trained.
        rho: length of the climb, in weight units.
        perturb: ``"all"`` parameters climb, or only the ``"weights"`` (those whose name contains ``weight``).
        rho_warmup: number of steps over which every ρ grows linearly to its full size; a single step with too
            large a ρ can ruin a training.
        clip, noise, noise_ramp, seed, before_step, sync: as in :class:`WrappedOptimizer`.

    Raises:
        MethodError: for a hyperparameter out of range, or a base that does not fit.
    """

    _scaled = False

    def __init__(
        self, base: Optimizer, model: nn.Module, *, rho: float = 0.05, **options: Unpack[Options]
    ) -> None:
        super().__init__(base, model, rho=rho, **options)


class ASAM(SharpnessAware):
    """Adaptive SAM: T = abs(w) + η for weight tensors, 1 for the others.

    Kwon et al. 2021, arXiv 2102.11600, as in the official code.

    Args:
        base: optimizer instance over parameters of ``model``.
        model: the module being trained.
        rho: length of the climb, without unit.
        eta: added to each weight's size, in weight units.
        perturb, rho_warmup: as in :class:`SAM`.
        clip, noise, noise_ramp, seed, before_step, sync: as in :class:`WrappedOptimizer`.

    Raises:
        MethodError: for a hyperparameter out of range, or a base that does not fit.
    """

    def __init__(
        self,
        base: Optimizer,
        model: nn.Module,
        *,
        rho: float = 0.5,
        eta: float = 0.01,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(base, model, rho=rho, eta=eta, **options)


class SAMSON(SharpnessAware):
    """SAMSON: T = (abs(w) + η) / ‖w_l‖_p for weight tensors, 1 for the others.

    Mordido et al. 2022, arXiv 2211.11561. ‖w_l‖_p is the norm of the whole parameter tensor, before η is
    added; a tensor of zeros has T = 0. With p = 2 the weights' T shrinks with the tensor's size while biases
    keep T = 1 and fill the norm: ``perturb="weights"`` leaves those out.

    Args:
        base: optimizer instance over parameters of ``model``.
        model: the module being trained.
        rho: length of the climb, without unit. The default is the source's for a vision transformer.
        p: ``math.inf`` or 2, the norm.
        eta: added to each weight's size, in weight units.
        perturb, rho_warmup: as in :class:`SAM`.
        clip, noise, noise_ramp, seed, before_step, sync: as in :class:`WrappedOptimizer`.

    Raises:
        MethodError: for a hyperparameter out of range, or a base that does not fit.
    """

    def __init__(
        self,
        base: Optimizer,
        model: nn.Module,
        *,
        rho: float = 0.2,
        p: float = math.inf,
        eta: float = 0.01,
        **options: Unpack[Options],
    ) -> None:
        if isinstance(p, bool) or p not in (2, math.inf):
            raise MethodError(f"{type(self).__name__}: p must be 2 or math.inf, found {p!r}")
        self.p = p
        super().__init__(base, model, rho=rho, eta=eta, **options)

    def _divisors(self, sizes: list[Tensor]) -> list[float]:
        # The largest, rather than the norm of that order, which takes some fifty times as long on a CPU.
        return as_numbers(list(torch._foreach_max(sizes))) if self.p == math.inf else norms(sizes, self.p)
