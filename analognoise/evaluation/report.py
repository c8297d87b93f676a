"""What an evaluation found: rows, statistics by drift time, lifetime, picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from analognoise.description import Description
from analognoise.errors import DataError
from analognoise.evaluation.cost import CompensationCost, described
from analognoise.evaluation.lifetime import Lifetime, lifetime
from analognoise.evaluation.quantiles import Quantile, Yield, quantile, yield_at
from analognoise.evaluation.row_text import write_rows
from analognoise.evaluation.rows import Row, rows_to_frame
from analognoise.evaluation.sampling import Sampled
from analognoise.evaluation.statistics import summarise_methods
from analognoise.evaluation.stopping import Precision
from analognoise.printing import Printed
from analognoise.report.onchip import compensation_line, digital_parts, share_on_tiles
from analognoise.report.one_model import figure, heading, interval_note, metric_notes, row_cells
from analognoise.units import format_time, parse_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class DriftReport:
    """One model on many chips over drift time.

    Attributes:
        rows: one per chip and drift time, by chip, then time.
        times: drift times in seconds.
        metric: name of the metric.
        higher_is_better: its direction.
        digital: the metric of the model computed digitally.
        seed: root seed of the chips.
        run_id: digest of model, profile, data, metric and settings.
        description: what of the model is on tiles and what stayed digital.
        not_read: layers whose tiles no forward reads, or not for all that they compute: the results do not
            show (all of) what a chip does to them.
        reused: how many of the rows a results file had already.
        confidence: coverage of the intervals.
        compensation: the drift compensation, with the recalibration as in ``"global+batchnorm"``.
        cost: what that costs each chip.
        left_out: layers on tiles that the recalibration could not correct.
        precision: what the number of chips at each time was to reach; None where it was fixed beforehand.
        sampling: on how many samples each chip was measured; None for all.
    """

    rows: tuple[Row, ...]
    times: tuple[float, ...]
    metric: str
    higher_is_better: bool
    digital: float
    seed: int
    run_id: str
    description: Description
    not_read: tuple[str, ...] = ()
    reused: int = 0
    confidence: float = 0.95
    compensation: str = "global"
    cost: CompensationCost | None = None
    left_out: tuple[str, ...] = ()
    precision: Precision | None = None
    sampling: Sampled | None = None

    @property
    def chips(self) -> int:
        """Number of chips; with a precision, at the time that took most."""
        return max(row.chip for row in self.rows) + 1

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The rows, with the columns of results.csv."""
        return rows_to_frame(self.rows)

    @property
    def values(self) -> np.ndarray:
        """The metric, shape (chips, times); NaN where a chip was not needed at a time (with a precision)."""
        found = np.full((self.chips, len(self.times)), np.nan)
        column = {time: number for number, time in enumerate(self.times)}
        for row in self.rows:
            found[row.chip, column[row.time_s]] = row.value
        return found

    @property
    def describe(self) -> dict[str, Any]:
        """What is on tiles and what stayed digital, with its share of the multiply-accumulates, what was not
        read, and the drift compensation with its cost.
        """
        found = described(self.description, self.compensation, self.cost, self.left_out)
        return found | {"not_read": list(self.not_read)}

    def summary(self) -> DriftSummary:
        """Mean, interval, standard deviation and worst chip by drift time; ``print()`` shows a table."""
        frame = summarise_methods(
            self.frame,
            confidence=self.confidence,
            higher_is_better=self.higher_is_better,
            interval=self.precision.interval if self.precision else None,
        )
        return DriftSummary(frame, self)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The mean with its interval over drift time, and the digital metric, on ``ax`` or a new figure."""
        from analognoise.report.plot import plot_over_time  # matplotlib takes a while to load

        return plot_over_time(self.summary().frame, ax, confidence=self.confidence)

    def at(self, time: str | float | None = None) -> np.ndarray:
        """The metric of the chips at a drift time, in their order.

        Args:
            time: as in ``evaluate_drift``; None takes the last that was measured.

        Raises:
            UnitError: when the time cannot be read.
            DataError: when it was not measured.
        """
        seconds = self.times[-1] if time is None else parse_time(time)
        if seconds not in self.times:
            measured = ", ".join(map(format_time, self.times))
            raise DataError(f"time {format_time(seconds)} was not measured: the report has {measured}")
        return np.array([row.value for row in self.rows if row.time_s == seconds])

    def _single_chips(self, what: str) -> None:
        if self.sampling is not None:
            raise DataError(
                f"{what} needs chips that were measured on all samples, these were on some: use "
                "sampling='full'"
            )

    def yield_at(self, accuracy: float, time: str | float | None = None) -> Yield:
        """The share of chips that keep a level, with its Clopper–Pearson interval.

        Args:
            accuracy: the level, in units of the metric: chips keep it that are not worse.
            time: drift time; None takes the last that was measured.

        Raises:
            DataError: when the level is no finite number or, of an accuracy, not between 0 and 1, or the time
                was not measured.
            UnitError: when the time cannot be read.
        """
        self._single_chips("a yield")
        return yield_at(
            self.at(time),
            accuracy,
            higher_is_better=self.higher_is_better,
            confidence=self.confidence,
            metric=self.metric,
        )

    def quantile(self, q: float, time: str | float | None = None) -> Quantile:
        """The level that all but a share ``q`` of the chips keep, with a distribution-free interval.

        Args:
            q: 0.05 gives the accuracy that 95 % of the chips keep at least; of a loss, what 95 % do not
            exceed. time: drift time; None takes the last that was measured.

        Raises:
            DataError: when ``q`` does not lie between 0 and 1, or the time was not measured.
            UnitError: when the time cannot be read.
        """
        self._single_chips("a quantile")
        return quantile(self.at(time), q, higher_is_better=self.higher_is_better, confidence=self.confidence)

    def lifetime(
        self, floor: float = 0.95, quantile: float | None = None, *, relative: bool = True
    ) -> Lifetime:
        """Time until the mean over chips, or a quantile of them, falls below a floor; see
        :func:`analognoise.evaluation.lifetime.lifetime`.

        Args:
            floor: a fraction of the digital metric, or with ``relative=False`` a value of the metric.
            quantile: share of the chips that may be worse: with 0.05 the time until 5 % of the chips are
                below the floor. None: until the mean is.
            relative: whether the floor is a fraction of the digital metric.

        Raises:
            DataError: when floor or quantile makes no sense.
        """
        if quantile is not None:
            self._single_chips("a quantile")
        return lifetime(
            self.values,
            self.times,
            self.digital,
            floor,
            relative=relative,
            metric=self.metric,
            higher_is_better=self.higher_is_better,
            confidence=self.confidence,
            quantile=quantile,
            interval=self.precision.interval if self.precision else None,
        )

    def to_csv(self, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write the rows as results.csv; the file appears whole or not at all.

        Raises:
            ResultsError: when the file exists with other content and ``overwrite`` is False, or cannot be
                written.
        """
        return write_rows(path, self.rows, overwrite=overwrite)


@dataclass(frozen=True, repr=False)
class DriftSummary(Printed):
    """The statistics of a report by drift time.

    Attributes:
        frame: one row per drift time, columns as :func:`analognoise.evaluation.statistics.summarise_methods`
            gives them.
        report: what it sums up.
    """

    frame: pd.DataFrame
    report: DriftReport

    def __rich_console__(self, console: Console, options: Any) -> Any:
        report, frame = self.report, self.frame
        metric, profile = report.metric, report.rows[0].profile
        level = f"{100 * report.confidence:g} % interval"
        names = ("drift time", "mean", level, "std", "worst chip", "worse than digital by", "chips")
        lines: list[tuple[str, ...]] = [names]
        lines += [(format_time(row["time_s"]), *row_cells(metric, row)) for row in frame.to_dict("records")]
        columns = list(zip(*lines, strict=True))
        words, figures = _longest_words(columns), _longest_words([cells for _, *cells in columns])
        # Where not even the headings' words fit, those are broken, and figures stay whole.
        narrow = sum(words) + 3 * len(words) + 1 > options.max_width
        whole = sum(figures) + 2 * len(words) + 2 <= options.max_width
        table = Table(
            title=f"{heading(metric)} on chips of {profile}; digital {figure(metric, report.digital)}",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=not narrow,
            collapse_padding=narrow,
        )
        for (name, *_), least in zip(columns, figures, strict=True):
            table.add_column(
                name,
                justify="left" if name == "drift time" else "right",
                overflow="fold",
                min_width=least if whole else None,
            )
        for line in lines[1:]:
            table.add_row(*line)
        yield table
        yield from self._notes()

    def _notes(self) -> list[str]:
        report = self.report
        notes = []
        if report.sampling is not None:
            notes.append(report.sampling.sentence)
        if report.precision is not None:
            notes += [report.precision.sentence(self.frame)]
            notes.append("One trained model: the intervals say nothing about training it again.")
        else:
            notes.append(interval_note(report.chips))
        error = float(self.frame["test_error"].max())
        notes += metric_notes(report.metric, report.higher_is_better, error)
        model = report.describe
        notes.append(f"{compensation_line(model)} {share_on_tiles(model)}.")
        notes.append(f"Digital: {digital_parts(model, 8)} (reasons: describe(model)).")
        if report.not_read:
            names = ", ".join(report.not_read)
            notes.append(f"NOT READ: the tiles of {names}; the results do not show what a chip does to them.")
        return notes


def _longest_words(columns: Sequence[Sequence[str]]) -> list[int]:
    """The length of the longest word of each column."""
    return [max(len(word) for cell in column for word in cell.split()) for column in columns]
