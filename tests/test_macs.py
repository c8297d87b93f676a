"""Multiply-accumulates are counted by whoever does them, or said to be unknown."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional

import analognoise as an
from analognoise.conversion import analog_layers
from analognoise.description import Description
from analognoise.errors import DataError

X = torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(0))
STEPS = 15


class First(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Own(nn.LSTM):
    def forward(self, x: Tensor, hx: Any = None) -> Any:
        return super().forward(x, hx)


class Twice(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x)


class Vectors(nn.Module):
    """A matrix that multiplies vectors one by one."""

    def __init__(self, multiply: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 6))
        self.multiply = multiply

    def forward(self, x: Tensor) -> Tensor:
        rows = [self.multiply(self.matrix, row) for row in x.flatten(0, 1)]
        return torch.stack(rows).unflatten(0, x.shape[:2])


def quantized() -> nn.Module:
    engine = torch.backends.quantized.engine
    engines = torch.backends.quantized.supported_engines
    torch.backends.quantized.engine = next(name for name in engines if name != "none")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(6, 4)), {nn.Linear})
    finally:
        torch.backends.quantized.engine = engine


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return First(nn.utils.weight_norm(nn.LSTM(6, 4), "weight_ih_l0"))


# Layers that stay digital before a Linear(4, 2) on tiles, and their multiply-accumulates a step.
LEFT: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "lstm": (lambda: First(nn.LSTM(6, 2, 2, bidirectional=True)), 4 * 2 * 2 * (6 + 2 + 4 + 2)),
    "lstm with a projection": (lambda: First(nn.LSTM(6, 5, proj_size=4)), 4 * 5 * (6 + 4) + 5 * 4),
    "gru": (lambda: First(nn.GRU(6, 4)), 3 * 4 * 10),
    "subclass": (lambda: First(Own(6, 4)), 4 * 4 * 10),
    "weight_norm": (old_weight_norm, 4 * 4 * 10),
    "bilinear": (lambda: Twice(nn.Bilinear(6, 6, 4)), 4 * 6 * (6 + 1)),
    "quantized": (quantized, 24),
    "mv": (lambda: Vectors(torch.mv), 24),
    "addmv": (lambda: Vectors(lambda w, x: torch.addmv(torch.ones(4), w, x)), 24),
    "dot": (lambda: Vectors(lambda w, x: torch.stack([torch.dot(row, x) for row in w])), 24),
}


@pytest.mark.parametrize("name", LEFT)
def test_work_left_digital_is_counted(name: str) -> None:
    torch.manual_seed(0)
    make, macs = LEFT[name]
    model = nn.Sequential(make(), nn.Linear(4, 2))
    text = an.describe(an.convert_to_analog(model, "ideal", filter_fn=lambda module, n: n == "1"), X)
    assert sum(part.macs or 0 for part in text.digital) == STEPS * macs
    assert text.layers[0].macs == STEPS * 8
    assert text.mac_share == 8 / (8 + macs)
    assert text.uncounted == ()


def test_experts_in_one_kernel_are_counted() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 16, 8).bfloat16())

        def forward(self, x: Tensor) -> Tensor:
            ends = torch.tensor([4, 12], dtype=torch.int32)
            return torch._grouped_mm(x.bfloat16(), self.weight, offs=ends).float()

    text = an.describe(
        an.convert_to_analog(nn.Sequential(Experts(), nn.Linear(8, 2)), "ideal"), torch.ones(12, 16)
    )
    assert {part.name: part.macs for part in text.digital}["0"] == 12 * 16 * 8


def test_what_cannot_be_counted_leaves_no_share() -> None:
    class Elementwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(6, 4))

        def forward(self, x: Tensor) -> Tensor:
            return (x.unsqueeze(-1) * self.w).sum(-2)

    text = an.describe(an.convert_to_analog(nn.Sequential(Elementwise(), nn.Linear(4, 2)), "ideal"), X)
    assert {part.name: part.macs for part in text.digital}["0"] is None
    assert text.mac_share is None
    assert text.uncounted == ("0",)
    assert "is known: those of '0' cannot be counted" in text.summary()
    assert "unknown" in str(text)
    assert text.to_dict()["mac_share"] is None

    # Scaling the rows of a matrix is no product with the input.
    class Scaled(Elementwise):
        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.w * torch.ones(4))

    text = an.describe(an.convert_to_analog(nn.Sequential(Scaled(), nn.Linear(4, 2)), "ideal"), X)
    assert text.mac_share == 8 / (8 + 24)


def test_somebody_s_own_operator_cannot_be_counted() -> None:
    @torch.library.custom_op("analognoise_tests::product", mutates_args=())
    def product(x: Tensor, w: Tensor) -> Tensor:
        return x @ w

    class Kernel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(6, 4))

        def forward(self, x: Tensor) -> Tensor:
            return product(x, self.w)

    text = an.describe(an.convert_to_analog(nn.Sequential(Kernel(), nn.Linear(4, 2)), "ideal"), X)
    assert text.uncounted == ("0",)


def test_bilinear_products_with_the_first_input_are_digital() -> None:
    text = an.describe(an.convert_to_analog(Twice(nn.Bilinear(6, 6, 4)), "ideal"), X)
    assert text.layers[0].macs == STEPS * 4 * 6 * 6
    (products,) = [part for part in text.digital if part.macs]
    assert (products.name, products.macs) == ("layer", STEPS * 4 * 6)
    assert text.mac_share == 6 / 7


class ByName(nn.Module):
    """Calls its layer with arguments by name."""

    def __init__(self, layer: nn.Module, *names: str) -> None:
        super().__init__()
        self.layer, self.names = layer, names

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(**dict.fromkeys(self.names, x))
        return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize(
    ("layer", "names", "shape", "macs"),
    [
        (nn.MultiheadAttention(6, 2), ("query", "value", "key"), (5, 3, 6), 15 * (3 * 36 + 36)),
        (nn.LSTM(6, 4), ("input",), (5, 3, 6), 15 * 4 * 4 * 10),
        (nn.GRUCell(6, 4), ("input",), (3, 6), 3 * 3 * 4 * 10),
        (nn.ConvTranspose1d(3, 4, 3, stride=2, output_padding=1), ("input",), (5, 3, 6), 5 * 6 * 3 * 4 * 3),
        (nn.Linear(6, 4), ("input",), (5, 3, 6), 15 * 24),
    ],
)
def test_layers_called_by_name(
    layer: nn.Module, names: tuple[str, ...], shape: tuple[int, ...], macs: int
) -> None:
    model = an.convert_to_analog(ByName(layer, *names), "ideal")
    assert an.describe(model, torch.ones(shape)).layers[0].macs == macs


def test_evaluation_of_a_layer_called_by_name() -> None:
    model = an.convert_to_analog(nn.Sequential(ByName(nn.LSTM(6, 4), "input"), nn.Flatten()), "pcm-ibm")
    report = an.evaluate_drift(model, [(X, torch.arange(5))], times=["1s"], chips=2)
    assert report.describe["mac_share"] == 1.0


@pytest.mark.parametrize("trace", [False, True])
def test_a_torch_jit_module_within(trace: bool) -> None:
    inner = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    made = torch.jit.trace(inner, X) if trace else torch.jit.script(inner)
    model = an.convert_to_analog(nn.Sequential(made, nn.Linear(4, 2)), "ideal")
    before = dict(vars(made))
    text = an.describe(model, X)
    assert {part.name: part.macs for part in text.digital}["0"] == STEPS * 24
    assert text.mac_share == 8 / (8 + 24)
    assert vars(made).get("forward") is before.get("forward")


@pytest.mark.filterwarnings("ignore:`torch.jit.freeze` is deprecated:DeprecationWarning")
def test_a_frozen_torch_jit_module_within() -> None:
    made = torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Linear(6, 4)).eval()))
    model = an.convert_to_analog(nn.Sequential(nn.Flatten(0, 1), made, nn.Linear(4, 2)), "ideal")
    assert an.describe(model, X).mac_share == 8 / (8 + 24)
    assert model[2].training
    report = an.evaluate_drift(model, [(X, torch.arange(STEPS) % 2)], times=["1s"], chips=1)
    assert report.describe["mac_share"] == 8 / (8 + 24)


def test_a_forward_called_directly_is_on_tiles() -> None:
    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.lin.forward(x)

    assert an.describe(an.convert_to_analog(Direct(), "ideal"), X).mac_share == 1.0


def test_an_exception_that_the_model_catches() -> None:
    class Trying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(7, 4)

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.b(x)
            except RuntimeError:
                return self.a(x)

    text = an.describe(an.convert_to_analog(Trying(), "ideal"), X)
    assert {layer.name: layer.macs for layer in text.layers} == {"a": STEPS * 24, "b": 0}
    assert text.mac_share == 1.0


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_input_is_not_counted(layout: torch.layout) -> None:
    given = torch.nested.nested_tensor([torch.randn(2, 6), torch.randn(4, 6)], layout=layout)
    text = an.describe(an.convert_to_analog(nn.Sequential(nn.Linear(6, 2)), "ideal"), given)
    assert text.layers[0].macs is None
    assert text.layers[0].called
    assert text.mac_share is None
    assert text.uncounted == ("0",)


class Padded(nn.Module):
    """Takes sequences of several lengths as one nested tensor."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).to_padded_tensor(0.0)[:, 0])


@pytest.mark.parametrize("digital", [False, True])
def test_an_encoder_of_nested_input(digital: bool) -> None:
    torch.manual_seed(0)
    lengths = [[3, 2], [4, 2]]
    given, other = (torch.nested.nested_tensor([torch.randn(n, 6) for n in row]) for row in lengths)
    labels = torch.arange(2)
    chosen = (lambda module, name: name == "head") if digital else None
    model = an.convert_to_analog(Padded(), "pcm-ibm", filter_fn=chosen)
    text = an.describe(model, given)
    inner = ("self_attn", "linear1", "linear2")
    unknown = ("encoder.layers.0",) if digital else tuple(f"encoder.layers.0.{name}" for name in inner)
    assert text.uncounted == unknown
    assert torch.backends.mha.get_fastpath_enabled()
    options: dict[str, Any] = {"times": ["1s"], "chips": 2, "metric": "loss"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = an.evaluate_drift(model, [(given, labels)], **options)
        again = an.evaluate_drift(model, [(given.clone(), labels)], **options)
        if digital:
            an.evaluate_drift(
                model, [(given, labels)], **options, recalibrate="affine", calibration=[(other, labels)]
            )
    if not digital:
        with pytest.raises(DataError, match=r"layer 'encoder.*' gives a nested tensor, and recalibration"):
            an.evaluate_drift(
                model, [(given, labels)], **options, recalibrate="affine", calibration=[(other, labels)]
            )
    assert report.rows == again.rows
    with pytest.raises(DataError, match="test data"):
        an.evaluate_drift(
            model, [(given, labels)], **options, recalibrate="affine", calibration=[(given, labels)]
        )


@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_compiled_model_is_counted_and_stays_as_it_was(fullgraph: bool) -> None:
    torch.compiler.reset()
    counter = CompileCounter()
    plain = an.program_(an.convert_to_analog(nn.Sequential(nn.Linear(6, 4)), "ideal")).eval()
    compiled = torch.compile(plain, backend=counter, fullgraph=fullgraph)
    assert an.describe(compiled, X).mac_share == 1.0
    assert an.describe(plain, X, forward=lambda model, x: compiled(x)).mac_share == 1.0
    assert counter.frame_count == 0
    with torch.no_grad():
        assert torch.equal(compiled(X), plain(X))
    assert counter.frame_count == 1
    torch.compiler.reset()


class Borrowing(nn.Module):
    """Uses a layer's weight and never calls the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.out = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(functional.linear(x, self.lin.weight.t()))


def described(model: nn.Module, given: Tensor = X) -> Description:
    return an.describe(an.convert_to_analog(model, "ideal"), given)


def test_a_layer_that_is_never_called_is_named() -> None:
    text = described(Borrowing())
    assert text.never_called == ("lin",)
    assert "never called, so that their tiles are not read: 'lin'" in text.summary()
    assert text.to_dict()["never_called"] == ["lin"]
    (part,) = [part for part in text.digital if part.macs]
    assert part.macs == STEPS * 36
    assert part.reason == "multiplies with 'lin.weight' itself, without calling the layer that holds it"
    assert an.describe(an.convert_to_analog(Borrowing(), "ideal")).never_called == ()


def test_a_tied_decoder_is_named_with_the_weight_it_uses() -> None:
    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(self.e(x), self.e.weight.t())

    text = described(Autoencoder())
    assert text.never_called == ()
    (part,) = [part for part in text.digital if part.macs]
    assert (part.macs, part.reason.split(",")[0]) == (STEPS * 24, "multiplies with 'e.weight' itself")
    assert text.mac_share == 0.5


def test_a_table_that_multiplies_is_called_a_matrix() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(6, 6)
            self.out_embed = nn.Parameter(torch.randn(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            return self.lin(x) @ self.out_embed

    analog = an.convert_to_analog(Head(), "ideal")
    assert "added" in an.describe(analog).digital[0].reason
    assert "no analog form of Head" in an.describe(analog, X).digital[0].reason


def test_the_count_leaves_a_replaced_forward_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    model[1].forward = types.MethodType(lambda self, x: x.sigmoid(), model[1])
    analog = an.convert_to_analog(model, "ideal")
    own = vars(analog[1])["forward"]
    assert an.describe(analog, X).mac_share == 1.0
    assert vars(analog[1])["forward"] is own
    assert "forward" not in vars(analog[0])
    assert list(analog_layers(analog)) == ["0"]


def test_a_parameter_of_two_layers_is_one() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Embedding(6, 6))
    model[1].weight = model[0].weight
    text = an.describe(an.convert_to_analog(model, "ideal"))
    assert text.devices == 2 * 2 * 36
    assert text.parameter_share == 36 / sum(parameter.numel() for parameter in model.parameters())
