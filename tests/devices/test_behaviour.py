"""Means and spreads over devices agree with closed forms, where there are any."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from analognoise.devices import DeviceLaw, DeviceProfile, laws, load_profile
from analognoise.devices.behaviour import behaviour
from analognoise.devices.laws import law_of
from analognoise.errors import ProfileError
from analognoise.report.device_plot import draw_device

DAY, YEAR = 86400.0, 31_536_000.0
TARGETS = [6.25, 12.5, 25.0]


def close(found: torch.Tensor, expected: list[float] | torch.Tensor, rtol: float) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float64), rtol=rtol, atol=1e-9)


def test_power_law_device() -> None:
    """pcm-ibm where nothing is clamped: normal conductances, log-normal drift, 1/f noise."""
    pcm = load_profile("pcm-ibm")
    found = behaviour(pcm, TARGETS, [DAY, YEAR])
    x = found.targets / 25
    sigma = 0.26348 + 1.9650 * x - 1.1731 * x**2
    close(found.programmed.mean, TARGETS, 1e-4)
    close(found.programmed.std, sigma, 1e-6)
    assert found.coefficients is not None
    mu, s = torch.full_like(x, 0.049), (-0.0125 * x.log() - 0.0059).clamp(0.008, 0.045)
    close(found.coefficients.mean, mu, 1e-3)
    close(found.coefficients.std, s, 5e-3)
    for row, seconds in enumerate((DAY, YEAR)):
        decades = math.log1p(seconds / 20)
        kept = (-mu * decades + (s * decades) ** 2 / 2).exp()
        close(found.drifted.mean[row], found.targets * kept, 2e-3)
        # E[G²] of a product of independent factors
        square = (found.targets**2 + sigma**2) * kept**2 * (s * decades).square().exp()
        close(found.drifted.std[row], (square - (found.targets * kept) ** 2).sqrt(), 1e-2)
        growth = math.sqrt(math.log((seconds + 20 + 250e-9) / 500e-9))
        noise = 0.0088 * x**-0.65 * growth * square.sqrt()
        close(found.read_noise[row], noise, 2e-2)
        close(found.read.std[row], (found.drifted.std[row] ** 2 + noise**2).sqrt(), 1e-2)


def test_devices_at_zero_are_clamped() -> None:
    """max(0, sigma N) has mean sigma / sqrt(2 pi) and mean square sigma² / 2."""
    found = behaviour(load_profile("pcm-ibm"), [0.0], [1.0])
    close(found.programmed.mean, [0.26348 / math.sqrt(2 * math.pi)], 2e-3)
    close(found.programmed.std, [0.26348 * math.sqrt(0.5 - 0.5 / math.pi)], 2e-3)


def test_a_device_without_noise_is_exact() -> None:
    found = behaviour(load_profile("ideal"), [0.0, 1.7, 100 / 3, 100.0], [1.0, YEAR])
    assert torch.equal(found.programmed.mean, found.targets)
    assert torch.equal(found.read.mean, found.targets.expand(2, 4))
    assert not found.read.std.any()
    assert not found.read_noise.any()
    assert found.coefficients is None


def test_retention_by_age_is_linear_in_the_logarithm_of_time() -> None:
    wan = load_profile("reram-wan-2022")
    found = behaviour(wan, [20.0, 40.0], [1.0, 3600.0, DAY, 2 * DAY])
    x = found.targets / 40
    powers = x ** torch.arange(5)[:, None]
    first, second, third = (
        (torch.tensor(c, dtype=torch.float64)[:, None] * powers).sum(0)
        for c in (
            [0.348, 16.030, -43.853, 45.393, -16.815],
            [0.701, 22.086, -50.773, 47.095, -16.458],
            [0.782, 20.274, -43.507, 37.062, -11.934],
        )
    )
    share = math.log(3600) / math.log(86400)
    close(found.drifted.std, torch.stack([first, first + share * (second - first), second, third]), 1e-6)
    close(found.read.mean, found.targets.expand(4, 2), 1e-9)


def test_relaxation_shifts_and_spreads_with_the_logarithm_of_time() -> None:
    found = behaviour(load_profile("reram-cmo-2pct"), [48.0], [1.0, YEAR])
    written = 0.0112185391 + 0.01129027418 * 48
    for row, seconds in enumerate((1.0, YEAR)):
        log = math.log(seconds)
        close(found.drifted.mean[row], [48 - 0.08900206 * log], 1e-6)
        close(found.drifted.std[row], [math.hypot(written, 0.41183342 + 0.04201137 * log)], 1e-6)


def test_the_same_numbers_every_time_and_no_trace_in_global_state() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second = (behaviour(load_profile("pcm-ibm"), [5.0], [1.0]) for _ in range(2))
    assert torch.equal(first.read.std, second.read.std)
    assert torch.equal(torch.get_rng_state(), state)


def test_half_of_g_max_after_a_day_is_as_published() -> None:
    found = behaviour(load_profile("pcm-ibm"), [12.5], [DAY])
    assert float(found.programmed.std[0]) == pytest.approx(0.953, abs=5e-4)
    assert float(found.drifted.mean[0, 0]) / 12.5 == pytest.approx(0.664, abs=2e-3)
    assert float(found.read_noise[0, 0] / found.drifted.mean[0, 0]) == pytest.approx(0.070, abs=1e-3)


class Fading(DeviceLaw):
    """G(t) = G_T · exp(-k t / hour), k = 0.1 + 0.01 N for each device."""

    draws = frozenset({"drift"})

    def coefficients(self, target: Tensor, normal: Tensor | None) -> Tensor | None:
        assert normal is not None
        return 0.1 + 0.01 * normal

    def drift(self, programmed: Tensor, coefficients: Tensor | None, seconds: float) -> Tensor:
        assert coefficients is not None
        return programmed * torch.exp(-coefficients * seconds / 3600)


class Exploding(DeviceLaw):
    """Nothing holds it."""

    def drift(self, programmed: Tensor, coefficients: Tensor | None, seconds: float) -> Tensor:
        return programmed * torch.tensor(2.0) ** seconds


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Entry points as an installed package would announce them."""
    points = [
        EntryPoint(kind.__name__, f"{__name__}:{kind.__name__}", laws.GROUP) for kind in (Fading, Exploding)
    ]
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Fading.__module__])
    monkeypatch.setattr(laws, "entry_points", lambda group: points)
    laws.load_law.cache_clear()
    law_of.cache_clear()
    yield
    laws.load_law.cache_clear()
    law_of.cache_clear()


def own(name: str) -> DeviceProfile:
    return DeviceProfile.from_dict(
        {"name": "own", "conductance": {"unit": "uS", "g_max": 10.0}, "law": {"name": name}}
    )


def test_a_law_of_ones_own_is_described_and_drawn_as_built_in_ones(announced: None) -> None:
    found = behaviour(own("Fading"), [2.0, 10.0], [3600.0])
    assert found.coefficients is not None
    close(found.coefficients.mean, [0.1, 0.1], 1e-6)
    close(found.coefficients.std, [0.01, 0.01], 1e-6)
    kept = math.exp(-0.1 + 0.01**2 / 2)
    close(found.read.mean[0], [2 * kept, 10 * kept], 1e-6)
    assert not found.read_noise.any()
    figure = Figure()
    draw_device(figure, own("Fading"))
    drift = next(ax for ax in figure.axes if ax.get_gid() == "drift")
    assert "Fading" in "".join(text.get_text() for text in drift.texts)


def test_a_law_that_leaves_all_bounds_is_an_error_that_says_when(announced: None) -> None:
    with pytest.raises(
        ProfileError, match=r"'own' gives conductances that are not finite after 1 day: .*validity"
    ):
        behaviour(own("Exploding"), [1.0], [1.0, 86400.0])
