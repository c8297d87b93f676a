"""A model that is sharded over processes (FSDP2) trains sharded and computes on whole chips."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import analognoise as an
from analognoise.errors import ConversionError, MethodError, ModelError, StaleChipWarning
from tests.gloo import in_two_processes

X = torch.randn(4, 9, generator=torch.Generator().manual_seed(1))


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(9, 15), nn.ReLU(), nn.Linear(15, 5))


def shard(model: nn.Sequential) -> None:
    for module in (model[0], model[2], model):
        fully_shard(module, mesh=init_device_mesh("cpu", (2,)))


def train(model: nn.Module, inputs: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()


def _worker(rank: int, folder: str) -> None:
    found = {}
    for order in ("sharded", "converted"):
        model = build()
        if order == "sharded":
            shard(model)
            model = an.convert_to_analog(model, "pcm-ibm", inplace=True)
        else:
            model = an.convert_to_analog(model, "pcm-ibm")
            shard(model)
        train(model, X[2 * rank : 2 * rank + 2])
        an.program_(model, seed=3)
        an.save_chip(model, f"{folder}/{order}{rank}.safetensors")
        model.eval()
        with warnings.catch_warnings():
            warnings.simplefilter("error", StaleChipWarning)
            an.drift_to_(model, "1d")
            found[order] = model(X).detach()
        assert model[0].weight.to_local().shape[0] < 15
        with pytest.raises(ModelError, match=r"'0.weight' is sharded over processes"):
            an.evaluate_drift(model, [(X, torch.zeros(4).long())], chips=2)
        if order == "converted":
            with pytest.raises(ConversionError, match="layer '0' is a FSDPAnalogLinear now"):
                an.convert_to_digital(model, inplace=True)
        with torch.no_grad():
            model[2].weight.to_local().mul_(2)
        with pytest.warns(StaleChipWarning, match="layer '2'"):
            an.drift_to_(model, "1d")
    half = an.convert_to_analog(build(), "pcm-ibm")
    for module in (half[0], half[2], half):
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
        fully_shard(module, mesh=init_device_mesh("cpu", (2,)), mp_policy=policy)
    assert an.program_(half).eval()(X).dtype == torch.bfloat16
    torch.save(found, f"{folder}/{rank}.pt")


def test_fully_sharded_in_both_orders(tmp_path: Path) -> None:
    in_two_processes(_worker, tmp_path)
    model = build()
    train(model, X)
    whole = an.drift_to_(an.program_(an.convert_to_analog(model, "pcm-ibm"), seed=3), "1d").eval()
    expected = whole(X).detach()
    for rank in (0, 1):
        for order, found in torch.load(tmp_path / f"{rank}.pt", weights_only=True).items():
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4, msg=order)
    # Both processes hold the same chip.
    one, other = (load_file(tmp_path / f"sharded{rank}.safetensors") for rank in (0, 1))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


METHODS = [an.SAM, an.ASAM, an.SAMSON, an.GaussianNoise, an.Clipped, an.RandomWeightPerturbation]


def test_methods_refuse_sharded_parameters_by_name(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = build()
        fully_shard(model[2], mesh=init_device_mesh("cpu", (1,)))
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        for method in METHODS:
            with pytest.raises(
                MethodError, match=rf"^{method.__name__}: parameter '2\.weight' is sharded over"
            ):
                method(base, model)
    finally:
        dist.destroy_process_group()


def test_methods_refuse_the_older_fsdp_by_name() -> None:
    kind = type("FullyShardedDataParallel", (nn.Sequential,), {})
    model = nn.Sequential(kind(nn.Linear(3, 2)))
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        MethodError, match=r"^SAM: module '0' is sharded over processes .*DistributedDataParallel"
    ):
        an.SAM(base, model)
