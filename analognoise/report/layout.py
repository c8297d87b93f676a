"""How each kind of results is laid out: the names of its columns, and the words for what stands in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from analognoise.report.numbers import time_label


@dataclass(frozen=True)
class Layout:
    """One kind of results: a metric under several conditions, along an axis, on several chips.

    Statistics, tables and pictures compute with the columns of :data:`DRIFT`; others are renamed on the way
    in and out.

    Attributes:
        group: column, and word, of the condition: a device, or how a memory fails.
        position: column of the position on the axis.
        axis: word for a position.
        unit: word for what is repeated, whose number is in the column "chip".
        reference: column of the metric of the same model undisturbed.
        undisturbed: what that is, as a heading.
        joint: what stands between metric and condition in titles.
        naming: what titles call a condition.
        axis_title: of pictures.
        label: writes a position.
        ranks: whether pictures tell the best method at the right end, or all are as good as guessing there.
    """

    group: str
    position: str
    axis: str
    unit: str
    reference: str
    undisturbed: str
    joint: str
    axis_title: str
    label: Callable[[float], str]
    ranks: bool = True
    naming: Callable[[str], str] = str

    @property
    def names(self) -> dict[str, str]:
        """Names of the columns as they are here, by those of :data:`DRIFT`."""
        return {
            "profile": self.group,
            "time_s": self.position,
            **{f"digital{end}": f"{self.reference}{end}" for end in ("", "_low", "_high")},
        }

    def inwards(self, frame: Any) -> Any:
        """A frame with the columns' names of :data:`DRIFT`."""
        return frame.rename(columns={mine: usual for usual, mine in self.names.items()})

    def outwards(self, frame: Any) -> Any:
        """The other way round."""
        return frame.rename(columns=self.names)


def compact(value: float) -> str:
    """A number of any magnitude as a heading: ``"0.003"``, ``"3e-05"``."""
    return f"{value:.3g}"


def _noise(name: str) -> str:
    """``"additive on conv1"`` as ``"additive noise on conv1"``."""
    kind, space, rest = name.partition(" ")
    return f"{kind} noise{space}{rest}"


DRIFT = Layout(
    group="profile",
    position="time_s",
    axis="time",
    unit="chip",
    reference="digital",
    undisturbed="digital",
    joint=" on ",
    axis_title="time since programming (logarithmic)",
    label=time_label,
)
FAULTS = Layout(
    group="faults",
    position="rate",
    axis="fault rate",
    unit="chip",
    reference="quantized",
    undisturbed="quantized",
    joint=", ",
    axis_title="fault rate: probability of a single bit (logarithmic)",
    label=compact,
)
NOISE = Layout(
    group="noise",
    position="sigma",
    axis="σ",
    unit="repeat",
    reference="digital",
    undisturbed="noise-free",
    joint=", ",
    axis_title="σ: standard deviation of the noise (logarithmic)",
    label=compact,
    ranks=False,
    naming=_noise,
)


def layout_of(frame: Any) -> Layout:
    """That of a frame, by the column of its positions."""
    return next((known for known in (FAULTS, NOISE) if known.position in frame.columns), DRIFT)
