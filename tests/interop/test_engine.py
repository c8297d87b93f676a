"""aihwkit's tiles under our layers: the same contracts, and exactly what aihwkit computes."""

import copy
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import analognoise as an
from analognoise.errors import ChipError, ConversionError, MissingPackageError, UnitError
from analognoise.interop.aihwkit import to_noise_model, to_rpu_config
from analognoise.seeds import Stream, nanoseconds


@pytest.fixture
def aihwkit():
    return pytest.importorskip("aihwkit")


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()


def images():
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def on_aihwkit(model=None, profile="pcm-ibm", **options):
    model = net() if model is None else model
    return an.convert_to_analog(model, profile, engine="aihwkit", **options).eval()


def test_outputs_are_those_of_layers_of_aihwkit(aihwkit, make_config):
    """Converted, programmed, drifted and computed by aihwkit alone, from the same state of the generator."""
    from aihwkit.inference.noise.pcm import PCMLikeNoiseModel
    from aihwkit.nn.conversion import convert_to_analog

    model, config = net(), make_config(PCMLikeNoiseModel(g_max=25.0))
    ours = on_aihwkit(model, config)
    an.program_(ours, seed=7, chip=2)
    theirs = convert_to_analog(model, config).eval()
    layers = dict(theirs.named_analog_layers())
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for name, layer in layers.items():
            stream = Stream(7, "aihwkit program", name, 0, 2)
            torch.default_generator.set_state(stream.generator().get_state())
            layer.program_analog_weights()
        torch.testing.assert_close(ours(images()), theirs(images()), rtol=1e-4, atol=1e-5)
        for seconds in (3600.0, 0.0, 31536000.0):
            an.drift_to_(ours, seconds)
            for name, layer in layers.items():
                stream = Stream(7, "aihwkit read", name, 0, 2, nanoseconds(seconds))
                torch.default_generator.set_state(stream.generator().get_state())
                layer.drift_analog_weights(seconds)
            torch.testing.assert_close(ours(images()), theirs(images()), rtol=1e-4, atol=1e-5)


def test_a_chip_is_one_history_and_generators_are_left_alone(aihwkit):
    model = on_aihwkit()
    an.program_(model, seed=1, chip=4)
    fresh = model(images())
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    forward = {}
    for time in ("1s", "1d", "1y"):
        an.drift_to_(model, time)
        forward[time] = model(images())
    for time in ("1y", "1s", "1d"):
        an.drift_to_(model, time)
        assert torch.equal(model(images()), forward[time])
    torch.manual_seed(99)
    again = on_aihwkit()
    torch.set_rng_state(states[0])
    an.program_(again, seed=1, chip=4)
    assert torch.equal(again(images()), fresh)
    an.program_(again, seed=1, chip=5)
    assert not torch.equal(again(images()), fresh)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]


def test_the_model_is_still_the_users(aihwkit):
    model = net()
    analog = on_aihwkit(model)
    assert list(analog.state_dict()) == list(model.state_dict())
    assert all(a is b for a, b in zip(analog.parameters(), model.parameters(), strict=True))
    an.program_(analog)
    with an.digital(analog):
        assert torch.equal(analog(images()), model(images()))
    assert torch.equal(an.convert_to_digital(analog)(images()), model(images()))
    an.drift_to_(analog, "1h")
    for other in (copy.deepcopy(analog), pickle.loads(pickle.dumps(analog))):
        assert torch.equal(other(images()), analog(images()))
        an.drift_to_(other, "1d")
        an.drift_to_(analog, "1d")
        assert torch.equal(other(images()), analog(images()))
        an.drift_to_(analog, "1h")


def test_evaluation_reports_and_resumes(aihwkit, digits, tmp_path):
    model, data = digits
    analog = on_aihwkit(model)
    path = tmp_path / "results.csv"
    first = an.evaluate_drift(analog, data, times=["1h", "1y"], chips=2, out=path)
    assert "simulated by aihwkit" in str(an.describe(analog))
    assert "simulated by aihwkit" in " ".join(str(first.summary()).split())
    assert first.not_read == ()
    more = an.evaluate_drift(analog, data, times=["1h", "1d", "1y"], chips=3, out=path)
    assert more.reused == 4
    kept = {(row.chip, row.time_s): row.value for row in more.rows}
    assert all(kept[row.chip, row.time_s] == row.value for row in first.rows)
    ids = {
        an.evaluate_drift(other, data, times=["1h"], chips=1).run_id
        for other in (
            analog,
            on_aihwkit(model, collapse_pairs=True),
            an.convert_to_analog(model, "pcm-ibm"),
            an.convert_to_analog(model, "pcm-ibm", collapse_pairs=True),
        )
    }
    assert len(ids) == 4


def test_configurations_that_differ_are_other_runs(aihwkit, make_config, digits):
    from aihwkit.inference.noise.pcm import PCMLikeNoiseModel

    model, data = digits
    ids = set()
    for g_max in (25.0, 25.001):
        analog = on_aihwkit(model, make_config(PCMLikeNoiseModel(g_max=g_max)))
        ids.add(an.evaluate_drift(analog, data[:1], times=["1h"], chips=1).run_id)
    assert len(ids) == 2


def test_layers_that_aihwkit_does_not_have(aihwkit):
    """Recurrent and attention layers and grouped convolutions are on its tiles by way of ours."""
    x = torch.randn(3, 7, 8)
    lstm = on_aihwkit(nn.LSTM(8, 6, batch_first=True), "ideal")
    attention = on_aihwkit(nn.MultiheadAttention(8, 2, batch_first=True), "ideal")
    grouped = on_aihwkit(nn.Conv1d(8, 4, 3, groups=2), "ideal")
    for model in (lstm, attention, grouped):
        an.program_(model)
        an.drift_to_(model, "1h")
    torch.testing.assert_close(lstm(x)[0], an.convert_to_digital(lstm)(x)[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        attention(x, x, x)[0], an.convert_to_digital(attention)(x, x, x)[0], rtol=1e-4, atol=1e-5
    )
    x = x.transpose(1, 2)
    torch.testing.assert_close(grouped(x), an.convert_to_digital(grouped)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", ["column", "tile", "layer"])
def test_layers_larger_than_a_tile_are_split_and_scaled_as_the_profile_says(aihwkit, scale):
    """Generic noise of σ = 5 % of g_max: √2 · 0.05 · (what maps to g_max), per weight."""
    layer = nn.Linear(300, 100, bias=False)
    with torch.no_grad():
        layer.weight[:, 150:] *= 0.1
    changes = {"mapping.scale": scale, "tile.rows": 150, "tile.columns": 100}
    analog = on_aihwkit(layer, an.load_profile("gaussian").replace(changes), compensation="none")
    assert an.describe(analog).tiles == 2
    an.program_(analog)
    with torch.no_grad():
        off = (analog.weight_now() - layer.weight)[:, 150:]
        small = layer.weight[:, 150:].abs()
    largest = {"column": small.amax(1, keepdim=True), "tile": small.max(), "layer": layer.weight.abs().max()}
    relative = off / (2**0.5 * 0.05 * largest[scale].detach())
    assert float(relative.std()) == pytest.approx(1, rel=4 / (2 * relative.numel()) ** 0.5)


def test_converters_of_the_profile_are_around_the_tiles(aihwkit):
    """Without noise both engines give the same outputs, rounded; what needs single devices is refused."""
    around = {"dac": {"bits": 6}, "adc": {"bits": 6, "bound": 10.0}}
    layer, x = nn.Linear(300, 40), torch.randn(20, 300)
    for scale in ("column", "tile", "layer"):
        changes = {"periphery": around, "tile.rows": 150, "mapping.scale": scale}
        profile = an.load_profile("ideal").replace(changes)
        ours, theirs = an.convert_to_analog(layer, profile).eval(), on_aihwkit(layer, profile)
        for model in (ours, theirs):
            an.program_(model)
            an.drift_to_(model, "1h")
        with torch.no_grad():
            steps = (ours(x) - layer(x)).abs().max()
            # A weight that is off in its last bit may round an output to the step beside.
            apart = (ours(x) - theirs(x)).abs() > 1e-5
        assert steps > 0.01
        assert float(apart.float().mean()) < 0.01
    noisy = an.load_profile("pcm-ibm").replace({"periphery.preset": "standard-8bit"})
    with pytest.raises(
        ConversionError, match=r"has periphery\.w_noise, which needs the conductance of every"
    ):
        on_aihwkit(layer, noisy)


def test_several_devices_in_one_model(aihwkit):
    analog = on_aihwkit(net(), {"0": "pcm-ibm", "3": "reram-cmo-2pct"})
    an.program_(analog)
    assert [layer.profile for layer in an.describe(analog).layers] == ["pcm-ibm", "reram-cmo-2pct"]


def test_a_noise_model_of_the_users_own(aihwkit, make_config, digits):
    """Its law cannot be read, but aihwkit can compute with it; its settings are part of the run."""
    from aihwkit.inference import BaseNoiseModel

    class Shrinking(BaseNoiseModel):
        def __init__(self, factor):
            super().__init__()
            self.factor, self.of = factor, torch.square

        def apply_programming_noise_to_conductance(self, g_target):
            return g_target * self.factor

        def apply_drift_noise_to_conductance(self, g_prog, drift_noise_param, t_inference):
            return g_prog * 0.5

    layer, ids = nn.Linear(5, 4), set()
    for factor in (0.9, 0.8):
        config = make_config(Shrinking(factor))
        config.drift_compensation = None
        analog = on_aihwkit(layer, config)
        an.program_(analog)
        torch.testing.assert_close(analog.weight_now(), layer.weight.detach() * factor)
        an.drift_to_(analog, "1h")
        # Split again, it is scaled to the new largest weight, which is that of the programmed ones.
        torch.testing.assert_close(analog.weight_now(), layer.weight.detach() * factor / 2)
        assert an.describe(analog).layers[0].profile == "aihwkit-Shrinking"
        data = [(torch.ones(3, 5), torch.tensor([0, 1, 2]))]
        ids.add(an.evaluate_drift(analog, data, times=["1h"], chips=1).run_id)
    assert len(ids) == 2


def test_times_that_the_noise_model_does_not_know(aihwkit, make_config):
    from aihwkit.inference import ReRamWan2022NoiseModel

    native = on_aihwkit(net(), make_config(ReRamWan2022NoiseModel(g_max=40.0)))
    an.program_(native)
    an.drift_to_(native, "1d")
    with pytest.raises(UnitError, match=r"aihwkit cannot drift to 1 h: .* one of `\[1\.0,"):
        an.drift_to_(native, "1h")
    ours = on_aihwkit(net(), "reram-wan-2022")
    an.program_(ours)
    an.drift_to_(ours, "1h")


def test_wrong_use_is_refused(aihwkit, make_config, tmp_path):
    from aihwkit.inference.noise.pcm import PCMLikeNoiseModel
    from aihwkit.simulator.configs import TorchInferenceRPUConfig

    with pytest.raises(ConversionError, match=r"unknown engine 'aihwkitt' \(did you mean 'aihwkit'\?\)"):
        an.convert_to_analog(net(), "pcm-ibm", engine="aihwkitt")
    with pytest.raises(ConversionError, match=r"set forward\.is_perfect = True"):
        on_aihwkit(net(), TorchInferenceRPUConfig())
    native = make_config(PCMLikeNoiseModel())
    with pytest.raises(ConversionError, match="set its field drift_compensation"):
        on_aihwkit(net(), native, compensation="none")
    with pytest.raises(ConversionError, match="keeps pairs"):
        on_aihwkit(net(), make_config(to_noise_model("pcm-ibm")), collapse_pairs=True)
    analog = on_aihwkit()
    an.program_(analog)
    with pytest.raises(ChipError, match="cannot save a chip on tiles of aihwkit"):
        an.save_chip(analog, tmp_path / "chip.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_compiled_tile_that_does_not_work_is_told_with_the_remedy(aihwkit):
    """aihwkit 1.1.0 beside torch 2.13: "weights must be a CPU tensor". Where it works it must be used."""
    config = to_rpu_config("pcm-ibm", compiled=True)
    try:
        config.tile_class(1, 1, config, False)
    except RuntimeError:
        with pytest.raises(ConversionError, match="use TorchInferenceRPUConfig"):
            on_aihwkit(net(), config)
    else:
        analog = on_aihwkit(net(), config)
        an.program_(analog)
        an.drift_to_(analog, "1h")
        assert torch.isfinite(analog(images())).all()


def test_without_aihwkit(monkeypatch):
    monkeypatch.setitem(sys.modules, "aihwkit", None)
    for use in (
        lambda: to_noise_model("pcm-ibm"),
        lambda: to_rpu_config("pcm-ibm"),
        lambda: an.convert_to_analog(net(), "pcm-ibm", engine="aihwkit"),
    ):
        with pytest.raises(MissingPackageError, match=r"pip install 'analognoise\[aihwkit\]'"):
            use()


def test_aihwkit_is_not_imported_before_it_is_asked_for():
    code = (
        "import sys, torch, analognoise as an\n"
        "import analognoise.interop.aihwkit\n"
        "an.convert_to_analog(torch.nn.Linear(3, 3), 'pcm-ibm')\n"
        "print({'aihwkit', 'torchvision'} & set(sys.modules))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "set()", run.stderr
