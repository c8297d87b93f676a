"""Sampling by digital margin: right on average, sparing where chips do not differ, and named where used."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from analognoise.conversion import convert_to_analog
from analognoise.errors import DataError
from analognoise.evaluation.drift import DriftEvaluation
from analognoise.evaluation.metrics import Metric
from analognoise.evaluation.montecarlo import evaluate_drift
from analognoise.evaluation.sampling import allocation, drawn, estimated, strata_by_margin

Data = list[tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def setting() -> tuple[nn.Module, Data]:
    """A network on noisy devices, and labels that it gets right digitally, one in 20 replaced."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        x = torch.randn(2000, 8)
        with torch.no_grad():
            y = model(x).argmax(1)
        y[::20] = (y[::20] + 1) % 4
    return convert_to_analog(model, "gaussian@5%"), list(zip(x.split(300), y.split(300), strict=True))


def test_strata_hold_samples_of_one_side_and_of_like_margins() -> None:
    margins = np.random.default_rng(0).normal(1, 2, 500)
    strata = strata_by_margin(margins)
    assert len(set(strata)) == 32
    ends = [(margins[strata == h].min(), margins[strata == h].max()) for h in range(32)]
    wrong, right = ends[:16], ends[16:]
    assert all(high <= 0 for _, high in wrong)
    assert all(low > 0 for low, _ in right)
    assert all(first[0] >= later[1] for first, later in pairwise(wrong))
    assert all(first[1] <= later[0] for first, later in pairwise(right))
    assert strata_by_margin(np.ones(5)).tolist() == [0] * 5


def test_every_sample_is_drawn_as_often_as_the_plan_says() -> None:
    """Inclusion probabilities n_h / N_h: what makes the estimate right on average whatever the plan is."""
    strata = np.repeat([0, 1, 2], [10, 40, 50])
    counts = np.array([10, 8, 1])
    runs = 4000
    chosen = np.array([drawn(strata, counts, seed) for seed in range(runs)])
    assert (np.array([np.bincount(strata[row], minlength=3) for row in chosen[:50]]) == counts).all()
    p = (counts / [10, 40, 50])[strata]
    error = np.sqrt(p * (1 - p) / runs)
    assert (np.abs(chosen.mean(0) - p) <= 4.5 * error + 1e-12).all()


def test_plan_spares_what_does_not_change_and_keeps_the_variance_within_a_quarter() -> None:
    rng = np.random.default_rng(3)
    margins = rng.normal(3, 2, 4000)
    strata, right = strata_by_margin(margins), margins > 0
    level = rng.normal(1, 0.3, (200, 1))
    change = rng.random((200, 4000)) < level * 0.5 * np.exp(-2 * np.abs(margins))
    hits = right ^ change
    counts = allocation(strata, right, hits[:4])
    sizes = np.bincount(strata)
    share = counts / sizes
    assert counts.sum() < 0.3 * len(strata)
    assert share[16] > 3 * share[31]  # the smallest margins of the right side, and the largest
    values = []
    for chip in range(4, 200):
        chosen = drawn(strata, counts, chip)
        hit = np.bincount(strata[chosen], hits[chip][chosen], len(counts)) / counts
        values.append(float(sizes @ hit) / len(strata))
    whole = hits[4:].mean(1)
    gap = np.array(values) - whole
    assert abs(gap.mean()) <= 4 * gap.std() / np.sqrt(len(gap))
    # planned from four chips, whose variance scatters: an order of magnitude
    assert gap.var() < 2 * hits[:4].mean(1).var(ddof=1) / 4
    same = np.repeat(right[None], 4, axis=0)
    assert allocation(strata, right, same).tolist() == sizes.tolist()


def test_equal_shares_of_hits_are_equal_to_the_last_bit_whatever_the_strata() -> None:
    """Else rounding, 30 · 2/7 + 30 · 1/7 not being 30 · 3/7, would pass for a spread of chips."""
    rng = np.random.default_rng(0)
    strata, counts = np.repeat(np.arange(6), 30), np.full(6, 7)
    chosen = drawn(strata, counts, 1)
    found: dict[int, set[float]] = {}
    for _ in range(2000):
        hits = rng.random(42) < rng.random()
        found.setdefault(int(hits.sum()), set()).add(estimated(strata, counts, chosen, hits))
    assert len(found) == 43
    assert all(values == {round(30 * hits / 7, 6)} for hits, values in found.items())


def test_mean_over_chips_is_that_of_all_samples(setting: tuple[nn.Module, Data]) -> None:
    model, data = setting
    chips = 80
    full = evaluate_drift(model, data, times="1s", chips=chips)
    some = evaluate_drift(model, data, times="1s", chips=chips, sampling="stratified")
    assert some.sampling is not None
    assert some.sampling.of == 2000
    assert some.sampling.samples[some.times[0]] < 600
    gap = (some.values - full.values)[:, 0]
    assert gap.std() > 0
    assert abs(gap.mean()) <= 4 * gap.std(ddof=1) / np.sqrt(chips)
    assert some.values.var() < 2 * full.values.var()
    assert some.digital == full.digital
    assert some.run_id != full.run_id
    assert all(row.count == 2000 and row.value == row.sum / 2000 for row in some.rows)
    assert "stratified by digital margin" in " ".join(str(some.summary()).split())
    for ask in (lambda: some.quantile(0.05), lambda: some.yield_at(0.9), lambda: some.lifetime(0.9, 0.05)):
        with pytest.raises(DataError, match="measured on all samples"):
            ask()
    assert some.lifetime(0.5) is not None


def test_each_chip_sees_samples_of_its_own_and_the_same_ones_later(setting: tuple[nn.Module, Data]) -> None:
    model, data = setting
    seen: list[set[float]] = []

    def forward(model: nn.Module, batch: Any) -> torch.Tensor:
        seen[-1].update(batch[0][:, 0].tolist())
        return model(batch[0])

    class Sets(DriftEvaluation):
        def _begin(self, *place: Any) -> Any:
            seen.append(set())
            return super()._begin(*place)

    seen.append(set())
    evaluation = Sets(model, data, Metric.of("accuracy"), forward=forward, sampling="stratified")
    evaluation.run((1.0, 86400.0), 3)
    here = seen[-6:]
    # More or fewer at another time, of the same order.
    assert all(a <= b or b <= a for a, b in ((here[0], here[1]), (here[2], here[3]), (here[4], here[5])))
    # Of 2000 samples so small parts have few in common, where they are drawn anew.
    for one, other in ((0, 2), (0, 4), (2, 4)):
        assert len(here[one] & here[other]) < 0.7 * min(len(here[one]), len(here[other]))


def test_sampled_evaluations_go_on_and_stop_at_a_precision(
    setting: tuple[nn.Module, Data], tmp_path: Path
) -> None:
    model, data = setting
    file = tmp_path / "results.csv"
    settings: dict[str, Any] = {
        "times": "1s",
        "chips": 10,
        "sampling": "stratified",
        "precision": 0.01,
        "max_chips": 60,
    }
    report = evaluate_drift(model, data, out=file, **settings)
    whole = file.read_bytes()
    file.write_bytes(b"".join(whole.splitlines(keepends=True)[:6]))
    again = evaluate_drift(model, data, out=file, **settings)
    assert again.rows == report.rows
    assert again.sampling == report.sampling
    assert file.read_bytes() == whole
    fixed = evaluate_drift(model, data, times="1s", chips=12, sampling="stratified")
    assert fixed.rows[:10] == report.rows[:10]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sampling": "stratifed"}, "unknown sampling 'stratifed'.*stratified"),
        ({"sampling": ["full"]}, r"unknown sampling \['full'\]"),
        ({"sampling": "stratified", "metric": "loss"}, "needs the metric 'accuracy', not 'loss'"),
    ],
)
def test_what_cannot_be_sampled_is_refused(
    setting: tuple[nn.Module, Data], given: dict[str, Any], words: str
) -> None:
    model, data = setting
    with pytest.raises(DataError, match=words):
        evaluate_drift(model, data, times="1s", chips=2, **given)


def test_labels_that_are_not_one_for_each_sample_are_refused() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)

    model = convert_to_analog(Tokens(), "pcm-ibm")
    data = [(torch.randn(5, 7, 4), torch.zeros(5, 7, dtype=torch.int64))]
    with pytest.raises(DataError, match=r"batch 0: sampling='stratified' needs one label and one score"):
        evaluate_drift(model, data, times="1s", chips=2, sampling="stratified")
