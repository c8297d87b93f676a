"""The sharpness of a trained model, of the kind that is asked for."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn import functional

from analognoise.batches import is_out_of_memory
from analognoise.errors import DataError, MethodError
from analognoise.evaluation.data import EvaluationData
from analognoise.halving import until_it_fits
from analognoise.landscape import curvature, rise
from analognoise.landscape.settings import Sharpness, settled
from analognoise.landscape.stored import around_stored_weights
from analognoise.landscape.surface import Surface, opened
from analognoise.training.measure import Loss


def sharpness(
    model: nn.Module,
    loader: Any,
    kind: str = "sam",
    *,
    rho: float | None = None,
    eta: float | None = None,
    p: float | None = None,
    steps: int | None = None,
    noise: float | None = None,
    draws: int | None = None,
    iterations: int | None = None,
    perturb: str = "all",
    loss: Loss = functional.cross_entropy,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    eval_mode: bool = True,
    tolerance: float = 0.01,
    seed: int = 0,
) -> Sharpness:
    """Measure how sharp the mean loss over the data is at a model's weights.

    ==================  ================================================================================
    kind                value
    ==================  ================================================================================
    sam, asam, samson   rise of the loss at the worst point found within ‖T⁻¹ε‖₂ ≤ ρ, with the scaling T of
                        the optimizer of that name (:class:`SAM`, :class:`ASAM`, :class:`SAMSON`); at
                        least 0
    random              mean rise over draws of w + N(0, (noise · max|w_l|)²), per parameter tensor l
    eigenvalue          largest (most positive) eigenvalue of the loss's Hessian, by Lanczos iteration
    trace               trace of the Hessian, by Hutchinson's estimator
    ==================  ================================================================================

    The loss is that of the digital weights, also in a converted model, whose chip is neither used nor
    touched; in a quantized model that of the quantized weights Q(w), and these are moved (gradients pass
    straight through the rounding of its inputs, if they are quantized). It is taken over all the data, not
    per batch as in training. Parameters that require no gradient stay where they are. The model's weights,
    gradients, modes and buffers and the global random generators are left as found, also where an exception
    ends the work.

    Args:
        model: digital, converted or quantized.
        loader: a DataLoader or list of batches, the same in every pass; as for
            :func:`analognoise.evaluate_drift`.
        kind: see above.
        rho: size of the neighbourhood, in weight units for "sam" and without unit for the others; None takes
            the optimizer's default.
        eta: added to each weight's size ("asam", "samson"), in weight units.
        p: ``math.inf`` or 2, SAMSON's norm.
        steps: ascent steps; the first is the optimizer's own, and more never find less.
        noise: standard deviation relative to the tensor's largest weight ("random").
        draws: number of random vectors ("random", "trace").
        iterations: products with the Hessian at most ("eigenvalue").
        perturb: ``"all"`` parameters, or only the ``"weights"`` (those whose name contains ``weight``), as in
            training; for eigenvalue and trace the Hessian is that with respect to them.
        loss: ``loss(output, target)``, the mean over a batch's labels; in training's conventions
            (:func:`analognoise.fit`).
        forward: ``forward(model, batch)``; None takes ``model(x)`` of a batch ``(x, y)``.
        eval_mode: whether to measure in eval mode, where BatchNorm uses its running statistics and nothing is
            dropped out; False leaves every module in the mode it is in, with the same random numbers for a
            batch in every pass.
        tolerance: how close, relative to the value, counts as converged; see :attr:`Sharpness.converged`.
        seed: root of the random keys: the same seed gives the same value.

    Returns:
        The value with its standard error or bracket, and whether it has converged. What has not is returned
        all the same: look at ``converged``.

    A batch that memory does not suffice for is halved, and the measurement begins anew with batches of at
    most that size; not with ``eval_mode=False``, where the loss is another one then.

    Raises:
        MethodError: for an unknown kind, an option that is not the kind's or out of range, a model without
            parameters to move, or one without second derivatives where the Hessian is asked for.
        NotFiniteError: when the loss or a derivative is NaN or infinite; names batch or parameter.
        DataError: when the data has no batch, differs between passes, or is not understood.
    """
    given = {
        "rho": rho,
        "eta": eta,
        "p": p,
        "steps": steps,
        "noise": noise,
        "draws": draws,
        "iterations": iterations,
    }
    options = settled(kind, given, perturb, tolerance)
    try:
        root = operator.index(seed)
    except TypeError:
        raise MethodError(f"sharpness: seed must be a whole number, found {seed!r}") from None
    if not isinstance(model, nn.Module):
        raise MethodError(f"sharpness: model must be a torch.nn.Module, found {type(model).__name__}")
    model = around_stored_weights(model)
    first = next(model.parameters(), None)
    if first is None:
        raise MethodError(f"sharpness: {type(model).__name__} has no parameters to move")
    data = EvaluationData(loader, first.device)

    def measure() -> Sharpness:
        with opened(
            model, data, eval_mode=eval_mode, seed=root, perturb=perturb, loss=loss, forward=forward
        ) as surface:
            return _measured(surface, kind, options, perturb, float(tolerance), root)

    if eval_mode:
        return until_it_fits(measure, data, lambda: None)
    try:
        return measure()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise DataError(
            f"sharpness: there is not enough memory for a batch ({type(error).__name__}), and with "
            "eval_mode=False it is not halved, because layers in training mode compute with the batch as a "
            "whole: give smaller batches"
        ) from error


def _measured(
    surface: Surface, kind: str, options: dict[str, Any], perturb: str, tolerance: float, seed: int
) -> Sharpness:
    error: float | None = None
    bracket: tuple[float, float] | None = None
    converged: bool | None
    if kind == "eigenvalue":
        pair, converged = curvature.largest_eigenvalue(surface, tolerance=tolerance, seed=seed, **options)
        value, bracket = pair.value, (pair.value - pair.residual, pair.value + pair.residual)
    elif kind in ("random", "trace"):
        estimate = rise.random_rise if kind == "random" else curvature.trace
        value, error = estimate(surface, seed=seed, **options)
        converged = error <= tolerance * abs(value)
    else:
        value, converged = rise.worst_rise(surface, kind, tolerance=tolerance, **options)
    return Sharpness(
        kind=kind,
        value=value,
        loss=surface.loss,
        standard_error=error,
        bracket=bracket,
        converged=converged,
        passes=surface.passes,
        parameters=surface.size,
        options={**options, "perturb": perturb, "tolerance": tolerance, "seed": seed},
    )
