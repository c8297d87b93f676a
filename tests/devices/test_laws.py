"""Devices that relax or are known by age, read noise in the unit, validity, and laws of other packages."""

import math
from importlib.metadata import EntryPoint

import pytest
import torch

from analognoise.crossbar import CrossbarTile
from analognoise.devices import DeviceLaw, DeviceProfile, laws, load_profile, physics
from analognoise.devices.behaviour import behaviour
from analognoise.devices.laws import law_of
from analognoise.devices.profile import drift_times
from analognoise.errors import ProfileError
from analognoise.seeds import Stream

BY_AGE = {
    "name": "aged",
    "conductance": {"unit": "uS", "g_max": 10.0},
    "retention": {
        "ages": ["1s", "100s", "1h"],
        "sigma": [1.0, 3.0, 2.0],
        "shift": [0.0, -1.0, -1.5],
        "clamp_at_zero": False,
    },
}


def test_retention_is_linear_in_the_logarithm_of_time_between_ages():
    profile = DeviceProfile.from_dict(BY_AGE)
    target, normal = torch.tensor([5.0, 8.0]), torch.tensor([1.0, -2.0])
    for seconds, sigma, shift in [
        (None, 1.0, 0.0),
        (1.0, 1.0, 0.0),
        (10.0, 2.0, -0.5),
        (100.0, 3.0, -1.0),
        (600.0, 2.5, -1.25),
        (3600.0, 2.0, -1.5),
    ]:
        expected = target + shift + sigma * normal
        torch.testing.assert_close(physics.retain(target, normal, seconds, profile), expected)


def test_retention_linear_in_time_and_extrapolated():
    profile = DeviceProfile.from_dict(BY_AGE).replace(
        {"retention.interpolate": "linear", "retention.ages": [0.0, 10.0, 20.0], "retention.shift": None}
    )
    target, normal = torch.tensor([5.0]), torch.tensor([1.0])
    for seconds, sigma in [(0.0, 1.0), (5.0, 2.0), (10.0, 3.0), (15.0, 2.5), (30.0, 1.0), (50.0, 0.0)]:
        torch.testing.assert_close(physics.retain(target, normal, seconds, profile), target + sigma)
    below = DeviceProfile.from_dict(BY_AGE)
    # below the first age sigma and shift go on as between the first two, and no spread is negative
    assert float(physics.retain(target, normal, 0.1, below)) == pytest.approx(5.0 + 0.5)
    assert float(physics.retain(target, normal, 1e-3, below)) == pytest.approx(5.0 + 1.5)


def test_one_normal_for_each_device_at_all_ages():
    """At x = 0.1 the spread falls from one day to two, which only one normal for both can do."""
    profile = load_profile("reram-wan-2022")
    weights = torch.cat([torch.ones(1, 1), torch.full((1, 3999), 0.1)], 1)
    ones = CrossbarTile(profile, "none").program(weights, Stream(3, ""))
    day, two = ones.conductances_at(86400.0)[0, 0, 0, 1:], ones.conductances_at(172800.0)[0, 0, 0, 1:]
    both = (day > 0) & (two > 0)
    z_day = (day[both] - 4.0) / (0.701 + 2.2086 - 0.50773 + 0.047095 - 0.0016458)
    z_two = (two[both] - 4.0) / (0.782 + 2.0274 - 0.43507 + 0.037062 - 0.0011934)
    torch.testing.assert_close(z_day, z_two, rtol=1e-4, atol=1e-4)
    programmed = ones.programmed[0, 0, 0, 1:]
    z_first = (programmed[both] - 4.0) / (0.348 + 1.6030 - 0.43853 + 0.045393 - 0.0016815)
    positive = programmed[both] > 0
    torch.testing.assert_close(z_day[positive], z_first[positive], rtol=1e-4, atol=1e-4)


def test_relaxation_by_hand():
    profile = load_profile("reram-cmo-2pct").replace({"read": None, "conductance.clamp_to_range": False})
    law = law_of(profile)
    target, n = torch.tensor([20.0, 60.0]), torch.tensor([1.0, -0.5])
    state, coefficients = law.write(target, lambda process: n if process == "drift" else torch.zeros(2))
    assert torch.equal(state, target)
    assert torch.equal(law.conductances(state, coefficients, 0.0, None), target)
    for seconds in (1.0, 3600.0, 31536000.0):
        log = math.log(seconds)
        expected = target - 0.08900206 * log + (0.41183342 + 0.04201137 * log) * n
        torch.testing.assert_close(law.conductances(state, coefficients, seconds, None), expected)
    # before exp(-0.41183342 / 0.04201137) s the fitted spread would be negative
    early = law.conductances(state, coefficients, 1e-6, None)
    torch.testing.assert_close(early, target - 0.08900206 * math.log(1e-6))


def test_a_clamped_range_holds_at_every_time():
    tile = CrossbarTile(load_profile("reram-cmo-2pct"), "none").program(torch.randn(50, 40), Stream(0, ""))
    for conductances in (tile.programmed, tile.conductances_at(1.0), tile.conductances_at(31536000.0)):
        assert conductances.min() == 9.0
        assert conductances.max() == pytest.approx(88.199997)


def test_absolute_read_noise_does_not_grow_where_it_says_so():
    profile = load_profile("sonos-2022")
    g = torch.full((200_000,), 800.0)
    normal = Stream(0, "read").normal((200_000,))
    sigma = 12.58037 * (1 - math.exp(-800.0 / 215.36557))
    for seconds in (1.0, 432000.0):
        noise = physics.read(g, g, seconds, profile, normal) - g
        torch.testing.assert_close(noise, sigma * normal, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "times", "words"),
    [
        (
            "reram-wan-2022",
            "1y",
            r"'reram-wan-2022' is known from 1 s to 2 days after programming, not at 1 year",
        ),
        ("reram-wan-2022", "0s", "not at 0 s"),
        ("sonos-2022", "1mo", "from 0 s to 5 days"),
        # Nothing in these depends on time, but nobody knows whether the device drifts.
        ("reram-wan-2022-crosssim-fit", "1h", "from 0 s to 1 s"),
        ("reram-milo-hfo2", "1s", "known at 0 s after programming, not at 1 s: ask for that time"),
    ],
)
def test_times_outside_of_what_is_known(name, times, words):
    with pytest.raises(ProfileError, match=words):
        drift_times([load_profile(name)], times)
    assert drift_times([load_profile(name).replace({"validity.extrapolate": True})], times)


def test_default_times_are_those_of_the_devices():
    wan, pcm, sonos = (load_profile(name) for name in ("reram-wan-2022", "pcm-ibm", "sonos-2022"))
    assert drift_times([pcm]) == (1.0, 3600.0, 86400.0, 2592000.0, 31536000.0)
    assert drift_times([wan]) == (1.0, 3600.0, 86400.0, 172800.0)
    assert drift_times([pcm, wan, load_profile("ideal")]) == (1.0, 3600.0, 86400.0, 172800.0)
    assert drift_times([load_profile("reram-wan-2022-crosssim-fit")]) == (1.0,)
    assert drift_times([load_profile("reram-milo-hfo2")], "0s") == (0.0,)
    assert drift_times([load_profile("gaussian")], "100y") == (3153600000.0,)
    with pytest.raises(ProfileError, match="no common default"):
        drift_times(
            [
                sonos,
                wan.replace({"validity": {"measured": ["3d", "4d"], "default_times": ["3d"]}}),
                pcm.replace({"validity": {"measured": ["1s", "2s"], "extrapolate": False}}),
            ]
        )


def test_validity_is_not_part_of_the_digest_but_retention_is():
    wan = load_profile("reram-wan-2022")
    assert wan.replace({"validity": None}) == wan
    assert wan.replace({"retention.interpolate": "linear"}) != wan


def test_scaled_profiles():
    wan = load_profile("reram-wan-2022").scaled(programming=2.0)
    target = torch.tensor([20.0])
    for own, twice in zip(load_profile("reram-wan-2022").retention.sigma, wan.retention.sigma, strict=True):
        torch.testing.assert_close(twice.of_conductance(40.0)(target), 2 * own.of_conductance(40.0)(target))
    cmo = load_profile("reram-cmo-2pct").scaled(drift=0.5, read=3.0)
    assert cmo.relaxation.shift.constant == pytest.approx(-0.04450103)
    assert cmo.relaxation.sigma_slope.constant == pytest.approx(0.5 * 0.04201137)
    assert cmo.read.sigma.scale == 3.0
    assert load_profile("reram-wan-2022@10%").max_noise_level == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"drift": {"t_0": 1.0, "nu_mean": 0.1, "nu_std": 0.0}}, "retention is given and so is drift"),
        ({"programming": {"sigma": 1.0}}, "programming is given but the first age of retention"),
        ({"retention.ages": ["1s", "1h", "1h"]}, r"retention.ages\[2\] is 3600 but must be above"),
        ({"retention.ages": ["0s", "1h", "1d"]}, r"retention.ages\[0\] is 0 but must be above 0"),
        (
            {"retention.ages": [1, 2]},
            "retention.sigma has 3 curves but must have as many as ages, which has 2",
        ),
        ({"retention.ages": ["1s", "1x", "1d"]}, "unknown unit 'x'"),
        ({"retention.sigma": [1.0, -1.0, 1.0]}, r"retention.sigma\[1\] is -1"),
        ({"validity.measured": ["1d", "1s"]}, "validity.measured is .* first not after the second"),
        ({"validity.default_times": []}, "validity.default_times is empty"),
        (
            {"validity.default_times": ["1d"]},
            "validity.default_times holds 1 day but the device is known from 1 s to",
        ),
        ({"read": {"t_read": 1e-6}}, "read.relative_sigma is missing"),
        ({"read": {"t_read": 1e-6, "sigma": 1.0, "relative_sigma": 1.0}}, "give one of them"),
        ({"read": {"sigma": 1.0}}, "read.t_read is missing"),
    ],
)
def test_wrong_sections(changes, words):
    with pytest.raises(ProfileError, match=words):
        DeviceProfile.from_dict(BY_AGE).replace(changes)


class Doubling(DeviceLaw):
    """Lognormal programming, and conductances that double every ``period``."""

    draws = frozenset({"program"})

    def __init__(self, profile, period: float = 1.0) -> None:
        super().__init__(profile)
        self.period = period

    def program(self, target, normal):
        return target * torch.exp(0.1 * normal)

    def drift(self, programmed, coefficients, seconds):
        return programmed * 2 ** (seconds / self.period)


class Careless(DeviceLaw):
    """Gives what ``kind`` says instead of conductances."""

    draws = frozenset()

    def __init__(self, profile, kind: str) -> None:
        super().__init__(profile)
        self.kind = kind

    def program(self, target, normal):
        if self.kind == "nan":
            return (target - 1.0e9).sqrt()
        return target.flatten() if self.kind == "shape" else 3.0


@pytest.fixture
def announced(monkeypatch):
    """Entry points as an installed package would announce them."""
    points = [
        EntryPoint("doubling", f"{__name__}:Doubling", laws.GROUP),
        EntryPoint("careless", f"{__name__}:Careless", laws.GROUP),
        EntryPoint("broken", "no_such_package.laws:Law", laws.GROUP),
        EntryPoint("no-law", "math:pi", laws.GROUP),
    ]
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[Doubling.__module__])
    monkeypatch.setattr(
        laws, "entry_points", lambda group: [point for point in points if point.group == group]
    )
    laws.load_law.cache_clear()
    law_of.cache_clear()
    yield
    laws.load_law.cache_clear()
    law_of.cache_clear()


def own(**law):
    return DeviceProfile.from_dict({"name": "own", "conductance": {"unit": "uS", "g_max": 10.0}, "law": law})


def test_a_law_of_ones_own_is_what_tiles_compute_with(announced):
    profile = own(name="doubling", period=10.0)
    assert profile != own(name="doubling", period=20.0)
    assert profile.has_drift
    tile = CrossbarTile(profile, "none").program(torch.ones(100, 100), Stream(0, ""))
    logs = (tile.programmed[0] / 10.0).log()
    assert logs.std().item() == pytest.approx(0.1, abs=4 * 0.1 / math.sqrt(2e4))
    torch.testing.assert_close(tile.conductances_at(10.0), 2 * tile.programmed)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nan", r"law 'careless': program gives 8 of 8 numbers that are not finite"),
        (
            "shape",
            r"law 'careless': program gives the shape \[8\], but must give that .* \[2, 1, 2, 2\]",
        ),
        ("number", "law 'careless': program gives float, but must give a tensor"),
    ],
)
def test_what_a_law_writes_is_looked_at_before_it_is_used(announced, kind, words):
    profile = own(name="careless", kind=kind)
    with pytest.raises(ProfileError, match=words):
        CrossbarTile(profile).program(torch.ones(2, 2), Stream(0, ""))
    with pytest.raises(ProfileError, match=words.split(" gives")[0]):
        behaviour(profile, [1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("law", "words"),
    [
        (
            {"name": "doublin"},
            r"no installed package announces the law 'doublin' \(did you mean 'doubling'\?\)",
        ),
        ({"name": "broken"}, r"law 'broken' of .* cannot be imported: ModuleNotFoundError"),
        ({"name": "no-law"}, "is no subclass of analognoise.DeviceLaw"),
        ({"name": "doubling", "perio": 3.0}, "law 'doubling' refuses its parameters"),
    ],
)
def test_laws_that_cannot_be_used_are_named_and_the_others_still_work(announced, tmp_path, law, words):
    with pytest.raises(ProfileError, match=words):
        CrossbarTile(own(**law)).program(torch.ones(2, 2), Stream(0, ""))
    path = tmp_path / "own.toml"
    fields = "\n".join(f"{key} = {value!r}" for key, value in law.items())
    path.write_text(f'name = "own"\n[conductance]\nunit = "uS"\ng_max = 10.0\n[law]\n{fields}\n')
    with pytest.raises(ProfileError, match=r"own\.toml, line 6: law cannot be used: .*" + words):
        load_profile(path)
    assert CrossbarTile(own(name="doubling")).program(torch.ones(2, 2), Stream(0, "")).weights_at(1.0).shape
