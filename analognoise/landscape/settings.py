"""What is asked of a sharpness, checked, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any

from analognoise.errors import MethodError, nearest
from analognoise.printing import number
from analognoise.training.checks import check_number

# Every kind of sharpness, with the options that it takes and their defaults: those of the training methods
# where there is one.
KINDS: dict[str, dict[str, Any]] = {
    "sam": {"rho": 0.05, "steps": 1},
    "asam": {"rho": 0.5, "eta": 0.01, "steps": 1},
    "samson": {"rho": 0.2, "p": math.inf, "eta": 0.01, "steps": 1},
    "random": {"noise": 0.038, "draws": 32},
    "eigenvalue": {"iterations": 100},
    "trace": {"draws": 32},
}
_LEAST = {"steps": 1, "draws": 2, "iterations": 1}


@dataclass(frozen=True)
class Sharpness:
    """How sharp the loss is at a model's weights.

    Attributes:
        kind: what was measured; see :func:`analognoise.sharpness`.
        value: the rise of the loss, in its units; or the eigenvalue or trace, in loss per squared weight.
        loss: the mean loss at the weights as they are.
        standard_error: of the mean over draws ("random", "trace"); None for the other kinds.
        bracket: interval that holds an eigenvalue of the Hessian ("eigenvalue"): value ∓ the residual
            ‖Hv − value · v‖ of the unit vector v found; None for the other kinds.
        converged: whether the value is settled within ``tolerance`` of itself: by its standard error
            ("random", "trace"), by the residual ("eigenvalue"), or because the last ascent step gained no
            more; None for a single ascent step, which is what it is.
        passes: passes over the data; a gradient and a product with the Hessian count as one each.
        parameters: how many numbers were moved.
        options: what was asked for, by name: the kind's own, ``perturb``, ``seed`` and ``tolerance``.
    """

    kind: str
    value: float
    loss: float
    standard_error: float | None
    bracket: tuple[float, float] | None
    converged: bool | None
    passes: int
    parameters: int
    options: Mapping[str, Any]

    def __str__(self) -> str:
        text = f"{self.kind}: {number(self.value, '.4g')}"
        if self.standard_error is not None:
            text += f" ± {self.standard_error:.2g} (standard error)"
        if self.bracket is not None:
            text += f", bracket {' to '.join(number(end, '.4g') for end in self.bracket)}"
        if self.converged is False:
            text += f", not converged to {self.options['tolerance']:.2g} of it"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; an infinite ``p`` is the text "inf"."""
        options = {name: str(value) if value == math.inf else value for name, value in self.options.items()}
        return asdict(self) | {"bracket": self.bracket and list(self.bracket), "options": options}


def settled(kind: str, given: Mapping[str, Any], perturb: str, tolerance: float) -> dict[str, Any]:
    """The options of a kind: those given, and the defaults of the others.

    Raises:
        MethodError: for an unknown kind, an option that the kind does not have, or a value out of range.
    """
    if kind not in KINDS:
        raise MethodError(
            f"sharpness: unknown kind {kind!r}{nearest(str(kind), KINDS)}: known are {', '.join(KINDS)}"
        )
    own = KINDS[kind]
    found = {name: value for name, value in given.items() if value is not None}
    for name in found:
        if name not in own:
            raise MethodError(f"sharpness: kind {kind!r} takes no {name}; it takes {', '.join(own)}")
    options = own | found
    for name, value in options.items():
        if name in _LEAST:
            if not isinstance(value, Integral) or isinstance(value, bool) or value < _LEAST[name]:
                raise MethodError(
                    f"sharpness: {name} must be a whole number, at least {_LEAST[name]}, found {value!r}"
                )
        elif name == "p":
            if isinstance(value, bool) or value not in (2, math.inf):
                raise MethodError(f"sharpness: p must be 2 or math.inf, found {value!r}")
        else:
            check_number("sharpness", name, value, above=name != "eta")
    check_number("sharpness", "tolerance", tolerance, above=True)
    if perturb not in ("all", "weights"):
        raise MethodError(
            f"sharpness: perturb must be 'all' or 'weights', found {perturb!r}"
            f"{nearest(str(perturb), ('all', 'weights'))}"
        )
    return options
