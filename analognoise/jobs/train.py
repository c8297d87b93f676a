"""``analognoise train``: one model, one method, one folder."""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import RenderableType
from torch import Tensor, nn
from torch.nn import functional

from analognoise.batches import is_out_of_memory
from analognoise.devices import DeviceProfile, load_profile
from analognoise.devices.whatif import Changes
from analognoise.errors import DataError, ModelError, TrainingError
from analognoise.evaluation.data import update_digest
from analognoise.evaluation.metrics import Forward, Metric
from analognoise.files import write_whole
from analognoise.fingerprint import name_of
from analognoise.jobs.data import checked_data, load_forward, metric_of, try_batch
from analognoise.jobs.folder import JobFolder
from analognoise.jobs.output import Output
from analognoise.jobs.setup import Say, WhatIf, build_model, either, torch_device, torch_threads, weights_of
from analognoise.printing import counted
from analognoise.progress import progress_bar
from analognoise.report.numbers import one_value
from analognoise.seeds import derive_seed, rng_preserved
from analognoise.tasks import Task, load_callable, load_data, save_weights
from analognoise.tasks.loading import takes_batch_size
from analognoise.tasks.weights import file_digest
from analognoise.training.checkpoint import Checkpoint
from analognoise.training.fit import fit
from analognoise.training.history import Epoch
from analognoise.training.measure import Loss, loss_of, measure_batch, size_of
from analognoise.training.measure import to_device as on_device
from analognoise.training.recipes import Recipe, parse_method

MODEL_FILE, HISTORY_FILE, CHECKPOINT_FILE = "model.safetensors", "history.csv", "training.checkpoint"
# For a model of the user's own; a task brings its own.
_EPOCHS, _LR = 40, 0.05


@dataclass(frozen=True)
class _Functions:
    """The user's own functions, or what stands in for them."""

    loss: Loss
    metric: Any
    forward: Forward | None

    def measure(self, output: Any, batch: Any) -> Sequence[Tensor | float]:
        """What the validation adds up; "loss" and "perplexity" are of the loss."""
        return measure_batch(output, batch, self.metric, self.loss)


def _functions(task: Task | None, loss: str | None, metric: str | None, forward: str | None) -> _Functions:
    default = task.loss if task is not None else functional.cross_entropy
    return _Functions(
        default if loss is None else load_callable(loss, what="loss"),
        metric_of(metric, task),
        load_forward(forward, task),
    )


@dataclass(frozen=True)
class Trained(Output):
    """A trained model in its folder.

    Attributes:
        folder: where everything is.
        settings: what made it.
        history: a row per epoch: epoch, train_loss, validation (if there is validation data), gradients.
        metric: name of the validation metric.
        reused: whether it was there already.
    """

    folder: Path
    settings: dict[str, Any]
    history: pd.DataFrame
    metric: str
    reused: bool

    def parts(self) -> Iterable[RenderableType]:
        """Two lines: how well it does, and where it is."""
        last = self.history.iloc[-1]
        epochs = counted(len(self.history), "epoch")
        text = f"{self.settings['method']}: {epochs}, training loss {last['train_loss']:.4g}"
        if "validation" in self.history:
            text += f", validation {self.metric} {one_value(self.metric, last['validation'])}"
        yield f"{text}, {counted(int(last['gradients']), 'gradient evaluation')}"
        yield f"model: {self.folder / MODEL_FILE}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        history = {name: self.history[name].tolist() for name in self.history}
        return {
            "model": str(self.folder / MODEL_FILE),
            "reused": self.reused,
            "metric": self.metric,
            "validation": history["validation"][-1] if "validation" in history else None,
            "train_loss": history["train_loss"][-1],
            "settings": self.settings,
            "history": history,
        }


def train_model(
    *,
    out: Path,
    task: str | None = None,
    model: str | None = None,
    data: str | None = None,
    validation: str | None = None,
    method: str = "sgd",
    weights: Path | None = None,
    profile: str | None = None,
    changes: WhatIf = ((), (), None),
    digital: Sequence[str] = (),
    epochs: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    loss: str | None = None,
    metric: str | None = None,
    forward: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 1,
    force: bool = False,
    say: Say = print,
) -> Trained:
    """Train a model and store it, its history and run.json in a folder; what is there already is reused, and
    a training that was ended in the middle goes on from its checkpoint.

    Args:
        out: the folder.
        task: a task's name, or ``module:callable``; either this or ``model``.
        model: ``module:callable`` that returns the model.
        data: with ``model``: ``module:callable`` that returns training batches.
        validation: with ``model``: the same for validation batches.
        method: as :func:`analognoise.training.recipes.parse_method` reads it.
        weights: safetensors file to start from.
        profile: the device to train for, where the method needs one.
        changes: of the profile, as ``--set`` and ``--scale`` take them.
        digital: patterns of layer names that will stay digital: no noise on them, no clipping.
        epochs: passes over the training data.
        lr: learning rate at the start.
        batch_size: samples in a batch.
        loss: ``module:callable`` of ``(output, target)``; by default the task's, or cross-entropy.
        metric: of the validation, a name or ``module:callable``; by default the task's, or accuracy.
        forward: ``module:callable`` of ``(model, batch)``; by default the task's, or ``model(x)``.
        seed: of the initial weights, the order of the data and the method's noise.
        device: where torch computes.
        threads: of torch.
        force: replace what another run left in the folder.
        say: gets lines for the user.

    Raises:
        AnalogNoiseError: of the class that fits, before anything is written.
    """
    recipe = parse_method(method)
    changed = Changes.parse(*changes)
    if changed and profile is None:
        raise DataError("--set and --scale change the device to train for: name it with --profile")
    target = None if profile is None else changed.apply([load_profile(profile)])[0]
    if recipe.needs_profile and target is None:
        raise DataError(f"method {recipe.label!r} trains for a device: name it with --profile")
    found = either(task, model)
    if found is None and data is None:
        raise DataError("--model needs training data: name your function with --data, as module:callable")
    if found is not None and (data, validation) != (None, None):
        raise DataError("--data and --validation go with --model: a task brings its own data")
    if seed < 0:
        raise DataError(f"--seed must not be negative, found {seed}")
    own = _functions(found, loss, metric, forward)
    files = (MODEL_FILE, HISTORY_FILE, CHECKPOINT_FILE)
    folder = JobFolder(out, "train", files, force, resumable=(CHECKPOINT_FILE,))
    left = None if force else Checkpoint(out / CHECKPOINT_FILE).header()
    place = torch_device(device)
    with torch_threads(threads):
        network = build_model(found, model, weights, seed, device)
        trained = recipe.prepare(network, profile=target, digital=digital, seed=seed)
        batches = _training_data(found, data, seed, batch_size, own.forward is not None)
        checks = found.validation if found else None
        if validation is not None:
            checks = load_data(validation, own_forward=own.forward is not None)
        if checks is not None:
            # Refuses data that shuffle or differ between passes: their metric would mean nothing.
            named = f"validation data {validation!r}" if validation else "the task's validation data"
            checked_data(network, checks, device, named, own.measure, own.forward)
        first = on_device(_first_batch(batches, seed), place)
        named = f"training data {data!r}" if data else "the task's training data"
        with _naming_batch_size(first, data):
            try_batch(
                network, first, named, own.forward, lambda out, b: loss_of(own.loss, out, b), whole=True
            )
        settings = {
            "task": found.name if found else None,
            "model": _code(model),
            "data": _code(data),
            "validation": _code(validation),
            "loss": _code(loss),
            "metric": _code(metric) if metric and ":" in metric else metric,
            "forward": _code(forward),
            "method": recipe.label,
            "hyperparameters": recipe.hyperparameters,
            "profile": target and {"name": target.name, "digest": target.digest},
            **changed.to_dict(),
            **({"digital": list(digital)} if digital else {}),
            "weights": weights_of(weights),
            "initial_weights": _digest(network.state_dict()),
            "first_batch": _digest(first),
            "epochs": epochs if epochs is not None else found.epochs if found else _EPOCHS,
            "lr": lr if lr is not None else found.lr if found else _LR,
            "batch_size": batch_size if batch_size is not None or not found else found.batch_size,
            "seed": seed,
            "device": place.type,
            "threads": threads,
        }
        # What a run by force has left is newer than the finished run that it has not replaced yet.
        if folder.refuse_other(settings, None if left is None else left["about"]) and left is None:
            known = _stored(folder)
            if known is not None:
                say(f"training: reused {out / MODEL_FILE}")
                return known
        checkpoint = Checkpoint(out / CHECKPOINT_FILE, about=settings)
        with folder.held(), _saying_what_is_kept(checkpoint):
            checkpoint.check_room(trained)
            if force:
                checkpoint.remove()
            if left is not None:
                say(f"training: goes on after {_epochs(left)}")
            try:
                with _naming_batch_size(first, data):
                    return _train(
                        folder, trained, batches, checks, own, recipe, target, settings, seed, checkpoint
                    )
            except TrainingError:
                checkpoint.remove()  # it would break down again
                raise


@contextmanager
def _naming_batch_size(first: Any, data: str | None) -> Iterator[None]:
    """Where memory does not suffice to train on batches as the first, name the option for smaller ones, if
    the data take it.
    """
    try:
        yield
    except DataError as error:
        if not is_out_of_memory(error) or size_of(first) < 2:
            raise
        option = f"--batch-size {size_of(first) // 2}"
        if data is not None and not takes_batch_size(data):
            option = f"let {data!r} give them, or take an argument 'batch_size' for {option}"
        raise DataError(f"{error}; for smaller batches: {option}") from error


@contextmanager
def _saying_what_is_kept(checkpoint: Checkpoint) -> Iterator[None]:
    """Note at an interrupt what the same command goes on from."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        left = checkpoint.header()
        stopped.add_note("no epoch was kept yet" if left is None else f"{_epochs(left)} were kept")
        raise


def _epochs(header: dict[str, Any]) -> str:
    """How far a checkpoint's training is, in words."""
    return f"{header['epoch']} of {header['training']['epochs']} epochs"


def _train(
    folder: JobFolder,
    network: nn.Module,
    batches: Any,
    checks: Any,
    own: _Functions,
    recipe: Recipe,
    profile: DeviceProfile | None,
    settings: dict[str, Any],
    seed: int,
    checkpoint: Checkpoint,
) -> Trained:
    measured = Metric.of(own.metric).name
    with progress_bar(f"training {recipe.label}", settings["epochs"], sys.stderr.isatty()) as advance:
        advance(steps=(checkpoint.header() or {"epoch": 0})["epoch"])

        def on_epoch(epoch: Epoch) -> None:
            note = f"loss {epoch.train_loss:.4g}"
            if epoch.validation is not None:
                note += f", validation {one_value(measured, epoch.validation)}"
            advance(note=note)

        history = fit(
            network,
            batches,
            recipe=recipe,
            profile=profile,
            epochs=settings["epochs"],
            lr=settings["lr"],
            seed=seed,
            validation=checks,
            on_epoch=on_epoch,
            metric=own.metric,
            loss=own.loss,
            forward=own.forward,
            checkpoint=checkpoint,
        )
    columns: dict[str, Any] = {
        "epoch": range(1, len(history.train_loss) + 1),
        "train_loss": history.train_loss,
        "validation": history.validation,
        "gradients": history.gradients,
    }
    if checks is None:
        del columns["validation"]
    frame = pd.DataFrame(columns)
    path = folder.open(keep=(CHECKPOINT_FILE,))
    digest = save_weights(network, path / MODEL_FILE)
    write_whole(path / HISTORY_FILE, frame.to_csv(index=False, lineterminator="\n").encode())
    folder.finish(settings, metric=history.metric, sha256=digest)
    checkpoint.remove()
    return Trained(path, settings, frame, history.metric, reused=False)


def _stored(folder: JobFolder) -> Trained | None:
    """The finished training in a folder; None when a file of it is missing or was changed."""
    model, history = folder.path / MODEL_FILE, folder.path / HISTORY_FILE
    found = folder.found or {}
    if not (model.is_file() and history.is_file() and file_digest(model) == found.get("sha256")):
        return None
    try:
        frame = pd.read_csv(io.BytesIO(history.read_bytes()))
    except ValueError:
        return None
    return Trained(folder.path, found["settings"], frame, found["metric"], reused=True)


def _training_data(
    task: Task | None, data: str | None, seed: int, batch_size: int | None, own_forward: bool
) -> Any:
    if task is None:
        return load_data(str(data), seed=seed, batch_size=batch_size, own_forward=own_forward)
    return task.train(seed, task.batch_size if batch_size is None else batch_size)


def _first_batch(batches: Any, seed: int) -> Any:
    with rng_preserved(derive_seed("first batch", seed)):
        first = next(iter(batches))
    if hasattr(batches, "set_epoch"):
        batches.set_epoch(0)
    return first


def _digest(content: Any) -> str:
    state = hashlib.sha256()
    update_digest(state, content, "the training data")
    return state.hexdigest()[:16]


def _code(spec: str | None) -> str | None:
    """The callable's name with a digest of its code, so that an edited function is another run."""
    return None if spec is None else f"{spec} {name_of(load_callable(spec, error=ModelError))}"
