"""The pieces of work of a comparison: one training, or one model on the chips of one profile.

A job holds all that it needs and can be sent to another process. What it finds on the way it hands to
``emit``.
"""

from __future__ import annotations

import json
import socket
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from torch import nn

from analognoise.calibration import calibrate_, needs_calibration
from analognoise.comparison.settings import MOMENTUM, SCHEDULE, WEIGHT_DECAY, Training
from analognoise.conversion import convert_to_analog, keeping_digital
from analognoise.crossbar.compensation import name_chips, split_compensation
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import SparsityError, TrainingError, WorkerError
from analognoise.evaluation.montecarlo import evaluate_drift
from analognoise.evaluation.relay import Relay
from analognoise.evaluation.rows import Row
from analognoise.files import write_whole
from analognoise.pool import Shared
from analognoise.sparsity import activation_sparsity
from analognoise.tasks import Task, get_task, load_for_chip, load_weights, save_weights
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
        except TrainingError as error:
            record["error"] = str(error)
        else:
            record["sha256"] = save_weights(trained, path)
            record["history"] = history.to_dict()
            record["digital"] = {
                name: measure(trained, data, metric=task.metric, loss=task.loss, forward=task.forward).value
                for name, data in (("validation", task.validation), ("test", task.test))
                if data is not None
            }
            if training.sparsity is not None:
                record["activation_sparsity"] = _sparsity(trained, task)
        write_json(path.with_suffix(".json"), record)
        self.checkpoint.remove()
        return record


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
class EvaluateJob:
    """Evaluate one stored model on the chips of one profile.

    Attributes:
        source: the task.
        training: how the model was trained.
        on: the device, and the drift compensation.
        folder: where the model's file is.
        times: drift times in seconds.
        chips: number of chips.
        seed: root seed of the chips; the same for every model, so that chip c is the same draw for all.
        calibration_batches: how many training batches a recalibration uses.
        known: rows that are there already.
    """

    source: str | Shared
    training: Training
    on: Chips
    folder: str
    times: tuple[float, ...]
    chips: int
    seed: int
    calibration_batches: int
    known: tuple[Row, ...] = ()

    @property
    def key(self) -> tuple[str, str, int]:
        """Profile, method and training seed: what the rows of the job have in common."""
        return self.on.name, self.training.method, self.training.seed

    @property
    def title(self) -> str:
        """What the job does, in words."""
        return f"{self.training.method}, seed {self.training.seed}, on {self.on.name}"

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.chips * len(self.times)

    def run(self, emit: Emit) -> dict[str, Any]:
        """Evaluate; emits the new rows of each chip as a list. Returns the rows' run id and the warnings.

        Converters that take their ranges from data take them from the training data.
        """
        task = task_of(self.source)
        path = Path(self.folder) / f"{self.training.stem}.safetensors"
        model = load_for_chip(self.training.build(task), path)
        chosen = keeping_digital(model, self.training.digital)
        tile, recalibration = split_compensation(self.on.compensation)
        analog = convert_to_analog(model, self.on.profile, filter_fn=chosen, compensation=tile)
        if needs_calibration(analog):
            calibrate_(analog, task.train(self.training.seed, self.training.batch_size), forward=task.forward)
        inputs = task.train(self.training.seed, self.training.batch_size) if recalibration else None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            report = evaluate_drift(
                analog,
                task.test,
                times=self.times,
                chips=self.chips,
                seed=self.seed,
                metric=task.metric,
                forward=task.forward,
                out=Relay(self.known, emit),
                method=self.training.method,
                training_seed=self.training.seed,
                recalibrate=recalibration,
                calibration=inputs,
                calibration_batches=self.calibration_batches,
            )
        return {"run_id": report.run_id, "warnings": [str(item.message) for item in caught]}


def write_json(path: Path, content: Any) -> None:
    """Write plain values as JSON; the file appears whole or not at all.

    Raises:
        ResultsError: when it cannot be written.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, text.encode())
