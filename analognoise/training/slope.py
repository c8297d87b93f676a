"""What a climb goes by: the gradient, scaled, and its norm over all tensors.

    ε_l = ρ · T_l² ⊙ g_l / sqrt(Σ_m ‖T_m ⊙ g_m‖₂²)

T is what :mod:`analognoise.training.climb` says. All by foreach kernels, with the gradients as scratch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import mul
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from analognoise.allocator import Rooms
from analognoise.scalars import as_numbers

# Norms below this count as zero: their reciprocal would overflow float32.
_TINY = 1e-30


class Climber(NamedTuple):
    """Something that climbs.

    Attributes:
        moved: the tensor that ε is added to, with the gradient in its ``.grad``.
        group: the parameter group whose ρ and η count.
        size: the values whose size scales the climb.
    """

    moved: Tensor
    group: dict[str, Any]
    size: Tensor


class Slope:
    """T ⊙ g, up to a divisor for each tensor, in the place of the gradients.

    Args:
        scaled: what climbs with T = (abs(w) + η) / divisor; not both lists are empty.
        plain: what climbs with T = 1.
        etas: η of each scaled one.
        divisors: gives what each scaling is divided by, from abs(w); 0 leaves the tensor where it is.
        rooms: memory for the scalings.

    Attributes:
        weights: what moves, the scaled ones first.
        norm: of T ⊙ g, over all of them.
    """

    def __init__(
        self,
        scaled: list[Climber],
        plain: list[Climber],
        etas: list[float],
        divisors: Callable[[list[Tensor]], list[float]],
        rooms: Rooms,
    ) -> None:
        self.weights = [climber.moved for climber in scaled + plain]
        self._gradients = [cast(Tensor, weight.grad) for weight in self.weights]
        self._scales: list[Tensor] = []
        self._reciprocals = [1.0] * len(self.weights)
        if scaled:
            self._scales = rooms.absolutes([climber.size for climber in scaled])
            sizes = divisors(self._scales)
            self._reciprocals[: len(scaled)] = [1.0 / size if size > _TINY else 0.0 for size in sizes]
            torch._foreach_add_(self._scales, etas)
            self._scale()
        self.norm = math.hypot(*map(mul, norms(self._gradients, 2), self._reciprocals))

    @property
    def level(self) -> bool:
        """Whether there is nowhere to climb to."""
        return self.norm <= _TINY

    def turn(self) -> list[Tensor]:
        """Scale once more; the scalings are not needed any more, and their memory is given away."""
        if self._scales:
            self._scale()
        scales, self._scales = self._scales, []
        return scales

    def climb(self, rhos: list[float]) -> None:
        """Move each of the weights by its ε, after :meth:`turn`.

        Args:
            rhos: ρ of each, negative for a descent.
        """
        factors = [rho / self.norm * r * r for rho, r in zip(rhos, self._reciprocals, strict=True)]
        if len(set(factors)) == 1:
            torch._foreach_add_(self.weights, self._gradients, alpha=factors[0])
        else:
            torch._foreach_mul_(self._gradients, factors)
            torch._foreach_add_(self.weights, self._gradients)

    def _scale(self) -> None:
        torch._foreach_mul_(self._gradients[: len(self._scales)], self._scales)


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
