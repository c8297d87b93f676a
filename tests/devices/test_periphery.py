"""The section [periphery]: presets, what counts as the same, and every error in one sentence."""

import pytest
import torch

from analognoise.devices import load_profile
from analognoise.errors import ProfileError

PCM = load_profile("pcm-ibm")


def with_periphery(**fields):
    return PCM.replace({"periphery": fields})


def test_a_periphery_without_effect_is_none():
    for fields in (
        {},
        {"preset": "none"},
        {"out_noise": 0.0, "w_noise": 0.0},
        {"ir_drop": {"wire_ratio": 0.0}},
    ):
        profile = with_periphery(**fields)
        assert profile.surroundings is None
        assert profile == PCM
        assert profile.digest == PCM.digest


def test_standard_8bit_has_the_figures_of_aihwkit():
    presets = pytest.importorskip("aihwkit.simulator.presets.inference")
    theirs = presets.StandardHWATrainingPreset().forward
    ours = with_periphery(preset="standard-8bit").surroundings
    assert theirs.inp_res == theirs.out_res == 2 * ours.dac.levels == 2 * ours.adc.levels == 254
    assert theirs.out_bound == ours.adc.bound
    assert theirs.out_noise == ours.out_noise
    assert theirs.w_noise_type.value == "PCMRead"
    x = torch.tensor([0.0, 0.25, 1.0])
    torch.testing.assert_close(ours.w_noise(x), theirs.w_noise * x.sqrt())
    assert theirs.ir_drop == 1.0
    assert ours.ir_drop.wire_ratio == pytest.approx(theirs.ir_drop / theirs.ir_drop_g_ratio)


def test_figures_beside_a_preset_replace_its_own():
    found = with_periphery(preset="standard-8bit", adc={"bits": 9}, out_noise=0.0).surroundings
    assert (found.adc.bits, found.adc.bound) == (9, 10.0)
    assert found.out_noise is None
    assert found.dac.percentile == 99.995
    dynamic = with_periphery(preset="standard-8bit", dac={"range": "dynamic"}).surroundings
    assert (dynamic.dac.bits, dynamic.dac.percentile) == (8, None)


def test_digest_is_of_the_figures_and_not_of_the_presets_name():
    preset = with_periphery(preset="standard-8bit")
    spelt = PCM.replace({"periphery": preset.surroundings.as_dict()})
    assert spelt.digest == preset.digest != PCM.digest
    assert preset.replace({"periphery.preset": "none"}).digest == PCM.digest
    assert preset.replace({"periphery": None}).digest == PCM.digest
    assert preset.replace({"periphery.adc.bits": 9}).digest != preset.digest


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"preset": "standard-8"}, r'preset is "standard-8" \(did you mean \'standard-8bit\'\?\)'),
        ({"adc": {"bits": 0}}, r"periphery\.adc\.bits is 0 but must be at least 2"),
        ({"dac": {"bits": 1}}, r"periphery\.dac\.bits is 1 but must be at least 2"),
        ({"adc": {"bits": 8.0}}, r"periphery\.adc\.bits is 8\.0 but must be a whole number"),
        ({"adc": {"bits": 8}}, r"periphery\.adc\.bound is missing: range = \"fixed\" needs it"),
        ({"dac": {"range": "fixed", "bound": 0.0}}, r"dac\.bound is 0\.0 but must be greater than 0"),
        ({"dac": {"range": "fixed", "bound": -1.0}}, r"dac\.bound is -1\.0 but must be greater than 0"),
        ({"dac": {"bits": 8, "bound": 2.0}}, r'dac\.bound is 2 but range = "dynamic" takes none'),
        ({"adc": {"range": "dynamic"}}, r'adc\.range is "dynamic" but must be'),
        (
            {"dac": {"range": "calibrated", "percentile": 101.0}},
            r"dac\.percentile is 101\.0 but must be at most 100",
        ),
        (
            {"adc": {"range": "fixed", "bound": 2.0, "percentile": 99.0}},
            r'adc\.percentile is 99 but range = "fixed" takes none',
        ),
        ({"out_noise": -0.1}, r"periphery\.out_noise is -0\.1 but must be at least 0"),
        ({"w_noise": -0.1}, r"periphery\.w_noise is -0\.1 at x"),
        ({"input_mode": "bit-serial"}, r'input_mode is "bit-serial" but dac\.bits is missing'),
        ({"ir_drop": {}}, r"ir_drop needs wire_resistance \(ohm\) or wire_ratio, but neither is given"),
        ({"noise": 0.1}, r"unknown field periphery\.noise"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(fields, words):
    with pytest.raises(ProfileError, match=words) as caught:
        with_periphery(**fields)
    assert "\n" not in str(caught.value)


def test_a_wire_in_ohm_needs_conductances_in_microsiemens():
    with pytest.raises(ProfileError, match=r"wire_resistance is 2 ohm but the conductances are in nA"):
        PCM.replace({"conductance.unit": "nA", "periphery": {"ir_drop": {"wire_resistance": 2.0}}})
