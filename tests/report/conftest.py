"""Synthetic summary frames with the columns that an evaluation's summary has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pandas as pd
import pytest

YEAR = 365 * 86400.0
TIMES = (1.0, 3600.0, 86400.0, 30 * 86400.0, YEAR)


def summary(
    means: dict[str, Sequence[float]],
    times: Sequence[float] = TIMES,
    *,
    half: float = 0.01,
    digital: float = 0.96,
    digital_half: float = 0.006,
    marked: Sequence[str] = (),
    profile: str = "pcm-ibm",
    metric: str = "accuracy",
    unit: str = "training seed",
    n: int = 3,
    chips: int = 25,
    test_error: float = 0.0123,
    lower_is_better: bool = False,
    tested: bool = True,
) -> pd.DataFrame:
    """Rows for each method's means over time; the best of each time is found, ``marked`` are not worse."""
    rows = []
    for method, values in means.items():
        for column, (time_s, mean) in enumerate(zip(times, values, strict=True)):
            others = [other[column] for other in means.values() if math.isfinite(other[column])]
            best = bool(others) and mean == (min(others) if lower_is_better else max(others))
            rows.append(
                {
                    "profile": profile,
                    "method": method,
                    "time_s": time_s,
                    "metric": metric,
                    "unit": unit,
                    "n": n,
                    "chips": chips,
                    "mean": mean,
                    "low": mean - half,
                    "high": mean + half,
                    "std": half / 2,
                    "worst": mean - 2 * half,
                    "digital": digital,
                    "digital_low": digital - digital_half,
                    "digital_high": digital + digital_half,
                    "drop": digital - mean,
                    "drop_low": digital - mean - half,
                    "drop_high": digital - mean + half,
                    "p_best": math.nan if best or not tested else 0.4 if method in marked else 0.01,
                    "best": best,
                    "marked": best or method in marked,
                    "test_error": test_error,
                }
            )
    return pd.DataFrame(rows)


def levels(means: dict[str, Sequence[float]], percent: Sequence[float], **options: object) -> pd.DataFrame:
    """The same for drift-free profiles ``gaussian@PERCENT%``, one for each level."""
    frames = [
        summary({m: [v[i]] for m, v in means.items()}, [0.0], profile=f"gaussian@{p:g}%", **options)  # type: ignore[arg-type]
        for i, p in enumerate(percent)
    ]
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(name="summary")
def _summary() -> Callable[..., pd.DataFrame]:
    return summary


@pytest.fixture(name="levels")
def _levels() -> Callable[..., pd.DataFrame]:
    return levels


@pytest.fixture
def two(summary: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    """Two methods over the usual five times."""
    means = {"sgd": [0.951, 0.94, 0.92, 0.91, 0.8], "sam+clip": [0.95, 0.945, 0.93, 0.925, 0.9]}
    return summary(means, marked=["sgd"])
