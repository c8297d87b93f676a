from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import FillBetweenPolyCollection, LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation

from analognoise.errors import ResultsError
from analognoise.report import plot_over_level, plot_over_time, save_figure
from analognoise.report.labels import apart
from analognoise.report.style import PALETTE, styles

Frames = Callable[..., pd.DataFrame]
TIMES = [1.0, 3600.0, 86400.0, 2592000.0, 31536000.0]
METHODS = ["sgd", "clip", "noise", "noise+clip", "profile-noise", "rwp", "sam", "sam+clip", "asam"]
METHODS += ["samson-inf", "samson-inf+clip", "samson-2"]


def new_axes(width: float = 7.6, height: float = 4.9) -> Axes:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.subplots()


def draw(ax: Axes) -> None:
    ax.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]


def line(ax: Axes, name: str) -> Line2D:
    return next(artist for artist in ax.lines if artist.get_gid() == name)


def collection(ax: Axes, name: str) -> object:
    return next(artist for artist in ax.collections if artist.get_gid() == name)


def end_labels(ax: Axes) -> list[Annotation]:
    return [t for t in ax.texts if isinstance(t, Annotation) and t.get_gid() == "end-label"]


def facts(ax: Axes) -> str:
    return next(text.get_text() for text in ax.texts if text.get_gid() == "facts")


def tick_texts(ax: Axes) -> list[str]:
    draw(ax)
    return [text.get_text() for text in ax.get_xticklabels()]


def many(summary: Frames, seed: int = 1) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    drop = rng.uniform(0.005, 0.03, len(METHODS))
    return summary({m: 0.95 - d * np.arange(5) for m, d in zip(METHODS, drop, strict=True)})


def test_ticks_stand_at_the_evaluated_times_only(two: pd.DataFrame) -> None:
    ax = plot_over_time(two, new_axes())
    assert ax.get_xscale() == "log"
    assert tick_texts(ax) == ["digital", "1 s", "1 h", "1 day", "1 month", "1 year"]
    np.testing.assert_allclose(ax.get_xticks()[1:], TIMES, rtol=1e-12)
    assert len(ax.get_xticks(minor=True)) == 0
    low, high = ax.get_xlim()
    assert low < ax.get_xticks()[0] < 1
    assert high > TIMES[-1]


def test_lines_and_bands_are_the_frame_s_numbers_in_percent(two: pd.DataFrame) -> None:
    ax = plot_over_time(two, new_axes())
    for method, rows in two.groupby("method"):
        mean, low, high = (100 * rows[name].to_numpy() for name in ("mean", "low", "high"))
        drawn = line(ax, f"line:{method}")
        np.testing.assert_allclose(drawn.get_ydata(), mean, rtol=1e-12)
        band = collection(ax, f"band:{method}")
        assert isinstance(band, FillBetweenPolyCollection)
        for x, bottom, top in zip(drawn.get_xdata(), low, high, strict=True):
            edge = band.get_paths()[0].vertices
            ys = edge[np.isclose(edge[:, 0], x, rtol=1e-9), 1]
            assert (ys.min(), ys.max()) == pytest.approx((bottom, top), rel=1e-12)
        bars = collection(ax, f"interval:{method}")
        assert isinstance(bars, LineCollection)
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_allclose(ends, np.column_stack([low, high]), rtol=1e-12)


def test_lines_are_moved_sideways_around_the_times(summary: Frames) -> None:
    ax = plot_over_time(many(summary), new_axes())
    places = np.log10([line(ax, f"line:{method}").get_xdata() for method in METHODS])
    np.testing.assert_allclose(places.mean(axis=0), np.log10(TIMES), atol=1e-9)
    assert (np.diff(places, axis=0) > 0).all()
    reach = np.ptp(places, axis=0)
    assert (reach < 0.4 * np.diff(np.log10(TIMES)).min()).all()


def test_digital_accuracy_stands_left_of_the_first_time(two: pd.DataFrame) -> None:
    ax = plot_over_time(two, new_axes())
    for method in ("sgd", "sam+clip"):
        marker = line(ax, f"digital:{method}")
        assert list(marker.get_ydata()) == [96.0]
        assert ax.get_xlim()[0] < marker.get_xdata()[0] < 0.9
        assert marker.get_linestyle() == "None"
        bar = collection(ax, f"digital-interval:{method}")
        assert isinstance(bar, LineCollection)
        np.testing.assert_allclose(bar.get_segments()[0][:, 1], [95.4, 96.6])
    assert ax.get_ylim()[1] > 96


def test_time_zero_has_a_place_between_digital_and_the_first_time(summary: Frames) -> None:
    frame = summary({"sgd": [0.95, 0.94, 0.9]}, [0.0, 1.0, 86400.0])
    ax = plot_over_time(frame, new_axes())
    assert tick_texts(ax) == ["digital", "0 s", "1 s", "1 day"]
    ticks = ax.get_xticks()
    assert (np.diff(ticks) > 0).all()
    np.testing.assert_allclose(line(ax, "line:sgd").get_xdata(), ticks[1:])


@pytest.mark.parametrize(
    ("time_s", "text"), [(0.0, "programmed"), (math.nan, "programmed"), (86400.0, "1 day")]
)
def test_a_single_time_is_drawn(summary: Frames, time_s: float, text: str) -> None:
    ax = plot_over_time(summary({"sgd": [0.95], "sam": [0.94]}, [time_s], profile="gaussian"), new_axes())
    assert tick_texts(ax) == ["digital", text]
    assert list(line(ax, "line:sgd").get_ydata()) == [95.0]
    assert not [artist for artist in ax.collections if str(artist.get_gid()).startswith("band")]
    assert collection(ax, "interval:sgd") is not None


def test_noise_levels_have_a_linear_axis_with_digital_at_zero(levels: Frames) -> None:
    frame = levels({"sgd": [0.9, 0.95, 0.8], "sam": [0.91, 0.94, 0.82]}, [10, 2.5, 20])
    ax = plot_over_level(frame, new_axes())
    assert ax.get_xscale() == "linear"
    assert tick_texts(ax) == ["digital", "2.5 %", "10 %", "20 %"]
    assert list(ax.get_xticks()) == [0, 2.5, 10, 20]
    assert list(line(ax, "line:sgd").get_ydata()) == [95.0, 90.0, 80.0]
    assert "noise" in ax.get_xlabel()
    with_zero = levels({"sgd": [0.96, 0.95, 0.8]}, [0, 2.5, 20])
    assert plot_over_level(with_zero, new_axes()).get_xticks()[0] < 0


def test_losses_are_not_in_percent(summary: Frames) -> None:
    frame = summary({"sgd": [0.3, 0.5]}, [1.0, 60.0], metric="loss", digital=0.25, lower_is_better=True)
    ax = plot_over_time(frame, new_axes())
    assert list(line(ax, "line:sgd").get_ydata()) == [0.3, 0.5]
    assert ax.get_ylabel() == "loss"
    assert ax.get_title(loc="left") == "Loss on pcm-ibm over drift time"


def test_the_picture_says_what_it_shows(two: pd.DataFrame, levels: Frames) -> None:
    ax = plot_over_time(two, new_axes())
    assert ax.get_title(loc="left") == "Accuracy on pcm-ibm over drift time"
    assert ax.get_ylabel() == "accuracy (%)"
    text = facts(ax).replace("\u00a0", " ").replace("\n", " ")
    assert "mean and 95 % interval over 3 training seeds, 25 chips each" in text
    assert "test set's standard error ≤ 1.2, not included" in text
    assert "★ not significantly worse than the best (bold) at the right end" in text
    ax = plot_over_time(two, new_axes(), "Mine", confidence=0.9)
    assert ax.get_title(loc="left") == "Mine"
    assert "90 % interval" in facts(ax).replace("\u00a0", " ")
    ax = plot_over_level(levels({"sgd": [0.9, 0.8]}, [5, 10]), new_axes())
    assert ax.get_title(loc="left") == "Accuracy on gaussian over noise level"
    assert "★" not in facts(ax)


def test_no_interval_no_band(summary: Frames) -> None:
    frame = summary({"sgd": [0.95, 0.9]}, [1.0, 60.0], half=math.nan, unit="chip", n=1)
    ax = plot_over_time(frame, new_axes())
    names = [str(artist.get_gid()) for artist in ax.collections]
    assert not [name for name in names if name.startswith(("band", "interval"))]
    assert facts(ax).startswith("mean over 1 chip")
    draw(ax)


def test_labels_are_in_the_order_of_the_line_ends_and_do_not_overlap(summary: Frames) -> None:
    ax = plot_over_time(many(summary), new_axes(5.5, 3.2))
    draw(ax)
    draw(ax)
    found = end_labels(ax)
    renderer = ax.get_figure(root=True)._get_renderer()  # type: ignore[union-attr]
    extents = {t.get_text().split()[1]: super(Annotation, t).get_window_extent(renderer) for t in found}
    by_height = sorted(extents, key=lambda method: extents[method].y0)
    ends = {method: float(line(ax, f"line:{method}").get_ydata()[-1]) for method in METHODS}
    assert by_height == sorted(METHODS, key=lambda method: ends[method])
    for lower, upper in itertools.pairwise(by_height):
        centre = (extents[upper].y0 + extents[upper].y1 - extents[lower].y0 - extents[lower].y1) / 2
        assert centre > 0.99 * found[0].get_fontsize() * ax.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    right = ax.get_figure(root=True).bbox.x1  # type: ignore[union-attr]
    assert all(box.x1 <= right + 1 for box in extents.values())
    assert all(box.x0 >= ax.get_window_extent().x1 for box in extents.values())


def test_labels_hold_final_value_and_mark_and_the_best_is_bold(two: pd.DataFrame) -> None:
    two.loc[(two["method"] == "sgd") & (two["time_s"] == TIMES[-1]), "marked"] = False
    ax = plot_over_time(two, new_axes())
    texts = {label.get_text(): label.get_fontweight() for label in end_labels(ax)}
    assert texts == {"80.0  sgd": "normal", "90.0  sam+clip ★": "bold"}
    best, other = line(ax, "line:sam+clip"), line(ax, "line:sgd")
    assert best.get_linewidth() > other.get_linewidth()
    assert best.get_zorder() > other.get_zorder()


def test_apart_moves_as_little_as_possible() -> None:
    np.testing.assert_allclose(apart(np.array([0.2, 0.8]), 0.1), [0.2, 0.8])
    np.testing.assert_allclose(apart(np.array([0.5, 0.5]), 0.1), [0.45, 0.55])
    np.testing.assert_allclose(apart(np.array([0.9, 0.1, 0.88]), 0.1), [0.94, 0.1, 0.84])
    np.testing.assert_allclose(apart(np.array([1.2, 0.99]), 0.1), [1.0, 0.9])
    np.testing.assert_allclose(apart(np.array([0.0, 0.0, 0.0]), 0.6), [-0.1, 0.5, 1.1])
    rng = np.random.default_rng(0)
    for _ in range(20):
        placed = np.sort(apart(rng.uniform(0, 1, 12), 0.06))
        assert np.diff(placed).min() > 0.06 - 1e-9
        assert placed[0] > -1e-9
        assert placed[-1] < 1 + 1e-9


def test_many_times_keep_their_ticks_and_only_labels_that_fit(summary: Frames) -> None:
    times = [10 ** (k / 4) for k in range(31)]
    ax = plot_over_time(summary({"sgd": np.linspace(0.95, 0.8, 31)}, times), new_axes())
    texts = tick_texts(ax)
    assert len(ax.get_xticks()) == 32
    assert texts[0] == "digital"
    assert texts[-1] == "1 year"
    shown = [t for t in ax.get_xticklabels() if t.get_text()]
    assert 8 < len(shown) < 32
    places = [t.get_position()[0] for t in shown]
    pixels = ax.transData.transform([(x, ax.get_ylim()[0]) for x in places])[:, 0]
    assert np.diff(pixels).min() >= shown[0].get_fontsize() * ax.get_figure(root=True).dpi / 72  # type: ignore[union-attr]


def test_usual_tick_labels_do_not_overlap(two: pd.DataFrame, tmp_path: Path) -> None:
    ax = plot_over_time(two, new_axes())
    draw(ax)
    renderer = ax.get_figure(root=True)._get_renderer()  # type: ignore[union-attr]
    boxes = [text.get_window_extent(renderer) for text in ax.get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert {text.get_rotation() for text in ax.get_xticklabels()} == {0.0}


def test_a_method_far_below_is_named_and_left_out(summary: Frames) -> None:
    means = {"sgd": [0.95, 0.9], "sam": [0.96, 0.91], "rwp": [0.113, 0.10], "asam": [0.94, 0.92]}
    few = plot_over_time(summary(means, [1.0, 60.0]), new_axes())
    assert few.get_ylim()[0] < 10  # few methods have room
    assert "outside" not in facts(few)
    means["clip"] = [0.95, 0.91]
    ax = plot_over_time(summary(means, [1.0, 60.0]), new_axes())
    assert "outside the picture: rwp (10.0–11.3)" in facts(ax)
    assert ax.get_ylim()[0] > 80
    assert {label.get_text().split()[1] for label in end_labels(ax)} == {"sgd", "sam", "asam", "clip"}
    # a method that falls from among the others stays, whole
    means["rwp"] = [0.95, 0.10]
    ax = plot_over_time(summary(means, [1.0, 60.0]), new_axes())
    assert "outside" not in facts(ax)
    assert ax.get_ylim()[0] < 10


def test_failed_methods_are_named(two: pd.DataFrame) -> None:
    two.loc[two["method"] == "sgd", ["mean", "low", "high"]] = math.nan
    ax = plot_over_time(two, new_axes())
    assert "failed: sgd" in facts(ax)
    assert [label.get_text() for label in end_labels(ax)] == ["90.0  sam+clip ★"]
    two["mean"] = math.nan
    assert "failed: sgd, sam+clip" in facts(plot_over_time(two, new_axes()))


def test_wide_intervals_of_many_methods_do_not_squeeze_the_lines(summary: Frames) -> None:
    means = {
        name: [0.95 - i / 100, 0.93 - i / 100] for i, name in enumerate(["sgd", "sam", "asam", "rwp", "clip"])
    }
    ax = plot_over_time(summary(means, [1.0, 60.0], half=0.4), new_axes())
    assert ax.get_ylim()[0] > 70
    assert "some intervals reach beyond the picture" in facts(ax)
    few = {name: means[name] for name in ("sgd", "sam")}
    ax = plot_over_time(summary(few, [1.0, 60.0], half=0.4), new_axes())
    assert ax.get_ylim()[0] < 55
    assert "beyond" not in facts(ax)


def test_drawing_on_axes_takes_one_profile(two: pd.DataFrame, summary: Frames, levels: Frames) -> None:
    both = pd.concat([two, summary({"sgd": [0.9]}, [1.0], profile="mine")])
    with pytest.raises(ResultsError, match=r"the summary has 2 \(pcm-ibm, mine\)"):
        plot_over_time(both, new_axes())
    noise = levels({"sgd": [0.9, 0.8]}, [5, 10])
    with pytest.raises(ResultsError, match="has only noise levels"):
        plot_over_time(noise, new_axes())
    with pytest.raises(ResultsError, match=r"found pcm-ibm$"):
        plot_over_level(two, new_axes())
    mixed = pd.concat([two, noise])
    assert plot_over_time(mixed, new_axes()).get_xscale() == "log"
    assert plot_over_level(mixed, new_axes()).get_xscale() == "linear"


def test_without_axes_each_profile_gets_a_panel(two: pd.DataFrame, summary: Frames) -> None:
    from matplotlib import pyplot

    other = summary({"sgd": [0.7, 0.6], "sam": [0.75, 0.5]}, [1.0, 60.0], profile="mine")
    third = summary({"sgd": [0.9]}, [0.0], profile="gaussian")
    first = plot_over_time(pd.concat([two, other, third]), title="All")
    try:
        panels = first.get_figure(root=True).axes  # type: ignore[union-attr]
        assert [ax.get_title(loc="left").split()[2] for ax in panels] == ["pcm-ibm", "mine", "gaussian"]
        assert len({ax.get_ylim() for ax in panels}) == 1
        assert panels[0].get_ylim()[0] < 50
    finally:
        pyplot.close(first.get_figure(root=True))  # type: ignore[arg-type]


def test_noise_levels_have_a_range_of_their_own(two: pd.DataFrame, levels: Frames) -> None:
    from analognoise.report.plot import _draw_panels
    from analognoise.report.summary import sections

    shown = sections(pd.concat([two, levels({"sgd": [0.5, 0.2]}, [5, 10])]))
    drift, noise = _draw_panels(Figure(), shown, None, 0.95)
    assert drift.get_ylim()[0] > 70
    assert noise.get_ylim()[0] < 20


def test_saved_picture_is_sharp_and_the_same_every_time(
    two: pd.DataFrame, levels: Frames, tmp_path: Path
) -> None:
    path = save_figure(tmp_path / "one.png", two)
    first = path.read_bytes()
    height, width = matplotlib.image.imread(path).shape[:2]
    assert width >= 7 * 150
    assert height >= 4 * 150
    with matplotlib.rc_context(
        {"axes.facecolor": "black", "font.size": 30, "savefig.dpi": 20, "lines.marker": "x"}
    ):
        before = dict(matplotlib.rcParams)
        save_figure(path, two)
        assert dict(matplotlib.rcParams) == before
    assert path.read_bytes() == first
    save_figure(tmp_path / "two.png", pd.concat([two, levels({"sgd": [0.9, 0.8]}, [5, 10])]))
    assert matplotlib.image.imread(tmp_path / "two.png").shape[1] == 2 * width
    for kind in ("svg", "pdf"):
        target = save_figure(tmp_path / f"one.{kind}", two)
        content = target.read_bytes()
        assert save_figure(target, two).read_bytes() == content
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.pdf", "one.png", "one.svg", "two.png"]


def test_a_picture_that_cannot_be_saved_says_why(two: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"\.docx is no picture format"):
        save_figure(tmp_path / "one.docx", two)
    with pytest.raises(ResultsError, match="no suffix is no picture format"):
        save_figure(tmp_path / "one", two)
    with pytest.raises(ResultsError, match="cannot write"):
        save_figure(tmp_path / "absent" / "one.png", two)
    with pytest.raises(ResultsError, match="no rows"):
        save_figure(tmp_path / "one.png", two.iloc[:0])
    assert list(tmp_path.iterdir()) == []


def test_saving_leaves_pyplot_and_the_backend_alone(tmp_path: Path, two: pd.DataFrame) -> None:
    two.to_csv(tmp_path / "frame.csv", index=False)
    code = f"""
import sys, matplotlib, pandas
from matplotlib.figure import Figure
from analognoise.report import save_figure, plot_over_time
settings = lambda: {{key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}}
before = settings()
frame = pandas.read_csv({str(tmp_path / "frame.csv")!r})
save_figure({str(tmp_path / "picture.png")!r}, frame)
plot_over_time(frame, Figure().subplots())
assert settings() == before
assert "matplotlib.pyplot" not in sys.modules  # to resolve the backend imports it
matplotlib.use("svg")
save_figure({str(tmp_path / "picture.png")!r}, frame)
assert matplotlib.get_backend() == "svg"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_methods_look_different_and_families_share_a_hue() -> None:
    names = [
        *METHODS,
        "rwp+clip",
        "asam+clip",
        "samson-inf+clip+noise",
        "profile-noise+clip",
        "samson-2+clip",
    ]
    found = styles(names)
    assert len({(look.color, look.marker, look.dash) for look in found.values()}) == len(names)
    assert found["sam"].color == found["sam+clip"].color
    assert found["clip"].color == found["sgd"].color
    assert len({look.color for look in found.values()}) == 8
    assert styles(["samson", "sam"])["sam"] == found["sam"]  # the same in every picture
    assert len(set(styles([f"m{i}" for i in range(8)]).values())) == 8
    assert len(set(styles([f"m{i}" for i in range(32)]).values())) == 32
    assert len(set(styles(["sam:rho=0.1", "sam:rho=0.5", "sam:rho=1"]).values())) == 3


def test_hues_can_be_told_apart_by_colour_blind_readers() -> None:
    """Smallest CIELAB distance of two hues under simulated dichromacy (Machado et al. 2009, severity 1)."""
    simulated = {
        "normal": np.eye(3),
        "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
        "deuteranopia": [[0.3673, 0.8607, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
        "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
    }
    xyz = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])
    coded = np.array([[int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] for color in PALETTE])
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    for name, matrix in simulated.items():
        tristimulus = np.clip(linear @ np.array(matrix).T, 0, 1) @ xyz.T / [0.9505, 1, 1.0888]
        root = np.where(tristimulus > 0.008856, np.cbrt(tristimulus), 7.787 * tristimulus + 16 / 116)
        x, y, z = root.T
        lab = np.column_stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])
        distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)]
        assert min(distances) > 15, name  # 2.3 is the just noticeable difference
