"""What single chips keep, beside their mean: columns of the summary, and sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analognoise.errors import DataError
from analognoise.evaluation.quantiles import Quantile, Yield, check_level, check_share, quantile, yield_at
from analognoise.report.numbers import in_percent, one_value
from analognoise.units import format_time


def check_single_chips(share: float | None, level: float | None, metric: str, sampling: str = "full") -> None:
    """Nothing, where the numbers that were asked for make sense, and chips are measured on all samples.

    Raises:
        DataError: where they do not.
    """
    if share is not None:
        check_share(share)
    if level is not None:
        check_level(level, metric)
    if sampling != "full" and not (share is None and level is None):
        raise DataError(
            "--quantile and --yield-at need chips that are measured on all samples: leave out --sampling "
            f"{sampling}"
        )


def with_single_chips(
    summary: pd.DataFrame, rows: pd.DataFrame, settings: Mapping[str, Any]
) -> tuple[pd.DataFrame, list[str]]:
    """A summary frame with columns for what was asked for, and the same in words.

    Args:
        summary: one row per profile and time.
        rows: as in results.csv.
        settings: "quantile" and "yield_at" (None, or missing, where not asked for), "higher_is_better" and
            "confidence".
    """
    share, level = settings.get("quantile"), settings.get("yield_at")
    better, confidence = settings["higher_is_better"], settings["confidence"]
    frame, lines = summary.copy(), []
    values = [
        rows[(rows["profile"] == row["profile"]) & (rows["time_s"] == row["time_s"])]["value"]
        for row in summary.to_dict("records")
    ]
    metric = str(summary["metric"].iloc[0])
    if share is not None:
        levels = [quantile(x, share, higher_is_better=better, confidence=confidence) for x in values]
        frame["quantile"] = [found.value for found in levels]
        frame["quantile_low"] = [found.low for found in levels]
        frame["quantile_high"] = [found.high for found in levels]
        kept = f"{100 * (1 - share):.4g} % of chips keep at {'least' if better else 'most'}"
        lines += _by_profile(kept, summary, [_quantile(found, metric) for found in levels])
    if level is not None:
        yields = [
            yield_at(x, level, higher_is_better=better, confidence=confidence, metric=metric) for x in values
        ]
        frame["yield"] = [found.share for found in yields]
        frame["yield_low"] = [found.low for found in yields]
        frame["yield_high"] = [found.high for found in yields]
        kept = f"Chips that keep {one_value(metric, level)}"
        lines += _by_profile(kept, summary, [_yield(found) for found in yields])
    return frame, lines


def _by_profile(what: str, summary: pd.DataFrame, texts: list[str]) -> list[str]:
    found: dict[str, list[str]] = {}
    for row, text in zip(summary.to_dict("records"), texts, strict=True):
        found.setdefault(row["profile"], []).append(f"{text} at {format_time(row['time_s'])}")
    return [f"{what} on {profile}: {'; '.join(parts)}." for profile, parts in found.items()]


def _quantile(found: Quantile, metric: str) -> str:
    def number(value: float) -> str:
        return f"{100 * value:.2f}" if in_percent(metric) else f"{value:.4g}"

    unit = " %" if in_percent(metric) else ""
    if found.chips == 1:
        return f"{number(found.value)}{unit} (one chip: no interval)"
    if found.closed:
        return f"{number(found.value)}{unit} ({number(found.low)} to {number(found.high)})"
    return (
        f"{number(found.value)}{unit} (too few chips for a {100 * found.confidence:g} % interval: "
        f"{found.chips}, {found.needed} are needed)"
    )


def _yield(found: Yield) -> str:
    return f"{100 * found.share:.3g} % ({100 * found.low:.3g} to {100 * found.high:.3g})"
