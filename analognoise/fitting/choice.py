"""Which form of curve follows the levels best, by cross-validation over states."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from analognoise.errors import DataError, nearest
from analognoise.fitting.cells import FOLDS, Moments, Ratios
from analognoise.fitting.forms import FORMS, Fitted, Form, Target, fit_form
from analognoise.fitting.measurements import Floats, Integers

TABLE = "table"
NAMES = (*dict.fromkeys(form.name for form in FORMS), TABLE)
_EQUAL = 2.0  # deviance by which forms may differ and count as equally good: then the simplest is taken
_FAR = 8.0  # deviance by which a form must be worse to be out of the question
_MATTERS = 0.01  # a curve that is everywhere this near to the levels is not given up for a table


@dataclass(frozen=True)
class Candidate:
    """One form that was tried.

    Attributes:
        label: its name, with degree or limits.
        parameters: number of free ones.
        error: cross-validated error, the deviance of left-out states per level, less that of the best form;
            NaN where it cannot be told.
    """

    label: str
    parameters: int
    error: float


@dataclass(frozen=True)
class Choice:
    """The form chosen for a curve.

    Attributes:
        fitted: with its parameters; None for a table.
        candidates: all forms tried, the best first.
        others: forms that are hardly worse, each with its weight relative to the chosen one.
    """

    fitted: Fitted | None
    candidates: tuple[Candidate, ...]
    others: tuple[tuple[float, Fitted], ...] = ()

    def error(self, x: Floats) -> Floats:
        """Standard error of the curve at x: that of its parameters, and that of having chosen.

        Among forms which the measurements can hardly tell apart, the choice is chance (Burnham and Anderson
        2002, Model selection and multimodel inference, ch. 4).
        """
        assert self.fitted is not None
        own, value = self.fitted.error(x), self.fitted(x)
        weights = np.array([1.0, *(weight for weight, _ in self.others)])
        apart = np.array([np.zeros_like(x), *(other(x) - value for _, other in self.others)])
        return np.sqrt(own**2 + weights / weights.sum() @ apart**2)


@dataclass(frozen=True)
class Parts:
    """Values of the levels with one fold left out, and of that fold alone.

    Attributes:
        rest: value of each level without the fold, by fold and level.
        alone: value of each level in the fold alone, by fold and level.
        share: of each level's states that the fold holds, by fold and level.
    """

    rest: Floats
    alone: Floats
    share: Floats

    @classmethod
    def of(cls, sums: Moments | Ratios, mean: bool, levels: Integers) -> Parts:
        """From the sums by fold; ``mean`` takes means of moments in place of variances."""
        if isinstance(sums, Ratios):
            above, below = sums.above[levels], sums.below[levels]
        else:
            above, below = (sums.first if mean else sums.second)[levels], sums.count[levels]
        count = sums.count[levels]
        whole, total = above.sum(axis=1, keepdims=True), below.sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            rest, alone = (whole - above) / (total - below), above / below
            share = count / count.sum(axis=1, keepdims=True)
        if isinstance(sums, Moments) and not mean:
            states = count.sum(axis=1, keepdims=True)
            rest, alone = rest * states / (states - 1), alone * states / (states - 1)
        return cls(rest.T, alone.T, share.T)


def smooth(target: Target, valid: Callable[[Fitted], bool], wanted: str | None = None) -> Fitted | None:
    """The form of least deviance plus twice its parameters: quicker than :func:`choose`, for a first look.

    Args:
        target: the levels' values.
        valid: whether a profile can hold the fitted curve.
        wanted: name of the form to take.
    """
    best: tuple[float, Fitted] | None = None
    for form in FORMS:
        if wanted not in (None, form.name) or len(form.parameters) >= len(target.x) > 1:
            continue
        fitted = fit_form(form, target)
        if fitted is None or not valid(fitted):
            continue
        cost = fitted.deviance + 2 * len(fitted.values)
        if best is None or cost < best[0]:
            best = cost, fitted
    return best[1] if best else None


def choose(
    target: Target, parts: Parts, valid: Callable[[Fitted], bool], wanted: str | None = None
) -> Choice:
    """The form whose curve predicts left-out states best, or a table where the levels' own values do better.

    Args:
        target: the levels' values.
        parts: the same by fold.
        valid: whether a profile can hold the fitted curve.
        wanted: name of the form to take instead of the best.

    Raises:
        DataError: when ``wanted`` is unknown or cannot be fitted.
    """
    if wanted is not None and wanted not in NAMES:
        raise DataError(
            f"form {wanted!r} is not known{nearest(wanted, NAMES)}: write one of {', '.join(NAMES)}"
        )
    tried: list[tuple[Floats, Fitted]] = []
    for form in FORMS:
        if wanted not in (None, form.name) or (len(form.parameters) >= len(target.x) > 1):
            continue
        fitted = fit_form(form, target)
        if fitted is None or not valid(fitted):
            continue
        tried.append((_errors(target, parts, form, fitted), fitted))
    if not tried and wanted not in (None, TABLE):
        raise DataError(f"no curve of the form {wanted!r} fits these {len(target.x)} levels of conductance")
    tried.sort(key=lambda item: (not np.isfinite(item[0].sum()), item[0].sum(), len(item[1].values)))
    table = _errors(target, parts, None, None)
    found = [Candidate(f.form.label, len(f.values), float(errors.sum())) for errors, f in tried]
    found.append(Candidate(TABLE, len(target.x), float(table.sum())))
    least = min((item.error for item in found if np.isfinite(item.error)), default=np.nan)
    found = [replace(item, error=(item.error - least) / len(target.x)) for item in found]
    found.sort(key=lambda item: (not np.isfinite(item.error), item.error))
    near = [item for item in tried if _equal(item[0] - tried[0][0])] or tried[:1]
    best = min(near, key=lambda item: item[1].form.complexity, default=None)
    if wanted == TABLE or best is None:
        return Choice(None, tuple(found))
    if wanted is None and not _equal(best[0] - table) and _misfit(target, best[1]) > _MATTERS:
        return Choice(None, tuple(found))
    others = tuple(
        (float(np.exp(min(0.0, 0.5 * (best[0].sum() - errors.sum())))), other)
        for errors, other in tried
        if other is not best[1] and errors.sum() - best[0].sum() < _FAR
    )
    return Choice(best[1], tuple(found), others)


def _equal(worse: Floats) -> bool:
    """Whether errors by fold are larger by no more than two in all, or one standard error of their sum."""
    return bool(worse.sum() <= max(_EQUAL, worse.std(ddof=1) * math.sqrt(FOLDS)))


def _misfit(target: Target, fitted: Fitted) -> float:
    """The largest distance of a level from the curve, relative to the curve's largest value."""
    points, _ = target.points()
    values = fitted(target.x)
    return float(np.abs(points - values).max() / max(float(np.abs(values).max()), 1e-300))


def _errors(target: Target, parts: Parts, form: Form | None, start: Fitted | None) -> Floats:
    """Deviance of each fold from what the others predict, less what no prediction changes."""
    total = np.full(FOLDS, np.nan)
    for fold in range(FOLDS):
        rest, alone, share = parts.rest[fold], parts.alone[fold], parts.share[fold]
        if not (np.isfinite(rest).all() and (share < 1).all()):
            return total
        if form is None or start is None:
            expected = rest
        else:
            fitted = fit_form(form, target.among(rest, target.relative / (1 - share)), [start.values])
            if fitted is None:
                return total
            expected = target.expected(fitted(target.x))
        there = share > 0
        expected, alone, weight = expected[there], alone[there], (share / target.relative)[there]
        if target.squared:
            expected = np.maximum(expected, 1e-24)
            total[fold] = float((2 * weight * (alone / expected + np.log(expected))).sum())
        else:
            total[fold] = float((weight * (alone - expected) ** 2).sum())
    return total
