"""What a comparison is asked to do, as data; ``checks.settle`` makes it from arguments."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from analognoise.crossbar.compensation import name_chips, split_compensation
from analognoise.devices.profile import DeviceProfile
from analognoise.evaluation.metrics import Metric
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

    @property
    def stem(self) -> str:
        """File name without suffix, for example ``samson-seed0``."""
        return stem_of(self.method, self.seed, self.profile.name if self.profile else None)

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
        }

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits of all of it."""
        return digest(self.to_dict())


@dataclass(frozen=True)
class Chips:
    """What a trained model is evaluated on: chips of one device with one drift compensation."""

    profile: DeviceProfile
    compensation: str

    @property
    def name(self) -> str:
        """What rows call them."""
        return name_chips(self.profile.name, self.compensation)


@dataclass(frozen=True)
class Settings:
    """A whole comparison, checked; see :func:`analognoise.comparison.compare` for the fields.

    Attributes:
        source: the task as workers get it: its name, or itself.
        trainings: every model to train, by method, then seed.
        model: what of the network is on tiles under each profile.
    """

    source: str | Task
    task: Task
    contenders: tuple[Contender, ...]
    profiles: tuple[DeviceProfile, ...]
    times: tuple[float, ...]
    chips: int
    seeds: tuple[int, ...]
    evaluation_seed: int
    epochs: int
    lr: float
    batch_size: int | None
    compensations: tuple[str, ...]
    calibration_batches: int
    confidence: float
    workers: int
    trainings: tuple[Training, ...]
    test_data: str
    model: dict[str, Any]
    digital: tuple[str, ...] = ()

    def times_of(self, profile: DeviceProfile) -> tuple[float, ...]:
        """Drift times to evaluate at; one only, 0 s, for a device on which nothing depends on time."""
        return self.times if profile.has_drift else (0.0,)

    @property
    def chips_of_all(self) -> tuple[Chips, ...]:
        """Every device with every compensation."""
        return tuple(Chips(profile, name) for profile in self.profiles for name in self.compensations)

    def chips_of(self, training: Training) -> tuple[Chips, ...]:
        """What a model is evaluated on: all devices, or the one that it was trained for."""
        return tuple(c for c in self.chips_of_all if training.profile in (None, c.profile))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: all that results depend on, besides versions."""
        return {
            "task": self.task.name,
            "description": self.task.description,
            "methods": [
                {"name": c.name, **describe_recipe(parse_method(c.recipe)), "epochs": c.epochs, "lr": c.lr}
                for c in self.contenders
            ],
            "profiles": {profile.name: profile.digest for profile in self.profiles},
            "times_s": list(self.times),
            "chips": self.chips,
            "training_seeds": list(self.seeds),
            "evaluation_seed": self.evaluation_seed,
            "epochs": self.epochs,
            "lr": self.lr,
            "batch_size": self.batch_size,
            "momentum": MOMENTUM,
            "weight_decay": WEIGHT_DECAY,
            "schedule": SCHEDULE,
            "metric": Metric.of(self.task.metric).name,
            "compensation": ",".join(self.compensations),
            **({"calibration_batches": self.calibration_batches} if recalibrates(self.compensations) else {}),
            "confidence": self.confidence,
            "test_data": self.test_data,
            **_unless_empty(self.digital),
            "trainings": {training.stem: training.id for training in self.trainings},
        }

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


def recalibrates(compensations: Iterable[str]) -> bool:
    """Whether any of them needs calibration inputs."""
    return any(split_compensation(name)[1] for name in compensations)


def _unless_empty(digital: tuple[str, ...]) -> dict[str, list[str]]:
    """The setting, where there is one: runs without it stay the runs that they were."""
    return {"digital": list(digital)} if digital else {}


def digest(content: Any) -> str:
    """16 hexadecimal digits of plain values."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stem_of(method: str, seed: int, profile: str | None = None) -> str:
    """File name, without suffix, of a model that a method trained (for a profile, where it needs one)."""
    target = f"@{profile}" if profile else ""
    return f"{re.sub(r'[^A-Za-z0-9+=.@%-]', '_', method + target)}-seed{seed}"
