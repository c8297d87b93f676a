"""A model measured under noise on its computations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

import analognoise as an
from analognoise.computing.levels import LEVELS, fluctuating_sigma, noise_levels
from analognoise.errors import DataError, NoiseError, NotProgrammedError, QuantizationError, ResultsError
from analognoise.evaluation.noise_rows import NoiseRow
from analognoise.evaluation.statistics import mean_interval
from analognoise.evaluation.store import ResultStore
from analognoise.seeds import Stream

SIGMAS = (0.1, 1.0, 10.0)


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
        x, y = batch(0)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] * 2 > x[:, 1]).long()


DATA = [batch(1), batch(2)]


def measured(**options: Any) -> an.NoiseReport:
    return an.evaluate_noise(net(), DATA, **{"sigmas": SIGMAS, "repeats": 4} | options)


def test_noisy_inputs_never_decide_about_the_ranges_of_quantizers() -> None:
    fresh = an.quantize(net(), 4, activation_bits=4)
    with pytest.raises(
        QuantizationError, match=r"cannot evaluate noise: .* '0', '2', and none came yet: run"
    ):
        an.evaluate_noise(fresh, DATA, sigmas=SIGMAS, repeats=1)
    assert fresh[0].awaits_inputs
    with torch.no_grad():
        fresh(DATA[0][0])
    report = an.evaluate_noise(fresh, DATA, sigmas=[1e-9], repeats=1)
    assert report.rows[0].value == report.digital


def test_rows_are_what_the_context_gives() -> None:
    model, report = net(), measured()
    assert report.digital > 0.9
    for repeat, sigma, row in zip([0, 0, 0, 1], [*SIGMAS, 0.1], report.rows, strict=False):
        hits = 0
        with torch.no_grad(), an.computing_noise(model, sigma, repeat=repeat):
            for x, y in DATA:
                hits += int((model(x).argmax(1) == y).sum())
        assert (row.chip, row.sigma, row.value) == (repeat, sigma, hits / 128)
        assert row.digital == report.digital
    assert report.values.mean(axis=0)[-1] < 0.75 < report.values.mean(axis=0)[0]
    assert report.chance == 0.5


def test_report_sums_up_by_repeats() -> None:
    report = measured(per_layer=True)
    frame = report.summary().frame
    assert list(frame["noise"].unique()) == ["additive", "additive on 0", "additive on 1", "additive on 2"]
    first = mean_interval(report.values[:, 0])
    assert tuple(frame.loc[0, ["mean", "low", "high"]]) == (first.mean, first.low, first.high)
    text = str(report.summary())
    assert "Midpoint noise level (95 % interval over repeats)" in text
    assert "2 alone: " in text
    ax = report.plot()
    lines = {line.get_gid(): line for line in ax.lines}
    assert np.array_equal(lines["line:additive"].get_ydata(), 100 * report.values.mean(axis=0))
    assert ax.get_xscale() == "log"


def test_a_layer_alone_is_the_walk() -> None:
    report, model = measured(per_layer=True, repeats=1), net()
    assert list(report.by_layer) == ["0", "1", "2"]
    for name, noise in an.walking_noise(model, DATA[0], 1.0):
        with torch.no_grad(), noise:
            hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in DATA)
        assert report.by_layer[name][1].value == hits / 128


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole.csv", tmp_path / "part.csv"
    report = measured(per_layer=True, out=whole)
    part.write_bytes(whole.read_bytes()[:900])
    with pytest.warns(UserWarning, match="cut short"):
        again = measured(per_layer=True, out=part)
    assert 0 < again.reused < len(again.frame)
    assert part.read_bytes() == whole.read_bytes()
    assert again.rows == report.rows
    assert measured(per_layer=True, out=whole).reused == 48
    assert report.to_csv(tmp_path / "copy.csv").read_bytes() == whole.read_bytes()
    more = measured(repeats=5, out=whole)  # other extents go on, other questions do not
    assert more.reused == 12
    for options in ({"seed": 1}, {"kind": "multiplicative"}, {"layers": "linear"}, {"fluctuating": True}):
        with pytest.raises(ResultsError, match="holds another run"):
            measured(out=whole, **options)


def test_a_file_is_held_before_the_work_and_cleaned_without_any(tmp_path: Path) -> None:
    path, seen = tmp_path / "noise.csv", []

    def forward(model: nn.Module, given: Any) -> torch.Tensor:
        seen.append(given)
        return model(given[0])

    with ResultStore(path, kind=NoiseRow) as other:
        other.claim()
        with pytest.raises(ResultsError, match="another process is writing"):
            measured(out=path, forward=forward)
    assert len(seen) == len(DATA)  # without noise
    measured(out=path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"half")
    with pytest.warns(UserWarning, match="cut short"):
        assert measured(out=path).reused == 12
    assert path.read_bytes() == whole


def test_repeats_and_levels_do_not_change_each_other() -> None:
    few, many = measured(repeats=2), measured(repeats=4, sigmas=(0.01, *SIGMAS))
    assert np.array_equal(few.values, many.values[:2, 1:])


def test_model_is_left_as_found() -> None:
    model = nn.Sequential(net(), nn.BatchNorm1d(2), nn.Dropout())
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    an.evaluate_noise(model, DATA, SIGMAS, repeats=2, per_layer=True)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert torch.equal(generator, torch.get_rng_state())


def test_a_converted_model_is_measured_on_its_chip() -> None:
    analog = an.convert_to_analog(net(), "gaussian@10%")
    with pytest.raises(NotProgrammedError):
        an.evaluate_noise(analog, DATA, SIGMAS, repeats=2)
    an.program_(analog, seed=0)
    first = an.evaluate_noise(analog, DATA, SIGMAS, repeats=2)
    an.program_(analog, seed=0, chip=1)
    other = an.evaluate_noise(analog, DATA, SIGMAS, repeats=2)
    assert first.run_id != other.run_id
    ideal = an.program_(an.convert_to_analog(net(), "ideal"))
    plain = measured(repeats=2)
    assert np.array_equal(an.evaluate_noise(ideal, DATA, SIGMAS, repeats=2).values, plain.values)


def test_the_noise_of_a_chip_s_products_is_another_one_in_each_repeat_whatever_was_computed_before(
    tmp_path: Path,
) -> None:
    profile = an.load_profile("ideal").replace({"periphery": {"out_noise": 0.5}})
    analog = an.program_(an.convert_to_analog(net(), profile)).eval()
    sigmas = (1e-9, 2e-9)  # too little to be seen beside that of the products
    whole = an.evaluate_noise(analog, DATA, sigmas, repeats=6, metric="loss", out=tmp_path / "rows.csv")
    values = whole.values
    assert np.allclose(values[:, 0], values[:, 1], rtol=1e-6)
    assert len(set(values[:, 0].round(6))) == 6
    assert whole.digital not in values
    lines = (tmp_path / "rows.csv").read_bytes().splitlines(keepends=True)
    (tmp_path / "rows.csv").write_bytes(b"".join(lines[:7]))
    with torch.no_grad():
        analog(DATA[0][0])
    products = [layer.analog.products for layer in (analog[0], analog[2])]
    rest = an.evaluate_noise(analog, DATA, sigmas, repeats=6, metric="loss", out=tmp_path / "rows.csv")
    assert (rest.rows, rest.reused) == (whole.rows, 6)
    assert (tmp_path / "rows.csv").read_bytes() == b"".join(lines)
    assert [layer.analog.products for layer in (analog[0], analog[2])] == products == [1, 1]
    # Devices without faults: another chip, or the same later, has these weights and other noise.
    found = [whole.run_id]
    for seed, time in ((1, None), (0, 3600.0)):
        an.program_(analog, seed=seed)
        if time is not None:
            an.drift_to_(analog, time)
        other = an.evaluate_noise(analog, DATA, sigmas[:1], repeats=1, metric="loss")
        assert other.rows[0].value not in values
        found.append(other.run_id)
    assert len(set(found)) == 3
    an.program_(analog, seed=0)
    assert an.evaluate_noise(analog, DATA, sigmas, repeats=6, metric="loss").rows == whole.rows


def test_fluctuating_levels_follow_their_law() -> None:
    n = 4000
    drawn = np.array([fluctuating_sigma(2.0, 0.45, 0.66, Stream(0, "x", chip=c)) for c in range(n)])
    # |N(0, 1)| has the mean √(2/π) and the variance 1 − 2/π.
    assert abs(drawn.mean() - 0.9 - 0.66 * math.sqrt(2 / math.pi)) < 5 * 0.66 * math.sqrt(
        (1 - 2 / math.pi) / n
    )
    assert stats.kstest((drawn - 0.9) / 0.66, stats.halfnorm.cdf).pvalue > 1e-4
    report = measured(fluctuating=(0.0, 1.0), sigmas=(0.1, 1.0))
    assert np.array_equal(report.values[:, 0], report.values[:, 1])  # with alpha = 0 the level says nothing
    assert report.rows[0].noise == "additive (fluctuating)"
    assert np.array_equal(measured(fluctuating=(1.0, 0.0)).values, measured().values)


def test_levels() -> None:
    assert np.allclose(noise_levels(LEVELS), np.geomspace(1e-2, 1e2, 17), rtol=1e-5)
    assert noise_levels("0.1, 1,10") == SIGMAS == noise_levels(np.array(SIGMAS))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sigmas": []}, "sigmas is empty"),
        ({"sigmas": "1:0.1:5"}, "must go upwards"),
        ({"sigmas": "0.1:1"}, "FROM:TO:COUNT"),
        ({"sigmas": "0.1:1:1"}, "two levels or more"),
        ({"sigmas": "0:1:5"}, "above 0"),
        ({"sigmas": [1, 0.5]}, "must grow"),
        ({"sigmas": [0.1, math.nan]}, "holds nan"),
        ({"sigmas": [-1.0]}, "holds -1.0"),
        ({"sigmas": "a,b"}, "holds 'a'"),
        ({"kind": "mixd"}, "did you mean 'mixed'"),
        ({"layers": "conv"}, "no layer of the kind 'conv'"),
        ({"repeats": 0}, "repeats is 0: give a whole number, at least 1"),
        ({"fluctuating": 0.5}, r"pair \(alpha, theta\)"),
        ({"fluctuating": (0.5, -1)}, "theta is -1"),
    ],
)
def test_wrong_input_is_named(options: dict, words: str) -> None:
    with pytest.raises((NoiseError, DataError), match=words):
        measured(**options)


def test_layers_that_are_not_called_are_named() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.spare = net(), nn.Linear(1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.main(x)

    with pytest.warns(UserWarning, match="no forward calls 'spare'"):
        report = an.evaluate_noise(Beside(), DATA, SIGMAS, repeats=1)
    assert report.not_called == ("spare",)
    with pytest.raises(DataError, match="calls any of the layers 'spare'"):
        an.evaluate_noise(Beside(), DATA, SIGMAS, layers="spare", repeats=1)


def test_midpoints_of_other_metrics_are_refused() -> None:
    with pytest.raises(DataError, match="makes smaller"):
        measured(metric="loss").midpoint()
    with pytest.raises(DataError, match="say per_layer=True"):
        measured().midpoint("0")
    assert isinstance(measured().frame, pd.DataFrame)
