"""Drift times and numbers as people write them, and how to write them back.

1 h = 3,600 s, 1 d = 86,400 s, 1 mo = 30 d, 1 y = 365 d.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from analognoise.errors import UnitError, nearest

_SECONDS = {
    "s": 1.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 7 * 86400.0,
    "mo": 30 * 86400.0,
    "y": 365 * 86400.0,
}
_ALIASES = {
    "s": "s sec second seconds",
    "min": "min minute minutes",
    "h": "h hr hour hours",
    "d": "d day days",
    "w": "w week weeks",
    "mo": "mo month months",
    "y": "y yr year years",
}
_UNITS = {alias: _SECONDS[unit] for unit, aliases in _ALIASES.items() for alias in aliases.split()}
_LONG = (("year", "y"), ("month", "mo"), ("day", "d"), ("h", "h"), ("min", "min"), ("s", "s"))
_PLURAL = ("year", "month", "day")
_MANY = 1_000_000  # units; more are written with an exponent
_PATTERN = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)

DEFAULT_TIMES = ("1s", "1h", "1d", "1mo", "1y")


def parse_time(value: str | float) -> float:
    """Seconds since programming ended, from ``86400.0``, ``"86400"``, ``"25s"``, ``"1h"``, ``"1d"``,
    ``"1mo"`` or ``"1y"``.

    Raises:
        UnitError: when the text is not a number with a known unit, or the time is negative, NaN or infinite.
    """
    if isinstance(value, str):
        match = _PATTERN.fullmatch(value)
        if match is None:
            raise UnitError(
                f"drift time {value!r} is not a number with a unit: write for example 25s, 1h, 1d, 1mo or 1y"
            )
        number, unit = match.groups()
        factor = _UNITS.get(unit.lower()) if unit else 1.0
        if factor is None:
            raise UnitError(
                f"drift time {value!r} has the unknown unit {unit!r}{nearest(unit, _UNITS)}: "
                f"known are {', '.join(_SECONDS)}"
            )
        seconds = float(number) * factor
    else:
        try:
            seconds = float(value)
        except (TypeError, ValueError):
            raise UnitError(
                f"drift time {value!r} is neither a number of seconds nor a text such as 1h or 1d"
            ) from None
    if not math.isfinite(seconds) or seconds < 0:
        raise UnitError(
            f"drift time {value!r} must be finite and not negative (seconds since programming ended)"
        )
    return seconds


def parse_times(values: str | float | Iterable[str | float]) -> tuple[float, ...]:
    """Increasing, distinct drift times in seconds from one time, a comma-separated text, or a sequence of
    times.

    Raises:
        UnitError: when a time cannot be read, or none is given.
    """
    items: Iterable[Any]
    if isinstance(values, str):
        items = [part for part in values.split(",") if part.strip()]
    elif isinstance(values, Iterable) and getattr(values, "ndim", 1) > 0:
        items = values
    else:
        items = [values]
    seconds = tuple(sorted({parse_time(item) for item in items}))
    if not seconds:
        raise UnitError("no drift time given: name at least one, for example 1d")
    return seconds


def format_time(seconds: float) -> str:
    """The exact time in the largest unit that divides it: ``"1 day"``, ``"36 h"``, ``"0 s"``."""
    if seconds > 0:
        for word, unit in _LONG:
            count = seconds / _SECONDS[unit]
            if count >= 1 and count == int(count):
                plural = "s" if word in _PLURAL and count > 1 else ""
                return f"{int(count)} {word}{plural}"
    return f"{seconds:g} s"


def short_number(value: float) -> str:
    """A short text that is read back as the same number: ``"0.05"``, ``"1e-09"``; whole ones stay whole."""
    text = str(value) if isinstance(value, int) else f"{value:g}"
    return text if float(text) == value else str(value)


def short_time(seconds: float) -> str:
    """The exact time, as :func:`parse_time` reads it, in the largest unit that divides it: ``"1mo"``,
    ``"0.25s"``.
    """
    for _, unit in _LONG:
        count = seconds / _SECONDS[unit]
        if 1 <= count < _MANY and count == int(count) and int(count) * _SECONDS[unit] == seconds:
            return f"{int(count)}{unit}"
    return f"{short_number(seconds)}s"


def approximate_time(seconds: float) -> str:
    """Two significant digits in the largest unit not above the time, for lifetimes: ``"3.2 days"``."""
    for word, unit in _LONG:
        count = seconds / _SECONDS[unit]
        if count >= 1:
            plural = "s" if word in _PLURAL and f"{count:.2g}" != "1" else ""
            return f"{count:.2g} {word}{plural}" if count < 100 else f"{count:.0f} {word}{plural}"
    return f"{seconds:.2g} s"
