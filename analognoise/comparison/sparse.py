"""Activation sparsity as a comparison asks for it: a word for what is done to the activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from analognoise.errors import SparsityError, nearest
from analognoise.sparsity import FORMS, KINDS, PRESETS, Sparsity, activation_penalty, sparsify_as

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class SparsityChoice:
    """What is done to a model's activations.

    Attributes:
        name: as it was asked for, for tables and files.
        form: what the activation layers' outputs are put through, in training and afterwards.
        penalty: kind and strength of the penalty in training.
    """

    name: str
    form: Sparsity | None = None
    penalty: tuple[str, float] | None = None

    @classmethod
    def parse(cls, text: str) -> SparsityChoice:
        """A preset (``none``, ``high``), a form as in ``top-k:0.1`` (the share or number of outputs kept) and
        ``threshold:0.5``, or a penalty in training as in ``l1:0.01`` and ``hoyer:0.1``.

        Raises:
            SparsityError: when it is none of them, or a number is out of range.
        """
        name = text.strip()
        if name in PRESETS:
            return cls(name, PRESETS[name])
        word, _, number = name.partition(":")
        known = [*PRESETS, *FORMS, *KINDS]
        if word not in (*FORMS, *KINDS):
            raise SparsityError(
                f"unknown sparsity {name!r}{nearest(word, known)}: give {', '.join(PRESETS)}, or as in "
                "top-k:0.1, threshold:0.5, l1:0.01, hoyer:0.1"
            )
        try:
            value = float(number)
        except ValueError:
            raise SparsityError(
                f"sparsity {name!r} needs a number behind {word!r}, found {number!r}: write for example "
                f"{_EXAMPLES[word]}"
            ) from None
        if word in KINDS:
            if not 0 <= value < float("inf"):
                raise SparsityError(f"sparsity {name!r}: the strength must be finite and at least 0")
            return cls(name, penalty=(word, value))
        keep: int | float = int(value) if number.isdigit() else value
        return cls(name, Sparsity(word, keep=keep) if word == "top-k" else Sparsity(word, level=value))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "name": self.name,
            "form": None if self.form is None else str(self.form),
            "penalty": None if self.penalty is None else list(self.penalty),
        }

    def applied(self, model: nn.Module) -> nn.Module:
        """The model with sparse activation layers, changed in place.

        Raises:
            SparsityError: when it has no activation layers.
        """
        return model if self.form is None else sparsify_as(model, self.form, inplace=True)

    @contextmanager
    def penalised(self, model: nn.Module, loss: Loss) -> Iterator[Loss]:
        """The loss with the penalty on what the model computed last.

        Raises:
            SparsityError: when the model has no activation layers.
        """
        if self.penalty is None:
            yield loss
            return
        kind, strength = self.penalty
        with activation_penalty(model, strength, kind) as penalty:
            yield lambda output, target: loss(output, target) + penalty()


_EXAMPLES = {"top-k": "top-k:0.1", "threshold": "threshold:0.5", "l1": "l1:0.01", "hoyer": "hoyer:0.1"}
