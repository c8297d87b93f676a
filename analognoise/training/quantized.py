"""Sharpness-aware training of quantized weights: SAQ, and its adaptive and SAMSON-like forms.

The climb starts from the quantized weights Q(w) and not from w, whose small moves rounding would swallow:

    ε_l = ρ · T_l² ⊙ g_l / sqrt(Σ_m ‖T_m ⊙ g_m‖₂²)        g = ∇L with respect to Q(w)

The second gradient is taken at Q(w) + ε and goes straight through the rounding to w (SAQ: Liu et al. 2021,
arXiv 2111.12273, with T = 1). T is that of :mod:`analognoise.training.climb`, computed from Q(w).
"""

from __future__ import annotations

import math
from typing import Any, Unpack, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from analognoise.errors import MethodError
from analognoise.training.checks import check_gradient
from analognoise.training.climb import SharpnessAware
from analognoise.training.sharpness import ASAM, SAM, SAMSON, Options
from analognoise.training.slope import Climber


class QuantizedClimb(SharpnessAware):
    """What SAQ, ASAQ and SAMSONSAQ share: the climb is an offset on the quantized weights.

    With ``perturb="weights"``, the default, as in SAQ, the quantized weights climb alone. With ``"all"``
    every other parameter climbs too, as in the optimizer of the same scaling: biases, normalization, layers
    left float. The learned ranges of quantizers never climb.

    With ``noise`` both passes compute with Q(w) + n, and the climb starts there; T is that of Q(w).
    """

    def __init__(self, base: Optimizer, model: nn.Module, **options: Any) -> None:
        options.setdefault("perturb", "weights")
        super().__init__(base, model, **options)

    def _index(self) -> None:
        super()._index()
        if not self._quantized:
            raise MethodError(
                f"{type(self).__name__}: {type(self.model).__name__} has no quantized layer to climb from: "
                "give the model that analognoise.quantize(model, bits=8) makes, and make the base optimizer "
                "from its parameters"
            )

    def first_step(self) -> None:
        """Not for quantized weights, whose gradient only ``step(closure)`` can catch.

        Raises:
            MethodError: always.
        """
        raise self._needs_both_passes("first_step")

    def second_step(self) -> None:
        """Not for quantized weights: see :meth:`first_step`.

        Raises:
            MethodError: always.
        """
        raise self._needs_both_passes("second_step")

    def _needs_both_passes(self, what: str) -> MethodError:
        return MethodError(
            f"{type(self).__name__}.{what}: the gradient of the quantized weights is not kept between "
            "passes: use step(closure)"
        )

    def _perturb(self) -> None:
        super()._perturb()
        if not self._climbs():
            return
        groups = self._groups()
        for layer in self._quantized.values():
            if layer.float_weight in groups and layer.float_weight.requires_grad:
                # A leaf of its own: its gradient is that of Q(w), which the one of w is not where it is cut.
                start = layer.offset if layer.offset is not None else torch.zeros_like(layer.float_weight)
                self._put_offset(layer, start.detach().requires_grad_())

    def _climb(self) -> bool:
        if not self._apart:  # as DistributedDataParallel averages the gradients of Parameters
            self._processes.average_gradients([cast(nn.Parameter, offset) for offset in self._climbing()])
        return super()._climb()

    def _climbing(self) -> list[Tensor]:
        """The offsets that climb."""
        offsets = [layer.offset for layer in self._quantized.values()]
        return [offset for offset in offsets if offset is not None and offset.requires_grad]

    def _climbers(self) -> tuple[list[Climber], list[Climber]]:
        scaled, plain = super()._climbers() if self.perturb == "all" else ([], [])
        groups = self._groups()
        found = []
        for name, layer in self._quantized.items():
            offset = layer.offset
            if offset is not None and offset.grad is not None:
                check_gradient(type(self).__name__, name, offset.grad)
                found.append(Climber(offset, groups[layer.float_weight], layer.quantized_weight()))
        return (found + scaled, plain) if self._scaled else (scaled, found + plain)

    def _stays(self, parameter: Tensor) -> bool:
        return super()._stays(parameter) or any(
            parameter is layer.float_weight for layer in self._quantized.values()
        )

    def _keep(self, moved: list[Tensor], scratch: list[Tensor]) -> None:
        # Offsets are dropped, not put back.
        dropped = {id(layer.offset) for layer in self._offset}
        super()._keep([tensor for tensor in moved if id(tensor) not in dropped], [])

    def _drop_gradients(self) -> None:
        super()._drop_gradients()
        for layer in self._offset:
            if layer.offset is not None and layer.offset.requires_grad:
                layer.offset = layer.offset.detach()

    def _groups(self) -> dict[Tensor, dict[str, Any]]:
        return {parameter: group for group in self.param_groups for parameter in group["params"]}


class SAQ(QuantizedClimb, SAM):
    """Sharpness-aware quantization: T = 1 (Liu et al. 2021, arXiv 2111.12273).

    Args:
        base: optimizer instance over parameters of ``model``.
        model: a quantized model (:func:`analognoise.quantize`).
        rho: length of the climb, in weight units. SAQ's own code climbs on standardised weights; its figures
            (0.1 to 0.9) do not carry over.
        perturb: ``"weights"`` (default): the quantized weights climb alone; ``"all"``: every parameter but
            the learned ranges.
        rho_warmup: as in :class:`SAM`.
        clip, noise, noise_ramp, seed, before_step: as in :class:`WrappedOptimizer`.

    Raises:
        MethodError: for a model without quantized layers, a hyperparameter out of range, or a base that does
            not fit.
    """

    def __init__(
        self, base: Optimizer, model: nn.Module, *, rho: float = 0.05, **options: Unpack[Options]
    ) -> None:
        super().__init__(base, model, rho=rho, **options)


class ASAQ(QuantizedClimb, ASAM):
    """Adaptive SAQ, analognoise's own: T = abs(Q(w)) + η, the scaling of ASAM.

    A weight that rounds to 0 climbs by η's share alone.

    Args:
        base: optimizer instance over parameters of ``model``.
        model: a quantized model.
        rho: length of the climb, without unit.
        eta: added to each quantized weight's size, in weight units.
        perturb, rho_warmup: as in :class:`SAQ`.
        clip, noise, noise_ramp, seed, before_step: as in :class:`WrappedOptimizer`.

    Raises:
        MethodError: as in :class:`SAQ`.
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


class SAMSONSAQ(QuantizedClimb, SAMSON):
    """SAQ with SAMSON's scaling, analognoise's own: T = (abs(Q(w)) + η) / ‖Q(w_l)‖_p.

    Args:
        base: optimizer instance over parameters of ``model``.
        model: a quantized model.
        rho: length of the climb, without unit.
        p: ``math.inf`` or 2, the norm of the whole tensor Q(w_l).
        eta: added to each quantized weight's size, in weight units.
        perturb, rho_warmup: as in :class:`SAQ`.
        clip, noise, noise_ramp, seed, before_step: as in :class:`WrappedOptimizer`.

    Raises:
        MethodError: as in :class:`SAQ`.
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
        super().__init__(base, model, rho=rho, p=p, eta=eta, **options)
