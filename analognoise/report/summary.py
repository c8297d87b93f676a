"""The summary frame as tables and pictures see it: checked, and split into sections.

The frame has one row per profile, method and drift time, with the columns named in `COLUMNS`. A section is
what one table or one panel shows:

- the drift times of a profile (`kind == "time"`),
- the noise levels of profiles that differ in nothing else, ``gaussian@2.5%``, ``gaussian@10%``, …, each
  evaluated at one and the same time (`kind == "level"`),
- the single column of a profile evaluated right after programming only (`kind == "single"`),
- the fault rates or noise levels of one condition, where the frame has such columns (`kind == "sweep"`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from analognoise.errors import ResultsError
from analognoise.report.layout import DRIFT, Layout, layout_of
from analognoise.report.numbers import Numbers, numbers_of, time_label

COLUMNS = (
    "profile",
    "method",
    "time_s",
    "metric",
    "unit",
    "n",
    "chips",
    "mean",
    "low",
    "high",
    "std",
    "worst",
    "digital",
    "digital_low",
    "digital_high",
    "drop",
    "drop_low",
    "drop_high",
    "p_best",
    "best",
    "marked",
    "test_error",
)
_UNSEEN = {"std", "worst", "drop", "drop_low", "drop_high", "test_error"}  # columns that may be missing
_LEVEL = re.compile(r"(?P<base>.+)@(?P<percent>\d+(?:\.\d+)?)%(?P<compensation> \(.+\))?")

MARK = "★"


@dataclass(frozen=True)
class Cell:
    """What one method reached in one column; NaN where there is no number. Fields are the frame's columns."""

    mean: float
    low: float
    high: float
    digital: float
    digital_low: float
    digital_high: float
    unit: str
    n: int
    chips: int
    p_best: float
    best: bool
    marked: bool
    test_error: float

    @property
    def failed(self) -> bool:
        """True when the method gave no result here."""
        return not math.isfinite(self.mean)


@dataclass(frozen=True)
class Section:
    """What one table or one panel shows.

    Attributes:
        name: the profile's name, or the common part of the names of a family of noise levels.
        kind: what the columns are: drift times, noise levels, the one column right after programming, or
            what another layout's axis is.
        positions: where each column stands: seconds, percent of the largest conductance, rates or σ.
        labels: the columns' headings.
        methods: in order of first appearance.
        cells: by (method, position).
        numbers: how the values are written.
        layout: words for all that.
    """

    name: str
    kind: Literal["time", "level", "single", "sweep"]
    positions: tuple[float, ...]
    labels: tuple[str, ...]
    methods: tuple[str, ...]
    cells: dict[tuple[str, float], Cell]
    numbers: Numbers
    layout: Layout = DRIFT

    @property
    def title(self) -> str:
        """What the numbers are, and of which devices: ``"Accuracy on pcm-ibm"``."""
        metric = self.numbers.metric
        return f"{metric[:1].upper()}{metric[1:]}{self.layout.joint}{self.layout.naming(self.name)}"

    @property
    def tested(self) -> bool:
        """Whether any method could be tested against the best; one training seed leaves nothing to pair."""
        return any(math.isfinite(cell.p_best) for cell in self.cells.values())

    def row(self, method: str) -> list[Cell | None]:
        """The method's cells, None where it was not evaluated."""
        return [self.cells.get((method, position)) for position in self.positions]

    def first(self, method: str) -> Cell:
        """A cell of the method, for what is the same in all of them (its digital metric)."""
        return next(cell for cell in self.row(method) if cell is not None)

    def best(self, cell: Cell) -> bool:
        """Whether the cell is to stand out as the best of its column."""
        return cell.best and len(self.methods) > 1

    def mark(self, cell: Cell) -> str:
        """The mark that the cell carries: without any test only the best has one."""
        return MARK if len(self.methods) > 1 and (cell.marked if self.tested else cell.best) else ""


def sections(frame: pd.DataFrame) -> list[Section]:
    """Split a summary frame into what is shown together, in the order of the frame's profiles.

    Raises:
        ResultsError: when the frame is empty, lacks a column, mixes metrics, or holds two rows for one
            profile, method and time.
    """
    layout = layout_of(frame)
    frame = layout.inwards(frame)
    _check(frame)
    if layout is not DRIFT:
        return [_sweep(str(name), part, layout) for name, part in frame.groupby("profile", sort=False)]
    groups: dict[object, list[str]] = {}
    for profile in dict.fromkeys(frame["profile"].astype(str)):
        match = _LEVEL.fullmatch(profile)
        times = frame.loc[frame["profile"] == profile, "time_s"].fillna(0.0).unique()
        family = (_family(match), float(times[0])) if match and len(times) == 1 else profile
        groups.setdefault(family, []).append(profile)
    return [_section(profiles, frame[frame["profile"].isin(profiles)]) for profiles in groups.values()]


def only_section(frame: pd.DataFrame) -> Section:
    """The frame's section, when it has one.

    Raises:
        ResultsError: when it has several, or the frame is not a summary (see `sections`).
    """
    found = sections(frame)
    if len(found) > 1:
        names = ", ".join(section.name for section in found)
        raise ResultsError(
            f"one table holds one profile, the summary has {len(found)} ({names}): select one's rows"
        )
    return found[0]


def counts(section: Section) -> str:
    """What the intervals are taken over: ``"3 training seeds, 25 chips each"`` or ``"25 chips"``."""
    cells = [cell for cell in section.cells.values() if not cell.failed]
    if not cells:
        return "no result"
    unit, n = cells[0].unit, _range(cell.n for cell in cells)
    text = f"{n} {unit}{'' if n == '1' else 's'}"
    one = section.layout.unit
    if unit == one:
        return text
    chips = _range(cell.chips for cell in cells)
    return f"{text}, {chips} {one}{'' if chips == '1' else 's'}" + (" each" if n != "1" else "")


def has_intervals(section: Section) -> bool:
    """Whether any cell has an interval (one training seed with one chip has none)."""
    return any(math.isfinite(cell.low) and math.isfinite(cell.high) for cell in section.cells.values())


def sampling_error(section: Section) -> str:
    """The largest standard error that the test set's own size causes (``"0.9"``); empty when unknown."""
    errors = [cell.test_error for cell in section.cells.values() if math.isfinite(cell.test_error)]
    return section.numbers.value(max(errors)) if errors else ""


def failed(section: Section) -> list[str]:
    """Methods without a single number."""
    return [
        method
        for method in section.methods
        if all(cell is None or cell.failed for cell in section.row(method))
    ]


def label(method: str) -> str:
    """The method as shown; a model evaluated without a method's name is called ``"model"``."""
    return method or "model"


def _check(frame: pd.DataFrame) -> None:
    missing = [column for column in COLUMNS if column not in frame.columns and column not in _UNSEEN]
    if missing:
        found = ", ".join(map(str, frame.columns))
        raise ResultsError(f"the summary lacks the column {missing[0]!r}: it has {found or 'none'}")
    if frame.empty:
        raise ResultsError("the summary has no rows: nothing has been evaluated yet")
    metrics = list(dict.fromkeys(frame["metric"].astype(str)))
    if len(metrics) > 1:
        raise ResultsError(f"the summary mixes the metrics {', '.join(metrics)}: select the rows of one")
    twice = frame.duplicated(["profile", "method", "time_s"])
    if twice.any():
        row = frame[twice].iloc[0]
        where = f"profile {row['profile']!r}, method {row['method']!r}, time {row['time_s']:g} s"
        raise ResultsError(f"the summary has more than one row for {where}: one is right")


def _family(match: re.Match[str]) -> str:
    return match["base"] + (match["compensation"] or "")


def _section(profiles: list[str], frame: pd.DataFrame) -> Section:
    rows: list[dict[str, Any]] = [
        {str(key): value for key, value in row.items()} for row in frame.to_dict("records")
    ]
    methods = tuple(str(method) for method in dict.fromkeys(frame["method"]))
    seconds = [0.0 if pd.isna(row["time_s"]) else float(row["time_s"]) for row in rows]
    name, places = profiles[0], seconds
    kind: Literal["time", "level", "single"] = "time" if any(seconds) else "single"
    if len(profiles) > 1:
        kind = "level"
        levels = [_LEVEL.fullmatch(str(row["profile"])) for row in rows]
        places = [float(match["percent"]) for match in levels if match]
        assert levels[0], "several profiles are shown together only as noise levels"
        after = f" after {time_label(seconds[0])}" if seconds[0] else ""
        name = levels[0]["base"] + after + (levels[0]["compensation"] or "")
    positions = tuple(sorted(set(places)))
    cells = {(str(row["method"]), place): _cell(row) for row, place in zip(rows, places, strict=True)}
    if len(cells) < len(rows):
        raise ResultsError(
            f"two of the profiles {', '.join(profiles)} have the same noise level: select the rows of one"
        )
    labels = {
        "level": tuple(f"{level:g} %" for level in positions),
        "time": tuple(time_label(time) for time in positions),
        "single": ("programmed",),
    }[kind]
    return Section(name, kind, positions, labels, methods, cells, numbers_of(frame))


def _sweep(name: str, frame: pd.DataFrame, layout: Layout) -> Section:
    rows: list[dict[str, Any]] = [
        {str(key): value for key, value in row.items()} for row in frame.to_dict("records")
    ]
    positions = tuple(sorted({float(row["time_s"]) for row in rows}))
    return Section(
        name,
        "sweep",
        positions,
        tuple(map(layout.label, positions)),
        tuple(str(method) for method in dict.fromkeys(frame["method"])),
        {(str(row["method"]), float(row["time_s"])): _cell(row) for row in rows},
        numbers_of(frame),
        layout,
    )


def _cell(row: dict[str, Any]) -> Cell:
    numbers = ("mean", "low", "high", "digital", "digital_low", "digital_high", "p_best")
    return Cell(
        **{name: float(row[name]) for name in numbers},
        unit=str(row["unit"]),
        n=_count(row["n"]),
        chips=_count(row["chips"]),
        best=bool(row["best"]),
        marked=bool(row["marked"]),
        test_error=float(row.get("test_error", math.nan)),
    )


def _count(value: float) -> int:
    return 0 if pd.isna(value) else int(value)


def _range(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return str(found[0]) if len(found) == 1 else f"{found[0]}–{found[-1]}"
