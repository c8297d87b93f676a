"""Converters: levels, gradients that pass straight through, bit planes, percentiles."""

import pytest
import torch

from analognoise.crossbar.periphery import Magnitudes
from analognoise.crossbar.periphery.converters import bit_planes, limited, log_of, range_of


def test_levels_are_whole_numbers_within_the_range():
    values = torch.linspace(-9, 9, 1001)
    assert torch.equal(limited(values.clone(), 7, None), values.round().clamp(-7, 7))
    assert torch.equal(limited(values.clone(), None, 2.5), values.clamp(-2.5, 2.5))
    assert torch.equal(limited(values.clone(), None, None), values)


def test_gradients_pass_the_rounding_and_end_where_a_value_was_cut_off():
    values = torch.tensor([-8.3, -3.2, 0.4, 6.9, 7.4, 20.0], requires_grad=True)
    given = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    result = limited(values, 7, None)
    assert torch.equal(result.detach(), torch.tensor([-7.0, -3.0, 0.0, 7.0, 7.0, 7.0]))
    result.backward(given)
    # 7.4 is rounded to 7, the largest level: it was not cut off
    assert torch.equal(values.grad, torch.tensor([0.0, 2.0, 3.0, 4.0, 5.0, 0.0]))


def test_a_learned_range_has_the_gradient_of_learned_step_size_quantization():
    levels = 7
    inputs = torch.tensor([0.3, -1.1, 2.9, -5.0])
    log = log_of(torch.tensor(2.0)).requires_grad_()
    b = range_of(log)
    (limited(inputs * (levels / b), levels, None) * (b / levels)).sum().backward()
    steps = inputs * levels / 2.0
    inside = steps.abs() < levels
    expected = torch.where(inside, steps.round() - steps, steps.sign() * levels).sum() / levels
    torch.testing.assert_close(log.grad, 2.0 * expected.double(), rtol=1e-6, atol=0)


def test_ranges_come_back_from_their_logarithms_to_the_last_bit_and_stay_above_0():
    bounds = torch.rand(100_000, generator=torch.Generator().manual_seed(0)).mul(60).sub(30).exp()
    assert torch.equal(range_of(log_of(bounds)), bounds)
    extreme = range_of(torch.tensor([-1e9, 1e9], dtype=torch.float64))
    assert (extreme > 0).all()
    assert extreme.isfinite().all()


@pytest.mark.parametrize("levels", [1, 3, 127])
def test_bit_planes_add_up(levels):
    values = torch.arange(-levels, levels + 1.0)
    planes = bit_planes(values, levels)
    assert len(planes) == levels.bit_length()
    assert all(plane.abs().max() == 1 for plane in planes)
    assert torch.equal(sum(2**number * plane for number, plane in enumerate(planes)), values)


@pytest.mark.parametrize("percentage", [50.0, 99.0, 99.995, 100.0])
def test_percentiles_are_those_of_all_values_but_zero_to_one_in_two_thousand(percentage):
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * 3
    values[::2] = 0
    seen = Magnitudes()
    for part in values.split(777):
        seen.add(part, percentile=True)
    kept = values[values != 0].abs().sort().values
    exact = float(kept[-(-len(kept) * percentage // 100).__int__() - 1])
    assert exact <= seen.percentile(percentage) <= exact * (1 + 2**-11)
    assert seen.maximum == float(values.abs().max())


def test_nothing_seen_has_no_range():
    seen = Magnitudes()
    assert seen.percentile(99.0) == 0
    seen.add(torch.zeros(5), percentile=True)
    seen.add(torch.zeros(0), percentile=True)
    assert seen.percentile(99.0) == 0 == seen.maximum
