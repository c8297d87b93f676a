"""A chip in a file is the same chip, and goes on no other model."""

import json
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors import safe_open
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
    with pytest.raises(ChipError, match="is no chip file of format 3"):
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


def edited(path, out, metadata=None, tensors=None, sealed=False):
    """A chip file with other metadata or tensors; ``sealed``: with a digest that fits."""
    from analognoise.chip_file import _digest_of_file

    with safe_open(path, "pt") as file:
        found, held = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    held = {name: tensor for name, tensor in (held | (tensors or {})).items() if tensor is not None}
    found = {key: value for key, value in (found | (metadata or {})).items() if value is not None}
    if sealed:
        found["digest"] = _digest_of_file(found.get("layers", ""), held)
    save_file(held, out, found)
    return out


def changed_layers(path, change):
    with safe_open(path, "pt") as file:
        layers = json.loads(file.metadata()["layers"])
    change(layers)
    return {"layers": json.dumps(layers)}


def test_damaged_files_are_refused_and_change_nothing(tmp_path):
    path, out = save_chip(chip(net()), tmp_path / "chip"), tmp_path / "bad"
    model = chip(net(), seed=9)
    before = [w.clone() for w in weights(model)]
    flipped = load_file(path)["0/0/state"]
    flipped.view(torch.int32)[0, 0, 0, 0] ^= 1
    scale = load_file(path)["2/0/scale"]
    damaged = [
        edited(path, tmp_path / "a", tensors={"0/0/state": flipped}),
        edited(path, tmp_path / "b", tensors={"0/0/state": torch.full_like(flipped, float("nan"))}),
        edited(
            path, tmp_path / "c", metadata=changed_layers(path, lambda m: m["0"]["tiles"][0].update(root=1))
        ),
        edited(path, tmp_path / "d", metadata={"layers": None}),
        edited(path, tmp_path / "e", metadata={"digest": None}),
    ]
    for file in damaged:
        with pytest.raises(ChipError, match="is damaged or was edited"):
            load_chip(model, file)
    layers = [
        lambda m: m["0"].pop("tiles"),
        lambda m: m["0"].update(time=-1),
        lambda m: m["0"].update(time=float("nan")),
        lambda m: m["0"].update(time="soon"),
        lambda m: m["2"].pop("weights"),
    ]
    wrong = [
        ({"metadata": {"layers": "{"}}, "its metadata cannot be read"),
        *(({"metadata": changed_layers(path, change)}, "its metadata cannot be read") for change in layers),
        (
            {"metadata": changed_layers(path, lambda m: m["3"]["tiles"].pop())},
            r"layer '3' has 1 tile, needs 2",
        ),
        ({"tensors": {"3/1/scale": None}}, r"tensor '3/1/scale' is missing"),
        ({"tensors": {"3/1/state": flipped}}, r"tensor '3/1/state' is missing or not of this layer"),
        ({"tensors": {"0/0/coefficients": flipped.half()}}, "tensor '0/0/coefficients'"),
        ({"tensors": {"2/0/scale": torch.full((1, 5, 1), float("inf"))}}, "tensor '2/0/scale'"),
        ({"tensors": {"0/0/coefficients": None}}, "tensor '0/0/coefficients' is missing"),
        ({"tensors": {"2/0/scale": scale.repeat(2, 2, 1)}}, "tensor '2/0/scale'"),
        ({"tensors": {"2/0/scale": scale.reshape(-1)}}, "tensor '2/0/scale'"),
    ]
    for changes, words in wrong:
        with pytest.raises(ChipError, match=words):
            load_chip(model, edited(path, out, sealed=True, **changes))
    with pytest.raises(ChipError, match="a chip file is named by its path, found None"):
        load_chip(model, None)
    assert all(map(torch.equal, weights(model), before))
    assert model[0].analog.time == 3600.0


def test_a_chip_of_another_version_is_told(tmp_path):
    path = edited(
        save_chip(chip(net()), tmp_path / "chip"), tmp_path / "old", metadata={"analognoise": "0.0.1"}
    )
    with pytest.warns(UserWarning, match=r"was written by analognoise 0\.0\.1, this is"):
        load_chip(chip(net()), path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_chip_drawn_on_a_device_that_is_not_there(tmp_path):
    def from_cuda(profile):
        model = chip(net(), profile)
        for layer in (model[0], model[2], model[3]):
            for tile in layer.analog.tiles:
                tile.drawn_on = torch.device("cuda")
        return save_chip(model, tmp_path / profile)

    model = chip(net())
    before = [w.clone() for w in weights(model)]
    with pytest.raises(ChipError, match="layer '0' was programmed on 'cuda', and its read noise"):
        load_chip(model, from_cuda("pcm-ibm"))
    assert all(map(torch.equal, weights(model), before))
    load_chip(chip(net(), "gaussian"), from_cuda("gaussian"))  # nothing is drawn later


def test_the_order_of_layers_and_a_file_beside_do_not_matter(tmp_path):
    class Two(nn.Module):
        def __init__(self, first, second):
            super().__init__()
            torch.manual_seed(0)
            layers = {"a": nn.Linear(4, 3), "b": nn.Linear(3, 2)}
            self.add_module(first, layers[first])
            self.add_module(second, layers[second])

    (tmp_path / "chip.part").write_text("mine")
    model = chip(Two("a", "b"))
    path = save_chip(model, tmp_path / "chip")
    twin = load_chip(an.convert_to_analog(Two("b", "a"), "pcm-ibm"), path)
    assert torch.equal(twin.a.analog.weights["weight"], model.a.analog.weights["weight"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["chip", "chip.part"]
    assert (tmp_path / "chip.part").read_text() == "mine"
