"""The picture of rank correlations: what is drawn, where."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analognoise.report.correlation_plot import _draw, save_correlations


def related(times=(1.0, 2.0)):
    rows = [
        ("dev", time, kind, 9, 0.1 * number, 0.1 * number - 0.2, 0.1 * number + 0.3)
        for time in times
        for number, kind in enumerate(("sam", "trace"))
    ]
    columns = ["profile", "time_s", "kind", "models", "correlation", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def test_marks_and_whiskers_are_the_correlations_and_their_intervals():
    ax = Figure().subplots()
    _draw(ax, related(), "dev", ["sam", "trace"], str, "time")
    assert len(ax.containers) == 2
    for bars, offset in zip(ax.containers, (-0.27, 0.27), strict=True):
        line, _, (whiskers,) = bars.lines
        np.testing.assert_allclose(line.get_xdata(), [0.0, 0.1])
        np.testing.assert_allclose(line.get_ydata(), np.arange(2) + offset)
        ends = np.array([segment[:, 0] for segment in whiskers.get_segments()])
        np.testing.assert_allclose(ends, [[-0.2, 0.3], [-0.1, 0.4]])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["1.0", "2.0"]
    assert ax.get_title(loc="left") == "dev (9 models)"


def test_of_many_times_the_last_are_shown_and_the_same_frame_gives_the_same_file(tmp_path):
    ax = Figure().subplots()
    _draw(ax, related(range(1, 8)), "dev", ["sam", "trace"], str, "rate")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["4.0", "5.0", "6.0", "7.0"]
    files = [save_correlations(tmp_path / name, related(), str, "time", 0.95) for name in ("a.png", "b.png")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_no_correlation_no_picture(tmp_path):
    none = related().assign(correlation=math.nan)
    assert save_correlations(tmp_path / "a.png", none, str, "time", 0.95) is None
    assert not list(tmp_path.iterdir())
