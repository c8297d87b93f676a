"""The fit itself: levels, rounds of sampling that take bias out, the choice of forms, intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from analognoise.devices.contents import MIN_DRIFT_X
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import DataError, ProfileError
from analognoise.fitting.cells import FOLDS, Ages, Cells, Levels, Plan, Ratios, Summary, edges_of, summarise
from analognoise.fitting.choice import Choice, Parts, choose, smooth
from analognoise.fitting.forms import Fitted, Target, fit_form
from analognoise.fitting.measurements import Floats, Integers, Measurements
from analognoise.fitting.result import Estimate, FittedCurve, Kept, Level
from analognoise.fitting.sampling import Design, Line, Sampled, sample
from analognoise.fitting.tables import even_table, rounded, table
from analognoise.fitting.uncertainty import Expected, Known, uncertainty

SIGMA, NU_MEAN, NU_STD, READ = FIELDS = (
    "programming.sigma",
    "drift.nu_mean",
    "drift.nu_std",
    "read.relative_sigma",
)
_ROUNDS = 4  # with a first look at the forms; each takes out bias that the one before left
_FINAL = 2  # with the chosen forms
_READS = 3_000_000  # at most, that are sampled in a round,
_FEWEST_READS = 200_000  # at least,
_TIMES = (5, 100)  # but this many times as many states as were measured
_STATES = 3  # at a level, to take part
_FURTHER = 6.0  # standard deviations that programming can end above g_max, as in devices.profile


@dataclass(frozen=True)
class Setup:
    """What is fitted, apart from the measurements.

    Attributes:
        name: of the profile.
        g_max: the largest target.
        g_min: the smallest.
        t_0: age at which drift begins.
        t_read: duration of a read.
        forms: wanted form by field.
        confidence: level of the intervals.
        seed: root of the random numbers of samples and folds.
    """

    name: str
    g_max: float
    g_min: float
    t_0: float
    t_read: float
    forms: Mapping[str, str]
    confidence: float
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What the fit found.

    Attributes:
        profile: without source.
        curves: how well each curve is known.
        data: the measurements summed up.
        sampled: the profile's samples, likewise.
    """

    profile: DeviceProfile
    curves: tuple[FittedCurve, ...]
    data: Summary
    sampled: Sampled


class Engine:
    """The fit of one set of measurements.

    Attributes:
        cells: of the measurements.
        ages: at which they were made.
        levels: of targets.
        data: the measurements summed up.
    """

    def __init__(self, measured: Measurements, cells: Cells, ages: Ages, setup: Setup) -> None:
        self.measured, self.cells, self.ages, self.setup = measured, cells, ages, setup
        self.levels = Levels.of(measured.target)
        self._generator = np.random.default_rng(setup.seed)
        growth = None
        if (cells.reads > 1).any():
            growth = np.log((ages.seconds + setup.t_read) / (2 * setup.t_read))
        plan = Plan(len(ages.seconds), setup.t_0, growth, edges_of(cells, len(measured.target)))
        self.design = Design(measured.target, self.levels, cells, ages, plan)
        self.data = summarise(cells, measured.target, self.levels, self._folds(), plan)
        self.fields = (
            SIGMA,
            *((NU_MEAN, NU_STD) if self._has_drift() else ()),
            *((READ,) if self.data.noise is not None and np.nanmax(self.data.noise.ratio) > 0 else ()),
        )

        for field in self.fields:
            if not len(self.target(field, None)[0].x):
                raise DataError(
                    f"{measured.where}: nothing is left to fit {field} to: at no target do {_STATES} devices "
                    "differ, so that these are either very few or computed values, not measured ones"
                )

    def run(self) -> Outcome:
        """Fit."""
        sampled: Sampled | None = None
        for number in range(_ROUNDS):
            curves = {field: self._first_look(field, sampled) for field in self.fields}
            sampled = sample(self._build(curves), self._repeated(), self.setup.seed, number)
        chosen = {field: self._choose(field, sampled) for field in self.fields}
        design, number = self._repeated(), _ROUNDS
        for number in range(_ROUNDS, _ROUNDS + _FINAL):
            curves = {field: self._curve(field, chosen[field], sampled, even=True) for field in self.fields}
            sampled = sample(self._build(curves), design, self.setup.seed, number)
            chosen = {field: self._again(field, chosen[field], sampled) for field in self.fields}
        assert sampled is not None
        curves = {field: self._curve(field, chosen[field], sampled) for field in self.fields}
        known = self._uncertainty(chosen, sampled, design, number)
        told = tuple(self._told(field, chosen[field], known[field], sampled) for field in self.fields)
        return Outcome(self._build(curves), told, self.data, sampled)

    def _uncertainty(
        self, chosen: Mapping[str, Choice], sampled: Sampled, design: Design, number: int
    ) -> dict[str, Known]:
        """How well the curves are known."""
        levels = {field: self.target(field, sampled) for field in self.fields}
        targets = {field: target for field, (target, _) in levels.items()}

        def expected(moved: Mapping[str, Fitted]) -> Expected | None:
            fits = {field: moved.get(field, chosen[field].fitted) for field in self.fields}
            curves: dict[str, dict[str, Any]] = {}
            for field, fitted in fits.items():
                curve = fitted and self._limited(field, fitted, targets[field].x)
                if fitted is not None and curve is None:
                    return None
                curves[field] = curve or self._table(field, targets[field], even=True)
            samples = sample(self._build(curves), design, self.setup.seed, number)
            values = {}
            for field, (target, index) in levels.items():
                line, fitted = _line(samples, field), fits[field]
                if line is None:
                    return None
                same = replace(target, line=Line(line.factor[index], line.offset[index]))
                values[field] = same.expected(fitted(target.x) if fitted else target.points()[0])
            return values

        return uncertainty(targets, chosen, expected, self._generator)

    def target(self, field: str, sampled: Sampled | None) -> tuple[Target, Integers]:
        """The levels' values that a curve is fitted to, and which levels these are."""
        sums, theirs = _sums(self.data, field), _sums(sampled.summary, field) if sampled else None
        states = sums.states
        line = (sampled and _line(sampled, field)) or Line(np.ones(len(states)), np.zeros(len(states)))
        squared = field != NU_MEAN
        if isinstance(sums, Ratios):
            value, relative = sums.ratio, sums.relative
            if isinstance(theirs, Ratios):
                # What chance does to the samples is there as well.
                relative = _relative(relative * states, theirs.relative * theirs.states, states)
                relative = relative * (1 + states / np.maximum(theirs.states, 1))
        elif squared:
            value, relative = sums.variance, 2 / np.maximum(states, 1)
            if theirs is not None and not isinstance(theirs, Ratios):
                relative = _relative(sums.kurtosis - 1, theirs.kurtosis - 1, states)
        else:
            value, relative = sums.mean, sums.variance / np.maximum(states, 1)
        x = (self.data.x_read if field == READ else self.levels.target) / self.setup.g_max
        known = np.isfinite(x + value + relative + line.offset + line.factor) & (states >= _STATES)
        known &= (relative > 0) & ((value > 0) | (not squared))
        index = np.flatnonzero(known)
        index = index[np.argsort(x[index], kind="stable")]
        index = index[np.diff(x[index], prepend=-1.0) > 1e-9]
        line = Line(line.factor[index], line.offset[index])
        return Target(x[index], value[index], relative[index], line, squared), index

    def kept(self, outcome: Outcome) -> tuple[Kept, ...]:
        """Conductance over age, by level."""
        (mean, std), (their_mean, their_std) = outcome.data.kept, outcome.sampled.summary.kept
        return tuple(
            Kept(
                float(target),
                float(age),
                *(float(part[level, place]) for part in (mean, std, their_mean, their_std)),
            )
            for level, target in enumerate(self.levels.target)
            for place, age in enumerate(self.ages.seconds)
            if np.isfinite(std[level, place])
        )

    def _folds(self) -> Integers:
        """Each level's states dealt out to the folds in turn, in random order."""
        order = self._generator.permutation(len(self.measured.target))
        by_level = order[np.argsort(self.levels.of_state[order], kind="stable")]
        fold = np.empty(len(order), dtype=np.int64)
        fold[by_level] = np.arange(len(order)) % FOLDS
        return fold

    def _has_drift(self) -> bool:
        slope = self.data.slope
        return slope is not None and bool((slope.states >= _STATES).any())

    def _repeated(self) -> Design:
        """The design of a round of samples."""
        times = int(np.clip(_FEWEST_READS / self.measured.rows, *_TIMES))
        return self.design.repeated(_READS, times, self._generator)

    def _build(self, curves: Mapping[str, dict[str, Any]]) -> DeviceProfile:
        setup = self.setup
        data: dict[str, Any] = {
            "name": setup.name,
            "conductance": {"unit": self.measured.unit, "g_max": setup.g_max, "g_min": setup.g_min},
            "programming": {"sigma": curves[SIGMA]},
        }
        if NU_MEAN in curves:
            data["drift"] = {"t_0": setup.t_0, "nu_mean": curves[NU_MEAN], "nu_std": curves[NU_STD]}
        if READ in curves:
            data["read"] = {"t_read": setup.t_read, "relative_sigma": curves[READ]}
            if NU_MEAN not in curves:
                data["read"]["t_0"] = setup.t_0
        return DeviceProfile.from_dict(data, where="the fitted profile")

    def _first_look(self, field: str, sampled: Sampled | None) -> dict[str, Any]:
        target, _ = self.target(field, sampled)

        def valid(fitted: Fitted) -> bool:
            return self._limited(field, fitted, target.x) is not None

        best = smooth(target, valid, self.setup.forms.get(field))
        return (best and self._limited(field, best, target.x)) or table(target)

    def _choose(self, field: str, sampled: Sampled | None) -> Choice:
        target, index = self.target(field, sampled)
        parts = Parts.of(_sums(self.data, field), field == NU_MEAN, index)

        def valid(fitted: Fitted) -> bool:
            return self._limited(field, fitted, target.x) is not None

        return choose(target, parts, valid, self.setup.forms.get(field))

    def _again(self, field: str, chosen: Choice, sampled: Sampled) -> Choice:
        """The chosen form, fitted to values with less bias."""
        if chosen.fitted is None:
            return chosen
        target, _ = self.target(field, sampled)
        fitted = fit_form(chosen.fitted.form, target, [chosen.fitted.values])
        if fitted is None or self._limited(field, fitted, target.x) is None:
            return chosen
        return replace(chosen, fitted=fitted)

    def _curve(
        self, field: str, chosen: Choice, sampled: Sampled | None, *, even: bool = False
    ) -> dict[str, Any]:
        target, _ = self.target(field, sampled)
        limited = chosen.fitted and self._limited(field, chosen.fitted, target.x)
        return limited or self._table(field, target, even=even)

    def _table(self, field: str, target: Target, *, even: bool) -> dict[str, Any]:
        """The levels' own values, or for samples an even curve near them.

        A level of neighbouring conductances shows the curve's average over them. Were a table through all
        levels sampled, what is chance in them would be averaged, taken for bias and taken off, every round
        more of it: levels would scatter by more than their errors.
        """
        mixed = field == READ or not self.levels.exact
        return even_table(target) if even and mixed else table(target)

    def _limited(self, field: str, fitted: Fitted, x: Floats) -> dict[str, Any] | None:
        """The curve as a profile holds it, limited where it would leave what was measured far behind.

        None where it is no curve of a device.

        Outside of the measured levels it stays between half the smallest and twice the largest value there,
        or else between these values themselves.
        """
        curve = fitted.form.spec(fitted.values)
        low, high = self.setup.g_min / self.setup.g_max, 1.0
        if field == READ:
            spread = np.sqrt(np.nanmax(self.data.error.variance))
            low, high = 0.0, 1.0 + 1.5 * _FURTHER * float(spread) / self.setup.g_max
        elif field != SIGMA:
            low = max(low, MIN_DRIFT_X)
        with np.errstate(all="ignore"):
            inside = fitted(np.concatenate([x, np.linspace(x[0], x[-1], 400)]))
            outside = fitted(
                np.concatenate([np.geomspace(max(low, 1e-9), high, 200), np.linspace(low, high, 400)])
            )
        least, most = float(inside.min()), float(inside.max())
        if not (np.isfinite(inside).all() and least >= 0):
            return None
        falls = fitted.form.name == "log" or (fitted.form.name == "power" and fitted.values[1] < 0)
        if not (outside <= 2 * most).all() or (low == 0 and falls):
            curve["max"] = min(curve.get("max", most), most)
        if not (outside >= 0.5 * least).all() or (low == 0 and fitted.form.name == "log"):
            curve["min"] = max(curve.get("min", least), least)
        if curve.get("min", 0.0) > curve.get("max", np.inf):
            return None
        curve = rounded(curve)
        try:
            self._build({**{name: {"curve": "constant", "value": 0.0} for name in self.fields}, field: curve})
        except ProfileError:
            return None
        return curve

    def _told(self, field: str, chosen: Choice, known: Known, sampled: Sampled) -> FittedCurve:
        target, index = self.target(field, sampled)
        reach = stats.norm.ppf(0.5 + self.setup.confidence / 2)
        (value, _), error = target.points(), known.error
        curve, curve_error, deviance = value, error, 0.0
        parameters: tuple[Estimate, ...] = ()
        fitted = known.fitted
        if fitted is not None:
            curve, deviance = fitted(target.x), fitted.deviance
            curve_error = replace(chosen, fitted=fitted).error(target.x)
            parameters = tuple(
                Estimate(name, *_interval(at, reach * off))
                for name, at, off in zip(
                    fitted.form.parameters, fitted.values, np.sqrt(np.diag(fitted.covariance)), strict=True
                )
            )
        states = _sums(self.data, field).states[index]
        levels = tuple(
            Level(
                float(x),
                int(count),
                *_interval(max(at, 0.0), reach * off, 0.0),
                *_interval(on, reach * by, 0.0),
            )
            for x, count, at, off, on, by in zip(
                target.x, states, value, error, curve, curve_error, strict=True
            )
        )
        form = fitted.form.label if fitted else "table"
        freedom = len(levels) - len(parameters) if fitted else 0
        return FittedCurve(field, form, parameters, levels, chosen.candidates, deviance, freedom)


def _interval(value: float, reach: float, least: float = -np.inf) -> tuple[float, float, float]:
    return float(value), max(float(value - reach), least), float(value + reach)


def _sums(summary: Summary, field: str) -> Any:
    if field == SIGMA:
        return summary.error
    return summary.noise if field == READ else summary.slope


def _line(sampled: Sampled, field: str) -> Line | None:
    return {SIGMA: sampled.sigma, NU_MEAN: sampled.nu_mean, NU_STD: sampled.nu_std, READ: sampled.read}[field]


def _relative(ours: Floats, theirs: Floats, states: Floats) -> Floats:
    """Relative variances by level: their shape from the samples, where it is well known, their size from the
    measurements where that is larger.
    """
    both = np.isfinite(ours) & np.isfinite(theirs) & (states >= _STATES)
    if not both.any():
        return theirs / np.maximum(states, 1)
    wider = np.average(ours[both], weights=states[both]) / np.average(theirs[both], weights=states[both])
    return max(1.0, float(wider)) * theirs / np.maximum(states, 1)
