"""The picture of one device: what its panels show, in which units, and that nothing lies over anything."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analognoise.devices import DeviceProfile, list_profiles, load_profile
from analognoise.errors import ResultsError
from analognoise.report.device_plot import draw_device, save_device_plot, telling_times


def draw(profile: DeviceProfile) -> dict[str, Axes]:
    """The panels of a profile by name, laid out."""
    figure = Figure(figsize=(10, 7.6), layout="constrained")
    FigureCanvasAgg(figure)
    draw_device(figure, profile)
    figure.draw_without_rendering()
    return {ax.get_gid(): ax for ax in figure.axes}


def texts(ax: Axes) -> str:
    legend = ax.get_legend()
    parts = [ax.get_title(loc="left"), ax.get_xlabel(), ax.get_ylabel(), *(t.get_text() for t in ax.texts)]
    return "\n".join(parts + [t.get_text() for t in (legend.get_texts() if legend else ())])


def test_panels_of_a_device_that_drifts() -> None:
    panels = draw(load_profile("pcm-ibm"))
    assert list(panels) == ["programming", "drift", "time", "read"]
    x, y = panels["programming"].get_lines()[0].get_data()
    assert (x[0], x[-1]) == (0.0, 25.0)
    inner = np.asarray(x) > 3
    u = np.asarray(x)[inner] / 25
    np.testing.assert_allclose(np.asarray(y)[inner], 0.26348 + 1.965 * u - 1.1731 * u**2, rtol=1e-4)
    assert "(µS)" in panels["programming"].get_ylabel()
    assert "(µS)" in panels["programming"].get_xlabel()
    x, y = panels["drift"].get_lines()[0].get_data()
    np.testing.assert_allclose(np.asarray(y)[np.asarray(x) > 6], 0.049, rtol=1e-3)
    assert "ν" in texts(panels["drift"])
    assert panels["time"].get_xscale() == "log"
    assert panels["time"].get_xlabel() == "time since programming (s)"
    assert panels["time"].get_xlim() == (1.0, 10 * 31_536_000)
    ends = [line.get_ydata()[-1] for line in panels["time"].get_lines() if len(line.get_ydata()) > 2]
    np.testing.assert_allclose(ends, [0.03, 2.82, 5.60, 8.40, 11.20], atol=0.01)
    assert "25 µS" in texts(panels["time"])
    assert "10 years" in texts(panels["read"])


def test_panels_that_have_nothing_to_show_say_so() -> None:
    panels = draw(load_profile("ideal"))
    assert "no programming error" in texts(panels["programming"])
    for profile in ("ideal", "gaussian"):
        panels = draw(load_profile(profile))
        assert "no drift" in texts(panels["drift"])
        assert "no read noise" in texts(panels["read"])
        assert not panels["drift"].get_lines()
    band = panels["time"].collections[0].get_paths()[0].get_extents()
    assert band.height == pytest.approx(10.0)  # ± 5 µS


def test_devices_without_a_coefficient_show_their_spread_by_age() -> None:
    panels = draw(load_profile("reram-wan-2022"))
    assert panels["time"].get_xlim() == (1.0, 2 * 86400.0)  # no further than its validity
    assert "2 days" in texts(panels["drift"])
    assert "1 s" in texts(panels["programming"])
    last = panels["drift"].get_lines()[-1].get_ydata()[-1]
    assert last == pytest.approx(0.782 + 20.274 - 43.507 + 37.062 - 11.934, rel=1e-6)
    panels = draw(load_profile("sonos-2022"))
    assert "current (nA)" in panels["time"].get_ylabel()
    assert "the same at all times" in texts(panels["read"])
    panels = draw(load_profile("reram-cmo-2pct"))
    assert "mean" in texts(panels["programming"])  # what the ends of the range do to it
    assert "Drift: spread by age" in texts(panels["drift"])


def test_what_was_not_measured_is_not_drawn() -> None:
    for name, age in (
        ("reram-wan-2022-crosssim-fit", "1 s after programming"),
        ("reram-milo-hfo2", "programming"),
    ):
        panels = draw(load_profile(name))
        for panel in ("drift", "time"):
            assert f"nothing is known later than {age}" in texts(panels[panel])
            assert not panels[panel].get_lines()
            assert not panels[panel].collections


@pytest.mark.parametrize("ages", [["1s"], ["0s"]])
def test_a_device_that_is_known_at_one_time_alone(ages: list[str]) -> None:
    profile = DeviceProfile.from_dict(
        {
            "name": "once",
            "conductance": {"unit": "uS", "g_max": 10.0},
            "retention": {"ages": ages, "sigma": [0.5], "interpolate": "linear", "clamp_at_zero": False},
        }
    )
    panels = draw(profile)
    assert "known at" in texts(panels["time"])
    assert "no drift" in texts(panels["drift"])
    band = panels["time"].collections[0].get_paths()[0].get_extents()
    assert band.height == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["pcm-ibm", "steep", "reram-wan-2022", "gaussian", "reram-cmo-2pct"])
def test_no_text_lies_over_another(name: str) -> None:
    profile = load_profile("pcm-ibm" if name == "steep" else name)
    if name == "steep":  # all lines end at zero
        profile = profile.replace({"drift.nu_mean": 0.35})
    figure = draw(profile)["time"].figure
    assert isinstance(figure, Figure)
    renderer = FigureCanvasAgg(figure).get_renderer()
    found = [text for ax in figure.axes for text in (*ax.texts, ax._left_title)]
    found += [label for ax in figure.axes for child in ax.child_axes for label in child.get_xticklabels()]
    found += [text for text in [figure._suptitle] if text]
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in found if t.get_text().strip()]
    assert len(boxes) > 10
    for (first, one), (second, other) in combinations(boxes, 2):
        overlap = one.padded(-1.0).overlaps(other.padded(-1.0))
        assert not overlap, (first, second)
    inside = figure.bbox
    for text, box in boxes:
        assert inside.x0 <= box.x0 < box.x1 <= inside.x1, text


@pytest.mark.parametrize("name", list_profiles())
def test_every_shipped_profile_can_be_drawn(name: str, tmp_path: Path) -> None:
    profile = load_profile(name)
    times = telling_times(profile)
    first, last = profile.valid_times
    assert times
    assert all(first <= time <= last for time in times)
    path = save_device_plot(tmp_path / "device.png", profile)
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_the_same_file_again_and_none_of_an_unknown_kind(tmp_path: Path) -> None:
    for suffix in ("png", "svg"):
        first, second = (
            save_device_plot(tmp_path / f"{i}.{suffix}", load_profile("gaussian")).read_bytes()
            for i in range(2)
        )
        assert first == second
    with pytest.raises(ResultsError, match=r"no picture format, use \.png"):
        save_device_plot(tmp_path / "device.txt", load_profile("ideal"))
    with pytest.raises(ResultsError, match="cannot write"):
        save_device_plot(tmp_path / "nowhere" / "device.png", load_profile("ideal"))
