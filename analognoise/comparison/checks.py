"""Arguments of a comparison, checked before anything is trained or written."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analognoise.comparison.settings import Contender, Settings, Training, recalibrates
from analognoise.conversion import convert_to_analog, keeping_digital
from analognoise.crossbar.compensation import compensation_list, name_chips, split_compensation
from analognoise.description import describe
from analognoise.devices.catalog import load_profile, split_profiles
from analognoise.devices.profile import DeviceProfile, drift_times
from analognoise.errors import AnalogNoiseError, DataError, MethodError, ModelError, ProfileError
from analognoise.evaluation.broken import refuse_broken
from analognoise.evaluation.calibration import CalibrationData
from analognoise.evaluation.cost import compensation_cost, described
from analognoise.evaluation.data import EvaluationData, update_digest
from analognoise.evaluation.drift import MOST_CHIPS
from analognoise.evaluation.identity import name_of
from analognoise.evaluation.metrics import Metric, default_forward
from analognoise.evaluation.recalibration import Recalibration
from analognoise.evaluation.statistics import check_confidence
from analognoise.seeds import rng_preserved
from analognoise.tasks import Task, TensorBatches, get_task
from analognoise.tasks.loading import check_batches
from analognoise.training.measure import measure_batch
from analognoise.training.recipes import Recipe, parse_method


def settle(
    task: str | Task,
    profiles: str | DeviceProfile | Iterable[str | DeviceProfile],
    methods: str | Iterable[str | Recipe | Contender],
    times: Any,
    chips: int,
    *,
    seeds: Iterable[int],
    evaluation_seed: int,
    epochs: int | None,
    lr: float | None,
    batch_size: int | None,
    compensation: str | Iterable[str],
    calibration_batches: int,
    confidence: float,
    workers: int | None,
    digital: Iterable[str] = (),
) -> Settings:
    """Check every argument of a comparison; nothing is written.

    Raises:
        AnalogNoiseError: of the class that fits, for the first thing that is wrong.
    """
    if isinstance(chips, int) and chips > MOST_CHIPS:
        raise DataError(f"chips must be a whole number of at most {MOST_CHIPS}, found {chips}")
    for name, value in (
        ("chips", chips),
        ("epochs", epochs),
        ("batch_size", batch_size),
        ("workers", workers),
        ("calibration_batches", calibration_batches),
    ):
        if value is not None or name == "chips":
            whole_number(name, value)
    check_confidence(confidence)
    compensations = compensation_list(compensation)
    devices = _devices(profiles)
    seconds = drift_times((device for device in devices if device.has_drift), times)
    found = get_task(task)
    contenders = tuple(
        _settled(item, found.epochs if epochs is None else epochs, found.lr if lr is None else lr)
        for item in (methods.split(",") if isinstance(methods, str) else methods)
    )
    _check_names(contenders)
    training_seeds = tuple(seeds)
    if not training_seeds or len(set(training_seeds)) < len(training_seeds):
        raise DataError(f"training seeds must be different and at least one, found {list(training_seeds)}")
    for seed in training_seeds:
        whole_number("a training seed", seed, least=0)
    if found.test is None:
        raise DataError(f"task {found.name!r} has no test data: a comparison needs some")
    Metric.of(found.metric)
    if found.validation is not None:
        check_batches(found.validation, f"validation of task {found.name!r}", found.forward is not None)
    size = found.batch_size if batch_size is None else batch_size
    data = _train_digest(found, training_seeds[0], size)
    kept = tuple(digital)
    starts = {seed: _start(found, seed) for seed in training_seeds}
    trainings = tuple(
        Training(
            method=str(contender.name),
            recipe=parse_method(contender.recipe),
            seed=seed,
            epochs=int(contender.epochs or 0),
            lr=float(contender.lr or 0),
            batch_size=size,
            profile=target,
            task=found.name,
            data=data,
            start=starts[seed],
            digital=kept,
        )
        for contender in contenders
        for target in (devices if parse_method(contender.recipe).needs_profile else (None,))
        for seed in training_seeds
    )
    stems = [training.stem for training in trainings]
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise MethodError(f"two methods would be stored under the name {twice!r}: give one another name")
    count = _workers(workers, len(trainings))
    if count > 1 and isinstance(task, Task):
        _check_pickles(task)
    tested, calibrating = _test_data(found), None
    if recalibrates(compensations):
        inputs = found.train(training_seeds[0], size)
        calibrating = CalibrationData(inputs, torch.device("cpu"), calibration_batches, found.forward)
        calibrating.refuse_test_data(tested)
    return Settings(
        source=task,
        task=found,
        contenders=contenders,
        profiles=devices,
        times=seconds,
        chips=chips,
        seeds=training_seeds,
        evaluation_seed=int(evaluation_seed),
        epochs=found.epochs if epochs is None else epochs,
        lr=float(found.lr if lr is None else lr),
        batch_size=size,
        compensations=compensations,
        calibration_batches=calibration_batches,
        confidence=float(confidence),
        workers=count,
        trainings=trainings,
        test_data=tested.fingerprint,
        model=_model(found, devices, compensations, kept, calibrating),
        digital=kept,
    )


def whole_number(name: str, value: Any, least: int = 1) -> None:
    """Raise unless ``value`` is a whole number of at least ``least``.

    Raises:
        DataError: otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DataError(f"{name} must be a whole number of at least {least}, found {value!r}")


def _settled(item: str | Recipe | Contender, epochs: int, lr: float) -> Contender:
    given = item if isinstance(item, Contender) else Contender(item)
    recipe = parse_method(given.recipe)
    settled = replace(
        given,
        recipe=recipe,
        name=given.name or recipe.label,
        epochs=epochs if given.epochs is None else given.epochs,
        lr=lr if given.lr is None else given.lr,
    )
    whole_number(f"epochs of method {settled.name!r}", settled.epochs)
    rate = settled.lr
    if not isinstance(rate, (int, float)) or not 0 < rate < float("inf"):
        raise DataError(f"lr of method {settled.name!r} must be finite and above 0, found {rate!r}")
    return settled


def _check_names(contenders: tuple[Contender, ...]) -> None:
    if not contenders:
        raise MethodError("no method given: name at least one, for example sgd")
    seen: dict[Any, str] = {}
    for contender in contenders:
        recipe = parse_method(contender.recipe)
        for key in (("name", contender.name), (recipe.identity, contender.epochs, contender.lr)):
            if key in seen:
                other = seen[key]
                same = "is given twice" if other == contender.name else f"is the same training as {other!r}"
                raise MethodError(f"method {contender.name!r} {same}: leave one out")
            seen[key] = str(contender.name)


def _devices(profiles: str | DeviceProfile | Iterable[str | DeviceProfile]) -> tuple[DeviceProfile, ...]:
    if isinstance(profiles, str):
        profiles = split_profiles(profiles)
    elif isinstance(profiles, DeviceProfile):
        profiles = [profiles]
    found = tuple(load_profile(profile) for profile in profiles)
    if not found:
        raise ProfileError("no device profile given: name at least one, for example pcm-ibm")
    names = [profile.name for profile in found]
    for name in names:
        if names.count(name) > 1:
            raise ProfileError(
                f"two profiles are named {name!r}: give each its own name, so that tables can tell"
            )
    return found


def _test_data(task: Task) -> EvaluationData:
    """The test data, the same in every pass; neither they nor the validation data may break a model."""
    model, what = _build(task, 0), f"test data of task {task.name!r}"
    try:
        tested = EvaluationData(task.test, torch.device("cpu"))
    except DataError as error:
        raise DataError(f"{what}: {error}") from error
    refuse_broken(model, tested, Metric.of(task.metric).measure, what, task.forward)
    if task.validation is not None:
        measured = partial(measure_batch, metric=task.metric, loss=task.loss)
        refuse_broken(model, task.validation, measured, f"validation of task {task.name!r}", task.forward)
    return tested


def _train_digest(task: Task, seed: int, batch_size: int | None) -> str:
    """Digest of all training data where they lie in memory, else of the first batch."""
    with rng_preserved(0):
        try:
            data = task.train(seed, batch_size)
        except Exception as problem:
            raise DataError(
                f"train of task {task.name!r}, called with (seed, batch_size), failed: "
                f"{type(problem).__name__}: {problem}"
            ) from problem
        check_batches(data, f"train of task {task.name!r}", task.forward is not None)
        content = (data.inputs, data.targets) if isinstance(data, TensorBatches) else next(iter(data))
    state = hashlib.sha256()
    update_digest(state, content, "the training data")
    return state.hexdigest()[:16]


def _start(task: Task, seed: int) -> str:
    state = hashlib.sha256(name_of(task.loss).encode())
    update_digest(state, _build(task, seed).state_dict(), "the initial weights")
    return state.hexdigest()[:16]


def _build(task: Task, seed: int) -> nn.Module:
    try:
        model = task.build(seed)
    except Exception as problem:
        raise ModelError(
            f"build of task {task.name!r} failed: {type(problem).__name__}: {problem}"
        ) from problem
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"build of task {task.name!r} gave {type(model).__name__}, expected a torch.nn.Module"
        )
    return model


def _model(
    task: Task,
    profiles: tuple[DeviceProfile, ...],
    compensations: tuple[str, ...],
    digital: tuple[str, ...],
    calibrating: CalibrationData | None,
) -> dict[str, Any]:
    """What is on tiles under each profile and compensation; raises where there is nothing to convert, or to
    recalibrate.
    """
    model = _build(task, 0)
    chosen = keeping_digital(model, digital)
    batch = next(iter(task.test or ()))
    found: dict[str, Any] = {"class": type(model).__name__, "profiles": {}}
    forward = task.forward or default_forward
    for profile, name in product(profiles, compensations):
        tile, kind = split_compensation(name)
        analog = convert_to_analog(model, profile, filter_fn=chosen, compensation=tile)
        correction = Recalibration(analog, kind, calibrating, forward, 0) if kind and calibrating else None
        try:
            description = describe(analog, batch, forward=forward)
            cost = compensation_cost(analog, description, batch, correction)
        except AnalogNoiseError:
            raise
        except Exception as problem:
            raise DataError(
                f"the model of task {task.name!r} cannot compute a batch of its test data: "
                f"{type(problem).__name__}: {problem}"
            ) from problem
        left_out = correction.left_out if correction else ()
        found["profiles"][name_chips(profile.name, name)] = described(description, name, cost, left_out)
    return found


def _workers(asked: int | None, jobs: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores if asked is None else asked, jobs))


def _check_pickles(task: Task) -> None:
    try:
        pickle.dumps(task)
    except Exception as problem:
        raise DataError(
            f"task {task.name!r} cannot be sent to worker processes ({problem}): use functions of a module "
            "instead of "
            "lambdas, name it as package.module:callable, or set workers=1"
        ) from problem


def check_folder(out: str | os.PathLike[str]) -> Path:
    """The output folder, if it is one or can be made.

    Raises:
        DataError: when something else is in its place, or it cannot be written to.
    """
    folder = Path(out)
    for place in (folder, *folder.absolute().parents):
        if place.exists() or place.is_symlink():
            if not place.is_dir():
                raise DataError(
                    f"output folder {str(folder)!r} cannot be made: {str(place)!r} is not a folder"
                )
            if not os.access(place, os.W_OK | os.X_OK):
                raise DataError(
                    f"output folder {str(folder)!r} cannot be written to: no permission in {str(place)!r}"
                )
            break
    return folder
