"""Stopping at a precision: how many chips, what the interval covers, and that a rerun ends where it ended."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from analognoise.conversion import convert_to_analog, convert_to_digital
from analognoise.errors import DataError
from analognoise.evaluation.data import EvaluationData
from analognoise.evaluation.montecarlo import evaluate_drift
from analognoise.evaluation.stopping import Precision, checked_precision

RUNS = 2000


def stopped(rule: Precision, x: np.ndarray) -> np.ndarray:
    """The values of as many chips as the rule asks for, asked as an evaluation asks it."""
    n = 0
    while (more := rule.chips(x[:n])) > n:
        n = more
    return x[:n]


def test_first_stage_fixes_the_number_by_steins_formula() -> None:
    x = np.random.default_rng(0).normal(0.9, 0.02, 400)
    rule = Precision(half_width=0.004, pilot=10, max_chips=400)
    assert rule.chips([]) == rule.chips(x[:9]) == 10
    stein = math.ceil((stats.t.ppf(0.975, 9) * x[:10].std(ddof=1) / 0.004) ** 2)
    assert 20 < stein < 400
    assert rule.chips(x[:10]) == rule.chips(x[: stein - 1]) == stein
    # the spread of all may ask for more, by the same formula
    n = stein
    while (more := math.ceil((stats.t.ppf(0.975, n - 1) * x[:n].std(ddof=1) / 0.004) ** 2)) > n:
        n = more
    assert len(stopped(rule, x)) == n == rule.chips(x)
    found = rule.interval(x[:n])
    half = max(stats.t.ppf(0.975, k - 1) * x[:k].std(ddof=1) for k in (10, n)) / math.sqrt(n)
    assert (found.low, found.high) == pytest.approx((x[:n].mean() - half, x[:n].mean() + half), abs=1e-15)
    assert half <= 0.004
    assert len(stopped(Precision(0.004, 10, 15), x)) == 15
    assert len(stopped(Precision(0.5, 10, 15), x)) == 10


@pytest.mark.parametrize("ratio", [0.8, 0.4])
def test_interval_covers_the_mean_of_normal_values(ratio: float) -> None:
    """The bound is what chance leaves of 95 % of the runs once in a thousand times."""
    rng = np.random.default_rng(1)
    rule = Precision(ratio * 0.02, 10, 400)
    least = stats.binom.ppf(1e-3, RUNS, 0.95)
    held = reached = 0
    for _ in range(RUNS):
        found = rule.interval(stopped(rule, rng.normal(0.9, 0.02, 400)))
        held += found.low <= 0.9 <= found.high
        reached += found.high - found.low <= 2 * rule.half_width * (1 + 1e-9)
    assert held >= least
    assert held / RUNS >= 0.94
    assert reached == RUNS


def test_the_check_of_coverage_tells_an_interval_that_does_not_hold() -> None:
    """Stopping after three chips or more by a z interval of all: the same bound fails."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(RUNS):
        x = rng.normal(0.9, 0.02, 400)
        n = np.arange(1, 401)
        std = np.sqrt(np.maximum(np.cumsum(x**2) - np.cumsum(x) ** 2 / n, 0) / np.maximum(n - 1, 1))
        half = 1.96 * std / np.sqrt(n)
        stop = int(np.flatnonzero((half <= 0.008) & (n >= 3))[0])
        held += abs(x[: stop + 1].mean() - 0.9) <= half[stop]
    assert held < stats.binom.ppf(1e-3, RUNS, 0.95)


def test_equal_chips_do_not_stop_early() -> None:
    same = np.full(2000, 0.95)
    assert len(stopped(Precision(0.01, 10, 500), same)) == 500
    # An accuracy is bounded: after log(0.05) / log(0.99) = 298.07 equal chips at most 1 % are different.
    bounded = Precision(0.01, 10, 500, bounded=True)
    assert len(stopped(bounded, same)) == 299
    found = bounded.interval(same[:299])
    share = 1 - 0.05 ** (1 / 299)
    assert (found.low, found.high) == pytest.approx((0.95 - share * 0.95, 0.95 + share * 0.05), abs=1e-15)
    assert found.mean - found.low <= 0.01
    # One that differs ends the waiting, and its first stage holds it.
    late = np.r_[np.full(11, 0.95), 0.94, np.full(500, 0.95)]
    rule = Precision(0.002, 10, 500, bounded=True)
    assert rule.chips(late[:10]) == 20
    needed = (stats.t.ppf(0.975, 19) * late[:20].std(ddof=1) / 0.002) ** 2
    assert rule.chips(late[:20]) == max(20, math.ceil(needed))
    # The interval knows that stage's spread, too, which is more than that of all chips.
    half = stats.t.ppf(0.975, 19) * late[:20].std(ddof=1) / math.sqrt(60)
    found = rule.interval(late[:60])
    assert (found.high - found.mean, found.mean - found.low) == pytest.approx((half, half), rel=1e-12)
    # Where nothing is random, equal chips are what they seem.
    assert len(stopped(Precision(0.01, 10, 500, alike=True), same)) == 10


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"precision": 0}, "precision is 0: give the half-width"),
        ({"precision": -0.1}, "precision is -0.1"),
        ({"precision": math.nan}, "precision is nan"),
        ({"precision": math.inf}, "precision is inf"),
        ({"precision": "0.1"}, "precision is '0.1'"),
        ({"precision": True}, "precision is True"),
        (
            {"chips": 9},
            "chips is 9: with a precision it is the number of chips of the first stage, at least 10",
        ),
        ({"max_chips": 9}, "max_chips is 9, but 10 chips are needed"),
        ({"max_chips": 2}, "max_chips is 2, but 10 chips are needed"),
        ({"precision": 0.5, "bounded": True}, "precision is 0.5, but an accuracy lies between 0 and 1"),
        ({"precision": None, "max_chips": 50}, "max_chips is 50, but no precision is given"),
    ],
)
def test_bad_numbers_are_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        checked_precision(**({"precision": 0.01, "chips": 25, "max_chips": None} | given))


@pytest.mark.parametrize("half_width", [1e-9, 1e-200, 5e-324])
def test_a_precision_out_of_reach_takes_all_chips(half_width: float) -> None:
    assert Precision(half_width, 10, 700).chips([0.1, 0.2] * 5) == 700


def test_limits_without_a_word() -> None:
    assert checked_precision(0.01, 25, None).max_chips == 1000
    with pytest.warns(
        UserWarning, match="max_chips is 20, fewer than the 30 chips of the first stage: it has"
    ):
        assert checked_precision(0.01, 30, 20).pilot == 20
    assert checked_precision(0.01, 2000, None).max_chips == 2000
    assert checked_precision(0.01, 25, 20).pilot == 20


@pytest.fixture(scope="module")
def setting() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A network on noisy devices, and data that it gets right digitally."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        x = torch.randn(200, 8)
        with torch.no_grad():
            y = model(x).argmax(1)
    return convert_to_analog(model, "pcm-ibm"), [(x, y)]


def test_each_time_gets_the_chips_that_it_needs(
    setting: tuple[nn.Module, list[tuple[Tensor, Tensor]]], tmp_path: Path
) -> None:
    model, data = setting
    file = tmp_path / "results.csv"
    settings: dict[str, Any] = {"times": "1s,1y", "chips": 10, "precision": 0.008, "max_chips": 300}
    report = evaluate_drift(model, data, out=file, **settings)
    assert report.precision is not None
    summary = report.summary()
    counts = summary.frame["n"].tolist()
    assert 10 < counts[0] < counts[1] == report.chips < 300
    for time, n in zip(report.times, counts, strict=True):
        assert report.precision.chips(report.at(time)) == n
        assert np.isfinite(report.values[:n, report.times.index(time)]).all()
    assert np.isnan(report.values[counts[0] :, 0]).all()
    assert report.precision.reached(summary.frame) == [True, True]
    assert (summary.frame["high"] - summary.frame["low"] <= 0.016 + 1e-12).all()
    gap = summary.frame["digital"] - summary.frame["high"]
    assert np.allclose(summary.frame["drop_low"], gap, atol=1e-15)
    words = " ".join(str(summary).split())
    assert (
        f"by Stein's two stages (first 10, at most 300): {counts[0]} at 1 s, {counts[1]} at 1 year." in words
    )
    # The chips are those of an evaluation with a fixed number.
    plain = evaluate_drift(model, data, times="1s,1y", chips=counts[0])
    assert plain.run_id == report.run_id
    assert plain.values.tolist() == report.values[: counts[0]].tolist()
    # Of more rows than are wanted the same are kept.
    more = evaluate_drift(model, data, times="1s,1y", chips=counts[1] + 5).frame
    kept = report.precision.kept(more)
    assert (
        kept[["chip", "time_s", "value"]]
        .reset_index(drop=True)
        .equals(report.frame[["chip", "time_s", "value"]])
    )

    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    for end in (1, 12, 21, len(lines) - 1):  # header, pilot, second stage
        file.write_bytes(b"".join(lines[:end]) + lines[end][:7])
        with pytest.warns(UserWarning, match="cut short"):
            again = evaluate_drift(model, data, out=file, **settings)
        assert file.read_bytes() == whole
        assert again.rows == report.rows
        assert again.reused == end - 1
    # More was asked for before: the rows that are there serve.
    evaluate_drift(model, data, out=file, times="1s,1y", chips=counts[1] + 2)
    again = evaluate_drift(model, data, out=file, **settings)
    assert again.rows == report.rows
    assert again.reused == len(report.rows)


def test_a_time_that_is_not_reached_is_named(setting: tuple[nn.Module, list[tuple[Tensor, Tensor]]]) -> None:
    model, data = setting
    report = evaluate_drift(model, data, times="1y", chips=10, precision=1e-4, max_chips=12)
    assert report.precision is not None
    assert report.precision.reached(report.summary().frame) == [False]
    assert "12 at 1 year (NOT REACHED)" in " ".join(str(report.summary()).split())


def test_equal_chips_of_a_metric_without_bounds_reach_nothing(
    setting: tuple[nn.Module, list[tuple[Tensor, Tensor]]],
) -> None:
    def constant(output: Tensor, batch: Any) -> tuple[float, int]:
        return 3.0 * len(output), len(output)

    model, data = setting
    report = evaluate_drift(model, data, times="1y", metric=constant, chips=10, precision=0.1, max_chips=15)
    assert report.precision is not None
    assert (report.chips, report.precision.reached(report.summary().frame)) == (15, [False])
    assert "nothing is known of their spread" in " ".join(str(report.summary()).split())


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_lifetimes_are_by_the_intervals_of_the_summary(
    metric: str, setting: tuple[nn.Module, list[tuple[Tensor, Tensor]]]
) -> None:
    """With other numbers of chips at the times: where the ends that the table shows cross the floor."""
    model, data = setting
    model = convert_to_analog(convert_to_digital(model), "pcm-ibm", compensation="none")
    precision = 0.01 if metric == "accuracy" else 0.003
    report = evaluate_drift(model, data, times="1s,1y", chips=10, precision=precision, metric=metric)
    first, last = report.summary().frame.to_dict("records")
    assert first["n"] < last["n"]
    better = metric == "accuracy"
    floor = (first["mean"] + 2 * last["mean"]) / 3
    assert first["high"] < floor < last["low"] or first["low"] > floor > last["high"]

    def crossing(edge: str) -> float:
        share = (first[edge] - floor) / (first[edge] - last[edge])
        return first["time_s"] * (last["time_s"] / first["time_s"]) ** share

    found = report.lifetime(floor, relative=False)
    ends = ("low", "high") if better else ("high", "low")
    assert found.seconds == pytest.approx(crossing("mean"), rel=1e-9)
    assert (found.low, found.high) == pytest.approx((crossing(ends[0]), crossing(ends[1])), rel=1e-9)


def test_devices_on_which_nothing_is_random_need_no_more(
    setting: tuple[nn.Module, list[tuple[Tensor, Tensor]]],
) -> None:
    _, data = setting
    ideal = convert_to_analog(nn.Sequential(nn.Linear(8, 4)), "ideal")
    report = evaluate_drift(ideal, data, times="1s", chips=10, precision=1e-4)
    assert report.chips == 10
    assert "Nothing is random" in " ".join(str(report.summary()).split())
    assert isinstance(report.frame, pd.DataFrame)
    faulty = convert_to_analog(nn.Sequential(nn.Linear(8, 4)), "pcm-ibm")
    assert all(layer.analog.profile.is_random for layer in faulty.modules() if hasattr(layer, "analog"))


@pytest.mark.parametrize("cached", [True, False])
def test_chips_of_a_forward_that_draws_are_not_alike_on_any_device(
    setting: tuple[nn.Module, list[tuple[Tensor, Tensor]]], cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = setting[1][0]
    loader = DataLoader(TensorDataset(x, y), batch_size=len(y))  # draws from torch's generator in each pass
    if not cached:
        monkeypatch.setattr(EvaluationData.__init__, "__defaults__", (0,))
    ideal = convert_to_analog(nn.Sequential(nn.Linear(8, 4)), "ideal")

    def forward(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0] + 1e-9 * torch.randn(8))  # never enough to change an answer

    settings: dict[str, Any] = {"times": "1s", "chips": 10, "precision": 0.2}
    assert evaluate_drift(ideal, loader, **settings).chips == 10
    report = evaluate_drift(ideal, loader, forward=forward, **settings)
    assert report.chips == 14  # log(0.05) / log(0.8) = 13.4
    (row,) = report.summary().frame.to_dict("records")
    assert row["high"] - row["low"] == pytest.approx(1 - 0.05 ** (1 / 14), abs=1e-12)
    text = " ".join(str(report.summary()).split())
    assert "Nothing is random" not in text
    assert "the interval says how many others there may be" in text


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (math.nan, r"chip 1 at 1 year: batch 0: the metric 'late' has the sum nan .*expected finite numbers"),
        (torch.zeros(3), r"chip 1 at 1 year: batch 0: the metric 'late' returned a sum of shape \(3,\)"),
    ],
)
def test_a_metric_that_fails_on_the_way_is_named_with_chip_time_and_batch(
    setting: tuple[nn.Module, list[tuple[Tensor, Tensor]]], returned: Any, words: str
) -> None:
    model, data = setting
    calls = 0

    def late(output: Tensor, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        return (1.0 if calls < 5 else returned), 1  # digital, chip 0 twice, chip 1 at 1 s

    with pytest.raises(DataError, match=words):
        evaluate_drift(model, data, times="1s,1y", chips=10, precision=0.1, metric=late)
