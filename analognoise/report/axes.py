"""Where things stand in a picture: columns on the horizontal axis, and the range of the vertical one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analognoise.report.summary import Section, failed

_APART = 1.5  # a method further away than this many times the others' span would squeeze their lines together
_WIDEN = 1.5  # intervals may widen the range by this many times the means' span at each end
_FEW = 4  # methods up to which all of them, and all of their intervals, have room
_CLOSE = 3.0  # percentage points: methods that differ by less are never apart


@dataclass(frozen=True)
class Scale:
    """The horizontal axis, counted in decades of seconds or in percent of the largest conductance.

    Attributes:
        slots: of each column.
        digital: slot of the digital metric, left of all others.
        dodge: distance between two methods' lines.
        left: where the axis begins.
        right: where it ends.
        log: whether the axis is logarithmic.
    """

    slots: tuple[float, ...]
    digital: float
    dodge: float
    left: float
    right: float
    log: bool

    def at(self, slot: float) -> float:
        """The data coordinate of a slot."""
        return 10.0**slot if self.log else slot


def horizontal(section: Section) -> Scale:
    """The horizontal axis of a section.

    Time 0 has no place on a logarithmic axis and gets one left of the first time. The digital metric stands
    where the noise level is zero, or in a place of its own left of all else.
    """
    log = section.kind in ("time", "sweep")
    slots = (
        [math.log10(position) for position in section.positions if position > 0]
        if log
        else [*section.positions]
    )
    span = slots[-1] - slots[0] or 1.0
    step = max(0.11 * span, 0.3 if log else 0.1)
    if log and section.positions[0] == 0:
        slots.insert(0, slots[0] - step)
    at_zero = section.kind == "level" and slots[0] > 0.25 * step
    digital = 0.0 if at_zero else slots[0] - step
    narrowest = float(np.diff([digital, *slots]).min())
    dodge = min(0.009 * span, 0.35 * narrowest / len(section.methods))
    reach = dodge * len(section.methods) / 2
    left, right = digital - 0.35 * step - reach, slots[-1] + 0.2 * step + reach
    return Scale(tuple(slots), digital, dodge, left, right, log)


@dataclass(frozen=True)
class Limits:
    """The lower and upper end of the vertical axis, in the numbers shown."""

    low: float
    high: float

    def cuts(self, section: Section) -> bool:
        """Whether an interval of a method in the picture reaches beyond it."""
        outside = self.outside(section)
        edges = [_edges(section, method) for method in section.methods if method not in outside]
        if section.numbers.percent:
            edges = [part.clip(0, 100) for part in edges]
        return any(((part < self.low) | (part > self.high)).any() for part in edges)

    def outside(self, section: Section) -> dict[str, str]:
        """Methods none of whose means is in the picture, each with the range of its values in words."""
        found = {}
        for method in section.methods:
            means = _means(section, method)
            if means.size and not ((means >= self.low) & (means <= self.high)).any():
                ends = (means.min() / section.numbers.factor, means.max() / section.numbers.factor)
                found[method] = "–".join(dict.fromkeys(map(section.numbers.value, ends)))
        return found


def vertical(shown: Sequence[Section]) -> Limits:
    """One range for several panels: every mean and digital metric, and intervals within reason.

    A method that is far from all others (a third of them at most) is left out with all its points, so that
    the rest can be told apart; no mean of another is ever cut off.
    """
    percent = shown[0].numbers.percent
    kept = [(section, method) for section in shown for method in _together(section)]
    if not kept:
        return Limits(0.0, 100.0 if percent else 1.0)
    points = np.concatenate([_points(section, method) for section, method in kept])
    edges = np.concatenate([_edges(section, method) for section, method in kept])
    low, high = float(points.min()), float(points.max())
    span = max(high - low, 0.5 if percent else 1e-3 * max(abs(high), 1e-9))
    if edges.size:
        # wide intervals of many methods would squeeze their lines together
        most = _WIDEN * span if any(len(section.methods) > _FEW for section in shown) else math.inf
        low = min(low, max(float(edges.min()), low - most))
        high = max(high, min(float(edges.max()), high + most))
    margin = 0.04 * max(high - low, span)
    low, high = low - margin, high + margin
    if percent:
        low, high = max(low, -0.02 * (high - low)), min(high, 100 + 0.02 * (high - low))
    return Limits(low, high)


def _together(section: Section) -> list[str]:
    """The methods that have values, without those (at most a third) whose values are far from all others'."""
    kept = [method for method in section.methods if method not in failed(section)]
    for _ in range(len(kept) // 3 if len(kept) > _FEW else 0):
        gaps = [_gap(section, method, [other for other in kept if other != method]) for method in kept]
        furthest = int(np.argmax(gaps))
        if gaps[furthest] <= _APART:
            break
        kept.pop(furthest)
    return kept


def _gap(section: Section, method: str, others: Sequence[str]) -> float:
    """The gap between a method's means and the others' points, in units of the others' span."""
    mine = _means(section, method)
    theirs = np.concatenate([_points(section, other) for other in others])
    gap = max(float(theirs.min() - mine.max()), float(mine.min() - theirs.max()), 0.0)
    least = _CLOSE if section.numbers.percent else 1e-3 * float(np.abs(theirs).max())
    return gap / max(float(np.ptp(theirs)), least, 1e-12)


def _means(section: Section, method: str) -> np.ndarray:
    return _finite(section, [cell.mean for cell in section.row(method) if cell])


def _points(section: Section, method: str) -> np.ndarray:
    return np.append(_means(section, method), _finite(section, [section.first(method).digital]))


def _edges(section: Section, method: str) -> np.ndarray:
    first = section.first(method)
    edges = [edge for cell in section.row(method) if cell for edge in (cell.low, cell.high)]
    return _finite(section, [*edges, first.digital_low, first.digital_high])


def _finite(section: Section, values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=float) * section.numbers.factor
    return array[np.isfinite(array)]
