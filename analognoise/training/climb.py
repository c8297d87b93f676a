"""The climb of sharpness-aware training.

At weights w with gradient g, climb to w + ε, take the gradient there, come back to w, and let the base
optimizer step with it:

    ε_l = ρ · T_l² ⊙ g_l / sqrt(Σ_m ‖T_m ⊙ g_m‖₂²)

The sum runs over all tensors: one global norm. T_l is 1 for SAM; for weight tensors it is |w| + η in ASAM and
(|w| + η) / ‖w_l‖_p in SAMSON, and 1 for all others. A weight tensor is one whose parameter name contains
``weight``, normalization scales included, as in the methods' public codes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from operator import mul
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from analognoise.errors import MethodError
from analognoise.training.checks import check_gradient, check_number, check_steps
from analognoise.training.replay import Replay
from analognoise.training.wrapper import Closure, WrappedOptimizer, as_numbers, run_closure

# Norms below this count as zero: their reciprocal would overflow float32.
_TINY = 1e-30

_Climber = tuple[Tensor, dict[str, Any]]


class SharpnessAware(WrappedOptimizer):
    """What SAM, ASAM and SAMSON share.

    A step takes two passes. The second repeats the random numbers of the first (the same dropout masks;
    torch's generators always, Python's and NumPy's if the first step's closure draws from them), and
    batch-normalization statistics count the first pass only. With every ρ = 0 a step takes one pass and is
    the base optimizer's, bit for bit. One copy of the perturbed parameters is held meanwhile.

    If the gradient's norm is NaN or infinite there is no climb, no second pass and no update: the weights
    stay as they were, a RuntimeWarning says so, and the caller finds the loss in the return value. The second
    gradient goes to the base optimizer as it is.

    With ``noise`` both passes see the same draw: the climb starts from the noisy weights, and T is that of
    the clean ones.

    Options ``rho`` and ``eta`` stand in the parameter groups and may differ between groups or be changed at
    any step. Groups of a base optimizer with ``maximize=True`` climb downwards.

    Instead of ``step(closure)``, which is to be preferred: ``loss.backward(); optimizer.first_step()``,
    forward and backward again, then ``optimizer.second_step()`` (or ``step()``, as a ``GradScaler`` calls
    it). ``first_step`` uses up the gradients. Random numbers are not replayed that way, and noise is not
    possible.
    """

    _scaled: ClassVar[bool] = True

    def __init__(
        self,
        base: Optimizer,
        model: nn.Module,
        *,
        rho: float,
        eta: float | None = None,
        perturb: str = "all",
        rho_warmup: int = 0,
        clip: float | None = None,
        noise: float | None = None,
        noise_ramp: int = 0,
        seed: int = 0,
        before_step: Callable[[], Any] | None = None,
    ) -> None:
        method = type(self).__name__
        self._options = {"rho": rho} if eta is None else {"rho": rho, "eta": eta}
        for name, value in self._options.items():
            check_number(method, name, value)
        if perturb not in ("all", "weights"):
            raise MethodError(f"{method}: perturb must be 'all' or 'weights', found {perturb!r}")
        check_steps(method, "rho_warmup", rho_warmup)
        self.perturb = perturb
        self.rho_warmup = rho_warmup
        # Between first_step and second_step: whether the gradient was usable, and the running statistics.
        self._pending: tuple[bool, list[tuple[Tensor, Tensor]]] | None = None
        super().__init__(
            base, model, clip=clip, noise=noise, noise_ramp=noise_ramp, seed=seed, before_step=before_step
        )

    @property
    def _mid_step(self) -> bool:
        return super()._mid_step or self._pending is not None

    def _forget(self) -> None:
        super()._forget()
        self._pending = None

    def _index(self) -> None:
        super()._index()
        self._replay = Replay(self.model)
        for number, group in enumerate(self.param_groups):
            for name, value in self._options.items():
                check_number(
                    f"{type(self).__name__}, parameter group {number}", name, group.setdefault(name, value)
                )

    @torch.no_grad()
    def first_step(self) -> None:
        """Climb, from the gradients that lie in ``.grad``; they are used up.

        Raises:
            MethodError: when a climb is open already, with noise, or for a sparse or complex gradient.
        """
        method = type(self).__name__
        if self._pending is not None:
            raise MethodError(
                f"{method}.first_step was called twice: second_step, or restore to give up, comes between"
            )
        if self.noise:
            raise MethodError(
                f"{method}.first_step comes too late for noise, which belongs before the first pass: "
                "use step(closure)"
            )
        statistics = self._replay.statistics()
        usable = self._climb() if self._climbs() else True
        self._drop_gradients()
        self._pending = (usable, statistics)

    def second_step(self) -> None:
        """Come back, and let the base optimizer step with the gradients that lie in ``.grad``.

        Raises:
            MethodError: when no climb is open.
        """
        if self._pending is None:
            raise MethodError(f"{type(self).__name__}.second_step needs a first_step before it")
        self.step()

    @torch.no_grad()
    def restore(self) -> None:
        """Come back without a step; for a ``first_step`` that is given up."""
        self._restore()
        if self._pending is not None:
            self._replay.give_back(self._pending[1])
            self._pending = None

    def _gradients(self, closure: Closure | None) -> tuple[Any, bool]:
        if self._pending is not None:
            if closure is not None:
                raise MethodError(f"{type(self).__name__}.step after first_step takes no closure")
            usable = self._pending[0]
            self.restore()
            return None, usable
        if closure is None:
            raise self._no_closure()
        if not self._climbs():
            return super()._gradients(closure)
        self._replay.begin(parameter for group in self.param_groups for parameter in group["params"])
        try:
            self._perturb()
            loss = run_closure(closure)
            usable = self._climb()
            if usable:
                self._drop_gradients()
                with self._replay.second_pass():
                    run_closure(closure)
        finally:
            self._restore()
        return loss, usable

    def _climbs(self) -> bool:
        return any(group.get("rho", self._options["rho"]) for group in self.param_groups)

    def _drop_gradients(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _divisors(self, weights: list[Tensor]) -> list[float]:
        """What each weight tensor's scaling is divided by; 0 leaves the tensor where it is."""
        return [1.0] * len(weights)

    def _climb(self) -> bool:
        """Move the weights by ε, with the gradients as scratch; False if the norm is not finite.

        The memory of the scalings becomes that of the clean copies, so that no more than one copy of the
        parameters is held.
        """
        scaled, plain = self._climbers()
        moved = scaled + plain
        if not moved:
            return True
        weights = [parameter for parameter, _ in moved]
        gradients = [cast(Tensor, parameter.grad) for parameter in weights]
        head = gradients[: len(scaled)]
        scales: list[Tensor] = []
        reciprocals = [1.0] * len(moved)
        if scaled:
            clean = [self._clean.get(weight, weight) for weight, _ in scaled]
            scales = list(torch._foreach_abs(clean))
            torch._foreach_add_(scales, [group.get("eta", self._options["eta"]) for _, group in scaled])
            torch._foreach_mul_(head, scales)
            reciprocals[: len(scaled)] = [
                1.0 / divisor if divisor > _TINY else 0.0 for divisor in self._divisors(clean)
            ]
        total = math.hypot(*map(mul, norms(gradients, 2), reciprocals))
        if not math.isfinite(total):
            warnings.warn(
                f"{type(self).__name__}, step {self.steps}: the norm of the gradient is {total}; "
                "the weights are left as they were",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
        if total <= _TINY:
            return True
        if scaled:
            torch._foreach_mul_(head, scales)
        self._keep(weights, scales)
        factors = [
            self._signed_rho(group) / total * r * r for (_, group), r in zip(moved, reciprocals, strict=True)
        ]
        if len(set(factors)) == 1:
            torch._foreach_add_(weights, gradients, alpha=factors[0])
        else:
            torch._foreach_mul_(gradients, factors)
            torch._foreach_add_(weights, gradients)
        return True

    def _climbers(self) -> tuple[list[_Climber], list[_Climber]]:
        """The parameters that climb, each with its group: those scaled by abs(w) + η, and the others."""
        scaled: list[_Climber] = []
        plain: list[_Climber] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None or not parameter.numel():
                    continue
                name = self._names.get(parameter, "")
                is_weight = "weight" in name
                if is_weight or self.perturb == "all":
                    check_gradient(type(self).__name__, name, gradient)
                    (scaled if is_weight and self._scaled else plain).append((parameter, group))
        return scaled, plain

    def _signed_rho(self, group: dict[str, Any]) -> float:
        rho = group.get("rho", self._options["rho"]) * self._ramp(self.rho_warmup)
        return -rho if group.get("maximize") else rho

    def _keep(self, moved: list[Tensor], scratch: list[Tensor]) -> None:
        """Copy what will move, unless noise had it copied; ``scratch`` is memory for the first ones."""
        copies: dict[Tensor, Tensor] = {}
        for number, parameter in enumerate(moved):
            if parameter not in self._clean:
                copies[parameter] = (
                    scratch[number].copy_(parameter) if number < len(scratch) else parameter.clone()
                )
        self._clean.update(copies)


def norms(tensors: list[Tensor], order: float) -> list[float]:
    """Norm of each tensor; half precision sums in float32."""
    if any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in tensors):
        found = [
            torch.linalg.vector_norm(t, order, dtype=torch.promote_types(t.dtype, torch.float32))
            for t in tensors
        ]
    else:
        found = list(torch._foreach_norm(tensors, order))
    return as_numbers(found)
