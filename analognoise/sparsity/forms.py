"""Forms of activation sparsity: which of a layer's outputs become zero.

Gradients go through the outputs that are kept, as through the identity, and not through the others: the
choice itself is taken to be constant.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from analognoise.errors import SparsityError, nearest

FORMS = ("top-k", "threshold")


@dataclass(frozen=True)
class Sparsity:
    """What an activation layer's outputs are put through.

    Attributes:
        form: "top-k" keeps of each sample's outputs the k largest in size (k winners take all: Xiao et al.
            2020, arXiv 1905.10510), "threshold" those that are at least ``level`` in size (FATReLU: Kurtz et
            al., ICML 2020).
        keep: of "top-k": how many, a whole number, or the share of them, above 0 and at most 1 (a float),
            rounded up.
        level: of "threshold": in units of the activation, at least 0.

    Raises:
        SparsityError: for an unknown form, a number that is out of range, missing, or of the other form.
    """

    form: str
    keep: int | float | None = None
    level: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.form, str) or self.form not in FORMS:
            hint = nearest(self.form, FORMS) if isinstance(self.form, str) else ""
            raise SparsityError(f"unknown form of sparsity {self.form!r}{hint}: known are {', '.join(FORMS)}")
        needed, other = ("keep", "level") if self.form == "top-k" else ("level", "keep")
        if getattr(self, needed) is None:
            raise SparsityError(f"form {self.form!r} needs {needed}=")
        if getattr(self, other) is not None:
            raise SparsityError(f"form {self.form!r} has no {other}: give {needed} alone")
        object.__setattr__(self, needed, _keep(self.keep) if self.form == "top-k" else _level(self.level))

    def __call__(self, values: Tensor, name: str = "") -> Tensor:
        """The values with zeros in place of those that are not kept.

        Args:
            values: ``[samples, ...]``, or ``[outputs]`` of a single sample.
            name: of the layer, for errors.

        Raises:
            SparsityError: when a sample has fewer outputs than are to be kept.
        """
        if self.level is not None:
            return values.masked_fill(values.abs() < self.level, 0.0)
        return _top_k(values, self._count(values, name))

    def _count(self, values: Tensor, name: str) -> int:
        size = math.prod(values.shape[1:]) if values.ndim > 1 else values.numel()
        if isinstance(self.keep, float):
            # 0.07 · 100 is 7.000000000000001 in binary.
            return math.ceil(self.keep * size * (1 - 1e-12))
        assert self.keep is not None
        if self.keep > size:
            raise SparsityError(
                f"layer {name or '(the model)'!r}: top-k keeps {self.keep} outputs per sample, but the layer "
                f"has {size}: give at most that, or a share such as 0.2"
            )
        return self.keep

    @property
    def arguments(self) -> str:
        """What makes it, as source text."""
        number = f"keep={self.keep!r}" if self.level is None else f"level={self.level!r}"
        return f"{self.form!r}, {number}"

    def __str__(self) -> str:
        number = f"keep={self.keep!r}" if self.level is None else f"level={self.level!r}"
        return f"{self.form}:{number}"


def _top_k(values: Tensor, count: int) -> Tensor:
    flat = values.flatten(1) if values.ndim > 1 else values.unsqueeze(0)
    if not flat.numel() or count >= flat.shape[1]:
        return values
    chosen = flat.detach().abs().topk(count, dim=1, sorted=False).indices
    dropped = torch.ones_like(flat, dtype=torch.bool).scatter_(1, chosen, False)
    return values.masked_fill(dropped.view(values.shape), 0.0)


def _keep(value: Any) -> int | float:
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            count = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            if 0 < float(value) <= 1:
                return float(value)
        else:
            if count >= 1:
                return count
    raise SparsityError(
        f"keep is {value!r}: give a whole number of at least 1, or a share (a float) above 0 and at most 1"
    )


def _level(value: Any) -> float:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not 0 <= float(value) < math.inf:
        raise SparsityError(f"level is {value!r}: give a finite threshold of at least 0")
    return float(value)
