"""aihwkit's configurations as profiles: device by device as aihwkit itself, and nothing lost silently."""

import warnings

import pytest
import torch

import analognoise as an
from analognoise.devices import load_profile
from analognoise.devices.laws import law_of
from analognoise.errors import ConversionError, ProfileError
from analognoise.interop.aihwkit import (
    NotCarriedOverWarning,
    from_rpu_config,
    read_rpu_config,
    to_noise_model,
    to_rpu_config,
)

pytest.importorskip("aihwkit")

from aihwkit.inference import (
    CustomDriftPCMLikeNoiseModel,
    DualPairConductanceConverter,
    NPairConductanceConverter,
    PCMLikeNoiseModel,
    ReRamCMONoiseModel,
    ReRamWan2022NoiseModel,
    SinglePairConductanceConverter,
    StateIndependentNoiseModel,
)
from aihwkit.inference.compensation import drift
from aihwkit.inference.noise.hermes import HermesNoiseModel
from aihwkit.nn import AnalogLinear
from aihwkit.simulator.configs import FloatingPointRPUConfig, TorchInferenceRPUConfig
from aihwkit.simulator.parameters import IOParameters
from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType, WeightModifierType
from aihwkit.simulator.presets.inference import StandardHWATrainingPreset

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence"),
    pytest.mark.filterwarnings("ignore:__array_wrap__"),
]

SCALED = {"prog_noise_scale": 2.0, "read_noise_scale": 0.5, "drift_scale": 0.3}
PCM_TIMES = (0.0, 3600.0, 31536000.0)
CUSTOM = {"g_lst": [0.0, 10.0, 25.0], "nu_mean_lst": [0.1, 0.05, 0.04], "nu_std_lst": [0.03, 0.02, 0.01]}
MODELS = {
    "pcm": (lambda: PCMLikeNoiseModel(), PCM_TIMES),
    "pcm, another range": (lambda: PCMLikeNoiseModel(g_max=30.0, t_0=10.0, t_read=1e-6, **SCALED), PCM_TIMES),
    "pcm, own coefficients": (lambda: PCMLikeNoiseModel([0.3, 1.0, 0.5, -0.2], g_max=20.0), PCM_TIMES),
    "pcm, own drift": (lambda: CustomDriftPCMLikeNoiseModel(CUSTOM, g_max=25.0, drift_scale=0.7), PCM_TIMES),
    "hermes, one device": (lambda: HermesNoiseModel(num_devices=1, g_max=8.0, **SCALED), PCM_TIMES),
    "hermes, two devices": (lambda: HermesNoiseModel(), PCM_TIMES),
    "state independent": (
        lambda: StateIndependentNoiseModel(g_max=40.0, prog_coeff=[0.1, 0.4], drift_nu_mean=0.03, **SCALED),
        PCM_TIMES,
    ),
    "wan": (lambda: ReRamWan2022NoiseModel(g_max=30.0, noise_scale=0.5), (1.0, 86400.0, 172800.0)),
    "cmo, 2 %": (lambda: ReRamCMONoiseModel(acceptance_range=2, **SCALED), (0.0, 1.0, 86400.0)),
    "cmo, default": (lambda: ReRamCMONoiseModel(), (0.0, 1.0, 86400.0)),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_device_equals_that_of_aihwkit_for_the_same_numbers(name, make_config, monkeypatch):
    make, times = MODELS[name]
    model = make()
    profile = read_rpu_config(make_config(model)).profile
    law, generator = law_of(profile), torch.Generator().manual_seed(1)
    low, high = profile.conductance.g_min, profile.conductance.g_max
    if low:  # aihwkit limits CMO devices after the read noise, the profile before too
        low, high = low + 10, high - 15
    wanted = low + (high - low) * torch.rand(10_000, generator=generator)
    draws = {key: torch.randn(len(wanted), generator=generator) for key in ("program", "drift", "read")}
    if name == "wan":
        draws = dict.fromkeys(draws, draws["program"])
    left = []
    module = type(model).__mro__[1 if name == "pcm, own drift" else 0].__module__
    for place in {module, type(model).__module__}:
        monkeypatch.setattr(f"{place}.randn_like", lambda _: draws[left.pop(0)])

    state, coefficients = law.write(wanted, draws.__getitem__)
    left[:] = ["program"]
    programmed = model.apply_programming_noise_to_conductance(wanted.clone())
    torch.testing.assert_close(law.programmed(state, coefficients), programmed, rtol=1e-5, atol=1e-4)
    left[:] = ["drift"]
    parameters = model.generate_drift_coefficients(wanted.clone())
    for seconds in times:
        left[:] = ["drift", "read"] if "cmo" in name else ["read"]
        theirs = torch.as_tensor(model.apply_drift_noise_to_conductance(programmed, parameters, seconds))
        ours = law.conductances(state, coefficients, seconds, draws.__getitem__)
        torch.testing.assert_close(ours, theirs.float(), rtol=3e-5, atol=2e-4)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (lambda: PCMLikeNoiseModel(), "pcm-ibm"),
        (lambda: HermesNoiseModel(num_devices=1), "pcm-hermes-1"),
        (lambda: HermesNoiseModel(num_devices=2), "pcm-hermes-2"),
    ],
)
def test_a_model_that_ships_gives_the_profile_that_ships(model, name, make_config):
    wanted = load_profile(name)
    found = read_rpu_config(make_config(model(), size=wanted.tile.rows)).profile
    same = wanted.replace({"name": found.name, "programming.sigma": found.programming.sigma})
    assert found.digest == same.digest
    x = torch.linspace(0, 1, 101)
    torch.testing.assert_close(found.programming.sigma(x), wanted.programming.sigma(x))


@pytest.mark.parametrize("name", ["pcm-ibm", "reram-wan-2022", "reram-cmo-2pct", "gaussian@10%"])
@pytest.mark.parametrize("compensation", ["global", "column", "none"])
def test_there_and_back_gives_the_same_profile(name, compensation):
    read = read_rpu_config(to_rpu_config(name, compensation=compensation))
    assert read.profile.digest == load_profile(name).digest
    assert read.compensation == compensation
    assert read.not_carried_over == ()


def test_mapping_and_tile_size(make_config):
    profile = from_rpu_config(make_config(PCMLikeNoiseModel(), size=256))
    assert (profile.mapping.scale, profile.tile.rows, profile.tile.columns) == ("column", 256, 256)
    assert from_rpu_config(make_config(PCMLikeNoiseModel(), columnwise=False)).mapping.scale == "tile"
    # Without an omega aihwkit does not scale columns, whatever the other field says.
    config = make_config(PCMLikeNoiseModel())
    config.mapping.weight_scaling_omega = 0.0
    assert from_rpu_config(config).mapping.scale == "tile"
    assert from_rpu_config(make_config(PCMLikeNoiseModel(), size=0)).tile.rows == 1_000_000


def test_converters(make_config):
    single = PCMLikeNoiseModel(g_converter=SinglePairConductanceConverter(g_max=20.0, g_min=0.5))
    found = from_rpu_config(make_config(single)).conductance
    assert (found.g_max, found.g_min, found.unit) == (20.0, 0.5, "uS")
    for kind in (NPairConductanceConverter, DualPairConductanceConverter):
        several = PCMLikeNoiseModel(g_converter=kind([1.0, 3.0], g_max=20.0))
        mapping = from_rpu_config(make_config(several)).mapping
        assert (mapping.cell, mapping.pairs, mapping.share) == ("pair", (1.0, 3.0), "fill")


def test_several_pairs_are_filled_as_by_aihwkit(make_config):
    converter = NPairConductanceConverter([1.0, 3.0], g_max=20.0, g_min=0.1)
    profile = from_rpu_config(make_config(PCMLikeNoiseModel(g_converter=converter), columnwise=False))
    weights = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    theirs, _ = converter.convert_to_conductances(weights)
    ours, _ = to_noise_model(profile).g_converter.convert_to_conductances(weights)
    torch.testing.assert_close(torch.stack(ours), torch.stack(theirs))


@pytest.mark.parametrize(
    ("compensation", "name"),
    [
        (drift.GlobalDriftCompensation(), "global"),
        (drift.PerColumnDriftCompensation(), "column"),
        (None, "none"),
    ],
)
def test_compensation(compensation, name, make_config):
    config = make_config(PCMLikeNoiseModel())
    config.drift_compensation = compensation
    read = read_rpu_config(config)
    assert (read.compensation, read.not_carried_over) == (name, ())


def test_what_is_left_out_is_named():
    config = StandardHWATrainingPreset()
    config.drift_compensation = drift.GlobalDriftCompensationWithExactReference()
    config.modifier.type = WeightModifierType.ADD_NORMAL
    config.forward.inp_noise = 0.01
    config.forward.bound_management = BoundManagementType.ITERATIVE
    config.forward.out_res = 100.0
    config.mapping.weight_scaling_omega = 0.6
    read = read_rpu_config(config)
    fields = {item.field: item.value for item in read.not_carried_over}
    assert fields["drift_compensation"] == "GlobalDriftCompensationWithExactReference"
    assert fields["forward.inp_noise"] == 0.01
    assert fields["forward.bound_management"] == "Iterative"
    assert fields["forward.out_res"] == 100.0
    assert fields["mapping.weight_scaling_omega"] == 0.6
    assert read.profile.surroundings.adc.as_dict() == {"bound": 10.0, "range": "fixed"}
    assert {"mapping.learn_out_scaling", "clip.type", "remap.type", "modifier.type"} <= set(fields)
    with pytest.warns(NotCarriedOverWarning) as caught:
        assert from_rpu_config(config) == read.profile
    assert [warning.message.item for warning in caught] == list(read.not_carried_over)
    words = " ".join(str(warning.message) for warning in caught)
    assert "forward.inp_noise = 0.01 is not carried over: a profile has no place for it" in words


def test_the_standard_preset_is_the_one_of_the_profiles():
    """aihwkit learns input ranges in training; the preset of the profiles takes them from data."""
    read = read_rpu_config(StandardHWATrainingPreset())
    standard = load_profile("pcm-ibm").replace({"periphery.preset": "standard-8bit"}).surroundings
    found = read.profile.surroundings
    for part in ("adc", "out_noise", "w_noise"):
        assert getattr(found, part) == getattr(standard, part), part
    assert (found.dac.bits, found.dac.range) == (8, "learned")
    assert found.ir_drop.wires == standard.ir_drop.wires
    assert found.ir_drop.wire_ratio == pytest.approx(standard.ir_drop.wire_ratio)
    assert not any(item.field.startswith("forward") for item in read.not_carried_over)


@pytest.mark.parametrize(
    ("management", "threshold", "dac"),
    [
        (NoiseManagementType.ABS_MAX, 0.0, {"bits": 7, "range": "dynamic"}),
        (NoiseManagementType.CONSTANT, 2.5, {"bits": 7, "range": "fixed", "bound": 2.5}),
        (NoiseManagementType.CONSTANT, 0.0, {"bits": 7, "range": "fixed", "bound": 1.0}),
        (NoiseManagementType.NONE, 0.0, {"bits": 7, "range": "fixed", "bound": 1.0}),
        (NoiseManagementType.MAX, 0.0, {"bits": 7, "range": "dynamic"}),
    ],
)
def test_ranges_of_inputs(management, threshold, dac, make_config):
    config = make_config(PCMLikeNoiseModel())
    config.forward = IOParameters(
        noise_management=management, nm_thres=threshold, bound_management=BoundManagementType.NONE
    )
    read = read_rpu_config(config)
    assert read.profile.surroundings.dac.as_dict() == dac
    assert read.profile.surroundings.adc.as_dict() == {"bits": 9, "range": "fixed", "bound": 12.0}
    assert read.profile.surroundings.out_noise == 0.06
    assert len(read.not_carried_over) == (management == NoiseManagementType.MAX)


PERIPHERIES = {
    "abs-max": {"dac": {"bits": 8}, "adc": {"bits": 8, "bound": 10.0}},
    "fixed": {"dac": {"bits": 6, "range": "fixed", "bound": 2.0}, "adc": {"bound": 3.0}},
    "no DAC": {"adc": {"bits": 7, "bound": 8.0}, "out_noise": 0.03},
    "learned": {"dac": {"bits": 8, "range": "learned", "bound": 3.0}},
    "read noise, wires": {"w_noise": 0.02, "ir_drop": {"wire_ratio": 1e-6, "wires": "columns"}},
    "PCM read noise": {"w_noise": {"curve": "power", "coefficient": 0.0175, "exponent": 0.5}},
}


@pytest.mark.parametrize("name", PERIPHERIES)
def test_peripheries_go_there_and_back(name):
    profile = load_profile("ideal").replace({"periphery": PERIPHERIES[name]})
    compiled = "noise" in name
    config = to_rpu_config(profile, compiled=compiled)
    read = read_rpu_config(config)
    if "wires" in name:
        ratio = read.profile.surroundings.ir_drop.wire_ratio
        assert ratio == pytest.approx(1e-6)
    else:
        assert read.profile.surroundings == profile.surroundings
    # The same from the configuration alone, without the profile that its noise model remembers.
    config.noise_model = to_noise_model(profile.replace({"periphery": None}))
    found = read_rpu_config(config).profile.surroundings.as_dict()
    wanted = profile.surroundings.as_dict()
    for part in ("dac", "adc", "out_noise"):
        assert found.get(part) == wanted.get(part), part
    if "w_noise" in wanted:
        x, now = torch.linspace(0, 1, 11), read_rpu_config(config).profile.surroundings
        torch.testing.assert_close(now.w_noise(x), profile.surroundings.w_noise(x))
    assert read.not_carried_over == ()


@pytest.mark.parametrize("name", ["abs-max", "fixed"])
def test_outputs_with_a_periphery_equal_those_of_aihwkit(name):
    profile = load_profile("ideal").replace({"periphery": PERIPHERIES[name]})
    layer, x = torch.nn.Linear(60, 20), torch.randn(50, 60)
    theirs = AnalogLinear.from_digital(layer, to_rpu_config(profile)).eval()
    ours = an.program_(an.convert_to_analog(layer, profile).eval())
    with torch.no_grad():
        assert (ours(x) - layer(x)).abs().max() > 1e-3
        assert (ours(x) - theirs(x)).abs().max() <= 1e-6 * layer(x).abs().max()


@pytest.mark.parametrize(
    ("periphery", "words"),
    [
        ({"dac": {"bits": 8}, "input_mode": "bit-serial"}, r"of periphery\.input_mode"),
        ({"adc": {"bits": 8, "range": "calibrated"}}, r"of periphery\.adc\.range it has a fixed one"),
        ({"w_noise": {"curve": "polynomial", "coefficients": [0.0, 0.1]}}, r"of periphery\.w_noise it has a"),
        ({"w_noise": 0.02}, r"periphery\.w_noise, which aihwkit's torch tile cannot do: ask for compiled"),
        ({"ir_drop": {"wire_ratio": 1e-6}}, r"of periphery\.ir_drop\.wires"),
    ],
)
def test_peripheries_that_aihwkit_does_not_have_are_refused(periphery, words):
    with pytest.raises(ConversionError, match=words):
        to_rpu_config(load_profile("ideal").replace({"periphery": periphery}))


def test_nothing_is_said_where_nothing_is_left_out(make_config):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_rpu_config(make_config(PCMLikeNoiseModel()))


def test_a_reference_that_aihwkit_dropped_is_named(make_config):
    """Defect of aihwkit: coefficients and prog_coeff_g_max_reference together lose the reference."""
    model = PCMLikeNoiseModel(prog_coeff=[1.0, 0.5], prog_coeff_g_max_reference=40.0)
    assert not hasattr(model, "prog_coeff_g_max_reference")
    (item,) = read_rpu_config(make_config(model)).not_carried_over
    assert item.field == "noise_model.prog_coeff_g_max_reference"


def test_two_figures_that_aihwkit_gets_wrong_are_carried_over_and_noted(make_config):
    wan = from_rpu_config(make_config(ReRamWan2022NoiseModel()))
    shipped = load_profile("reram-wan-2022")
    # At g_max = 25 µS aihwkit uses the coefficients of G / 40 µS with G / 25 µS.
    target = torch.tensor([10.0])
    first = wan.retention.sigma[0].of_conductance(25.0)(target)
    published = shipped.retention.sigma[0].of_conductance(40.0)(target * 40 / 25)
    assert float(first) == pytest.approx(float(published))
    assert "40 uS" in wan.source.disagreements
    cmo = read_rpu_config(make_config(ReRamCMONoiseModel())).profile
    assert float(cmo.programming.sigma.of_conductance(88.2)(target)) == pytest.approx(0.00081107 + 0.0106879)
    assert "0.2 %" in cmo.source.disagreements


def test_what_cannot_be_read_is_refused(make_config):
    class Mine(PCMLikeNoiseModel):
        pass

    with pytest.raises(ProfileError, match="noise_model is a Mine, whose law cannot be read from outside"):
        from_rpu_config(make_config(Mine()))
    with pytest.raises(ProfileError, match="found FloatingPointRPUConfig"):
        from_rpu_config(FloatingPointRPUConfig())
    config = TorchInferenceRPUConfig(noise_model=PCMLikeNoiseModel(prog_noise_scale=-1.0))
    with pytest.raises(ProfileError, match=r"noise_model PCMLikeNoiseModel: .*scale"):
        from_rpu_config(config)
