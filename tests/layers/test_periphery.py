"""Layers through a periphery: every kind and option, noise by formula, reproducible draws."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from torch import nn

import analognoise as an
from analognoise.errors import CalibrationError, ConversionError, NoiseError

IDEAL = an.load_profile("ideal")
FINE = {"bits": 22, "range": "fixed", "bound": 8.0}


def on_tiles(layer, periphery, rows=512, columns=512, profile=IDEAL, **options):
    changes = {"periphery": periphery, "tile.rows": rows, "tile.columns": columns}
    return an.program_(an.convert_to_analog(layer, profile.replace(changes), **options).eval())


def tensors(output):
    if output is None:
        return []
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, nn.utils.rnn.PackedSequence):
        return [output.data, output.batch_sizes]
    return [tensor for part in output for tensor in tensors(part)]


def assert_same(layer, *args, periphery=None, rows=6, columns=9, **options):
    """With converters of 22 bits a layer computes what its digital one does."""
    analog = on_tiles(layer, periphery or {"dac": FINE}, rows, columns)
    layer.eval()
    with torch.no_grad():
        pairs = zip(tensors(analog(*args, **options)), tensors(layer(*args, **options)), strict=True)
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).abs().max() <= 5e-5 * (1 + theirs.abs().max())


PERIPHERIES = {
    "fixed": {"dac": FINE},
    "dynamic": {"dac": {"bits": 22}},
    "both": {"dac": FINE, "adc": {"bits": 24, "bound": 100.0}},
    "bit-serial": {"dac": FINE, "adc": {"bits": 24, "bound": 50.0}, "input_mode": "bit-serial"},
}


@pytest.mark.parametrize("periphery", PERIPHERIES.values(), ids=PERIPHERIES)
@pytest.mark.parametrize(("rows", "columns"), [(512, 512), (16, 5), (7, 3)])
def test_layers_with_fine_converters_are_the_digital_ones(periphery, rows, columns):
    torch.manual_seed(0)
    cases = [
        (nn.Linear(40, 7), torch.randn(2, 5, 40)),
        (nn.Linear(40, 7, bias=False), torch.randn(40)),
        (nn.Conv1d(4, 6, 5, padding="same", padding_mode="circular"), torch.randn(2, 4, 11)),
        (nn.Conv2d(6, 8, 3, padding=1, stride=2, groups=2), torch.randn(3, 6, 9, 9)),
        (nn.Conv2d(6, 8, 3, padding=1, dilation=2, bias=False), torch.randn(3, 6, 9, 9)),
        (nn.Conv2d(6, 6, (3, 2), groups=6, padding_mode="reflect", padding=1), torch.randn(6, 5, 7)),
        (nn.Conv3d(2, 4, 3), torch.randn(2, 2, 5, 4, 5)),
        (nn.ConvTranspose1d(4, 6, 3, stride=2), torch.randn(2, 4, 5)),
        (
            nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
            torch.randn(2, 4, 5, 6),
        ),
        (nn.ConvTranspose3d(2, 3, 2, dilation=2), torch.randn(2, 3, 3, 3)),
    ]
    for layer, given in cases:
        assert_same(layer, given, periphery=periphery, rows=rows, columns=columns)
    assert_same(nn.Bilinear(5, 6, 7), torch.randn(3, 5), torch.randn(3, 6), periphery=periphery)
    given = torch.randn(2, 4, 5, 6)
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2)
    assert_same(layer, given, output_size=[12, 14], periphery=periphery)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize(("count", "both", "first", "bias"), [
    (1, False, False, True), (2, True, True, True), (2, False, True, False), (1, True, False, True),
])  # fmt: skip
@pytest.mark.parametrize("width", [0, 3])
def test_recurrent_layers_take_every_option(kind, count, both, first, bias, width):
    if width and kind is not nn.LSTM:
        pytest.skip("LSTM alone has projections")
    torch.manual_seed(0)
    own = {"proj_size": width} if width else {}
    layer = kind(5, 7, count, bidirectional=both, batch_first=first, bias=bias, **own)

    def start(batch):
        states = count * (2 if both else 1)
        hidden, memory = torch.randn(states, batch, width or 7), torch.randn(states, batch, 7)
        return (hidden, memory) if kind is nn.LSTM else hidden

    x = torch.randn(4, 6, 5)
    assert_same(layer, x)
    assert_same(layer, x, start(4 if first else 6))
    assert_same(layer, torch.randn(6, 5))
    for lengths in ([6, 4, 3, 1], [3, 6, 1, 4]):
        steps = torch.randn(4, 6, 5) if first else torch.randn(6, 4, 5)
        sequence = nn.utils.rnn.pack_padded_sequence(
            steps, lengths, batch_first=first, enforce_sorted=lengths[0] == 6
        )
        assert_same(layer, sequence)
        assert_same(layer, sequence, start(4))


def test_cells_are_the_digital_ones():
    torch.manual_seed(0)
    for kind, bias in itertools.product((nn.RNNCell, nn.LSTMCell, nn.GRUCell), (True, False)):
        cell = kind(5, 7, bias=bias)
        hidden = torch.randn(4, 7)
        assert_same(cell, torch.randn(4, 5))
        assert_same(cell, torch.randn(5))
        assert_same(cell, torch.randn(4, 5), (hidden, torch.randn(4, 7)) if kind is nn.LSTMCell else hidden)
    assert_same(nn.RNNCell(5, 7, nonlinearity="relu"), torch.randn(4, 5))
    assert_same(nn.RNN(5, 7, nonlinearity="relu"), torch.randn(4, 6, 5))


ATTENTION = [{"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 5, "vdim": 7}]


@pytest.mark.parametrize("options", [{}, *ATTENTION, {"batch_first": True}], ids=str)
def test_attention_takes_every_option(options):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(12, 3, **options)
    query = torch.randn(4, 5, 12)
    key, value = torch.randn(4, 5, options.get("kdim", 12)), torch.randn(4, 5, options.get("vdim", 12))
    if "kdim" not in options:
        assert_same(layer, query, query, query)
    assert_same(layer, query, key, value)
    assert_same(layer, query, key, value, need_weights=False)
    assert_same(layer, query, key, value, average_attn_weights=False)
    assert_same(layer, query[0], key[0], value[0])
    length = 5 if "batch_first" in options else 4
    mask = torch.triu(torch.ones(length, length), 1).bool()
    assert_same(layer, query, key, value, attn_mask=mask, is_causal=True)
    encoder = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True)
    assert_same(encoder, torch.randn(2, 5, 12))


def test_a_periphery_without_effect_computes_as_without_one_to_the_last_bit():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 5)), torch.randn(2, 3, 6, 6)
    pcm = an.load_profile("pcm-ibm")
    plain = on_tiles(model, None, profile=pcm)
    none = on_tiles(model, {"preset": "none"}, profile=pcm)
    assert none[0].analog.periphery is None
    for chip in (plain, none):
        an.drift_to_(chip, "1d")
    assert torch.equal(plain(x), none(x))


def test_outputs_of_split_layers_are_converted_tile_by_tile_and_saturate():
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.5, -0.25, 0.8]]))
    adc = {"bits": 4, "range": "fixed", "bound": 1.4}  # 7 levels of 0.2
    analog = on_tiles(layer, {"adc": adc}, rows=2)
    x = torch.tensor([[0.6, 0.6, 1.0, 1.0], [9.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
    # Each tile's largest weight is 1 there: the second tile's outputs count 0.8 each.
    first = torch.tensor([[0.9], [9.0], [0.0]])
    second = torch.tensor([[0.55 / 0.8], [0.0], [2.0]])
    expected = (first / 0.2).round().clamp(-7, 7) * 0.2 + (second / 0.2).round().clamp(-7, 7) * 0.2 * 0.8
    torch.testing.assert_close(analog(x), expected)


@pytest.mark.parametrize("bits", [8, 24])
def test_a_vector_of_next_to_nothing_gives_next_to_nothing(bits):
    analog = on_tiles(nn.Linear(3, 2, bias=False), {"dac": {"bits": bits}})
    with torch.no_grad():
        found = analog(torch.tensor([[1e-44, 0.0, 0.0], [1e-37, 0.0, -1e-38], [0.0, 0.0, 0.0]]))
    assert found.abs().max() < 1e-30


def test_a_range_without_bits_cuts_off_and_does_not_round():
    layer = nn.Linear(3, 2, bias=False)
    periphery = {"dac": {"range": "fixed", "bound": 0.5}, "adc": {"range": "fixed", "bound": 1.5}}
    analog, x = on_tiles(layer, periphery), torch.randn(50, 3)
    scale = layer.weight.abs().amax(dim=1)
    expected = scale * 0.5 * ((x / 0.5).clamp(-1, 1) @ (layer.weight / scale[:, None]).T).clamp(-1.5, 1.5)
    torch.testing.assert_close(analog(x), expected)


CHIP_NOISE = {"curve": "power", "coefficient": 0.0175, "exponent": 0.5}


DACS = {"none": None, "fixed": {"range": "fixed", "bound": 2.0}, "dynamic": {"bits": 8}}
ADCS = {"exact": None, "adc": {"bits": 24, "bound": 50.0}}
NOISES = {
    "out": {"out_noise": 0.04},
    "read": {"w_noise": CHIP_NOISE},
    "both": {"out_noise": 0.03, "w_noise": 0.02},
}


@pytest.mark.parametrize("dac", DACS.values(), ids=DACS)
@pytest.mark.parametrize("adc", ADCS.values(), ids=ADCS)
@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_noise_of_a_product_has_the_moments_of_its_formula(dac, adc, noise):
    torch.manual_seed(0)
    layer, count = nn.Linear(30, 40, bias=False), 4000
    x = torch.rand(1, 30) * 2 - 1
    periphery = {key: value for key, value in (("dac", dac), ("adc", adc)) if value}
    quiet = on_tiles(layer, periphery, rows=16) if periphery else layer
    noisy = on_tiles(layer, periphery | noise, rows=16)
    with torch.no_grad():
        drawn = noisy(x.expand(count, 30)) - quiet(x)
    variance = torch.zeros(40)
    for rows in (slice(0, 15), slice(15, 30)):
        weights, given = layer.weight.detach()[:, rows], x[0, rows]
        scale = weights.abs().amax(dim=1)
        bound = 1.0 if dac is None else 2.0 if "bound" in dac else given.abs().max()
        given = given / bound
        if dac and "bits" in dac:
            given = (given * 127).round() / 127
        relative = weights.abs() / scale[:, None]
        w = noise.get("w_noise", 0.0)
        # A pair's larger device holds the weight, the other nothing; a constant noise is that of both.
        sigma2 = 0.0175**2 * relative if isinstance(w, dict) else torch.full_like(relative, 2 * w**2)
        variance += (scale * bound) ** 2 * (sigma2 @ given.square() + noise.get("out_noise", 0.0) ** 2)
    # 40 outputs: five standard errors of a mean of 4,000, of a variance sqrt(2 / 4,000)
    assert (drawn.mean(dim=0).abs() < 5 * (variance / count).sqrt()).all()
    assert ((drawn.var(dim=0) / variance - 1).abs() < 5 * math.sqrt(2 / count)).all()
    mixed = torch.corrcoef(drawn.T).fill_diagonal_(0)
    assert mixed.abs().max() < 5.5 / math.sqrt(count)


def test_read_noise_of_a_convolution_is_that_of_its_patches():
    torch.manual_seed(0)
    layer, count = nn.Conv2d(3, 4, 3, bias=False, padding=1), 3000
    x = torch.rand(1, 3, 5, 5)
    noisy = on_tiles(layer, {"w_noise": CHIP_NOISE}, rows=18)
    with torch.no_grad():
        drawn = noisy(x.expand(count, 3, 5, 5)) - layer(x)
        variance = 0
        for channels in (slice(0, 1), slice(1, 3)):
            weights = layer.weight[:, channels]
            scale = weights.abs().amax(dim=(1, 2, 3))
            relative = weights.abs() / scale.view(-1, 1, 1, 1)
            part = nn.functional.conv2d(x[:, channels].square(), relative, padding=1)
            variance = variance + scale.view(-1, 1, 1).square() * 0.0175**2 * part
    assert ((drawn.var(dim=0) / variance[0] - 1).abs() < 5.5 * math.sqrt(2 / count)).all()


def test_bits_one_after_the_other_are_each_converted_and_noisy():
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(0.5)
    serial = {"dac": {"bits": 4, "range": "fixed", "bound": 7.0}, "input_mode": "bit-serial"}
    analog = on_tiles(layer, serial | {"adc": {"bits": 2, "bound": 0.4}})
    x = torch.tensor([[5.0], [-3.0], [0.0]])
    # Each bit gives 1, which the ADC cuts to 0.4: 5 = 101b, -3 = -011b.
    torch.testing.assert_close(analog(x), 0.5 * 0.4 * x)
    noisy = on_tiles(layer, serial | {"out_noise": 0.1})
    with torch.no_grad():
        drawn = noisy(torch.full((20000, 1), 5.0)) - 2.5
    # Three products, weighted 1, 2, 4, in units of one input step times the largest weight
    expected = (0.5 * 0.1) ** 2 * (1 + 4 + 16)
    assert drawn.var().item() == pytest.approx(expected, rel=5 * math.sqrt(2 / 20000))


def test_draws_depend_on_chip_time_and_number_of_the_product_alone():
    torch.manual_seed(0)
    pcm = an.load_profile("pcm-ibm")
    model, x = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), torch.randn(3, 6)
    chip = on_tiles(model, {"out_noise": 0.1, "w_noise": 0.01}, profile=pcm)
    twin = on_tiles(nn.Sequential(model[0], model[1]), {"out_noise": 0.1, "w_noise": 0.01}, profile=pcm)
    an.drift_to_(chip, "1h")
    first, second = chip(x), chip(x)
    assert not torch.equal(first, second)
    an.drift_to_(chip, "1d")
    assert not torch.equal(chip(x), first)
    global_state = torch.get_rng_state()
    for model_again in (an.drift_to_(chip, "1h"), an.drift_to_(twin, "1h")):
        torch.manual_seed(77)
        assert torch.equal(model_again(x), first)
        assert torch.equal(model_again(x), second)
    torch.set_rng_state(global_state)
    chip(x)
    assert torch.equal(torch.get_rng_state(), global_state)
    an.program_(chip, chip=1)
    assert not torch.equal(an.drift_to_(chip, "1h")(x), first)


def test_drift_is_compensated_after_the_converter():
    """What drifts is the current that the ADC sees; α is digital."""
    layer = nn.Linear(8, 3, bias=False)
    drift = {"programming": None, "read": None, "drift.nu_mean": 0.1, "drift.nu_std": 0.0}
    pcm = an.load_profile("pcm-ibm").replace(drift)
    adc = {"bits": 6, "range": "fixed", "bound": 2.0}
    analog, x = on_tiles(layer, {"adc": adc}, profile=pcm), torch.rand(20, 8)
    an.drift_to_(analog, "1y")
    decay = ((31536000 + 20) / 20) ** -0.1
    scale = layer.weight.abs().amax(dim=1)
    seen = x @ (layer.weight / scale[:, None]).T * decay
    step = 2.0 / 31
    expected = (seen / step).round().clamp(-31, 31) * step / decay * scale
    torch.testing.assert_close(analog(x), expected, rtol=1e-4, atol=1e-5)


def test_wires_change_what_a_chip_computes_and_not_its_speed():
    layer, x = nn.Linear(64, 32, bias=False), torch.rand(10, 64)
    drop = {"ir_drop": {"wire_ratio": 1e-4, "wires": "columns"}}
    lossy = on_tiles(layer, drop)
    with torch.no_grad():
        lost = 1 - lossy(x).abs().sum() / layer(x).abs().sum()
    assert 0.002 < lost < 0.2
    exact = on_tiles(layer, {"ir_drop": drop["ir_drop"] | {"method": "exact"}})
    with torch.no_grad():
        assert (lossy(x) - exact(x)).norm() < 0.05 * (exact(x) - layer(x)).norm()


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


class _Own(nn.Module):
    """A layer of a user's own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))

    def forward(self, input):
        return nn.functional.linear(input, self.weight)


@an.register_analog_layer(_Own)
class _Unwilling(an.AnalogLayer, _Own):
    """It on tiles, by someone who knows nothing of converters."""

    @staticmethod
    def geometries(module):
        return {"weight": an.Geometry(1, *module.weight.shape)}

    def forward(self, input):
        return nn.functional.linear(input, self.weight_now())


class _Willing(_Unwilling):
    supports_periphery = True

    def forward(self, input):
        return self.multiply(input)


def test_layers_of_ones_own_take_part_or_are_refused_by_name():
    own = _Own()
    model = nn.Sequential(nn.Linear(6, 6), own)
    profile = IDEAL.replace({"periphery": {"dac": FINE}})
    with pytest.raises(ConversionError, match="layer '1': profile 'ideal' has a periphery, but _Unwilling"):
        an.convert_to_analog(model, profile, inplace=True)
    assert type(model[0]) is nn.Linear
    an.register_analog_layer(_Own)(_Willing)
    analog = an.program_(an.convert_to_analog(model, profile).eval())
    x = torch.randn(3, 6)
    torch.testing.assert_close(analog(x), model[0](x) @ own.weight.T, rtol=1e-4, atol=1e-5)
    with an.digital(analog):
        torch.testing.assert_close(analog(x), model[0](x) @ own.weight.T)


def test_inputs_of_another_width_are_refused():
    for layer, x in ((nn.Linear(3, 2), torch.randn(4, 5)), (nn.Conv2d(4, 2, 3), torch.randn(1, 5, 6, 6))):
        for dac in ({"bits": 8}, {"bits": 8, "range": "fixed", "bound": 1.0}):
            for rows in (512, 18 if layer.weight.ndim == 4 else 2):
                analog = on_tiles(nn.Sequential(layer), {"dac": dac}, rows=rows)
                with pytest.raises(RuntimeError):
                    analog(x)


def test_a_range_from_data_must_be_there():
    analog = on_tiles(nn.Sequential(nn.Linear(3, 2)), {"dac": {"bits": 8, "range": "calibrated"}})
    with pytest.raises(
        CalibrationError, match=r"layer '0': the range of its DAC is 'calibrated' .*calibrate_"
    ):
        analog(torch.randn(1, 3))
    with an.digital(analog):
        analog(torch.randn(1, 3))


def in_blocks(monkeypatch, numbers):
    """Products of more than twice so many numbers are computed in blocks of so many."""
    monkeypatch.setattr("analognoise.layers.products._WHOLE", 2 * numbers)
    monkeypatch.setattr("analognoise.layers.products._BLOCK", numbers)
    monkeypatch.setattr("analognoise.layers.products._COLUMNS", 6)


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


@pytest.mark.parametrize("layer", [nn.Linear(16, 24, bias=False), nn.Conv1d(16, 24, 1, bias=False)], ids=str)
def test_noise_is_the_same_with_gradients_and_compiled(layer, monkeypatch):
    torch.manual_seed(4)
    x = torch.randn(40, 16) if isinstance(layer, nn.Linear) else torch.randn(40, 16, 3)
    noisy = [
        {"out_noise": 0.1},
        {"out_noise": 0.1, "w_noise": 0.1},
        PERIPHERIES["bit-serial"] | {"out_noise": 0.1},
    ]
    for periphery in noisy:
        analog = on_tiles(layer, periphery, rows=16)
        in_blocks(monkeypatch, 90)
        compiled = torch.compile(analog, backend="eager")
        with torch.no_grad():
            outputs = [an.drift_to_(analog, 1.0)(x)]
            an.drift_to_(analog, 1.0)
            outputs.append(compiled(x))
        outputs.append(an.drift_to_(analog, 1.0)(x.clone().requires_grad_()).detach())
        for output in outputs[1:]:
            assert torch.allclose(output, outputs[0], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("layer", [nn.Linear(16, 24, bias=False), nn.Conv1d(16, 24, 1, bias=False)], ids=str)
def test_noise_of_blocks_is_independent_and_as_large_as_said(layer, monkeypatch):
    in_blocks(monkeypatch, 4096)
    nn.init.ones_(layer.weight)
    analog = on_tiles(layer, {"out_noise": 0.1, "adc": {"bits": 24, "bound": 50.0}})
    x = torch.zeros(4096, 16) if isinstance(layer, nn.Linear) else torch.zeros(256, 16, 16)
    with torch.no_grad():
        first = analog(x)
        second = analog(x)
        again = an.drift_to_(analog, 1.0)(x)
        assert torch.equal(again, an.drift_to_(analog, 1.0)(x))
    count = first.numel()
    for noise in (first, second):
        assert abs(noise.mean()) < 5 * 0.1 / math.sqrt(count)
        assert abs(noise.std() / 0.1 - 1) < 5 / math.sqrt(2 * count)
        # Blocks of the first axis, and of the columns, do not repeat one another.
        parts = (
            noise.reshape(4, -1)
            if noise.dim() == 3
            else torch.cat([*noise.view(8, -1, 4, 6).transpose(1, 2)])
        )
        parts = parts.reshape(len(parts), -1)
        found = torch.corrcoef(parts) - torch.eye(len(parts))
        assert found.abs().max() < 6 / math.sqrt(parts.shape[1])
    assert torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].abs() < 6 / math.sqrt(count)
