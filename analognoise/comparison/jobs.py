"""The pieces of work of a comparison: one training, or one model under one condition.

A job holds all that it needs and can be sent to another process. What it finds on the way it hands to
``emit``.
"""

from __future__ import annotations

import json
import socket
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

from torch import nn

from analognoise.comparison.settings import MOMENTUM, SCHEDULE, WEIGHT_DECAY, Training
from analognoise.errors import SparsityError, TrainingError, WorkerError
from analognoise.evaluation.rows import AnyRow
from analognoise.files import write_whole
from analognoise.metrics import NotFiniteError
from analognoise.pool import Shared
from analognoise.sparsity import activation_sparsity
from analognoise.tasks import Task, get_task, load_weights, save_weights
from analognoise.training.breakdown import diverged
from analognoise.training.checkpoint import Checkpoint
from analognoise.training.fit import fit
from analognoise.training.history import Epoch
from analognoise.training.measure import measure

Emit = Callable[[Any], None]
FORMAT = 1
CHECKPOINT = ".checkpoint"


@lru_cache(maxsize=4)
def named_task(name: str) -> Task:
    """The task of a name, made once in each process."""
    return get_task(name)


def task_of(source: str | Shared) -> Task:
    """The task that a job is about."""
    return named_task(source) if isinstance(source, str) else cast(Task, source.value)


def load_trained(training: Training, task: Task, folder: str) -> nn.Module:
    """A stored model as its method trained it: with quantizers and sparse activations, where it has them."""
    model = training.recipe.prepare(training.build(task), digital=training.digital, seed=training.seed)
    load_weights(model, Path(folder) / f"{training.stem}.safetensors")
    return model


def _sparsity(model: nn.Module, task: Task) -> dict[str, Any] | None:
    """Activation sparsity over the test data; None without activation layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of dead layers the evaluation warns
        try:
            found = activation_sparsity(model, task.test, forward=task.forward)
        except SparsityError:
            return None
    return {"overall": found.overall, "layers": {layer.name: layer.sparsity for layer in found.layers}}


@dataclass(frozen=True)
class TrainJob:
    """Train one model and store it: ``STEM.safetensors``, and ``STEM.json`` once all is done; until then
    ``STEM.checkpoint``, from which it goes on.

    Attributes:
        source: the task.
        training: what to train.
        folder: where the files go.
    """

    source: str | Shared
    training: Training
    folder: str

    @property
    def title(self) -> str:
        """What the job does, in words."""
        return f"training {self.training.title}"

    @property
    def checkpoint(self) -> Checkpoint:
        """What a training that was ended in the middle goes on from."""
        path = Path(self.folder) / f"{self.training.stem}{CHECKPOINT}"
        return Checkpoint(path, about={"id": self.training.id})

    def run(self, emit: Emit) -> dict[str, Any]:
        """Train; emits an :class:`Epoch` after each. Returns what the JSON file holds."""
        training, task = self.training, task_of(self.source)
        if not Path(self.folder).is_dir():
            raise WorkerError(
                f"a worker on {socket.gethostname()} does not see {self.folder}: put the output folder on a "
                "file system that all workers share"
            )
        path = Path(self.folder) / f"{training.stem}.safetensors"
        record: dict[str, Any] = {"format": FORMAT, "id": training.id, "training": training.to_dict()}
        trained = training.prepared(task)
        try:
            with training.penalised(trained, task.loss) as loss:
                history = fit(
                    trained,
                    task.train(training.seed, training.batch_size),
                    recipe=training.recipe,
                    profile=training.profile,
                    epochs=training.epochs,
                    lr=training.lr,
                    momentum=MOMENTUM,
                    weight_decay=WEIGHT_DECAY,
                    schedule=SCHEDULE,
                    seed=training.seed,
                    validation=task.validation,
                    metric=task.metric,
                    loss=loss,
                    forward=task.forward,
                    on_epoch=cast(Callable[[Epoch], None], emit),
                    checkpoint=self.checkpoint,
                )
            record["digital"] = self._digital(trained, task)
        except TrainingError as error:
            record["error"] = str(error)
        else:
            record["sha256"] = save_weights(trained, path)
            record["history"] = history.to_dict()
            if training.sparsity is not None:
                record["activation_sparsity"] = _sparsity(trained, task)
        write_json(path.with_suffix(".json"), record)
        self.checkpoint.remove()
        return record

    def _digital(self, trained: nn.Module, task: Task) -> dict[str, float]:
        """The metric on validation and test data.

        Raises:
            TrainingError: when the model's output is not finite there.
        """
        found = {}
        for name, data in (("validation", task.validation), ("test", task.test)):
            if data is None:
                continue
            try:
                found[name] = measure(
                    trained, data, metric=task.metric, loss=task.loss, forward=task.forward
                ).value
            except NotFiniteError as error:
                recipe, last = self.training.recipe, self.training.epochs
                raise TrainingError(diverged(recipe, last, f"{name} data, {error}")) from error
        return found


class Condition(Protocol):
    """What a trained model is measured under."""

    @property
    def name(self) -> str:
        """What rows call it."""


C = TypeVar("C", bound=Condition, covariant=True)
R = TypeVar("R", bound=AnyRow, covariant=True)


@dataclass(frozen=True, kw_only=True)
class EvaluationJob(ABC, Generic[C, R]):
    """Measure one stored model under one condition.

    Attributes:
        source: the task.
        training: how the model was trained.
        on: the condition.
        folder: where the model's file is.
        positions: on the axis.
        chips: number of chips, or of repeats.
        seed: root seed of what is drawn; the same for every model, so that chip c is the same draw for all.
        known: rows that are there already.
    """

    source: str | Shared
    training: Training
    on: C
    folder: str
    positions: tuple[float, ...]
    chips: int
    seed: int
    known: tuple[R, ...] = ()

    @property
    def key(self) -> tuple[str, str, int]:
        """Condition, method and training seed: what the rows of the job have in common."""
        return self.on.name, self.training.method, self.training.seed

    @property
    def title(self) -> str:
        """What the job does, in words."""
        return f"{self.training.method}, seed {self.training.seed}, {self.on.name}"

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.chips * len(self.positions)

    @abstractmethod
    def run(self, emit: Emit) -> dict[str, Any]:
        """Evaluate; emits the new rows of each chip as a list. Returns the rows' "run_id", and "warnings"."""


def write_json(path: Path, content: Any) -> None:
    """Write plain values as JSON; the file appears whole or not at all.

    Raises:
        ResultsError: when it cannot be written.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, text.encode())
