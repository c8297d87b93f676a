"""Noise at the outputs of layers: its moments, its keys, and that nothing of it stays."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.checkpoint import checkpoint

import analognoise as an
from analognoise.computing import choose_layers, computing_order
from analognoise.computing.kinds import KINDS, kind_of
from analognoise.errors import NoiseError
from analognoise.tasks.digits import DigitsCNN

N = 200_000
# Of N normal numbers, 5 standard errors: mean σ/√N, standard deviation σ/√(2N).
MEAN, SPREAD = 5 / math.sqrt(N), 5 / math.sqrt(2 * N)


class Same(nn.Linear):
    """A linear layer that gives back its input, so that the output holds the noise alone."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.norm, self.second = (
            nn.Linear(3, 5),
            nn.ReLU(),
            nn.LayerNorm(5),
            nn.Linear(5, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.act(self.first(x))))


def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


X = torch.linspace(-1, 1, 12).reshape(4, 3)


@pytest.mark.parametrize("y", [0.0, -3.0])
@pytest.mark.parametrize(
    ("kind", "more", "sigma"),
    [
        ("additive", {}, lambda y: 0.7),
        ("multiplicative", {}, lambda y: 0.7 * abs(y)),
        ("mixed", {"multiplicative": 0.2}, lambda y: math.hypot(0.7, 0.2 * y)),
    ],
)
def test_moments_are_those_of_the_law(kind: str, more: dict, sigma: Any, y: float) -> None:
    with an.computing_noise(model := Same(), 0.7, kind, **more):
        noise = (model(torch.full((N,), y, dtype=torch.float64)) - y).detach()
    expected = sigma(y)
    assert abs(noise.mean()) <= MEAN * expected
    assert abs(noise.std() - expected) <= SPREAD * expected
    if expected:
        z = noise / expected  # a normal's third and fourth moments: 0 ± √(6/N), 3 ± √(24/N)
        assert abs((z**3).mean()) < 5 * math.sqrt(15 / N)
        assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / N)


def test_both_parts_of_mixed_noise_are_independent_and_the_single_laws_own() -> None:
    y = torch.full((N,), 2.0)
    model = Same()
    found = {}
    for kind, more in (("additive", {}), ("multiplicative", {}), ("mixed", {"multiplicative": 0.5})):
        with an.computing_noise(model, 0.5, kind, **more):
            found[kind] = model(y).double() - 2
    assert torch.allclose(found["mixed"], found["additive"] + found["multiplicative"], atol=1e-6)
    pair = torch.stack([found["additive"], found["multiplicative"]])
    assert abs(torch.corrcoef(pair)[0, 1]) < 5 / math.sqrt(N)


def test_key_decides_and_nothing_else() -> None:
    model = net()
    clean = model(X)

    def run(**options: Any) -> list[Tensor]:
        with an.computing_noise(model, 0.3, **options):
            return [model(X), model(X)]

    state = torch.get_rng_state()
    first, second = run()
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(7)
    assert all(torch.equal(a, b) for a, b in zip(run(), (first, second), strict=True))
    others = [second, run(seed=1)[0], run(repeat=1)[0], clean]
    assert all(not torch.equal(first, other) for other in others)


def test_a_layer_has_its_draws_whichever_others_are_noisy() -> None:
    model = net()
    found = []
    for layers in (["second"], None):
        seen: list[Tensor] = []
        with an.computing_noise(model, {"second": 0.3, "*": 0.0} if layers is None else 0.3, layers=layers):
            seen.append(model(X))
        found.append(seen[0])
    assert torch.equal(*found)
    walk = dict(an.walking_noise(model, (X, None), 0.3))
    assert list(walk) == ["first", "act", "norm", "second"]
    with walk["second"]:
        assert torch.equal(model(X), found[0])
    # Additive noise on the last two layers only: what the second adds is the same in both.
    with walk["norm"]:
        one = model(X)
    with an.computing_noise(model, 0.3, layers=["norm", "second"]):
        both = model(X)
    assert torch.allclose(both - one, found[0] - model(X), atol=1e-6)


def test_nothing_stays_when_the_block_ends_and_when_it_raises() -> None:
    model = net()
    kept = []
    model.first.register_forward_hook(lambda *_: kept.append(1))
    before = {n: (list(m._forward_hooks), list(m._forward_pre_hooks)) for n, m in model.named_modules()}
    clean, attributes = model(X), {name: list(vars(m)) for name, m in model.named_modules()}
    with pytest.raises(RuntimeError, match="shapes"), an.computing_noise(model, 0.3):
        model(torch.zeros(4, 7))
    assert {
        n: (list(m._forward_hooks), list(m._forward_pre_hooks)) for n, m in model.named_modules()
    } == before
    assert torch.equal(model(X), clean)
    assert {name: list(vars(m)) for name, m in model.named_modules()} == attributes


def test_copies_made_inside_are_clean() -> None:
    model = net()
    clean = model(X)
    with an.computing_noise(model, 0.3):
        assert torch.equal(copy.deepcopy(model)(X), clean)
        assert torch.equal(pickle.loads(pickle.dumps(model))(X), clean)
        assert not torch.equal(model(X), clean)


def test_gradients_pass() -> None:
    model = net().train()
    x = X.clone().requires_grad_()
    with an.computing_noise(model, 0.5, layers="second"):
        model(x).sum().backward()
    noisy = x.grad.clone()
    x.grad = None
    model(x).sum().backward()
    assert torch.equal(noisy, x.grad)  # additive noise at the output is a constant
    scale = Same()
    y = torch.ones(50, requires_grad=True)
    with an.computing_noise(scale, 0.5, "multiplicative"):
        out = scale(y)
    out.sum().backward()
    assert torch.equal(y.grad, out.detach())  # y·(1 + σn) at y = 1


def test_sigma_by_kind_name_and_pattern() -> None:
    noise = an.computing_noise(net(), {"second": 1, "linear": 0.5, "n*": 0.25})
    assert {name: pair[0] for name, pair in noise.layers.items()} == {
        "first": 0.5,
        "norm": 0.25,
        "second": 1.0,
    }
    with noise, an.computing_noise(noise._model, 0.1, layers="activation") as inner:
        assert inner.layers == {"act": (0.1, 0.0)}
    with (
        pytest.raises(NoiseError, match="'first' has noise already"),
        an.computing_noise(model := net(), 0.1),
        an.computing_noise(model, 0.1),
    ):
        pass
    assert not any(m._forward_hooks for m in model.modules())


def test_module_called_several_times_draws_each_time() -> None:
    model = nn.Sequential(same := Same(), same)
    with an.computing_noise(model, 1.0) as noise:
        y = model(torch.zeros(N))
    assert noise.calls == {"0": 2}
    assert abs(y.std() - math.sqrt(2)) < SPREAD * math.sqrt(2)  # the same draw twice would give 2


def test_outputs_in_containers() -> None:
    lstm = nn.LSTM(3, 4)
    x = torch.zeros(5, 2, 3)
    clean, (h, c) = lstm(x)
    with an.computing_noise(lstm, 0.1):
        noisy, (h_noisy, c_noisy) = lstm(x)
    differences = [noisy - clean, h_noisy - h, c_noisy - c]
    assert all(0.03 < float(d.detach().std()) < 0.2 for d in differences)
    packed = pack_sequence([x[:, 0], x[:3, 1]], enforce_sorted=True)
    with an.computing_noise(lstm, 0.1):
        assert isinstance(lstm(packed)[0], PackedSequence)

    class Named(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return {"y": x, "classes": x.long(), "more": [x]}

    with an.computing_noise(named := Named(1, 1), 1.0):
        output = named(torch.zeros(100))
    assert output["classes"].eq(0).all()
    assert output["y"].std() > 0.5
    assert not torch.equal(output["y"], output["more"][0])

    class Classes(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return x.long()

    with (
        pytest.raises(NoiseError, match="without a floating-point tensor"),
        an.computing_noise(m := Classes(1, 1), 1),
    ):
        m(torch.zeros(2))


def test_converted_models_and_compiled_ones_and_fused_encoders() -> None:
    analog = an.program_(an.convert_to_analog(net(), "ideal").eval())
    with an.computing_noise(net_ := net(), 0.3):
        expected = net_(X)
    with an.computing_noise(analog, 0.3):
        assert torch.allclose(analog(X), expected, atol=1e-5)
    compiled = torch.compile(net())
    with an.computing_noise(compiled, 0.3) as noise:
        assert torch.equal(compiled(X), expected)
    assert not noise.not_called
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    mask = torch.tensor([[False] * 3, [False, False, True]])
    with torch.no_grad(), an.computing_noise(encoder, 0.1) as noise:
        encoder(torch.zeros(2, 3, 8), src_key_padding_mask=mask)
    assert not noise.not_called
    assert "layers.0.self_attn.out_proj" not in noise.layers


def test_a_compiled_twin_of_the_model_and_compiled_parts_are_noisy() -> None:
    with an.computing_noise(model := net(), 0.3):
        expected = model(X)
    compiled = torch.compile(model, backend="eager")
    clean = compiled(X)
    with an.computing_noise(model, 0.3) as noise:  # the twin shares its layers, which the model cannot know
        assert torch.equal(compiled(X), expected)
    assert not noise.not_called
    assert torch.equal(compiled(X), clean)
    model.second = torch.compile(model.second, backend="eager")
    with an.computing_noise(model, 0.3):
        assert torch.equal(model(X), expected)


def test_layers_are_found_by_their_own_names_inside_wrappers() -> None:
    wrapped = nn.DataParallel(torch.compile(net(), backend="eager"))
    assert list(choose_layers(wrapped, "sec*")) == ["module._orig_mod.second"]
    assert list(choose_layers(wrapped, "module._orig_mod.second")) == ["module._orig_mod.second"]


def test_recomputing_in_the_backward_pass_is_refused() -> None:
    model = net().train()
    with an.computing_noise(model, 0.1), pytest.raises(NoiseError, match="checkpointing"):
        checkpoint(model, X.clone().requires_grad_(), use_reentrant=False).sum().backward()


def test_kinds() -> None:
    found = {
        "linear": [nn.Linear(1, 1), nn.Bilinear(1, 1, 1)],
        "conv": [nn.Conv1d(1, 1, 1), nn.ConvTranspose2d(1, 1, 1)],
        "norm": [nn.BatchNorm2d(1), nn.GroupNorm(1, 1), nn.RMSNorm(1), nn.InstanceNorm1d(1)],
        "activation": [nn.GELU(), nn.Softmax(-1), nn.PReLU()],
        "recurrent": [nn.GRU(1, 1), nn.LSTMCell(1, 1)],
        "attention": [nn.MultiheadAttention(2, 1)],
        None: [nn.Dropout(), nn.Sequential(), nn.MaxPool2d(2), nn.Embedding(1, 1)],
    }
    assert set(found) - {None} == set(KINDS)
    for kind, modules in found.items():
        assert [kind_of(module) for module in modules] == [kind] * len(modules)

    class LlamaRMSNorm(nn.Module):
        pass

    assert kind_of(LlamaRMSNorm()) == "norm"


def test_layers_by_kind_pattern_and_name() -> None:
    model = nn.Sequential(DigitsCNN(), nn.Sequential(nn.Dropout()))
    assert list(choose_layers(model, "conv")) == ["0.conv1", "0.conv2"]
    assert list(choose_layers(model, ["0.conv*", "linear"])) == ["0.conv1", "0.conv2", "0.fc"]
    assert list(choose_layers(model, "0")) == ["0.conv1", "0.conv2", "0.fc", "0.activation"]
    assert list(choose_layers(model, "1")) == ["1"]  # no known layer inside: the module itself
    assert computing_order(model, (torch.zeros(1, 1, 8, 8), None)) == (
        "0.conv1",
        "0.activation",
        "0.conv2",
        "0.fc",
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sigma": -0.1}, "sigma is -0.1"),
        ({"sigma": math.nan}, "sigma is nan"),
        ({"sigma": "1"}, "sigma is '1'"),
        ({"sigma": {"linear": math.inf}}, r"sigma\['linear'\] is inf"),
        ({"sigma": {}}, "empty mapping"),
        ({"sigma": {"linear": 1.0}, "layers": "norm"}, "says nothing of 'norm'"),
        ({"sigma": 0.1, "kind": "aditive"}, "did you mean 'additive'"),
        ({"sigma": 0.1, "kind": "mixed"}, "needs multiplicative"),
        ({"sigma": 0.1, "multiplicative": 0.1}, "belongs to kind 'mixed'"),
        (
            {"sigma": 0.1, "layers": "conv"},
            r"Net has no layer of the kind 'conv' \(it has linear, activation, norm\)",
        ),
        ({"sigma": 0.1, "layers": ["frist"]}, "did you mean 'first'"),
        ({"sigma": 0.1, "layers": []}, "layers is empty"),
        ({"sigma": 0.1, "layers": [nn.Linear]}, "layers holds"),
        ({"sigma": 0.1, "layers": 5}, "layers is 5: give kinds"),
        ({"sigma": 0.1, "layers": ""}, "matches no layer of Net: its"),
    ],
)
def test_wrong_input_is_named(options: dict, words: str) -> None:
    with pytest.raises(NoiseError, match=words):
        an.computing_noise(net(), **options)


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(NoiseError, match="cannot be seen"):
        an.computing_noise(nn.Dropout(), 0.1)
    with pytest.raises(an.AnalogNoiseError, match=r"torch\.nn\.Module"):
        an.computing_noise(lambda x: x, 0.1)  # type: ignore[arg-type]
    with pytest.raises(NoiseError, match="calls none of the layers"):
        an.walking_noise(nn.ModuleDict({"a": nn.Linear(1, 1)}), None, 0.1, forward=lambda model, batch: 0)
