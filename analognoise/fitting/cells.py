"""From single reads to cells (one state at one age) and to sums of them over levels of target conductance.

What is computed here is computed in the same way from measurements and from samples of a profile; see
:mod:`analognoise.fitting.sampling`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analognoise.fitting.measurements import Floats, Integers, Measurements

SAME_AGE = 1.02  # reads of one state within this factor of time are repeated reads of one age
FOLDS = 10
_MOST_LEVELS = 40  # different targets up to which each is a level of its own
_BINS = 24  # levels that many different targets are put into
_FEWEST = 10  # states of a level
_APART = 1.5  # factor of time that the ages of a state must span to show its drift


@dataclass(frozen=True)
class Ages:
    """The different ages at which states were read.

    Attributes:
        seconds: since programming, increasing.
    """

    seconds: Floats

    @classmethod
    def of(cls, time: Floats) -> tuple[Ages, Integers]:
        """The ages in many times, and the age of each time.

        A new age begins where a time is later than 1.02 times the first of an age.
        """
        different, inverse = np.unique(time, return_inverse=True)
        starts = [0]
        while True:
            following = int(np.searchsorted(different, different[starts[-1]] * SAME_AGE, side="right"))
            if following >= len(different):
                break
            starts.append(following)
        age = np.searchsorted(np.array(starts), np.arange(len(different)), side="right") - 1
        counts = np.bincount(inverse, minlength=len(different)).astype(float)
        sums = np.bincount(age, weights=counts * different)
        return cls(sums / np.bincount(age, weights=counts)), age[inverse]


@dataclass(frozen=True)
class Cells:
    """Reads summed up by state and age, sorted by state and then by age.

    Attributes:
        state: index of the state of each cell.
        age: index of its age.
        seconds: mean age of its reads since programming.
        reads: their number.
        mean: their mean conductance.
        squares: sum of their squared deviations from it.
    """

    state: Integers
    age: Integers
    seconds: Floats
    reads: Integers
    mean: Floats
    squares: Floats

    @classmethod
    def of(cls, measured: Measurements, offset: float) -> tuple[Cells, Ages]:
        """The cells of measurements; ``offset`` is the age at which their clock showed zero."""
        seconds = measured.time + offset
        ages, age = Ages.of(seconds)
        count = len(ages.seconds)
        keys, cell = np.unique(measured.state * count + age, return_inverse=True)
        reads = np.bincount(cell)
        mean = np.bincount(cell, weights=measured.conductance) / reads
        squares = _sums(cell, (measured.conductance - mean[cell]) ** 2, len(reads))
        when = np.bincount(cell, weights=seconds) / reads
        return cls(keys // count, keys % count, when, reads, mean, squares), ages


@dataclass(frozen=True)
class Levels:
    """Groups of states of equal, or of neighbouring, targets.

    Attributes:
        of_state: level of each state.
        target: mean target of each level, increasing.
        states: number of states of each.
        exact: whether all states of a level have the same target.
    """

    of_state: Integers
    target: Floats
    states: Integers
    exact: bool

    @classmethod
    def of(cls, target: Floats) -> Levels:
        """Every different target a level where they are few and have ten states; equal shares elsewhere."""
        different, level, counts = np.unique(target, return_inverse=True, return_counts=True)
        exact = len(different) <= _MOST_LEVELS and (counts.min() >= _FEWEST or len(different) == 1)
        if not exact:
            bins = max(1, min(_BINS, len(target) // _FEWEST))
            # Equal targets stay together.
            place = (np.cumsum(counts) - 0.5 * counts) / len(target)
            bin_of = np.minimum((place * bins).astype(int), bins - 1)
            _, level = np.unique(bin_of[level], return_inverse=True)
        states = np.bincount(level)
        return cls(level, np.bincount(level, weights=target) / states, states, exact)


@dataclass(frozen=True)
class Moments:
    """Sums over the states of each level, from which a mean and a variance follow.

    Attributes:
        count: number of states by level and fold.
        first: sum of the values, by level and fold.
        second: sum of the squared deviations from the level's mean, by level and fold.
        kurtosis: fourth standardised moment of each level.
    """

    count: Floats
    first: Floats
    second: Floats
    kurtosis: Floats

    @classmethod
    def of(cls, value: Floats, level: Integers, fold: Integers, levels: int) -> Moments:
        """Of one value for each state."""
        place, size = level * FOLDS + fold, levels * FOLDS
        count = np.bincount(level, minlength=levels)
        mean = ratio_of(_sums(level, value, levels), count)
        apart = value - mean[level]
        second = _sums(level, apart**2, levels)
        fourth = _sums(level, apart**4, levels)
        shape = (levels, FOLDS)
        return cls(
            count=np.bincount(place, minlength=size).reshape(shape).astype(float),
            first=_sums(place, value, size).reshape(shape),
            second=_sums(place, apart**2, size).reshape(shape),
            kurtosis=ratio_of(fourth * count, second**2),
        )

    @property
    def states(self) -> Floats:
        """Number of states of each level."""
        return self.count.sum(axis=1)

    @property
    def mean(self) -> Floats:
        """Of each level."""
        return ratio_of(self.first.sum(axis=1), self.states)

    @property
    def variance(self) -> Floats:
        """Of each level, about its mean."""
        return ratio_of(self.second.sum(axis=1), np.maximum(self.states - 1, 0))


@dataclass(frozen=True)
class Ratios:
    """Sums over the states of each level, of which the quotient is wanted.

    Attributes:
        count: number of states by level and fold.
        above: by level and fold.
        below: by level and fold.
        relative: variance of the quotient of a level's sums relative to its square.
    """

    count: Floats
    above: Floats
    below: Floats
    relative: Floats

    @classmethod
    def of(cls, above: Floats, below: Floats, level: Integers, fold: Integers, levels: int) -> Ratios:
        """Of one numerator and one denominator for each state."""
        place, size, shape = level * FOLDS + fold, levels * FOLDS, (levels, FOLDS)
        top, bottom = (_sums(level, part, levels) for part in (above, below))
        ratio = ratio_of(top, bottom)
        apart = _sums(level, (above - ratio[level] * below) ** 2, levels)
        return cls(
            count=_sums(place, below > 0, size).reshape(shape),
            above=_sums(place, above, size).reshape(shape),
            below=_sums(place, below, size).reshape(shape),
            relative=ratio_of(apart, top**2),
        )

    @property
    def states(self) -> Floats:
        """Number of states of each level."""
        return self.count.sum(axis=1)

    @property
    def ratio(self) -> Floats:
        """Of each level."""
        return ratio_of(self.above.sum(axis=1), self.below.sum(axis=1))


@dataclass(frozen=True)
class Summary:
    """What is known of the levels.

    Attributes:
        error: first reads less targets, by level of target.
        slope: exponents of the states' drift, by level of target; None where no state has two ages.
        noise: variances of repeated reads relative to squared conductance and the growth of 1/f noise, by
            level of first reads; None where nothing was read twice.
        x_read: root mean square of the first reads of each level of them.
        noise_by_age: quotient of the variances and those of all ages together, and its relative variance.
        scatter: squares of ln G less its state's line, by level of target; None without three ages.
        by_age: mean of ln G less its state's line by level and age, with its variance; None without drift.
        kept: mean and standard deviation of conductance by level and age.
        exponent: of each state's drift, NaN where it cannot be told.
    """

    error: Moments
    slope: Moments | None
    noise: Ratios | None
    x_read: Floats
    noise_by_age: tuple[Floats, Floats] | None
    scatter: Ratios | None
    by_age: tuple[Floats, Floats] | None
    kept: tuple[Floats, Floats]
    exponent: Floats = field(repr=False)


@dataclass(frozen=True)
class Plan:
    """How cells are summed up, the same for measurements and samples.

    Attributes:
        ages: number of different ages.
        t_0: age at which drift begins.
        growth: variance of 1/f noise at each age, in units of that at growth 1; None without repeated reads.
        edges: conductances of first reads between which levels of read noise lie.
    """

    ages: int
    t_0: float
    growth: Floats | None
    edges: Floats


def edges_of(cells: Cells, count: int) -> Floats:
    """Edges that put equal shares of the states that conduct into each level of read noise."""
    first = cells.mean[np.searchsorted(cells.state, np.arange(count))]
    conducting = first[first > 0]
    bins = max(1, min(_BINS, len(conducting) // (2 * _FEWEST)))
    return np.unique(np.quantile(conducting, np.arange(1, bins) / bins)) if conducting.size else np.array([])


def summarise(cells: Cells, target: Floats, levels: Levels, fold: Integers, plan: Plan) -> Summary:
    """Sum cells up by level.

    Args:
        cells: of measurements or samples.
        target: of each state.
        levels: of the same states.
        fold: of each state, for cross-validation.
        plan: how.
    """
    size, count, level = len(levels.target), len(target), levels.of_state
    first = cells.mean[np.searchsorted(cells.state, np.arange(count))]
    error = Moments.of(first - target, level, fold, size)
    reading, bins = np.searchsorted(plan.edges, first, side="right"), len(plan.edges) + 1
    conducting = _sums(reading, first > 0, bins)
    x_read = np.sqrt(ratio_of(_sums(reading, first**2, bins), conducting))
    noise = noise_by_age = None
    if plan.growth is not None:
        free = np.maximum(cells.reads - 1, 0) * cells.mean**2
        squares = cells.squares / plan.growth[cells.age]
        above, below = (_sums(cells.state, part, count) for part in (squares, free))
        noise = Ratios.of(above, below, reading, fold, bins)
        ours = np.nan_to_num(noise.ratio)[reading[cells.state]] * free
        there, whole = (_sums(cells.age, part, plan.ages) for part in (squares, ours))
        apart = (squares - ratio_of(there, whole)[cells.age] * ours) ** 2
        by_cell = _sums(cells.age, apart, plan.ages)
        noise_by_age = (ratio_of(there, whole), ratio_of(by_cell, there**2))
    place = level[cells.state] * plan.ages + cells.age
    shape, places = (size, plan.ages), size * plan.ages
    number = np.bincount(place, minlength=places)
    mean = ratio_of(_sums(place, cells.mean, places), number)
    spread = _sums(place, (cells.mean - mean[place]) ** 2, places)
    kept = (mean.reshape(shape), np.sqrt(ratio_of(spread, np.maximum(number - 1, 0))).reshape(shape))
    exponent, residual, used = _exponents(cells, count, plan.t_0)
    known = np.isfinite(exponent)
    slope = by_age = scatter = None
    if known.any():
        slope = Moments.of(exponent[known], level[known], fold[known], size)
        used &= known[cells.state]
        state, place, left = cells.state[used], place[used], residual[used]
        number = np.bincount(place, minlength=places)
        mean = ratio_of(_sums(place, left, places), number)
        spread = _sums(place, (left - mean[place]) ** 2, places)
        by_age = (mean.reshape(shape), ratio_of(spread, number * (number - 1.0)).reshape(shape))
        points = np.bincount(state, minlength=count) - 2.0
        if (points > 0).any():
            squares = _sums(state, left**2, count)
            scatter = Ratios.of(squares * (points > 0), np.maximum(points, 0), level, fold, size)
    return Summary(error, slope, noise, x_read, noise_by_age, scatter, by_age, kept, exponent)


def _exponents(cells: Cells, count: int, t_0: float) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Each state's drift exponent, what its line leaves of each cell, and the cells that were used.

    The exponent is the slope of ln G over ln t by least squares.
    """
    used = cells.mean > 0
    state = cells.state[used]
    place, value = np.log(cells.seconds[used] / t_0), np.log(cells.mean[used])
    number = np.bincount(state, minlength=count)
    at = ratio_of(_sums(state, place, count), number)
    middle = ratio_of(_sums(state, value, count), number)
    place, value = place - at[state], value - middle[state]
    width = _sums(state, place**2, count)
    least = 0.5 * np.log(_APART) ** 2  # of two ages that far apart
    exponent = -np.divide(
        _sums(state, place * value, count),
        width,
        out=np.full(count, np.nan),
        where=width > least,
    )
    residual = np.full(len(used), np.nan)
    residual[used] = value + exponent[state] * place
    return exponent, residual, used


def _sums(index: Integers, values: NDArray[Any], size: int) -> Floats:
    """The sum of the values of each index below ``size``."""
    return np.asarray(np.bincount(index, weights=values, minlength=size), dtype=np.float64)


def ratio_of(above: NDArray[Any], below: NDArray[Any]) -> Floats:
    """The quotient, NaN where the denominator is not positive."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0)
