"""SAM, ASAM and SAMSON against a hand-made reference, and what a step of two passes must not disturb."""

from __future__ import annotations

import copy
import math
import pickle
import random
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import analognoise.training as training
from analognoise import allocator
from analognoise.errors import MethodError
from analognoise.training import ASAM, SAM, SAMSON
from analognoise.training.replay import Replay

METHODS = {
    "sam": (SAM, {"rho": 0.3}),
    "asam": (ASAM, {"rho": 0.7, "eta": 0.02}),
    "samson-inf": (SAMSON, {"rho": 0.4, "p": math.inf, "eta": 0.03}),
    "samson-2": (SAMSON, {"rho": 0.5, "p": 2, "eta": 0.015}),
}
BN_EPS = 1e-5


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small run slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Net(nn.Module):
    """Linear, batch norm, tanh, linear; names chosen so that "weight" and "bias" say what they are."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(5, 7)
        self.bn = nn.BatchNorm1d(7, eps=BN_EPS)
        self.drop = nn.Dropout(dropout)
        self.fc2 = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.drop(torch.tanh(self.bn(self.fc1(x)))))


def make(
    seed: int = 0, dropout: float = 0.0, dtype: torch.dtype = torch.float64
) -> tuple[Net, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    model = Net(dropout).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.6)
    inputs = torch.randn(16, 5, generator=generator, dtype=torch.float64).to(dtype)
    return model, inputs, torch.randint(0, 4, (16,), generator=generator)


def closure_of(optimizer: torch.optim.Optimizer, model: nn.Module, x: Tensor, y: Tensor) -> Any:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def assert_identical(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


# The reference: forward and backward by hand, in float64.

Arrays = dict[str, np.ndarray]


def reference_gradient(w: Arrays, x: np.ndarray, y: np.ndarray) -> tuple[float, Arrays]:
    n = len(x)
    z = x @ w["fc1.weight"].T + w["fc1.bias"]
    centred = z - z.mean(0)
    inverse = 1.0 / np.sqrt((centred**2).mean(0) + BN_EPS)
    normal = centred * inverse
    hidden = np.tanh(w["bn.weight"] * normal + w["bn.bias"])
    logits = hidden @ w["fc2.weight"].T + w["fc2.bias"]
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    chance = shifted / shifted.sum(1, keepdims=True)
    loss = -np.log(chance[np.arange(n), y]).mean()
    d_logits = chance.copy()
    d_logits[np.arange(n), y] -= 1.0
    d_logits /= n
    d_hidden = (d_logits @ w["fc2.weight"]) * (1.0 - hidden**2)
    d_normal = d_hidden * w["bn.weight"]
    d_z = inverse * (d_normal - d_normal.mean(0) - normal * (d_normal * normal).mean(0))
    return loss, {
        "fc1.weight": d_z.T @ x,
        "fc1.bias": d_z.sum(0),
        "bn.weight": (d_hidden * normal).sum(0),
        "bn.bias": d_hidden.sum(0),
        "fc2.weight": d_logits.T @ hidden,
        "fc2.bias": d_logits.sum(0),
    }


def reference_climb(method: str, w: Arrays, g: Arrays, rho: Any, eta: Any, p: float, perturb: str) -> Arrays:
    """``rho`` and ``eta`` are numbers, or functions of the name."""
    rho_of = rho if callable(rho) else lambda name: rho
    eta_of = eta if callable(eta) else lambda name: eta
    scale: Arrays = {}
    for name, value in w.items():
        is_weight = "weight" in name
        if not is_weight and perturb == "weights":
            scale[name] = np.zeros_like(value)
        elif method == "sam" or not is_weight:
            scale[name] = np.ones_like(value)
        elif method == "asam":
            scale[name] = np.abs(value) + eta_of(name)
        else:
            size = np.abs(value).max() if p == math.inf else np.sqrt((value**2).sum())
            scale[name] = (np.abs(value) + eta_of(name)) / size
    norm = np.sqrt(sum(((scale[name] * g[name]) ** 2).sum() for name in w))
    return {name: w[name] + rho_of(name) * scale[name] ** 2 * g[name] / norm for name in w}


def arrays(model: nn.Module) -> Arrays:
    return {name: value.detach().numpy().copy() for name, value in model.named_parameters()}


def assert_close(model: nn.Module, expected: Arrays, bound: float = 1e-10) -> None:
    for name, value in model.named_parameters():
        np.testing.assert_allclose(
            value.detach().numpy(), expected[name], rtol=bound, atol=bound, err_msg=name
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


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("foreach", [False, True])
def test_rho_zero_is_the_base_optimizer_to_the_last_bit(name: str, foreach: bool) -> None:
    cls, options = METHODS[name]
    results = []
    for wrapped in (False, True):
        model, x, y = make(6, dropout=0.4, dtype=torch.float32)
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(), lr=0.2, momentum=0.9, weight_decay=0.01, foreach=foreach
        )
        if wrapped:
            optimizer = cls(optimizer, model, **{**options, "rho": 0.0})
        passes: list[bool] = []
        model.register_forward_pre_hook(lambda module, args, passes=passes: passes.append(True))
        torch.manual_seed(11)
        losses = [optimizer.step(closure_of(optimizer, model, x, y)).item() for _ in range(5)]
        assert len(passes) == 5
        results.append((losses, dict(model.state_dict()), torch.get_rng_state()))
    assert results[0][0] == results[1][0]
    assert_identical(results[1][1], results[0][1])
    assert torch.equal(results[0][2], results[1][2])


def test_dropout_masks_repeat_and_the_generator_ends_as_after_one_pass() -> None:
    model, x, y = make(7, dropout=0.5, dtype=torch.float32)
    masks: list[Tensor] = []
    model.drop.register_forward_hook(lambda module, args, output: masks.append(output == 0))
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), model, rho=0.1)
    torch.manual_seed(3)
    optimizer.step(closure_of(optimizer, model, x, y))
    after_step = torch.get_rng_state()
    assert len(masks) == 2
    assert torch.equal(masks[0], masks[1])
    assert masks[0].any()
    optimizer.step(closure_of(optimizer, model, x, y))
    assert not torch.equal(masks[0], masks[2])
    torch.manual_seed(3)
    model(x)
    assert torch.equal(torch.get_rng_state(), after_step)


def test_python_and_numpy_numbers_drawn_in_the_closure_repeat() -> None:
    model, x, y = make()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), model, rho=0.1)
    inner = closure_of(optimizer, model, x, y)
    drawn: list[tuple[float, float]] = []

    def closure() -> Tensor:
        drawn.append((random.random(), np.random.rand()))
        return inner()

    random.seed(1)
    np.random.seed(1)
    for _ in range(3):
        optimizer.step(closure)
    assert drawn[0::2] == drawn[1::2]
    assert len(set(drawn)) == 3
    random.seed(1)
    np.random.seed(1)
    assert drawn[0::2] == [(random.random(), np.random.rand()) for _ in range(3)]


def test_a_second_pass_that_stops_early_leaves_the_generators_as_one_whole_pass() -> None:
    model, x, y = make(7, dropout=0.5)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), model, rho=0.1)
    inner = closure_of(optimizer, model, x, y)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("stop")
        random.random()
        np.random.rand()
        return inner()

    def seed() -> None:
        random.seed(4)
        np.random.seed(4)
        torch.manual_seed(4)

    seed()
    with pytest.raises(RuntimeError, match="stop"):
        optimizer.step(closure)
    found = random.random(), np.random.rand(), torch.rand(1).item()
    seed()
    random.random()
    np.random.rand()
    model(x)
    assert found == (random.random(), np.random.rand(), torch.rand(1).item())


class Norms(nn.Module):
    """Every kind of layer that counts its batches on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.batch = nn.BatchNorm2d(4)
        self.average = nn.BatchNorm2d(4, momentum=None)
        self.instance = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
        self.untracked = nn.BatchNorm2d(4, track_running_stats=False)
        self.frozen = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.untracked(self.instance(self.average(self.batch(self.conv(x)))))
        return self.head(self.frozen(x).mean((2, 3)))


@pytest.mark.parametrize("first_step", [False, True])
def test_running_statistics_count_the_first_pass_only(first_step: bool) -> None:
    torch.manual_seed(0)
    model = Norms()
    model.frozen.eval()
    x, y = torch.randn(6, 2, 7, 7), torch.randint(0, 3, (6,))
    twin = copy.deepcopy(model)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), model, rho=2.0)
    for _ in range(2):
        twin.load_state_dict({**twin.state_dict(), **dict(model.named_parameters())})
        twin(x)
        if first_step:
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.first_step()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.second_step()
            optimizer.zero_grad()
        else:
            optimizer.step(closure_of(optimizer, model, x, y))
        assert_identical(dict(model.named_buffers()), dict(twin.named_buffers()))
    assert model.batch.num_batches_tracked.item() == 2
    assert model.frozen.num_batches_tracked.item() == 0


def test_synchronized_batch_norm_is_watched_too() -> None:
    assert len(Replay(nn.Sequential(nn.SyncBatchNorm(3))).statistics()) == 3


@pytest.mark.parametrize("noise", [None, 0.1])
@pytest.mark.parametrize("failing", [1, 2])
def test_a_closure_that_raises_leaves_no_trace(failing: int, noise: float | None) -> None:
    model, x, y = make(8, dropout=0.3, dtype=torch.float32)
    optimizer = SAMSON(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model, rho=0.4, noise=noise)
    closure = closure_of(optimizer, model, x, y)
    torch.manual_seed(5)
    optimizer.step(closure)
    before, buffers = weights_of(model), copy.deepcopy(dict(model.named_buffers()))
    generator = torch.get_rng_state()
    calls = 0

    def raising() -> Tensor:
        nonlocal calls
        calls += 1
        loss = closure()
        if calls == failing:
            assert (noise is not None or failing == 2) != torch.equal(model.fc1.weight, before["fc1.weight"])
            raise KeyboardInterrupt
        return loss

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(raising)
    assert calls == failing
    assert_identical(weights_of(model), before)
    assert optimizer.steps == 1
    assert_identical(dict(model.named_buffers()), buffers)
    # The generator is as one pass left it.
    torch.set_rng_state(generator.clone())
    copy.deepcopy(model)(x)
    after_one_pass = torch.get_rng_state()
    torch.set_rng_state(generator)
    calls = 0
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(raising)
    assert torch.equal(torch.get_rng_state(), after_one_pass)
    optimizer.step(closure)
    assert optimizer.steps == 2


@pytest.mark.parametrize("name", METHODS)
def test_zero_tensors_and_zero_gradients_are_safe(name: str) -> None:
    cls, options = METHODS[name]
    model, x, y = make(9)
    with torch.no_grad():
        model.fc2.weight.zero_()
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, args: seen.append(model.fc2.weight.detach().clone()))
    optimizer = cls(torch.optim.SGD(model.parameters(), lr=0.1), model, **options)
    optimizer.step(closure_of(optimizer, model, x, y))
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    # SAMSON's scaling of a zero tensor is 0; SAM and ASAM (η > 0) climb.
    assert torch.equal(seen[1], seen[0]) == name.startswith("samson")

    before = weights_of(model)

    def flat() -> Tensor:
        optimizer.zero_grad()
        loss = 0.0 * nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(flat)
    assert_identical(weights_of(model), before)


def test_weights_only_with_nothing_but_zero_weights_takes_the_plain_step() -> None:
    (model, x, y), (twin, _, _) = make(10), make(10)
    for net in (model, twin):
        for layer in (net.fc1, net.bn, net.fc2):
            nn.init.zeros_(layer.weight)
    optimizer = SAMSON(torch.optim.SGD(model.parameters(), lr=0.1), model, perturb="weights")
    plain = torch.optim.SGD(twin.parameters(), lr=0.1)
    optimizer.step(closure_of(optimizer, model, x, y))
    plain.step(closure_of(plain, twin, x, y))
    assert_identical(weights_of(model), weights_of(twin))
    assert not torch.equal(model.fc2.bias, make(10)[0].fc2.bias)


class Branches(nn.Module):
    """A tied weight, a frozen layer, and a layer that the loss does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 6)
        self.decoder = nn.Linear(6, 6)
        self.decoder.weight = self.encoder.weight
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.unused = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.frozen(self.encoder(x))))


@pytest.mark.parametrize("name", METHODS)
def test_tied_frozen_and_unused_parameters(name: str) -> None:
    cls, options = METHODS[name]
    torch.manual_seed(0)
    model = Branches().double()
    x, y = torch.randn(8, 6, dtype=torch.float64), torch.randint(0, 6, (8,))
    before = weights_of(model)
    climbs: list[Tensor] = []
    model.register_forward_pre_hook(
        lambda module, args: climbs.append(
            torch.cat([(p - before[n]).flatten() for n, p in model.named_parameters()]).detach()
        )
    )
    optimizer = cls(torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1), model, **options)
    optimizer.step(closure_of(optimizer, model, x, y))
    assert climbs[0].norm().item() == 0.0
    if name == "sam":
        # A tied weight climbs once: the whole climb has length rho.
        assert climbs[1].norm().item() == pytest.approx(options["rho"], rel=1e-12)
    for untouched in ("frozen.weight", "frozen.bias", "unused.weight", "unused.bias"):
        assert torch.equal(dict(model.named_parameters())[untouched], before[untouched])
    assert not torch.equal(model.encoder.weight, before["encoder.weight"])
    assert model.decoder.weight is model.encoder.weight


def test_a_tied_parameter_is_a_weight_if_any_of_its_names_says_so() -> None:
    model = nn.Module()
    model.table = nn.Parameter(torch.tensor([[3.0, -1.0]]))
    model.head = nn.Linear(2, 1, bias=False)
    model.head.weight = model.table
    optimizer = ASAM(torch.optim.SGD(model.parameters(), lr=0.0), model, rho=1.0, eta=0.5, perturb="weights")
    model.table.grad = torch.tensor([[2.0, 4.0]])
    optimizer.first_step()
    # T = (3.5, 1.5), T·g = (7, 6), T²·g = (24.5, 9).
    expected = torch.tensor([[3.0, -1.0]]) + torch.tensor([[24.5, 9.0]]) / math.sqrt(49 + 36)
    torch.testing.assert_close(model.table.detach(), expected)


def test_gradients_that_cannot_climb_are_refused_by_name() -> None:
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = SAM(torch.optim.SGD(table.parameters(), lr=0.1), table)
    before = table.weight.detach().clone()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = table(torch.tensor([1, 2])).sum()
        loss.backward()
        return loss

    with pytest.raises(MethodError, match=r"gradient of parameter 'weight' is sparse \(torch.sparse_coo\)"):
        optimizer.step(closure)
    assert torch.equal(table.weight, before)

    module = nn.Module()
    module.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    module.phase.grad = torch.ones(3, dtype=torch.complex64)
    other = SAM(torch.optim.SGD(module.parameters(), lr=0.1), module)
    with pytest.raises(MethodError, match=r"gradient of parameter 'phase' is complex \(torch.complex64\)"):
        other.first_step()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_moves_nothing(bad: float) -> None:
    model, x, y = make(12)
    optimizer = ASAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model)
    optimizer.step(closure_of(optimizer, model, x, y))
    before = weights_of(model)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y) * bad
        loss.backward()
        return loss

    with pytest.warns(RuntimeWarning, match=r"ASAM, step 1: the norm of the gradient is (nan|inf)"):
        loss = optimizer.step(closure)
    assert calls == 1
    assert not math.isfinite(loss.item())
    assert_identical(weights_of(model), before)
    optimizer.step(closure_of(optimizer, model, x, y))
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_with_noise_the_climb_starts_from_the_noisy_weights_and_scales_with_the_clean_ones(name: str) -> None:
    cls, options = METHODS[name]
    model, x, y = make(13)
    before = arrays(model)
    seen: list[Arrays] = []
    model.register_forward_pre_hook(lambda module, args: seen.append(arrays(model)))
    optimizer = cls(torch.optim.SGD(model.parameters(), lr=0.5), model, noise=0.2, seed=4, **options)
    optimizer.step(closure_of(optimizer, model, x, y))
    noisy, at_top = seen
    noise = {key: noisy[key] - before[key] for key in before}
    assert {key for key, value in noise.items() if np.any(value)} == {"fc1.weight", "fc2.weight"}
    _, g = reference_gradient(noisy, x.numpy(), y.numpy())
    climbed = reference_climb(
        name.split("-")[0],
        before,
        g,
        options["rho"],
        options.get("eta", 0.0),
        options.get("p", 0.0),
        "all",
    )
    for key in before:
        np.testing.assert_allclose(
            at_top[key], climbed[key] + noise[key], rtol=1e-10, atol=1e-10, err_msg=key
        )
    _, second = reference_gradient(at_top, x.numpy(), y.numpy())
    assert_close(model, {key: before[key] - 0.5 * second[key] for key in before})


def test_a_closure_that_forgets_zero_grad_gets_fresh_gradients_for_the_second_pass() -> None:
    (model, x, y), (twin, _, _) = make(14), make(14)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), model, rho=0.3)
    other = SAM(torch.optim.SGD(twin.parameters(), lr=0.1), twin, rho=0.3)

    def without() -> Tensor:
        loss = nn.functional.cross_entropy(twin(x), y)
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure_of(optimizer, model, x, y))
        other.zero_grad()
        other.step(without)
    assert_identical(weights_of(twin), weights_of(model))


def test_half_precision_norms_do_not_overflow() -> None:
    model = nn.Linear(300, 300, bias=False).to(torch.float16)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.0), model, rho=30.0)
    before = model.weight.detach().clone()
    model.weight.grad = torch.full_like(model.weight, 1000.0)  # norm 300,000: beyond float16
    optimizer.first_step()
    # Each of 90,000 weights moves by 30 / 300; float16 keeps 3 digits of it.
    torch.testing.assert_close((model.weight - before).float().mean().item(), 0.1, rtol=1e-2, atol=0.0)
    optimizer.restore()
    assert torch.equal(model.weight, before)


class _Peak(TorchDispatchMode):
    """Counts the bytes of tensors made inside and still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            t.untyped_storage()._cdata
            for t in torch.utils._pytree.tree_leaves((args, kwargs))
            if isinstance(t, Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in given and key not in self.known:
                    self.known.add(key)
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self.free, key, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


@pytest.mark.parametrize("name", METHODS)
def test_a_step_holds_at_most_one_extra_copy_of_the_parameters(name: str) -> None:
    cls, options = METHODS[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 300))
    x, y = torch.randn(2, 300), torch.tensor([1, 2])
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    peaks = {}
    for kind in ("plain", "wrapped"):
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if kind == "wrapped":
            optimizer = cls(optimizer, model, **options)
        optimizer.step(closure_of(optimizer, model, x, y))
        optimizer.zero_grad()
        with _Peak() as peak:
            optimizer.step(closure_of(optimizer, model, x, y))
        peaks[kind] = peak.peak / size
        optimizer.zero_grad()
    assert peaks["plain"] > 0.99  # the gradients: the counter sees them
    assert peaks["wrapped"] <= peaks["plain"] + 1.02


@pytest.mark.parametrize("name", METHODS)
def test_memory_kept_from_step_to_step_changes_no_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls, options = METHODS[name]
    x, y = torch.randn(4, 40, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 1, 2, 3])
    found = []
    for large in (1 << 60, 1 << 12):
        monkeypatch.setattr(allocator, "_LARGE", large)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(40, 60), nn.Tanh(), nn.Linear(60, 40))
        optimizer = cls(torch.optim.SGD(model.parameters(), lr=0.1), model, **options)
        for _ in range(3):
            optimizer.step(closure_of(optimizer, model, x, y))
        found.append([parameter.detach().clone() for parameter in model.parameters()])
        kept = optimizer._rooms._free
        weights = [parameter for parameter in model.parameters() if parameter.nbytes >= large]
        assert [room.shape for room in kept] == [weight.shape for weight in weights]
        assert not pickle.loads(pickle.dumps(optimizer))._rooms._free
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (SAM, {"rho": -0.1}, "SAM: rho must be a number, at least 0, found -0.1"),
        (SAM, {"rho": math.nan}, "SAM: rho must be a number, at least 0, found nan"),
        (SAM, {"rho": "0.1"}, "SAM: rho must be a number, at least 0, found '0.1'"),
        (ASAM, {"eta": -1.0}, "ASAM: eta must be a number, at least 0, found -1.0"),
        (SAMSON, {"p": 1}, "SAMSON: p must be 2 or math.inf, found 1"),
        (SAMSON, {"p": True}, "SAMSON: p must be 2 or math.inf, found True"),
        (SAM, {"perturb": "bias"}, "SAM: perturb must be 'all' or 'weights', found 'bias'"),
        (SAM, {"rho_warmup": -1}, "SAM: rho_warmup must be a whole number of steps, at least 0, found -1"),
        (SAM, {"rho_warmup": 2.5}, "SAM: rho_warmup must be a whole number of steps, at least 0, found 2.5"),
    ],
)
def test_wrong_hyperparameters(cls: Any, options: dict[str, Any], message: str) -> None:
    model = Net()
    with pytest.raises(MethodError) as caught:
        cls(torch.optim.SGD(model.parameters(), lr=0.1), model, **options)
    assert str(caught.value) == message


def test_a_wrong_rho_in_a_group_is_named_with_its_group() -> None:
    model = Net()
    groups = [{"params": model.fc1.parameters()}, {"params": model.fc2.parameters(), "rho": -2.0}]
    with pytest.raises(
        MethodError, match=r"SAM, parameter group 1: rho must be a number, at least 0, found -2\.0"
    ):
        SAM(torch.optim.SGD(groups, lr=0.1), model)


def test_defaults_are_those_of_the_sources() -> None:
    model = Net()
    expected = {"SAM": {"rho": 0.05}, "ASAM": {"rho": 0.5, "eta": 0.01}, "SAMSON": {"rho": 0.2, "eta": 0.01}}
    for name, options in expected.items():
        optimizer = getattr(training, name)(torch.optim.SGD(model.parameters(), lr=0.1), model)
        assert {key: optimizer.param_groups[0][key] for key in options} == options
    assert SAMSON(torch.optim.SGD(model.parameters(), lr=0.1), model).p == math.inf
