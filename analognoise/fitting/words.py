"""What is said about a fit: what was measured, what that cannot tell, and what was noticed."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from analognoise.fitting.cells import SAME_AGE, Ages, Cells, ratio_of
from analognoise.fitting.engine import NU_MEAN, READ, Engine, Outcome, Setup
from analognoise.fitting.measurements import Floats, Measurements
from analognoise.printing import counted
from analognoise.units import DEFAULT_TIMES, approximate_time, format_time, parse_time

_SURE = 1e-3  # probability of a remark about a device that follows its profile
_WORTH = 0.02  # relative deviation that is worth a remark, of conductance
_NOISE = 0.1  # likewise of a spread or a noise
_OUTLIER = 6.0  # standard deviations


def facts_of(measured: Measurements, cells: Cells, ages: Ages, setup: Setup) -> dict[str, Any]:
    """What was measured, as plain values."""
    return {
        "file": measured.where,
        "reads": measured.rows,
        "devices": measured.devices,
        "programmed": len(measured.target),
        "targets": len(np.unique(measured.target)),
        "smallest_target": float(measured.target.min()),
        "largest_target": float(measured.target.max()),
        "ages_s": [float(f"{age:.6g}") for age in _some(ages.seconds)],
        "ages": len(ages.seconds),
        "most_repeats": int(cells.reads.max()),
        "t_0": setup.t_0,
        "t_read": setup.t_read,
    }


def source_of(facts: dict[str, Any], setup: Setup) -> dict[str, str]:
    """The section [source] of the profile: what was measured, and room for who did it."""
    return {
        "citation": "FILL IN: who measured this device, and where it is published",
        "measured": f"{describe(facts)}. FILL IN: material, array, temperature, how it was programmed "
        "and read.",
        "notes": "Fitted by 'analognoise profiles fit'. Drift time 0 is "
        f"{when(setup.t_0)} after programming, a read takes {setup.t_read:g} s.",
    }


def validity_of(facts: dict[str, Any], setup: Setup) -> dict[str, Any]:
    """The section [validity]: the drift times that were measured, and those where none are asked for."""
    last = max(facts["ages_s"]) - setup.t_0
    within = [seconds for seconds in map(parse_time, DEFAULT_TIMES) if seconds <= last]
    return {"measured": [0.0, last], "default_times": within or [last], "extrapolate": True}


def describe(facts: dict[str, Any]) -> str:
    """What was measured, as a part of a sentence."""
    ages = facts["ages_s"]
    span = (
        when(ages[0]) if len(ages) == 1 else f"{facts['ages']} ages from {when(ages[0])} to {when(ages[-1])}"
    )
    again = f", up to {facts['most_repeats']} reads at one age" if facts["most_repeats"] > 1 else ""
    programmed = (
        f"{counted(facts['devices'], 'device')}"
        if facts["programmed"] == facts["devices"]
        else f"{counted(facts['devices'], 'device')} programmed to {facts['programmed']:,} states"
    )
    low, high = facts["smallest_target"], facts["largest_target"]
    targets = (
        f"one target, {low:.4g}"
        if facts["targets"] == 1
        else f"{counted(facts['targets'], 'target')} from {low:.4g} to {high:.4g}"
    )
    return f"{facts['file']}: {counted(facts['reads'], 'read')} of {programmed} at {targets}, {span}{again}"


def not_told(engine: Engine, outcome: Outcome, t_read_assumed: bool) -> tuple[str, ...]:
    """What the measurements cannot tell, a sentence each."""
    found, setup, ages = [], engine.setup, engine.ages.seconds
    if NU_MEAN not in engine.fields:
        why = (
            f"devices were read at one age only ({when(ages[0])})"
            if len(ages) == 1
            else "no devices were read at two ages that are apart by a factor of 1.5 or more"
        )
        found.append(f"Drift: {why}, so that the profile has no [drift].")
    else:
        found.append(
            f"Drift after {when(ages[-1])}, the last age: the power law goes on there without evidence."
        )
    if READ not in engine.fields:
        why = (
            "all repeated reads are equal"
            if outcome.data.noise is not None
            else f"no device was read twice at one age (within {100 * (SAME_AGE - 1):.0f} %)"
        )
        found.append(
            f"Read noise: {why}, so that the profile has no [read]; what there is of it counts as "
            "programming error and as spread of the drift exponents."
        )
    else:
        found.append(
            "Slow read noise: repeated reads differ only by what changes from one to the next; "
            "noise slower than that is part of the programming error and of the drift."
        )
        if t_read_assumed:
            found.append(
                f"Duration of a read: t_read = {setup.t_read:g} s is assumed; it says how read noise "
                "grows beyond the measured ages."
            )
    smallest = float(engine.measured.target.min())
    if smallest > setup.g_min:
        found.append(
            f"Targets below {smallest:.4g} {engine.measured.unit}: none was measured, "
            "curves go on from there."
        )
    elif setup.g_min > 0:
        found.append(
            f"Targets below {setup.g_min:.4g} {engine.measured.unit}, the smallest measured: it is "
            "the profile's g_min; where devices can be left at zero, say so "
            "(--g-min 0), and curves go on from there."
        )
    if setup.g_max > float(engine.measured.target.max()):
        found.append(
            f"Targets above {float(engine.measured.target.max()):.4g} {engine.measured.unit}: none was "
            "measured."
        )
    for curve in outcome.curves:
        hidden = [level for level in curve.levels if level.low <= 0 < level.high]
        if hidden and curve.field != NU_MEAN:
            low, high = hidden[0].x * setup.g_max, hidden[-1].x * setup.g_max
            found.append(
                f"{curve.field} at {len(hidden)} of {len(curve.levels)} levels (from {low:.3g} to {high:.3g} "
                f"{engine.measured.unit}): it is too small "
                f"{'to be seen in so few reads' if curve.field == READ else 'beside the read noise'}."
            )
    return tuple(found)


def remarks(engine: Engine, outcome: Outcome) -> tuple[str, ...]:
    """What was noticed and may matter, a sentence each."""
    measured = engine.measured
    found = []
    if measured.clamped:
        found.append(f"{counted(measured.clamped, 'negative read')} counted as zero.")
    if measured.dropped:
        found.append(f"Left out: {counted(measured.dropped, 'read')} that stood there before.")
    if measured.unused:
        found.append(f"Columns that were not used: {', '.join(measured.unused)}.")
    for check in (_bias, _outliers, _power_law, _scatter, _growth):
        found += check(engine, outcome)
    return tuple(found)


def when(seconds: float) -> str:
    """An age in short."""
    exact = format_time(seconds)
    count, unit = exact.split()
    most = 2 if unit in ("min", "h") else 5  # digits: 16,700 min are 12 days
    return exact if len(count) <= most else approximate_time(seconds)


def _bias(engine: Engine, outcome: Outcome) -> list[str]:
    """Whether first reads lie beside their targets on average."""
    ours, theirs = outcome.data.error, outcome.sampled.summary.error
    apart = ours.mean - theirs.mean
    error = np.sqrt(ratio_of(ours.variance, ours.states) + ratio_of(theirs.variance, theirs.states))
    level = _worst(apart, error, 0.25 * np.sqrt(ours.variance))
    if level is None:
        return []
    unit = engine.measured.unit
    return [
        f"Devices do not lie around their targets: at {engine.levels.target[level]:.4g} {unit} they are "
        f"{apart[level]:+.3g} {unit} off on average. The profile has the spread about their mean and "
        "leaves out the shift."
    ]


def _outliers(engine: Engine, outcome: Outcome) -> list[str]:
    """Devices further away than a normal distribution puts any."""
    cells, target = engine.cells, engine.measured.target
    first = cells.mean[np.searchsorted(cells.state, np.arange(len(target)))]
    level = engine.levels.of_state
    apart = np.abs(first - target - outcome.data.error.mean[level])
    order = np.argsort(level, kind="stable")
    groups = np.split(apart[order], np.cumsum(engine.levels.states)[:-1])
    typical = np.array([np.median(group) for group in groups]) / 0.6745  # of a normal distribution
    # Near zero, where conductance ends, the distribution is not normal.
    normal = engine.levels.target > 3 * typical
    count = int((normal[level] & (apart > _OUTLIER * np.maximum(typical, 1e-300)[level])).sum())
    if not count:
        return []
    return [
        f"{count:,} of {len(target):,} programmed devices are more than {_OUTLIER:g} standard deviations "
        "off: they widen the spread; where they are broken, leave them out."
    ]


def _power_law(engine: Engine, outcome: Outcome) -> list[str]:
    """Whether mean conductance bends away from a power law of time."""
    if outcome.data.by_age is None or outcome.sampled.summary.by_age is None or len(engine.ages.seconds) < 3:
        return []
    (ours, error), (theirs, other) = outcome.data.by_age, outcome.sampled.summary.by_age
    apart = ours - theirs
    place = _worst(apart.ravel(), np.sqrt(error + other).ravel(), np.full(apart.size, _WORTH))
    if place is None:
        return []
    level, age = divmod(place, apart.shape[1])
    return [
        f"Drift is no power law: at a target of {engine.levels.target[level]:.4g} {engine.measured.unit} "
        f"conductance at {when(engine.ages.seconds[age])} is {100 * np.expm1(apart[level, age]):+.1f} % off "
        "the straight line over the logarithm of time."
    ]


def _scatter(engine: Engine, outcome: Outcome) -> list[str]:
    """Whether devices scatter about their lines more than repeated reads explain."""
    ours, theirs = outcome.data.scatter, outcome.sampled.summary.scatter
    if READ not in engine.fields or ours is None or theirs is None:
        return []
    # Logarithms of reads that are mostly noise tell nothing.
    quiet = np.sqrt(np.nan_to_num(theirs.ratio, nan=1.0)) < 0.3
    if not quiet.any():
        return []
    wider = ratio_of(ours.ratio, theirs.ratio)[quiet]
    variance = ours.relative[quiet] + theirs.relative[quiet]
    mean = float(np.average(wider, weights=1 / variance))
    if abs(mean - 1) < stats.norm.isf(_SURE / 2) / np.sqrt((1 / variance).sum()) or mean < (1 + _NOISE) ** 2:
        return []
    return [
        f"Devices scatter about their drift lines {np.sqrt(mean):.2f} times as much as repeated reads "
        "explain: there is noise that is slower than the repeats, or drift that is no power law. The "
        "profile's read noise is that of the repeats."
    ]


def _growth(engine: Engine, outcome: Outcome) -> list[str]:
    """Whether read noise grows with age otherwise than its law says."""
    ours, theirs = outcome.data.noise_by_age, outcome.sampled.summary.noise_by_age
    if READ not in engine.fields or ours is None or theirs is None or len(engine.ages.seconds) < 2:
        return []
    apart = ratio_of(ours[0], theirs[0]) - 1
    age = _worst(apart, np.sqrt(ours[1] + theirs[1]), np.full(len(apart), 2 * _NOISE))
    if age is None:
        return []
    return [
        f"Read noise does not grow as its law says: at {when(engine.ages.seconds[age])} it is "
        f"{np.sqrt(max(1 + apart[age], 0)):.2f} times what the profile has there."
    ]


def _worst(apart: Floats, error: Floats, worth: Floats) -> int | None:
    """The place that is off by most standard errors, None where none is sure and worth a remark."""
    known = np.isfinite(apart) & np.isfinite(error) & (error > 0)
    sure = np.where(known, np.abs(apart) / np.where(known, error, 1.0), 0.0)
    sure[~(np.abs(apart) > worth)] = 0.0
    place = int(np.argmax(sure))
    return place if sure[place] > stats.norm.isf(_SURE / (2 * max(known.sum(), 1))) else None


def _some(values: Floats, most: int = 50) -> Floats:
    return values if len(values) <= most else values[np.linspace(0, len(values) - 1, most).astype(int)]
