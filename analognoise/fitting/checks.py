"""Measurements that can be read but cannot be meant: another unit, rows that stand twice, too few devices."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from analognoise.errors import DataError, nearest
from analognoise.fitting.columns import AMPERES, SIEMENS
from analognoise.fitting.measurements import Measurements
from analognoise.printing import counted
from analognoise.units import format_time

Duplicates = Literal["refuse", "drop", "keep"]
LEAST_STATES = 10
_FAR = 30.0  # times apart that targets and reads are in different units
_RANGE = (1e-3, 1e5)  # microsiemens that the largest target of a device lies between
_LAST = 10 * 365 * 86400.0  # seconds: nobody has read devices for longer,
_FIRST = 1e-6  # nor earlier
_LIKELY = 0.5  # decades around a thousand (or a million) times that are another unit
_SOME = 0.002  # of the reads
_CHANCE = 3.0  # times as many equal reads as rounding explains that are no chance


def check_units(measured: Measurements, said: bool) -> None:
    """Ask back where targets, reads or ages seem to be in another unit than their headings say.

    Args:
        measured: the measurements.
        said: whether the units of conductance were given explicitly, which silences the question.

    Raises:
        DataError: with the question, and how to answer it.
    """
    target, read = measured.names
    latest = float(measured.time.max())
    if latest > _LAST:
        raise DataError(
            f"{measured.where}: ages reach {latest:.3g} s, more than ten years: are they in ms, us or ns? "
            "Then name the column time_ms, time_us or time_ns"
        )
    earliest = float(np.min(measured.time, where=measured.time > 0, initial=np.inf))
    if earliest < _FIRST:
        raise DataError(
            f"{measured.where}: ages begin at {earliest:.3g} s, earlier than devices are read: are they in "
            "s, ms or us? Then name the column time_s, time_ms or time_us"
        )
    if said:
        return
    of_read = measured.target[measured.state]
    positive = of_read > 0.05 * measured.target.max()
    if not positive.any() or measured.target.max() <= 0:
        raise DataError(f"{measured.where}: every {target} is 0, so that there is no range of conductance")
    _check_mixed(measured, of_read, positive)
    ratio = float(np.median(measured.conductance[positive] / of_read[positive]))
    if not 1 / _FAR < ratio < _FAR:
        power = 3 * round(np.log10(max(ratio, 1e-12)) / 3)
        units = SIEMENS if measured.unit == "uS" else AMPERES
        found = next((u for u, factor in units.items() if round(np.log10(factor)) == -power), None)
        meant = (
            f": is it in {found}? Then name it conductance_{found}, or say so with --conductance-unit {found}"
        )
        raise DataError(
            f"{measured.where}: {read} is about {ratio:.3g} times {target} (median at larger targets)"
            f"{meant if found else ': are they in different units?'}; if both are right as they are, repeat "
            f"the unit with --conductance-unit {measured.unit}"
        )
    if measured.unit == "uS" and not _RANGE[0] <= measured.target.max() <= _RANGE[1]:
        raise DataError(
            f"{measured.where}: the largest {target} is {measured.target.max():.3g} microsiemens, which no "
            "device has: are targets and reads in another unit? Then name it in the headings (target_S, "
            "conductance_S), or say it with --target-unit and --conductance-unit"
        )


def _check_mixed(measured: Measurements, of_read: NDArray[np.float64], among: NDArray[np.bool_]) -> None:
    """Raises:
    DataError: where some reads are in the unit of the targets and others a thousand or a million times off.
    """
    index = np.flatnonzero(among & (measured.conductance > 0))
    decades = np.log10(measured.conductance[index] / of_read[index])
    far = np.abs(decades) > np.log10(_FAR)
    power = 3 * np.round(decades / 3)
    likely = far & (np.abs(decades - power) < _LIKELY)
    counts = {int(value): int((likely & (power == value)).sum()) for value in np.unique(power[likely])}
    if not counts or far.all():
        return
    exponent, count = max(counts.items(), key=lambda item: item[1])
    if count < max(2, _SOME * len(index)) or (~far).sum() < max(2, _SOME * len(index)):
        return
    reads = index[likely & (power == exponent)]
    target, read = measured.names
    units = SIEMENS if measured.unit == "uS" else AMPERES
    unit = next((u for u, factor in units.items() if round(np.log10(factor)) == -exponent), None)
    states = len(np.unique(measured.state[reads]))
    first = ""
    if measured.origin is not None:
        place, device = measured.origin(int(reads[0]))
        first = f"; the first is {device!r} at {place.removeprefix(f'{measured.where}, ')}"
    raise DataError(
        f"{measured.where}: {count:,} of {len(index):,} reads (of {states:,} devices{first}) are about "
        f"{10.0**exponent:g} times {target}, the others are not: are they in {unit or 'another unit'}? Give "
        f"all {read} in one unit, or leave those devices out; if all are right, repeat the unit with "
        f"--conductance-unit {measured.unit}"
    )


def check_duplicates(measured: Measurements, what: Duplicates) -> Measurements:
    """The measurements, where rows that stand several times were dropped if so wanted.

    Reads that are equal by chance, because they were rounded, are no duplicates: how many there are is
    expected from the values' rounding and the spread of repeated reads.

    Raises:
        DataError: when rows stand several times and ``what`` is "refuse".
    """
    if what not in get_args(Duplicates):
        raise DataError(
            f"duplicates={what!r} is not known{nearest(str(what), get_args(Duplicates))}: "
            f"write one of {', '.join(get_args(Duplicates))}"
        )
    if what == "keep":
        return measured
    same = _hash(measured.state.astype(np.uint64), measured.time.view(np.uint64))
    _, place, together = np.unique(same, return_inverse=True, return_counts=True)
    pairs = float((together * (together - 1.0)).sum())
    if not pairs:
        return measured
    row = _hash(same, measured.conductance.view(np.uint64))
    _, first, counts = np.unique(row, return_index=True, return_counts=True)
    equal = (counts * (counts - 1.0) * (measured.conductance[first] > 0)).sum() / pairs
    if equal <= _CHANCE * _by_rounding(measured, place, together) + 0.001:
        return measured
    if what == "drop":
        kept = np.sort(first)
        return replace(
            measured,
            state=measured.state[kept],
            time=measured.time[kept],
            conductance=measured.conductance[kept],
            dropped=measured.rows - len(kept),
        )
    index = int(first[np.argmax(counts * (measured.conductance[first] > 0))])
    value, aim = measured.conductance[index], measured.target[measured.state[index]]
    raise DataError(
        f"{measured.where}: {measured.rows - len(first):,} of {measured.rows:,} reads are there several "
        "times, with the same device, target, age and conductance (for example "
        f"{value:.6g} at target {aim:.6g} and {format_time(measured.time[index])}): drop the copies with "
        "--duplicates drop, or keep them with --duplicates keep if devices did read the same"
    )


def check_enough(measured: Measurements) -> None:
    """Raises:
    DataError: when there are too few devices to tell how far they differ.
    """
    if len(measured.target) < LEAST_STATES:
        raise DataError(
            f"{measured.where} holds {counted(len(measured.target), 'programmed device')}, but a "
            f"spread cannot be told from fewer than {LEAST_STATES}"
        )


def _by_rounding(measured: Measurements, place: NDArray[np.int64], together: NDArray[np.int64]) -> float:
    """The share of pairs of repeated reads that are equal because reads are rounded."""
    values = measured.conductance
    sample = values[:: max(1, len(values) // 1_000_000)]
    counts = np.unique(sample, return_counts=True)[1]
    anywhere = float((counts * (counts - 1.0)).sum() / (len(sample) * (len(sample) - 1.0) or 1.0))
    mean = np.bincount(place, weights=values) / together
    squares = float(((values - mean[place]) ** 2).sum())
    repeats = float((together - 1).sum())
    within = max(np.sqrt(squares / repeats), 0.002 * float(np.median(sample)), 1e-300)
    return min(1.0, anywhere * float(np.std(sample)) / within)


def _hash(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Two numbers as one that two different pairs hardly ever share (the finalizer of SplitMix64)."""
    mixed = first * np.uint64(0x9E3779B97F4A7C15) ^ second
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
