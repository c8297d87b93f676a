"""What-if changes to profiles: what is changed, what it is called, and what is refused."""

from __future__ import annotations

import pytest
import torch

from analognoise.devices.catalog import load_profile
from analognoise.devices.faults import Faults
from analognoise.devices.physics import programming_sigma
from analognoise.devices.whatif import Changes
from analognoise.errors import ProfileError


def changed(name: str, *settings: str, scale: tuple[str, ...] = ()):
    (found,) = Changes.parse(settings, scale).apply([load_profile(name)])
    return found


def test_a_changed_field_is_that_of_replace_under_a_name_of_its_own() -> None:
    profile = load_profile("pcm-ibm")
    found = changed("pcm-ibm", "drift.t_0=10", "tile.rows = 64", "mapping.scale=tile")
    assert found.name == "pcm-ibm(drift.t_0=10,tile.rows=64,mapping.scale=tile)"
    expected = profile.replace({"drift.t_0": 10.0, "tile.rows": 64, "mapping.scale": "tile"})
    assert found.replace({"name": "pcm-ibm"}) == expected
    assert found.digest != profile.digest
    assert found.source == profile.source
    # Numbers that differ in the last digit do not share a name.
    assert changed("pcm-ibm", "drift.t_0=0.123456789").name == "pcm-ibm(drift.t_0=0.123456789)"
    assert changed("pcm-ibm", "drift.t_0=10.0").name == changed("pcm-ibm", "drift.t_0=1e1").name


def test_scaled_effects() -> None:
    profile = load_profile("pcm-ibm")
    found = changed("pcm-ibm", scale=("programming=2,drift=0.5", "read=0"))
    assert found.name == "pcm-ibm(programming*2,drift*0.5,read*0)"
    assert found.replace({"name": "pcm-ibm"}) == profile.scaled(programming=2, drift=0.5, read=0)
    target = torch.linspace(0, 25, 9, dtype=torch.float64)
    assert torch.equal(programming_sigma(target, found), 2 * programming_sigma(target, profile))


def test_values_are_toml() -> None:
    curve = '{ curve = "power", coefficient = 2.0, exponent = 0.5 }'
    found = changed("pcm-ibm", f"programming.sigma={curve}", "programming.clamp_at_zero=false")
    assert found.programming is not None
    assert (found.programming.sigma.curve, found.programming.clamp_at_zero) == ("power", False)
    other = changed("pcm-ibm", f"programming.sigma={curve.replace('2.0', '3.0')}")
    # A table is too long for a name: its digest stands there, which tells two of them apart.
    assert found.name.startswith("pcm-ibm(programming.sigma=#")
    assert len({found.name.split(",")[0], other.name.rstrip(")")}) == 2
    whole = changed("gaussian", "drift={ t_0 = 1, nu_mean = 0.05, nu_std = 0 }")
    assert whole.drift is not None
    assert whole.drift.t_0 == 1


def test_the_noise_level_stays_at_the_end_of_the_name() -> None:
    found = changed("gaussian@10%", "conductance.g_min=5")
    assert found.name == "gaussian(conductance.g_min=5)@10%"
    assert load_profile(found) is found


def test_each_profile_takes_what_concerns_it() -> None:
    profiles = [load_profile(name) for name in ("pcm-ibm", "gaussian", "ideal")]
    found = Changes.parse(["drift.t_0=10"], ["programming=2"]).apply(profiles)
    assert [p.name for p in found] == [
        "pcm-ibm(drift.t_0=10,programming*2)",
        "gaussian(programming*2)",
        "ideal",
    ]
    assert found[2] is profiles[2]
    assert Changes().apply(profiles) == profiles
    assert not Changes()


def test_a_section_without_required_fields_can_be_given_to_every_profile() -> None:
    profiles = [load_profile("pcm-ibm"), load_profile("ideal")]
    found = Changes.parse(["faults.stuck_at_g_max=0.01", "faults.spare_columns=2"]).apply(profiles)
    assert [p.name for p in found] == [
        f"{name}(faults.stuck_at_g_max=0.01,faults.spare_columns=2)" for name in ("pcm-ibm", "ideal")
    ]
    for profile, original in zip(found, profiles, strict=True):
        assert profile.faults == Faults(stuck_at_g_max=0.01, spare_columns=2)
        assert profile.replace({"faults": None}) == original.replace({"name": profile.name})
    found = Changes.parse(["periphery.preset=standard-8bit"]).apply(profiles)
    assert all(profile.surroundings is not None for profile in found)


@pytest.mark.parametrize(
    ("name", "settings", "scale", "message"),
    [
        ("pcm-ibm", ["drift.t0=10"], [], r"unknown field drift\.t0 = 10 \(did you mean 't_0'\?\)"),
        (
            "pcm-ibm",
            ["drfit.t_0=10"],
            [],
            r"no section 'drfit' \(did you mean 'drift'\?\): known are conductance",
        ),
        (
            "gaussian",
            ["drift.t_0=10"],
            [],
            r"--set drift\.t_0: no profile here \('gaussian'\) has a \[drift\]",
        ),
        ("ideal", ["read.t_read=1"], [], r"--set read\.t_read: no profile here \('ideal'\) has a \[read\]"),
        ("ideal", ["faults.stuck=1"], [], r"unknown field faults\.stuck = 1 \(did you mean 'stuck_at_"),
        ("pcm-ibm", ["drift.t_0=-1"], [], r"drift\.t_0 is -1 but must be greater than 0"),
        ("pcm-ibm", ["drift.t_0=soon"], [], r'drift\.t_0 is "soon" but must be a number'),
        ("pcm-ibm", ["drift.t_0=1 2"], [], r"--set drift\.t_0=1 2: the value is not TOML"),
        (
            "pcm-ibm",
            ["faults.map=nope.npy"],
            [],
            r"such as a yield map, is named in a copy of the profile's own",
        ),
        ("pcm-ibm", ["drift.t_0=1\ntile=2"], [], "the value is not TOML"),
        ("pcm-ibm", ["drift.t_0"], [], r"--set 'drift\.t_0' is not of the form FIELD=VALUE"),
        ("pcm-ibm", ["drift.t_0=1", "drift.t_0=2"], [], r"--set drift\.t_0 is given twice"),
        ("pcm-ibm", ["name=mine"], [], "name cannot be changed"),
        ("pcm-ibm", ["drift.t_0.x=1"], [], r"drift\.t_0\.x does not exist, because t_0 is 20"),
        ("pcm-ibm", [], ["drfit=2"], r"unknown effect 'drfit' \(did you mean 'drift'\?\)"),
        ("pcm-ibm", [], ["drift"], "not of the form EFFECT=FACTOR"),
        ("pcm-ibm", [], ["drift=-1"], r"the factor is '-1', expected a number, at least 0"),
        ("pcm-ibm", [], ["drift=nan"], "the factor is 'nan'"),
        ("pcm-ibm", [], ["drift=2,drift=3"], "--scale drift is given twice"),
        ("gaussian", [], ["read=2"], r"--scale read: no profile here \('gaussian'\) has such an effect"),
    ],
)
def test_what_cannot_be(name: str, settings: list[str], scale: list[str], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        changed(name, *settings, scale=tuple(scale))
