"""Conductances that noise made negative, or took below g_min: curves are known from 0 on."""

from itertools import product

import pytest
import torch

from analognoise.crossbar import CrossbarTile
from analognoise.devices import physics
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import ProfileError
from analognoise.seeds import Stream

ROOT = {"curve": "power", "coefficient": 0.5, "exponent": 0.5}
CURVES = {
    "root": ROOT,
    "falling power": {"curve": "power", "coefficient": 0.1, "exponent": -0.6, "max": 1.0},
    "log": {"curve": "log", "slope": -0.2, "intercept": 0.1, "min": 0.01, "max": 2.0},
    "pieces": {
        "curve": "piecewise",
        "pieces": [{"below": 0.3, **ROOT}, {"curve": "log", "slope": 0.1, "intercept": 0.9}],
    },
}
FREE = {"clamp_at_zero": False}
PROGRAMMING = {"programming": {"sigma": 2.0, **FREE}}
RELAXATION = {"shift": -0.1, "sigma": 0.4, "sigma_slope": 0.05, **FREE}
RETENTION = {"ages": ["1s", "1d"], "sigma": [0.5, 1.5], "shift": [-0.2, -0.4], **FREE}
BY_AGE = {"retention": RETENTION, "validity": {"extrapolate": True}}


def sections(curve):
    """The sections of devices that hold a curve in one place, by that place."""
    for field in ("shift", "sigma", "sigma_slope"):
        yield f"relaxation.{field}", {**PROGRAMMING, "relaxation": {**RELAXATION, field: curve}}
    for field in ("shift", "sigma"):
        yield f"retention.{field}", BY_AGE | {"retention": {**RETENTION, field: [curve, curve]}}
    befores = {
        "programmed": PROGRAMMING,
        "relaxed": {**PROGRAMMING, "relaxation": RELAXATION},
        "drifted": {**PROGRAMMING, "drift": {"t_0": 20.0, "nu_mean": 0.3, "nu_std": 0.1}},
        "by age": BY_AGE,
    }
    for (before, given), field in product(befores.items(), ("sigma", "relative_sigma")):
        yield f"{before}, read.{field}", {**given, "read": {"t_read": 1e-6, field: curve}}


CASES = {f"{place}: {name}": given for name, curve in CURVES.items() for place, given in sections(curve)}


def device(given, **conductance):
    conductance = {"unit": "uS", "g_max": 10.0, **conductance}
    return DeviceProfile.from_dict({"name": "free", "conductance": conductance, **given})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("conductance", [{}, {"g_min": 1.0, "clamp_to_range": True}], ids=["free", "range"])
def test_every_weight_is_a_number_at_all_times(case, conductance):
    weights = torch.tensor([1.0, -1.0, 0.0, 0.5, -0.01]).repeat(20).reshape(1, 1, -1)
    tile = CrossbarTile(device(CASES[case], **conductance), "none").program(weights[0], Stream(1, ""))
    for seconds in (None, 0.0, 1.0, 86400.0, 3e7):
        assert tile.reading(seconds).weights.isfinite().all(), seconds


def test_read_noise_of_a_negative_conductance_is_that_of_zero():
    profile = device(
        {
            "read": {
                "t_read": 1e-6,
                "growth": "none",
                "sigma": {"curve": "polynomial", "coefficients": [0.1, 0.8]},
            }
        }
    )
    drifted, normal = torch.tensor([-2.0, -1e-6, 0.0, 5.0]), torch.ones(4)
    profile = profile.replace({"read.clamp_at_zero": False})
    noisy = physics.read(drifted, drifted, 1.0, profile, normal)
    torch.testing.assert_close(noisy - drifted, torch.tensor([0.1, 0.1, 0.1, 0.5]))


def test_relaxation_of_a_negative_conductance_is_that_of_zero():
    line = {"curve": "polynomial", "coefficients": [0.1, 0.8]}
    section = {"shift": line, "sigma": line, "sigma_slope": 0.0, **FREE}
    profile = device({**PROGRAMMING, "relaxation": section})
    programmed = torch.tensor([-2.0, 0.0, 5.0])
    relaxed = physics.relax(programmed, torch.ones(3), torch.e, profile)
    torch.testing.assert_close(relaxed - programmed, torch.tensor([0.2, 0.2, 1.0]))


def test_a_retention_by_the_logarithm_begins_with_its_first_age():
    profile = device(BY_AGE)
    target, normal = torch.tensor([0.0, 5.0]), torch.tensor([-1.0, 1.0])
    assert torch.equal(
        physics.retain(target, normal, 0.0, profile), physics.retain(target, normal, None, profile)
    )


@pytest.mark.parametrize(
    "given",
    [
        {"drift": {"t_0": 20.0, "nu_mean": 0.05, "nu_std": 0.02}},
        {"relaxation": RELAXATION},
        {"retention": {**RETENTION, "sigma": [0.0, 0.0]}},
    ],
    ids=["drift", "relaxation", "retention"],
)
def test_a_read_curve_is_checked_down_to_zero_where_devices_can_get_there(given):
    curve = {"curve": "log", "slope": 0.2, "intercept": 1.5}  # known from g_min = 1 on
    assert device({"read": {"t_read": 1e-6, "sigma": curve}}, g_min=1.0)
    with pytest.raises(ProfileError, match=r"read\.sigma is -inf at x = G/g_max = 0 but must be finite"):
        device({**given, "read": {"t_read": 1e-6, "sigma": curve}}, g_min=1.0)
    assert device({**given, "read": {"t_read": 1e-6, "sigma": curve}}, g_min=1.0, clamp_to_range=True)
