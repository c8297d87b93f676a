"""Two processes under DistributedDataParallel against one process: the same weights, within rounding."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import analognoise as an
from analognoise.errors import MethodError, ModelError, TrainingError
from analognoise.quantized import quantizer_ranges
from analognoise.seeds import derive_seed
from analognoise.training import WrappedOptimizer
from tests.gloo import WORLD, in_two_processes

STEPS = 3
GENERATOR = torch.Generator().manual_seed(1)
X = torch.randn(STEPS, 8, 9, generator=GENERATOR)
Y = torch.randint(0, 5, (STEPS, 8), generator=GENERATOR)
LEARNED = an.load_profile("pcm-ibm").replace(
    {
        "periphery.dac.bits": 12,
        "periphery.dac.range": "learned",
        "periphery.adc.bits": 12,
        "periphery.adc.range": "learned",
        "periphery.adc.percentile": 99.0,
    }
)
FAULTY = an.load_profile("pcm-ibm").replace({"faults.stuck_at_g_min": 0.2, "faults.stuck_at_g_max": 0.1})

QUANTIZING = (
    *("qat", "saq", "asaq", "samson-saq", "saq+noise:activation_bits=6:perturb=all"),
    *("qat-const:scale=0.3", "sam+qat-const:scale=0.3"),
)
NOISY = ("noisy", "noisy:walk=yes", "vant", "sam+noisy", "saq+vant")

Make = Callable[..., torch.optim.Optimizer]
METHODS: dict[str, tuple[Make, dict[str, Any]]] = {
    "sam": (an.SAM, {"rho": 0.5, "clip": 1.8, "noise": 0.05, "seed": 3}),
    "asam": (an.ASAM, {"rho": 1.0, "rho_warmup": 2}),
    "samson": (an.SAMSON, {"rho": 0.4, "perturb": "weights"}),
    "samson-2": (an.SAMSON, {"rho": 0.4, "p": 2}),
    "noise": (an.GaussianNoise, {"noise": 0.2, "seed": 4}),
    "rwp": (an.RandomWeightPerturbation, {"noise": 0.2, "seed": 5}),
    "profile-noise": (an.ProfileNoise, {"clip": 2.0, "seed": 6}),
    "profile-noise, stuck devices": (an.ProfileNoise, {"seed": 6}),
    "clip": (an.Clipped, {"clip": 1.5}),
    "saq": (an.SAQ, {"rho": 0.5, "noise": 0.05, "seed": 7}),
    "asaq": (an.ASAQ, {"rho": 1.0, "perturb": "all"}),
    "samson-saq": (an.SAMSONSAQ, {"rho": 0.4, "clip": 1.8}),
}


def build(profile: Any = "pcm-ibm") -> nn.Module:
    torch.manual_seed(0)
    return an.convert_to_analog(nn.Sequential(nn.Linear(9, 15), nn.Tanh(), nn.Linear(15, 5)), profile)


def build_for(name: str) -> nn.Module:
    """The model that a method trains: on tiles, or quantized."""
    if not name.endswith("saq"):
        return build(FAULTY if "stuck" in name else "pcm-ibm")
    torch.manual_seed(0)
    model = an.quantize(nn.Sequential(nn.Linear(9, 15), nn.Tanh(), nn.Linear(15, 5)), 4, activation_bits=6)
    with torch.no_grad():
        model(X[0])  # ranges of the inputs begin in the same way everywhere
    return model


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def closure_of(optimizer: Any, model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()]).clone()


def shard(step: int, rank: int) -> tuple[Tensor, Tensor]:
    part = slice(4 * rank, 4 * rank + 4)
    return X[step, part], Y[step, part]


def trained(name: str, sync: str, rank: int, *, pieces: int = 1, view: bool = False) -> dict[str, Any]:
    """This process's weights after every step, and how often DistributedDataParallel averaged."""
    make, options = METHODS[name]
    wrapper = DistributedDataParallel(build_for(name), gradient_as_bucket_view=view)
    averaged = []

    def hook(state, bucket):  # type: ignore[no-untyped-def]  # torch compares annotations, not their text
        averaged.append(bucket.is_last())
        return allreduce_hook(state, bucket)

    wrapper.register_comm_hook(None, hook)
    extra = {} if name == "clip" else {"sync": sync}
    optimizer: Any = make(sgd(wrapper), wrapper, **options, **extra)
    history = []
    for step in range(STEPS):
        x, y = shard(step, rank)

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            total = torch.zeros(())
            for number in range(pieces):
                with nullcontext() if number == pieces - 1 else wrapper.no_sync():
                    part = slice(number * len(x) // pieces, (number + 1) * len(x) // pieces)
                    loss = functional.cross_entropy(wrapper(x[part]), y[part]) / pieces
                    loss.backward()
                total += loss.detach()
            return total

        optimizer.step(closure)
        history.append(weights_of(wrapper))
    return {"weights": torch.stack(history), "averaged": sum(averaged)}


def broken(sync: str, rank: int) -> dict[str, Any]:
    """A first process whose gradient is infinite: nobody steps, and nobody waits for ever."""
    model = build()
    wrapper = DistributedDataParallel(model)
    optimizer = an.SAM(sgd(model), wrapper, sync=sync)
    before = weights_of(model)
    x, y = shard(0, rank)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step(closure_of(optimizer, wrapper, x * (math.inf if rank == 0 else 1), y))
    unmoved = torch.equal(weights_of(model), before)
    optimizer.step(closure_of(optimizer, wrapper, x, y))
    return {
        "unmoved": unmoved,
        "warned": [str(item.message) for item in caught],
        "weights": weights_of(model),
    }


def by_hand(sync: str, rank: int) -> Tensor:
    """``first_step`` and ``second_step``, where the user leaves out the averaging."""
    wrapper = DistributedDataParallel(build())
    optimizer = an.SAM(sgd(wrapper), wrapper, rho=0.5, sync=sync)
    for step in range(STEPS):
        x, y = shard(step, rank)
        optimizer.zero_grad()
        with wrapper.no_sync() if sync == "worker" else nullcontext():
            functional.cross_entropy(wrapper(x), y).backward()
        optimizer.first_step()
        functional.cross_entropy(wrapper(x), y).backward()
        optimizer.second_step()
    return weights_of(wrapper)


def ranges_learned(rank: int | None, kind: Make) -> tuple[Tensor, Tensor]:
    """Weights and converter ranges after training through the periphery; of one process without rank."""
    model: nn.Module = build(LEARNED)
    inner = model
    if rank is not None:
        model = DistributedDataParallel(model)
    part = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
    an.calibrate_(model, [(x, y) for x, y in zip(X[:, part], Y[:, part], strict=True)])
    groups = [{"params": inner.parameters()}, {"params": an.learned_ranges(model).values(), "lr": 5.0}]
    base = torch.optim.SGD(groups, lr=0.1)
    optimizer: Any = kind(base, model)
    with an.periphery_in_training(model):
        for step in range(STEPS):
            optimizer.step(closure_of(optimizer, model, X[step, part], Y[step, part]))
    return weights_of(inner), torch.cat(list(an.ranges(model).values()))


def fitted(rank: int | None, recipe: str, sync: str = "all", *, norm: bool = False) -> dict[str, Any]:
    data = TensorDataset(X.reshape(-1, 9), Y.reshape(-1))
    model: nn.Module = build()
    if norm:
        model = nn.Sequential(nn.Linear(9, 9), nn.BatchNorm1d(9), nn.Dropout(0.3), nn.Linear(9, 5))
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(8))
    inner, told = model, []
    if rank is None:
        train: Any = DataLoader(data, batch_size=8)
        checks: Any = train
    else:
        model = DistributedDataParallel(model)
        sampler: Any = DistributedSampler(data, shuffle=False)
        train = DataLoader(data, batch_size=4, sampler=sampler)
        checks = train if recipe == "sgd" else DataLoader(data, batch_size=8)
    history = an.fit(
        model,
        train,
        recipe=recipe,
        epochs=2,
        lr=0.1,
        validation=checks,
        metric="loss",
        on_epoch=told.append,
        sync=sync,
    )
    state = {name: value.double().reshape(-1) for name, value in inner.state_dict().items()}
    return {"history": history.to_dict(), "told": len(told), "state": torch.cat(list(state.values()))}


def newer(rank: int | None, recipe: str, sync: str = "all") -> tuple[Tensor, list[float]]:
    """Weights and learned ranges after ``fit`` by a method that trains a twin, or through noisy outputs."""
    data = TensorDataset(X.reshape(-1, 9), Y.reshape(-1))
    model = an.parse_method(recipe).prepare(an.convert_to_digital(build()))
    model(X[0])
    trained: nn.Module = model
    train: Any = DataLoader(data, batch_size=8)
    if rank is not None:
        trained = DistributedDataParallel(model)
        train = DataLoader(data, batch_size=4, sampler=DistributedSampler(data, shuffle=False))
    history = an.fit(trained, train, recipe=recipe, epochs=1, lr=0.1, sync=sync)
    ranges = [step.detach().reshape(-1) for step in quantizer_ranges(model).values()]
    return torch.cat([weights_of(model), *ranges]), history.train_loss


def refused(rank: int) -> list[str]:
    messages = []
    model = build()
    with pytest.raises(MethodError) as caught:
        an.SAM(sgd(model), model, sync="worker")
    messages.append(str(caught.value))
    fixed = DistributedDataParallel(model, static_graph=True)
    with pytest.raises(MethodError) as static:
        an.ASAM(sgd(model), fixed, sync="worker")
    messages.append(str(static.value))
    an.GaussianNoise(sgd(model), fixed, noise=0.1, sync="worker")
    data = TensorDataset(X[0], Y[0])
    loader: Any = DataLoader(data, batch_size=2, sampler=DistributedSampler(data))
    with pytest.raises(ModelError) as lone:
        an.fit(model, loader, recipe="sgd", epochs=1, lr=0.1)
    messages.append(str(lone.value))
    with pytest.raises(an.AnalogNoiseError) as unequal:
        an.fit(DistributedDataParallel(model), loader, recipe="sgd", epochs=1 + rank, lr=0.1)
    messages.append(str(unequal.value))
    with pytest.raises(an.AnalogNoiseError) as apart:
        an.fit(
            DistributedDataParallel(model),
            loader,
            recipe="sam",
            epochs=1,
            lr=0.1,
            sync=("all", "worker")[rank],
        )
    messages.append(str(apart.value))
    bad = [(X[0] * (math.nan if rank == 1 and n == 1 else 1), Y[0]) for n in range(3)]
    for recipe in ("sgd", "sam"):
        with pytest.raises(TrainingError) as nan:
            an.fit(DistributedDataParallel(build()), bad, recipe=recipe, epochs=2, lr=0.1, sync="worker")
        messages.append(str(nan.value))
    return messages


def _worker(rank: int, folder: str) -> None:
    found: dict[str, Any] = {
        f"{name} {sync}": trained(name, sync, rank) for name in METHODS for sync in ("all", "worker")
    }
    for sync in ("all", "worker"):
        found[f"pieces {sync}"] = trained("samson", sync, rank, pieces=2)
        found[f"view {sync}"] = trained("rwp", sync, rank, view=True)
        found[f"broken {sync}"] = broken(sync, rank)
        found[f"by hand {sync}"] = by_hand(sync, rank)
    found["ranges plain"] = ranges_learned(rank, WrappedOptimizer)
    found["ranges sam"] = ranges_learned(rank, an.SAM)
    for recipe in ("sgd", "sam+clip+noise", "profile-noise"):
        found[f"fit {recipe}"] = fitted(rank, recipe)
    found["fit worker"] = fitted(rank, "sam+clip", "worker")
    found["fit norm"] = fitted(rank, "asam", norm=True)
    for recipe in (*QUANTIZING, *NOISY):
        for sync in ("all", "worker"):
            found[f"newer {recipe} {sync}"] = newer(rank, recipe, sync)
    found["refused"] = refused(rank)
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    in_two_processes(_worker, folder)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


@pytest.mark.parametrize("sync", ["all", "worker"])
@pytest.mark.parametrize("name", METHODS)
def test_replicas_stay_equal_bit_for_bit(ranks: list[dict[str, Any]], name: str, sync: str) -> None:
    one, other = (found[f"{name} {sync}"]["weights"] for found in ranks)
    assert torch.equal(one, other)
    assert (one[-1] - weights_of(build_for(name))).abs().max() > 0.05


@pytest.mark.parametrize("name", METHODS)
def test_synchronised_is_one_process_on_the_joint_batch(ranks: list[dict[str, Any]], name: str) -> None:
    make, options = METHODS[name]
    model = build_for(name)
    optimizer: Any = make(sgd(model), model, **options)
    for step in range(STEPS):
        optimizer.step(closure_of(optimizer, model, X[step], Y[step]))
        torch.testing.assert_close(
            ranks[0][f"{name} all"]["weights"][step], weights_of(model), rtol=1e-5, atol=2e-6
        )


def emulated(name: str) -> Tensor:
    """Each shard's gradient taken by an optimizer of its own in one process; the mean applied once."""
    make, options = METHODS[name]
    model = build_for(name)
    base = sgd(model)
    clip = options.get("clip")
    update: Any = an.Clipped(base, model, clip=clip) if clip else base
    for step in range(STEPS):
        mean = [torch.zeros_like(parameter) for parameter in model.parameters()]
        for rank in range(WORLD):
            twin = copy.deepcopy(model)
            seed = options.get("seed", 0)
            own = derive_seed("process", seed, rank) if rank else seed
            arguments = {key: value for key, value in options.items() if key not in ("seed", "clip")}

            def keep(twin: nn.Module = twin, mean: list[Tensor] = mean) -> None:
                for total, parameter in zip(mean, twin.parameters(), strict=True):
                    total += parameter.grad / WORLD

            taker: Any = make(sgd(twin), twin, **arguments, seed=own, before_step=keep)
            taker.steps = step
            taker.step(closure_of(taker, twin, *shard(step, rank)))
        for parameter, gradient in zip(model.parameters(), mean, strict=True):
            parameter.grad = gradient
        update.step()
    return weights_of(model)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "clip"])
def test_per_worker_is_each_shard_perturbed_on_its_own(ranks: list[dict[str, Any]], name: str) -> None:
    found = ranks[0][f"{name} worker"]["weights"][-1]
    torch.testing.assert_close(found, emulated(name), rtol=1e-5, atol=2e-6)
    assert (found - ranks[0][f"{name} all"]["weights"][-1]).abs().max() > 1e-4


@pytest.mark.parametrize("recipe", QUANTIZING)
def test_methods_that_quantize_are_one_process_on_the_joint_batch(ranks: list[Any], recipe: str) -> None:
    weights, losses = newer(None, recipe)
    for found in ranks:
        torch.testing.assert_close(found[f"newer {recipe} all"][0], weights, rtol=1e-5, atol=2e-6)
        assert found[f"newer {recipe} all"][1] == pytest.approx(losses, rel=1e-6)
    climbs = "sa" in recipe
    apart = (ranks[0][f"newer {recipe} worker"][0] - weights).abs().max()
    assert apart > 1e-4 if climbs else apart < 2e-6


@pytest.mark.parametrize("sync", ["all", "worker"])
@pytest.mark.parametrize("recipe", [*QUANTIZING, *NOISY])
def test_newer_methods_leave_replicas_equal(ranks: list[Any], recipe: str, sync: str) -> None:
    (one, losses), (other, same) = (found[f"newer {recipe} {sync}"] for found in ranks)
    assert torch.equal(one, other)
    assert losses == same


def test_a_climb_per_worker_communicates_once_a_step(ranks: list[dict[str, Any]]) -> None:
    averaged = {
        name: found["averaged"] / STEPS
        for name, found in ranks[1].items()
        if isinstance(found, dict) and "averaged" in found
    }
    assert averaged["sam all"] == averaged["asam all"] == averaged["rwp all"] == averaged["rwp worker"] == 2
    assert averaged["saq all"] == 2
    assert averaged["sam worker"] == averaged["samson worker"] == averaged["pieces worker"] == 1
    assert averaged["saq worker"] == 1
    assert averaged["noise all"] == averaged["noise worker"] == averaged["profile-noise worker"] == 1


@pytest.mark.parametrize("sync", ["all", "worker"])
def test_accumulated_gradients_and_buckets_that_are_views(ranks: list[dict[str, Any]], sync: str) -> None:
    for other, name in (("pieces", "samson"), ("view", "rwp")):
        found, expected = (ranks[0][f"{key} {sync}"]["weights"] for key in (other, name))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)
        assert torch.equal(found, ranks[1][f"{other} {sync}"]["weights"])


def test_two_steps_by_hand(ranks: list[dict[str, Any]]) -> None:
    for sync in ("all", "worker"):
        assert torch.equal(ranks[0][f"by hand {sync}"], ranks[1][f"by hand {sync}"])
    model = build()
    optimizer: Any = an.SAM(sgd(model), model, rho=0.5)
    for step in range(STEPS):
        optimizer.step(closure_of(optimizer, model, X[step], Y[step]))
    torch.testing.assert_close(ranks[0]["by hand all"], weights_of(model), rtol=1e-5, atol=2e-6)
    assert (ranks[0]["by hand worker"] - weights_of(model)).abs().max() > 1e-4


@pytest.mark.parametrize("sync", ["all", "worker"])
def test_an_infinite_gradient_of_one_process_stops_the_step_in_all(
    ranks: list[dict[str, Any]], sync: str
) -> None:
    for found in ranks:
        assert found[f"broken {sync}"]["unmoved"]
        (text,) = found[f"broken {sync}"]["warned"]
        assert text.startswith("SAM, step 0: the norm of the gradient is nan")
    one, other = (found[f"broken {sync}"]["weights"] for found in ranks)
    assert torch.equal(one, other)
    assert torch.isfinite(one).all()


@pytest.mark.parametrize(("name", "kind"), [("plain", WrappedOptimizer), ("sam", an.SAM)])
def test_learned_ranges_are_those_of_the_joint_batch(
    ranks: list[dict[str, Any]], name: str, kind: Make
) -> None:
    (weights, learned), other = (found[f"ranges {name}"] for found in ranks)
    assert torch.equal(weights, other[0])
    assert torch.equal(learned, other[1])
    expected = ranges_learned(None, kind)
    # A value that lands on the other side of a rounding step moves the gradient by that step.
    torch.testing.assert_close((weights, learned), expected, rtol=1e-3, atol=1e-3)
    calibrated = an.calibrate_(build(LEARNED), [(x, None) for x in X])
    assert (torch.cat(list(an.ranges(calibrated).values())) - learned).abs().max() > 0.01


@pytest.mark.parametrize("recipe", ["sgd", "sam+clip+noise", "profile-noise"])
def test_fit_in_two_processes_is_fit_in_one(ranks: list[dict[str, Any]], recipe: str) -> None:
    one, other = (found[f"fit {recipe}"] for found in ranks)
    assert one["history"] == other["history"]
    assert torch.equal(one["state"], other["state"])
    assert (one["told"], other["told"]) == (2, 0)
    expected = fitted(None, recipe)
    torch.testing.assert_close(one["state"], expected["state"], rtol=1e-5, atol=2e-6)
    for column in ("train_loss", "validation", "gradients"):
        assert one["history"][column] == pytest.approx(expected["history"][column], rel=1e-5)


def test_fit_shares_running_statistics_and_takes_a_perturbation_per_worker(
    ranks: list[dict[str, Any]],
) -> None:
    for name in ("fit norm", "fit worker"):
        one, other = (found[name] for found in ranks)
        assert one["history"] == other["history"]
        assert torch.equal(one["state"], other["state"])


def test_what_cannot_work_is_refused_in_every_process(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        alone, static, lone, unequal, apart, plain, climbing = found["refused"]
        assert "sync='worker' needs the model as wrapped in DistributedDataParallel" in alone
        assert "ASAM: sync='worker' leaves out the averaging of the first pass, which Distr" in static
        assert "make it without static_graph, or take sync='all'" in static
        assert "split over 2 processes" in lone
        assert "DistributedDataParallel(model)" in lone
        assert "epochs: " in unequal
        assert "has sync: 'all', and process" in apart or "has sync: 'worker', and process" in apart
        assert "'sgd' broke down in epoch 1, step 2: the loss became nan" in plain
        assert "'sam' broke down in epoch 1, step 2: the norm of the gradient is nan" in climbing


def test_one_process_takes_either_choice_to_the_last_bit() -> None:
    found = []
    for sync in ("all", "worker"):
        model = build()
        optimizer: Any = an.SAM(sgd(model), model, noise=0.05, sync=sync)
        optimizer.step(closure_of(optimizer, model, X[0], Y[0]))
        found.append(weights_of(model))
    assert torch.equal(*found)
    with pytest.raises(MethodError, match="SAM: sync must be 'all' or 'worker', found 'rank'"):
        an.SAM(sgd(model), model, sync="rank")
