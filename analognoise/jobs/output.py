"""What a job hands back: something to show to people, and plain values for machines."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from rich.console import Console, RenderableType


class Output(ABC):
    """Base of the jobs' results."""

    @property
    def failed(self) -> bool:
        """Whether a part of the job failed, though there are results."""
        return False

    @abstractmethod
    def parts(self) -> Iterable[RenderableType]:
        """What people see, from top to bottom."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """What machines get: dicts, lists, text, numbers and None."""

    def show(self, console: Console) -> None:
        """Print the parts. A plain line is left to the terminal to break, so that it can be copied whole."""
        for part in self.parts():
            console.print(part, markup=False, soft_wrap=isinstance(part, str))


def plain(value: Any) -> Any:
    """A value as JSON knows it: frames as lists of rows, NumPy numbers as numbers, NaN and inf as None."""
    if isinstance(value, pd.DataFrame):
        return [plain({str(key): item for key, item in row.items()}) for row in value.to_dict("records")]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value
