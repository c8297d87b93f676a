"""Noise of products in an evaluation: that of each chip, as when it is programmed by hand."""

import pytest
import torch
from torch import nn

import analognoise as an

NOISE = {"out_noise": 0.3, "w_noise": 0.02}
TIMES = (1.0, 86400.0)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 12, generator=generator), torch.randint(3, (16,), generator=generator))
        for _ in range(3)
    ]


def converted(profile="ideal", noise=NOISE, **options):
    changed = an.load_profile(profile).replace({"periphery": noise})
    return an.convert_to_analog(net(), changed, **options)


def values(report):
    return {(row.chip, row.time_s): row.value for row in report.rows}


def by_hand(model, chips, seed=0):
    found = {}
    for chip in range(chips):
        an.program_(model, seed, chip).eval()
        for time in TIMES:
            an.drift_to_(model, time)
            with torch.no_grad():
                losses = [nn.functional.cross_entropy(model(x), y, reduction="sum") for x, y in batches()]
            found[chip, time] = sum(loss.double().item() for loss in losses) / 48
    return found


@pytest.mark.parametrize("profile", ["ideal", "pcm-ibm"])
def test_rows_are_what_each_chip_gives_by_hand_however_many_are_asked_for(profile):
    expected = by_hand(converted(profile), 5)
    assert len(set(expected.values())) == 10
    for chips in (1, 2, 5):
        report = an.evaluate_drift(converted(profile), batches(), times=TIMES, chips=chips, metric="loss")
        for place, value in values(report).items():
            assert value == pytest.approx(expected[place], rel=1e-7, abs=0)
    # the same to the last bit, whatever is computed beside
    five = values(report)
    assert (
        values(an.evaluate_drift(converted(profile), batches(), times=TIMES, chips=2, metric="loss")).items()
        <= five.items()
    )


def test_a_run_that_goes_on_has_the_rows_of_a_fresh_one(tmp_path):
    def rows(chips, out=None):
        report = an.evaluate_drift(converted(), batches(), times=TIMES, chips=chips, metric="loss", out=out)
        return values(report)

    rows(2, tmp_path / "rows.csv")
    assert rows(4, tmp_path / "rows.csv") == rows(4)


def test_chips_differ_in_recalibrated_and_layerwise_evaluations_and_on_the_other_engine():
    pytest.importorskip("aihwkit")
    options = {"times": TIMES, "chips": 3, "metric": "loss"}
    calibration = [x.flip(1) for x, _ in batches()]
    reports = [
        an.evaluate_drift(converted(), batches(), recalibrate="affine", calibration=calibration, **options),
        an.evaluate_drift(converted(noise={"out_noise": 0.3}, engine="aihwkit"), batches(), **options),
    ]
    for report in reports:
        assert len(set(values(report).values())) == 6
    profile = an.load_profile("ideal").replace({"periphery": NOISE})
    parts = an.layer_sensitivity(net(), profile, batches(), **options).rows
    for label in {row.method for row in parts}:
        assert len({row.value for row in parts if row.method == label}) == 6
    own = {(row.chip, row.time_s): row.value for row in parts if row.method == "all"}
    assert own == values(an.evaluate_drift(converted(), batches(), **options))


def test_an_evaluation_leaves_the_programmed_chip_at_its_product():
    model, x = an.program_(converted()).eval(), batches()[0][0]
    first, second = model(x), model(x)
    an.program_(model)
    assert torch.equal(model(x), first)
    an.evaluate_drift(model, batches(), times=TIMES, chips=1, metric="loss")
    assert torch.equal(model(x), second)
