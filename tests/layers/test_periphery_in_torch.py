"""Layers with a periphery in torch: precisions, gradients, copies, compiling, transforms, blocks."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import analognoise as an
from analognoise.errors import NoiseError
from tests.layers.peripheries import PERIPHERIES, in_blocks, on_tiles


def test_half_precision_and_autocast_leave_the_converters_exact():
    torch.manual_seed(0)
    layer, x = nn.Linear(20, 6), torch.randn(7, 20)
    periphery = {"dac": {"bits": 8, "range": "fixed", "bound": 3.0}, "adc": {"bits": 8, "bound": 10.0}}
    analog = on_tiles(layer, periphery)
    expected = analog(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(analog(x), expected)
    half = on_tiles(copy.deepcopy(layer).bfloat16(), periphery)
    found = half(x.bfloat16())
    assert found.dtype == torch.bfloat16
    step = layer.weight.abs().max() * 3.0 * 10.0 / 127
    assert (found - expected).abs().max() < 1.2 * step
    double = on_tiles(copy.deepcopy(layer).double(), periphery)
    torch.testing.assert_close(double(x.double()).float(), expected)

    spread = nn.ConvTranspose1d(4, 3, 2)
    given = torch.randn(2, 4, 5)
    found = on_tiles(copy.deepcopy(spread).half(), periphery)(given.half())
    assert found.dtype == torch.half
    assert (found - on_tiles(spread, periphery)(given)).abs().max() < 4 * step  # of four input channels


def test_what_inference_mode_left_behind_takes_gradients():
    torch.manual_seed(0)
    x = torch.randn(3, 6)
    analog = on_tiles(nn.Linear(6, 5), {"dac": {"bits": 8, "range": "fixed", "bound": 3.0}})
    with torch.inference_mode():
        expected = analog(x)
    found = analog(x.requires_grad_())
    assert torch.equal(found, expected)
    found.sum().backward()
    inside = x.detach().abs() <= 3.0
    assert torch.allclose(x.grad, analog.analog.weights["weight"].sum(0) * inside, rtol=1e-5)


def test_copies_and_compiled_models_compute_the_same():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), torch.randn(3, 6)
    periphery = {"dac": {"bits": 8, "range": "fixed", "bound": 3.0}, "adc": {"bits": 8, "bound": 10.0}}
    analog = on_tiles(model, periphery)
    expected = analog(x)
    for other in (copy.deepcopy(analog), pickle.loads(pickle.dumps(analog))):
        assert torch.equal(other(x), expected)
    compiled = torch.compile(analog, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    an.drift_to_(analog, "1h")
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize("periphery", PERIPHERIES.values(), ids=PERIPHERIES)
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(40, 14), (3, 9, 40)),
        (nn.Linear(40, 2), (31, 40)),
        (nn.Conv2d(6, 8, 3, 2, 1, groups=2), (7, 6, 9, 9)),
        (nn.ConvTranspose1d(8, 6, 3, groups=2), (5, 8, 11)),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_products_in_blocks_are_the_whole_ones(layer, shape, periphery, monkeypatch):
    torch.manual_seed(2)
    x = torch.randn(shape)
    analog = on_tiles(layer, periphery, rows=16)
    with torch.no_grad():
        whole = analog(x)
        in_blocks(monkeypatch, 40)
        assert torch.allclose(analog(x), whole, rtol=1e-5, atol=2e-5)
        assert torch.allclose(torch.vmap(analog)(x.unsqueeze(0))[0], whole, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("periphery", PERIPHERIES.values(), ids=PERIPHERIES)
def test_products_of_some_columns_in_blocks(periphery, monkeypatch):
    torch.manual_seed(2)
    layer, inputs = nn.MultiheadAttention(12, 2), torch.randn(3, 9, 5, 12).unbind()
    analog = on_tiles(copy.deepcopy(layer), periphery).eval()
    with torch.no_grad():
        whole = analog(*inputs)[0]
        in_blocks(monkeypatch, 60)
        assert torch.allclose(analog(*inputs)[0], whole, rtol=1e-4, atol=1e-4)
        some = analog.multiply(inputs[0], "in_proj_weight", slice(3, 20))
        assert torch.allclose(some, analog.multiply(inputs[0], "in_proj_weight")[..., 3:20], atol=1e-4)
        assert torch.allclose(some, inputs[0] @ layer.in_proj_weight[3:20].T, atol=1e-3)


@pytest.mark.parametrize("periphery", PERIPHERIES.values(), ids=PERIPHERIES)
@pytest.mark.parametrize(
    ("made", "changes"),
    [
        ({}, {"padding": (2, 1)}),
        ({"padding": 1}, {"padding": 0}),
        ({"padding": 1}, {"padding": (2, 2), "dilation": 2}),
        ({"stride": 2}, {"stride": 1, "padding": "same"}),
        ({"padding": "same"}, {"dilation": (1, 3)}),
        ({"padding": "same"}, {"padding": "valid"}),
        ({"padding": 1, "padding_mode": "reflect"}, {"padding": 0}),
    ],
    ids=str,
)
def test_convolutions_that_were_changed_since_they_were_made(made, changes, periphery, monkeypatch):
    torch.manual_seed(4)
    layer, x = nn.Conv2d(3, 4, (3, 2), **made), torch.randn(7, 3, 9, 8)
    for name, value in changes.items():
        setattr(layer, name, value)
    analog = on_tiles(copy.deepcopy(layer), periphery)
    with torch.no_grad():
        expected = layer(x)
        assert torch.allclose(analog(x), expected, rtol=1e-4, atol=2e-4)
        in_blocks(monkeypatch, 400)
        assert torch.allclose(analog(x), expected, rtol=1e-4, atol=2e-4)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms_of_torch_func():
    torch.manual_seed(3)
    x = torch.randn(5, 12)
    analog = on_tiles(nn.Linear(12, 6), {"dac": {"bits": 8}, "out_noise": 0.1})

    def again(run=lambda output: output):
        an.program_(analog, seed=0)  # the noise begins anew
        return lambda x: run(analog(x))

    given = x.clone().requires_grad_()
    loss = again(lambda output: output.square().sum())
    [expected] = torch.autograd.grad(loss(given), given)
    assert expected.abs().min() > 0
    assert torch.equal(torch.func.grad(again(lambda output: output.square().sum()))(x), expected)
    rows = torch.func.jacrev(again())(x)
    assert torch.allclose(torch.einsum("bobi,bo->bi", rows, 2 * again()(x)), expected, rtol=1e-5, atol=1e-6)

    for options in ({}, {"randomness": "different"}):
        with pytest.raises(NoiseError, match=r"layer '': vmap cannot draw .* randomness='same'\)$"):
            torch.vmap(again(), **options)(x)
    alike = torch.vmap(again(), randomness="same")(x[:1].expand(3, -1))
    assert torch.equal(alike[0], alike[1])
    assert torch.allclose(alike[:1], again()(x[:1]))


KINDS = {
    "linear": (nn.Linear(4, 5), (3, 4)),
    "conv": (nn.Conv2d(4, 6, 3, groups=2), (3, 4, 7, 8)),
    "transposed": (nn.ConvTranspose1d(4, 6, 3, groups=2), (3, 4, 7)),
    "lstm": (nn.LSTM(4, 5, batch_first=True), (3, 6, 4)),
    "attention": (nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), (3, 6, 4)),
}


@pytest.mark.parametrize("periphery", PERIPHERIES.values(), ids=PERIPHERIES)
@pytest.mark.parametrize(("layer", "shape"), KINDS.values(), ids=KINDS)
def test_batches_of_nothing_and_of_samples_that_are_mapped(layer, shape, periphery):
    def first(model, x):
        found = model(x)
        return found[0] if isinstance(found, tuple) else found

    torch.manual_seed(0)
    analog, x = on_tiles(nn.Sequential(copy.deepcopy(layer)).eval(), periphery), torch.randn(2, *shape)
    with torch.no_grad():
        assert first(analog, x[0, :0]).shape == first(layer, x[0, :0]).shape
        if isinstance(layer, nn.TransformerEncoderLayer):
            return  # torch's masks cannot be mapped
        both = torch.vmap(lambda x: first(analog, x))(x)
        torch.testing.assert_close(both, torch.stack([first(analog, own) for own in x]))


@pytest.mark.parametrize("type_", [torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("name", ["linear", "conv", "transposed", "lstm"])
def test_inputs_that_are_no_floating_point_numbers_are_refused_as_by_digital_layers(name, type_):
    layer, shape = KINDS[name]
    analog = on_tiles(nn.Sequential(copy.deepcopy(layer)), PERIPHERIES["both"])
    with pytest.raises((RuntimeError, ValueError)):
        layer(torch.ones(shape, dtype=type_))
    with pytest.raises(RuntimeError, match=f"layer '0': inputs are {type_}, expected floating-point numbers"):
        analog(torch.ones(shape, dtype=type_))


def test_sequences_of_no_step_are_refused():
    analog = on_tiles(nn.Sequential(nn.GRU(4, 5)), PERIPHERIES["both"])
    with pytest.raises(RuntimeError, match="layer '0': a sequence has at least one step, found none"):
        analog(torch.ones(0, 3, 4))


FINELY = {"dac": {"bits": 22}}


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.ConvTranspose1d(4, 6, 3, dilation=3, output_padding=2), (5, 4, 9)),
        (nn.ConvTranspose2d(4, 6, 3, (1, 2), (1, 0), (1, 1), 1, True, (2, 1)), (5, 4, 7, 8)),
        (nn.ConvTranspose2d(4, 6, (2, 3), 1, (2, 0), (2, 1), 2, False, 3), (5, 4, 7, 8)),
        (nn.ConvTranspose3d(4, 2, 2, dilation=2, output_padding=1), (3, 4, 3, 4, 3)),
    ],
)
def test_transposed_convolutions_with_dilation_take_output_padding_above_their_strides(layer, shape):
    torch.manual_seed(0)
    analog, x = on_tiles(copy.deepcopy(layer), FINELY), torch.randn(shape)
    torch.testing.assert_close(analog(x), layer(x), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(analog(x), layer(x), rtol=1e-4, atol=1e-4)


def test_traces_of_convolutions_are_saved_with_and_without_gradients(tmp_path):
    torch.manual_seed(0)
    analog, x = on_tiles(nn.Conv2d(4, 6, 3), FINELY), torch.randn(5, 4, 7, 8)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            torch.jit.trace(analog, x, check_trace=False).save(tmp_path / "trace.pt")
            torch.testing.assert_close(torch.jit.load(tmp_path / "trace.pt")(x), analog(x))


@pytest.mark.parametrize("follows", [False, True])
def test_tangents_go_forward_through_patches(follows):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(4, 6, 3, padding=1), torch.randn(5, 4, 7, 8)
    analog, along = on_tiles(copy.deepcopy(layer), {"dac": {"range": "dynamic"}}), torch.randn_like(x)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.requires_grad_(follows), along)
        tangent = forward_ad.unpack_dual(analog(dual)).tangent
    with torch.no_grad():
        torch.testing.assert_close(tangent, layer(along) - layer(torch.zeros_like(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [nn.Conv1d(4, 6, 3), nn.ConvTranspose1d(4, 6, 3), nn.Linear(9, 6)])
@torch.no_grad()
def test_samples_of_a_bias_are_mapped_where_no_gradient_is_wanted(layer):
    analog, x = on_tiles(layer, FINELY), torch.randn(5, 4, 9)
    biases = torch.randn(3, 6)
    found = torch.func.vmap(lambda bias: torch.func.functional_call(analog, {"bias": bias}, x))(biases)
    for own, bias in zip(found, biases, strict=True):
        torch.testing.assert_close(own, torch.func.functional_call(analog, {"bias": bias}, x))
    assert len(found) == 3


@pytest.mark.parametrize("layer", [nn.Conv1d(4, 6, 3), nn.Linear(9, 6)])
def test_an_empty_table_of_a_dac_has_its_defaults(layer):
    torch.manual_seed(0)
    x = torch.randn(5, 4, 9)
    noisy = [
        on_tiles(copy.deepcopy(layer), {"dac": dac, "out_noise": 0.1}) for dac in ({}, {"range": "dynamic"})
    ]
    assert torch.equal(noisy[0](x), noisy[1](x))


@pytest.mark.parametrize("kind", ["fixed", "dynamic", "both", "bit-serial"])
@pytest.mark.parametrize("noise", [{}, {"out_noise": 0.1, "w_noise": 0.1}], ids=["", "noise"])
@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(2, 3, 3)], ids=["linear", "conv"])
def test_forward_derivatives_are_those_of_gradients(layer, noise, kind):
    chip = on_tiles(layer, PERIPHERIES[kind] | noise)
    x = torch.rand(3, 6) if isinstance(layer, nn.Linear) else torch.rand(2, 2, 5, 5)
    v = torch.randn_like(x)

    def again():
        return an.drift_to_(chip, 1.0)  # the same noise

    expected = torch.autograd.functional.jvp(again(), x, v)[1]
    with torch.no_grad():
        output, found = torch.func.jvp(again(), (x,), (v,))
        assert torch.allclose(output, again()(x), rtol=1e-5, atol=1e-5)
    assert found.abs().max() > 0.1
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_second_derivatives_through_converters_are_those_of_a_straight_line():
    torch.manual_seed(6)
    chip = on_tiles(nn.Linear(6, 4), PERIPHERIES["both"])
    x = torch.rand(6)
    hessian = torch.func.hessian(lambda input: chip(input).square().sum())(x)
    weights = chip.weight_now()
    assert torch.allclose(hessian, 2 * weights.t() @ weights, rtol=1e-4, atol=1e-5)
