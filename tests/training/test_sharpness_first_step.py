"""Two passes as calls of the user's own, also with a gradient scaler."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from analognoise.errors import MethodError
from analognoise.training import SAM, SAMSON
from tests.training.sharpness import (
    METHODS,
    Net,
    _one_thread,  # noqa: F401
    assert_identical,
    closure_of,
    make,
    weights_of,
)


@pytest.mark.parametrize("name", METHODS)
def test_first_and_second_step_are_the_closure_step(name: str) -> None:
    cls, options = METHODS[name]
    (model, x, y), (twin, _, _) = make(4), make(4)
    optimizer = cls(torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9), model, **options)
    other = cls(torch.optim.SGD(twin.parameters(), lr=0.3, momentum=0.9), twin, **options)
    for _ in range(3):
        optimizer.step(closure_of(optimizer, model, x, y))
        nn.functional.cross_entropy(twin(x), y).backward()
        other.first_step()
        assert all(parameter.grad is None for parameter in twin.parameters())
        nn.functional.cross_entropy(twin(x), y).backward()
        other.second_step()
        other.zero_grad()
    assert_identical(dict(twin.state_dict()), dict(model.state_dict()))
    assert other.steps == optimizer.steps == 3


def test_first_step_in_the_wrong_place() -> None:
    model, x, y = make()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.3), model)
    before = weights_of(model)
    with pytest.raises(MethodError, match="second_step needs a first_step"):
        optimizer.second_step()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.first_step()
    with pytest.raises(MethodError, match="first_step was called twice"):
        optimizer.first_step()
    with pytest.raises(MethodError, match="takes no closure"):
        optimizer.step(closure_of(optimizer, model, x, y))
    with pytest.raises(MethodError, match="in the middle of a step"):
        copy.deepcopy(optimizer)
    optimizer.restore()
    assert_identical(weights_of(model), before)
    with pytest.raises(MethodError, match="needs a closure"):
        optimizer.step()
    noisy = SAM(torch.optim.SGD(model.parameters(), lr=0.3), model, noise=0.1)
    with pytest.raises(MethodError, match="comes too late for noise"):
        noisy.first_step()


def test_a_gradient_scaler_works_with_first_step() -> None:
    results = []
    for scale in (None, 1024.0):
        model, x, y = make(5, dtype=torch.float32)
        optimizer = SAMSON(torch.optim.SGD(model.parameters(), lr=0.1), model, rho=0.3)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
            optimizer.first_step()
            scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
            if scale is None:
                optimizer.second_step()
            else:
                scaler.step(optimizer)
                scaler.update()
        results.append(weights_of(model))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-5, atol=1e-6)


def scaled(scaler: torch.amp.GradScaler, model: nn.Module, x: Tensor, y: Tensor, factor: float = 1.0) -> None:
    scaler.scale(nn.functional.cross_entropy(model(x), y) * factor).backward()


def skipped() -> tuple[SAM, Net, Tensor, Tensor, torch.amp.GradScaler, dict[str, Tensor]]:
    """A step that the scaler has left out, for an infinite second gradient; with the weights before it."""
    model, x, y = make(5, dtype=torch.float32)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model, rho=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    before = weights_of(model)
    scaled(scaler, model, x, y)
    optimizer.first_step()
    scaled(scaler, model, x, y, math.inf)
    scaler.step(optimizer)
    scaler.update()
    assert optimizer.steps == 0
    assert not torch.equal(model.fc1.weight, before["fc1.weight"])
    return optimizer, model, x, y, scaler, before


@pytest.mark.filterwarnings("error")
def test_a_step_that_a_gradient_scaler_left_out_is_as_if_it_had_not_been() -> None:
    optimizer, model, x, y, scaler, before = skipped()
    twin, _, _ = make(5, dtype=torch.float32)
    other = SAM(torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9), twin, rho=0.5)
    fresh = torch.amp.GradScaler("cpu", init_scale=32.0)  # what the update after the skipped step made of it
    optimizer.zero_grad()
    assert_identical(weights_of(model), before)
    twin(x)  # the skipped step's first pass counts in the running statistics
    for _ in range(3):
        for one, net, scale in ((optimizer, model, scaler), (other, twin, fresh)):
            one.zero_grad()
            scaled(scale, net, x, y)
            one.first_step()
            one.zero_grad()  # clears nothing, and gives nothing up
            scaled(scale, net, x, y)
            scale.step(one)
            scale.update()
    assert_identical(dict(model.state_dict()), dict(twin.state_dict()))
    assert optimizer.steps == other.steps == 3


def test_first_step_comes_back_by_itself_and_says_that_it_is_late() -> None:
    optimizer, model, x, y, scaler, before = skipped()
    model.zero_grad()  # not the optimizer's
    scaled(scaler, model, x, y)
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    with pytest.warns(RuntimeWarning, match=r"SAM.first_step, step 0: the step before had no second_step"):
        optimizer.first_step()
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
    for gradient, (name, value) in zip(gradients, model.named_parameters(), strict=True):
        torch.testing.assert_close(value.detach(), before[name] + 0.5 / norm * gradient)
    optimizer.restore()
    assert_identical(weights_of(model), before)
    optimizer.restore()


@pytest.mark.parametrize("of", ["model", "optimizer", "outer"])
def test_climbed_weights_are_not_stored(of: str) -> None:
    optimizer, model, x, y, _, before = skipped()
    outer = nn.Sequential(model)
    owner: Any = {"model": model, "optimizer": optimizer, "outer": outer}[of]
    owner.state_dict()
    assert_identical(weights_of(model), before)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.first_step()
    for backward in (False, True):
        if backward:
            nn.functional.cross_entropy(model(x), y).backward()
        with pytest.raises(MethodError, match="SAM, step 0: the weights cannot be stored between first"):
            owner.state_dict()
    optimizer.second_step()
    owner.state_dict()
    assert optimizer.steps == 1
    assert not model._state_dict_pre_hooks


def test_weights_loaded_after_a_skipped_step_stay() -> None:
    optimizer, model, _, _, _, before = skipped()
    loaded = {name: value + 1 for name, value in before.items()}
    model.load_state_dict(loaded, strict=False)
    optimizer.zero_grad()
    assert_identical(weights_of(model), loaded)
    assert_identical({k: v for k, v in model.state_dict().items() if k in loaded}, loaded)
