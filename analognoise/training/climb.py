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
from contextlib import nullcontext
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from analognoise.errors import MethodError
from analognoise.quantized import quantizer_ranges
from analognoise.training.checks import check_gradient, check_number, check_steps
from analognoise.training.slope import Climber, Slope, norms
from analognoise.training.two_calls import InTwoCalls
from analognoise.training.wrapper import Closure, forget_casts, run_closure


class SharpnessAware(InTwoCalls):
    """What SAM, ASAM and SAMSON share, and their forms for quantized weights.

    A step takes two passes. The second repeats the random numbers of the first (the same dropout masks;
    torch's generators always, Python's and NumPy's if the first step's closure draws from them), and
    batch-normalization statistics count the first pass only. With every ρ = 0 a step takes one pass and is
    the base optimizer's, bit for bit. One copy of the perturbed parameters is held meanwhile; on the
    processor the memory of tensors above 4 MB stays for the next step.

    If the gradient's norm is NaN or infinite there is no climb, no second pass and no update: the weights
    stay as they were, a RuntimeWarning says so, and the caller finds the loss in the return value. The second
    gradient goes to the base optimizer as it is. (With ``sync="worker"`` in several processes it is the
    second gradient, averaged over them, that must be finite: all take the step or none.)

    With ``noise`` both passes see the same draw: the climb starts from the noisy weights, and T is that of
    the clean ones.

    Options ``rho`` and ``eta`` stand in the parameter groups and may differ between groups or be changed at
    any step. Groups of a base optimizer with ``maximize=True`` climb downwards.

    Instead of ``step(closure)``, which is to be preferred: ``loss.backward(); optimizer.first_step()``,
    forward and backward again, then ``optimizer.second_step()`` (or ``step()``, as a ``GradScaler`` calls
    it). ``first_step`` uses up the gradients. Random numbers are not replayed that way, and noise is not
    possible.

    A ``GradScaler`` that finds an infinite second gradient leaves ``step()`` out, and the weights stay where
    the climb put them. They come back with the next ``optimizer.zero_grad()`` (not ``model.zero_grad()``),
    so the next pass sees the clean ones; failing that, with the next ``first_step``, which warns. After the
    last step, or before the model is evaluated, call ``optimizer.restore()``: it does nothing where there is
    nothing to do. ``state_dict`` of the optimizer and of its model come back from such a step too, and raise
    in the middle of any other, so that climbed weights are not stored for clean ones.
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
        sync: str = "all",
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

    def _index(self) -> None:
        super()._index()
        self._grids = set(quantizer_ranges(self.model).values())
        for number, group in enumerate(self.param_groups):
            for name, value in self._options.items():
                check_number(
                    f"{type(self).__name__}, parameter group {number}", name, group.setdefault(name, value)
                )

    def distribute(self, model: nn.Module, *, sync: str = "all") -> None:
        """As for every optimizer here.

        Raises:
            MethodError: also for "worker" with a ``static_graph``, whose first pass torch averages.
        """
        super().distribute(model, sync=sync)
        if self._apart and self._processes.static:
            raise MethodError(
                f"{type(self).__name__}: sync='worker' leaves out the averaging of the first pass, which "
                "DistributedDataParallel(static_graph=True) cannot: make it without static_graph, or take "
                "sync='all'"
            )

    def _gradients(self, closure: Closure | None) -> tuple[Any, bool]:
        if self._open is not None:
            if closure is not None:
                raise MethodError(f"{type(self).__name__}.step after first_step takes no closure")
            usable = self._open.usable
            self.restore()
            return None, self._agreed(usable)
        if closure is None:
            raise self._no_closure()
        if not self._climbs():
            return super()._gradients(closure)
        with self._replay.begun(parameter for group in self.param_groups for parameter in group["params"]):
            try:
                self._perturb()
                with self._processes.unaveraged() if self._apart else nullcontext():
                    loss = run_closure(closure)
                usable = self._climb()
                # The others wait for this process's part of the second gradient, whatever the first was.
                if usable or self._apart:
                    self._drop_gradients()
                    with self._replay.second_pass():
                        run_closure(closure)
            finally:
                self._restore()
        return loss, self._agreed(usable)

    def _agreed(self, usable: bool) -> bool:
        """Whether all processes take this step: those that climb apart go by the gradient that is the same in
        all of them.
        """
        if not self._apart:
            return usable
        total = math.hypot(*norms(self._gradients_there(), 2))
        if not math.isfinite(total):
            self._warn_of_norm(total)
        return math.isfinite(total)

    def _warn_of_norm(self, total: float) -> None:
        warnings.warn(
            f"{type(self).__name__}, step {self.steps}: the norm of the gradient is {total}; "
            "the weights are left as they were",
            RuntimeWarning,
            stacklevel=2,
        )

    def _climbs(self) -> bool:
        return any(group.get("rho", self._options["rho"]) for group in self.param_groups)

    def _divisors(self, sizes: list[Tensor]) -> list[float]:
        """What each weight tensor's scaling is divided by, from abs(w); 0 leaves the tensor where it is."""
        return [1.0] * len(sizes)

    def _climb(self) -> bool:
        """Move the weights by ε, with the gradients as scratch; False if the norm is not finite.

        The memory of the scalings becomes that of the clean copies, so that no more than one copy of the
        parameters is held.
        """
        if not self._apart:
            self._average_ranges()
        scaled, plain = self._climbers()
        if not (scaled or plain):
            return True
        etas = [climber.group.get("eta", self._options["eta"]) for climber in scaled]
        slope = Slope(scaled, plain, etas, self._divisors, self._rooms)
        if not math.isfinite(slope.norm):
            if not self._apart:
                self._warn_of_norm(slope.norm)
            return False
        if not slope.level:
            self._keep(slope.weights, slope.turn())
            slope.climb([self._signed_rho(climber.group) for climber in scaled + plain])
            forget_casts()
        return True

    def _climbers(self) -> tuple[list[Climber], list[Climber]]:
        """The parameters that climb, each with its group: those scaled by abs(w) + η, and the others."""
        scaled: list[Climber] = []
        plain: list[Climber] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None or not parameter.numel() or self._stays(parameter):
                    continue
                name = self._names.get(parameter, "")
                is_weight = "weight" in name
                if is_weight or self.perturb == "all":
                    check_gradient(type(self).__name__, name, gradient)
                    climber = Climber(parameter, group, self._clean.get(parameter, parameter))
                    (scaled if is_weight and self._scaled else plain).append(climber)
        return scaled, plain

    def _stays(self, parameter: Tensor) -> bool:
        """Whether a parameter never climbs: the learned ranges of quantizers, which are not weights."""
        return parameter in self._grids

    def _signed_rho(self, group: dict[str, Any]) -> float:
        rho = group.get("rho", self._options["rho"]) * self._ramp(self.rho_warmup)
        return -rho if group.get("maximize") else rho

    def _keep(self, moved: list[Tensor], scratch: list[Tensor]) -> None:
        """Copy what will move, unless noise had it copied; ``scratch`` is memory for the first ones."""
        copies: dict[Tensor, Tensor] = {}
        for number, parameter in enumerate(moved):
            if parameter not in self._clean:
                copies[parameter] = (
                    scratch[number].copy_(parameter)
                    if number < len(scratch)
                    else self._rooms.copy_of(parameter)
                )
        self._clean.update(copies)
