"""Layers through a periphery: every kind and option, what converters and wires do, what is refused."""

import copy
import itertools

import pytest
import torch
from torch import nn

import analognoise as an
from analognoise.errors import CalibrationError, ConversionError
from tests.layers.peripheries import FINE, IDEAL, PERIPHERIES, on_tiles


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


@pytest.mark.parametrize("layer", [nn.LSTM(6, 5, batch_first=True), nn.GRU(6, 5)], ids=["LSTM", "GRU"])
def test_wires_alone_leave_the_forward_to_torch(layer):
    """Step by step a recurrent layer takes six times as long."""
    torch.manual_seed(0)
    x = torch.randn(3, 7, 6)
    wires = an.load_profile("pcm-ibm").replace({"periphery": {"ir_drop": {"wire_ratio": 1e-3}}})
    analog = an.program_(an.convert_to_analog(copy.deepcopy(layer), wires).eval())
    same = copy.deepcopy(layer)
    same.load_state_dict({**layer.state_dict(), **analog.analog.weights})
    output, _ = analog(x)
    assert torch.equal(output, same(x)[0])
    assert not torch.equal(output, layer(x)[0])
