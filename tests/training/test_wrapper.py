"""Every method is a torch optimizer like any other: groups, schedulers, hooks, checkpoints, copies."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR

from analognoise.conversion import convert_to_analog
from analognoise.errors import MethodError
from analognoise.training import (
    ASAM,
    SAM,
    SAMSON,
    Clipped,
    GaussianNoise,
    ProfileNoise,
    RandomWeightPerturbation,
    WrappedOptimizer,
)

METHODS: dict[str, Callable[[Optimizer, nn.Module], WrappedOptimizer]] = {
    "wrapped": lambda base, model: WrappedOptimizer(base, model, noise=0.05, noise_ramp=4, clip=1.8),
    "sam": lambda base, model: SAM(base, model, rho=0.2, rho_warmup=5),
    "asam": lambda base, model: ASAM(base, model, rho=0.3, rho_warmup=5, clip=1.5),
    "samson": lambda base, model: SAMSON(base, model, p=2, noise=0.05, seed=3),
    "clipped": lambda base, model: Clipped(base, model, clip=1.5),
    "gaussian": lambda base, model: GaussianNoise(base, model, noise=0.1, seed=9),
    "rwp": lambda base, model: RandomWeightPerturbation(base, model, noise=0.2, ramp=6, seed=2),
    "profile": lambda base, model: ProfileNoise(base, convert_to_analog(model, "pcm-ibm"), seed=1),
}


pytestmark = pytest.mark.usefixtures("one_thread")


def make(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 3)
        )


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 1, 6, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)


def sgd(model: nn.Module, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, **options})


def closure_of(optimizer: Optimizer, model: nn.Module, number: int = 0) -> Callable[[], Tensor]:
    x, y = data(number)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def train(optimizer: Optimizer, model: nn.Module, steps: range, scheduler: Any = None) -> list[float]:
    losses = []
    for step in steps:
        torch.manual_seed(step)
        losses.append(optimizer.step(closure_of(optimizer, model, step)).item())
        if scheduler is not None:
            scheduler.step()
    return losses


def assert_same(left: nn.Module, right: nn.Module) -> None:
    for (name, a), (_, b) in zip(left.state_dict().items(), right.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("name", METHODS)
def test_it_is_a_torch_optimizer_and_shows_its_base(name: str) -> None:
    model = make()
    base = sgd(model)
    optimizer = METHODS[name](base, model)
    assert isinstance(optimizer, Optimizer)
    assert optimizer.param_groups is base.param_groups
    assert optimizer.state is base.state
    assert optimizer.defaults is base.defaults
    train(optimizer, model, range(2))
    assert len(optimizer.state) == len(list(model.parameters()))
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert type(optimizer).__name__ in repr(optimizer)


@pytest.mark.parametrize("clip", [None, 50.0])
def test_without_options_it_is_the_base_to_the_last_bit(clip: float | None) -> None:
    model, twin = make(), make()
    base = sgd(twin, weight_decay=0.01)
    optimizer = WrappedOptimizer(sgd(model, weight_decay=0.01), model, clip=clip, noise=0.0)
    assert train(optimizer, model, range(4)) == train(base, twin, range(4))
    assert_same(model, twin)


def test_gradients_may_lie_ready_when_no_noise_is_wanted() -> None:
    model, twin = make(), make()
    optimizer, other = Clipped(sgd(model), model, clip=1.5), Clipped(sgd(twin), twin, clip=1.5)
    torch.manual_seed(0)
    nn.functional.cross_entropy(model(data()[0]), data()[1]).backward()
    optimizer.step()
    torch.manual_seed(0)
    other.step(closure_of(other, twin))
    assert_same(model, twin)


@pytest.mark.parametrize("name", ["sam", "asam", "samson", "gaussian", "rwp", "profile"])
def test_a_method_that_needs_a_closure_says_so(name: str) -> None:
    model = make()
    optimizer = METHODS[name](sgd(model), model)
    with pytest.raises(MethodError, match=rf"{type(optimizer).__name__}.step needs a closure that clears"):
        optimizer.step()
    assert optimizer.steps == 0


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "step": lambda optimizer: StepLR(optimizer, 2, 0.1),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, 6),
    "onecycle": lambda optimizer: OneCycleLR(optimizer, max_lr=0.2, total_steps=8),
}


@pytest.mark.parametrize("on", ["wrapper", "base"])
@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("name", ["sam", "gaussian", "rwp"])
def test_schedulers_work_on_the_wrapper_and_on_the_base(name: str, kind: str, on: str) -> None:
    model, twin = make(), make()
    base = sgd(model)
    optimizer = METHODS[name](base, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = SCHEDULERS[kind](optimizer if on == "wrapper" else base)
        plain = sgd(twin)
        reference = SCHEDULERS[kind](plain)
        for step in range(6):
            train(optimizer, model, range(step, step + 1), scheduler)
            train(plain, twin, range(step, step + 1), reference)
            assert optimizer.param_groups[0]["lr"] == plain.param_groups[0]["lr"]
            assert optimizer.param_groups[0]["momentum"] == plain.param_groups[0]["momentum"]
    assert optimizer.param_groups[0]["lr"] != 0.1


def test_a_scheduler_is_content_with_first_and_second_step() -> None:
    model = make()
    optimizer = SAM(sgd(model), model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = StepLR(optimizer, 1, 0.5)
        closure = closure_of(optimizer, model)
        closure()
        optimizer.first_step()
        closure()
        optimizer.second_step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
    ReduceLROnPlateau(optimizer).step(1.0)


def test_the_learning_rate_of_a_scheduler_takes_effect() -> None:
    model = make()
    optimizer = SAM(sgd(model), model)
    scheduler = StepLR(optimizer, 1, 0.0)
    train(optimizer, model, range(1), scheduler)
    before = copy.deepcopy(list(model.parameters()))
    train(optimizer, model, range(1, 2))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_hooks_of_torch_run_once_a_step() -> None:
    model = make()
    optimizer = SAM(sgd(model), model)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: seen.append("pre"))
    handle = optimizer.register_step_post_hook(lambda opt, args, kwargs: seen.append(f"post {opt.steps}"))
    optimizer.base.register_step_post_hook(lambda opt, args, kwargs: seen.append("base"))
    train(optimizer, model, range(2))
    assert seen == ["pre", "base", "post 1", "pre", "base", "post 2"]
    closure_of(optimizer, model)()
    optimizer.first_step()
    assert len(seen) == 6
    closure_of(optimizer, model)()
    optimizer.second_step()
    assert seen[6:] == ["pre", "base", "post 3"]
    handle.remove()
    train(optimizer, model, range(1))
    assert seen[9:] == ["pre", "base"]


def test_hooks_around_the_state_dict_run() -> None:
    model = make()
    optimizer = GaussianNoise(sgd(model), model)
    seen: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda opt: seen.append("pre save"))
    optimizer.register_state_dict_post_hook(lambda opt, state: {**state, "mine": 1})
    optimizer.register_load_state_dict_pre_hook(
        lambda opt, state: {k: v for k, v in state.items() if k != "mine"}
    )
    optimizer.register_load_state_dict_post_hook(lambda opt: seen.append("post load"))
    state = optimizer.state_dict()
    assert state["mine"] == 1
    optimizer.load_state_dict(state)
    assert seen == ["pre save", "post load"]
    assert state["mine"] == 1


def test_groups_can_be_added_with_their_own_options() -> None:
    model = make()
    optimizer = ASAM(torch.optim.SGD(model[0].parameters(), lr=0.1), model, rho=0.2)
    optimizer.add_param_group({"params": model[5].parameters(), "lr": 0.01, "rho": 0.7})
    assert [(group["lr"], group["rho"], group["eta"]) for group in optimizer.base.param_groups] == [
        (0.1, 0.2, 0.01),
        (0.01, 0.7, 0.01),
    ]
    before = model[5].weight.detach().clone()
    train(optimizer, model, range(1))
    assert not torch.equal(model[5].weight, before)

    with pytest.raises(
        MethodError, match=r"ASAM: parameter 0 of group 2 of the base, shape \(7, 7\), is not a"
    ):
        optimizer.add_param_group({"params": nn.Linear(7, 7).parameters()})
    with pytest.raises(
        MethodError, match="ASAM, parameter group 2: rho must be a number, at least 0, found -1"
    ):
        optimizer.add_param_group({"params": model[1].parameters(), "rho": -1})
    assert len(optimizer.param_groups) == 2
    optimizer.add_param_group({"params": model[1].weight})
    train(optimizer, model, range(1))


def test_groups_with_names_work() -> None:
    model = make()
    optimizer = SAM(torch.optim.SGD(model[0].named_parameters(), lr=0.1), model)
    optimizer.add_param_group({"params": model[5].named_parameters()})
    train(optimizer, model, range(1))
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[1]["param_names"] == ["weight", "bias"]


def test_a_group_added_to_the_base_itself_takes_part_with_the_defaults() -> None:
    model, twin = make(), make()
    optimizer = SAM(torch.optim.SGD(model[:5].parameters(), lr=0.1), model, rho=0.5)
    optimizer.base.add_param_group({"params": model[5].parameters()})
    other = SAM(torch.optim.SGD(twin[:5].parameters(), lr=0.1), twin, rho=0.5)
    other.add_param_group({"params": twin[5].parameters()})
    train(optimizer, model, range(2))
    train(other, twin, range(2))
    assert_same(model, twin)


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_goes_on_bit_for_bit(name: str) -> None:
    whole, model = make(), make()
    optimizer = METHODS[name](sgd(whole), whole)
    scheduler = CosineAnnealingLR(optimizer, 8)
    losses = train(optimizer, whole, range(7), scheduler)

    first = METHODS[name](sgd(model), model)
    schedule = CosineAnnealingLR(first, 8)
    begun = train(first, model, range(3), schedule)
    file = io.BytesIO()
    torch.save([model.state_dict(), first.state_dict(), schedule.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    fresh = make(5)
    resumed = METHODS[name](sgd(fresh), fresh)
    resumed.seed = 77  # as if made with another seed: the checkpoint's counts
    later = CosineAnnealingLR(resumed, 8)
    fresh.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    later.load_state_dict(saved[2])
    assert resumed.param_groups is resumed.base.param_groups
    assert begun + train(resumed, fresh, range(3, 7), later) == losses
    assert_same(fresh, whole)
    assert resumed.steps == 7


def test_a_plain_optimizers_checkpoint_starts_at_step_zero() -> None:
    model = make()
    base = sgd(model)
    train(base, model, range(2))
    optimizer = SAM(sgd(model), model, rho=0.3)
    train(optimizer, model, range(3))
    optimizer.load_state_dict(base.state_dict())
    assert optimizer.steps == 0
    assert optimizer.param_groups[0]["rho"] == 0.3
    train(optimizer, model, range(1))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("name", METHODS)
def test_copies_go_on_alike_and_apart(name: str, how: str) -> None:
    model = make()
    optimizer = METHODS[name](sgd(model), model)
    scheduler = StepLR(optimizer, 2)  # replaces optimizer.step on the instance
    optimizer.register_step_post_hook(lambda *args: None)
    train(optimizer, model, range(3), scheduler)
    pair = (model, optimizer)
    other, twin = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert twin.base is not optimizer.base
    assert {id(p) for g in twin.param_groups for p in g["params"]} == {id(p) for p in other.parameters()}
    before = copy.deepcopy(model.state_dict())
    losses = train(twin, other, range(3, 5))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert train(optimizer, model, range(3, 5)) == losses
    assert_same(model, other)
    assert optimizer.steps == twin.steps == 5


@pytest.mark.parametrize("name", METHODS)
def test_gradients_can_be_clipped_right_before_the_update(name: str) -> None:
    model = make()
    norms: list[float] = []
    started = [parameter.detach().clone() for parameter in model.parameters()]

    def clip() -> None:
        # Perturbations are gone by now.
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), started, strict=True))
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        norms.append(sum((p.grad**2).sum().item() for p in model.parameters()) ** 0.5)

    optimizer = METHODS[name](torch.optim.SGD(model.parameters(), lr=1.0), model)
    optimizer.before_step = clip
    optimizer.clip = None
    train(optimizer, model, range(1))
    assert norms == [pytest.approx(1e-3, rel=1e-3)]
    moved = sum(((a - b) ** 2).sum().item() for a, b in zip(model.parameters(), started, strict=True)) ** 0.5
    assert moved == pytest.approx(1e-3, rel=1e-2)


def train_cast(name: str, where: str) -> tuple[list[float], nn.Module]:
    """Four steps with autocast in the ``closure``, around each ``step`` or around the whole ``training``."""
    model = make()
    optimizer = METHODS[name](sgd(model), model)
    batch = data()

    def cast(here: bool) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if here else nullcontext()

    def closure() -> Tensor:
        optimizer.zero_grad()
        with cast(where == "closure"):
            loss = nn.functional.cross_entropy(model(batch[0]).float(), batch[1])
        loss.backward()
        return loss

    losses = []
    with cast(where == "training"):
        for step in range(4):
            batch = data(step)
            torch.manual_seed(step)
            with cast(where == "step"):
                losses.append(optimizer.step(closure).item())
    return losses, model


@pytest.mark.parametrize("name", METHODS)
def test_autocast_may_stand_in_the_closure_or_around_the_step(name: str) -> None:
    """An open context keeps bfloat16 copies of the weights, which must follow the weights."""
    losses, model = train_cast(name, "closure")
    for where in ("step", "training"):
        other, twin = train_cast(name, where)
        assert other == losses
        assert_same(twin, model)


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("name", ["sam", "samson", "rwp"])
def test_a_closure_that_raises_leaves_weights_and_statistics(name: str, failing: int) -> None:
    model = make()
    optimizer = METHODS[name](sgd(model), model)
    train(optimizer, model, range(2))
    before = copy.deepcopy(model)
    closure, calls = closure_of(optimizer, model), 0

    def raising() -> Tensor:
        nonlocal calls
        calls += 1
        loss = closure()
        if calls == failing:
            assert not torch.equal(model[1].running_mean, before[1].running_mean)
            raise RuntimeError("out of memory")
        return loss

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(raising)
    assert_same(model, before)
    assert model[1].num_batches_tracked.item() == 2
    assert optimizer.steps == 2


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_in_the_closure_are_one_large_batch(name: str) -> None:
    x, y = data()
    results = []
    for parts in (1, 4):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Flatten(), nn.Linear(36, 10), nn.Tanh(), nn.Linear(10, 3)).double()
        optimizer = METHODS[name](sgd(model), model)

        def closure(optimizer: Optimizer = optimizer, model: nn.Module = model, parts: int = parts) -> float:
            optimizer.zero_grad()
            total = 0.0
            for xs, ys in zip(x.double().chunk(parts), y.chunk(parts), strict=True):
                loss = nn.functional.cross_entropy(model(xs), ys) / parts
                loss.backward()
                total += loss.item()
            return total

        losses = [optimizer.step(closure) for _ in range(3)]
        results.append((losses, list(model.parameters())))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-10)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_a_closure_runs_with_gradients_on_even_under_no_grad() -> None:
    model = make()
    optimizer = SAM(sgd(model), model)
    with torch.no_grad():
        optimizer.step(closure_of(optimizer, model))
        assert not torch.is_grad_enabled()


class NeedsClosure(torch.optim.SGD):
    def step(self, closure: Any) -> Any:  # type: ignore[override]
        return super().step(closure)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda m: SAM(torch.optim.SGD, m),
            r"SAM: base must be an optimizer instance .* found the class SGD",
        ),
        (lambda m: SAM("sgd", m), r"SAM: base must be a torch\.optim\.Optimizer instance, found str"),
        (lambda m: SAM(sgd(m), "m"), r"SAM: model must be a torch\.nn\.Module, found str"),
        (
            lambda m: SAM(sgd(make()), m),
            r"SAM: parameter 0 of group 0 of the base, shape \(4, 1, 3, 3\), is not",
        ),
        (lambda m: SAM(Clipped(sgd(m), m), m), r"SAM: base is a Clipped, which wraps an optimizer itself"),
        (
            lambda m: SAM(torch.optim.LBFGS(m.parameters()), m),
            r"SAM: base LBFGS calls the closure itself and cannot be wrapped",
        ),
        (
            lambda m: SAM(NeedsClosure(m.parameters(), lr=1), m),
            r"SAM: base NeedsClosure calls the closure itself",
        ),
        (lambda m: Clipped(sgd(m), m, clip=0), r"Clipped: clip must be a number above 0, found 0"),
        (lambda m: Clipped(sgd(m), m, clip=-1.0), r"Clipped: clip must be a number above 0, found -1\.0"),
        (lambda m: Clipped(sgd(m), m, clip=None), r"Clipped: clip must be a number above 0, found None"),
        (lambda m: Clipped(sgd(m), m, clip=math.inf), r"Clipped: clip must be a number above 0, found inf"),
        (lambda m: SAM(sgd(m), m, clip=0.0), r"SAM: clip must be a number above 0, found 0\.0"),
        (
            lambda m: GaussianNoise(sgd(m), m, noise=-0.1),
            r"GaussianNoise: noise must be a number, at least 0",
        ),
        (lambda m: GaussianNoise(sgd(m), m, noise=True), r"GaussianNoise: noise must be .* found True"),
        (lambda m: SAM(sgd(m), m, noise_ramp=-3), r"SAM: noise_ramp must be a whole number of steps"),
        (lambda m: SAM(sgd(m), m, before_step=3), r"SAM: before_step must be a function .* found 3"),
        (
            lambda m: RandomWeightPerturbation(sgd(m), m, mix=1.5),
            r"RandomWeightPerturbation: mix must be a number, at least 0 and at most 1, found 1\.5",
        ),
        (lambda m: Clipped(sgd(m[1]), m[1]), r"Clipped: BatchNorm2d has no layer that would be on a chip"),
        (lambda m: SAM(sgd(m[1]), m[1], noise=0.1), r"SAM: BatchNorm2d has no layer that would be on a chip"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(build: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        build(make())


def test_a_lazy_model_is_refused_by_name() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(MethodError, match=r"SAM: parameter '0\.weight' has no shape yet: run one batch"):
        SAM(torch.optim.SGD(model.parameters(), lr=0.1), model)


def test_a_model_without_chip_weights_can_still_be_trained_sharply() -> None:
    model = nn.BatchNorm1d(3)
    optimizer = SAM(sgd(model), model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(torch.arange(12.0).view(4, 3)).pow(3).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert not torch.equal(model.bias, torch.zeros(3))
