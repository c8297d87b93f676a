"""What a sensitivity analysis found: losses by layer with intervals, ranked; table, picture, file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console

from analognoise.description import Description
from analognoise.errors import DataError, ResultsError
from analognoise.evaluation.rows import Row
from analognoise.evaluation.statistics import mean_interval
from analognoise.files import write_new
from analognoise.printing import Printed
from analognoise.report.sensitivity import Facts, notes, sensitivity_markdown, sensitivity_table
from analognoise.units import format_time, parse_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# What is on tiles, as the column ``method`` of results.csv says it.
ALL, ALONE, OTHERS = "all", "only {}", "all but {}"


@dataclass(frozen=True)
class SensitivityReport:
    """What each layer costs on chips, alone and among all.

    Attributes:
        everything: rows with all layers on tiles, by chip, then time.
        alone: for each layer, rows with it alone on tiles.
        others: for each layer, rows with all but it on tiles.
        times: drift times in seconds.
        metric: name of the metric.
        higher_is_better: its direction.
        digital: the metric of the model computed digitally.
        seed: root seed of the chips.
        run_id: digest of model, profile, data, metric and settings, with all layers on tiles.
        description: the model with all layers on tiles.
        not_read: layers on tiles that no forward called: they show no loss, whatever a chip does to them.
        reused: how many of the rows a results file had already.
        confidence: coverage of the intervals, each for itself.
    """

    everything: tuple[Row, ...]
    alone: Mapping[str, tuple[Row, ...]]
    others: Mapping[str, tuple[Row, ...]]
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

    @classmethod
    def of_rows(
        cls, stored: Sequence[Row], description: Description, times: Sequence[float], chips: int, **more: Any
    ) -> SensitivityReport:
        """The report that the rows of a results file make, once all of them are there.

        Args:
            stored: rows of one analysis, in any order, and perhaps of more chips and times.
            description: of the model with all layers on tiles.
            times: drift times asked for.
            chips: number of chips asked for.
            more: the other attributes.

        Raises:
            ResultsError: when rows are missing.
        """
        known = {(row.method, row.chip, row.time_s): row for row in stored}
        places = [(chip, time) for chip in range(chips) for time in times]

        def rows_of(method: str) -> tuple[Row, ...]:
            missing = [place for place in places if (method, *place) not in known]
            if missing:
                raise ResultsError(
                    f"the rows of {method!r} are not complete (chip {missing[0][0]} at "
                    f"{format_time(missing[0][1])} is missing): run sensitivity again"
                )
            return tuple(known[method, *place] for place in places)

        everything = rows_of(ALL)
        names = [layer.name for layer in description.layers]
        labels = {name: name or "(the model)" for name in names}
        alone = {name: rows_of(ALONE.format(label)) for name, label in labels.items()}
        others = {}
        for name, label in labels.items():
            method = OTHERS.format(label)
            if len(names) > 2:
                others[name] = rows_of(method)
            else:
                # Without the only layer nothing is on tiles; without one of two, only the other is.
                rest = [alone[other] for other in names if other != name]
                others[name] = tuple(
                    replace(row, method=method, value=row.value if rest else row.digital)
                    for row in (rest[0] if rest else everything)
                )
        return cls(everything, alone, others, tuple(times), description=description, **more)

    @property
    def chips(self) -> int:
        """Number of chips."""
        return len(self.everything) // len(self.times)

    @property
    def rows(self) -> tuple[Row, ...]:
        """Every row, in the order in which they were measured."""
        parts = [rows for name in self.alone for rows in (self.alone[name], self.others[name])]
        return tuple(row for rows in (self.everything, *parts) for row in rows)

    @property
    def measured(self) -> tuple[Row, ...]:
        """The rows that were measured: with one or two layers, ``others`` follow from the rest."""
        parts = [self.alone, *([self.others] if len(self.alone) > 2 else [])]
        found = [rows for name in self.alone for rows in (part[name] for part in parts)]
        return tuple(row for rows in (self.everything, *found) for row in rows)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per drift time and layer, by time, then rank.

        Columns: time_s; rank (1 costs most alone; layers that are not read last); layer; kind; profile;
        metric; chips; ``alone``, what is
        lost when the layer alone is on tiles, against digital; ``regained``, what is better when it alone is
        digital, against all on tiles; both in units of the metric, positive is worse on tiles, each with
        ``_low``, ``_high``, ``_std`` over chips (NaN for one chip); parameters, macs and their shares of the
        model's; read (False: no forward called the layer).
        """
        records = []
        for index, time in enumerate(self.times):
            of_time = [self._layer(name, index) for name in self.alone]
            # Equal losses keep the order of the model; of a layer that is not read nothing is known.
            of_time.sort(key=lambda record: (not record["read"], -record["alone"], -record["regained"]))
            records += [
                {"time_s": time, "rank": rank, **record} for rank, record in enumerate(of_time, start=1)
            ]
        return pd.DataFrame(records)

    @cached_property
    def total(self) -> pd.DataFrame:
        """One row per drift time: time_s, and what all layers together lose against digital as ``lost``,
        with ``_low``, ``_high`` and ``_std``.
        """
        gaps = self._losses(self.everything)
        return pd.DataFrame(
            [{"time_s": time, **self._interval("lost", gaps[:, i])} for i, time in enumerate(self.times)]
        )

    def _layer(self, name: str, index: int) -> dict[str, Any]:
        part = next(layer for layer in self.description.layers if layer.name == name)
        parameters = sum(layer.weights for layer in self.description.layers)
        parameters += sum(item.parameters for item in self.description.digital)
        known = not self.description.uncounted
        macs = sum(layer.macs or 0 for layer in self.description.layers)
        macs += sum(item.macs or 0 for item in self.description.digital)
        alone, others = self._losses(self.alone[name]), self._losses(self.others[name])
        return {
            "layer": name or "(the model)",
            "kind": part.kind,
            "profile": part.profile,
            "metric": self.metric,
            "chips": self.chips,
            **self._interval("alone", alone[:, index]),
            **self._interval("regained", (self._losses(self.everything) - others)[:, index]),
            "parameters": part.weights,
            "parameter_share": part.weights / parameters,
            "macs": part.macs or 0,
            "mac_share": ((part.macs or 0) / macs if macs else 0.0) if known else math.nan,
            "read": (name or "(the model)") not in self.not_read,
        }

    def _losses(self, rows: Sequence[Row]) -> NDArray[np.float64]:
        """How much worse than digital, positive is worse; shape (chips, times)."""
        sign = 1.0 if self.higher_is_better else -1.0
        gaps = [sign * (row.digital - row.value) for row in rows]
        return np.array(gaps).reshape(self.chips, len(self.times))

    def _interval(self, name: str, values: NDArray[np.float64]) -> dict[str, float]:
        found = mean_interval(values, self.confidence)
        return {
            name: found.mean,
            f"{name}_low": found.low,
            f"{name}_high": found.high,
            f"{name}_std": found.std,
        }

    def summary(self) -> SensitivitySummary:
        """The ranking as a table; ``print()`` shows it."""
        return SensitivitySummary(self)

    @property
    def facts(self) -> Facts:
        """What tables and pictures say besides the frame."""
        return Facts(
            metric=self.metric,
            profile=self.everything[0].profile,
            chips=self.chips,
            digital=self.digital,
            total=self.total,
            confidence=self.confidence,
            model=self.description.to_dict(),
            not_read=self.not_read,
        )

    def plot(self, ax: Axes | None = None, time: str | float | None = None) -> Axes:
        """Two bars per layer with their intervals as whiskers, the costliest layer on top, on ``ax`` or a
        new figure.

        Args:
            ax: where to draw.
            time: which of the drift times; None takes the longest.

        Raises:
            DataError: when there is no such drift time.
        """
        from analognoise.report.sensitivity_plot import plot_sensitivity  # matplotlib takes a while to load

        seconds = max(self.times) if time is None else parse_time(time)
        if seconds not in self.times:
            known = ", ".join(map(format_time, self.times))
            raise DataError(f"no results at the drift time {format_time(seconds)}: there are {known}")
        return plot_sensitivity(self.frame, self.facts, seconds, ax)

    def to_csv(self, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write the frame as CSV, all digits kept; the file appears whole or not at all.

        Raises:
            ResultsError: when the file exists with other content and ``overwrite`` is False, or cannot be
                written.
        """
        return write_new(path, self.frame.to_csv(index=False, lineterminator="\n").encode(), overwrite)


@dataclass(frozen=True, repr=False)
class SensitivitySummary(Printed):
    """The ranking of a report's layers, a table per drift time."""

    report: SensitivityReport

    text_width: ClassVar = 118

    @property
    def frame(self) -> pd.DataFrame:
        """The report's frame."""
        return self.report.frame

    def markdown(self, heading: int = 2) -> str:
        """The same as GitHub Markdown, each table under a heading of this level."""
        return sensitivity_markdown(self.frame, self.report.facts, heading)

    def __rich_console__(self, console: Console, options: Any) -> Any:
        for time in self.report.times:
            yield sensitivity_table(self.frame, self.report.facts, time)
        yield from notes(self.report.facts)
