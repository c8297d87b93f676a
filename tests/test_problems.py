"""What cannot go on tiles is refused by name, and what its remedy says makes it convert."""

from __future__ import annotations

import contextlib
import copy
import re
import types
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import analognoise as an
from analognoise.conversion import analog_layers
from analognoise.errors import ConversionError, ModelError
from analognoise.layers import AnalogLayer, Geometry, register_analog_layer
from analognoise.layers.registry import _DERIVED, _REGISTERED


@pytest.fixture(autouse=True)
def _old_interfaces() -> Iterator[None]:
    """torch calls some of what is tested here deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield


@pytest.fixture
def registry() -> Iterator[None]:
    kept = dict(_REGISTERED)
    yield
    _REGISTERED.clear()
    _REGISTERED.update(kept)
    _DERIVED.clear()


class First(nn.Module):
    """The first of what a recurrent layer returns."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


def remove_parametrization(layer: nn.Module) -> None:
    parametrize.remove_parametrizations(layer, "weight")


# What makes a layer, its kind of obstacle, what the remedy must name, and the remedy itself.
Made = tuple[Callable[[], nn.Module], str, str, Callable[[nn.Module], None]]
UNDONE: dict[str, Made] = {
    "weight_norm": (
        lambda: nn.utils.weight_norm(nn.Linear(6, 4)),
        "derived weight",
        "torch.nn.utils.remove_weight_norm(layer, 'weight')",
        lambda layer: nn.utils.remove_weight_norm(layer, "weight"),
    ),
    "weight_norm of a recurrent layer": (
        lambda: First(nn.utils.weight_norm(nn.LSTM(6, 4), "weight_hh_l0")),
        "derived weight",
        "torch.nn.utils.remove_weight_norm(layer, 'weight_hh_l0')",
        lambda first: nn.utils.remove_weight_norm(first.layer, "weight_hh_l0"),
    ),
    "weight_norm, parametrized": (
        lambda: parametrizations.weight_norm(nn.Linear(6, 4)),
        "parametrized",
        "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')",
        remove_parametrization,
    ),
    "spectral_norm": (
        lambda: nn.utils.spectral_norm(nn.Linear(6, 4)),
        "derived weight",
        "torch.nn.utils.remove_spectral_norm(layer, 'weight')",
        lambda layer: nn.utils.remove_spectral_norm(layer, "weight"),
    ),
    "spectral_norm, parametrized": (
        lambda: parametrizations.spectral_norm(nn.Linear(6, 4)),
        "parametrized",
        "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')",
        remove_parametrization,
    ),
    "pruned": (
        lambda: prune.l1_unstructured(nn.Linear(6, 4), "weight", 0.5),
        "derived weight",
        "torch.nn.utils.prune.remove(layer, 'weight')",
        lambda layer: prune.remove(layer, "weight"),
    ),
    "lazy": (
        lambda: nn.LazyLinear(4),
        "lazy",
        "run one batch through the model",
        lambda layer: layer(torch.ones(2, 6)),
    ),
}


@pytest.mark.parametrize("name", UNDONE)
def test_the_remedy_makes_it_convert(name: str) -> None:
    torch.manual_seed(0)
    make, kind, words, remedy = UNDONE[name]
    model = nn.Sequential(make(), nn.Linear(4, 2)).eval()
    (problem,) = an.find_problems(model)
    place = "0.layer" if "recurrent" in name else "0"
    assert (problem.name, problem.obstacle.kind) == (place, kind)
    assert words in problem.obstacle.remedy
    if kind != "lazy":
        assert problem.parameters == sum(parameter.numel() for parameter in model[0].parameters())
    with pytest.raises(
        ConversionError, match=re.escape(f"strict: 1 layer of Sequential cannot go on tiles: {place} (")
    ):
        an.convert_to_analog(model, "ideal", strict=True)
    # Without strict the rest converts, and the layer is named as digital with the same words.
    partly = an.convert_to_analog(model, "ideal")
    assert list(analog_layers(partly)) == ["1"]
    assert {part.name: part.reason for part in an.describe(partly).digital}[place] == str(problem.obstacle)
    x = torch.randn(3, 6)
    if kind != "lazy":
        torch.testing.assert_close(an.program_(partly).eval()(x), model(x), rtol=1e-5, atol=1e-6)
    remedy(model[0])
    assert an.find_problems(model) == []
    analog = an.program_(an.convert_to_analog(model, "ideal", strict=True)).eval()
    assert list(analog_layers(analog)) == [place, "1"]
    torch.testing.assert_close(analog(x), model(x), rtol=1e-5, atol=1e-6)


def test_several_computed_weights_of_one_layer_are_all_in_the_remedy() -> None:
    layer = nn.LSTM(6, 4)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        nn.utils.weight_norm(layer, name)
    (problem,) = an.find_problems(nn.Sequential(layer))
    assert (
        "'weight_ih_l0') and torch.nn.utils.remove_weight_norm(layer, 'weight_hh_l0')"
        in problem.obstacle.remedy
    )
    layer = nn.Linear(3, 2)
    for name in ("weight", "bias"):
        parametrize.register_parametrization(layer, name, nn.Tanh())
    (problem,) = an.find_problems(nn.Sequential(layer))
    assert problem.obstacle.reason == "its weight and bias is parametrized"
    assert "'weight') and torch.nn.utils.parametrize.remove_parametrizations(layer, 'bias')" in str(problem)


def test_attention_with_a_computed_projection_claims_no_more_than_it_has() -> None:
    x = torch.randn(5, 2, 4)
    model = nn.Sequential(nn.MultiheadAttention(4, 2), nn.Linear(4, 2))
    nn.utils.weight_norm(model[0], "in_proj_weight")
    (problem,) = [problem for problem in an.find_problems(model) if problem.name == "0"]
    assert "remove_weight_norm(layer, 'in_proj_weight')" in problem.obstacle.remedy
    assert "0" not in analog_layers(an.convert_to_analog(model, "ideal"))
    nn.utils.remove_weight_norm(model[0], "in_proj_weight")
    parametrizations.weight_norm(model[0].out_proj)
    (problem,) = an.find_problems(model)
    assert problem.name == "0.out_proj"
    attention = an.convert_to_analog(model, "ideal")[0]
    text = an.describe(attention, x, forward=lambda net, given: net(given, given, given))
    assert text.layers[0].weights == 3 * 16
    assert text.layers[0].macs == 10 * 3 * 16
    left = {part.name: part.parameters for part in text.digital if part.parameters}
    assert left == {"in_proj_bias": 12, "out_proj": 4, "out_proj.parametrizations.weight": 20}
    expected = model[0].eval()(x, x, x)[0]
    torch.testing.assert_close(an.program_(attention).eval()(x, x, x)[0], expected, rtol=1e-5, atol=1e-6)


def engine() -> str:
    return next(name for name in torch.backends.quantized.supported_engines if name != "none")


@contextlib.contextmanager
def quantized_engine() -> Iterator[None]:
    kept = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine()
    try:
        yield
    finally:
        torch.backends.quantized.engine = kept


@pytest.mark.parametrize(("layer", "weights"), [(nn.Linear(6, 4), 24), (First(nn.LSTM(6, 4)), 4 * 4 * 10)])
def test_quantized_layers(layer: nn.Module, weights: int) -> None:
    with quantized_engine():
        floating = nn.Sequential(copy.deepcopy(layer), nn.ReLU(), nn.Linear(4, 2))
        small = torch.ao.quantization.quantize_dynamic(floating, {"0", nn.LSTM})
        (problem,) = an.find_problems(small)
        place = "0.layer" if isinstance(layer, First) else "0"
        assert (problem.name, problem.obstacle.kind, problem.parameters) == (place, "quantized", weights)
        assert problem.obstacle.remedy == "convert the float model"
        with pytest.raises(ConversionError, match=rf"strict: .*{place} .* quantized already"):
            an.convert_to_analog(small, "ideal", strict=True)
        text = an.describe(an.convert_to_analog(small, "ideal"))
        (part,) = [part for part in text.digital if part.name == place]
        assert (part.parameters, part.reason) == (weights, "quantized already: convert the float model")
        assert text.parameter_share == 8 / (8 + weights + 2)
        everything = torch.ao.quantization.quantize_dynamic(floating, {nn.Linear, nn.LSTM})
        with pytest.raises(ConversionError, match=rf"nothing to convert.*{place}: quantized already"):
            an.convert_to_analog(everything, "ideal")
    assert an.find_problems(floating) == []
    assert len(analog_layers(an.convert_to_analog(floating, "ideal", strict=True))) == 2


@pytest.mark.parametrize("how", ["script", "trace", "freeze"])
def test_torch_jit_modules(how: str) -> None:
    inner = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).eval()
    made = torch.jit.trace(inner, torch.ones(1, 6)) if how == "trace" else torch.jit.script(inner)
    if how == "freeze":
        made = torch.jit.freeze(made)
    model = nn.Sequential(made, torch.jit.script(nn.ReLU()), nn.Linear(4, 2))
    (problem,) = an.find_problems(model)
    assert (problem.name, problem.obstacle.kind) == ("0", "torch.jit")
    # Freezing turns the matrices into constants of the graph.
    assert problem.parameters == 30 + 20 + (0 if how == "freeze" else 9)
    assert problem.obstacle.remedy == "convert the Python model it was made from"
    with pytest.raises(ConversionError, match="strict: 1 layer"):
        an.convert_to_analog(model, "ideal", strict=True)
    with pytest.raises(
        ConversionError, match=r"is a torch.jit module and cannot be changed: convert the Python model"
    ):
        an.convert_to_analog(made, "ideal")
    text = an.describe(an.convert_to_analog(model, "ideal"))
    digital = [part for part in text.digital if part.name.split(".")[0] == "0"]
    assert sum(part.parameters for part in digital) == problem.parameters
    assert all(part.reason == str(problem.obstacle) for part in digital)
    model[0] = inner
    assert an.find_problems(model) == []
    assert list(analog_layers(an.convert_to_analog(model, "ideal", strict=True))) == ["0.0", "0.2", "2"]


class Loud(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Mixing(nn.Module):
    """A layer that nobody knows."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mixing = nn.Parameter(torch.randn(inputs, outputs))
        self.gain = nn.Parameter(torch.ones(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.mixing * self.gain


def test_a_subclass_with_its_own_forward_converts_once_registered(registry: None) -> None:
    model = nn.Sequential(Loud(6, 4), nn.Linear(4, 2)).eval()
    (problem,) = an.find_problems(model)
    assert (problem.name, problem.layer, problem.parameters) == ("0", "Loud", 28)
    assert problem.obstacle.kind == "own forward"
    assert "register_analog_layer" in problem.obstacle.remedy

    @register_analog_layer(Loud)
    class AnalogLoud(AnalogLayer, Loud):
        @staticmethod
        def geometries(module: nn.Module) -> dict[str, Geometry]:
            return {"weight": Geometry(1, *module.get_parameter("weight").shape)}

    _check_registered(model)


def test_an_unknown_layer_converts_once_registered(registry: None) -> None:
    model = nn.Sequential(Mixing(6, 4), nn.Linear(4, 2)).eval()
    (problem,) = an.find_problems(model)
    assert (problem.name, problem.layer, problem.parameters) == ("0", "Mixing", 28)
    assert problem.obstacle.kind == "unknown layer"
    with pytest.raises(ConversionError, match=r"strict: .*0 \(Mixing\): no analog form of Mixing"):
        an.convert_to_analog(model, "ideal", strict=True)

    @register_analog_layer(Mixing)
    class AnalogMixing(AnalogLayer, Mixing):
        @staticmethod
        def geometries(module: nn.Module) -> dict[str, Geometry]:
            rows, columns = module.get_parameter("mixing").shape
            return {"mixing": Geometry(1, columns, rows)}

        @staticmethod
        def matrix(name: str, weights: Tensor, geometry: Geometry) -> Tensor:
            return weights.t().unsqueeze(0)

    analog = _check_registered(model)
    parts = {part.name: part.reason for part in an.describe(analog).digital}
    assert parts["0.gain"] == "not on the array, used digitally"


def _check_registered(model: nn.Module) -> nn.Module:
    assert an.find_problems(model) == []
    analog = an.program_(an.convert_to_analog(model, "ideal", strict=True)).eval()
    x = torch.randn(3, 6)
    torch.testing.assert_close(analog(x), model(x), rtol=1e-5, atol=1e-6)
    analog[0].analog.weights[analog[0].analog.parameters[0]].zero_()
    assert not torch.equal(analog(x), model(x))
    return analog


def test_tables_and_vectors_are_no_problems() -> None:
    class Embeddings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 6))
            self.pos_embed = nn.Parameter(torch.zeros(1, 5, 6))
            self.gamma = nn.Parameter(torch.ones(6, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x

    model = nn.Sequential(Embeddings(), nn.Linear(6, 2))
    assert an.find_problems(model) == []
    analog = an.convert_to_analog(model, "ideal", strict=True)
    (part,) = [part for part in an.describe(analog).digital if part.name == "0"]
    assert (part.parameters, part.reason) == (
        42,
        "vectors or tables that scale, or are added, and no matrix of weights",
    )


def test_weights_that_are_no_real_numbers_and_layers_without_weights() -> None:
    model = nn.Sequential(
        nn.Linear(3, 3, dtype=torch.complex64), nn.Linear(0, 3), nn.Linear(3, 0), nn.Linear(3, 2)
    )
    (problem,) = an.find_problems(model)
    assert (problem.name, problem.obstacle.kind, problem.parameters) == ("0", "data type", 12)
    assert "its weight is torch.complex64" in str(problem)
    analog = an.program_(an.convert_to_analog(model, "ideal"))
    assert list(analog_layers(analog)) == ["3"]
    parts = {part.name: part.reason for part in an.describe(analog).digital}
    assert parts["1"] == "it has no weights"


class Borrowing(nn.Module):
    """Computes with its children's weights and never calls them, as torchvision's Swin attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.used = nn.Linear(6, 18), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = nn.functional.linear(x, self.qkv.weight, self.qkv.bias).chunk(3, -1)
        mixed = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return self.used(nn.functional.linear(mixed, self.proj.weight, self.proj.bias)).mean(1)


def test_a_module_that_borrows_its_children_s_weights_is_named() -> None:
    torch.manual_seed(0)
    analog = an.convert_to_analog(Borrowing(), "pcm-ibm")
    data = [(torch.randn(4, 5, 6), torch.arange(4))]
    with pytest.warns(UserWarning, match=r"the tiles of 'qkv', 'proj' were not read"):
        report = an.evaluate_drift(analog, data, times=["1h"], chips=2)
    assert report.describe["not_read"] == ["qkv", "proj"]
    # Their products count as digital, because that is where they are computed.
    text = report.description
    assert {row.name: row.macs for row in text.layers} == {"qkv": 0, "proj": 0, "used": 20 * 24}
    (products,) = [part for part in text.digital if part.name == ""]
    assert products.macs == 20 * 6 * (18 + 6) + 2 * 4 * 5 * 5 * 6


class Everything(nn.Module):
    """One of each kind that computes with its digital layer's own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose1d(3, 6, 2, stride=2)
        self.mix = nn.MultiheadAttention(6, 2, batch_first=True)
        self.remember, self.step = nn.GRU(6, 6, batch_first=True), nn.LSTMCell(6, 6)
        self.pair = nn.Bilinear(6, 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x).transpose(1, 2)
        y = self.remember(self.mix(y, y, y)[0])[0].mean(1)
        return self.pair(y, self.step(y)[0])


def test_no_layer_that_is_read_is_named_as_unread() -> None:
    torch.manual_seed(0)
    analog = an.convert_to_analog(Everything(), "pcm-ibm")
    data = [(torch.randn(4, 3, 5), torch.arange(4))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = an.evaluate_drift(analog, data, times=["1h"], chips=1, metric="loss")
    assert report.describe["not_read"] == []
    assert len(report.description.layers) == 5


def test_a_weight_that_only_its_digital_parent_uses_is_not_claimed() -> None:
    class Self(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x, x, x, need_weights=False)[0]

    x = torch.randn(5, 2, 4)
    normed = nn.TransformerEncoderLayer(4, 2, 8)
    parametrizations.weight_norm(normed.self_attn, "in_proj_weight")
    for model, place in ((nn.Sequential(Self(4, 2), nn.Linear(4, 2)), "0"), (normed, "self_attn")):
        model.eval()
        problems = {problem.name: problem for problem in an.find_problems(model)}
        child = problems[f"{place}.out_proj"]
        assert (child.obstacle.kind, child.parameters) == ("uncalled", 20)
        assert "computes with its weight without calling it" in str(child)
        analog = an.program_(an.convert_to_analog(model, "ideal")).eval()
        assert f"{place}.out_proj" not in analog_layers(analog)
        with torch.inference_mode():
            expected, found = model(x), analog(x)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
            for layer in analog_layers(analog).values():
                kept = layer.analog.copy_weights()
                for weights in layer.analog.weights.values():
                    weights.zero_()
                assert not torch.equal(analog(x), found)
                layer.analog.put_weights(kept, None)
        text = an.describe(analog, x)
        assert text.never_called == ()
        assert {part.name: part.reason for part in text.digital}[f"{place}.out_proj"] == str(child.obstacle)


def test_a_forward_replaced_on_the_object_is_a_problem() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    model[0].forward = types.MethodType(lambda self, x: 2 * nn.Linear.forward(self, x), model[0])
    (problem,) = an.find_problems(model)
    assert (problem.name, problem.obstacle.kind) == ("0", "own forward")
    assert "its forward was replaced on the object itself: delete that attribute" in str(problem)
    x = torch.randn(3, 6)
    analog = an.program_(an.convert_to_analog(model, "ideal")).eval()
    assert list(analog_layers(analog)) == ["1"]
    torch.testing.assert_close(analog(x), model(x), rtol=1e-5, atol=1e-6)
    del model[0].forward
    assert len(analog_layers(an.convert_to_analog(model, "ideal", strict=True))) == 2


class NormedLinear(nn.Module):
    """Has "Norm" in its name, and a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ nn.functional.normalize(self.weight, dim=0)


class Projection(nn.Module):
    """Multiplies with a buffer."""

    def __init__(self, name: str = "proj", persistent: bool = True) -> None:
        super().__init__()
        self.register_buffer(name, torch.randn(6, 4), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        return x @ next(self.buffers())


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w_emb = nn.Parameter(torch.randn(6, 5))
        self.low_rank_token = nn.Parameter(torch.randn(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w_emb @ self.low_rank_token


def frozen(buffer: bool) -> nn.Module:
    layer = nn.Linear(6, 4)
    weight = layer.weight.detach()
    del layer.weight
    if buffer:
        layer.register_buffer("weight", weight)
    else:
        layer.weight = weight  # type: ignore[assignment]
    return layer


@pytest.mark.parametrize(
    ("layer", "kind", "weights"),
    [
        (NormedLinear(), "unknown layer", 24),
        (Projection(), "buffer", 24),
        (Tokens(), "unknown layer", 50),
        (frozen(buffer=True), "derived weight", 28),
        (frozen(buffer=False), "derived weight", 28),
    ],
)
def test_matrices_in_disguise_are_problems(layer: nn.Module, kind: str, weights: int) -> None:
    model = nn.Sequential(layer, nn.Linear(4, 2))
    (problem,) = an.find_problems(model)
    assert (problem.name, problem.obstacle.kind, problem.parameters) == ("0", kind, weights)
    with pytest.raises(ConversionError, match="strict: 1 layer"):
        an.convert_to_analog(model, "ideal", strict=True)
    text = an.describe(an.convert_to_analog(model, "ideal"), torch.randn(3, 6))
    (part,) = [part for part in text.digital if part.name == "0"]
    assert (part.parameters, part.reason) == (weights, str(problem.obstacle))
    assert text.parameter_share == 8 / (8 + weights + 2)


NO_WEIGHTS = """
    tril triu causal_mask attn_bias relative_position_bias freqs pos_enc alibi coords anchors priors queue
    mean std running_cov sin_cached cos_cached pe codebook timesteps centers kernel_size weight_mask window
"""


@pytest.mark.parametrize("name", NO_WEIGHTS.split())
def test_buffers_of_ordinary_models_are_no_problems(name: str) -> None:
    model = nn.Sequential(Projection(name), nn.Linear(4, 2))
    assert an.find_problems(model) == []
    analog = an.convert_to_analog(model, "ideal", strict=True)
    (part,) = [part for part in an.describe(analog, torch.randn(3, 6)).digital if part.name == "0"]
    assert (part.parameters, part.macs) == (0, 3 * 24)  # what it multiplies is counted all the same
    assert "with a buffer" in part.reason


@pytest.mark.parametrize("shape", [(8,), (1, 8), (8, 1), (1, 8, 1, 1)])
def test_a_buffer_of_one_axis_is_no_matrix(shape: tuple[int, ...]) -> None:
    layer = nn.Identity()
    layer.register_buffer("class_weights", torch.ones(shape))
    assert an.find_problems(nn.Sequential(layer, nn.Linear(4, 2))) == []


@pytest.mark.parametrize("name", ["W", "weight", "proj2", "projection_matrix", "blur_kernel"])
def test_buffers_called_weights_are_problems(name: str) -> None:
    (problem,) = an.find_problems(nn.Sequential(Projection(name), nn.Linear(4, 2)))
    assert (problem.obstacle.kind, problem.parameters) == ("buffer", 24)


def test_buffers_that_are_no_weights() -> None:
    layers = [Projection("causal_mask"), Projection("pe"), Projection("weight", persistent=False)]
    layers += [nn.LayerNorm((6, 4)), nn.Embedding(6, 4), nn.BatchNorm2d(3)]
    assert an.find_problems(nn.Sequential(*layers, nn.Linear(4, 2))) == []
    norm = parametrizations.weight_norm(nn.LayerNorm(4))
    assert an.find_problems(nn.Sequential(norm, nn.Linear(4, 2))) == []


class Adjacent(nn.Linear):
    """Beside its weights it holds a sparse matrix."""

    def __init__(self) -> None:
        super().__init__(6, 4)
        self.graph = nn.Parameter(torch.eye(4).to_sparse())


def test_a_sparse_parameter_beside_layers_on_tiles() -> None:
    model = an.convert_to_analog(nn.Sequential(Adjacent(), nn.Linear(4, 2)), "ideal")
    data = [(torch.ones(2, 6), torch.zeros(2).long())]
    an.evaluate_drift(model, data, times=["1s"], chips=1)
    with torch.no_grad():
        model[0].graph = nn.Parameter((torch.eye(4) * float("nan")).to_sparse())
    with pytest.raises(ModelError, match=r"parameter '0.graph': \d+ of its 16 values are NaN"):
        an.evaluate_drift(model, data, times=["1s"], chips=1)


@pytest.mark.parametrize("how", ["float8", "sparse"])
def test_weights_that_cannot_be_programmed_are_named_before(how: str) -> None:
    layer = nn.Linear(6, 4)
    data = layer.weight.detach()
    odd = data.to(torch.float8_e4m3fn) if how == "float8" else data.to_sparse()
    layer.weight = nn.Parameter(odd, requires_grad=False)
    model = nn.Sequential(nn.Linear(6, 6), layer)
    (problem,) = an.find_problems(model)
    assert (problem.name, problem.obstacle.kind) == ("1", "data type")
    assert ("torch.float8_e4m3fn" if how == "float8" else "torch.sparse_coo") in str(problem)
    assert list(analog_layers(an.convert_to_analog(model, "ideal"))) == ["0"]


def test_weights_beyond_float32() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).double()
    with torch.no_grad():
        model[1].weight[0, 0] = 1e39
    analog = an.convert_to_analog(model, "ideal")
    with pytest.raises(an.AnalogNoiseError, match=r"layer '1' .*: 1 of its 4 weights are .* beyond float32"):
        an.program_(analog)


Geometries = Callable[[nn.Module], object]
RIGHT: Geometries = lambda module: {"mixing": Geometry(1, 4, 6)}  # noqa: E731


def registered(
    geometries: Geometries, matrix: Callable[[Tensor], Tensor] = lambda w: w.t().unsqueeze(0)
) -> None:
    members = {
        "geometries": staticmethod(geometries),
        "matrix": staticmethod(lambda name, weights, geometry: matrix(weights)),
    }
    register_analog_layer(Mixing)(type("AnalogMixing", (AnalogLayer, Mixing), members))


@pytest.mark.parametrize(
    ("geometries", "words"),
    [
        (lambda m: {"mixing": Geometry(1, 3, 3)}, "9 values, but its shape is [6, 4], 24 values"),
        (lambda m: {"mixing": Geometry(1, 4.0, 6)}, "gives columns = 4.0 for 'mixing'"),  # type: ignore[arg-type]
        (lambda m: {"mixing": Geometry(1, -4, -6)}, "gives columns = -4"),
        (lambda m: {"mixing": Geometry(1, 0, 6)}, "gives columns = 0"),
        (lambda m: {"mixnig": Geometry(1, 4, 6)}, "names 'mixnig', but its Parameters are 'mixing', 'gain'"),
        (lambda m: {}, "names no Parameter"),
        (lambda m: {"mixing": (1, 4, 6)}, "gives (1, 4, 6) for 'mixing': give an analognoise.Geometry"),
        (lambda m: int("a"), "geometries fails (ValueError: invalid literal"),
        (lambda m: Geometry(1, 4, 6), "gives a Geometry: give a dict"),
    ],
)
def test_a_registered_geometry_that_does_not_fit(registry: None, geometries: Geometries, words: str) -> None:
    registered(geometries)
    model = nn.Sequential(nn.Linear(6, 6), Mixing(6, 4))
    (problem,) = an.find_problems(model)
    assert (problem.name, problem.obstacle.kind) == ("1", "geometry")
    for options in ({}, {"inplace": True}, {"strict": True}):
        with pytest.raises(ConversionError, match=re.escape(words)) as caught:
            an.convert_to_analog(model, "ideal", **options)
        assert "1 (Mixing): AnalogMixing.geometries" in str(caught.value)
        assert type(model[0]) is nn.Linear


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (lambda w: w.t().clone().unsqueeze(0), "gives a copy of 'mixing'"),
        (lambda w: w.t(), "gives [4, 6] for 'mixing': give a view as [groups, columns, rows] = [1, 4, 6]"),
        (lambda w: w[:1].expand(6, 4).t().unsqueeze(0), "shows some values twice"),
        (lambda w: w.nothing, "matrix fails for 'mixing' of shape [6, 4]: AttributeError"),
    ],
)
def test_a_registered_matrix_that_is_no_view(
    registry: None, matrix: Callable[[Tensor], Tensor], words: str
) -> None:
    registered(RIGHT, matrix)
    with pytest.raises(ConversionError, match=re.escape(words)):
        an.convert_to_analog(nn.Sequential(Mixing(6, 4)), "ideal")


def test_the_order_of_a_registered_class_s_bases(registry: None) -> None:
    with pytest.raises(
        ConversionError, match=r"must inherit from analognoise.AnalogLayer and then from Mixing"
    ):
        register_analog_layer(Mixing)(
            type("Wrong", (Mixing, AnalogLayer), {"geometries": staticmethod(RIGHT)})
        )
