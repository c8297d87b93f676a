"""Regularisers that make activations sparse in training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from analognoise.errors import SparsityError, nearest
from analognoise.sparsity.conversion import activation_layers


def _l1(values: Tensor) -> Tensor:
    return values.abs().mean()


def _hoyer(values: Tensor) -> Tensor:
    flat = values.flatten(1) if values.ndim > 1 else values.unsqueeze(0)
    squares = flat.square().sum(1)
    # A sample without any activation is as sparse as can be: 0, without a gradient.
    some = squares > 0
    ratios = flat.abs().sum(1).square() / torch.where(some, squares, torch.ones_like(squares))
    return (ratios * some).mean() / flat.shape[1]


_KINDS: dict[str, Callable[[Tensor], Tensor]] = {"l1": _l1, "hoyer": _hoyer}
KINDS = tuple(_KINDS)


class ActivationPenalty:
    """What :func:`activation_penalty` gives: called after a forward, the penalty of that forward.

    Attributes:
        strength: λ.
        kind: "l1" or "hoyer".
    """

    def __init__(self, strength: float, kind: str) -> None:
        self.strength, self.kind = strength, kind
        self._parts: list[Tensor] = []

    def __call__(self) -> Tensor | float:
        """λ times the sum over layers since the last call; 0.0 when none computed with gradients."""
        parts, self._parts = self._parts, []
        return self.strength * torch.stack(parts).sum() if parts else 0.0

    def _note(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.strength and torch.is_grad_enabled() and isinstance(output, Tensor) and output.requires_grad:
            self._parts.append(_KINDS[self.kind](output))

    def __reduce__(self) -> Any:
        return ActivationPenalty, (self.strength, self.kind)  # what a forward left stays behind


@contextmanager
def activation_penalty(
    model: nn.Module,
    strength: float,
    kind: str = "l1",
    *,
    layers: str | Iterable[str] | None = None,
) -> Iterator[ActivationPenalty]:
    """A penalty on the outputs of activation layers, to be added to the loss of each forward inside::

        with an.activation_penalty(model, 1e-2) as penalty:
            loss = cross_entropy(model(x), y) + penalty()

    ==========  ==============================================================================================
    kind        of each layer (and each time it is called); summed over layers, times ``strength``
    ==========  ==============================================================================================
    l1          mean |a| over outputs and samples, in units of the activation
    hoyer       mean over samples of (Σ|a|)² / (n Σa²), n outputs: 1/n where one is active, 1 where all are
                equal, whatever their size (Hoyer-square: Yang et al. 2020, arXiv 1908.09979; on activations:
                Kurtz et al., ICML 2020)
    ==========  ==============================================================================================

    Args:
        model: any module with activation layers.
        strength: λ, at least 0.
        kind: see above.
        layers: as for :func:`analognoise.sparsify`.

    Raises:
        SparsityError: for an unknown kind, a strength out of range, or a model without such layers.
    """
    if not isinstance(kind, str) or kind not in _KINDS:
        hint = nearest(kind, KINDS) if isinstance(kind, str) else ""
        raise SparsityError(f"unknown kind of penalty {kind!r}{hint}: known are {', '.join(KINDS)}")
    number = isinstance(strength, Real) and not isinstance(strength, bool)
    if not number or not 0 <= float(strength) < math.inf:
        raise SparsityError(f"strength is {strength!r}: give a finite number of at least 0")
    penalty = ActivationPenalty(float(strength), kind)
    hooks = [
        module.register_forward_hook(penalty._note) for module in activation_layers(model, layers).values()
    ]
    try:
        yield penalty
    finally:
        for hook in hooks:
            hook.remove()
