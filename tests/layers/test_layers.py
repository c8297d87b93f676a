"""Every layer kind and argument combination equals its digital layer when the device is ideal."""

import itertools

import pytest
import torch
from torch import nn

from analognoise import chip, conversion
from analognoise.devices.catalog import load_profile
from analognoise.errors import ConversionError, NotProgrammedError

NOISELESS_PCM = {
    "programming.sigma": 0.0,
    "drift.nu_mean": 0.0,
    "drift.nu_std": 0.0,
    "read.relative_sigma": 0.0,
}


def quiet_profiles():
    for size in (512, 16, 7):
        for base, changes in (("ideal", {}), ("pcm-ibm", NOISELESS_PCM)):
            yield load_profile(base).replace({**changes, "tile.rows": size, "tile.columns": max(size - 2, 5)})


PROFILES = list(quiet_profiles())
IDS = [f"{profile.name}-{profile.tile.rows}" for profile in PROFILES]

PADDINGS = [0, 1, "valid", "same"]
MODES = ["zeros", "reflect", "replicate", "circular"]


def convolutions():
    """Every combination that torch accepts of groups, stride, dilation, padding, padding mode and bias."""
    for dims, groups, stride, dilation, padding, mode, bias in itertools.product(
        (1, 2, 3), (1, 2, 4), (1, 2), (1, 2), PADDINGS, MODES, (True, False)
    ):
        if padding == "same" and stride != 1:
            continue
        if mode == "reflect" and dims == 3 and padding in ("same", 1) and dilation == 2 and bias:
            continue  # covered without bias: keeps the product small
        yield (
            dims,
            {
                "groups": groups,
                "stride": stride,
                "dilation": dilation,
                "padding": padding,
                "padding_mode": mode,
                "bias": bias,
            },
        )


def assert_equal_within_float32(analog, digital):
    error = (analog - digital).abs().max() / digital.abs().max()
    assert error <= 1e-5, error


def on_chip(layer, profile, time=86400.0):
    analog = conversion.convert_to_analog(layer, profile)
    chip.program_(analog, seed=3)
    chip.drift_to_(analog, time)
    return analog.eval()


@pytest.mark.parametrize("profile", PROFILES, ids=IDS)
def test_convolutions_equal_digital_ones(profile):
    torch.manual_seed(0)
    count = 0
    for dims, arguments in convolutions():
        kernel = (3, 2, 3)[:dims]
        layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](4, 8, kernel, **arguments)
        x = torch.randn(2, 4, *(7, 6, 6)[:dims])
        analog = on_chip(layer, profile)
        assert type(analog).__name__ == f"AnalogConv{dims}d"
        assert_equal_within_float32(analog(x), layer(x))
        count += 1
    assert count > 900


@pytest.mark.parametrize("profile", PROFILES, ids=IDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (2, 2, 3, 5)])
def test_linear_equals_digital(profile, bias, shape):
    torch.manual_seed(0)
    x = torch.randn(*shape[:-1], 37)
    layer = nn.Linear(37, 19, bias=bias)
    assert_equal_within_float32(on_chip(layer, profile)(x), layer(x))


def test_unbatched_convolution():
    layer = nn.Conv2d(3, 5, 3)
    x = torch.randn(3, 8, 8)
    assert_equal_within_float32(on_chip(layer, "ideal")(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_keep_theirs_and_device_state_stays_float32(dtype):
    layer = nn.Linear(16, 8).to(dtype)
    analog = on_chip(layer, "ideal")
    out = analog(torch.ones(2, 16, dtype=dtype))
    assert out.dtype == dtype
    assert analog.analog.tiles[0].programmed.dtype == torch.float32
    torch.testing.assert_close(
        out, layer(torch.ones(2, 16, dtype=dtype)), rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2
    )


def test_changing_type_after_programming_keeps_the_chip():
    analog = on_chip(nn.Linear(16, 8), "pcm-ibm")
    before = analog.analog.weights["weight"].clone()
    conductances = analog.analog.tiles[0].programmed.clone()
    analog.half()
    assert torch.equal(analog.analog.weights["weight"], before.half())
    assert torch.equal(analog.analog.tiles[0].programmed, conductances)
    analog.float()
    assert torch.equal(analog.analog.weights["weight"], before)


def test_training_mode_computes_digitally_with_the_same_gradients():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    x = torch.randn(5, 1, 8, 8)
    net(x).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    analog = conversion.convert_to_analog(net, "pcm-ibm")
    chip.program_(analog)
    analog.train()
    out = analog(x)
    assert torch.equal(out, net(x))
    out.square().sum().backward()
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_eval_mode_before_programming_says_what_to_do():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    analog = conversion.convert_to_analog(net, "ideal").eval()
    with pytest.raises(
        NotProgrammedError,
        match=r"layer '0' is on tiles but no chip is programmed: call analognoise.program_",
    ):
        analog(torch.ones(1, 3))
    with pytest.raises(NotProgrammedError, match=r"layer '0' cannot drift"):
        chip.drift_to_(analog, "1d")
    with chip.digital(analog):
        assert torch.equal(analog(torch.ones(1, 3)), net(torch.ones(1, 3)))


def test_gradients_reach_the_input_through_a_programmed_chip():
    analog = on_chip(nn.Linear(6, 2), "pcm-ibm")
    x = torch.randn(3, 6, requires_grad=True)
    analog(x).sum().backward()
    torch.testing.assert_close(x.grad, analog.analog.weights["weight"].sum(0).expand(3, 6))
    assert analog.weight.grad is None


def test_channels_last_models_program():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 1)).to(memory_format=torch.channels_last)
    x = torch.randn(2, 2, 6, 6)
    assert_equal_within_float32(on_chip(net, "ideal")(x), net(x))


def test_a_chip_does_not_depend_on_the_default_type():
    net = nn.Linear(6, 4)
    before = on_chip(net, "pcm-ibm").analog.weights["weight"].clone()
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(on_chip(net, "pcm-ibm").analog.weights["weight"], before)
    finally:
        torch.set_default_dtype(torch.float32)


def test_layers_without_weights_are_let_through():
    net = nn.Sequential(nn.Linear(3, 0), nn.Linear(0, 2), nn.Linear(2, 2))
    analog = on_chip(net, "pcm-ibm")
    with chip.digital(analog):
        assert torch.equal(analog(torch.ones(1, 3)), net(torch.ones(1, 3)))
    assert torch.isfinite(analog(torch.ones(1, 3))).all()


def test_pruning_after_conversion_is_named():
    analog = conversion.convert_to_analog(nn.Sequential(nn.Linear(6, 4)), "pcm-ibm")
    torch.nn.utils.prune.l1_unstructured(analog[0], "weight", 0.5)
    with pytest.raises(ConversionError, match=r"layer '0': 'weight' is no Parameter any more \(pruned or"):
        chip.program_(analog)
    torch.nn.utils.prune.remove(analog[0], "weight")
    chip.program_(analog)


@pytest.mark.parametrize("bad", [{"seed": "abc"}, {"seed": None}, {"seed": 1.5}, {"chip": 0.5}])
def test_seeds_and_chips_are_whole_numbers(bad):
    analog = conversion.convert_to_analog(nn.Linear(3, 2), "ideal")
    with pytest.raises(ConversionError, match=rf"program_: {next(iter(bad))} must be a whole number, found"):
        chip.program_(analog, **bad)
