"""Training with noise on computations: levels, draws, and how the methods go together."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from scipy import stats
from torch import nn

import analognoise as an
from analognoise.errors import MethodError
from analognoise.quantized import quantized_layers
from analognoise.training.computing import Fluctuating, Growing
from analognoise.training.recipes import METHODS, parse_method
from analognoise.training.wrapper import WrappedOptimizer


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


X, Y = torch.linspace(-1, 1, 32).reshape(8, 4), torch.arange(8) % 3


def built(text: str, network: nn.Module, **options: int) -> WrappedOptimizer:
    recipe = parse_method(text)
    base = torch.optim.SGD(network.parameters(), lr=0.1)
    return recipe.build(base, network, **{"steps": 100, "epochs": 10, "seed": 5} | options)  # type: ignore


def outputs_in_a_step(
    optimizer: WrappedOptimizer, network: nn.Module, forwards: int = 1
) -> list[torch.Tensor]:
    """What the model gives at each forward of one step, without moving the weights."""
    seen = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        seen.extend(network(X).detach() for _ in range(forwards))
        nn.functional.cross_entropy(output := network(X), Y).backward()
        return output.sum()

    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step(closure)
    return seen


def test_passes_of_a_step_see_the_same_and_other_steps_others() -> None:
    network = model()
    optimizer = built("sam+noisy:rho=0.0001:warmup=0:sigma=0.5", network)
    clean = network(X).detach()
    first, second = outputs_in_a_step(optimizer, network)
    assert torch.allclose(first, second, atol=1e-2)  # both passes; the climb is tiny
    assert not torch.allclose(first, clean, atol=0.1)
    assert not torch.allclose(outputs_in_a_step(optimizer, network)[0], first, atol=0.1)
    one, other, *_ = outputs_in_a_step(optimizer, network, forwards=2)
    assert not torch.allclose(one, other, atol=0.1)  # forwards of one pass: micro-batches
    assert torch.equal(network(X), clean)


def test_gradient_is_that_of_the_noisy_forward() -> None:
    network, twin = model(), model()
    optimizer = built("noisy:sigma=0.7", network)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(X), Y)
        loss.backward()
        return loss

    optimizer.step(closure)
    noise = an.ComputingNoise(twin, 0.7, seed=5, process="computing-noise in training")
    noise.start = (0, 0)
    with noise:
        nn.functional.cross_entropy(twin(X), Y).backward()
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), twin.parameters(), strict=True))


def test_sigma_grows_over_its_ramp() -> None:
    level = built("noisy:sigma=2:sigma_ramp=0.5", model()).computing
    assert level is not None
    assert [level.sigma(step) for step in (0, 24, 49, 99)] == [2 / 50, 1.0, 2.0, 2.0]
    assert Growing(2.0, 0)(0) == 2.0


def test_variance_aware_sigma_is_drawn_anew_each_epoch_by_its_law() -> None:
    noise = built("vant:sigma=1", model()).computing
    assert noise is not None
    found = [noise.sigma(step) for step in range(100)]
    assert all(len(set(found[10 * epoch : 10 * epoch + 10])) == 1 for epoch in range(10))
    assert len(set(found)) == 10
    assert min(found) >= 0.45
    level = Fluctuating(1.0, 0.45, 0.66, steps=3000, epochs=3000, seed=1)
    drawn = [(level(step) - 0.45) / 0.66 for step in range(3000)]
    assert stats.kstest(drawn, stats.halfnorm.cdf).pvalue > 1e-4
    mean = sum(drawn) / 3000  # √(2/π), five standard errors
    assert abs(mean - math.sqrt(2 / math.pi)) < 5 * math.sqrt((1 - 2 / math.pi) / 3000)


def test_walking_noise_is_on_one_layer_a_step() -> None:
    noise = built("noisy:walk=yes", model()).computing
    assert noise is not None
    chosen = [noise.layer(step) for step in range(900)]
    # Three layers: each binomial(900, 1/3), five standard deviations.
    assert all(abs(chosen.count(name) - 300) < 5 * math.sqrt(200) for name in ("0", "1", "2"))
    assert built("noisy", model()).computing.layer(0) is None  # type: ignore[union-attr]


def test_optimizers_with_noise_are_copied_and_pickled() -> None:
    network = model()
    optimizer = built("vant+clip:layers=linear", network)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert twin.computing.sigma(0) == optimizer.computing.sigma(0)
        assert twin.computing.noise._model is twin.model is not network


@pytest.mark.parametrize(
    "text",
    [
        *(
            "sam+noisy",
            "asam+vant",
            "samson+noisy+clip",
            "rwp+noisy",
            "clip+noisy",
            "noise+vant",
            "qat+noisy",
        ),
        *("qat-const+noisy", "qat-const+vant", "sam+qat-const", "samson+noisy+qat-const", "saq+noisy"),
        *("noisy:law=multiplicative", "noisy:layers=linear:walk=yes", "profile-noise+noisy"),
    ],
)
def test_combinations_train(text: str) -> None:
    network = model()
    data = [(X, Y)] * 4
    before = float(nn.functional.cross_entropy(network(X), Y))
    history = an.fit(network, data, recipe=text, profile=an.load_profile("pcm-ibm"), epochs=10, lr=0.1)
    assert history.gradients[-1] == 40 * METHODS[text.split("+")[0].split(":")[0]].gradients_per_step
    assert float(nn.functional.cross_entropy(network(X), Y)) < before
    assert not any(module._forward_hooks for module in network.modules())
    again = model()
    an.fit(again, data, recipe=text, profile=an.load_profile("pcm-ibm"), epochs=10, lr=0.1)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_validation_is_without_noise() -> None:
    network = model()
    history = an.fit(
        network, [(X, Y)], recipe="noisy:sigma=100", epochs=1, lr=1e-9, validation=[(X, Y)], metric="loss"
    )
    clean = float(nn.functional.cross_entropy(network(X), Y))
    assert history.validation[0] == pytest.approx(clean, rel=1e-5)
    assert history.train_loss[0] > 5 * clean


def test_constant_scale_is_what_it_says() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    twin = parse_method("qat-const:bits=16:scale=0.001").prepare(network)
    layers = quantized_layers(twin)
    assert list(layers) == ["0", "2"]
    settings = layers["0"].quantization
    assert (settings.bits, settings.activation_bits, settings.activation_scale) == (8, 16, 0.001)
    assert layers["0"].scale.shape == (2, 1, 1, 1)  # convolutions per channel
    assert layers["2"].scale.numel() == 1  # linear layers per tensor
    assert parse_method("qat-const:bits=16:scale=0.001").prepare(twin) is twin
    coarse = parse_method("qat-const:bits=4:scale=0.1").prepare(network)[0]
    inputs = [value * torch.ones(1, 1, 4, 4) for value in (1.4, 1.5, 1.6, 100.0)]
    low, *rest = [coarse(x) for x in inputs]  # up to 0.1 · (2⁴ − 1) = 1.5
    assert torch.equal(rest[0], rest[1])
    assert torch.equal(rest[0], rest[2])
    assert not torch.equal(low, rest[0])
    with pytest.raises(MethodError, match="has no quantized layer"):
        built("sam+qat-const", network)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("noisy+noisy", "has 'noisy' already"),
        ("noisy+vant", "method 'noisy' and '\\+vant' both have 'sigma'"),
        ("sam+noisy+vant", "'\\+noisy' and '\\+vant' both have 'sigma'"),
        ("qat+qat-const", "both have 'bits'"),
        ("sam:sigma=1", "write 'sam\\+noisy' for it"),
        ("noisy:sigma=-1", "must be a number at least 0"),
        ("noisy:law=mixed", "must be one of additive, multiplicative"),
        ("noisy:layers=convolution", "must be one of all, linear, conv"),
        ("noisy:sigma_ramp=2", "at most 1"),
        ("qat-const:bits=1", "at least 2"),
    ],
)
def test_wrong_recipes_are_named(text: str, words: str) -> None:
    with pytest.raises(MethodError, match=words):
        parse_method(text)


def test_a_kind_that_the_model_has_not_is_named() -> None:
    with pytest.raises(MethodError, match="no layer of the kind 'conv'"):
        built("noisy:layers=conv", model())


def test_names_of_one_training_are_one() -> None:
    assert parse_method("noisy:sigma=1").identity == parse_method("sgd+noisy:sigma=1").identity
    assert parse_method("noisy+clip").identity == parse_method("clip+noisy").identity
    assert parse_method("sam+noisy:sigma=1:rho=0.1").label == "sam+noisy:rho=0.1:sigma=1"
    assert METHODS["vant"].defaults["alpha"] == 0.45
    assert METHODS["vant"].defaults["theta"] == 0.1
