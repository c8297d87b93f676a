"""Which column of a file of measurements holds what, and in which unit.

Two forms are known. Long, one read in each row::

    device,target_uS,time_s,conductance_uS

Wide, one device in each row and one read in each column after the first two, headed by its age; a heading
that stands several times holds repeated reads, an empty cell none::

    device,target_uS,20s,20s,1h,1d
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from analognoise.errors import DataError, UnitError, nearest
from analognoise.units import parse_time

SIEMENS = {"S": 1e6, "mS": 1e3, "uS": 1.0, "nS": 1e-3, "pS": 1e-6}
AMPERES = {"A": 1e9, "mA": 1e6, "uA": 1e3, "nA": 1.0, "pA": 1e-3}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0, "d": 86400.0}
_MICRO = str.maketrans({"\u00b5": "u", "\u03bc": "u"})
_ROLE = re.compile(r"(device|target|time|conductance)(?:[_ ]?[(\[]?([a-z]+)[)\]]?)?", re.IGNORECASE)
LONG = ("device", "target_uS", "time_s", "conductance_uS")


@dataclass(frozen=True)
class Columns:
    """What the columns of a file hold.

    Attributes:
        device: index of the column with the device's name.
        target: index of that with the target conductance.
        time: index of that with the age; None in the wide form.
        reads: indices of the columns with conductances.
        ages: in the wide form the age of each of these, in seconds; else empty.
        names: the headings as they stand in the file.
        unit: "uS" or "nA", that of the profile.
        target_factor: what turns a target of the file into that unit.
        conductance_factor: likewise for the reads.
        time_factor: what turns an age of the file into seconds.
        unused: headings of all other columns.
    """

    device: int
    target: int
    time: int | None
    reads: tuple[int, ...]
    ages: tuple[float, ...]
    names: tuple[str, ...]
    unit: str
    target_factor: float
    conductance_factor: float
    time_factor: float
    unused: tuple[str, ...]

    @property
    def used(self) -> tuple[int, ...]:
        """The indices of all columns that are read."""
        return (self.device, self.target, *(() if self.time is None else (self.time,)), *self.reads)


def understand(
    headings: Sequence[str], where: str, target_unit: str | None = None, conductance_unit: str | None = None
) -> Columns:
    """Find out what the columns hold.

    Args:
        headings: of the columns.
        where: what errors call the file.
        target_unit: unit of the targets, in place of the one in their heading.
        conductance_unit: likewise for the conductances.

    Raises:
        DataError: when a column is missing, stands twice, or has no unit that is known.
    """
    names = tuple(str(heading).strip() for heading in headings)
    roles: dict[str, tuple[int, str]] = {}
    ages: dict[int, float] = {}
    unused = []
    for index, name in enumerate(names):
        match = _ROLE.fullmatch(name.translate(_MICRO))
        if match:
            role = match[1].lower()
            if role in roles:
                raise DataError(
                    f"{where} has the columns {names[roles[role][0]]!r} and {name!r}: keep one of them"
                )
            roles[role] = (index, match[2] or "")
        elif (age := _age(name)) is not None:
            ages[index] = age
        else:
            unused.append(name)
    wide = "time" not in roles and "conductance" not in roles and bool(ages)
    if not wide:
        unused += [names[index] for index in ages]
    for role, name in zip(("device", "target", "time", "conductance"), LONG, strict=True):
        if role not in roles and not (wide and role in ("time", "conductance")):
            there = ", ".join(names) or "none"
            raise DataError(
                f"{where} has no column {name}{nearest(name, unused)}: it has {there}, and must have "
                f"{','.join(LONG)}, or device,target_uS and one column for each age, as in 20s,1h,1d"
            )
    target, own = roles["target"]
    unit, target_factor = _factor(where, names[target], own, target_unit, "target")
    if wide:
        read, said = names[min(ages)], "" if conductance_unit else target_unit or own
    else:
        read, said = names[roles["conductance"][0]], roles["conductance"][1]
    read_unit, conductance_factor = _factor(where, read, said, conductance_unit, "conductance")
    if unit != read_unit:
        raise DataError(
            f"{where} has targets as {'conductances' if unit == 'uS' else 'currents'} and reads as "
            f"{'conductances' if read_unit == 'uS' else 'currents'}: give both in siemens or both in amperes"
        )
    time_factor = 1.0
    if not wide:
        said = roles["time"][1]
        if said not in _SECONDS:
            raise DataError(
                f"{where} has the column {names[roles['time'][0]]!r} without a unit that is known: name it "
                f"time_s, or with one of {', '.join(_SECONDS)}"
            )
        time_factor = _SECONDS[said]
    return Columns(
        device=roles["device"][0],
        target=target,
        time=None if wide else roles["time"][0],
        reads=tuple(ages) if wide else (roles["conductance"][0],),
        ages=tuple(ages.values()) if wide else (),
        names=names,
        unit=unit,
        target_factor=target_factor,
        conductance_factor=conductance_factor,
        time_factor=time_factor,
        unused=tuple(unused),
    )


def _age(name: str) -> float | None:
    # pandas numbers headings that stand several times: 1h, 1h.1, 1h.2
    text = re.sub(r"(?<=[a-z])\.\d+$", "", name)
    try:
        return parse_time(text) if text[:1].isdigit() or text[:1] == "." else None
    except UnitError:
        return None


def _factor(where: str, name: str, own: str, asked: str | None, what: str) -> tuple[str, float]:
    said = (asked or own).translate(_MICRO)
    for unit, factors in (("uS", SIEMENS), ("nA", AMPERES)):
        if said in factors:
            return unit, factors[said]
    known = ", ".join([*SIEMENS, *AMPERES])
    if asked:
        raise DataError(f"unit {asked!r} of the {what}s is not known: write one of {known}")
    meant = next((unit for unit in (*SIEMENS, *AMPERES) if unit.lower() == said.lower()), "uS")
    raise DataError(
        f"{where} has the column {name!r} without a unit that is known: name it {what}_{meant}, "
        f"or with one of {known}"
    )
