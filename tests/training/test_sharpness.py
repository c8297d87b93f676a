"""What a step of two passes must not disturb."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from analognoise.errors import MethodError
from analognoise.training import ASAM, SAM, SAMSON
from analognoise.training.replay import Replay
from tests.training.sharpness import (
    METHODS,
    Arrays,
    _one_thread,  # noqa: F401
    arrays,
    assert_close,
    assert_identical,
    closure_of,
    make,
    reference_climb,
    reference_gradient,
    weights_of,
)


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
