"""How well parameters are known when each measured value depends on all curves, not on its own alone.

Where read noise is large, it decides what exponents are seen; where a level of read noise holds conductances
on both sides of a limit, both sides decide. So every parameter is moved a little, samples of the moved
profile are drawn with the same random numbers, and what the measured values would do is seen. With B that
response, J the response that the fit itself assumed, and W the weights, the parameters' covariance is
(JᵀWB)⁻¹ JᵀWJ (BᵀWJ)⁻¹: that of any estimate which makes JᵀW(measured − expected) zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from analognoise.fitting.choice import Choice
from analognoise.fitting.forms import Fitted, Target, redraw
from analognoise.fitting.measurements import Floats

_MOST = 10.0  # times wider than the level alone says
_DRAWS = 60

Expected = Mapping[str, Floats]
"""Values of the levels, by field."""


@dataclass(frozen=True)
class Known:
    """How well one curve is known.

    Attributes:
        fitted: the form with the covariance of its parameters; None for a table.
        error: standard error of each level's own value.
    """

    fitted: Fitted | None
    error: Floats


def uncertainty(
    targets: Mapping[str, Target],
    chosen: Mapping[str, Choice],
    expected: Callable[[Mapping[str, Fitted]], Expected | None],
    generator: np.random.Generator,
) -> dict[str, Known]:
    """How well each curve is known.

    Args:
        targets: the levels' values by field.
        chosen: the curves.
        expected: the values that samples of a profile with some curves moved have; None where there can be no
            such profile.
        generator: for values drawn anew.
    """
    fits = {field: choice.fitted for field, choice in chosen.items() if choice.fitted is not None}
    own = {field: _slopes(fitted, targets[field]) for field, fitted in fits.items()}
    sizes = {field: len(fitted.values) for field, fitted in fits.items()}
    first = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
    count = sum(sizes.values())
    assumed = {field: np.zeros((len(target.x), count)) for field, target in targets.items()}
    for field, slopes in own.items():
        assumed[field][:, first[field] : first[field] + sizes[field]] = slopes
    seen = {field: matrix.copy() for field, matrix in assumed.items()}
    base = expected({})
    for field, fitted in fits.items():
        for index, step in enumerate(_steps(fitted)):
            for sign in (1.0, -1.0):
                values = fitted.values.copy()
                values[index] += sign * step
                moved = expected({field: replace(fitted, values=values)})
                if moved is not None and base is not None:
                    for name in targets:
                        seen[name][:, first[field] + index] = (moved[name] - base[name]) / (sign * step)
                    break
    weights = {field: 1 / _variance(target) for field, target in targets.items()} if base else {}
    covariance = _covariance(assumed, seen, weights, targets)
    found: dict[str, Known] = {}
    for field, target in targets.items():
        mine = slice(first.get(field, 0), first.get(field, 0) + sizes.get(field, 0))
        _, error = target.points()
        fit = fits.get(field)
        if covariance is None:
            found[field] = Known(fit, error)
            continue
        others = seen[field].copy()
        others[:, mine] = 0.0
        cross = np.einsum("ki,ij,kj->k", others, covariance, others)
        wider = np.sqrt(1 + np.maximum(cross, 0.0) / _variance(target))
        if fit is not None:
            reach = np.abs(assumed[field][:, mine]) * np.sqrt(np.diag(covariance)[mine])
            leading = np.argmax(reach, axis=1) + mine.start
            rows = np.arange(len(target.x))
            ratio = np.abs(assumed[field][rows, leading]) / np.maximum(
                np.abs(seen[field][rows, leading]), 1e-300
            )
            wider = wider * np.clip(np.where(reach.max(axis=1) > 0, ratio, 1.0), 1.0, _MOST)
            fit = _wider(fit, target, covariance[mine, mine], assumed[field][:, mine], generator)
        found[field] = Known(fit, error * wider)
    return found


def _wider(
    fitted: Fitted, target: Target, whole: Floats, slopes: Floats, generator: np.random.Generator
) -> Fitted:
    """The form with a covariance from values drawn anew, and what the other curves add to it."""
    draws = redraw(fitted, target, _DRAWS, generator)
    if draws is None:
        return replace(fitted, covariance=whole)
    alone = np.linalg.pinv(slopes.T @ (slopes / _variance(target)[:, None]), hermitian=True)
    size, turned = np.linalg.eigh(whole - alone)
    more = turned @ np.diag(np.maximum(size, 0.0)) @ turned.T
    return replace(fitted, covariance=np.cov(draws.T).reshape(more.shape) + more, draws=draws, more=more)


def _slopes(fitted: Fitted, target: Target) -> Floats:
    """How the levels' values depend on the parameters when nothing else moves."""
    columns = []
    for index, step in enumerate(_steps(fitted)):
        ends = []
        for sign in (1.0, -1.0):
            values = fitted.values.copy()
            values[index] += sign * 0.1 * step
            ends.append(target.expected(fitted.form.function(target.x, values)))
        columns.append((ends[0] - ends[1]) / (0.2 * step))
    return np.stack(columns, axis=1)


def _steps(fitted: Fitted) -> Floats:
    """How far each parameter can be moved alone before the fit notices: less than its standard error, where
    others could make up for it.
    """
    return 1 / np.sqrt(np.diag(np.linalg.inv(fitted.covariance)))


def _variance(target: Target) -> Floats:
    return target.relative * (target.value**2 if target.squared else 1.0)


def _covariance(
    assumed: Mapping[str, Floats],
    seen: Mapping[str, Floats],
    weights: Mapping[str, Floats],
    targets: Mapping[str, Target],
) -> Floats | None:
    """None where the responses do not tell it."""
    if not weights or not next(iter(assumed.values())).shape[1]:
        return None
    size = next(iter(assumed.values())).shape[1]
    response, spread = np.zeros((size, size)), np.zeros((size, size))
    for field in targets:
        weighted = assumed[field] * weights[field][:, None]
        response += weighted.T @ seen[field]
        spread += weighted.T @ assumed[field]
    scale = np.sqrt(np.diag(spread))
    if not (scale > 0).all():
        return None
    response, spread = response / np.outer(scale, scale), spread / np.outer(scale, scale)
    if not np.isfinite(response).all() or np.linalg.cond(response) > 1e10:
        return None
    inverse = np.linalg.inv(response)
    covariance = inverse @ spread @ inverse.T / np.outer(scale, scale)
    return np.asarray(covariance)
