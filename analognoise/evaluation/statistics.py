"""From rows to statements: means with intervals, and comparisons of methods.

Two questions have two units. About one trained model the unit is the chip: one programmed draw of the whole
model. About a training method it is the training seed: the chips of a seed are averaged first, because they
share the one model that was trained. Images are never pooled over chips: all chips see the same images, so
pooling would give intervals far too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit  # scipy.stats takes a second to load

from analognoise.errors import DataError
from analognoise.metrics import Metric
from analognoise.report.layout import DRIFT, Layout
from analognoise.report.summary import COLUMNS

DIRECTIONS = {"accuracy": True, "loss": False, "perplexity": False}
SEED = "training seed"

_NEEDED = ("profile", "method", "training_seed", "chip", "time_s", "metric", "count", "value", "digital")


@dataclass(frozen=True)
class Interval:
    """A mean and its Student-t confidence interval.

    Attributes:
        mean: the mean of the values.
        low: lower end of the interval; NaN when there is one value, which says nothing about spread.
        high: upper end; NaN when there is one value.
        std: standard deviation with n − 1 in the denominator; NaN when there is one value.
        n: number of values.
    """

    mean: float
    low: float
    high: float
    std: float
    n: int


def better_when_higher(metric: str, given: bool | None = None) -> bool:
    """Whether larger values of ``metric`` are better: known for the built-in metrics, ``given`` (True if
    None) for a user's own.

    Raises:
        DataError: when ``given`` contradicts what a built-in metric means.
    """
    known = DIRECTIONS.get(metric)
    if known is None:
        return True if given is None else bool(given)
    if given is not None and bool(given) != known:
        raise DataError(
            f"higher_is_better={given} contradicts the metric {metric!r}: leave it out or write {known}"
        )
    return known


def direction_of(metric: Metric, given: bool | None = None) -> bool:
    """Whether larger values are better: as ``given``, or as the metric says of itself.

    Raises:
        DataError: when these contradict each other.
    """
    own = metric.higher_is_better
    if own is not None and given is not None and bool(given) != own:
        raise DataError(
            f"higher_is_better={given} contradicts the metric {metric.name!r}, whose attribute "
            f"higher_is_better is {own}: leave one of them out"
        )
    return better_when_higher(metric.name, own if given is None else given)


def check_confidence(confidence: float) -> float:
    """``confidence`` itself when it lies strictly between 0 and 1.

    Raises:
        DataError: when it does not.
    """
    if not (isinstance(confidence, (int, float)) and 0 < confidence < 1):
        raise DataError(f"confidence is {confidence!r}: give a number between 0 and 1, for example 0.95")
    return float(confidence)


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean and Student-t interval: mean ± t((1 + confidence)/2, n − 1) · s / √n.

    Args:
        values: the units' values, any shape; one value gives an interval of NaN.
        confidence: coverage of the interval, between 0 and 1.

    Raises:
        DataError: when there is no value, or one is NaN or infinite, or ``confidence`` is out of range.
    """
    check_confidence(confidence)
    x = np.asarray(values, dtype=np.float64).ravel()
    if x.size == 0 or not np.isfinite(x).all():
        raise DataError(
            f"a mean needs finite values, at least one; found {x.size} with {int((~np.isfinite(x)).sum())} "
            "not finite"
        )
    if x.size == 1:
        return Interval(float(x[0]), math.nan, math.nan, math.nan, 1)
    if (x == x[0]).all():  # np.mean would round here and pretend a spread of 1e-17
        return Interval(float(x[0]), float(x[0]), float(x[0]), 0.0, x.size)
    mean, std = float(x.mean()), float(x.std(ddof=1))
    half = float(stdtrit(x.size - 1, (1 + confidence) / 2)) * std / math.sqrt(x.size)
    return Interval(mean, mean - half, mean + half, std, x.size)


def paired_p_value(first: ArrayLike, second: ArrayLike) -> float:
    """Two-sided p of Student's t test on the differences of pairs; 1 when all differences are zero, NaN for
    fewer than two pairs.
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    if difference.size < 2:
        return math.nan
    if not difference.any():
        return 1.0
    error = float(difference.std(ddof=1)) / math.sqrt(difference.size)
    if error == 0:
        return 0.0
    return float(2 * stdtr(difference.size - 1, -abs(float(difference.mean())) / error))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down adjustment (Holm 1979, Scand. J. Statist. 6:65); NaN entries are no comparisons and
    stay NaN.

    The i-th smallest of m values (i from 0) is multiplied by m − i, made non-decreasing, and cut at 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, math.nan)
    valid = np.flatnonzero(~np.isnan(p))
    order = valid[np.argsort(p[valid], kind="stable")]
    steps = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * steps), 1.0) if len(order) else []
    return adjusted


def sampling_error(metric: str, mean: float, count: float) -> float:
    """Standard error that the test set's own finite size leaves on a mean: binomial √(p(1 − p)/count) for
    accuracy, else NaN.

    For a mean over chips it is an upper bound, as the images are the same for all chips.
    """
    if metric != "accuracy" or not 0 <= mean <= 1:
        return math.nan
    return math.sqrt(mean * (1 - mean) / count)


def summarise_methods(
    frame: pd.DataFrame,
    *,
    confidence: float = 0.95,
    higher_is_better: bool | None = None,
    layout: Layout = DRIFT,
    interval: Callable[[ArrayLike], Interval] | None = None,
) -> pd.DataFrame:
    """One row per profile, method and drift time, from one row per profile, method, training seed, chip and
    time.

    Columns of the result:
        profile, method, time_s, metric: what the row is about.
        unit: "training seed" when the method has several (each seed's chips are averaged first), else "chip".
        n: number of units. chips: chips per training seed (of the seed that has fewest).
        mean, low, high, std: over the units; low, high and std are NaN for a single unit.
        worst: the worst single chip of all seeds.
        digital, digital_low, digital_high: the digital metric over training seeds (interval NaN for one
            seed).
        drop, drop_low, drop_high: how much worse than digital, positive is worse, in units of the metric,
            paired by training seed (with one seed: that model's chips against its digital metric).
        p_best: Holm-adjusted two-sided p of the paired t test (pairs: training seeds that both have) against
            the best method of the same profile and time; NaN for the best itself and where fewer than two
            seeds are shared.
        best: the method with the best mean. marked: the best, and every method not significantly worse
            (p_best ≥ 1 − confidence, or no test possible: with a single training seed nothing can be said, so
            all are marked).
        test_error: standard error from the test set's own size, see :func:`sampling_error`.

    Args:
        frame: columns as in results.csv (run_id and sum may be missing); the order of rows does not matter.
        confidence: coverage of the intervals; 1 − confidence is also the level of the comparisons.
        higher_is_better: needed only for a metric of the user's own that is better when smaller.
        layout: names of the columns, where they are others: rate for time_s, for example.
        interval: of a single model's chips, in their order, where their number was not fixed beforehand; by
            default :func:`mean_interval`.

    Raises:
        DataError: when columns or rows are missing, values are not finite, the metric differs between rows,
            or a (profile, method, training seed, chip, time) occurs twice.
    """
    check_confidence(confidence)
    frame = layout.inwards(frame)
    rows, better = _checked(frame, higher_is_better)
    sign = 1.0 if better else -1.0
    parts = []
    for (profile, time_s), group in rows.groupby(["profile", "time_s"], sort=False):
        records, by_seed = [], {}
        for method, of_method in group.groupby("method", sort=False):
            record, by_seed[method] = _one_method(of_method, confidence, sign, layout.unit, interval)
            records.append({"profile": profile, "method": method, "time_s": float(str(time_s)), **record})
        _compare(records, by_seed, confidence, sign)
        parts.extend(records)
    profiles, methods = list(dict.fromkeys(frame["profile"])), list(dict.fromkeys(frame["method"]))
    parts.sort(key=lambda r: (profiles.index(r["profile"]), methods.index(r["method"]), r["time_s"]))
    found: pd.DataFrame = layout.outwards(pd.DataFrame(parts, columns=list(COLUMNS)))
    return found


def _checked(frame: pd.DataFrame, direction: bool | None) -> tuple[pd.DataFrame, bool]:
    missing = [name for name in _NEEDED if name not in frame.columns]
    if missing:
        raise DataError(f"the results lack the column {missing[0]!r}: expected those of results.csv")
    if frame.empty:
        raise DataError("the results have no rows: nothing to summarise")
    metrics = sorted(set(frame["metric"]))
    if len(metrics) > 1:
        raise DataError(f"the results mix the metrics {', '.join(metrics)}: summarise one at a time")
    rows = frame.copy()
    rows["seed"] = [-1 if pd.isna(seed) else int(seed) for seed in frame["training_seed"]]
    numbers = rows[["value", "digital", "count", "time_s"]].astype(float)
    if not np.isfinite(numbers.to_numpy()).all():
        raise DataError("the results hold a value, digital, count or time_s that is not finite")
    key = ["profile", "method", "seed", "chip", "time_s"]
    twice = rows.duplicated(key)
    if twice.any():
        first = rows.loc[twice, key].iloc[0]
        raise DataError(
            f"the results hold chip {first['chip']} at {first['time_s']:g} s of method "
            f"{first['method']!r}, training seed "
            f"{first['seed'] if first['seed'] >= 0 else 'none'}, twice: each may occur once"
        )
    # a fixed order, so that sums come out the same to the last bit however the rows were ordered
    return rows.sort_values(key, kind="stable"), better_when_higher(metrics[0], direction)


def _one_method(
    rows: pd.DataFrame,
    confidence: float,
    sign: float,
    unit: str,
    interval: Callable[[ArrayLike], Interval] | None,
) -> tuple[dict[str, object], dict[int, float]]:
    """Statistics of one method at one profile and time, and the mean over chips of each training seed."""
    by_seed: dict[int, float] = {}
    digital: dict[int, float] = {}
    for seed, chips in rows.groupby("seed"):
        by_seed[int(str(seed))] = mean_interval(chips["value"], confidence).mean
        if chips["digital"].nunique() > 1:
            raise DataError(
                f"method {rows['method'].iloc[0]!r}, training seed {seed}: the digital metric differs "
                "between its rows; they come from different models"
            )
        digital[int(str(seed))] = float(chips["digital"].iloc[0])
    several = len(by_seed) > 1
    units = list(by_seed.values()) if several else rows["value"].to_numpy(dtype=float)
    if several:
        drops = [sign * (digital[seed] - mean) for seed, mean in by_seed.items()]
    else:
        drops = list(sign * (rows["digital"].to_numpy(dtype=float) - np.asarray(units)))
    over, drop, ideal = (mean_interval(x, confidence) for x in (units, drops, list(digital.values())))
    if interval is not None and not several:
        over = interval(units)
        ends = [sign * (ideal.mean - end) for end in (over.low, over.high)]
        drop = replace(drop, low=min(ends), high=max(ends))
    metric = str(rows["metric"].iloc[0])
    values = rows["value"].to_numpy(dtype=float)
    return {
        "metric": metric,
        "unit": SEED if several else unit,
        "n": over.n,
        "chips": int(rows.groupby("seed").size().min()),
        "mean": over.mean,
        "low": over.low,
        "high": over.high,
        "std": over.std,
        "worst": float(values.min() if sign > 0 else values.max()),
        "digital": ideal.mean,
        "digital_low": ideal.low,
        "digital_high": ideal.high,
        "drop": drop.mean,
        "drop_low": drop.low,
        "drop_high": drop.high,
        "test_error": sampling_error(metric, over.mean, float(rows["count"].min())),
    }, by_seed


def _compare(records: list[dict], by_seed: dict, confidence: float, sign: float) -> None:
    """Fill in p_best, best and marked for the methods of one profile and time."""
    best = max(range(len(records)), key=lambda i: sign * records[i]["mean"])
    champion = by_seed[records[best]["method"]]
    p = []
    for i, record in enumerate(records):
        mine = by_seed[record["method"]]
        shared = sorted(mine.keys() & champion.keys())
        p.append(
            math.nan
            if i == best
            else paired_p_value([mine[s] for s in shared], [champion[s] for s in shared])
        )
    for i, (record, adjusted) in enumerate(zip(records, holm(p), strict=True)):
        record.update(
            p_best=float(adjusted),
            best=i == best,
            marked=i == best or math.isnan(adjusted) or adjusted >= 1 - confidence,
        )
