"""Noise of the right size, on the chip's weights alone, which leaves the clean ones as they were."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from analognoise.conversion import chip_weights, convert_to_analog, sample_chip
from analognoise.errors import ConversionError, MethodError, TrainingError, UnitError
from analognoise.training import (
    SAM,
    Clipped,
    GaussianNoise,
    ProfileNoise,
    RandomWeightPerturbation,
    WrappedOptimizer,
)

YEAR = 31536000.0


pytestmark = pytest.mark.usefixtures("one_thread")


class Recorder:
    """A closure that keeps the weights at which each gradient was taken."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.model, self.x, self.y = model, x, y
        self.seen: list[dict[str, Tensor]] = []
        self.losses: list[float] = []

    def __call__(self) -> Tensor:
        self.model.zero_grad()
        self.seen.append(snapshot(self.model))
        loss = nn.functional.cross_entropy(self.model(self.x), self.y)
        loss.backward()
        self.losses.append(loss.item())
        return loss


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def make(dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> tuple[nn.Sequential, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(6 * 16, 4),
        ).to(dtype)
        return model, torch.randn(8, 2, 6, 6).to(dtype), torch.randint(0, 4, (8,))


def sgd(model: nn.Module, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, **options})


def assert_identical(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def gradient_at(model: nn.Module, weights: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """By functional autograd, apart from any optimizer."""
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    output = torch.func.functional_call(model, (leaves, buffers), (x,))
    loss = nn.functional.cross_entropy(output, y)
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


# Moments


def test_noise_has_the_asked_size_and_no_correlation() -> None:
    """Mean within 4 σ/√n, standard deviation within 4 σ/√(2n), correlation within 4/√n; n = 60,000."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(300, 200, bias=False), nn.Linear(200, 300, bias=False))
    with torch.no_grad():
        model[1].weight.mul_(7.0)
    clean = snapshot(model)
    record = Recorder(model, torch.randn(2, 300), torch.tensor([0, 1]))
    optimizer = GaussianNoise(sgd(model, lr=0.0), model, noise=0.05, clip=None, seed=3)
    for _ in range(4):
        optimizer.step(record)
    draws = [
        (seen[name] - clean[name]).double().flatten() / (0.05 * clean[name].abs().max().double())
        for seen in record.seen
        for name in clean
    ]
    for draw in draws:
        n = draw.numel()
        assert n == 60_000
        assert abs(draw.mean().item()) < 4 / math.sqrt(n)
        assert abs(draw.std().item() - 1) < 4 / math.sqrt(2 * n)
        assert abs((draw**4).mean().item() - 3) < 4 * math.sqrt(
            96 / n
        )  # normal, not merely of the right variance
    for i, left in enumerate(draws):
        for right in draws[:i]:
            assert abs((left * right).mean().item()) < 4 / math.sqrt(60_000)


def test_a_small_networks_noise_is_new_at_every_step() -> None:
    """Drawn for many steps at once: 150 steps of a layer, correlation of neighbouring ones within 4/√n."""
    model, x, y = make()
    clean = snapshot(model)
    record = Recorder(model, x, y)
    optimizer = GaussianNoise(sgd(model, lr=0.0), model, noise=0.1, clip=None)
    for _ in range(150):
        optimizer.step(record)
    for name in ("0.weight", "5.weight"):
        noise = torch.stack([(seen[name] - clean[name]).flatten() for seen in record.seen]).double()
        noise /= 0.1 * clean[name].abs().max()
        n = noise.numel()
        assert abs(noise.mean().item()) < 4 / math.sqrt(n)
        assert abs(noise.std().item() - 1) < 4 / math.sqrt(2 * n)
        assert abs((noise[1:] * noise[:-1]).mean().item()) < 4 / math.sqrt(n)
        assert len({row.numpy().tobytes() for row in noise}) == 150


# What noise touches


def test_only_chip_weights_are_noisy_frozen_ones_too() -> None:
    model, x, y = make()
    model[0].weight.requires_grad_(False)
    clean = snapshot(model)
    record = Recorder(model, x, y)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = GaussianNoise(torch.optim.SGD(trained, lr=0.1), model, clip=1.0)
    optimizer.step(record)
    noisy = {name for name, value in record.seen[0].items() if not torch.equal(value, clean[name])}
    assert noisy == {"0.weight", "5.weight"}
    # Clipping leaves what is not trained alone.
    assert torch.equal(model[0].weight, clean["0.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_gradient_of_the_noisy_weights_goes_to_the_clean_ones(dtype: torch.dtype) -> None:
    model, x, y = make(dtype)
    clean = snapshot(model)
    record = Recorder(model, x, y)
    optimizer = GaussianNoise(sgd(model), model, noise=0.2, clip=None)
    generator = torch.get_rng_state()
    optimizer.step(record)
    assert torch.equal(torch.get_rng_state(), generator)
    assert not torch.equal(record.seen[0]["5.weight"], clean["5.weight"])
    gradient = gradient_at(model, record.seen[0], x, y)
    expected = {name: clean[name].add(gradient[name], alpha=-0.1) for name in clean}
    assert_identical(snapshot(model), expected)


@pytest.mark.parametrize("method", [GaussianNoise, RandomWeightPerturbation])
def test_weights_come_back_bit_for_bit_also_when_the_closure_raises(method: Any) -> None:
    model, x, y = make()
    clean = snapshot(model)
    optimizer = method(sgd(model, lr=0.0), model, noise=0.3)
    record = Recorder(model, x, y)
    optimizer.clip = None
    optimizer.step(record)
    assert_identical(snapshot(model), clean)
    noisy_call = len(record.seen)

    calls = 0

    def raising() -> Tensor:
        nonlocal calls
        calls += 1
        loss = record()
        if calls == noisy_call:
            assert not torch.equal(record.seen[-1]["0.weight"], clean["0.weight"])
            raise RuntimeError("out of memory")
        return loss

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(raising)
    assert_identical(snapshot(model), clean)
    assert optimizer.steps == 1


# Keys


def draws_of(seed: int, steps: int, begin: int = 0, **options: Any) -> list[dict[str, Tensor]]:
    model, x, y = make()
    record = Recorder(model, x, y)
    optimizer = WrappedOptimizer(sgd(model, lr=0.0), model, noise=0.1, seed=seed, **options)
    optimizer.steps = begin
    for _ in range(steps):
        optimizer.step(record)
    return record.seen


def test_noise_depends_on_seed_and_step_alone() -> None:
    first, again, other = draws_of(5, 3), draws_of(5, 3), draws_of(6, 3)
    for left, right in zip(first, again, strict=True):
        assert_identical(left, right)
    assert not torch.equal(first[0]["5.weight"], other[0]["5.weight"])
    assert_identical(draws_of(5, 1, begin=2)[0], first[2])


def test_noise_of_a_large_layer_depends_on_the_step_alone_too() -> None:
    def draw(begin: int) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Linear(500, 400, bias=False)
        optimizer = WrappedOptimizer(sgd(model, lr=0.0), model, noise=0.1)
        optimizer.steps = begin
        record = Recorder(model, torch.ones(1, 500), torch.tensor([0]))
        optimizer.step(record)
        return record.seen[0]["weight"]

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_another_layer_changes_no_layers_noise() -> None:
    draws = []
    for more in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))
            if more:
                model = nn.Sequential(*model, nn.Tanh(), nn.Linear(3, 2))
        optimizer = WrappedOptimizer(sgd(model, lr=0.0), model, noise=0.1)
        record = Recorder(model, torch.ones(1, 5), torch.tensor([0]))
        for _ in range(3):
            optimizer.step(record)
        draws.append(record.seen)
    for few, many in zip(*draws, strict=True):
        assert_identical(few, {name: many[name] for name in few})


def test_noise_grows_linearly_over_its_ramp() -> None:
    clean = snapshot(make()[0])
    full, ramped = draws_of(1, 6), draws_of(1, 6, noise_ramp=4)
    for step, factor in enumerate([0.25, 0.5, 0.75, 1.0, 1.0, 1.0]):
        for name in ("0.weight", "5.weight"):
            expected = factor * (full[step][name] - clean[name])
            torch.testing.assert_close(ramped[step][name] - clean[name], expected, rtol=1e-4, atol=1e-6)


# Clipping


@pytest.mark.parametrize("clip", [0.5, 0.8, 1.5])
def test_weights_are_clamped_to_their_own_standard_deviation_after_the_update(clip: float) -> None:
    model, x, y = make()
    twin, _, _ = make()
    optimizer, plain = Clipped(sgd(model, momentum=0.9), model, clip=clip), sgd(twin, momentum=0.9)
    for _ in range(3):
        optimizer.step(Recorder(model, x, y))
        plain.step(Recorder(twin, x, y))
        with torch.no_grad():
            for index in (0, 5):
                # The corrected sample standard deviation, written out.
                values = twin[index].weight.detach().double()
                bound = clip * ((values - values.mean()) ** 2).sum().div(values.numel() - 1).sqrt().item()
                assert values.abs().max() > bound
                twin[index].weight.clamp_(-bound, bound)
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_a_constant_layer_is_not_erased_and_a_single_weight_neither() -> None:
    model = nn.Sequential(
        nn.Linear(3, 4, bias=False), nn.Linear(4, 1, bias=False), nn.Linear(1, 1, bias=False)
    )
    with torch.no_grad():
        for layer in model:
            layer.weight.fill_(0.5)
    optimizer = Clipped(sgd(model, lr=0.0), model)

    def closure() -> Tensor:
        loss = model(torch.ones(2, 3)).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert all(torch.equal(layer.weight, torch.full_like(layer.weight, 0.5)) for layer in model)


def test_clipping_and_noise_are_options_of_sharpness_too() -> None:
    model, x, y = make()
    optimizer = SAM(sgd(model), model, rho=0.1, clip=1.0, noise=0.05)
    optimizer.step(Recorder(model, x, y))
    for name, weight in chip_weights(model).items():
        values = weight.detach()
        count = (values.abs() == values.abs().max()).sum().item()
        assert count > values.numel() * 0.1, name  # many weights lie at the bound


# Random weight perturbation


@pytest.mark.parametrize("mix", [0.5, 0.25, 1.0])
def test_rwp_applies_the_mean_of_both_gradients(mix: float) -> None:
    model, x, y = make(torch.float64)
    clean = snapshot(model)
    record = Recorder(model, x, y)
    optimizer = RandomWeightPerturbation(sgd(model), model, noise=0.2, mix=mix)
    loss = optimizer.step(record)
    assert_identical(record.seen[0], clean)
    assert loss.item() == record.losses[0] != record.losses[1]
    noise = (record.seen[1]["5.weight"] - clean["5.weight"]).std().item() / clean[
        "5.weight"
    ].abs().max().item()
    assert abs(noise / 0.2 - 1) < 4 / math.sqrt(2 * 384)
    at_clean, at_noisy = (gradient_at(model, seen, x, y) for seen in record.seen)
    for name, value in model.named_parameters():
        expected = clean[name] - 0.1 * ((1 - mix) * at_clean[name] + mix * at_noisy[name])
        torch.testing.assert_close(value.detach(), expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("options", [{"noise": 0.0}, {"mix": 0.0}])
def test_rwp_without_noise_is_the_base_to_the_last_bit(options: dict[str, float]) -> None:
    results = []
    for wrapped in (False, True):
        model, x, y = make(dropout=0.3)
        optimizer: Optimizer = sgd(model, momentum=0.9)
        if wrapped:
            optimizer = RandomWeightPerturbation(optimizer, model, **options)
        torch.manual_seed(2)
        record = Recorder(model, x, y)
        for _ in range(3):
            optimizer.step(record)
        assert len(record.seen) == 3
        results.append((dict(model.state_dict()), torch.get_rng_state()))
    assert_identical(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_rwp_repeats_dropout_and_counts_batches_once() -> None:
    model, x, y = make(dropout=0.5)
    twin, _, _ = make(dropout=0.5)
    masks: list[Tensor] = []
    model[4].register_forward_hook(lambda module, args, output: masks.append(output != 0))
    model[4].register_forward_pre_hook(lambda module, args: (torch.ones_like(args[0]),))
    optimizer = RandomWeightPerturbation(sgd(model), model, noise=0.2)
    torch.manual_seed(1)
    optimizer.step(Recorder(model, x, y))
    generator = torch.get_rng_state()
    assert torch.equal(masks[0], masks[1])
    torch.manual_seed(1)
    twin(x)
    assert torch.equal(torch.get_rng_state(), generator)
    assert_identical(dict(model.named_buffers()), dict(twin.named_buffers()))


def test_rwp_ramps_its_noise() -> None:
    sizes = []
    for ramp in (0, 4):
        model, x, y = make()
        clean = snapshot(model)
        optimizer = RandomWeightPerturbation(sgd(model, lr=0.0), model, noise=0.2, ramp=ramp)
        record = Recorder(model, x, y)
        for _ in range(5):
            optimizer.step(record)
        sizes.append([(seen["5.weight"] - clean["5.weight"]).norm().item() for seen in record.seen[1::2]])
    np.testing.assert_allclose(np.array(sizes[1]) / np.array(sizes[0]), [0.25, 0.5, 0.75, 1, 1], rtol=1e-4)


def test_rwp_with_a_layer_that_only_one_pass_reaches() -> None:
    model = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    before = snapshot(model)
    optimizer = RandomWeightPerturbation(sgd(model, lr=1.0), model, noise=0.1)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        optimizer.zero_grad()
        loss = model[calls % 2](torch.ones(1, 2)).sum()
        calls += 1
        loss.backward()
        return loss

    optimizer.step(closure)
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.detach(), before[name] - 0.5)


# Profile noise


def drawn_by(
    optimizer: ProfileNoise, model: nn.Module, x: Tensor, y: Tensor, steps: int
) -> list[dict[str, Tensor]]:
    record = Recorder(model, x, y)
    for _ in range(steps):
        optimizer.step(record)
    return record.seen


@pytest.mark.parametrize("twin", [False, True])
def test_profile_noise_trains_at_a_fresh_chip_and_updates_the_digital_weights(twin: bool) -> None:
    model, x, y = make()
    analog = convert_to_analog(model, "pcm-ibm")
    used = model if twin else analog
    clean = snapshot(model)
    optimizer = ProfileNoise(sgd(model), analog, seed=8, times=("1s", "1y"))
    generator = torch.get_rng_state()
    expected, _ = sample_chip(analog, seed=8, step=0, seconds=optimizer.drift_time(0))
    (seen,) = drawn_by(optimizer, used, x, y, 1)
    assert torch.equal(torch.get_rng_state(), generator)
    assert set(expected) == {"0.weight", "5.weight"}
    for name, value in seen.items():
        assert torch.equal(value, expected.get(name, clean[name])), name
    gradient = gradient_at(make()[0], seen, x, y)
    assert_identical(snapshot(model), {name: clean[name].add(gradient[name], alpha=-0.1) for name in clean})


def test_profile_noise_is_deterministic_for_a_seed_and_new_at_each_step() -> None:
    def run(seed: int) -> list[dict[str, Tensor]]:
        model, x, y = make()
        analog = convert_to_analog(model, "pcm-ibm")
        optimizer = ProfileNoise(sgd(model, lr=0.0), analog, seed=seed, times=("1d", "1d"))
        return drawn_by(optimizer, analog, x, y, 3)

    first, again, other = run(1), run(1), run(2)
    for left, right in zip(first, again, strict=True):
        assert_identical(left, right)
    for i in range(3):
        assert not torch.equal(first[i]["5.weight"], other[i]["5.weight"])
        assert not torch.equal(first[i]["5.weight"], first[i - 1]["5.weight"])


def test_profile_noise_has_the_profiles_moments() -> None:
    """``gaussian``: 5 % of g_max on both devices of a pair, so √2 · 0.05 · max|w| of the column."""
    torch.manual_seed(3)
    model = nn.Linear(400, 100, bias=False)
    analog = convert_to_analog(model, "gaussian")
    clean = model.weight.detach().clone()
    optimizer = ProfileNoise(sgd(model, lr=0.0), analog)
    seen = drawn_by(optimizer, analog, torch.ones(1, 400), torch.tensor([0]), 2)
    sigma = math.sqrt(2) * 0.05 * clean.double().abs().amax(1, keepdim=True)
    for weights in seen:
        noise = (weights["weight"] - clean).double() / sigma
        n = noise.numel()
        assert abs(noise.mean().item()) < 4 / math.sqrt(n)
        assert abs(noise.std().item() - 1) < 4 / math.sqrt(2 * n)


def test_drift_times_are_uniform_in_their_logarithm() -> None:
    model, _, _ = make()
    optimizer = ProfileNoise(sgd(model), convert_to_analog(model, "pcm-ibm"), times=(1.0, "1y"))
    fractions = np.array([math.log(optimizer.drift_time(step)) / math.log(YEAR) for step in range(4000)])
    assert fractions.min() >= 0
    assert fractions.max() < 1
    assert abs(fractions.mean() - 0.5) < 4 * math.sqrt(1 / 12 / 4000)
    assert abs(fractions.var() - 1 / 12) < 4 * math.sqrt(1 / 180 / 4000)
    fixed = ProfileNoise(sgd(model), convert_to_analog(model, "pcm-ibm"), times=("1d", 86400.0))
    assert fixed.drift_time(5) == pytest.approx(86400.0, rel=1e-12)
    # Of a device on which nothing depends on time, what was programmed is known, and perhaps nothing later.
    still = ProfileNoise(sgd(model), convert_to_analog(model, "reram-milo-hfo2"))
    assert (still.times, still.drift_time(5)) == ((0.0, 0.0), 0.0)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda m, a: ProfileNoise(sgd(m), m), ConversionError, "cannot train on the noise of its profile"),
        (
            lambda m, a: ProfileNoise(sgd(m), a, times=("1y", "1s")),
            MethodError,
            "times must be the shortest and",
        ),
        (lambda m, a: ProfileNoise(sgd(m), a, times=(0.0, 1.0)), MethodError, r"found \(0\.0, 1\.0\)"),
        (lambda m, a: ProfileNoise(sgd(m), a, times=(1.0,)), MethodError, r"found \(1\.0,\)"),
        (lambda m, a: ProfileNoise(sgd(m), a, times="1d"), MethodError, "found '1d'"),
        (lambda m, a: ProfileNoise(sgd(m), a, times=("1s", "1 fortnight")), UnitError, "fortnight"),
    ],
)
def test_profile_noise_refuses(build: Callable[..., Any], error: type[Exception], message: str) -> None:
    model, _, _ = make()
    with pytest.raises(error, match=message):
        build(model, convert_to_analog(model, "pcm-ibm"))


def test_profile_noise_says_when_the_training_broke_down() -> None:
    model, x, y = make()
    optimizer = ProfileNoise(sgd(model), convert_to_analog(model, "pcm-ibm"))
    with torch.no_grad():
        model[5].weight[0, 0] = math.nan
    before = snapshot(model)
    with pytest.raises(TrainingError, match=r"ProfileNoise, step 0: the training broke down, layer '5'"):
        optimizer.step(Recorder(model, x, y))
    assert torch.equal(model[0].weight, before["0.weight"])


def test_defaults_of_gaussian_noise_are_the_sources() -> None:
    model, _, _ = make()
    optimizer = GaussianNoise(sgd(model), model)
    assert (optimizer.noise, optimizer.clip) == (0.038, 2.0)
