"""A profile as a noise model of aihwkit: in aihwkit's own tiles, for every profile that ships."""

import copy
import pickle

import pytest
import torch

import analognoise as an
from analognoise.crossbar import CrossbarTile
from analognoise.devices import load_profile
from analognoise.errors import ConversionError, ProfileError
from analognoise.interop.aihwkit import to_noise_model, to_rpu_config
from analognoise.seeds import Stream, nanoseconds

pytest.importorskip("aihwkit")

from aihwkit.inference import BaseNoiseModel
from aihwkit.nn import AnalogLinear
from aihwkit.nn.conversion import convert_to_analog

from analognoise.interop.aihwkit import noise_model as module

STREAM = Stream(3, "", layer="layer", chip=1)


def weights(columns=9, rows=14):
    return torch.randn(columns, rows, generator=torch.Generator().manual_seed(2))


def draws(shape_of, time_ns=None):
    """What replaces the global generators: the numbers of a stream, by process."""
    return lambda like: (
        lambda process: STREAM.at(process=process, time_ns=time_ns).normal(tuple(shape_of(like)))
    )


@pytest.mark.parametrize("name", an.list_profiles())
@pytest.mark.parametrize("collapse_pairs", [False, True])
def test_every_weight_equals_that_of_our_tile_for_the_same_normal_numbers(name, collapse_pairs, monkeypatch):
    profile = load_profile(name)
    if collapse_pairs and profile.mapping.cell not in (None, "pair"):
        pytest.skip("no pairs")
    tile = CrossbarTile(profile, "none", collapse_pairs).program(weights(), STREAM)
    model = to_noise_model(profile, collapse_pairs=collapse_pairs)
    monkeypatch.setattr(module, "_drawing", draws(lambda like: like.shape))
    programmed, parameters = model.apply_programming_noise(weights())
    torch.testing.assert_close(programmed, tile.programmed_weights()[0], rtol=1e-5, atol=1e-6)
    for seconds in {profile.valid_times[0], min(profile.valid_times[1], 86400.0)}:
        monkeypatch.setattr(module, "_drawing", draws(lambda like: like.shape, nanoseconds(seconds)))
        later = model.apply_drift_noise(programmed, parameters, seconds)
        torch.testing.assert_close(later, tile.weights_at(seconds)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", an.list_profiles())
def test_it_drops_into_a_configuration_of_aihwkit(name, make_config):
    model = torch.nn.Sequential(torch.nn.Linear(14, 9), torch.nn.ReLU(), torch.nn.Linear(9, 3))
    config = make_config(to_noise_model(name))
    assert isinstance(config.noise_model, BaseNoiseModel)
    first, last = load_profile(name).valid_times
    seconds = first or min(last, 3600.0)
    x = torch.randn(5, 14)

    def run(seed):
        analog = convert_to_analog(model, config).eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            analog.program_analog_weights()
            analog.drift_analog_weights(seconds)
        return analog(x).detach()

    assert torch.equal(run(0), run(0))
    if name == "ideal":
        torch.testing.assert_close(run(0), model(x).detach(), rtol=1e-4, atol=1e-5)
    else:
        assert not torch.equal(run(0), run(1))


def test_spread_of_weights_in_a_tile_of_aihwkit():
    """√2 · σ · max|w| / g_max for generic noise, from 40,000 weights: within four standard errors."""
    profile = load_profile("gaussian").replace({"mapping.scale": "tile"})
    layer = torch.nn.Linear(200, 200, bias=False)
    analog = AnalogLinear.from_digital(layer, to_rpu_config(profile, compensation="none")).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        analog.program_analog_weights()
        analog.drift_analog_weights(3600.0)
    off = analog.get_weights()[0] - layer.weight.detach()
    expected = 2**0.5 * 0.05 * float(layer.weight.detach().abs().max())
    assert float(off.std()) == pytest.approx(expected, rel=4 / (2 * 40_000) ** 0.5)


def test_the_conductances_of_single_devices_follow_the_profile():
    """aihwkit's per-device methods, which its own tools call: means over 100,000 devices."""
    model = to_noise_model("pcm-ibm")
    target = torch.full((100_000,), 12.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        programmed = model.apply_programming_noise_to_conductance(target)
        later = model.apply_drift_noise_to_conductance(
            programmed, model.generate_drift_coefficients(target), 86400.0
        )
    assert float(programmed.mean()) == pytest.approx(12.5, abs=4 * 0.953 / 100_000**0.5)
    assert float(programmed.std()) == pytest.approx(0.953, rel=0.01)
    assert float(later.mean()) / 12.5 == pytest.approx(0.664, rel=0.003)


def test_a_whole_configuration_follows_the_profile():
    from aihwkit.inference.compensation.drift import PerColumnDriftCompensation
    from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig

    config = to_rpu_config("reram-wan-2022", compensation="column")
    assert isinstance(config, TorchInferenceRPUConfig)
    assert (config.mapping.max_input_size, config.mapping.max_output_size) == (256, 256)
    assert config.mapping.weight_scaling_columnwise
    assert isinstance(config.drift_compensation, PerColumnDriftCompensation)
    assert config.forward.is_perfect
    assert to_rpu_config("pcm-ibm", compensation="none").drift_compensation is None
    compiled = to_rpu_config("gaussian", compiled=True)
    assert type(compiled) is InferenceRPUConfig
    assert not compiled.mapping.weight_scaling_columnwise


def test_pairs_are_kept_between_programming_and_drift():
    """A weight of zero in the middle of large ones: both devices go on having their own noise."""
    zeros = torch.zeros(100, 100)
    zeros[:, 0] = 1.0
    spreads = {}
    for collapse_pairs in (False, True):
        model = to_noise_model("pcm-ibm", collapse_pairs=collapse_pairs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            now = model.apply_noise(zeros, 31536000.0)
        spreads[collapse_pairs] = float(now[:, 1:].std())
    assert spreads[True] < 0.97 * spreads[False]


def test_copies_pickles_and_comparisons():
    model = to_noise_model("pcm-ibm", collapse_pairs=True)
    assert copy.deepcopy(model) == model
    assert pickle.loads(pickle.dumps(model)) == model
    assert model != to_noise_model("pcm-ibm")
    assert str(model) == "ProfileNoiseModel(profile=pcm-ibm, collapse_pairs=True)"


def test_wrong_use_is_refused():
    with pytest.raises(ProfileError, match="unknown profile 'pcm-imb'"):
        to_noise_model("pcm-imb")
    with pytest.raises(ConversionError, match="one device for each weight"):
        to_noise_model("reram-cmo-2pct", collapse_pairs=True)
    faulty = load_profile("pcm-ibm").replace({"faults.stuck_at_g_min": 0.1})
    with pytest.raises(ConversionError, match=r"profile 'pcm-ibm' has \[faults\], which aihwkit's inference"):
        to_noise_model(faulty)
    with pytest.raises(ConversionError, match=r"profile 'pcm-ibm' has \[faults\]: leave one of them out"):
        an.convert_to_analog(torch.nn.Linear(3, 2), faulty, collapse_pairs=True)
    with pytest.raises(
        ConversionError, match=r"profile 'pcm-ibm' has \[faults\], which aihwkit's inference tiles"
    ):
        an.convert_to_analog(torch.nn.Linear(3, 2), faulty, engine="aihwkit")
    with pytest.raises(ConversionError, match="unknown drift compensation"):
        to_rpu_config("pcm-ibm", compensation="all")
    model = to_noise_model("reram-wan-2022")
    programmed, parameters = model.apply_programming_noise(weights())
    with pytest.raises(ProfileError, match="known from 1 s to 2 days"):
        model.apply_drift_noise(programmed, parameters, 31536000.0)
