"""Conversion shares the user's tensors, names what stays digital, and goes back."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn

import analognoise as an
from analognoise.conversion import analog_layers, chip_weights, keeping_digital, sample_chip
from analognoise.errors import ConversionError, ModelError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6, bias=False)
        self.embedding = nn.Embedding(10, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(6 * 36, 5)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        y = self.depthwise(self.norm(self.conv(x)).relu())
        return self.head(y.flatten(1)) * self.scale


def test_tensors_are_shared_and_keys_unchanged():
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    analog = an.convert_to_analog(net, "pcm-ibm")
    assert analog is not net
    assert type(net.conv) is nn.Conv2d
    assert list(analog.state_dict()) == list(net.state_dict())
    for (name, a), (_, b) in zip(analog.named_parameters(), net.named_parameters(), strict=True):
        assert a is b, name
    for (name, a), (_, b) in zip(analog.named_buffers(), net.named_buffers(), strict=True):
        assert a is b, name
    before = analog.head.weight.clone()
    analog(torch.randn(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    assert not torch.equal(net.head.weight, before)


def test_inplace_swaps_within_and_keeps_hooks_and_module_identity():
    net = Net()
    head, calls = net.head, []
    head.register_forward_hook(lambda *_: calls.append(1))
    assert an.convert_to_analog(net, "ideal", inplace=True) is net
    assert net.head is head
    assert isinstance(head, nn.Linear)
    an.program_(net)
    net.eval()(torch.randn(1, 1, 8, 8))
    assert calls == [1]


def test_back_to_digital():
    net = Net()
    analog = an.program_(an.convert_to_analog(net, "pcm-ibm"))
    back = an.convert_to_digital(analog)
    assert [type(module) for module in back.modules()] == [type(module) for module in net.modules()]
    assert all(a is b for a, b in zip(back.parameters(), net.parameters(), strict=True))
    assert analog_layers(analog)
    assert vars(back.head).keys() == vars(net.head).keys()
    with pytest.raises(ConversionError, match="digital already"):
        an.convert_to_digital(back)


def test_a_module_used_twice_stays_one_and_a_root_layer_converts():
    shared = nn.Linear(4, 4)
    net = nn.Sequential(shared, nn.ReLU(), shared)
    analog = an.convert_to_analog(net, "pcm-ibm")
    assert analog[0] is analog[2]
    assert list(analog_layers(analog)) == ["0"]
    root = an.convert_to_analog(nn.Linear(3, 2), "ideal")
    assert list(chip_weights(root)) == ["weight"]


def test_tied_weights_stay_tied_and_get_a_chip_each():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    analog = an.program_(an.convert_to_analog(net, "pcm-ibm"))
    assert analog[0].weight is analog[1].weight is net[0].weight
    assert not torch.equal(analog[0].analog.weights["weight"], analog[1].analog.weights["weight"])
    assert list(chip_weights(analog)) == ["0.weight"]


def test_adding_a_layer_changes_no_other_layer_s_draw():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    longer = nn.Sequential(net[0], net[1], nn.Linear(3, 30))
    a = an.drift_to_(an.program_(an.convert_to_analog(net, "pcm-ibm"), seed=4), "1d")
    b = an.drift_to_(an.program_(an.convert_to_analog(longer, "pcm-ibm"), seed=4), "1d")
    for name in ("0", "1"):
        assert torch.equal(
            analog_layers(a)[name].analog.weights["weight"], analog_layers(b)[name].analog.weights["weight"]
        )


def test_filter_and_its_errors():
    net = Net()
    analog = an.convert_to_analog(net, "ideal", filter_fn=lambda module, name: name != "head")
    assert list(analog_layers(analog)) == ["conv", "depthwise", "attention"]
    with pytest.raises(
        ConversionError,
        match=r"none of the 4 convertible layers \('conv', 'depthwise', 'attention', 'head'\)",
    ):
        an.convert_to_analog(net, "ideal", filter_fn=lambda module, name: False)
    with pytest.raises(
        ConversionError, match=r"nothing to convert in Sequential: .*0: normalization stays digital"
    ):
        an.convert_to_analog(nn.Sequential(nn.BatchNorm1d(3)), "ideal")
    with pytest.raises(ConversionError, match=r"on tiles already \(layer 'conv'\)"):
        an.convert_to_analog(analog, "ideal")
    with pytest.raises(ConversionError, match=r"takes a torch.nn.Module, found str"):
        an.convert_to_analog("resnet", "ideal")
    with pytest.raises(ConversionError, match=r"cannot program a chip: Net has no layer on tiles"):
        an.program_(net)


def test_a_model_that_cannot_be_copied_says_so():
    net = nn.Sequential(nn.Linear(2, 2))
    net.lock = (value for value in ())  # generators cannot be copied
    with pytest.raises(ConversionError, match=r"or convert it with inplace=True \(in Python only\)$"):
        an.convert_to_analog(net, "ideal")
    words = r"Sequential cannot be copied \(at '0' \(attribute 'lock', a generator\): TypeError: "
    with pytest.raises(ConversionError, match=words):
        an.convert_to_analog(nn.Sequential(net, nn.Linear(2, 2)), "ideal")
    an.convert_to_analog(net, "ideal", inplace=True)


def test_a_description_comes_back_from_json():
    analog = an.convert_to_analog(Net(), "pcm-ibm", filter_fn=lambda module, name: name != "depthwise")
    found = an.describe(analog, torch.randn(1, 1, 8, 8))
    assert type(found).from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_describe_counts_devices_and_names_whatever_stays_digital():
    analog = an.convert_to_analog(Net(), "pcm-ibm", filter_fn=lambda module, name: name != "depthwise")
    text = an.describe(analog, torch.randn(1, 1, 8, 8))
    rows = {layer.name: layer for layer in text.layers}
    assert list(rows) == ["conv", "attention", "head"]
    assert list(rows["attention"].matrices) == ["in_proj_weight", "out_proj.weight"]
    assert rows["head"].weights == 5 * 216
    assert rows["head"].devices == 2 * 5 * 216
    assert rows["head"].utilisation == 5 * 216 / 512**2
    assert rows["conv"].macs == 6 * 9 * 64
    assert rows["head"].macs == 5 * 216
    parts = {part.name: part for part in text.digital}
    assert parts["depthwise"].reason == "left out of the conversion"
    assert parts["depthwise"].macs == 6 * 9 * 36
    assert parts["norm"].reason == "normalization stays digital"
    assert parts["conv.bias"].reason == "biases are added digitally"
    assert "look-up" in parts["embedding"].reason
    assert parts["attention.in_proj_bias"].reason == "biases are added digitally"
    assert parts["attention.out_proj.bias"].reason == "biases are added digitally"
    assert parts[""].parameters == 1  # the bare Parameter of the model
    total = sum(layer.weights for layer in text.layers) + sum(part.parameters for part in text.digital)
    assert total == sum(parameter.numel() for parameter in Net().parameters())
    on_tiles = 6 * 9 * 64 + 5 * 216
    assert text.mac_share == on_tiles / (on_tiles + 6 * 9 * 36)
    assert "attention.out_proj.bias" in str(text)
    assert f"{100 * text.mac_share:.1f} % of the multiply-accumulates" in str(text)


def test_describe_leaves_the_model_as_found():
    analog = an.program_(an.convert_to_analog(Net(), "pcm-ibm"))
    analog.train()
    analog.norm.eval()
    mean = analog.norm.running_mean.clone()
    weights = analog.head.analog.weights["weight"].clone()
    an.describe(analog, torch.randn(4, 1, 8, 8))
    assert analog.training
    assert not analog.norm.training
    assert torch.equal(analog.norm.running_mean, mean)
    assert torch.equal(analog.head.analog.weights["weight"], weights)
    assert not analog.head._forward_hooks


def test_products_of_activations_are_named():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1)
            return torch.softmax(q @ k.transpose(-1, -2), -1) @ v

    net = nn.Sequential(Attention())
    text = an.describe(an.convert_to_analog(net, "ideal"), torch.randn(2, 5, 8))
    part = next(part for part in text.digital if part.name == "0")
    assert part.macs == 2 * (2 * 5 * 5 * 8)
    assert "products of two activations" in part.reason
    assert text.mac_share == pytest.approx(2 * 5 * 8 * 24 / (2 * 5 * 8 * 24 + part.macs))


def test_fused_transformer_path_does_not_bypass_the_tiles():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    net = nn.TransformerEncoder(layer, 2).eval()
    analog = an.program_(an.convert_to_analog(net, "pcm-ibm"))
    x = torch.randn(3, 7, 16)
    with torch.inference_mode():
        out = analog(x)
        for name, tile_layer in analog_layers(analog).items():
            kept = tile_layer.analog.copy_weights()
            for weights in tile_layer.analog.weights.values():
                weights.zero_()
            assert not torch.equal(analog(x), out), name
            tile_layer.analog.put_weights(kept, None)
        with an.digital(analog):
            torch.testing.assert_close(analog(x), net(x), rtol=1e-4, atol=1e-5)
    back = an.convert_to_digital(analog)
    assert back.layers[0].activation_relu_or_gelu == net.layers[0].activation_relu_or_gelu == 1
    assert vars(back.layers[0]).keys() == vars(net.layers[0]).keys()


def test_copies_and_pickles_keep_the_chip():
    analog = an.drift_to_(an.program_(an.convert_to_analog(Net(), "pcm-ibm"), seed=9), "1h").eval()
    x = torch.randn(2, 1, 8, 8)
    for twin in (copy.deepcopy(analog), pickle.loads(pickle.dumps(analog))):
        assert torch.equal(twin(x), analog(x))
        an.drift_to_(twin, "1d")
        assert not torch.equal(twin(x), analog(x))
        an.drift_to_(twin, "1h")
        assert torch.equal(twin(x), analog(x))


def test_weights_with_nan_or_inf_are_refused_by_layer():
    analog = an.convert_to_analog(Net(), "pcm-ibm")
    with torch.no_grad():
        analog.head.weight[0, 0] = float("nan")
        analog.head.weight[0, 1] = float("inf")
    with pytest.raises(
        ModelError, match=r"layer 'head' cannot be programmed: 2 of its 1080 weights are NaN or infinite"
    ):
        an.program_(analog)


def test_sampled_weights_are_fresh_chips_and_leave_the_programmed_one():
    analog = an.drift_to_(an.program_(an.convert_to_analog(Net(), "pcm-ibm")), "1h")
    kept = analog.head.analog.weights["weight"].clone()
    one, stuck = sample_chip(analog, seed=1, step=0, seconds=86400.0)
    two, _ = sample_chip(analog, seed=1, step=1, seconds=86400.0)
    assert stuck == {}
    assert (
        set(one)
        == set(chip_weights(analog))
        == {
            "conv.weight",
            "depthwise.weight",
            "attention.in_proj_weight",
            "attention.out_proj.weight",
            "head.weight",
        }
    )
    assert not torch.equal(one["head.weight"], two["head.weight"])
    again = sample_chip(analog, seed=1, step=0, seconds=86400.0)
    assert torch.equal(one["head.weight"], again.weights["head.weight"])
    assert one["depthwise.weight"].shape == analog.depthwise.weight.shape
    assert torch.equal(analog.head.analog.weights["weight"], kept)
    assert analog.head.analog.time == 3600.0


def test_chip_preserved_gives_the_chip_back():
    analog = an.drift_to_(an.program_(an.convert_to_analog(Net(), "pcm-ibm"), seed=1), "1h").eval()
    x = torch.randn(2, 1, 8, 8)
    before = analog(x)
    memory = analog.head.analog.weights["weight"].data_ptr()
    with pytest.raises(KeyboardInterrupt), an.chip.chip_preserved(analog):  # noqa: PT012
        an.drift_to_(an.program_(analog, seed=2), "1y")
        assert not torch.equal(analog(x), before)
        raise KeyboardInterrupt
    assert torch.equal(analog(x), before)
    assert analog.head.analog.weights["weight"].data_ptr() == memory
    assert analog.head.analog.time == 3600.0


def test_programming_inside_inference_mode_leaves_ordinary_tensors():
    analog = an.convert_to_analog(nn.Linear(4, 2), "pcm-ibm").eval()
    with torch.inference_mode():
        an.drift_to_(an.program_(analog), "1d")
    an.drift_to_(an.program_(analog, seed=1), "1h")
    x = torch.ones(1, 4, requires_grad=True)
    analog(x).sum().backward()
    assert x.grad is not None


def test_a_profile_per_layer():
    net = nn.Sequential()
    net.features = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net.neck = nn.Linear(4, 4)
    net.classifier = nn.Linear(4, 2)
    analog = an.convert_to_analog(net, {"features.*": "pcm-ibm", "classifier": "ideal"})
    profiles = {name: layer.analog.profile.name for name, layer in analog_layers(analog).items()}
    assert profiles == {"features.0": "pcm-ibm", "features.2": "pcm-ibm", "classifier": "ideal"}
    parts = {part.name: part for part in an.describe(analog).digital}
    assert parts["neck"].reason == "left out of the conversion"
    an.program_(analog)
    # To and from conductances, a weight may change by its last bits.
    torch.testing.assert_close(
        analog.classifier.analog.weights["weight"], net.classifier.weight.detach(), rtol=1e-6, atol=0
    )
    assert not torch.equal(analog.features[0].analog.weights["weight"], net.features[0].weight)
    # the first pattern counts; a parent's name matches its layers
    analog = an.convert_to_analog(net, {"features.2": "ideal", "features": "gaussian", "*": "pcm-ibm"})
    profiles = [layer.analog.profile.name for layer in analog_layers(analog).values()]
    assert profiles == ["gaussian", "ideal", "pcm-ibm", "pcm-ibm"]


@pytest.mark.parametrize(
    ("profiles", "words"),
    [
        ({"clasifier": "ideal"}, r"pattern 'clasifier' matches no layer \(did you mean 'classifier'\?\)"),
        (
            {"classifier": "ideal", "head*": "ideal"},
            r"pattern 'head\*' matches no layer.*'neck', 'classifier'",
        ),
    ],
)
def test_a_pattern_that_matches_nothing(profiles, words):
    net = nn.Sequential()
    net.neck = nn.Linear(4, 4)
    net.classifier = nn.Linear(4, 2)
    with pytest.raises(ConversionError, match=words):
        an.convert_to_analog(net, profiles)


def test_a_mapping_must_name_layers():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    with pytest.raises(ConversionError, match="the mapping from patterns to profiles is empty"):
        an.convert_to_analog(net, {})
    with pytest.raises(ConversionError, match=r"a pattern of layer names is text.*found <class.*Linear"):
        an.convert_to_analog(net, {nn.Linear: "ideal"})
    with pytest.raises(ConversionError, match=r"pattern '2' comes too late: .* '\*' before it takes '2'"):
        an.convert_to_analog(net, {"*": "ideal", "2": "pcm-ibm"})
    kept = keeping_digital(net, ["2"])
    with pytest.raises(
        ConversionError, match="pattern '2' of the profiles matches only layers that are kept"
    ):
        an.convert_to_analog(net, {"0": "ideal", "2": "pcm-ibm"}, filter_fn=kept)
    with pytest.raises(ConversionError, match=r"filter_fn is a function \(module, name\) -> bool, found '0'"):
        an.convert_to_analog(net, "ideal", filter_fn="0")


def test_names_with_the_characters_of_patterns():
    net = nn.Sequential(nn.ModuleDict({"a [x]": nn.Linear(4, 3), "b": nn.Linear(4, 3)}))
    analog = an.convert_to_analog(net, {"0.a [x]": "ideal"})
    assert list(analog_layers(analog)) == ["0.a [x]"]


def test_a_module_at_two_places_is_matched_by_either_name():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = self.a
            self.c = nn.Linear(4, 4)

    analog = an.convert_to_analog(Twice(), {"b": "ideal"})
    assert list(analog_layers(analog)) == ["a"]
    assert analog.b is analog.a
    assert list(
        analog_layers(an.convert_to_analog(Twice(), "ideal", filter_fn=keeping_digital(Twice(), ["b"])))
    ) == ["c"]


class Listing(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 3)
        self.extra = [nn.Parameter(torch.ones(3))]
        self.named = {"scales": (nn.Parameter(torch.ones(3)),)}
        self.script = torch.jit.script(nn.Linear(3, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated")
def test_tensors_in_lists_and_scripts_are_shared_too():
    net = Listing()
    analog = an.convert_to_analog(net, "ideal")
    assert analog.extra[0] is net.extra[0]
    assert analog.named["scales"][0] is net.named["scales"][0]
    assert analog.script is not net.script
    assert analog.script.weight.data_ptr() == net.script.weight.data_ptr()
    with torch.no_grad():
        net.script.weight.zero_()
        net.script.bias.zero_()
    assert analog.script(torch.ones(3)).abs().sum() == 0


def test_hooks_that_are_methods_reach_the_user_s_object():
    class Recorder:
        def __init__(self):
            self.seen = []

        def hook(self, module, args, output):
            self.seen.append(output)

    recorder, net = Recorder(), nn.Sequential(nn.Linear(4, 3))
    net[0].register_forward_hook(recorder.hook)
    an.convert_to_analog(net, "ideal")(torch.ones(1, 4))
    assert len(recorder.seen) == 1


def test_layers_converted_apart_under_one_name_would_share_their_noise_and_are_refused():
    parts = [an.convert_to_analog(nn.Linear(4, 4), "pcm-ibm") for _ in range(2)]
    model = nn.Sequential(parts[0], nn.ReLU(), parts[1])
    with pytest.raises(ConversionError, match="layers '0' and '2' were both converted under the name ''"):
        an.program_(model)
    an.program_(nn.Sequential(parts[0], nn.ReLU(), parts[0]))  # one layer at two places is one layer
