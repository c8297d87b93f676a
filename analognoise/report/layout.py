"""How each kind of results is laid out: the names of its columns, and the words for what stands in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from analognoise.report.numbers import time_label


@dataclass(frozen=True)
class Layout:
    """One kind of results: a metric under several conditions, along an axis.

    Tables, pictures and statistics compute with the columns of :data:`DRIFT`; others are renamed on the way
    in and out.

    Attributes:
        group: column, and word, of the condition: a device, or how a memory fails.
        position: column of the position on the axis.
        axis: word for a position.
        reference: column, and word, of the metric of the same model undisturbed.
        label: writes a position.
    """

    group: str
    position: str
    axis: str
    reference: str
    label: Callable[[float], str]

    @property
    def names(self) -> dict[str, str]:
        """Names of the columns as they are here, by those of :data:`DRIFT`."""
        return {"profile": self.group, "time_s": self.position} | {
            f"digital{end}": f"{self.reference}{end}" for end in ("", "_low", "_high")
        }

    def inwards(self, frame: Any) -> Any:
        """A frame with the columns' names of :data:`DRIFT`."""
        return frame.rename(columns={mine: usual for usual, mine in self.names.items()})

    def outwards(self, frame: Any) -> Any:
        """The other way round."""
        return frame.rename(columns=self.names)


DRIFT = Layout("profile", "time_s", "time", "digital", time_label)
