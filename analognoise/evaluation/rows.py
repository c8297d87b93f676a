"""The rows of results: one for each run, chip and place on the axis that the run sweeps.

A dataclass says which columns a kind of file has: :class:`Row` where chips drift.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar

import pandas as pd


class AnyRow(ABC):
    """Base of every kind of row: a frozen dataclass whose fields are str, int, int | None or float, the
    position on the axis not negative, "count" above 0.

    Attributes:
        AXIS: the column with the position on the axis that a run sweeps.
    """

    __slots__ = ()
    AXIS: ClassVar[str]
    run_id: str
    method: str
    training_seed: int | None
    chip: int
    metric: str
    value: float

    @property
    @abstractmethod
    def condition(self) -> str:
        """What the model was measured under, besides the position."""

    @property
    def position(self) -> float:
        """The place on the axis."""
        return float(getattr(self, self.AXIS))

    @property
    @abstractmethod
    def place(self) -> str:
        """The row within its run, in words."""

    @property
    def key(self) -> tuple[str, int, float]:
        """What makes a row unique in a file."""
        return self.run_id, self.chip, self.position


@dataclass(frozen=True, slots=True)
class Row(AnyRow):
    """The result of one chip at one drift time.

    Attributes:
        run_id: digest of profile, model, data, metric and settings.
        profile: name of the device profile.
        method: training method, "" when none is named.
        training_seed: seed of the training, None when none is named.
        chip: chip number.
        time_s: drift time in seconds.
        metric: name of the metric.
        sum: the metric's sum over the data.
        count: what the sum is divided by (samples, tokens).
        value: the metric: sum / count, or its exponential for perplexity.
        digital: the metric of the same model computed digitally.
    """

    AXIS: ClassVar[str] = "time_s"

    run_id: str
    profile: str
    method: str
    training_seed: int | None
    chip: int
    time_s: float
    metric: str
    sum: float
    count: float
    value: float
    digital: float

    @property
    def condition(self) -> str:
        """The device."""
        return self.profile

    @property
    def place(self) -> str:
        """Chip and time."""
        return f"chip {self.chip} at {self.time_s:g} s"


def _read_types(kind: Any) -> dict[str, str]:
    return {field.name: str(field.type) for field in fields(kind)}


# The type of every column, as the dataclass writes it; asked for with each line.
column_types: Callable[[Any], dict[str, str]] = cache(_read_types)


def _read_columns_of_type(kind: Any, wanted: str) -> list[str]:
    return [name for name, found in column_types(kind).items() if found == wanted]


# Names of the columns whose type the dataclass writes as a word; asked for with each line, too.
columns_of_type: Callable[[Any, str], list[str]] = cache(_read_columns_of_type)


def rows_to_frame(rows: Sequence[AnyRow], kind: type[AnyRow] = Row) -> pd.DataFrame:
    """A DataFrame with the columns of the file; training_seed is a nullable integer."""
    types = {"str": "object", "int": "int64", "int | None": "Int64", "float": "float64"}
    columns = list(column_types(kind))
    frame = pd.DataFrame([[getattr(row, name) for name in columns] for row in rows], columns=columns)
    return frame.astype({name: types[found] for name, found in column_types(kind).items() if found != "str"})
