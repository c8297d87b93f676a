"""A profile goes out as measurements and comes back, with intervals that hold at their rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import analognoise as an
from analognoise.devices import DeviceProfile, load_profile
from analognoise.errors import DataError, ProfileError, ResultsError, UnitError
from analognoise.fitting import FittedCurve, ProfileFit, fit_profile

Measure = Callable[..., pd.DataFrame]
X = (0.0, 0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
AGES = {
    "pcm-ibm": (20.0, 200.0, 3600.0, 86400.0, 864000.0),
    "pcm-hermes-1": (200.0, 3600.0, 86400.0, 864000.0),
}
FORMS = {"sigma": "polynomial", "nu_mean": "log", "nu_std": "log", "relative_sigma": "power"}
# What hardware_profiles/pcm-ibm.toml says.
TRUE = {
    "programming.sigma": {"coefficients[0]": 0.26348, "coefficients[1]": 1.9650, "coefficients[2]": -1.1731},
    "drift.nu_mean": {"slope": -0.0155, "intercept": 0.0244, "min": 0.049, "max": 0.1},
    "drift.nu_std": {"slope": -0.0125, "intercept": -0.0059, "min": 0.008, "max": 0.045},
    "read.relative_sigma": {"coefficient": 0.0088, "exponent": -0.65, "max": 0.2},
}
# A device that takes the same time to fit as to describe: two ages, no limits.
SIMPLE = {
    "name": "simple",
    "conductance": {"unit": "uS", "g_max": 10.0, "g_min": 2.0},
    "programming": {"sigma": 0.3},
    "drift": {"t_0": 10.0, "nu_mean": 0.05, "nu_std": 0.01},
    "read": {"t_read": 250e-9, "relative_sigma": 0.005},
}
CONSTANT = dict.fromkeys(FORMS, "constant")
LEVELS = (2.0, 4.0, 6.0, 8.0, 10.0)


def truth(profile: DeviceProfile, curve: FittedCurve) -> np.ndarray:
    """The true curve at the levels of a fitted one."""
    section, name = curve.field.split(".")
    x = torch.tensor([max(level.x, 1e-7) for level in curve.levels], dtype=torch.float64)
    return getattr(getattr(profile, section), name)(x).numpy()


def held(profile: DeviceProfile, fit: ProfileFit) -> dict[str, list[bool]]:
    """Which levels' intervals hold the true curve, by field."""
    return {
        curve.field: [
            level.low <= true <= level.high
            for level, true in zip(curve.levels, truth(profile, curve), strict=True)
        ]
        for curve in fit.curves
    }


def sure(hits: int, trials: int, rate: float, probability: float = 1e-4) -> bool:
    """Whether so few hits are no chance at the stated rate."""
    return hits >= stats.binom.ppf(probability, trials, rate)


@pytest.fixture(scope="module")
def ibm(measure: Measure) -> ProfileFit:
    profile = load_profile("pcm-ibm")
    targets = [25 * x for x in X]
    return fit_profile(measure(profile, targets, 250, AGES["pcm-ibm"], 4, seed=1), name="round-trip")


@pytest.fixture(scope="module")
def simple(measure: Measure) -> ProfileFit:
    profile = DeviceProfile.from_dict(SIMPLE)
    return fit_profile(measure(profile, LEVELS, 200, [10.0, 36000.0], 3, seed=2), curves=CONSTANT)


def test_pcm_comes_back_in_its_own_forms(ibm: ProfileFit) -> None:
    forms = {curve.field: curve.form for curve in ibm.curves}
    assert forms["programming.sigma"].startswith("polynomial")
    assert forms["drift.nu_std"] == "log with min and max"
    assert forms["read.relative_sigma"].startswith("power with max")
    hits = [
        item.low <= TRUE[curve.field][item.name] <= item.high
        for curve in ibm.curves
        if set(TRUE[curve.field]) == {item.name for item in curve.parameters}
        for item in curve.parameters
    ]
    assert len(hits) >= 7
    # Parameters of one curve go together: half of them may be off at once.
    assert sum(hits) >= len(hits) - 3


@pytest.mark.parametrize("name", ["pcm-ibm", "pcm-hermes-1"])
def test_intervals_of_the_levels_hold_at_their_rate(name: str, measure: Measure, ibm: ProfileFit) -> None:
    profile, fit = load_profile(name), ibm
    if name != "pcm-ibm":
        targets = [10.35 * x for x in X]
        fit = fit_profile(measure(profile, targets, 250, AGES[name], 4, seed=3), t_read=profile.read.t_read)
    for field, hits in held(profile, fit).items():
        assert sure(sum(hits), len(hits), 0.95), field
    everything = [hit for hits in held(profile, fit).values() for hit in hits]
    assert len(everything) >= 60
    assert sure(sum(everything), len(everything), 0.95)
    # And they are no wider than they must be: most of the half as wide ones do not hold nearly always.
    narrow = [
        abs(level.value - true) <= 0.25 * (level.high - level.value)
        for curve in fit.curves
        for level, true in zip(curve.levels, truth(profile, curve), strict=True)
    ]
    inside = 2 * stats.norm.cdf(0.25 * stats.norm.ppf(0.975)) - 1
    assert sum(narrow) <= stats.binom.ppf(1 - 1e-4, len(narrow), inside)
    for curve in fit.curves:
        true = truth(profile, curve)
        error = np.array([level.fitted for level in curve.levels]) - true
        reach = np.array([level.fitted_high - level.fitted for level in curve.levels])
        assert np.mean(np.abs(error) <= 2 * reach) >= 0.9, curve.field


def test_tables_of_read_noise_scatter_by_their_errors(measure: Measure) -> None:
    """Levels of neighbouring conductances: taking their mixing out must not blow chance up."""
    profile, missed = load_profile("pcm-hermes-1"), []
    for seed in range(4):
        data = measure(profile, [10.35 * x for x in X], 300, AGES["pcm-hermes-1"], 5, seed=seed)
        fit = fit_profile(data, t_read=profile.read.t_read, curves={"relative_sigma": "table"}, seed=seed)
        curve = fit["read.relative_sigma"]
        errors = [(level.high - level.value) / stats.norm.ppf(0.975) for level in curve.levels]
        missed.extend((np.array([level.value for level in curve.levels]) - truth(profile, curve)) / errors)
    assert len(missed) == 4 * 24
    assert np.sum(np.square(missed)) < stats.chi2.ppf(1 - 1e-3, len(missed))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pcm-ibm", "pcm-hermes-1"])
def test_all_intervals_hold_at_their_rate_in_many_fits(name: str, measure: Measure) -> None:
    profile = load_profile(name)
    levels: dict[str, list[bool]] = {}
    curves: dict[str, list[float]] = {}
    parameters: dict[str, list[bool]] = {}
    for seed in range(40):
        data = measure(profile, [profile.conductance.g_max * x for x in X], 300, AGES[name], 5, seed=seed)
        fit = fit_profile(data, t_read=profile.read.t_read, seed=seed)
        for field, hits in held(profile, fit).items():
            levels.setdefault(field, []).extend(hits)
        for curve in fit.curves:
            inside = [
                level.fitted_low <= true <= level.fitted_high
                for level, true in zip(curve.levels, truth(profile, curve), strict=True)
            ]
            curves.setdefault(curve.field, []).append(float(np.mean(inside)))
            wanted = TRUE[curve.field] if name == "pcm-ibm" else {}
            if set(wanted) == {item.name for item in curve.parameters}:
                for item in curve.parameters:
                    hit = item.low <= wanted[item.name] <= item.high
                    parameters.setdefault(f"{curve.field} {item.name}", []).append(hit)
    for field, hits in levels.items():
        assert sure(sum(hits), len(hits), 0.94), (field, np.mean(hits))
    for field, hits in parameters.items():
        assert sure(sum(hits), len(hits), 0.93), (field, np.mean(hits))
    for field, shares in curves.items():
        # Levels of one curve hold or miss together, so that a fit is one trial.
        least = 0.90 - 4 * np.std(shares) / math.sqrt(len(shares))
        assert np.mean(shares) >= least, (field, np.mean(shares))


def test_constants_come_back_as_constants(simple: ProfileFit) -> None:
    wanted = {
        "programming.sigma": 0.3,
        "drift.nu_mean": 0.05,
        "drift.nu_std": 0.01,
        "read.relative_sigma": 0.005,
    }
    states, reads = 1000, 1000 * 2 * 2
    errors = {
        "programming.sigma": 0.3 / math.sqrt(2 * states),
        "drift.nu_mean": 0.01 / math.sqrt(states),
        "drift.nu_std": 0.01 / math.sqrt(2 * states),
        "read.relative_sigma": 0.005 / math.sqrt(2 * reads),
    }
    for field, value in wanted.items():
        (found,) = simple[field].parameters
        assert abs(found.value - value) < 4 * errors[field]
        # The interval is as wide as theory says, read noise and sampling on top.
        assert 0.7 * errors[field] < (found.high - found.low) / 3.92 < 1.8 * errors[field]


def test_spreads_are_freed_of_read_noise(measure: Measure) -> None:
    noisy = DeviceProfile.from_dict({**SIMPLE, "read": {"t_read": 250e-9, "relative_sigma": 0.02}})
    data = measure(noisy, LEVELS, 400, [10.0, 3600.0], 2, seed=4)
    fit = fit_profile(data, curves=CONSTANT)
    first = data[data["time_s"] == 10].groupby("device")[["target_uS", "conductance_uS"]].mean()
    raw = (first["conductance_uS"] - first["target_uS"]).std()
    found = fit["programming.sigma"].levels
    mean = math.sqrt(np.mean([level.value**2 for level in found]))
    assert raw > 0.4  # of which read noise is a part
    assert abs(mean - 0.3) < 4 * 0.3 * (raw / 0.3) ** 2 / math.sqrt(2 * 2000)
    spread = math.sqrt(np.mean([level.value**2 for level in fit["drift.nu_std"].levels]))
    growth = math.sqrt(math.log(10 / 500e-9) + math.log(3600 / 500e-9))
    error = 0.02 * growth / math.sqrt(2) / math.log(360)
    assert error > 0.01  # the exponents' spread is less than half of what is seen
    assert abs(spread - 0.01) < 4 * (0.01**2 + error**2) / 0.01 / math.sqrt(2 * 2000)


def test_a_curve_that_is_no_form_becomes_a_table(measure: Measure) -> None:
    x = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    bumps = {"curve": "table", "x": x, "y": [0.2, 0.6, 0.2, 0.6, 0.2, 0.6, 0.2, 0.6, 0.2]}
    profile = DeviceProfile.from_dict({**SIMPLE, "programming": {"sigma": bumps}})
    fit = fit_profile(measure(profile, [10 * place for place in x], 100, [10.0], 1, seed=5))
    curve = fit["programming.sigma"]
    assert (curve.form, curve.parameters) == ("table", ())
    assert fit.profile.programming.sigma.curve == "table"
    hits = held(profile, fit)["programming.sigma"]
    assert sure(sum(hits), len(hits), 0.95)
    assert any("no [drift]" in sentence for sentence in fit.not_told)
    assert fit.profile.drift is None
    assert fit.profile.read is None


def test_what_one_age_and_single_reads_cannot_tell(measure: Measure) -> None:
    data = measure(DeviceProfile.from_dict(SIMPLE), LEVELS, 40, [10.0, 12.0], 1, seed=6)
    fit = fit_profile(data)
    assert [curve.field for curve in fit.curves] == ["programming.sigma"]
    assert any(
        sentence.startswith("Drift: no devices were read at two ages that") for sentence in fit.not_told
    )
    assert any(sentence.startswith("Read noise: no device was read twice") for sentence in fit.not_told)
    fit = fit_profile(measure(DeviceProfile.from_dict(SIMPLE), LEVELS, 40, [10.0], 1, seed=6))
    assert fit.not_told[0].startswith("Drift: devices were read at one age only (10 s), so that")
    assert any("the profile's g_min" in sentence for sentence in fit.not_told)
    assert (fit.profile.conductance.g_min, fit.profile.conductance.g_max) == (2.0, 10.0)


def test_one_target_is_the_whole_range(measure: Measure) -> None:
    fit = fit_profile(measure(DeviceProfile.from_dict(SIMPLE), [5.0], 30, [10.0], 2, seed=11))
    assert (fit.profile.conductance.g_min, fit.profile.conductance.g_max) == (0.0, 5.0)
    assert fit["programming.sigma"].form == "constant"
    assert "Targets below 5 uS: none was measured, curves go on from there." in fit.not_told


def test_what_is_noticed(measure: Measure) -> None:
    data = measure(DeviceProfile.from_dict(SIMPLE), LEVELS, 200, [10.0, 600.0, 36000.0], 3, seed=7)
    assert fit_profile(data, curves=CONSTANT).remarks == ()
    odd = data.copy()
    odd["conductance_uS"] += 0.5
    late = odd["time_s"] == 600
    odd.loc[late, "conductance_uS"] *= 1.1
    odd.loc[odd["device"].isin(["d0", "d1", "d2"]), "conductance_uS"] += 4
    odd["chip"] = 1
    said = " ".join(fit_profile(odd, curves=CONSTANT).remarks)
    assert "Columns that were not used: chip." in said
    assert "Devices do not lie around their targets" in said
    assert "3 of 1,000 programmed devices are more than 6 standard deviations off" in said
    assert "Drift is no power law: at a target of" in said
    assert "conductance at 10 min is +" in said
    slow = data.copy()
    noise = np.random.default_rng(0).normal(1, 0.06, 3000)
    slow["conductance_uS"] *= noise[pd.factorize(slow["device"] + slow["time_s"].astype(str))[0]]
    assert "times as much as repeated reads explain" in " ".join(fit_profile(slow, curves=CONSTANT).remarks)


def test_the_clock_may_start_late(measure: Measure) -> None:
    data = measure(DeviceProfile.from_dict(SIMPLE), LEVELS, 100, [10.0, 36000.0], 2, seed=8)
    since = fit_profile(data, curves=CONSTANT)
    data["time_s"] -= 10
    with pytest.raises(DataError, match=r"the first age is 0 s.*--t-0 20s"):
        fit_profile(data)
    shifted = fit_profile(data, t_0="10s", curves=CONSTANT)
    assert shifted.profile == since.profile
    assert since.t_0 == shifted.t_0 == 10


def test_more_targets_than_levels_are_put_together(measure: Measure) -> None:
    targets = np.random.default_rng(0).uniform(2, 10, 1500)
    fit = fit_profile(
        measure(DeviceProfile.from_dict(SIMPLE), targets, 1, [10.0, 36000.0], 2, seed=9), curves=CONSTANT
    )
    for curve in fit.curves:
        hits = held(DeviceProfile.from_dict(SIMPLE), fit)[curve.field]
        assert sure(sum(hits), len(hits), 0.95)


def test_same_measurements_same_profile(ibm: ProfileFit, measure: Measure) -> None:
    profile = load_profile("pcm-ibm")
    data = measure(profile, [25 * x for x in X], 250, AGES["pcm-ibm"], 4, seed=1)
    again = fit_profile(data.sample(frac=1.0, random_state=0), name="round-trip", curves=FORMS)
    # Other rows first gives states other numbers, and levels the same states.
    first = {
        (row.field, row.x): row.devices
        for row in ibm.frame.itertuples()
        if row.field != "read.relative_sigma"
    }
    other = {
        (row.field, row.x): row.devices
        for row in again.frame.itertuples()
        if row.field != "read.relative_sigma"
    }
    assert first == other


def test_the_same_seed_gives_the_same_profile(simple: ProfileFit, measure: Measure) -> None:
    data = measure(DeviceProfile.from_dict(SIMPLE), LEVELS, 200, [10.0, 36000.0], 3, seed=2)
    assert fit_profile(data, curves=CONSTANT) == simple
    assert fit_profile(data, curves=CONSTANT, seed=1).profile != simple.profile


def test_the_file_is_a_profile_with_its_evidence(simple: ProfileFit, tmp_path: Path) -> None:
    path = simple.save(tmp_path / "my.toml")
    assert an.load_profile(path) == simple.profile
    text = path.read_text()
    (value,) = simple["drift.nu_mean"].parameters
    assert f"# constant: value {value.value:.4g} ({value.low:.4g} … {value.high:.4g})\nnu_mean = " in text
    source = an.load_profile(path).source
    assert source.citation.startswith("FILL IN")
    assert (
        "6,000 reads of 1,000 devices at 5 targets from 2 to 10, 2 ages from 10 s to 10 h" in source.measured
    )
    with pytest.raises(ResultsError, match=r"my\.toml exists: name another file, or replace it with --force"):
        simple.save(path)
    simple.save(path, force=True)
    picture = simple.plot(tmp_path / "my.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ResultsError, match="exists"):
        simple.plot(picture)
    with pytest.raises(KeyError, match=r"no curve 'drift\.t_0'"):
        simple["drift.t_0"]


def test_wrong_arguments(measure: Measure) -> None:
    data = measure(DeviceProfile.from_dict(SIMPLE), LEVELS, 20, [10.0], 1, seed=10)
    for wrong, error, message in [
        ({"g_max": 9.0}, DataError, "g_max is 9 but the largest target is 10"),
        ({"g_min": 10.0}, ProfileError, "g_min is 10 but must be below g_max = 10"),
        (
            {"t_read": 8.0},
            DataError,
            "t_read is 8 s but must be above 0 and at most half of the first age, 10 s",
        ),
        ({"t_0": "soon"}, UnitError, "drift time 'soon'"),
        ({"t_0": 0.0}, DataError, "t_0 is 0 s but must be above 0"),
        ({"curves": {"nu": "log"}}, DataError, "curve 'nu' is not known .*: known are sigma, nu_mean"),
        ({"curves": {"sigma": "cubic"}}, DataError, "form 'cubic' of curve 'sigma' is not known"),
        ({"confidence": 95}, DataError, "confidence is 95 but must be between 0 and 1"),
        ({"name": "my device"}, ProfileError, 'name is "my device"'),
        ({"duplicates": "skip"}, DataError, "write one of refuse, drop, keep"),
        ({"target_unit": "Ohm"}, DataError, "unit 'Ohm' of the targets is not known"),
    ]:
        with pytest.raises(error, match=message):
            fit_profile(data, **wrong)
    with pytest.raises(
        DataError, match=r"holds 9 programmed devices, but a spread cannot be told from fewer than 10"
    ):
        fit_profile(data.head(9))
    exact = data.assign(conductance_uS=data["target_uS"])
    with pytest.raises(DataError, match=r"nothing is left to fit programming\.sigma to"):
        fit_profile(exact)
    with pytest.raises(DataError, match="every target_uS is 0"):
        fit_profile(data.assign(target_uS=0.0))
