"""What a comparison trains, as data: methods with settings of their own, and every training."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from analognoise.comparison.sparse import Loss, SparsityChoice
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import MethodError
from analognoise.tasks import Task
from analognoise.training.recipes import Recipe, parse_method, refuse_late_modifiers
from analognoise.units import short_number

MOMENTUM, WEIGHT_DECAY, SCHEDULE = 0.9, 0.0, "cosine"


@dataclass(frozen=True)
class Contender:
    """A method in a comparison, with training settings of its own where they differ from the others'.

    Attributes:
        recipe: a recipe or its text.
        name: what tables call it; None takes the recipe's label.
        epochs: None takes the comparison's.
        lr: None takes the comparison's.
    """

    recipe: str | Recipe
    name: str | None = None
    epochs: int | None = None
    lr: float | None = None

    @classmethod
    def parse(cls, text: str) -> Contender:
        """Read a recipe's text that may also hold ``lr=`` and ``epochs=``, as in ``sam:rho=0.1:lr=0.02``.

        Raises:
            MethodError: when one of them is given twice or is not a number, or the recipe is not one.
        """
        refuse_late_modifiers(text)
        own: dict[str, int | float] = {}
        rest = []
        for part in text.split(":"):
            name, equals, value = (word.strip() for word in part.partition("="))
            if not equals or name not in ("lr", "epochs"):
                rest.append(part)
                continue
            if name in own:
                raise MethodError(f"{name} is given twice in method {text!r}")
            try:
                own[name] = float(value) if name == "lr" else int(value)
            except ValueError:
                kind = "a number" if name == "lr" else "a whole number"
                raise MethodError(f"{name} in method {text!r} must be {kind}, found {value!r}") from None
        recipe = parse_method(":".join(rest))
        more = [f"{key}={short_number(own[key])}" for key in ("lr", "epochs") if key in own]
        name = ":".join([recipe.label, *more])
        epochs = own.get("epochs")
        return cls(recipe, name, None if epochs is None else int(epochs), own.get("lr"))


@dataclass(frozen=True)
class Training:
    """One training of a comparison; everything that its weights depend on, besides the code.

    Attributes:
        method: name in tables and files.
        recipe: what is trained.
        seed: training seed.
        epochs: passes over the training data.
        lr: learning rate at the start.
        batch_size: samples in a batch; None leaves it to the task.
        profile: the device that the method trains for, if it needs one.
        task: name of the task.
        data: digest of the training data (of the first batch, where they do not lie in memory).
        start: digest of the model's initial weights and the loss.
        digital: patterns of layer names that stay digital: no noise, no clipping.
        variant: what of the recipe tables do not call method, in short; empty where the method says all.
        sparsity: of the model's activations; None where nobody asks.
    """

    method: str
    recipe: Recipe
    seed: int
    epochs: int
    lr: float
    batch_size: int | None
    profile: DeviceProfile | None
    task: str
    data: str
    start: str
    digital: tuple[str, ...] = ()
    variant: str = ""
    sparsity: SparsityChoice | None = None

    @property
    def title(self) -> str:
        """What is trained, in words."""
        return ", ".join(filter(None, (self.method, self.variant, f"seed {self.seed}")))

    @property
    def stem(self) -> str:
        """File name without suffix, for example ``samson-seed0``."""
        return stem_of(self.method, self.seed, self.profile.name if self.profile else self.variant)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "method": self.method,
            **describe_recipe(self.recipe),
            "training_seed": self.seed,
            "epochs": self.epochs,
            "lr": self.lr,
            "batch_size": self.batch_size,
            "momentum": MOMENTUM,
            "weight_decay": WEIGHT_DECAY,
            "schedule": SCHEDULE,
            "profile": self.profile and {"name": self.profile.name, "digest": self.profile.digest},
            "task": self.task,
            "training_data": self.data,
            "initial_weights": self.start,
            **unless_empty(self.digital),
            **({"variant": self.variant} if self.variant else {}),
            **({"sparsity": self.sparsity.to_dict()} if self.sparsity else {}),
        }

    def build(self, task: Task) -> nn.Module:
        """The model before its training."""
        model = task.model(self.seed)
        return self.sparsity.applied(model) if self.sparsity else model

    def prepared(self, task: Task) -> nn.Module:
        """That model as the method trains it: with quantizers, for example.

        Raises:
            MethodError: when the method cannot train it.
        """
        return self.recipe.prepare(
            self.build(task), profile=self.profile, digital=self.digital, seed=self.seed
        )

    def penalised(self, model: nn.Module, loss: Loss) -> AbstractContextManager[Loss]:
        """The loss that the model is trained with."""
        return nullcontext(loss) if self.sparsity is None else self.sparsity.penalised(model, loss)

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits of all of it."""
        return digest(self.to_dict())


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values."""
    return {
        "recipe": recipe.stored_label,
        "modifiers": list(recipe.modifiers),
        "hyperparameters": recipe.hyperparameters,
        "gradients_per_step": recipe.gradients_per_step,
    }


def unless_empty(digital: tuple[str, ...]) -> dict[str, list[str]]:
    """The layers that stay digital, where there is one: runs without it stay the runs that they were."""
    return {"digital": list(digital)} if digital else {}


def digest(content: Any) -> str:
    """16 hexadecimal digits of plain values."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stem_of(method: str, seed: int | None, variant: str = "") -> str:
    """File name, without suffix, of a model that a method trained (for a profile, or in a variant)."""
    target = f"@{variant}" if variant else ""
    return f"{re.sub(r'[^A-Za-z0-9+=.@%-]', '_', method + target)}-seed{seed}"
