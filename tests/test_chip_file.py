"""A chip in a file is the same chip, and goes on no other model."""

import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import analognoise as an
from analognoise.chip_file import load_chip, save_chip
from analognoise.errors import ChipError, NotProgrammedError, StaleChipWarning


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5), nn.LSTM(5, 3))


def chip(model, profile="pcm-ibm", seed=3):
    return an.drift_to_(an.program_(an.convert_to_analog(model, profile), seed=seed), "1h")


def weights(model):
    return [w for layer in (model[0], model[2], model[3]) for w in layer.analog.weights.values()]


def test_the_same_numbers_in_another_process(tmp_path):
    model = chip(net())
    save_chip(model, tmp_path / "chip.safetensors")
    twin = load_chip(an.convert_to_analog(net(), "pcm-ibm"), tmp_path / "chip.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(twin), strict=True))
    script = f"""
import sys; sys.path[:0] = {[p for p in sys.path if p]!r}
import torch, analognoise as an
from analognoise.chip_file import load_chip
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5), nn.LSTM(5, 3))
twin = load_chip(an.convert_to_analog(model, "pcm-ibm"), {str(tmp_path / "chip.safetensors")!r})
an.drift_to_(twin, "1y")
torch.save([w for i in (0, 2, 3) for w in twin[i].analog.weights.values()], {str(tmp_path / "w.pt")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    an.drift_to_(model, "1y")
    there = torch.load(tmp_path / "w.pt", weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), there, strict=True))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: an.convert_to_analog(net(1), "pcm-ibm"), "layer '0' differs in the weights"),
        (lambda: an.convert_to_analog(net(), "gaussian"), "layer '0' differs in the device profile: pcm-ibm"),
        (
            lambda: an.convert_to_analog(net(), "pcm-ibm", compensation="none"),
            "differs in the drift compensation: global in the file, none in the model",
        ),
        (lambda: an.convert_to_analog(net()[:3], "pcm-ibm"), "layer '3' is not in the model"),
    ],
)
def test_another_model_or_device_is_refused(tmp_path, other, words):
    path = save_chip(chip(net()), tmp_path / "chip.safetensors")
    model = other()
    with pytest.raises(ChipError, match=words):
        load_chip(model, path)
    assert model[0].analog.tiles is None


def test_files_that_are_no_chips(tmp_path):
    model = an.convert_to_analog(net(), "pcm-ibm")
    with pytest.raises(ChipError, match="cannot be read"):
        load_chip(model, tmp_path / "absent")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ChipError, match="is no chip file of format 2"):
        load_chip(model, tmp_path / "other.safetensors")
    with pytest.raises(NotProgrammedError, match="layer '0' has no chip to save"):
        save_chip(model, tmp_path / "new")
    path = save_chip(chip(net()), tmp_path / "chip.safetensors")
    with pytest.raises(ChipError, match="exists"):
        save_chip(chip(net()), path)
    assert set(load_file(path)) >= {"0/0/state", "0/0/coefficients", "0/0/scale"}


def test_a_stale_chip_is_named_once():
    model = chip(net()).eval()
    x = torch.randn(1, 1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model[:3](x)
        an.drift_to_(model, "1d")
    with torch.no_grad():
        model[2].weight.add_(1.0)
    with pytest.warns(StaleChipWarning, match="layer '2': its weights have changed"):
        model[:3](x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model[:3](x)
    an.program_(model)
    with torch.no_grad():
        model[0].weight.zero_()
    with pytest.warns(StaleChipWarning, match="layer '0'"):
        an.drift_to_(model, "1h")


def test_moving_or_copying_a_model_makes_no_chip_stale():
    import copy

    model = chip(net()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.double().float()
        model[:3](torch.randn(1, 1, 8, 8))
        copy.deepcopy(model)[:3](torch.randn(1, 1, 8, 8))
