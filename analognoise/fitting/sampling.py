"""What a profile's own samples look like when they are measured and summed up as the measurements were.

Read noise widens the spread of first reads and of exponents, conductances end at zero, the logarithm of a
noisy read is too small on average, exponents are folded: all of these move what is summed up away from the
profile's curves. How far, is found by sampling a profile at the measured targets, ages and repeats (indirect
inference; Gouriéroux, Monfort and Renault 1993, doi 10.1002/jae.3950080507).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from analognoise.devices.contents import MIN_DRIFT_X
from analognoise.devices.curves import BaseCurve
from analognoise.devices.physics import drift, drift_coefficients, program, read, relative_read_sigma
from analognoise.devices.profile import DeviceProfile
from analognoise.fitting.cells import Ages, Cells, Levels, Moments, Plan, Summary, ratio_of, summarise
from analognoise.fitting.measurements import Floats, Integers
from analognoise.seeds import Stream


@dataclass(frozen=True)
class Design:
    """Which states are read, when and how often.

    Attributes:
        target: of each state.
        levels: of the same states.
        cells: state, age and number of reads of each; means and squares are those of the measurements.
        ages: of the cells.
        plan: how the cells are summed up.
    """

    target: Floats
    levels: Levels
    cells: Cells
    ages: Ages
    plan: Plan

    def repeated(self, most: int, times: int, generator: np.random.Generator) -> Design:
        """A design like this one of up to ``times`` as many states, for about ``most`` reads at most.

        Where not all states fit, they are drawn at random, as many of each level as its share.
        """
        states = len(self.target)
        reads = int(self.cells.reads.sum())
        wanted = min(times * states, max(int(most / reads * states), 2000))
        if wanted >= states:
            chosen = np.tile(np.arange(states), wanted // states)
        else:
            chosen = np.sort(generator.permutation(states)[:wanted])
        begin = np.searchsorted(self.cells.state, np.arange(states + 1))
        lengths = (begin[1:] - begin[:-1])[chosen]
        ends = np.cumsum(lengths)
        index = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths) + np.repeat(begin[chosen], lengths)
        cells = Cells(
            np.repeat(np.arange(len(chosen)), lengths),
            *(getattr(self.cells, name)[index] for name in ("age", "seconds", "reads", "mean", "squares")),
        )
        of_state = self.levels.of_state[chosen]
        states_of = np.bincount(of_state, minlength=len(self.levels.target))
        levels = Levels(of_state, self.levels.target, states_of, self.levels.exact)
        return Design(self.target[chosen], levels, cells, self.ages, self.plan)


@dataclass(frozen=True)
class Line:
    """A measured value of each level as ``factor * f + offset``, f being the square of a curve or the curve
    itself.
    """

    factor: Floats
    offset: Floats


@dataclass(frozen=True)
class Sampled:
    """Samples of a profile, summed up, and how the sums follow from its curves.

    Attributes:
        summary: of the samples.
        sigma: variance of first reads from programming.sigma squared.
        nu_std: variance of exponents from drift.nu_std squared.
        nu_mean: mean of exponents from drift.nu_mean.
        read: noise ratio from read.relative_sigma squared.
    """

    summary: Summary
    sigma: Line
    nu_std: Line | None
    nu_mean: Line | None
    read: Line | None


def sample(profile: DeviceProfile, design: Design, seed: int, round_: int) -> Sampled:
    """Sample a profile as a design says and sum the samples up.

    Args:
        profile: with constant-free curves where there is something to sample; its t_0 is the design's.
        design: what is read when.
        seed: root of the random numbers.
        round_: number of the round; each draws its own.
    """
    stream = Stream(seed, "fit", chip=round_)
    count, levels = len(design.target), design.levels
    target = torch.from_numpy(design.target).float()
    normals = stream.at(layer="program").normal((count,)), stream.at(layer="drift").normal((count,))
    programmed = program(target, profile, normals[0])
    nu = drift_coefficients(target, profile, normals[1])
    cells = _read_all(profile, design, programmed, nu, stream)
    fold = np.zeros(count, dtype=np.int64)
    found = summarise(cells, design.target, levels, fold, design.plan)
    g_max, level, size = profile.conductance.g_max, levels.of_state, len(levels.target)
    x, of_state = levels.target / g_max, design.target / g_max

    def moments(value: Floats, among: Integers | slice = slice(None)) -> Moments:
        return Moments.of(value[among], level[among], fold[among], size)

    def exact(curve: BaseCurve) -> tuple[Floats, Floats]:
        """A curve at every level and at every state."""
        return _at(curve, np.maximum(x, MIN_DRIFT_X)), _at(curve, np.maximum(of_state, MIN_DRIFT_X))

    normal = [part.double().numpy() for part in normals]
    sigma = Line(np.ones(size), np.zeros(size))
    if profile.programming:
        at_level, at_state = exact(profile.programming.sigma)
        share = _share(moments(at_state * normal[0]), moments(at_state**2))
        clean = moments(programmed.double().numpy() - design.target).variance
        sigma = _line(found.error.variance, clean, at_level**2 * share)
    nu_std = nu_mean = noise = None
    if profile.drift and nu is not None and found.slope:
        known = np.flatnonzero(np.isfinite(found.exponent))
        at_level, at_state = exact(profile.drift.nu_std)
        mean_level, mean_state = exact(profile.drift.nu_mean)
        own = mean_state + at_state * normal[1]
        share = _share(moments(at_state * normal[1], known), moments(at_state**2, known))
        folded = moments(nu.double().numpy(), known).variance
        nu_std = _line(found.slope.variance, folded, at_level**2 * share)
        shift = found.slope.mean - moments(own, known).mean + moments(mean_state, known).mean - mean_level
        nu_mean = Line(np.ones(size), shift)
    if profile.read and profile.read.relative_sigma and found.noise:
        # Each set of states has first reads of its own, so that chance there does not count as bias.
        curve = _at(profile.read.relative_sigma, found.x_read / g_max)
        noise = Line(np.nan_to_num(ratio_of(found.noise.ratio, curve**2), nan=1.0), np.zeros(len(curve)))
    return Sampled(found, sigma, nu_std, nu_mean, noise)


def _share(drawn: Moments, expected: Moments) -> Floats:
    """How much wider than expected the normal numbers happened to be: the samples' own chance, taken out."""
    return np.nan_to_num(ratio_of(drawn.variance, expected.mean), nan=1.0)


def _line(found: Floats, clean: Floats, drawn: Floats) -> Line:
    """Of a variance: the limits of conductance and exponent act as a factor, read noise as an offset."""
    factor = np.clip(np.nan_to_num(ratio_of(clean, drawn), nan=1.0), 0.05, 20.0)
    return Line(factor, np.nan_to_num(found - factor * drawn))


def _at(curve: BaseCurve, x: Floats) -> Floats:
    return curve(torch.from_numpy(np.ascontiguousarray(x))).numpy()


def _read_all(
    profile: DeviceProfile, design: Design, programmed: torch.Tensor, nu: torch.Tensor | None, stream: Stream
) -> Cells:
    cells = design.cells
    mean, squares = np.zeros(len(cells.state)), np.zeros(len(cells.state))
    level = torch.as_tensor(relative_read_sigma(programmed, profile), dtype=programmed.dtype)
    level = level.expand(programmed.shape)
    for age, seconds in enumerate(design.ages.seconds):
        here = np.flatnonzero(cells.age == age)
        if not here.size:
            continue
        state = torch.from_numpy(cells.state[here])
        of_state = level[state]
        drifted = drift(
            programmed[state], None if nu is None else nu[state], max(seconds - design.plan.t_0, 0.0), profile
        )
        reads = cells.reads[here]
        total, square = np.zeros(len(here)), np.zeros(len(here))
        for repeat in range(int(reads.max())):
            more = np.flatnonzero(reads > repeat)
            part = torch.from_numpy(more)
            value = drifted[part]
            if profile.read:
                normal = stream.at(layer="read", time_ns=age, step=repeat).normal((len(more),))
                value = read(
                    value,
                    value,
                    max(seconds - design.plan.t_0, 0.0),
                    profile,
                    normal,
                    relative_sigma=of_state[part],
                )
            numbers = value.double().numpy()
            total[more] += numbers
            square[more] += numbers**2
        mean[here] = total / reads
        squares[here] = np.maximum(square - total**2 / reads, 0.0)
    # The exponents follow from the same ages as in the measurements.
    seconds = design.ages.seconds[cells.age]
    return Cells(cells.state, cells.age, seconds, cells.reads, mean, squares)
