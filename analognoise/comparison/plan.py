"""A comparison, planned: what it trains, and under which conditions it measures every model.

A comparison trains several methods with several seeds and measures every model under some conditions, on
some chips, along an axis. What the conditions are (devices and drift compensations, say) a subclass of
:class:`Plan` knows; all else is here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from analognoise.comparison.jobs import Condition, EvaluationJob
from analognoise.comparison.settings import (
    MOMENTUM,
    SCHEDULE,
    WEIGHT_DECAY,
    Contender,
    Training,
    describe_recipe,
    digest,
    unless_empty,
)
from analognoise.evaluation.metrics import Metric
from analognoise.evaluation.rows import AnyRow
from analognoise.pool import Shared
from analognoise.report.layout import Layout
from analognoise.tasks import Task
from analognoise.training.recipes import parse_method


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
        job: the kind of job that measures a model.
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
    job: ClassVar[type[EvaluationJob[Any, Any]]]
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

    def evaluation(
        self, training: Training, condition: Condition, folder: str, known: tuple[AnyRow, ...]
    ) -> EvaluationJob[Any, Any]:
        """The job that measures a stored model under a condition."""
        return self.job(
            source=self.source,
            training=training,
            on=condition,
            folder=folder,
            positions=self.positions_of(condition),
            chips=self.chips,
            seed=self.evaluation_seed,
            known=known,
            **self.job_options(),
        )

    def job_options(self) -> dict[str, Any]:
        """What its jobs are told besides."""
        return {}

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
            **unless_empty(self.digital),
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


class DescribedCondition(Condition, Protocol):
    """A condition that plain values describe."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""


C = TypeVar("C", bound=DescribedCondition)


@dataclass(frozen=True, kw_only=True)
class SweepPlan(Plan, Generic[C]):
    """A comparison whose conditions are no devices, each measured at the same positions.

    Attributes:
        swept: all conditions.
        positions: on the axis.
    """

    swept: tuple[C, ...]
    positions: tuple[float, ...]

    @property
    def conditions(self) -> tuple[C, ...]:
        """What was swept."""
        return self.swept

    @property
    def subject_contents(self) -> dict[str, dict[str, Any]]:
        """The conditions, as plain values."""
        return {on.name: {"digest": digest(on.to_dict()), "content": on.to_dict()} for on in self.swept}

    def conditions_of(self, training: Training) -> tuple[C, ...]:
        """All of them."""
        return self.swept

    def positions_of(self, condition: Condition) -> tuple[float, ...]:
        """All of them."""
        return self.positions

    def subject_of(self, row: AnyRow) -> str:
        """The condition's name."""
        return row.condition

    def asked(self) -> dict[str, Any]:
        """Conditions and positions."""
        return {
            self.subjects: {on.name: digest(on.to_dict()) for on in self.swept},
            f"{self.layout.position}s": list(self.positions),
        }
