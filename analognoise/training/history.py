"""What is known of a training, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Epoch:
    """What is known after an epoch.

    Attributes:
        epoch: number of the epoch, from 1.
        epochs: number of epochs of the whole training.
        train_loss: mean over the epoch's samples of the loss at each step's first pass.
        validation: the validation metric under the digital weights, or None.
        gradients: gradient evaluations (forward and backward passes) so far.
    """

    epoch: int
    epochs: int
    train_loss: float
    validation: float | None
    gradients: int


@dataclass
class History:
    """A training, epoch by epoch: the columns of :class:`Epoch` as lists.

    Attributes:
        metric: name of the validation metric.
        trained: the model as the method trained it: the given one, or its quantized twin, for example, which
            shares the given one's Parameters and holds the learned ranges.
    """

    metric: str
    train_loss: list[float] = field(default_factory=list)
    validation: list[float | None] = field(default_factory=list)
    gradients: list[int] = field(default_factory=list)
    trained: nn.Module | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and text, for JSON."""
        return {
            "metric": self.metric,
            "train_loss": list(self.train_loss),
            "validation": list(self.validation),
            "gradients": list(self.gradients),
        }
