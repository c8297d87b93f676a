"""Comparisons on faulty digital memories: bits, activation sparsity and kinds of faults as conditions, the
fault rate as the axis.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

from analognoise.comparison.checks import Variant, settle
from analognoise.comparison.fault_job import FaultJob, Memory, MemoryRow, variant_of
from analognoise.comparison.fault_outcome import COMMAND, NOUN, FaultComparison, conclude_faults
from analognoise.comparison.plan import SweepPlan
from analognoise.comparison.run import OnEvent, carry_out
from analognoise.comparison.settings import Contender, Training, stem_of
from analognoise.comparison.sparse import SparsityChoice
from analognoise.errors import DataError, MethodError, QuantizationError
from analognoise.evaluation.faults import RATES
from analognoise.evaluation.rows import AnyRow
from analognoise.memory.faults import FaultModel, fault_rates
from analognoise.memory.words import check_encoding
from analognoise.quantized import quantized_weights
from analognoise.quantized.settings import WEIGHT_BITS
from analognoise.report.layout import FAULTS
from analognoise.tasks import Task
from analognoise.training.recipes import METHODS, Recipe, parse_method


@dataclass(frozen=True, kw_only=True)
class FaultPlan(SweepPlan[Memory]):
    """A comparison on faulty memories at some fault rates; see :func:`compare_faults` for the fields."""

    command: ClassVar = COMMAND
    noun: ClassVar = NOUN
    job: ClassVar = FaultJob
    row: ClassVar = MemoryRow
    layout: ClassVar = FAULTS
    subjects: ClassVar = "memories"
    extent: ClassVar = ("methods", "memories", "rates", "chips", "training_seeds", "trainings")
    pictures: ClassVar = ("*_over_rate.png", "sharpness.png")

    def conditions_of(self, training: Training) -> tuple[Memory, ...]:
        """Those of the model's own bits and sparsity."""
        return tuple(memory for memory in self.swept if memory.variant == training.variant)

    def stems_of(self, row: AnyRow) -> set[str]:
        """The model of these bits and this sparsity."""
        assert isinstance(row, MemoryRow)
        return {stem_of(row.method, row.training_seed, variant_of(row.bits, row.sparsity))}

    def to_dict(self) -> dict[str, Any]:
        """Plain values; bits and sparsity are the memories' and not the methods'."""
        content = super().to_dict()
        for method in content["methods"]:
            for name in _ASKED:
                method["hyperparameters"].pop(name, None)
        return content


def compare_faults(
    task: str | Task,
    methods: str | Iterable[str | Recipe | Contender] = "qat,saq,samson-saq",
    bits: int | Iterable[int] = (4, 8),
    rates: Any = RATES,
    chips: int = 25,
    out: str | os.PathLike[str] = "runs/faults",
    *,
    sparsity: str | Iterable[str] = ("none", "high"),
    kinds: str | Iterable[str] = "flip",
    encodings: str | Iterable[str] = "twos-complement",
    seeds: Iterable[int] = (0, 1, 2),
    epochs: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    digital: Iterable[str] = (),
    sharpness: bool = True,
    evaluation_seed: int = 0,
    confidence: float = 0.95,
    force: bool = False,
    on_event: OnEvent | None = None,
    command: Sequence[str] | None = None,
) -> FaultComparison:
    """Train quantized models by several methods, store each in faulty memories, and compare.

    Each method is trained once per number of bits, sparsity and training seed, and evaluated with every kind
    of fault, encoding and rate. Chip c has the same faulty cells for all methods. The folder ``out`` then
    holds ``results.csv``, ``summary.csv``, ``summary.md``, ``accuracy_over_rate.png``, ``run.json`` and the
    models; it is gone on with, added to and asked for less exactly as that of :func:`analognoise.compare`.

    Args:
        task: ``"digits"``, the user's ``package.module:callable``, or a :class:`Task`.
        methods: recipes of methods that quantize, as text (commas allowed) or objects, or
            :class:`Contender` for epochs or lr of their own.
        bits: of a stored weight, 2 to 8, one or several.
        rates: probabilities of a single bit: numbers, or text such as ``"1e-4,1e-2"``.
        chips: faulty memories for every model, kind and rate.
        out: output folder.
        sparsity: of the activations, in training and on chips: ``"none"``, ``"high"`` (15 % of the outputs
            kept), ``"top-k:0.3"`` (another share), ``"threshold:0.5"``; or a penalty in training,
            ``"l1:0.01"`` or ``"hoyer:0.1"``. One or several.
        kinds: "flip", "flip-0-to-1", "flip-1-to-0", "stuck-at-0", "stuck-at-1": one or several.
        encodings: "twos-complement", "sign-magnitude", or both.
        seeds: training seeds.
        epochs: passes over the training data; None takes the task's.
        lr: learning rate at the start; None takes the task's.
        batch_size: None takes the task's.
        workers: processes; None takes one per core.
        executor: instead of ``workers``, as for :func:`analognoise.compare`.
        digital: patterns of layer names (``"head*"``) that are not quantized.
        sharpness: whether to measure every kind of :func:`analognoise.sharpness` of each model at its
            quantized weights, over the test data, and its rank correlation with what the model loses.
        evaluation_seed: root seed of the chips.
        confidence: coverage of the intervals.
        force: start over; deletes only what such a run leaves in ``out``.
        on_event: called with an :class:`analognoise.comparison.Event` for every step, in this process.
        command: recorded in run.json; None takes the process's own.

    Raises:
        AnalogNoiseError: for wrong arguments, before anything is written: MethodError (also for methods that
            do not quantize), QuantizationError, SparsityError, FaultError, DataError, ModelError, or
            ResultsError when ``out`` holds another run. Also when a worker process dies.
        TrainingError: when every method's training failed.
    """
    widths = _bits(bits)
    choices = [SparsityChoice.parse(text) for text in _texts("sparsity", sparsity)]
    forms = [KINDS_BY_WORD.get(kind, kind) for kind in _texts("kinds", kinds)]
    codes = _texts("encodings", encodings)
    for code in codes:
        check_encoding(code)
    levels = fault_rates(rates)
    for kind in forms:
        FaultModel.of(kind, levels[0])
    memories = tuple(
        Memory(width, choice.name, kind, code)
        for width, choice, kind, code in product(widths, choices, forms, codes)
    )
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
    recipes = {contender.name: _quantizing(contender) for contender in common.contenders}
    trainings = common.trainings(
        lambda contender: [
            Variant(
                recipes[contender.name].replace(bits=width),
                name=variant_of(width, choice.name),
                sparsity=choice,
            )
            for width in widths
            for choice in choices
        ]
    )
    count, tested = common.workers(executor or workers, len(trainings)), common.test_data()
    stored = list(quantized_weights(trainings[0].prepared(common.task)))
    plan = FaultPlan(
        **vars(common),
        workers=count,
        trainings=trainings,
        test_data=tested.fingerprint,
        model={"class": type(common.build()).__name__, "stored": stored},
        swept=memories,
        positions=levels,
    )
    return carry_out(
        plan, out, conclude_faults, sharpness=sharpness, force=force, on_event=on_event, command=command
    )


# What of a method the memories say.
_ASKED = ("bits", "sparsity")
# Shorter words for kinds of faults.
KINDS_BY_WORD = {"0to1": "flip-0-to-1", "1to0": "flip-1-to-0"}


def quantizing_methods() -> list[str]:
    """Names of the methods whose models have words for a memory to hold."""
    return [name for name, method in METHODS.items() if "bits" in method.hyperparameters and method.prepare]


def _quantizing(contender: Contender) -> Recipe:
    recipe = parse_method(contender.recipe)
    if recipe.name not in quantizing_methods():
        raise MethodError(
            f"method {contender.name!r} does not quantize, so there are no words for a memory to hold: take "
            f"{', '.join(quantizing_methods())}"
        )
    for name in _ASKED:
        if recipe.hyperparameters.get(name) != recipe.method.defaults.get(name):
            raise MethodError(
                f"method {contender.name!r} has {name} of its own: leave that to {name}= (--{name}), which "
                "every method is compared with"
            )
    return recipe


def _bits(given: int | Iterable[int]) -> tuple[int, ...]:
    found = tuple([given] if isinstance(given, int) else given)
    low, high = WEIGHT_BITS
    for value in found:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise QuantizationError(f"bits must be whole numbers from {low} to {high}, found {value!r}")
    return _different("bits", found)


def _texts(name: str, given: str | Iterable[str]) -> tuple[str, ...]:
    parts = given.split(",") if isinstance(given, str) else [*given]
    return _different(name, tuple(part.strip() for part in parts))


def _different(name: str, found: tuple[Any, ...]) -> tuple[Any, ...]:
    if not found:
        raise DataError(f"{name} is empty: give at least one")
    twice = next((item for item in found if found.count(item) > 1), None)
    if twice is not None:
        raise DataError(f"{name} holds {twice!r} twice: leave one out")
    return found
