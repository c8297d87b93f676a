"""What a comparison is asked to do, as data.

A comparison trains several methods with several seeds and measures every model under some conditions, on
some chips, along an axis. What the conditions are (devices and drift compensations, say) a subclass of
:class:`Plan` knows; all else is here.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

from torch import nn

from analognoise.comparison.sparse import Loss, SparsityChoice
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import MethodError
from analognoise.evaluation.metrics import Metric
from analognoise.evaluation.rows import AnyRow
from analognoise.pool import Job, Shared
from analognoise.report.layout import Layout
from analognoise.tasks import Task
from analognoise.training.recipes import Recipe, parse_method

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
        own: dict[str, float] = {}
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
        name = ":".join([recipe.label, *(f"{key}={own[key]:g}" for key in ("lr", "epochs") if key in own)])
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
            **_unless_empty(self.digital),
            **({"variant": self.variant} if self.variant else {}),
            **({"sparsity": self.sparsity.to_dict()} if self.sparsity else {}),
        }

    def build(self, task: Task) -> nn.Module:
        """The model before its training."""
        model = task.model(self.seed)
        return self.sparsity.applied(model) if self.sparsity else model

    def penalised(self, model: nn.Module, loss: Loss) -> AbstractContextManager[Loss]:
        """The loss that the model is trained with."""
        return nullcontext(loss) if self.sparsity is None else self.sparsity.penalised(model, loss)

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits of all of it."""
        return digest(self.to_dict())


class Condition(Protocol):
    """What a trained model is measured under."""

    @property
    def name(self) -> str:
        """What rows call it."""


class Evaluation(Job, Protocol):
    """The measurement of one stored model under one condition; a job that emits lists of rows, and returns
    the rows' "run_id" and "warnings".
    """

    @property
    def training(self) -> Training:
        """How the model was trained."""

    @property
    def key(self) -> tuple[str, str, int]:
        """Condition, method and training seed: what the rows of the job have in common."""

    @property
    def size(self) -> int:
        """Number of rows."""

    @property
    def known(self) -> tuple[Any, ...]:
        """Rows that are there already."""


@dataclass(frozen=True, kw_only=True)
class Plan(ABC):
    """A whole comparison, checked.

    Attributes:
        source: the task as workers get it: its name, or itself, once for each of them.
        task: the task.
        contenders: the methods.
        chips: chips for every model and condition.
        seeds: training seeds.
        evaluation_seed: root seed of the chips.
        epochs: passes over the training data, where a method has none of its own.
        lr: learning rate at the start, likewise.
        batch_size: samples in a batch; None leaves it to the task.
        confidence: coverage of the intervals.
        workers: number of processes, or an executor.
        trainings: every model to train, by method, then seed.
        test_data: digest of the test data.
        model: what run.json says of the network.
        digital: patterns of layer names that stay digital.
        command: the command, as run.json names it.
        noun: a comparison of this kind, in words.
        row: the kind of its rows.
        layout: the names of their columns.
        subjects: the key in run.json under which conditions (or devices) are described.
        extent: settings of which a later call may ask for more or less; all else must be as it was.
        pictures: patterns of the pictures' names.
    """

    source: str | Shared
    task: Task
    contenders: tuple[Contender, ...]
    chips: int
    seeds: tuple[int, ...]
    evaluation_seed: int
    epochs: int
    lr: float
    batch_size: int | None
    confidence: float
    workers: int | Executor
    trainings: tuple[Training, ...]
    test_data: str
    model: dict[str, Any]
    digital: tuple[str, ...] = ()

    command: ClassVar[str]
    noun: ClassVar[str]
    row: ClassVar[type[AnyRow]]
    layout: ClassVar[Layout]
    subjects: ClassVar[str]
    extent: ClassVar[tuple[str, ...]]
    pictures: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def conditions(self) -> tuple[Condition, ...]:
        """All conditions, in the order of the rows."""

    @property
    @abstractmethod
    def subject_contents(self) -> dict[str, dict[str, Any]]:
        """What the conditions are about, by name: "digest" and "content"."""

    @abstractmethod
    def conditions_of(self, training: Training) -> tuple[Condition, ...]:
        """Those that the model of a training is measured under."""

    @abstractmethod
    def positions_of(self, condition: Condition) -> tuple[float, ...]:
        """Positions on the axis at which it is measured."""

    @abstractmethod
    def evaluation(
        self, training: Training, condition: Condition, folder: str, known: tuple[AnyRow, ...]
    ) -> Evaluation:
        """The job that measures a stored model under a condition."""

    @abstractmethod
    def subject_of(self, row: AnyRow) -> str:
        """Under which name ``subject_contents`` has what a row was measured under."""

    @abstractmethod
    def stems_of(self, row: AnyRow) -> set[str]:
        """The names under which the model of a row may be stored."""

    @abstractmethod
    def asked(self) -> dict[str, Any]:
        """What of the settings says where models are measured, as plain values."""

    def options(self) -> dict[str, Any]:
        """What of the settings says how, as plain values."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: all that results depend on, besides versions."""
        return {
            "task": self.task.name,
            "description": self.task.description,
            "methods": [
                {"name": c.name, **describe_recipe(parse_method(c.recipe)), "epochs": c.epochs, "lr": c.lr}
                for c in self.contenders
            ],
            **self.asked(),
            f"{self.layout.unit}s": self.chips,
            "training_seeds": list(self.seeds),
            "evaluation_seed": self.evaluation_seed,
            "epochs": self.epochs,
            "lr": self.lr,
            "batch_size": self.batch_size,
            "momentum": MOMENTUM,
            "weight_decay": WEIGHT_DECAY,
            "schedule": SCHEDULE,
            "metric": Metric.of(self.task.metric).name,
            **self._direction(),
            **self.options(),
            "confidence": self.confidence,
            "test_data": self.test_data,
            **_unless_empty(self.digital),
            "trainings": {training.stem: training.id for training in self.trainings},
        }

    def _direction(self) -> dict[str, bool]:
        """What the task's own metric says of its direction, where it says anything."""
        own = Metric.of(self.task.metric).higher_is_better
        return {} if own is None else {"higher_is_better": own}

    @cached_property
    def run_id(self) -> str:
        """16 hexadecimal digits of the settings."""
        return digest(self.to_dict())


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values."""
    return {
        "recipe": recipe.label,
        "modifiers": list(recipe.modifiers),
        "hyperparameters": recipe.hyperparameters,
        "gradients_per_step": recipe.gradients_per_step,
    }


def _unless_empty(digital: tuple[str, ...]) -> dict[str, list[str]]:
    """The setting, where there is one: runs without it stay the runs that they were."""
    return {"digital": list(digital)} if digital else {}


def digest(content: Any) -> str:
    """16 hexadecimal digits of plain values."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stem_of(method: str, seed: int | None, variant: str = "") -> str:
    """File name, without suffix, of a model that a method trained (for a profile, or in a variant)."""
    target = f"@{variant}" if variant else ""
    return f"{re.sub(r'[^A-Za-z0-9+=.@%-]', '_', method + target)}-seed{seed}"
