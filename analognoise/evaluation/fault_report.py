"""What an evaluation of memory faults found: rows, statistics by fault rate, picture."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from analognoise.evaluation.row_text import write_rows
from analognoise.evaluation.rows import AnyRow, rows_to_frame
from analognoise.evaluation.statistics import summarise_methods
from analognoise.printing import Printed, counted
from analognoise.quantized.description import FloatLayer
from analognoise.report.layout import FAULTS
from analognoise.report.one_model import figure, heading, interval_note, metric_notes, row_cells
from analognoise.sparsity.measure import ActivationSparsity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMED = 6  # layers that stay float, in a summary


@dataclass(frozen=True, slots=True)
class FaultRow(AnyRow):
    """The result of one chip at one fault rate.

    Attributes:
        run_id: digest of model, faults, data, metric and settings.
        faults: kind of the faults, with bit positions and encoding.
        bits: bits of the stored weights, ``"4"``, or ``"4-8"`` where layers differ.
        method: training method, "" when none is named.
        training_seed: seed of the training, None when none is named.
        chip: chip number.
        rate: fault rate.
        metric: name of the metric.
        sum: the metric's sum over the data.
        count: what the sum is divided by (samples, tokens).
        value: the metric: sum / count, or its exponential for perplexity.
        quantized: the metric of the same model without faults.
        unquantized: the metric with its float weights and activations.
    """

    AXIS: ClassVar[str] = "rate"

    run_id: str
    faults: str
    bits: str
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
        """The faults."""
        return self.faults

    @property
    def place(self) -> str:
        """Chip and rate."""
        return f"chip {self.chip} at rate {self.rate:g}"


@dataclass(frozen=True)
class FaultReport:
    """One quantized model on many chips with faulty memory.

    Attributes:
        rows: one per chip and rate, by chip, then rate.
        rates: fault rates, increasing.
        faults: kind of the faults, with bit positions and encoding.
        metric: name of the metric.
        higher_is_better: its direction.
        quantized: the metric of the model without faults.
        unquantized: the metric with its float weights and activations.
        bits: of a stored weight, by the weight's name.
        stored_bits: number of bits in faulty memory.
        floating: what stays float, and is protected: as :func:`analognoise.describe_quantization` names it.
        sparsity: activation sparsity without faults; None where a forward calls no activation layer.
        not_read: names of the stored weights that the model does not read, so that their faults do nothing.
        seed: root seed of the chips.
        run_id: digest of model, faults, data, metric and settings.
        reused: how many of the rows a results file had already.
        confidence: coverage of the intervals.
    """

    rows: tuple[FaultRow, ...]
    rates: tuple[float, ...]
    faults: str
    metric: str
    higher_is_better: bool
    quantized: float
    unquantized: float
    bits: dict[str, int]
    stored_bits: int
    floating: tuple[FloatLayer, ...]
    sparsity: ActivationSparsity | None
    not_read: tuple[str, ...]
    seed: int
    run_id: str
    reused: int = 0
    confidence: float = 0.95

    @property
    def chips(self) -> int:
        """Number of chips."""
        return len(self.rows) // len(self.rates)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The rows, with the columns of the CSV file."""
        return rows_to_frame(self.rows, FaultRow)

    @property
    def values(self) -> np.ndarray:
        """The metric, shape (chips, rates)."""
        return np.array([row.value for row in self.rows]).reshape(self.chips, len(self.rates))

    def summary(self) -> FaultSummary:
        """Mean, interval, standard deviation and worst chip by fault rate; ``print()`` shows a table."""
        frame = summarise_methods(
            self.frame, confidence=self.confidence, higher_is_better=self.higher_is_better, layout=FAULTS
        )
        return FaultSummary(frame, self)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The mean with its interval over the fault rate on a logarithmic axis,
        and the metric without faults, on ``ax`` or a new figure.
        """
        from analognoise.report.plot import plot_over_time  # matplotlib takes a while to load

        title = (
            f"{self.metric.capitalize()} of {bits_label(self.bits)}-bit weights with faults: {self.faults}"
        )
        return plot_over_time(self.summary().frame, ax, title, confidence=self.confidence)

    def to_csv(self, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write the rows; the file appears whole or not at all.

        Raises:
            ResultsError: when the file exists with other content and ``overwrite`` is False, or cannot be
                written.
        """
        return write_rows(path, self.rows, FaultRow, overwrite)


@dataclass(frozen=True, repr=False)
class FaultSummary(Printed):
    """The statistics of a report by fault rate.

    Attributes:
        frame: one row per rate; columns as of
            :func:`analognoise.evaluation.statistics.summarise_methods`, with ``faults`` for profile, ``rate``
            for time and ``quantized`` for digital.
        report: what it sums up.
    """

    frame: pd.DataFrame
    report: FaultReport

    def __rich_console__(self, console: Console, options: Any) -> Any:
        report = self.report
        metric = report.metric
        table = Table(
            title=f"{heading(metric)} with faults of the kind {report.faults}; without faults "
            f"{figure(metric, report.quantized)}, unquantized {figure(metric, report.unquantized)}",
            title_justify="left",
            box=box.SIMPLE_HEAD,
        )
        level = f"{100 * report.confidence:g} % interval"
        for name in ("fault rate", "mean", level, "std", "worst chip", "worse than quantized by", "chips"):
            table.add_column(name, justify="left" if name == "fault rate" else "right")
        for row in self.frame.to_dict("records"):
            table.add_row(FAULTS.label(row["rate"]), *row_cells(metric, row))
        yield table
        yield from self._notes()

    def _notes(self) -> list[str]:
        report = self.report
        notes = [interval_note(report.chips)]
        error = float(self.frame["test_error"].max())
        notes += metric_notes(report.metric, report.higher_is_better, error)
        notes.append(
            f"In faulty memory: {report.stored_bits} bits of weights, {bits_label(report.bits)} per weight. "
            "Protected: scales, biases and all else."
        )
        layers = [
            part for part in report.floating if part.layer and not part.reason.startswith("normalization")
        ]
        if layers:
            named = [
                f"{part.name or part.layer} ({counted(part.parameters, 'parameter')})"
                for part in layers[:_NAMED]
            ]
            named += [f"{len(layers) - _NAMED} more"] if len(layers) > _NAMED else []
            notes.append(f"Float, so protected: {', '.join(named)}.")
        if report.not_read:
            notes.append(
                f"NOT READ by the model, so that faults there do nothing: {', '.join(report.not_read)}."
            )
        if report.sparsity is not None:
            notes.append(f"Activation sparsity without faults: {100 * report.sparsity.overall:.1f} %.")
            if report.sparsity.dead:
                notes.append(f"DEAD activation layers: {', '.join(report.sparsity.dead)}.")
        return notes


def bits_label(bits: dict[str, int]) -> str:
    """Bits of the weights in short: ``"4"``, or ``"4-8"`` where layers differ."""
    low, high = min(bits.values()), max(bits.values())
    return str(low) if low == high else f"{low}-{high}"
