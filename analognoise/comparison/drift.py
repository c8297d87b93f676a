"""Comparisons on analog chips: devices and drift compensations as conditions, drift time as the axis."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import torch
from torch import nn

from analognoise.comparison.checks import Common, Variant, settle, whole_number
from analognoise.comparison.drift_job import Chips, DriftJob
from analognoise.comparison.drift_outcome import conclude
from analognoise.comparison.jobs import Condition
from analognoise.comparison.outcome import Comparison
from analognoise.comparison.plan import Plan
from analognoise.comparison.run import OnEvent, carry_out
from analognoise.comparison.settings import Contender, Training, stem_of
from analognoise.conversion import convert_to_analog, keeping_digital
from analognoise.crossbar.compensation import compensation_list, name_chips, split_compensation, split_name
from analognoise.description import Description, describe
from analognoise.devices.catalog import load_profile, split_profiles
from analognoise.devices.profile import DeviceProfile, drift_times
from analognoise.errors import AnalogNoiseError, DataError, ProfileError
from analognoise.evaluation.calibration import CalibrationData
from analognoise.evaluation.cost import CompensationCost, compensation_cost, described
from analognoise.evaluation.metrics import default_forward
from analognoise.evaluation.recalibration import Recalibration
from analognoise.evaluation.rows import AnyRow, Row
from analognoise.halving import in_parts
from analognoise.report.layout import DRIFT
from analognoise.tasks import Task
from analognoise.training.recipes import Recipe, parse_method


@dataclass(frozen=True, kw_only=True)
class DriftPlan(Plan):
    """A comparison on analog chips; see :func:`compare` for the fields.

    Attributes:
        profiles: the devices.
        times: drift times in seconds.
        compensations: drift compensations, each for every device.
        calibration_batches: how many training batches a recalibration uses.
    """

    profiles: tuple[DeviceProfile, ...]
    times: tuple[float, ...]
    compensations: tuple[str, ...]
    calibration_batches: int

    command: ClassVar = "compare"
    noun: ClassVar = "a comparison"
    job: ClassVar = DriftJob
    row: ClassVar = Row
    layout: ClassVar = DRIFT
    subjects: ClassVar = "profiles"
    extent: ClassVar = (
        "methods",
        "profiles",
        "times_s",
        "chips",
        "training_seeds",
        "trainings",
        "compensation",
    )
    pictures: ClassVar = ("*_over_time.png", "*_over_level.png", "sharpness.png")

    @property
    def conditions(self) -> tuple[Chips, ...]:
        """Every device with every compensation."""
        return tuple(Chips(profile, name) for profile in self.profiles for name in self.compensations)

    @property
    def subject_contents(self) -> dict[str, dict[str, Any]]:
        """The devices."""
        return {
            profile.name: {"digest": profile.digest, "content": profile.as_dict()}
            for profile in self.profiles
        }

    def conditions_of(self, training: Training) -> tuple[Chips, ...]:
        """All devices, or the one that the model was trained for."""
        return tuple(c for c in self.conditions if training.profile in (None, c.profile))

    def positions_of(self, condition: Condition) -> tuple[float, ...]:
        """Drift times; one only, 0 s, for a device on which nothing depends on time."""
        assert isinstance(condition, Chips)
        return self.times if condition.profile.has_drift else (0.0,)

    def subject_of(self, row: AnyRow) -> str:
        """The device's name."""
        return split_name(row.condition)[0]

    def stems_of(self, row: AnyRow) -> set[str]:
        """A model trained for any device, or for this one."""
        return {
            stem_of(row.method, row.training_seed, device) for device in ("", split_name(row.condition)[0])
        }

    def asked(self) -> dict[str, Any]:
        """Devices and times."""
        return {
            "profiles": {profile.name: profile.digest for profile in self.profiles},
            "times_s": list(self.times),
        }

    def job_options(self) -> dict[str, Any]:
        """How long a recalibration measures."""
        return {"calibration_batches": self.calibration_batches}

    def options(self) -> dict[str, Any]:
        """Drift compensation; what recalibrates, where something does."""
        batches = {"calibration_batches": self.calibration_batches}
        return {
            "compensation": ",".join(self.compensations),
            **(batches if _recalibrates(self.compensations) else {}),
        }


def compare(
    task: str | Task,
    profiles: str | DeviceProfile | Iterable[str | DeviceProfile],
    methods: str | Iterable[str | Recipe | Contender],
    times: Any = None,
    chips: int = 25,
    out: str | os.PathLike[str] = "runs/comparison",
    *,
    seeds: Iterable[int] = (0, 1, 2),
    epochs: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    compensation: str | Iterable[str] = "global",
    calibration_batches: int = 10,
    digital: Iterable[str] = (),
    sharpness: bool = False,
    evaluation_seed: int = 0,
    confidence: float = 0.95,
    force: bool = False,
    on_event: OnEvent | None = None,
    command: Sequence[str] | None = None,
) -> Comparison:
    """Train by several methods, put every model on simulated chips, let them drift, and compare.

    Each method is trained once per training seed, from the same initial weights, and evaluated on every
    profile (``profile-noise`` is trained for each profile anew, and evaluated on that). Chip c is the same
    draw for all methods. The folder ``out`` then holds ``results.csv``, ``summary.csv``, ``summary.md``,
    ``accuracy_over_time.png`` (and ``accuracy_over_level.png`` for noise levels), ``run.json``, and the
    models. The same call again reuses all that is there and goes on where a killed run stopped; a call that
    asks for more methods, profiles, times, chips or seeds adds them. Asked for less, the tables and pictures
    are of that alone, and results.csv and the models stay whole. Results do not depend on the number of
    workers.

    Args:
        task: ``"digits"``, the user's ``package.module:callable``, or a :class:`Task`.
        profiles: devices: names, files or profiles. A device on which nothing depends on time is evaluated at
            0 s alone.
        methods: recipes, as text (commas allowed; ``lr=`` and ``epochs=`` of its own may stand in it, as
            in ``"sgd,sam:rho=0.1:lr=0.02"``) or objects, or :class:`Contender`.
        times: drift times; None takes those of the devices, as far as all of them are known there.
        chips: chips for every model and profile.
        out: output folder.
        seeds: training seeds.
        epochs: passes over the training data; None takes the task's.
        lr: learning rate at the start; None takes the task's.
        batch_size: None takes the task's.
        workers: processes; None takes one per core.
        executor: instead of ``workers``, any ``concurrent.futures.Executor``, as for
            :func:`analognoise.evaluate_drift`: a task is one training, or one model on the chips of one
            profile. All its workers must see the folder ``out``. It is left open.
        compensation: drift compensations: "global", "column", "none", "batchnorm", "affine", or as in
            "global+batchnorm". Every model is evaluated with each; all but "global" stand behind the
            profile's name in rows and tables.
        calibration_batches: how many training batches (without labels) a recalibration uses.
        digital: patterns of layer names (``"head*"``) that stay digital, in training (no noise, no clipping)
            and on chips.
        sharpness: also measure every kind of :func:`analognoise.sharpness` of each model, over the test data,
            and its rank correlation with what the model loses on chips; stored beside the models.
        evaluation_seed: root seed of the chips.
        confidence: coverage of the intervals.
        force: start over; deletes only what such a run leaves in ``out``.
        on_event: called with an :class:`Event` for every step, in this process.
        command: recorded in run.json; None takes the process's own.

    Raises:
        AnalogNoiseError: for wrong arguments, before anything is written: MethodError, ProfileError,
            UnitError, DataError, ModelError, ConversionError, or ResultsError when ``out`` holds another run.
            Also when a worker process dies.
        TrainingError: when every method's training failed.
        WorkerError: when an executor is shut down, or workers die of the same task again and again.
    """
    whole_number("calibration_batches", calibration_batches)
    compensations = compensation_list(compensation)
    devices = _devices(profiles)
    seconds = drift_times((device for device in devices if device.has_drift), times)
    common = settle(
        task,
        methods,
        chips,
        seeds=seeds,
        evaluation_seed=evaluation_seed,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        confidence=confidence,
        workers=workers,
        executor=executor,
        digital=digital,
    )
    trainings = common.trainings(lambda contender: _variants(contender, devices))
    count = common.workers(executor or workers, len(trainings))
    tested, calibrating = common.test_data(), None
    if _recalibrates(compensations):
        inputs = common.task.train(common.seeds[0], common.batch_size)
        calibrating = CalibrationData(inputs, torch.device("cpu"), calibration_batches, common.task.forward)
        calibrating.refuse_test_data(tested)
    plan = DriftPlan(
        **vars(common),
        workers=count,
        trainings=trainings,
        test_data=tested.fingerprint,
        model=_model(common, devices, compensations, calibrating),
        profiles=devices,
        times=seconds,
        compensations=compensations,
        calibration_batches=calibration_batches,
    )
    return carry_out(
        plan, out, conclude, sharpness=sharpness, force=force, on_event=on_event, command=command
    )


def _variants(contender: Contender, devices: tuple[DeviceProfile, ...]) -> list[Variant]:
    """What needs a device to train for is trained for each."""
    recipe = parse_method(contender.recipe)
    return [Variant(recipe, target) for target in (devices if recipe.needs_profile else (None,))]


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


def _model(
    common: Common,
    profiles: tuple[DeviceProfile, ...],
    compensations: tuple[str, ...],
    calibrating: CalibrationData | None,
) -> dict[str, Any]:
    """What is on tiles under each profile and compensation; raises where there is nothing to convert, or to
    recalibrate.
    """
    model = common.build()
    task, chosen = common.task, keeping_digital(model, common.digital)
    batch = next(iter(task.test or ()))
    found: dict[str, Any] = {"class": type(model).__name__, "profiles": {}}
    forward = task.forward or default_forward
    for profile, name in product(profiles, compensations):
        tile, kind = split_compensation(name)
        analog = convert_to_analog(model, profile, filter_fn=chosen, compensation=tile)
        correction = Recalibration(analog, kind, calibrating, forward, 0) if kind and calibrating else None

        def look(
            batch: Any, analog: nn.Module = analog, correction: Recalibration | None = correction
        ) -> tuple[Description, CompensationCost]:
            description = describe(analog, batch, forward=forward)
            return description, compensation_cost(analog, description, batch, correction)

        try:
            description, cost = in_parts(look, batch)[0]
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


def _recalibrates(compensations: Iterable[str]) -> bool:
    """Whether any of them needs calibration inputs."""
    return any(split_compensation(name)[1] for name in compensations)
