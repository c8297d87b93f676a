"""SAQ, ASAQ and SAMSON-SAQ against a hand-made reference, and what their steps must leave alone."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import analognoise as an
from analognoise.errors import MethodError
from analognoise.training import ASAQ, SAMSONSAQ, SAQ, WrappedOptimizer

METHODS = {
    "saq": (SAQ, {"rho": 0.3}),
    "asaq": (ASAQ, {"rho": 0.7, "eta": 0.02}),
    "samson-saq-inf": (SAMSONSAQ, {"rho": 0.4, "p": math.inf, "eta": 0.03}),
    "samson-saq-2": (SAMSONSAQ, {"rho": 1.5, "p": 2, "eta": 0.015}),
}
HIGH = 7


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(5, 7)
        self.fc2 = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.fc1(x)))


def make(**settings: Any) -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = Net().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    quantized = an.quantize(model, **{"bits": 4, **settings})
    with torch.no_grad():
        for name, parameter in quantized.named_parameters():
            if "range" in name:
                parameter -= 0.4  # so that some weights are cut off
    x = torch.randn(16, 5, generator=generator, dtype=torch.float64)
    return quantized, x, torch.randint(0, 4, (16,), generator=generator)


def closure_of(optimizer: torch.optim.Optimizer, model: nn.Module, x: Tensor, y: Tensor) -> Any:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def values(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}


def gradients(
    w1: np.ndarray, b1: np.ndarray, w2: np.ndarray, b2: np.ndarray, x: np.ndarray, y: np.ndarray
) -> dict[str, np.ndarray]:
    hidden = np.tanh(x @ w1.T + b1)
    logits = hidden @ w2.T + b2
    exps = np.exp(logits - logits.max(1, keepdims=True))
    delta = exps / exps.sum(1, keepdims=True)
    delta[np.arange(len(y)), y] -= 1
    delta /= len(y)
    inner = delta @ w2 * (1 - hidden**2)
    return {
        "fc1.weight": inner.T @ x,
        "fc1.bias": inner.sum(0),
        "fc2.weight": delta.T @ hidden,
        "fc2.bias": delta.sum(0),
    }


def reference(
    start: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray, name: str, perturb: str, lr: float
) -> dict[str, np.ndarray]:
    """One step with plain SGD, from the formulas."""
    _, options = METHODS[name]
    q, slope, inside, step = {}, {}, {}, {}
    for layer in ("fc1", "fc2"):
        step[layer] = np.exp(start[f"{layer}.log_range"]) / HIGH
        ratio = start[f"{layer}.weight"] / step[layer]
        codes = np.clip(np.round(ratio), -HIGH, HIGH)
        inside[layer] = np.abs(np.round(ratio)) <= HIGH
        slope[layer] = np.where(inside[layer], np.round(ratio) - ratio, codes)
        q[layer] = codes * step[layer]
    at = {**start, "fc1.weight": q["fc1"], "fc2.weight": q["fc2"]}

    def taken(offset: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        moved = {key: at[key] + offset.get(key, 0.0) for key in at}
        order = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
        return gradients(*(moved[key] for key in order), x, y)

    first = taken({})
    climbing = {}
    for key, g in first.items():
        if key.endswith("weight"):
            size = np.abs(at[key])
            if name == "saq":
                t = np.ones_like(size)
            elif name == "asaq":
                t = size + options["eta"]
            else:
                norm = size.max() if options["p"] == math.inf else np.sqrt((size**2).sum())
                t = (size + options["eta"]) / norm
            climbing[key] = (t, g)
        elif perturb == "all":
            climbing[key] = (np.ones_like(g), g)
    total = math.sqrt(sum(float(((t * g) ** 2).sum()) for t, g in climbing.values()))
    second = taken({key: options["rho"] * t**2 * g / total for key, (t, g) in climbing.items()})
    after = {}
    for key, value in start.items():
        layer, leaf = key.split(".")
        if leaf == "weight":
            gradient = second[key] * inside[layer]
        elif leaf == "log_range":
            gradient = (second[f"{layer}.weight"] * slope[layer]).sum(1, keepdims=True) * step[layer]
        else:
            gradient = second[key]
        after[key] = value - lr * gradient
    return after


@pytest.mark.parametrize("perturb", ["weights", "all"])
@pytest.mark.parametrize("name", METHODS)
def test_steps_are_those_of_the_formulas(name: str, perturb: str) -> None:
    model, x, y = make()
    cls, options = METHODS[name]
    optimizer = cls(torch.optim.SGD(model.parameters(), lr=0.3), model, perturb=perturb, **options)
    expected = values(model)
    for _ in range(3):
        expected = reference(expected, x.numpy(), y.numpy(), name, perturb, 0.3)
        optimizer.step(closure_of(optimizer, model, x, y))
        found = values(model)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-10, err_msg=key)
    cut = [(layer.own_codes().abs() == HIGH).any() for layer in an.quantized_layers(model).values()]
    assert all(cut), "no weight was cut off: the reference would not see a wrong mask"


@pytest.mark.parametrize("name", METHODS)
def test_without_rho_it_is_the_base_optimizer_bit_for_bit(name: str) -> None:
    model, x, y = make(activation_bits=4)
    plain = copy.deepcopy(model)
    cls, options = METHODS[name]
    optimizer = cls(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model, **{**options, "rho": 0.0}
    )
    base = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.step(closure_of(optimizer, model, x, y))
        base.step(closure_of(base, plain, x, y))
    for key, value in values(plain).items():
        assert np.array_equal(values(model)[key], value), key


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("passes", [1, 2])
def test_weights_and_offsets_are_as_before_when_the_closure_raises(name: str, passes: int) -> None:
    model, x, y = make()
    cls, options = METHODS[name]
    optimizer = cls(torch.optim.SGD(model.parameters(), lr=0.1), model, perturb="all", noise=0.1, **options)
    before = values(model)
    inner, calls = closure_of(optimizer, model, x, y), 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        loss = inner()
        if calls == passes:
            raise KeyError("broken")
        return loss

    with pytest.raises(KeyError):
        optimizer.step(closure)
    for key, value in before.items():
        assert np.array_equal(values(model)[key], value), key
    assert all(layer.offset is None for layer in an.quantized_layers(model).values())


def test_stopping_and_going_on_from_a_state_dict_changes_no_bit() -> None:
    def build(model: nn.Module) -> SAMSONSAQ:
        base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return SAMSONSAQ(base, model, rho_warmup=4, noise=0.05, clip=1.5)

    model, x, y = make()
    twin = copy.deepcopy(model)
    through = build(model)
    for _ in range(4):
        through.step(closure_of(through, model, x, y))
    first = build(twin)
    for _ in range(2):
        first.step(closure_of(first, twin, x, y))
    second = build(twin)
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second.step(closure_of(second, twin, x, y))
    for key, value in values(model).items():
        assert np.array_equal(values(twin)[key], value), key


def test_noise_falls_on_the_quantized_weights() -> None:
    model, x, y = make()
    seen: list[Tensor] = []
    optimizer = WrappedOptimizer(torch.optim.SGD(model.parameters(), lr=0.0), model, noise=0.1, seed=3)

    def closure() -> Tensor:
        seen.append(model.fc1.offset.clone())
        return closure_of(optimizer, model, x, y)()

    for _ in range(200):
        optimizer.step(closure)
    assert model.fc1.offset is None
    spread = torch.stack(seen).std() / model.fc1.quantized_weight().detach().abs().max()
    # Standard error of a standard deviation: 1 / sqrt(2 n) of it, n = 200 · 35 numbers; four of them.
    assert float(spread) == pytest.approx(0.1, rel=4 / math.sqrt(2 * 200 * 35))


def test_climb_from_noisy_weights_uses_the_same_noise_twice() -> None:
    model, x, y = make()
    optimizer = SAQ(torch.optim.SGD(model.parameters(), lr=0.0), model, rho=0.3, noise=0.1)
    offsets: list[list[Tensor]] = []

    def closure() -> Tensor:
        offsets.append([layer.offset.detach().clone() for layer in an.quantized_layers(model).values()])
        return closure_of(optimizer, model, x, y)()

    optimizer.step(closure)
    first, second = offsets
    assert all(bool(noise.any()) for noise in first)
    moved = math.sqrt(sum(float(((b - a) ** 2).sum()) for a, b in zip(first, second, strict=True)))
    assert moved == pytest.approx(0.3, rel=1e-12)


def test_a_float_model_is_refused_and_so_is_the_two_call_form() -> None:
    model = Net()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(MethodError, match=r"SAQ: Net has no quantized layer.*analognoise\.quantize"):
        SAQ(base, model)
    quantized, _, _ = make()
    optimizer = ASAQ(torch.optim.SGD(quantized.parameters(), lr=0.1), quantized)
    for half in ("first_step", "second_step"):
        with pytest.raises(MethodError, match=rf"ASAQ\.{half}.*use step\(closure\)"):
            getattr(optimizer, half)()
    with pytest.raises(MethodError, match="rho"):
        SAQ(torch.optim.SGD(quantized.parameters(), lr=0.1), quantized, rho=-1)
    with pytest.raises(MethodError, match=r"SAMSONSAQ: p must be 2 or math\.inf"):
        SAMSONSAQ(torch.optim.SGD(quantized.parameters(), lr=0.1), quantized, p=1)


def test_frozen_weights_do_not_climb() -> None:
    model, x, y = make()
    model.fc1.weight.requires_grad_(False)
    optimizer = SAQ(torch.optim.SGD(model.parameters(), lr=0.1), model, rho=0.3)
    seen: list[Tensor | None] = []

    def closure() -> Tensor:
        seen.append(model.fc1.offset)
        return closure_of(optimizer, model, x, y)()

    before = model.fc1.weight.clone()
    optimizer.step(closure)
    assert seen == [None, None]
    assert torch.equal(model.fc1.weight, before)
