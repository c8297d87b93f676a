"""``fit_profile``: from measurements to a device profile."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analognoise.devices.profile import DeviceProfile
from analognoise.errors import DataError, nearest
from analognoise.fitting.cells import Cells
from analognoise.fitting.checks import Duplicates, check_duplicates, check_enough, check_units
from analognoise.fitting.choice import NAMES
from analognoise.fitting.engine import FIELDS, Engine, Setup
from analognoise.fitting.measurements import Measurements, read_measurements
from analognoise.fitting.result import ProfileFit
from analognoise.fitting.words import facts_of, not_told, remarks, source_of, validity_of
from analognoise.units import format_time, parse_time

T_READ = 250e-9
_SMALL = 0.01  # of the largest target: a smaller one counts as zero


def fit_profile(
    measurements: str | os.PathLike[str] | pd.DataFrame,
    *,
    name: str | None = None,
    t_0: str | float | None = None,
    t_read: str | float | None = None,
    g_max: float | None = None,
    g_min: float | None = None,
    curves: Mapping[str, str] | None = None,
    target_unit: str | None = None,
    conductance_unit: str | None = None,
    duplicates: Duplicates = "refuse",
    clamp_negative: bool = False,
    confidence: float = 0.95,
    seed: int = 0,
) -> ProfileFit:
    """Fit a device profile to measured conductances.

    Of each programmed device the first read tells the programming error, the slope of ln G over ln t its
    drift exponent, and reads of one age (within 2 %) the read noise. The spreads are freed of read noise, of
    conductances ending at zero, of folded exponents and of the curvature of logarithms by sampling the fitted
    profile at the measured targets, ages and repeats, and comparing. Every built-in curve is fitted to them;
    the one that predicts left-out devices best is taken, or a table where none fits. docs/fit.md says more.

    Args:
        measurements: a CSV file or a frame with columns ``device``, ``target_uS``, ``time_s``,
            ``conductance_uS``; or ``device``, ``target_uS`` and a column for each age, as in ``20s,1h,1d``.
            Other units by their headings, as in ``conductance_nS``; currents in ``nA``.
        name: of the profile (default: that of the file).
        t_0: age at which the clock of ``time_s`` was zero (default: 0, it counts from the end of
            programming). The profile's drift time 0 is then there, else at the first age.
        t_read: duration of a read (default: 250 ns). It says how read noise grows between the measured ages
            and beyond them.
        g_max: the largest target that the profile allows (default: the largest measured).
        g_min: the smallest (default: the smallest measured; 0 where that is below 1 % of g_max, or is g_max).
        curves: a form to take for a curve instead of the best, as in ``{"nu_mean": "log"}``: ``sigma``,
            ``nu_mean``, ``nu_std``, ``relative_sigma`` to constant, polynomial, log, power, saturation or
            table.
        target_unit: unit of the targets, in place of the one in their heading.
        conductance_unit: likewise for the conductances; saying it silences the check of units.
        duplicates: what to do with rows that stand several times: "refuse", "drop" or "keep".
        clamp_negative: whether negative reads, which noise around zero makes, count as zero instead of being
            refused.
        confidence: level of all intervals.
        seed: root of the random numbers of folds and samples; the same seed gives the same profile.

    Raises:
        DataError: when the measurements are not what they must be; names file, line and column.
        ProfileError: when name or range are no profile's.
        UnitError: when a time cannot be read.
    """
    measured = read_measurements(
        measurements,
        target_unit=target_unit,
        conductance_unit=conductance_unit,
        clamp_negative=clamp_negative,
    )
    check_units(measured, conductance_unit is not None)
    measured = check_duplicates(measured, duplicates)
    check_enough(measured)
    if not 0 < confidence < 1:
        raise DataError(f"confidence is {confidence:g} but must be between 0 and 1, for example 0.95")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise DataError(f"seed is {seed!r} but must be a whole number of at least 0")
    start = None if t_0 is None else parse_time(t_0)
    _check_start(measured, start)
    cells, ages = Cells.of(measured, start or 0.0)
    read_time = T_READ if t_read is None else _seconds(t_read)
    if not 0 < read_time <= ages.seconds[0] / 2:
        raise DataError(
            f"t_read is {read_time:g} s but must be above 0 and at most half of the first age, "
            f"{format_time(ages.seconds[0])}"
        )
    setup = Setup(
        name=name or _name_of(measured.where),
        **_range(measured, g_max, g_min),
        t_0=start or float(f"{ages.seconds[0]:.6g}"),
        t_read=read_time,
        forms=_forms(curves or {}),
        confidence=confidence,
        seed=seed,
    )
    # What is wrong with name or range is said before the work.
    DeviceProfile.from_dict(
        {
            "name": setup.name,
            "conductance": {"unit": measured.unit, "g_max": setup.g_max, "g_min": setup.g_min},
        },
        where="the fitted profile",
    )
    engine = Engine(measured, cells, ages, setup)
    outcome = engine.run()
    facts = facts_of(measured, cells, ages, setup)
    sections: dict[str, Any] = {"source": source_of(facts, setup)}
    if outcome.profile.has_drift and len(ages.seconds) > 1:
        sections["validity"] = validity_of(facts, setup)
    profile = outcome.profile.replace(sections)
    return ProfileFit(
        profile=profile,
        curves=outcome.curves,
        not_told=not_told(engine, outcome, t_read is None),
        remarks=remarks(engine, outcome),
        facts=facts,
        confidence=confidence,
        t_0=setup.t_0,
        kept=engine.kept(outcome),
    )


def _check_start(measured: Measurements, start: float | None) -> None:
    if start == 0:
        raise DataError("t_0 is 0 s but must be above 0: the age at which the clock of time_s was zero")
    if start is None and float(measured.time.min()) == 0:
        raise DataError(
            f"{measured.where}: the first age is 0 s, at which drift by a power law has no beginning: count "
            "from the end of programming, or say with --t-0 how old the devices were at time 0 (for example "
            "--t-0 20s)"
        )


def _range(measured: Measurements, g_max: float | None, g_min: float | None) -> dict[str, float]:
    smallest, largest = float(measured.target.min()), float(measured.target.max())
    top = largest if g_max is None else float(g_max)
    if not math.isfinite(top) or top < largest:
        raise DataError(
            f"g_max is {top:g} but the largest target is {largest:g}: leave out what lies above, or give "
            "a larger g_max"
        )
    low = smallest if g_min is None else float(g_min)
    if g_min is None and (smallest < _SMALL * top or smallest == top):
        low = 0.0
    return {"g_max": top, "g_min": low}


def _forms(curves: Mapping[str, str]) -> dict[str, str]:
    short = {field.split(".")[1]: field for field in FIELDS}
    found = {}
    for key, form in curves.items():
        field = short.get(key, key)
        if field not in FIELDS:
            raise DataError(f"curve {key!r} is not known{nearest(key, short)}: known are {', '.join(short)}")
        if form not in NAMES:
            raise DataError(
                f"form {form!r} of curve {key!r} is not known{nearest(str(form), NAMES)}: "
                f"known are {', '.join(NAMES)}"
            )
        found[field] = form
    return found


def _seconds(value: str | float) -> float:
    """A duration that may be far below a second, as in 250ns."""
    small = {"ms": 1e-3, "us": 1e-6, "ns": 1e-9}
    if isinstance(value, str) and (match := re.fullmatch(r"\s*([0-9.]+)\s*(ms|us|ns)\s*", value)):
        return parse_time(match[1]) * small[match[2]]
    return parse_time(value)


def _name_of(where: str) -> str:
    stem = Path(where).name.split(".")[0]
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", stem).strip("-._+") or "fitted"
