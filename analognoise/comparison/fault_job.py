"""One quantized model in faulty memories of one kind, at several rates."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from analognoise.comparison.jobs import Emit, EvaluationJob, load_trained, task_of
from analognoise.evaluation.fault_report import FaultRow
from analognoise.evaluation.faults import evaluate_faults
from analognoise.evaluation.relay import Relay
from analognoise.evaluation.rows import AnyRow
from analognoise.memory.faults import FaultModel, faults_label


def variant_of(bits: int, sparsity: str) -> str:
    """What names of files say of a training besides method and seed."""
    return f"{bits}bit-{sparsity}"


@dataclass(frozen=True)
class Memory:
    """What a trained model is evaluated in."""

    bits: int
    sparsity: str
    kind: str
    encoding: str

    @property
    def faults(self) -> str:
        """Kind and encoding in short."""
        return faults_label(FaultModel.of(self.kind, 1.0, encoding=self.encoding))

    @property
    def name(self) -> str:
        """What tables call it."""
        return memory_name(self.bits, self.sparsity, self.faults)

    @property
    def variant(self) -> str:
        """Which models it is for."""
        return variant_of(self.bits, self.sparsity)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def memory_name(bits: int, sparsity: str, faults: str) -> str:
    """What tables call a memory, and the model in it."""
    return f"{bits} bits, sparsity {sparsity}, {faults}"


@dataclass(frozen=True, slots=True)
class MemoryRow(AnyRow):
    """The result of one faulty memory at one rate; as :class:`FaultRow`, and what the model is.

    Attributes:
        run_id: digest of model, faults, data, metric and settings.
        bits: of a stored weight.
        sparsity: of the activations, as it was asked for.
        faults: kind of the faults, and encoding where it is not two's complement.
        method: training method.
        training_seed: seed of the training.
        chip: number of the memory.
        rate: fault rate.
        metric: name of the metric.
        sum: the metric's sum over the data.
        count: what the sum is divided by.
        value: the metric.
        quantized: the metric of the same model without faults.
        unquantized: the metric with its float weights and activations.
    """

    AXIS: ClassVar[str] = "rate"

    run_id: str
    bits: int
    sparsity: str
    faults: str
    method: str
    training_seed: int | None
    chip: int
    rate: float
    metric: str
    sum: float
    count: float
    value: float
    quantized: float
    unquantized: float

    @property
    def condition(self) -> str:
        """The memory."""
        return memory_name(self.bits, self.sparsity, self.faults)

    @property
    def place(self) -> str:
        """Chip and rate."""
        return f"chip {self.chip} at rate {self.rate:g}"

    @classmethod
    def of(cls, row: FaultRow, memory: Memory) -> MemoryRow:
        """The row of an evaluation, in a comparison."""
        return cls(**asdict(row) | {"bits": memory.bits, "sparsity": memory.sparsity})

    @property
    def plain(self) -> FaultRow:
        """The row as an evaluation knows it."""
        values = asdict(self) | {"bits": str(self.bits)}
        del values["sparsity"]
        return FaultRow(**values)


class FaultJob(EvaluationJob[Memory, MemoryRow]):
    """Evaluate one stored model in faulty memories, at fault rates; chip c has the same faulty cells for all
    models.
    """

    def run(self, emit: Emit) -> dict[str, Any]:
        """Evaluate; emits the new rows of each chip as a list. Returns the rows' run id and the warnings."""
        task = task_of(self.source)
        model = load_trained(self.training, task, self.folder)

        def forward_rows(rows: list[FaultRow]) -> None:
            emit([MemoryRow.of(row, self.on) for row in rows])

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            report = evaluate_faults(
                model,
                task.test,
                self.positions,
                self.chips,
                self.seed,
                task.metric,
                kind=self.on.kind,
                encoding=self.on.encoding,
                forward=task.forward,
                out=Relay([row.plain for row in self.known], forward_rows),
                method=self.training.method,
                training_seed=self.training.seed,
            )
        name = f"{self.training.method}, {self.on.bits} bits, sparsity {self.on.sparsity}"
        texts = [f"{name}, seed {self.training.seed}: {item.message}" for item in caught]
        return {"run_id": report.run_id, "warnings": texts}
