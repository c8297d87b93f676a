"""Means, intervals, comparisons: against closed forms, scipy and examples worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analognoise.errors import DataError
from analognoise.evaluation.statistics import (
    better_when_higher,
    holm,
    mean_interval,
    paired_p_value,
    sampling_error,
    summarise_methods,
)
from analognoise.report.summary import COLUMNS


def rows(values: dict[tuple[str, int | None], list[list[float]]], **changes: object) -> pd.DataFrame:
    """A results frame from {(method, training seed): [[value of each time] of each chip]}."""
    digital = {key: 0.9 + 0.01 * (key[1] or 0) for key in values}
    found = [
        {
            "run_id": f"{method}{seed}",
            "profile": "pcm-ibm",
            "method": method,
            "training_seed": seed,
            "chip": chip,
            "time_s": 10.0**place,
            "metric": "accuracy",
            "sum": value * 360,
            "count": 360,
            "value": value,
            "digital": digital[method, seed],
        }
        for (method, seed), chips in values.items()
        for chip, over_time in enumerate(chips)
        for place, value in enumerate(over_time)
    ]
    return pd.DataFrame(found).assign(**changes)


def random_rows(methods: int = 3, seeds: int = 4, chips: int = 5, times: int = 2) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    return rows(
        {
            (f"m{m}", s): (0.8 + 0.02 * m + generator.normal(0, 0.03, (chips, times))).tolist()
            for m in range(methods)
            for s in range(seeds)
        }
    )


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_interval_is_students(confidence: float) -> None:
    x = [0.91, 0.87, 0.95, 0.90, 0.82]
    found = mean_interval(x, confidence)
    low, high = stats.t.interval(confidence, 4, loc=np.mean(x), scale=stats.sem(x))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-13)
    assert found.std == pytest.approx(np.std(x, ddof=1), rel=1e-13)
    assert found.n == 5


def test_interval_by_hand() -> None:
    # mean 2, s = 1, t(0.975, 2) = 4.30265..., half width 4.30265/sqrt(3) = 2.48414
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.mean, found.std) == (2.0, 1.0)
    assert found.high - found.mean == pytest.approx(2.484137711, abs=1e-8)


def test_one_value_has_no_interval() -> None:
    found = mean_interval([0.9])
    assert found.mean == 0.9
    assert all(map(math.isnan, (found.low, found.high, found.std)))


def test_equal_values_have_no_spread() -> None:
    found = mean_interval([0.1] * 7)  # their sum is rounded; the interval must not show it
    assert (found.mean, found.low, found.high, found.std) == (0.1, 0.1, 0.1, 0.0)


def test_interval_covers_as_often_as_it_says() -> None:
    """A normal (z) interval would cover 87.8 % here, an interval with n in place of n - 1 about 93.4 %."""
    generator, trials = np.random.default_rng(1), 5_000
    x = generator.normal(3.0, 2.0, (trials, 5))
    covered = np.mean([(i := mean_interval(row)).low <= 3.0 <= i.high for row in x])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [math.inf]])
def test_a_mean_of_what_is_not_finite_is_refused(values: list[float]) -> None:
    with pytest.raises(DataError, match="finite"):
        mean_interval(values)


@pytest.mark.parametrize("confidence", [0, 1, 95, math.nan, "0.9"])
def test_confidence_out_of_range(confidence: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        mean_interval([1, 2], confidence)


def test_paired_test_is_scipys() -> None:
    generator = np.random.default_rng(2)
    first, second = generator.normal(size=(2, 9))
    assert paired_p_value(first, second) == pytest.approx(stats.ttest_rel(first, second).pvalue, rel=1e-12)


def test_paired_test_at_its_ends() -> None:
    assert paired_p_value([0.5, 0.7, 0.9], [0.5, 0.7, 0.9]) == 1.0
    assert paired_p_value([1.0, 2.0, 3.0], [0.0, 1.0, 2.0]) == 0.0
    assert math.isnan(paired_p_value([0.5], [0.6]))
    assert math.isnan(paired_p_value([], []))


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1 = 0.04, 0.06, 0.06, 0.04, then never falling
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


def test_holm_leaves_out_what_was_not_compared() -> None:
    found = holm([math.nan, 0.01, math.nan, 0.04])
    assert found[[1, 3]] == pytest.approx([0.02, 0.04])
    assert np.isnan(found[[0, 2]]).all()
    assert holm([]).size == 0


def test_holm_keeps_the_error_rate_of_the_family() -> None:
    """With all hypotheses true, any rejection is an error: at most 5 % of families may have one."""
    generator, trials = np.random.default_rng(3), 10_000
    wrong = np.mean([holm(generator.uniform(size=5)).min() < 0.05 for _ in range(trials)])
    exact = 1 - (1 - 0.05 / 5) ** 5  # the smallest of five independent p is what decides
    assert abs(wrong - exact) < 4 * math.sqrt(exact * (1 - exact) / trials)


def test_sampling_error() -> None:
    assert sampling_error("accuracy", 0.9, 360) == pytest.approx(math.sqrt(0.09 / 360))
    assert math.isnan(sampling_error("loss", 0.9, 360))


def test_directions() -> None:
    assert better_when_higher("accuracy") is True
    assert better_when_higher("loss") is better_when_higher("perplexity") is False
    assert better_when_higher("f1") is True
    assert better_when_higher("error", False) is False
    with pytest.raises(DataError, match="contradicts"):
        better_when_higher("accuracy", False)


def test_a_method_is_judged_over_training_seeds() -> None:
    frame = random_rows()
    summary = summarise_methods(frame)
    assert tuple(summary.columns) == COLUMNS
    row = summary[(summary.method == "m1") & (summary.time_s == 10.0)].iloc[0]
    mine = frame[(frame.method == "m1") & (frame.time_s == 10.0)]
    means = mine.groupby("training_seed")["value"].mean()
    low, high = stats.t.interval(0.95, 3, loc=means.mean(), scale=stats.sem(means))
    assert (row.unit, row.n, row.chips) == ("training seed", 4, 5)
    assert (row["mean"], row.low, row.high) == pytest.approx((means.mean(), low, high), rel=1e-12)
    assert row.worst == mine["value"].min()
    digital = mine.groupby("training_seed")["digital"].first()
    low, high = stats.t.interval(0.95, 3, loc=digital.mean(), scale=stats.sem(digital))
    assert (row.digital, row.digital_low, row.digital_high) == pytest.approx((digital.mean(), low, high))
    drop = digital - means
    low, high = stats.t.interval(0.95, 3, loc=drop.mean(), scale=stats.sem(drop))
    assert (row["drop"], row.drop_low, row.drop_high) == pytest.approx((drop.mean(), low, high), rel=1e-10)
    assert row.test_error == pytest.approx(math.sqrt(means.mean() * (1 - means.mean()) / 360))


def test_one_model_is_judged_over_chips() -> None:
    frame = rows({("", None): [[0.9], [0.8], [0.85]]})
    row = summarise_methods(frame).iloc[0]
    low, high = stats.t.interval(0.95, 2, loc=0.85, scale=0.05 / math.sqrt(3))
    assert (row.unit, row.n, row.chips, row.worst) == ("chip", 3, 3, 0.8)
    assert (row["mean"], row.low, row.high, row["std"]) == pytest.approx((0.85, low, high, 0.05))
    assert math.isnan(row.digital_low)
    assert (row["drop"], row.drop_low, row.drop_high) == pytest.approx((0.05, 0.9 - high, 0.9 - low))


def test_chips_of_a_seed_are_no_units_of_a_method() -> None:
    """Seeds far apart, chips close together: an interval over all chips would be several times too narrow."""
    frame = rows({("m", s): [[0.7 + 0.1 * s + 0.001 * c] for c in range(25)] for s in range(3)})
    row = summarise_methods(frame).iloc[0]
    assert row.n == 3
    assert row.high - row.low == pytest.approx(2 * 4.302652729911 * 0.1 / math.sqrt(3), rel=1e-6)


def test_comparison_is_paired_and_corrected() -> None:
    frame = random_rows(methods=4, seeds=6)
    summary = summarise_methods(frame).query("time_s == 1.0").set_index("method")
    means = frame[frame.time_s == 1.0].groupby(["method", "training_seed"])["value"].mean().unstack()
    best = means.mean(axis=1).idxmax()
    others = [m for m in means.index if m != best]
    p = [stats.ttest_rel(means.loc[m], means.loc[best]).pvalue for m in others]
    assert summary.loc[others, "p_best"].to_numpy() == pytest.approx(holm(p), rel=1e-9)
    assert list(summary.index[summary.best]) == [best]
    assert math.isnan(summary.loc[best, "p_best"])
    assert summary.loc[best, "marked"]
    assert list(summary.loc[others, "marked"]) == [q >= 0.05 for q in holm(p)]
    assert 0 < summary.marked.sum() < 4  # the example shows both sides


def test_pairing_finds_what_unpaired_means_hide() -> None:
    """Seeds differ by 10 points, methods by 1 with 0.05 of scatter: only the paired test sees it."""
    base, scatter = [0.5, 0.6, 0.7, 0.8], [0.0005, -0.0005, 0.0005, -0.0005]
    frame = rows(
        {("good", s): [[base[s]]] for s in range(4)}
        | {("bad", s): [[base[s] - 0.01 + scatter[s]]] for s in range(4)}
    )
    summary = summarise_methods(frame).set_index("method")
    assert summary.loc["bad", "p_best"] < 0.001
    assert not summary.loc["bad", "marked"]


def test_best_is_the_smallest_loss() -> None:
    frame = rows(
        {("a", s): [[0.4 + 0.01 * s, 0.5]] for s in range(3)} | {("b", s): [[0.6, 0.7]] for s in range(3)}
    )
    frame["metric"] = "loss"
    summary = summarise_methods(frame)
    assert set(summary[summary.best].method) == {"a"}
    row = summary[(summary.method == "b") & (summary.time_s == 1)].iloc[0]
    assert row["drop"] == pytest.approx(0.6 - 0.91)  # larger than digital is worse: the sign is turned
    assert row.worst == 0.6
    assert math.isnan(row.test_error)


def test_equal_methods_are_both_marked() -> None:
    frame = rows({(m, s): [[0.8 + 0.01 * s]] for m in "ab" for s in range(3)})
    summary = summarise_methods(frame)
    assert summary.marked.all()
    assert summary.best.sum() == 1
    assert summary[~summary.best].p_best.iloc[0] == 1.0


def test_one_training_seed_allows_no_comparison() -> None:
    frame = rows({("a", 0): [[0.9], [0.91]], ("b", 0): [[0.5], [0.51]]})
    summary = summarise_methods(frame)
    assert summary.p_best.isna().all()
    assert summary.marked.all()
    assert list(summary[summary.best].method) == ["a"]


def test_only_shared_seeds_are_paired() -> None:
    a = {("a", s): [[0.9 + 0.001 * s]] for s in range(4)}
    b = {("b", s): [[0.8 - 0.002 * s]] for s in range(2, 6)}
    summary = summarise_methods(rows(a | b)).set_index("method")
    shared = stats.ttest_rel([0.796, 0.794], [0.902, 0.903]).pvalue
    assert summary.loc["b", "p_best"] == pytest.approx(shared, rel=1e-9)
    assert summary.loc["b", "n"] == 4


def test_the_order_of_rows_changes_no_bit() -> None:
    frame = random_rows()
    expected = summarise_methods(frame)
    for seed in range(5):
        shuffled = frame.sample(frac=1, random_state=seed)
        found = summarise_methods(shuffled).set_index(["profile", "method", "time_s"])
        pd.testing.assert_frame_equal(
            found.sort_index(),
            expected.set_index(["profile", "method", "time_s"]).sort_index(),
            check_exact=True,
        )


def test_rows_come_in_the_order_of_first_appearance() -> None:
    frame = rows({("z", 0): [[0.9, 0.8]], ("a", 0): [[0.9, 0.8]]})
    summary = summarise_methods(frame)
    assert list(zip(summary.method, summary.time_s, strict=True)) == [
        ("z", 1),
        ("z", 10),
        ("a", 1),
        ("a", 10),
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.drop(columns="digital"), "lack the column.*digital"),
        (lambda f: f.iloc[:0], "no rows"),
        (lambda f: f.assign(metric=["accuracy"] * (len(f) - 1) + ["loss"]), "mix the metrics accuracy, loss"),
        (lambda f: f.assign(value=math.nan), "not finite"),
        (lambda f: pd.concat([f, f.iloc[[3]]]), "method 'm0', training seed 0, twice"),
        (lambda f: f.assign(digital=range(len(f))), "digital metric differs"),
    ],
)
def test_results_that_cannot_be_summarised(change, words: str) -> None:
    with pytest.raises(DataError, match=words):
        summarise_methods(change(random_rows()))
