"""The report of an evaluation: summary, lifetime, file and picture."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from rich.console import Console
from torch import Tensor

from analognoise.errors import DataError, ResultsError
from analognoise.evaluation.row_text import read_results
from tests.evaluation.small_net import make, run


@pytest.mark.parametrize("width", [100, 80, 60, 50, 46])
def test_figures_of_the_summary_stay_whole_on_a_narrow_terminal(batches: list, width: int) -> None:
    summary = run(make(), batches, times=["1s", "1mo"]).summary()
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(summary)
    text = console.file.getvalue().partition("Student-t")[0]
    for row in summary.frame.to_dict("records"):
        for column in ("mean", "low", "high", "std", "worst", "drop"):
            assert re.search(rf"(^|\s){100 * row[column]:.2f}(\s|$)", text, re.MULTILINE), column
    assert max(map(len, text.splitlines())) <= width
    assert len(re.findall(rf"\s{summary.frame['n'][0]} *$", text, re.MULTILINE)) == 2


def test_summary_by_time(batches: list) -> None:
    report = run(make(), batches)
    frame = report.summary().frame
    assert frame["mean"].to_numpy() == pytest.approx(report.values.mean(axis=0))
    assert frame["std"].to_numpy() == pytest.approx(report.values.std(axis=0, ddof=1))
    assert frame["worst"].to_numpy() == pytest.approx(report.values.min(axis=0))
    assert list(frame["n"]) == [4, 4, 4]
    assert set(frame["unit"]) == {"chip"}
    text = str(report.summary())
    for word in (
        "pcm-ibm",
        "digital 90.00",
        "worst chip",
        "0 s",
        "1 min",
        f"{100 * report.values[:, 2].mean():.2f}",
    ):
        assert word in text
    assert "Drift compensation: global" in text
    assert "conv.bias" in text
    assert repr(report.summary()) == text


def test_one_chip_says_that_it_has_no_interval(batches: list) -> None:
    report = run(make(), batches, chips=1)
    assert "One chip: no interval" in str(report.summary())
    assert "no interval" in str(report.lifetime(0.5)) or report.lifetime(0.5).seconds is None


def test_single_chips_of_a_loss_count_the_largest_as_worst(batches: list) -> None:
    report = run(make(), batches, times=["1s", "1mo"], chips=20, metric="loss")
    for time in (None, "1s"):
        values = sorted(report.at(time))
        assert report.quantile(0.1, time).value == values[-2]
        assert report.yield_at(values[4], time).kept == 5
    with pytest.raises(DataError, match="time 1 h was not measured: the report has 1 s, 1 month"):
        report.yield_at(0.5, "1h")


def test_lifetime_of_a_report(batches: list) -> None:
    report = run(make(compensation="none"), batches, times=[1.0, 1e3, 1e6, 1e9], chips=6)
    means = report.values.mean(axis=0)
    assert means[0] > means[-1]
    level = (means[0] + means[-1]) / 2
    absolute = report.lifetime(level, relative=False)
    assert 1.0 < absolute.seconds < 1e9
    assert report.lifetime(level / report.digital).seconds == pytest.approx(absolute.seconds, rel=1e-6)
    assert report.lifetime(0.01).text.startswith("not within")


def test_csv_is_not_overwritten_unasked(batches: list, tmp_path: Path) -> None:
    report, path = run(make(), batches), tmp_path / "rows.csv"
    path.write_text("mine")
    with pytest.raises(ResultsError, match="overwrite=True"):
        report.to_csv(path)
    assert path.read_text() == "mine"
    report.to_csv(path, overwrite=True)
    assert read_results(path).equals(report.frame)
    report.to_csv(path)  # the same content is no overwriting
    with pytest.raises(ResultsError, match="cannot write"):
        report.to_csv(tmp_path / "nowhere" / "rows.csv")


def test_plot_draws_on_the_axes_given(batches: list) -> None:
    from matplotlib.figure import Figure

    backend = mpl.get_backend()
    ax = Figure().add_subplot()
    assert run(make(), batches).plot(ax) is ax
    assert ax.lines or ax.collections
    assert mpl.get_backend() == backend


def test_own_metric_that_is_better_when_smaller(batches: list) -> None:
    def errors(output: Tensor, batch: Any) -> tuple[Tensor, int]:
        return (output.argmax(1) != batch[1]).sum(), len(batch[1])

    up, down = (run(make(), batches, metric=errors, higher_is_better=better) for better in (None, False))
    assert up.higher_is_better
    assert up.summary().frame["worst"].to_numpy() == pytest.approx(up.values.min(axis=0))
    assert down.summary().frame["worst"].to_numpy() == pytest.approx(up.values.max(axis=0))
    assert "errors counts as better when larger" in str(up.summary())
