"""The comparison itself: train, evaluate, summarise; go on where a killed run stopped."""

from __future__ import annotations

import os
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from analognoise.comparison.folder import Folder
from analognoise.comparison.jobs import EvaluationJob, TrainJob, named_task
from analognoise.comparison.plan import Plan
from analognoise.comparison.settings import Training
from analognoise.comparison.sharpness import measure_all
from analognoise.comparison.stored import Failure
from analognoise.errors import ResultsError, TrainingError
from analognoise.evaluation.rows import AnyRow
from analognoise.evaluation.store import ResultStore
from analognoise.files import check_room
from analognoise.pool import enough, run_jobs, size_of
from analognoise.printing import counted
from analognoise.report.numbers import one_value
from analognoise.training.history import Epoch

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
Evaluation = EvaluationJob[Any, Any]
Result = TypeVar("Result", covariant=True)


class Conclude(Protocol[Result]):
    """Makes summary, tables and pictures from a comparison's folder."""

    def __call__(self, folder: Path, *, reused_models: int, reused_rows: int) -> Result:
        """The finished comparison."""


def carry_out(
    plan: Plan,
    out: str | os.PathLike[str],
    conclude: Conclude[Result],
    *,
    sharpness: bool = False,
    force: bool = False,
    on_event: OnEvent | None = None,
    command: Sequence[str] | None = None,
) -> Result:
    """Train, evaluate, and conclude; what the folder has already is not done again.

    Args:
        plan: what to do.
        out: output folder.
        conclude: makes summary, tables and pictures from the folder.
        sharpness: whether to measure the models' sharpness, too.
        force: start over.
        on_event: called with an :class:`Event` for every step, in this process.
        command: recorded in run.json; None takes the process's own.

    Raises:
        ResultsError: when the folder holds another run, or cannot be used.
        TrainingError: when every training failed.
        AnalogNoiseError: when a worker process dies.
    """
    named_task.cache_clear()  # a module may have been loaded anew since an earlier comparison of this process
    folder = Folder(Path(out), plan, force)
    with folder.opened(sys.argv if command is None else command):
        run = _Run(plan, folder, on_event)
        run.work()
        if sharpness:
            run.measure_sharpness()
        run.write()
        found = conclude(folder.path, reused_models=run.reused_models, reused_rows=run.reused_rows)
        run.tell("done", f"results in {folder.path}")
        return found


def _known_rows(rows: Iterable[AnyRow], folder: Folder, plan: Plan) -> tuple[list[AnyRow], list[AnyRow]]:
    """The rows of results.csv that are asked for, and those of an earlier call that asked for others.

    Raises:
        ResultsError: when one is neither.
    """
    expected = {
        (on.name, t.method, t.seed): plan.positions_of(on)
        for t in plan.trainings
        for on in plan.conditions_of(t)
    }
    asked: list[AnyRow] = []
    others: list[AnyRow] = []
    trained, subjects = folder.trained, folder.subjects
    for row in rows:
        positions = expected.get(_key(row), ())
        if row.position in positions and row.chip < plan.chips:
            asked.append(row)
        elif positions or (plan.subject_of(row) in subjects and trained & plan.stems_of(row)):
            others.append(row)
        else:
            raise ResultsError(
                f"{folder.results} holds a row that is not of this run ({plan.layout.group} {row.condition}, "
                f"method {row.method}, training seed {row.training_seed}, {row.place}): "
                "restore the file, or start over with force (--force)"
            )
    return asked, others


def _key(row: AnyRow) -> tuple[str, str, int]:
    """Which of the evaluations the row is of."""
    return row.condition, row.method, -1 if row.training_seed is None else row.training_seed


class _Run:
    """The state of one call."""

    def __init__(self, plan: Plan, folder: Folder, on_event: OnEvent | None) -> None:
        self.plan, self.folder, self.on_event = plan, folder, on_event
        self.store = self._stored()
        asked, others = _known_rows(self.store.rows, folder, plan)
        self.records = {training: folder.record(training) for training in plan.trainings}
        # Rows of a model that must be trained again go: they would be another model's.
        lost = {training.stem for training, record in self.records.items() if record is None}
        kept, self.others = (
            [row for row in rows if not lost & plan.stems_of(row)] for rows in (asked, others)
        )
        if len(kept) + len(self.others) < len(self.store):
            folder.rewrite_results([*kept, *self.others])
            self.store = self._stored()
        self.rows: dict[tuple[str, str, int], list[AnyRow]] = defaultdict(list)
        for row in kept:
            self.rows[_key(row)].append(row)
        self.reused_models = sum(record is not None for record in self.records.values())
        self.reused_rows = len(kept)
        self.warnings: list[str] = []
        self.done = self.total = 0

    def _stored(self) -> ResultStore[AnyRow]:
        return ResultStore(self.folder.results, kind=self.plan.row)

    def work(self) -> None:
        """Train and evaluate what is missing."""
        jobs: list[TrainJob | Evaluation] = []
        rows = 0
        for training, record in self.records.items():
            job = TrainJob(self.plan.source, training, self.folder.seen_by_workers)
            if record is None:
                jobs.append(job)
                left = job.checkpoint.header()
                begun = 0 if left is None else int(left["epoch"])
                if begun:
                    self.tell("reused", f"{job.title} goes on after {begun} of {training.epochs} epochs")
                self.total += _EPOCH_WEIGHT * (training.epochs - begun) * training.recipe.gradients_per_step
                rows += sum(evaluation.size for evaluation in self._evaluations(training))
                continue
            job.checkpoint.remove()  # of a run that was killed when all was stored
            if "error" not in record:
                missing = self._evaluations(training)
                jobs.extend(missing)
                rows += sum(evaluation.size - len(evaluation.known) for evaluation in missing)
        self.total += rows
        self._announce()
        if not jobs:
            return
        self.folder.check_versions()
        self._check_room([job.training for job in jobs if isinstance(job, TrainJob)])
        try:
            self.store.claim(rows)
            run_jobs(jobs, enough(self.plan.workers, len(jobs)), self._found, self._finished)
        finally:
            self.store.close()

    def _check_room(self, trainings: Sequence[Training]) -> None:
        """Raise unless there is room for the models to come: a run of days should not end for want of it."""
        if trainings:
            state = trainings[0].build(self.plan.task).state_dict()
            size = len(trainings) * sum(value.nbytes for value in state.values())
            check_room(self.folder.models, size, f" for {counted(len(trainings), 'model')}")

    def measure_sharpness(self) -> None:
        """Measure what is missing of the models' sharpness."""
        measure_all(self.plan, self.folder, self.records, self.tell)

    def _announce(self) -> None:
        trainings, rows = len(self.records), sum(job.size for t in self.records for job in self._every(t))
        names = [contender.name for contender in self.plan.contenders]
        workers = self.plan.workers
        count = workers if isinstance(workers, int) else size_of(workers)
        self.tell(
            "plan",
            f"{counted(len(names), 'method')} × {counted(len(self.plan.seeds), 'training seed')} = "
            f"{counted(trainings, 'model')}, {counted(rows, 'row')}, on {counted(count, 'worker')}",
        )
        if self.reused_models:
            self.tell("reused", f"{self.reused_models} of {counted(trainings, 'model')} reused")
        if self.reused_rows:
            self.tell("reused", f"{self.reused_rows} of {counted(rows, 'row')} reused")
        if self.others:
            self.tell(
                "kept",
                f"{self.folder.results} keeps {counted(len(self.others), 'row')} that an earlier call asked "
                f"for and this one does not ({self._unasked()}): the tables are without them",
            )

    def _unasked(self) -> str:
        plan, layout = self.plan, self.plan.layout
        positions = {on.name: plan.positions_of(on) for on in plan.conditions}
        names: dict[str, tuple[set[Any], list[Any]]] = {
            "method": ({c.name for c in plan.contenders}, [row.method for row in self.others]),
            layout.group: (set(positions), [row.condition for row in self.others]),
            "training seed": (set(plan.seeds), [row.training_seed for row in self.others]),
            layout.axis: (
                set(),
                [
                    layout.label(row.position)
                    for row in self.others
                    if row.position not in positions.get(row.condition, (row.position,))
                ],
            ),
        }
        parts = []
        for word, (asked, found) in names.items():
            more = [str(item) for item in dict.fromkeys(found) if item not in asked]
            if more:
                plural = "" if len(more) == 1 or word.endswith("s") or not word.isascii() else "s"
                parts.append(f"{word}{plural} {', '.join(more)}")
        chips = max(row.chip for row in self.others) + 1
        return "; ".join([*parts, *([counted(chips, layout.unit)] if chips > plan.chips else [])])

    def _every(self, training: Training) -> list[Evaluation]:
        plan, folder = self.plan, self.folder.seen_by_workers
        return [
            plan.evaluation(
                training, on, folder, tuple(self.rows.get((on.name, training.method, training.seed), ()))
            )
            for on in plan.conditions_of(training)
        ]

    def _evaluations(self, training: Training) -> list[Evaluation]:
        return [job for job in self._every(training) if len(job.known) < job.size]

    def _found(self, job: Any, payload: Any) -> None:
        if isinstance(payload, Epoch):
            self.done += _EPOCH_WEIGHT * job.training.recipe.gradients_per_step
            self.tell("epoch", "")
        else:
            self.store.append(payload)
            self.rows[job.key].extend(payload)
            self.done += len(payload)
            self.tell("rows", "")

    def _finished(self, job: Any, result: dict[str, Any]) -> list[Evaluation]:
        if isinstance(job, TrainJob):
            self.records[job.training] = result
            if "error" in result:
                self.tell("failed", Failure.of(job.training, result["error"]).sentence)
                return []
            test = result["digital"].get("test")
            metric = result["history"]["metric"]
            digital = f"digital {metric} {one_value(metric, test)}"
            self.tell("trained", f"{job.training.title}: {digital}")
            return self._evaluations(job.training)
        found = {row.run_id for row in self.rows[job.key]}
        if found != {result["run_id"]}:
            raise ResultsError(
                f"{self.folder.results} holds rows of another model for {job.title}: start over with force "
                "(--force)"
            )
        for text in result["warnings"]:
            self._warn(text)
        self.tell("evaluated", job.title)
        return []

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
            if self.on_event is None:
                warnings.warn(text, stacklevel=2)
            self.tell("warning", text)

    def tell(self, kind: str, message: str) -> None:
        """Say what happened."""
        if self.on_event is not None:
            self.on_event(Event(kind, message, self.done, self.total))

    def write(self) -> None:
        """Bring the rows into their order, and say in run.json what was found.

        Raises:
            TrainingError: when every training failed.
        """
        failures = [
            Failure.of(training, record["error"])
            for training, record in self.records.items()
            if record is not None and "error" in record
        ]
        ordered = [
            row
            for on in self.plan.conditions
            for training in self.plan.trainings
            if on in self.plan.conditions_of(training)
            for row in sorted(
                self.rows.get((on.name, training.method, training.seed), ()),
                key=lambda row: (row.chip, row.position),
            )
        ]
        self.folder.finish([failure.to_dict() for failure in failures], self.warnings)
        if not ordered:
            raise TrainingError(f"every training failed; the first: {failures[0].sentence}")
        self.folder.rewrite_results([*ordered, *self.others])
