"""layer_sensitivity: the same chips whatever is on tiles, paired intervals, ranking, files, resume."""

from __future__ import annotations

import math
import threading
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor, nn

from analognoise.chip import drift_to_, program_
from analognoise.conversion import analog_layers, convert_to_analog
from analognoise.errors import ConversionError, DataError, ResultsError
from analognoise.evaluation.montecarlo import evaluate_drift
from analognoise.evaluation.row_text import read_results
from analognoise.evaluation.sensitivity import layer_sensitivity
from analognoise.evaluation.sensitivity_report import SensitivityReport
from analognoise.report.sensitivity_plot import save_sensitivity

mpl.use("Agg")
TIMES = (60.0, 3.0e7)
LAYERS = ("conv", "block.first", "block.last")


class Net(nn.Module):
    """Three layers on tiles, one of them normalized, so that they cost different amounts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.block = nn.ModuleDict({"first": nn.Linear(64, 12), "last": nn.Linear(12, 5)})

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).flatten(1)
        return self.block["last"](torch.relu(self.block["first"](x)))


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


@pytest.fixture(scope="module")
def batches() -> list[tuple[Tensor, Tensor]]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        x = torch.randn(80, 1, 4, 4)
        y = net().eval()(x).argmax(1)
    return list(zip(x.split(30), y.split(30), strict=True))


def run(data: Any, model: nn.Module | None = None, **options: Any) -> SensitivityReport:
    settings = {"times": TIMES, "chips": 4, "seed": 7, "metric": "loss"} | options
    profile = settings.pop("profile", "pcm-ibm")
    return layer_sensitivity(model or net(), profile, data, **settings)


@pytest.fixture(scope="module")
def report(batches: list) -> SensitivityReport:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run(batches)
    finally:
        torch.set_num_threads(threads)


def test_a_layer_s_devices_do_not_depend_on_which_others_are_on_tiles() -> None:
    whole = convert_to_analog(net(), "pcm-ibm").eval()
    for name in LAYERS:
        alone = convert_to_analog(net(), "pcm-ibm", filter_fn=lambda _, found, name=name: found == name)
        alone.eval()
        for chip in range(2):
            for model in (whole, alone):
                drift_to_(program_(model, seed=7, chip=chip), "1d")
            (layer,) = analog_layers(alone).values()
            assert torch.equal(layer.weight_now(), analog_layers(whole)[name].weight_now())


def test_rows_are_those_of_evaluate_drift_on_the_subset(report: SensitivityReport, batches: list) -> None:
    options: dict[str, Any] = {"times": TIMES, "chips": 4, "seed": 7, "metric": "loss"}

    def values(chosen: set[str]) -> np.ndarray:
        analog = convert_to_analog(net(), "pcm-ibm", filter_fn=lambda _, name: name in chosen)
        return evaluate_drift(analog, batches, **options).values

    def stored(rows: tuple) -> np.ndarray:
        return np.array([row.value for row in rows]).reshape(4, 2)

    assert tuple(report.alone) == tuple(report.others) == LAYERS
    assert np.array_equal(stored(report.everything), values(set(LAYERS)))
    for name in LAYERS:
        assert np.array_equal(stored(report.alone[name]), values({name}))
        assert np.array_equal(stored(report.others[name]), values(set(LAYERS) - {name}))


def test_intervals_are_student_s_of_differences_paired_by_chip(report: SensitivityReport) -> None:
    frame = report.frame.set_index(["time_s", "layer"])
    factor = stats.t.ppf(0.975, 3) / 2
    for index, time in enumerate(TIMES):
        whole = np.array([row.value for row in report.everything])[index::2]
        for name in LAYERS:
            alone = np.array([row.value for row in report.alone[name]])[index::2] - report.digital
            regained = whole - np.array([row.value for row in report.others[name]])[index::2]
            for column, gaps in (("alone", alone), ("regained", regained)):
                row = frame.loc[(time, name)]
                assert row[column] == pytest.approx(gaps.mean(), abs=1e-12)
                half = factor * gaps.std(ddof=1)
                assert row[f"{column}_low"] == pytest.approx(gaps.mean() - half)
                assert row[f"{column}_high"] == pytest.approx(gaps.mean() + half)
        assert report.total["lost"][index] == pytest.approx((whole - report.digital).mean())


def test_pairing_by_chip_narrows_what_is_regained(report: SensitivityReport) -> None:
    last = report.frame[report.frame["time_s"] == TIMES[1]].set_index("layer")
    whole = np.array([row.value for row in report.everything])[1::2]
    least = last["regained_std"].idxmin()
    others = np.array([row.value for row in report.others[str(least)]])[1::2]
    assert last["regained_std"][least] < 0.5 * math.hypot(whole.std(ddof=1), others.std(ddof=1))


def test_rank_is_by_what_a_layer_costs_alone(report: SensitivityReport) -> None:
    for _, part in report.frame.groupby("time_s"):
        assert list(part["rank"]) == [1, 2, 3]
        assert list(part["alone"]) == sorted(part["alone"], reverse=True)
    assert len(set(report.frame["alone"])) == 6


def test_shares_of_parameters_and_work(report: SensitivityReport) -> None:
    rows = report.frame[report.frame["time_s"] == TIMES[0]].set_index("layer")
    assert dict(rows["parameters"]) == {"conv": 36, "block.first": 768, "block.last": 60}
    total = sum(parameter.numel() for parameter in net().parameters())
    assert rows["parameter_share"]["conv"] == 36 / total
    macs = {"conv": 30 * 36 * 16, "block.first": 30 * 768, "block.last": 30 * 60}
    assert dict(rows["macs"]) == macs
    assert rows["mac_share"]["conv"] == pytest.approx(macs["conv"] / sum(macs.values()))


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_only_the_noisy_layer_costs_anything(batches: list, metric: str) -> None:
    device = {"block.first": "gaussian@30%", "*": "ideal"}
    found = run(batches, profile=device, metric=metric, times=["0s"])
    rows = found.frame.set_index("layer")
    # An untrained network's loss may well become smaller by noise.
    assert abs(rows["alone"]["block.first"]) > 0.01
    for name in ("conv", "block.last"):
        assert abs(rows["alone"][name]) < 1e-5
        assert abs(rows["regained"][name]) < 1e-5
    assert rows["regained"]["block.first"] == pytest.approx(found.total["lost"][0], abs=1e-5)
    assert set(rows["profile"]) == {"gaussian@30%", "ideal"}
    assert "profile" in str(found.summary())


def test_the_only_layer_regains_all_that_is_lost(batches: list) -> None:
    found = run(batches, filter_fn=lambda _, name: name == "conv", metric="accuracy")
    assert list(found.frame["layer"]) == ["conv", "conv"]
    assert list(found.frame["alone"]) == list(found.frame["regained"]) == list(found.total["lost"])


def test_two_layers_are_measured_alone_only(batches: list, tmp_path: Path) -> None:
    pair = ("block.first", "block.last")
    found = run(batches, filter_fn=lambda _, name: name in pair, out=tmp_path / "rows.csv")
    assert list(dict.fromkeys(read_results(tmp_path / "rows.csv")["method"])) == [
        "all",
        *(f"only {name}" for name in pair),
    ]
    for name, other in (pair, pair[::-1]):
        assert {row.method for row in found.others[name]} == {f"all but {name}"}
        for mine, theirs in zip(found.others[name], found.alone[other], strict=True):
            assert (mine.chip, mine.time_s, mine.value) == (theirs.chip, theirs.time_s, theirs.value)
        kept = convert_to_analog(net(), "pcm-ibm", filter_fn=lambda _, layer, one=other: layer == one)
        values = evaluate_drift(kept, batches, TIMES, chips=4, seed=7, metric="loss").values
        assert [row.value for row in found.others[name]] == list(values.ravel())
    again = run(batches, filter_fn=lambda _, name: name in pair, out=tmp_path / "rows.csv")
    assert again.reused == len({row.key for row in again.rows}) == 3 * 4 * 2
    assert again.frame.equals(found.frame)


def test_what_cannot_travel_to_workers_is_named(batches: list) -> None:
    lock = threading.Lock()
    with pytest.raises(DataError, match=r"the metric cannot be sent to workers: TypeError.*lock.*workers=1"):
        run(batches, metric=lambda output, batch: (output.sum(), 1 + 0 * lock.locked()), workers=2)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(DataError, match=r"torch\.autocast does not go along to workers.*workers=1"),
    ):
        run(batches, workers=2)
    with pytest.raises(DataError, match="workers is 0"):
        run(batches, workers=0)


def test_a_model_that_cannot_be_copied_is_no_case_for_inplace(batches: list) -> None:
    model = net()
    model.lock = (value for value in ())
    with pytest.raises(ConversionError, match=r"Net cannot be copied .*keep such attributes out") as caught:
        run(batches, model)
    assert "inplace" not in str(caught.value)


def test_the_model_is_left_alone_and_may_be_a_layer(batches: list) -> None:
    model = net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    run(batches, model, chips=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert classes == [type(module) for module in model.modules()]
    assert all(module.training for module in model.modules())
    flat = [(x.flatten(1), y) for x, y in batches]
    root = run(flat, nn.Linear(16, 5), chips=2)
    assert list(root.frame["layer"]) == ["(the model)", "(the model)"]


class Bypassed(Net):
    """Uses one layer's weight without calling it."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).flatten(1) @ self.block["first"].weight.T
        return self.block["last"](torch.relu(x))


def test_a_layer_that_is_not_read_is_named_once(batches: list) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = run(batches, Bypassed(), chips=2)
    (warning,) = caught
    assert "'block.first'" in str(warning.message)
    assert not found.frame.set_index("layer")["read"]["block.first"].any()
    last = found.frame.groupby("time_s")["rank"].max()
    unread = found.frame[found.frame["layer"] == "block.first"].set_index("time_s")["rank"]
    assert last.equals(unread)
    ax = found.plot(Figure().subplots())
    (mark,) = [text for text in ax.texts if text.get_gid() == "not read"]
    assert round(mark.get_position()[1]) == len(found.alone) - 1
    text = str(found.summary())
    assert "NOT READ: the tiles of block.first" in text
    assert text.count("not read") == 4


def test_a_killed_run_goes_on_and_gives_the_same_file(
    report: SensitivityReport, batches: list, tmp_path: Path
) -> None:
    file = tmp_path / "rows.csv"
    first = run(batches, out=file)
    assert first.frame.equals(report.frame)
    content = file.read_bytes()
    labels = ["all", *(f"{kind} {name}" for name in LAYERS for kind in ("only", "all but"))]
    assert list(dict.fromkeys(read_results(file)["method"])) == labels
    lines = content.splitlines(keepends=True)
    for kept in (1, 9, 20, len(lines)):
        file.write_bytes(b"".join(lines[:kept]))
        again = run(batches, out=file)
        assert again.reused == kept - 1
        assert file.read_bytes() == content
        assert again.frame.equals(report.frame)
    more = run(batches, out=file, chips=5)
    assert (more.chips, more.reused) == (5, 7 * 8)
    assert more.rows[:2] == report.rows[:2]


def test_a_file_of_another_run_is_left_alone(batches: list, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    run(batches, out=file, chips=1)
    before = file.read_bytes()
    with pytest.raises(ResultsError, match=r"rows\.csv holds another run \(profile 'pcm-ibm'"):
        run(batches, out=file, chips=1, seed=8)
    assert file.read_bytes() == before


def test_summary_says_what_it_shows(report: SensitivityReport, batches: list) -> None:
    text = str(report.summary())
    assert "on pcm-ibm after 1 min" in text
    assert "lost, alone" in text
    assert "regained," in text
    assert "95 % Student-t interval over 4 chips" in text
    first = report.frame.iloc[0]
    assert f"{first['alone']:.4f}" in text or f"{first['alone']:.3f}" in text
    assert "norm (8 parameters)" in text
    assert "are on tiles: 3 layers" in text
    markdown = report.summary().markdown()
    assert markdown.count("\n| layer") == 2
    assert markdown.startswith("## What each layer costs on pcm-ibm after 1 min: loss")
    one = run(batches, chips=1)
    assert "too few for an interval" in str(one.summary())
    assert "±" not in str(one.summary())


def test_csv_holds_the_frame_and_is_not_overwritten_unasked(
    report: SensitivityReport, tmp_path: Path
) -> None:
    file = report.to_csv(tmp_path / "layers.csv")
    pd.testing.assert_frame_equal(pd.read_csv(file), report.frame)
    report.to_csv(file)
    file.write_text("mine")
    with pytest.raises(ResultsError, match="overwrite=True"):
        report.to_csv(file)
    assert report.to_csv(file, overwrite=True).read_text().startswith("time_s,rank,layer")


def test_bars_are_the_numbers(report: SensitivityReport) -> None:
    figure = mpl.figure.Figure()
    ax = report.plot(figure.subplots())
    last = report.frame[report.frame["time_s"] == TIMES[1]]
    for name in ("alone", "regained"):
        widths = [bar.get_width() for bar in ax.patches if bar.get_gid() == name]
        assert widths == pytest.approx(list(last[name]))
    (line,) = [line for line in ax.lines if line.get_gid() == "all"]
    assert line.get_xdata()[0] == pytest.approx(report.total["lost"][1])
    assert [tick.get_text().split("\n")[0] for tick in ax.get_yticklabels()] == list(last["layer"])
    first = report.plot(figure.subplots(), time="60s")
    assert "1 min" in first.get_title(loc="left")
    with pytest.raises(DataError, match="no results at the drift time 1 h"):
        report.plot(time="1h")


def test_picture_is_the_same_each_time_and_long_names_fit(report: SensitivityReport, tmp_path: Path) -> None:
    first = save_sensitivity(tmp_path / "a.png", report.frame, report.facts).read_bytes()
    assert first[:4] == b"\x89PNG"
    assert save_sensitivity(tmp_path / "b.png", report.frame, report.facts).read_bytes() == first


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"chips": 0}, DataError, "chips is 0"),
        ({"confidence": 2}, DataError, "confidence is 2"),
        ({"metric": "accurracy"}, DataError, "did you mean 'accuracy'"),
        ({"profile": {"blokc.*": "ideal"}}, ConversionError, "did you mean 'block"),
        ({"filter_fn": lambda *_: False}, ConversionError, "filter_fn chose none"),
    ],
)
def test_bad_input_writes_nothing(
    batches: list, tmp_path: Path, changes: dict, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        run(batches, out=tmp_path / "rows.csv", **changes)
    assert not list(tmp_path.iterdir())


def test_a_model_on_tiles_already_is_refused(batches: list) -> None:
    with pytest.raises(ConversionError, match="on tiles already"):
        run(batches, convert_to_analog(net(), "ideal"))
