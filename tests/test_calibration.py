"""Ranges from data and from training, and training through a periphery."""

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import analognoise as an
from analognoise.errors import CalibrationError, ConversionError, DataError

IDEAL = an.load_profile("ideal")
CALIBRATED = {
    "dac": {"bits": 8, "range": "calibrated"},
    "adc": {"bits": 8, "range": "calibrated"},
}


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5))


def batches(count=3):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 2, 6, 6, generator=generator), torch.randint(0, 5, (8,), generator=generator))
        for _ in range(count)
    ]


def analog_of(model, periphery, **changes):
    return an.convert_to_analog(model, IDEAL.replace({"periphery": periphery, **changes}))


def test_maxima_are_those_of_each_parts_inputs_and_outputs():
    model, data = net(), batches()
    analog = an.calibrate_(analog_of(model, CALIBRATED, **{"tile.rows": 32}), data)
    found = an.ranges(analog)
    x = torch.cat([batch for batch, _ in data])
    with torch.no_grad():
        hidden = model[:3](x)
        parts = [slice(0, 32), slice(32, 64)]
        inputs = [hidden[:, part].abs().max() for part in parts]
        weights = [model[3].weight[:, part] for part in parts]
        outputs = [
            (hidden[:, part] @ w.T / w.abs().amax(dim=1)).abs().max() / bound
            for part, w, bound in zip(parts, weights, inputs, strict=True)
        ]
    torch.testing.assert_close(found["0.weight.input"], x.abs().max().view(1))
    torch.testing.assert_close(found["3.weight.input"], torch.stack(inputs))
    torch.testing.assert_close(found["3.weight.output"], torch.stack(outputs))
    assert set(found) == {f"{layer}.weight.{side}" for layer in "03" for side in ("input", "output")}


def test_percentiles_cut_off_outliers():
    data = batches()
    data[0][0][0, 0, 0, 0] = 1e3
    dac = {"bits": 8, "range": "calibrated", "percentile": 99.0}
    values = torch.cat([x for x, _ in data]).abs().flatten().sort().values
    found = an.ranges(an.calibrate_(analog_of(net(), {"dac": dac}), data))["0.weight.input"].item()
    assert found == pytest.approx(float(values[math.ceil(len(values) * 0.99) - 1]), rel=2**-11)


def test_calibration_leaves_model_chip_and_generators_as_found():
    model = analog_of(net(), CALIBRATED)
    an.program_(model, seed=3)
    before = {name: values.clone() for name, values in model[3].analog.weights.items()}
    model.train()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    an.calibrate_(model, batches())
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model[3].analog.weights["weight"], before["weight"])
    assert list(model.state_dict()) == list(net().state_dict())


def test_layers_without_ranges_are_digital_while_the_others_are_calibrated():
    data, pcm = batches(), an.load_profile("pcm-ibm")
    own = {
        "pcm without": pcm,
        "fixed": IDEAL.replace({"periphery.dac": {"bits": 4, "range": "fixed", "bound": 0.1}}),
    }
    calibrated = IDEAL.replace({"periphery": CALIBRATED})
    for other in own.values():
        mixed = an.convert_to_analog(net(), {"0": other, "*": calibrated})
        expected = an.ranges(an.calibrate_(analog_of(net(), CALIBRATED), data))["3.weight.input"]
        assert torch.equal(an.ranges(an.calibrate_(mixed, data))["3.weight.input"], expected)
        an.drift_to_(an.program_(mixed), "1s" if other is not pcm else "1y")
        assert torch.equal(an.ranges(an.calibrate_(mixed, data))["3.weight.input"], expected)


def test_eight_bits_calibrated_keep_the_outputs_near():
    model, data = net(), batches()
    analog = an.program_(an.calibrate_(analog_of(model, CALIBRATED), data)).eval()
    x = data[0][0]
    with torch.no_grad():
        error = (analog(x) - model(x)).norm() / model(x).norm()
    assert 1e-4 < error < 0.03


def test_ranges_come_back_and_make_another_run(tmp_path):
    data = batches()
    analog = an.calibrate_(analog_of(net(), CALIBRATED), data)
    other = an.set_ranges_(analog_of(net(), CALIBRATED), an.ranges(analog))
    assert {k: v.tolist() for k, v in an.ranges(other).items()} == {
        k: v.tolist() for k, v in an.ranges(analog).items()
    }
    runs = [an.evaluate_drift(model, data, times=["1s"], chips=1).run_id for model in (analog, other)]
    assert runs[0] == runs[1]
    an.set_ranges_(other, {"3.weight.input": 2 * an.ranges(analog)["3.weight.input"]})
    assert an.evaluate_drift(other, data, times=["1s"], chips=1).run_id != runs[0]
    an.program_(analog)
    an.save_chip(analog, tmp_path / "chip.safetensors")
    fresh = an.load_chip(analog_of(net(), CALIBRATED), tmp_path / "chip.safetensors")
    x = data[0][0]
    assert torch.equal(fresh.eval()(x), analog.eval()(x))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"3.weight.inputs": torch.ones(1)},
            r"no range '3\.weight\.inputs' \(did you mean '3\.weight\.input'",
        ),
        ({"3.weight.input": torch.ones(2)}, r"has shape \(2,\) but must have \(1,\)"),
        ({"3.weight.input": torch.zeros(1)}, r"is \[0\.0\] but must be finite and above 0"),
        ({"3.weight.input": torch.tensor([math.nan])}, r"is \[nan\] but must be finite"),
    ],
)
def test_ranges_that_do_not_fit_are_refused_and_change_nothing(values, words):
    analog = an.calibrate_(analog_of(net(), CALIBRATED), batches())
    before = {name: value.tolist() for name, value in an.ranges(analog).items()}
    with pytest.raises(CalibrationError, match=words):
        an.set_ranges_(analog, {"0.weight.input": torch.tensor([9.0]), **values})
    assert {name: value.tolist() for name, value in an.ranges(analog).items()} == before


def test_calibration_without_what_it_needs():
    with pytest.raises(CalibrationError, match=r"nothing to calibrate: no converter of ideal has range"):
        an.calibrate_(analog_of(net(), {"out_noise": 0.1}), batches())
    with pytest.raises(ConversionError, match="has no layer on tiles"):
        an.calibrate_(net(), batches())
    analog = analog_of(net(), CALIBRATED)
    with pytest.raises(DataError, match="the calibration data have no batch"):
        an.calibrate_(analog, [])
    with pytest.raises(DataError, match="batches is 0"):
        an.calibrate_(analog, batches(), batches=0)
    with pytest.raises(
        CalibrationError, match=r"layer '0': the calibration data give its DAC no value other"
    ):
        an.calibrate_(analog, [(torch.zeros(2, 2, 6, 6), None)])
    with pytest.raises(
        CalibrationError, match=r"layer '0': the calibration data give its DAC NaN or infinite"
    ):
        an.calibrate_(analog, [(torch.full((2, 2, 6, 6), math.inf), None)])
    for loader, kind in ((7, "int"), (None, "NoneType"), ("abc", "str"), (torch.zeros(2, 3), "Tensor")):
        with pytest.raises(DataError, match=f"the calibration data are of type {kind}: pass a"):
            an.calibrate_(analog, loader)
    with pytest.raises(DataError, match="calibration data, batch 1: found a Tensor, expected"):
        an.calibrate_(analog, [*batches(1), torch.zeros(2, 2, 6, 6)])
    with pytest.raises(
        DataError, match=r"calibration data, batch 3: .*input\[1, 3, 6, 6\] to have 2 channels"
    ):
        an.calibrate_(analog, [*batches(), (torch.zeros(1, 3, 6, 6), None)])
    linear = analog_of(nn.Sequential(nn.Linear(4, 3)), CALIBRATED)
    with pytest.raises(DataError, match=r"batch 0: layer '0': inputs of shape \(2, 5\) do not fit"):
        an.calibrate_(linear, [(torch.zeros(2, 5), None)])
    assert an.ranges(analog) == {}
    an.program_(analog)
    with pytest.raises(CalibrationError, match=r"layer '0': the range of its DAC is 'calibrated'"):
        an.evaluate_drift(analog, batches(), chips=1)


def test_an_evaluation_with_noise_repeats_itself_in_any_order(tmp_path):
    pcm = an.load_profile("pcm-ibm").replace({"periphery": {"preset": "standard-8bit"}})
    data = batches()

    def rows(times, out=None):
        analog = an.calibrate_(an.convert_to_analog(net(), pcm), data)
        found = an.evaluate_drift(analog, data, times=times, chips=2, metric="loss", out=out)
        return {(row.chip, row.time_s): row.value for row in found.rows}

    both = rows(["1s", "1y"])
    assert len(set(both.values())) == 4
    assert rows(["1y"]) == {place: value for place, value in both.items() if place[1] > 1}
    assert rows(["1s"], tmp_path / "rows.csv").items() <= both.items()
    assert rows(["1s", "1y"], tmp_path / "rows.csv") == both  # the rest, without what is there


def test_training_is_digital_unless_asked_for():
    model = net()
    analog = analog_of(model, {"dac": {"bits": 2, "range": "fixed", "bound": 1.0}, "out_noise": 0.1})
    x = batches()[0][0]
    analog.train()
    assert torch.equal(analog(x), model(x))
    with an.periphery_in_training(analog, seed=1):
        first, second = analog(x), analog(x)
        assert not torch.equal(first, second)
        with an.digital(analog):
            assert torch.equal(analog(x), model(x))
    assert torch.equal(analog(x), model(x))
    with an.periphery_in_training(analog, seed=1):
        assert torch.equal(analog(x), first)
    with an.periphery_in_training(analog, seed=2):
        assert not torch.equal(analog(x), first)
    with (
        pytest.raises(ConversionError, match="no layer's profile has one"),
        an.periphery_in_training(an.convert_to_analog(net(), "ideal")),
    ):
        pass


@pytest.mark.parametrize("mode", ["parallel", "bit-serial"])
def test_gradients_pass_straight_through_to_inputs_and_weights(mode):
    torch.manual_seed(0)
    layer = nn.Linear(6, 3, bias=False)
    periphery = {"dac": {"bits": 8, "range": "fixed", "bound": 1.0}, "adc": {"bits": 8, "bound": 10.0}}
    analog = analog_of(nn.Sequential(layer), {**periphery, "input_mode": mode}).train()
    x = torch.rand(5, 6, requires_grad=True)
    with torch.no_grad():
        x[0, 0] = 1.5  # cut off by the DAC
    given = torch.randn(5, 3)
    with an.periphery_in_training(analog):
        analog(x).backward(given)
    rounded = (x.detach() * 127).round().clamp(-127, 127) / 127
    expected = given @ layer.weight.detach()
    expected[0, 0] = 0
    torch.testing.assert_close(x.grad, expected)
    torch.testing.assert_close(layer.weight.grad, given.T @ rounded)


def test_learned_ranges_train_with_the_users_optimizer_and_stay_out_of_the_state_dict():
    model, data = net(), batches()
    learned = {"bits": 4, "range": "learned", "percentile": 90.0}
    analog = analog_of(model, {"dac": learned, "adc": {**learned, "bits": 6}})
    parameters = an.learned_ranges(analog)
    assert set(parameters) == {f"{layer}.weight.{side}" for layer in "03" for side in ("input", "output")}
    assert len(list(analog.parameters())) == len(list(model.parameters()))
    assert list(analog.state_dict()) == list(model.state_dict())
    optimizer = torch.optim.SGD([*analog.parameters(), *parameters.values()], lr=0.1)
    an.calibrate_(analog, data)
    assert all(parameters[name] is value for name, value in an.learned_ranges(analog).items())
    before = {name: value.item() for name, value in parameters.items()}
    losses = []
    analog.train()
    with an.periphery_in_training(analog):
        for _ in range(30):
            optimizer.zero_grad()
            loss = sum(nn.functional.cross_entropy(analog(x), y) for x, y in data)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(value.item() != before[name] for name, value in parameters.items())
    with torch.no_grad():
        chip = an.program_(analog).eval()(data[0][0])
        with an.periphery_in_training(analog):
            trained = analog.train()(data[0][0])
    torch.testing.assert_close(chip, trained)  # the ideal chip computes what was trained


@pytest.mark.parametrize("bound", [0.05, 200.0])
def test_a_learned_range_recovers_from_a_bad_start(bound):
    """Digits through 8-bit converters, by the line of docs/periphery.md."""
    x, y = (torch.tensor(values) for values in load_digits(return_X_y=True))
    x = (x.float() / 16)[:1500]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    analog = analog_of(model, {"dac": {"bits": 8, "range": "learned", "bound": bound}}).train()
    learned = an.learned_ranges(analog).values()
    optimizer = torch.optim.SGD([*analog.parameters(), *learned], lr=0.05, momentum=0.9)
    with an.periphery_in_training(analog):
        for _ in range(15):
            for part in torch.randperm(1500).split(32):
                optimizer.zero_grad()
                nn.functional.cross_entropy(analog(x[part]), y[part]).backward()
                optimizer.step()
    # what lies in the middle: inputs end at 1
    found = [value.item() for value in an.ranges(analog).values()]
    assert all(value > 4 * bound if bound < 1 else value < bound / 2 for value in found), found
    chip = an.program_(analog).eval()
    assert (chip(x).argmax(1) == y[:1500]).float().mean() > 0.95
    # and what was found can be put back
    an.set_ranges_(analog, an.ranges(analog))
    assert [value.item() for value in an.ranges(analog).values()] == found


def test_a_learned_range_that_a_step_takes_far_down_stays_one():
    analog = analog_of(net(), {"dac": {"bits": 8, "range": "learned", "bound": 1.0}})
    learned = an.learned_ranges(analog)
    optimizer = torch.optim.SGD(learned.values(), lr=1.0)
    for value in learned.values():
        value.grad = torch.full_like(value, 3.0)
    optimizer.step()
    found = an.ranges(analog)
    assert all(value.item() == pytest.approx(math.exp(-3)) for value in found.values())
    again = an.set_ranges_(analog_of(net(), {"dac": {"bits": 8, "range": "learned", "bound": 1.0}}), found)
    assert all(torch.equal(value, found[name]) for name, value in an.ranges(again).items())


@pytest.mark.parametrize("way", ["fused optimizer", "data"])
def test_a_chip_sees_learned_ranges_that_changed_behind_autograds_back(way):
    analog = an.program_(analog_of(net(), {"dac": {"bits": 4, "range": "learned", "bound": 1.0}})).eval()
    x, learned = batches()[0][0], an.learned_ranges(analog).values()
    with torch.no_grad():
        before = analog(x)
    if way == "data":
        for value in learned:
            value.data.add_(0.5)
    else:
        for value in learned:
            value.grad = torch.full_like(value, -0.5)
        torch.optim.SGD(learned, lr=1.0, fused=True).step()
    fresh = an.set_ranges_(
        analog_of(net(), {"dac": {"bits": 4, "range": "learned", "bound": 1.0}}), an.ranges(analog)
    )
    with torch.no_grad():
        assert torch.equal(analog(x), an.program_(fresh).eval()(x))
        assert not torch.equal(analog(x), before)


def test_fit_and_its_methods_train_learned_ranges():
    data = batches()
    for recipe in ("sgd", "sam"):
        analog = analog_of(net(), {"dac": {"bits": 4, "range": "learned", "bound": 2.0}})
        with an.periphery_in_training(analog):
            an.fit(analog, data, recipe=recipe, epochs=2, lr=0.05)
        assert all(value.item() != 2.0 for value in an.ranges(analog).values())
