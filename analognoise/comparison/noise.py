"""Comparisons under noise on computations: kinds of noise and layers as conditions, σ as the axis."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from analognoise.comparison.checks import Common, Variant, settle
from analognoise.comparison.noise_job import Noise, NoiseJob
from analognoise.comparison.noise_outcome import COMMAND, NOUN, NoiseSweep, conclude_noise
from analognoise.comparison.plan import SweepPlan
from analognoise.comparison.run import OnEvent, carry_out
from analognoise.comparison.settings import Contender, stem_of
from analognoise.computing.levels import LEVELS, check_fluctuation, noise_levels
from analognoise.computing.noise import check_law
from analognoise.computing.walking import order_of
from analognoise.errors import DataError, MethodError
from analognoise.evaluation.metrics import Metric
from analognoise.evaluation.noise import chance_of
from analognoise.evaluation.noise_rows import NoiseRow
from analognoise.evaluation.rows import AnyRow
from analognoise.printing import counted
from analognoise.report.layout import NOISE
from analognoise.tasks import Task
from analognoise.training.recipes import Recipe, parse_method


@dataclass(frozen=True, kw_only=True)
class NoisePlan(SweepPlan[Noise]):
    """A comparison under noise on computations; see :func:`noise_sweep` for the fields.

    Attributes:
        chance: the metric of guessing, or None where it is not known.
    """

    chance: float | None

    command: ClassVar = COMMAND
    noun: ClassVar = NOUN
    job: ClassVar = NoiseJob
    row: ClassVar = NoiseRow
    layout: ClassVar = NOISE
    subjects: ClassVar = "noises"
    extent: ClassVar = ("methods", "noises", "sigmas", "repeats", "training_seeds", "trainings")
    pictures: ClassVar = ("*_over_sigma.png", "midpoints.png", "midpoints.csv", "sharpness.png")

    def stems_of(self, row: AnyRow) -> set[str]:
        """The model of method and seed."""
        return {stem_of(row.method, row.training_seed)}

    def options(self) -> dict[str, Any]:
        """The metric of guessing."""
        return {"chance": self.chance}


def noise_sweep(
    task: str | Task,
    methods: str | Iterable[str | Recipe | Contender] = "sgd,qat-const,noisy,vant,samson",
    sigmas: str | Iterable[float] = LEVELS,
    repeats: int = 25,
    out: str | os.PathLike[str] = "runs/noise",
    *,
    kinds: str | Iterable[str] = "additive",
    layers: str | Iterable[str] | None = None,
    per_layer: bool = False,
    fluctuating: bool | tuple[float, float] = False,
    multiplicative: float | None = None,
    seeds: Iterable[int] = (0, 1, 2),
    epochs: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    sharpness: bool = False,
    evaluation_seed: int = 0,
    confidence: float = 0.95,
    force: bool = False,
    on_event: OnEvent | None = None,
    command: Sequence[str] | None = None,
) -> NoiseSweep:
    """Train by several methods, let every model compute with noise, and compare how much noise each stands.

    Each method is trained once per training seed and measured at every noise level. Repeat r has the same
    draws for all methods. μ of a model is the noise level at which its metric is half way from noise-free to
    guessing (:func:`analognoise.evaluation.midpoint.midpoint`); of a method the geometric mean over training
    seeds. The folder ``out`` then holds ``results.csv``, ``summary.csv``, ``midpoints.csv``, ``summary.md``,
    pictures, ``run.json`` and the models; it is gone on with, added to and asked for less exactly as that of
    :func:`analognoise.compare`.

    Args:
        task: ``"digits"``, the user's ``package.module:callable``, or a :class:`Task`.
        methods: recipes, as text (commas allowed) or objects, or :class:`Contender` for epochs or lr of their
            own.
        sigmas: noise levels above 0, growing, or text such as ``"1e-2:1e2:17"`` (evenly in the logarithm).
        repeats: repetitions of every measurement, with draws of their own.
        out: output folder.
        kinds: "additive", "multiplicative", "mixed": one or several.
        layers: kinds, names or patterns of layers that are noisy, as for :func:`analognoise.computing_noise`;
            None takes all.
        per_layer: measure each of these layers alone, too.
        fluctuating: measure also with a σ that every repeat draws anew at each level: True, or (α, θ), as for
            :func:`analognoise.evaluate_noise`.
        multiplicative: for "mixed": σ of the multiplicative part, which stays.
        seeds: training seeds.
        epochs: passes over the training data; None takes the task's.
        lr: learning rate at the start; None takes the task's.
        batch_size: None takes the task's.
        workers: processes; None takes one per core.
        executor: instead of ``workers``, as for :func:`analognoise.compare`.
        sharpness: whether to measure every kind of :func:`analognoise.sharpness` of each model, too.
        evaluation_seed: root seed of the noise.
        confidence: coverage of the intervals.
        force: start over; deletes only what such a run leaves in ``out``.
        on_event: called with an :class:`analognoise.comparison.Event` for every step, in this process.
        command: recorded in run.json; None takes the process's own.

    Raises:
        AnalogNoiseError: for wrong arguments, before anything is written: MethodError, NoiseError, DataError,
            ModelError, or ResultsError when ``out`` holds another run. Also when a worker process dies.
        TrainingError: when every method's training failed.
    """
    levels, wobble = noise_levels(sigmas), check_fluctuation(fluctuating)
    if len(levels) < 3:
        raise DataError(f"sigmas has {counted(len(levels), 'level')}: a midpoint needs three or more")
    laws = _laws(kinds, multiplicative)
    common = settle(
        task,
        methods,
        repeats,
        unit="repeats",
        seeds=seeds,
        evaluation_seed=evaluation_seed,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        confidence=confidence,
        workers=workers,
        executor=executor,
    )
    noises = _noises(common, laws, layers, per_layer, wobble, multiplicative)
    trainings = common.trainings(lambda contender: [Variant(_digital(contender))])
    count, tested = common.workers(executor or workers, len(trainings)), common.test_data()
    metric, classes = Metric.of(common.task.metric), common.task.n_classes
    chance = chance_of(metric, tested)
    plan = NoisePlan(
        **vars(common),
        workers=count,
        trainings=trainings,
        test_data=tested.fingerprint,
        model={"class": type(common.build()).__name__},
        swept=noises,
        positions=levels,
        chance=1 / classes if chance is not None and classes else chance,
    )
    return carry_out(
        plan, out, conclude_noise, sharpness=sharpness, force=force, on_event=on_event, command=command
    )


def _laws(kinds: str | Iterable[str], multiplicative: float | None) -> tuple[str, ...]:
    found = tuple(part.strip() for part in (kinds.split(",") if isinstance(kinds, str) else kinds))
    if not found:
        raise DataError("kinds is empty: give at least one, for example additive")
    for kind in found:
        if found.count(kind) > 1:
            raise DataError(f"kinds holds {kind!r} twice: leave one out")
        check_law(kind, multiplicative if kind == "mixed" else None)
    if multiplicative is not None and "mixed" not in found:
        check_law(found[0], multiplicative)
    return found


def _noises(
    common: Common,
    laws: tuple[str, ...],
    layers: str | Iterable[str] | None,
    per_layer: bool,
    wobble: tuple[float, float] | None,
    multiplicative: float | None,
) -> tuple[Noise, ...]:
    """Every kind on all layers, steady and fluctuating, then on each alone; raises where there is none."""
    given = None if layers is None else tuple(layers.split(",") if isinstance(layers, str) else layers)
    model, task = common.build(), common.task
    found = []
    for kind in laws:
        noise = Noise(kind, given, multiplicative=multiplicative if kind == "mixed" else None)
        modules = noise.on(model, 0).modules
        found += [noise, *([replace(noise, fluctuating=wobble)] if wobble else [])]
        if per_layer:
            batch = next(iter(task.test or ()))
            found += [replace(noise, layer=name) for name in order_of(model, modules, batch, task.forward)]
    return tuple(found)


def _digital(contender: Contender) -> Recipe:
    recipe = parse_method(contender.recipe)
    if recipe.needs_profile:
        raise MethodError(
            f"method {contender.name!r} trains for a device, and a noise sweep has none: leave it out"
        )
    return recipe
