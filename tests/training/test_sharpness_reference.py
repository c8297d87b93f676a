"""SAM, ASAM and SAMSON against a hand-made reference."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from analognoise.training import ASAM, SAM
from tests.training.sharpness import (
    METHODS,
    _one_thread,  # noqa: F401
    arrays,
    assert_close,
    closure_of,
    make,
    reference_climb,
    reference_gradient,
)


@pytest.mark.parametrize("perturb", ["all", "weights"])
@pytest.mark.parametrize("name", METHODS)
def test_one_step_is_the_reference_to_1e_10(name: str, perturb: str) -> None:
    model, x, y = make()
    cls, options = METHODS[name]
    before = arrays(model)
    optimizer = cls(torch.optim.SGD(model.parameters(), lr=0.5), model, perturb=perturb, **options)
    loss = optimizer.step(closure_of(optimizer, model, x, y))
    expected_loss, g = reference_gradient(before, x.numpy(), y.numpy())
    climbed = reference_climb(
        name.split("-")[0],
        before,
        g,
        options["rho"],
        options.get("eta", 0.0),
        options.get("p", 0.0),
        perturb,
    )
    _, second = reference_gradient(climbed, x.numpy(), y.numpy())
    assert loss.item() == pytest.approx(expected_loss, rel=1e-12)
    assert_close(model, {key: before[key] - 0.5 * second[key] for key in before})
    # The climb changes the step by far more than the bound: a step without it would fail.
    assert max(np.abs(second[key] - g[key]).max() for key in g) > 1e-4


@pytest.mark.parametrize("name", METHODS)
def test_several_steps_with_momentum_and_weight_decay(name: str) -> None:
    model, x, y = make(1)
    cls, options = METHODS[name]
    base = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=0.05)
    optimizer = cls(base, model, rho_warmup=4, **options)
    closure = closure_of(optimizer, model, x, y)
    w = arrays(model)
    velocity = {key: np.zeros_like(value) for key, value in w.items()}
    for step in range(6):
        optimizer.step(closure)
        _, g = reference_gradient(w, x.numpy(), y.numpy())
        rho = options["rho"] * min(1.0, (step + 1) / 4)
        climbed = reference_climb(
            name.split("-")[0], w, g, rho, options.get("eta", 0.0), options.get("p", 0.0), "all"
        )
        _, second = reference_gradient(climbed, x.numpy(), y.numpy())
        for key in w:
            # Weight decay enters once, with the clean weights.
            velocity[key] = 0.9 * velocity[key] + second[key] + 0.05 * w[key]
            w[key] = w[key] - 0.2 * velocity[key]
        assert_close(model, w, 1e-9)


def test_groups_carry_their_own_rho_and_eta() -> None:
    model, x, y = make(2)
    before = arrays(model)
    groups = [
        {"params": model.fc1.parameters(), "rho": 0.9, "eta": 0.1},
        {"params": [*model.bn.parameters(), *model.fc2.parameters()]},
    ]
    optimizer = ASAM(torch.optim.SGD(groups, lr=1.0), model, rho=0.2, eta=0.01)
    optimizer.step(closure_of(optimizer, model, x, y))
    _, g = reference_gradient(before, x.numpy(), y.numpy())
    climbed = reference_climb(
        "asam",
        before,
        g,
        lambda name: 0.9 if name.startswith("fc1") else 0.2,
        lambda name: 0.1 if name.startswith("fc1") else 0.01,
        0.0,
        "all",
    )
    _, second = reference_gradient(climbed, x.numpy(), y.numpy())
    assert_close(model, {key: before[key] - second[key] for key in before})
    assert [group["rho"] for group in optimizer.param_groups] == [0.9, 0.2]


def test_a_group_that_maximizes_climbs_downwards() -> None:
    model, x, y = make(3)
    twin = copy.deepcopy(model)
    upwards = SAM(torch.optim.SGD(model.parameters(), lr=0.1, maximize=True), model, rho=0.3)

    def negative() -> Tensor:
        upwards.zero_grad()
        loss = -nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    usual = SAM(torch.optim.SGD(twin.parameters(), lr=0.1), twin, rho=0.3)
    for _ in range(3):
        upwards.step(negative)
        usual.step(closure_of(usual, twin, x, y))
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
