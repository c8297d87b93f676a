"""The comparison itself: train, evaluate, summarise; go on where a killed run stopped."""

from __future__ import annotations

import os
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analognoise.comparison.checks import settle
from analognoise.comparison.folder import Folder
from analognoise.comparison.jobs import EvaluateJob, TrainJob
from analognoise.comparison.outcome import Comparison, Failure, conclude
from analognoise.comparison.settings import Contender, Settings, Training, stem_of
from analognoise.comparison.sharpness import measure_all
from analognoise.crossbar.compensation import split_name
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import ResultsError, TrainingError
from analognoise.evaluation.store import ResultStore, Row
from analognoise.pool import run_jobs
from analognoise.report.numbers import one_value
from analognoise.tasks import Task
from analognoise.training.fit import Epoch
from analognoise.training.recipes import Recipe
from analognoise.units import format_time

# How much longer an epoch's gradient takes than a pass over the test data, roughly: for progress bars only.
_EPOCH_WEIGHT = 8


@dataclass(frozen=True)
class Event:
    """Something that happened in a comparison.

    Attributes:
        kind: "plan" (before any work), "reused", "kept" (rows that were not asked for), "epoch", "trained",
            "failed", "rows", "evaluated", "sharpness", "warning" or "done".
        message: in words; empty for "epoch" and "rows".
        done: work done so far, in rough units.
        total: work in all that was not reused.
    """

    kind: str
    message: str
    done: int
    total: int


OnEvent = Callable[[Event], None]


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
        methods: recipes, as text (commas allowed) or objects, or :class:`Contender` for epochs or lr of their
            own.
        times: drift times; None takes those of the devices, as far as all of them are known there.
        chips: chips for every model and profile.
        out: output folder.
        seeds: training seeds.
        epochs: passes over the training data; None takes the task's.
        lr: learning rate at the start; None takes the task's.
        batch_size: None takes the task's.
        workers: processes; None takes one per core.
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
    """
    settings = settle(
        task,
        profiles,
        methods,
        times,
        chips,
        seeds=seeds,
        evaluation_seed=evaluation_seed,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        compensation=compensation,
        calibration_batches=calibration_batches,
        confidence=confidence,
        workers=workers,
        digital=digital,
    )
    folder = Folder(Path(out), settings, force)
    with folder.opened(sys.argv if command is None else command):
        run = _Run(settings, folder, on_event)
        run.work()
        if sharpness:
            run.measure_sharpness()
        return run.finish()


def _known_rows(rows: Iterable[Row], folder: Folder, settings: Settings) -> tuple[list[Row], list[Row]]:
    """The rows of results.csv that are asked for, and those of an earlier call that asked for others.

    Raises:
        ResultsError: when one is neither.
    """
    expected = {
        (on.name, t.method, t.seed): settings.times_of(on.profile)
        for t in settings.trainings
        for on in settings.chips_of(t)
    }
    asked: list[Row] = []
    others: list[Row] = []
    trained, devices = folder.trained, folder.devices
    for row in rows:
        seed = -1 if row.training_seed is None else row.training_seed
        device = split_name(row.profile)[0]
        times = expected.get((row.profile, row.method, seed), ())
        if row.time_s in times and row.chip < settings.chips:
            asked.append(row)
        elif times or (
            device in devices and trained & {stem_of(row.method, seed), stem_of(row.method, seed, device)}
        ):
            others.append(row)
        else:
            raise ResultsError(
                f"{folder.results} holds a row that is not of this run (profile {row.profile}, method "
                f"{row.method}, training seed {row.training_seed}, chip {row.chip}, {row.time_s:g} s): "
                "restore the file, or start over with force (--force)"
            )
    return asked, others


class _Run:
    """The state of one call."""

    def __init__(self, settings: Settings, folder: Folder, on_event: OnEvent | None) -> None:
        self.settings, self.folder, self.on_event = settings, folder, on_event
        self.store = ResultStore(folder.results)
        asked, others = _known_rows(self.store.rows, folder, settings)
        self.records = {training: folder.record(training) for training in settings.trainings}
        # Rows of a model that must be trained again go: they would be another model's.
        lost = {
            (t.method, t.seed, on.profile.name)
            for t, record in self.records.items()
            if record is None
            for on in settings.chips_of(t)
        }
        kept, self.others = (
            [row for row in rows if (row.method, row.training_seed, split_name(row.profile)[0]) not in lost]
            for rows in (asked, others)
        )
        if len(kept) + len(self.others) < len(self.store):
            folder.rewrite_results([*kept, *self.others])
            self.store = ResultStore(folder.results)
        self.rows: dict[tuple[str, str, int], list[Row]] = defaultdict(list)
        for row in kept:
            self.rows[row.profile, row.method, int(row.training_seed or 0)].append(row)
        self.reused_models = sum(record is not None for record in self.records.values())
        self.reused_rows = len(kept)
        self.warnings: list[str] = []
        self.done = self.total = 0

    def work(self) -> None:
        """Train and evaluate what is missing."""
        jobs: list[TrainJob | EvaluateJob] = []
        for training, record in self.records.items():
            if record is None:
                jobs.append(TrainJob(self.settings.source, training, str(self.folder.models)))
                self.total += _EPOCH_WEIGHT * training.epochs * training.recipe.gradients_per_step
                self.total += sum(job.size for job in self._evaluations(training))
            elif "error" not in record:
                missing = self._evaluations(training)
                jobs.extend(missing)
                self.total += sum(job.size - len(job.known) for job in missing)
        self._announce()
        if not jobs:
            return
        self.folder.check_versions()
        try:
            run_jobs(jobs, min(self.settings.workers, len(jobs)), self._found, self._finished)
        finally:
            self.store.close()

    def measure_sharpness(self) -> None:
        """Measure what is missing of the models' sharpness."""
        measure_all(self.settings, self.folder, self.records, self._tell)

    def _announce(self) -> None:
        trainings, rows = len(self.records), sum(job.size for t in self.records for job in self._every(t))
        names = [contender.name for contender in self.settings.contenders]
        self._tell(
            "plan",
            f"{len(names)} methods × {len(self.settings.seeds)} training seeds = {trainings} models, {rows} "
            "rows, "
            f"on {self.settings.workers} worker(s)",
        )
        if self.reused_models:
            self._tell("reused", f"{self.reused_models} of {trainings} models reused")
        if self.reused_rows:
            self._tell("reused", f"{self.reused_rows} of {rows} rows reused")
        if self.others:
            self._tell(
                "kept",
                f"{len(self.others)} rows of {self.folder.results} are of what an earlier call asked for and "
                f"this one does not ({self._unasked()}): they stay there, and the tables are without them",
            )

    def _unasked(self) -> str:
        settings = self.settings
        names: dict[str, tuple[set[Any], list[Any]]] = {
            "method": ({c.name for c in settings.contenders}, [row.method for row in self.others]),
            "profile": ({on.name for on in settings.chips_of_all}, [row.profile for row in self.others]),
            "training seed": (set(settings.seeds), [row.training_seed for row in self.others]),
            "time": (
                {format_time(time) for time in (0.0, *settings.times)},
                [format_time(row.time_s) for row in self.others],
            ),
        }
        parts = []
        for word, (asked, found) in names.items():
            more = [str(item) for item in dict.fromkeys(found) if item not in asked]
            if more:
                parts.append(f"{word}{'s' if len(more) > 1 else ''} {', '.join(more)}")
        chips = max(row.chip for row in self.others) + 1
        return "; ".join([*parts, *([f"{chips} chips"] if chips > settings.chips else [])])

    def _every(self, training: Training) -> list[EvaluateJob]:
        settings = self.settings
        return [
            EvaluateJob(
                source=settings.source,
                training=training,
                on=on,
                folder=str(self.folder.models),
                times=settings.times_of(on.profile),
                chips=settings.chips,
                seed=settings.evaluation_seed,
                calibration_batches=settings.calibration_batches,
                known=tuple(self.rows.get((on.name, training.method, training.seed), ())),
            )
            for on in settings.chips_of(training)
        ]

    def _evaluations(self, training: Training) -> list[EvaluateJob]:
        return [job for job in self._every(training) if len(job.known) < job.size]

    def _found(self, job: Any, payload: Any) -> None:
        if isinstance(payload, Epoch):
            self.done += _EPOCH_WEIGHT * job.training.recipe.gradients_per_step
            self._tell("epoch", "")
        else:
            self.store.append(payload)
            self.rows[job.key].extend(payload)
            self.done += len(payload)
            self._tell("rows", "")

    def _finished(self, job: Any, result: dict[str, Any]) -> list[EvaluateJob]:
        if isinstance(job, TrainJob):
            self.records[job.training] = result
            if "error" in result:
                self._tell("failed", result["error"])
                return []
            test = result["digital"].get("test")
            metric = result["history"]["metric"]
            digital = f"digital {metric} {one_value(metric, test)}"
            self._tell("trained", f"{job.training.method}, seed {job.training.seed}: {digital}")
            return self._evaluations(job.training)
        found = {row.run_id for row in self.rows[job.key]}
        if found != {result["run_id"]}:
            raise ResultsError(
                f"{self.folder.results} holds rows of another model for {job.title}: start over with force "
                "(--force)"
            )
        for text in result["warnings"]:
            self._warn(text)
        self._tell("evaluated", job.title)
        return []

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
            if self.on_event is None:
                warnings.warn(text, stacklevel=2)
            self._tell("warning", text)

    def _tell(self, kind: str, message: str) -> None:
        if self.on_event is not None:
            self.on_event(Event(kind, message, self.done, self.total))

    def finish(self) -> Comparison:
        """Bring the rows into their order, and write what follows from them."""
        failures = []
        for training, record in self.records.items():
            if record is not None and "error" in record:
                target = training.profile.name if training.profile else None
                failures.append(Failure(training.method, training.seed, target, record["error"]))
        ordered = [
            row
            for on in self.settings.chips_of_all
            for training in self.settings.trainings
            if on in self.settings.chips_of(training)
            for row in sorted(
                self.rows.get((on.name, training.method, training.seed), ()),
                key=lambda row: (row.chip, row.time_s),
            )
        ]
        self.folder.finish([failure.to_dict() for failure in failures], self.warnings)
        if not ordered:
            raise TrainingError(f"every training failed; the first: {failures[0].message}")
        self.folder.rewrite_results([*ordered, *self.others])
        comparison = conclude(
            self.folder.path, reused_models=self.reused_models, reused_rows=self.reused_rows
        )
        self._tell("done", f"results in {self.folder.path}")
        return comparison
