"""What a measurement under noise on computations found: rows, statistics by level, midpoints, picture."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from analognoise.errors import DataError
from analognoise.evaluation.midpoint import Midpoint, fit_midpoint
from analognoise.evaluation.noise_rows import NoiseRow
from analognoise.evaluation.row_text import write_rows
from analognoise.evaluation.rows import rows_to_frame
from analognoise.evaluation.statistics import mean_interval
from analognoise.printing import Printed
from analognoise.report.one_model import figure, heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("noise", "sigma", "metric", "n", "mean", "low", "high", "std", "worst", "digital", "drop")


@dataclass(frozen=True)
class NoiseReport:
    """One model under noise on its computations.

    Attributes:
        rows: one per repeat and level with all chosen layers noisy, by repeat, then level.
        by_layer: the same with one layer noisy, by layer in the order in which they compute; empty unless
            ``per_layer`` was asked for.
        sigmas: noise levels.
        layers: the layers that were noisy.
        metric: name of the metric.
        higher_is_better: its direction.
        digital: the metric without noise on computations.
        chance: the accuracy of guessing; None for another metric.
        seed: root seed of the draws.
        run_id: digest of model, data, metric, noise and settings.
        not_called: layers that no forward called, so that there is no noise of theirs in the results.
        reused: how many of the rows a results file had already.
        confidence: coverage of the intervals.
    """

    rows: tuple[NoiseRow, ...]
    sigmas: tuple[float, ...]
    layers: tuple[str, ...]
    metric: str
    higher_is_better: bool
    digital: float
    chance: float | None
    seed: int
    run_id: str
    by_layer: Mapping[str, tuple[NoiseRow, ...]] = field(default_factory=dict)
    not_called: tuple[str, ...] = ()
    reused: int = 0
    confidence: float = 0.95

    @property
    def repeats(self) -> int:
        """Number of repeats."""
        return len(self.rows) // len(self.sigmas)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """All rows, those of single layers included, with the columns of the CSV file."""
        return rows_to_frame(self._all, NoiseRow)

    @property
    def _all(self) -> list[NoiseRow]:
        return [row for rows in (self.rows, *self.by_layer.values()) for row in rows]

    @property
    def values(self) -> np.ndarray:
        """The metric with all layers noisy, shape (repeats, levels)."""
        return self._values(self.rows)

    def _values(self, rows: tuple[NoiseRow, ...]) -> np.ndarray:
        return np.array([row.value for row in rows]).reshape(self.repeats, len(self.sigmas))

    def summary(self) -> NoiseSummary:
        """Mean, interval over repeats, standard deviation and worst repeat by noise and level."""
        records = []
        for rows in (self.rows, *self.by_layer.values()):
            for sigma, values in zip(self.sigmas, self._values(rows).T, strict=True):
                over = mean_interval(values, self.confidence)
                worst = values.min() if self.higher_is_better else values.max()
                drop = (self.digital - over.mean) * (1 if self.higher_is_better else -1)
                facts = (over.mean, over.low, over.high, over.std, float(worst), self.digital, drop)
                records.append((rows[0].noise, sigma, self.metric, over.n, *facts))
        return NoiseSummary(pd.DataFrame(records, columns=list(COLUMNS)), self)

    def midpoint(self, layer: str | None = None, lower: float | None = None) -> Midpoint:
        """The midpoint noise level; see :func:`analognoise.fit_midpoint`.

        Args:
            layer: one of ``by_layer``, for the noise on it alone; None for all of them noisy.
            lower: the metric at infinite noise; None takes the accuracy of guessing.

        Raises:
            DataError: for a metric that is better when smaller, or whose value at infinite noise is not
                known; for fewer than three levels; or a layer that was not measured alone.
        """
        if not self.higher_is_better:
            raise DataError(
                f"a midpoint needs a metric that noise makes smaller, such as accuracy, found {self.metric!r}"
            )
        if layer is not None and layer not in self.by_layer:
            known = ", ".join(map(repr, self.by_layer)) or "none: say per_layer=True"
            raise DataError(f"layer {layer!r} was not measured alone; measured were {known}")
        end = self.chance if lower is None else lower
        if end is None:
            raise DataError(f"the {self.metric} at infinite noise is not known: give lower=")
        values = self.values if layer is None else self._values(self.by_layer[layer])
        if self.digital <= end:
            raise DataError(
                f"the {self.metric} without noise, {self.digital:.4g}, is not above that of guessing, "
                f"{end:.4g}: there is nothing to fall half way"
            )
        return fit_midpoint(self.sigmas, values, self.digital, end, confidence=self.confidence)

    def midpoints(self) -> dict[str, Midpoint]:
        """The midpoint of each layer that was measured alone."""
        return {layer: self.midpoint(layer) for layer in self.by_layer}

    def plot(self, ax: Axes | None = None) -> Axes:
        """The mean with its interval over the noise level, on ``ax`` or a new figure; single layers thin."""
        from analognoise.report.noise_plot import plot_over_sigma  # matplotlib takes a while to load

        return plot_over_sigma(self.summary().frame, ax, confidence=self.confidence)

    def to_csv(self, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write all rows as CSV; the file appears whole or not at all.

        Raises:
            ResultsError: when the file exists with other content and ``overwrite`` is False, or cannot be
                written.
        """
        return write_rows(path, self._all, NoiseRow, overwrite)


@dataclass(frozen=True, repr=False)
class NoiseSummary(Printed):
    """The statistics of a report by noise and level.

    Attributes:
        frame: one row per noise (all layers, then each alone) and level.
        report: what it sums up.
    """

    frame: pd.DataFrame
    report: NoiseReport

    def __rich_console__(self, console: Console, options: Any) -> Any:
        report = self.report

        def number(value: float) -> str:
            return "–" if value != value else figure(report.metric, value)

        noise = report.rows[0].noise
        table = Table(
            title=f"{heading(report.metric)} under {noise} noise; without it {number(report.digital)}",
            title_justify="left",
            box=box.SIMPLE_HEAD,
        )
        level = f"{100 * report.confidence:g} % interval"
        for name in ("sigma", "mean", level, "std", "worst", "repeats"):
            table.add_column(name, justify="right")
        for row in self.frame[self.frame["noise"] == noise].to_dict("records"):
            interval = "–" if row["n"] == 1 else f"{number(row['low'])} to {number(row['high'])}"
            cells = (number(row["mean"]), interval, number(row["std"]), number(row["worst"]), str(row["n"]))
            table.add_row(f"{row['sigma']:.3g}", *cells)
        yield table
        yield f"Noise at the outputs of {', '.join(name or '(the model)' for name in report.layers)}."
        if report.higher_is_better and report.chance is not None and len(report.sigmas) > 2:
            level = f"{100 * report.confidence:g} %"
            if report.digital > report.chance:
                yield f"Midpoint noise level ({level} interval over repeats): {report.midpoint()}"
                for layer, found in report.midpoints().items():
                    yield f"  {layer or '(the model)'} alone: {found}"
        if report.not_called:
            yield f"NOT CALLED: {', '.join(report.not_called)}; there is no noise of theirs in the results."
