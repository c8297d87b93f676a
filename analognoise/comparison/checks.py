"""Arguments of a comparison, checked before anything is trained or written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from analognoise.comparison.settings import Contender, Training
from analognoise.comparison.sparse import SparsityChoice
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import DataError, MethodError, ModelError
from analognoise.evaluation.broken import refuse_broken
from analognoise.evaluation.checks import MOST_CHIPS
from analognoise.evaluation.data import EvaluationData, update_digest
from analognoise.evaluation.metrics import Metric
from analognoise.evaluation.statistics import check_confidence
from analognoise.fingerprint import name_of
from analognoise.pool import Shared, check_executor, check_travel
from analognoise.seeds import rng_preserved
from analognoise.tasks import Task, TensorBatches, get_task
from analognoise.tasks.loading import check_batches
from analognoise.training.measure import measure_batch
from analognoise.training.recipes import Recipe, parse_method


@dataclass(frozen=True)
class Common:
    """What every kind of comparison is asked for, checked; the fields are those of :class:`Plan`."""

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
    digital: tuple[str, ...]

    def trainings(self, variants: Callable[[Contender], Iterable[Variant]]) -> tuple[Training, ...]:
        """Every model to train, by method, then variant, then seed.

        Raises:
            AnalogNoiseError: when models cannot be built, or trained on the data or by a method, or would be
                stored under one name.
        """
        data = _train_digest(self.task, self.seeds[0], self.batch_size)
        starts = {seed: _start(self.task, seed) for seed in self.seeds}
        found = tuple(
            Training(
                method=str(contender.name),
                recipe=variant.recipe,
                seed=seed,
                epochs=int(contender.epochs or 0),
                lr=float(contender.lr or 0),
                batch_size=self.batch_size,
                profile=variant.profile,
                task=self.task.name,
                data=data,
                start=starts[seed],
                digital=self.digital,
                variant=variant.name,
                sparsity=variant.sparsity,
            )
            for contender in self.contenders
            for variant in variants(contender)
            for seed in self.seeds
        )
        stems = [training.stem for training in found]
        if len(set(stems)) < len(stems):
            twice = next(stem for stem in stems if stems.count(stem) > 1)
            raise MethodError(f"two methods would be stored under the name {twice!r}: give one another name")
        self._ask_methods(found)
        return found

    def _ask_methods(self, trainings: Iterable[Training]) -> None:
        """Raise where a method cannot train the model, before others are trained for nothing."""
        for training in trainings:
            if training.seed == self.seeds[0]:
                try:
                    training.prepared(self.task)
                except MethodError as error:
                    raise MethodError(f"method {training.method!r}: {error}") from error

    def test_data(self) -> EvaluationData:
        """The test data, the same in every pass; neither they nor the validation data may break a model.

        Raises:
            DataError: when they are not, or do.
        """
        model, what = self.build(), f"test data of task {self.task.name!r}"
        try:
            tested = EvaluationData(self.task.test, torch.device("cpu"))
        except DataError as error:
            raise DataError(f"{what}: {error}") from error
        task = self.task
        refuse_broken(model, tested, Metric.of(task.metric).measure, what, task.forward)
        if task.validation is not None:
            measured = partial(measure_batch, metric=task.metric, loss=task.loss)
            refuse_broken(model, task.validation, measured, f"validation of task {task.name!r}", task.forward)
        return tested

    def build(self) -> nn.Module:
        """An untrained model.

        Raises:
            ModelError: when it cannot be built.
        """
        return _build(self.task, 0)

    def workers(self, asked: int | Executor | None, jobs: int) -> int | Executor:
        """How many processes are worth having; an executor is taken as it is.

        Raises:
            DataError: when several are, but the task cannot be sent to them.
            WorkerError: when the executor is shut down.
        """
        if isinstance(asked, Executor):
            check_executor(asked)
            self._check_travel()
            return asked
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        count = max(1, min(cores if asked is None else asked, jobs))
        if count > 1:
            self._check_travel()
        return count

    def _check_travel(self) -> None:
        if not isinstance(self.source, str):
            check_travel({f"task {self.task.name!r}": self.task})


@dataclass(frozen=True)
class Variant:
    """One way of training by a method: for a device, or with other values than the method's name says."""

    recipe: Recipe
    profile: DeviceProfile | None = None
    name: str = ""
    sparsity: SparsityChoice | None = None


def settle(
    task: str | Task,
    methods: str | Iterable[str | Recipe | Contender],
    chips: int,
    *,
    unit: str = "chips",
    seeds: Iterable[int],
    evaluation_seed: int,
    epochs: int | None,
    lr: float | None,
    batch_size: int | None,
    confidence: float,
    workers: int | None,
    executor: Executor | None,
    digital: Iterable[str] = (),
) -> Common:
    """Check the arguments that every kind of comparison has; nothing is written.

    Raises:
        AnalogNoiseError: of the class that fits, for the first thing that is wrong.
    """
    if executor is not None and workers is not None:
        raise DataError(f"workers={workers} and an executor are given: leave one of them out")
    if isinstance(chips, int) and chips > MOST_CHIPS:
        raise DataError(f"{unit} must be a whole number of at most {MOST_CHIPS}, found {chips}")
    for name, value in (
        (unit, chips),
        ("epochs", epochs),
        ("batch_size", batch_size),
        ("workers", workers),
    ):
        if value is not None or name == unit:
            whole_number(name, value)
    check_confidence(confidence)
    found = get_task(task)
    contenders = tuple(
        _settled(item, found.epochs if epochs is None else epochs, found.lr if lr is None else lr)
        for item in (methods.split(",") if isinstance(methods, str) else methods)
    )
    _check_names(contenders)
    if not isinstance(seeds, Iterable):
        raise DataError(f"training seeds are {seeds!r}: give each of them, for example range(3)")
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
    return Common(
        source=task if isinstance(task, str) else Shared(task),
        task=found,
        contenders=contenders,
        chips=chips,
        seeds=training_seeds,
        evaluation_seed=int(evaluation_seed),
        epochs=found.epochs if epochs is None else epochs,
        lr=float(found.lr if lr is None else lr),
        batch_size=found.batch_size if batch_size is None else batch_size,
        confidence=float(confidence),
        digital=tuple(digital),
    )


def whole_number(name: str, value: Any, least: int = 1) -> None:
    """Raise unless ``value`` is a whole number of at least ``least``.

    Raises:
        DataError: otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DataError(f"{name} must be a whole number of at least {least}, found {value!r}")


def _settled(item: str | Recipe | Contender, epochs: int, lr: float) -> Contender:
    given = Contender.parse(item) if isinstance(item, str) else item
    given = given if isinstance(given, Contender) else Contender(given)
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
        model = task.model(seed)
    except Exception as problem:
        raise ModelError(
            f"build of task {task.name!r} failed: {type(problem).__name__}: {problem}"
        ) from problem
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"build of task {task.name!r} gave {type(model).__name__}, expected a torch.nn.Module"
        )
    return model
