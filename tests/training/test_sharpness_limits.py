"""What a step of two passes holds in memory, in which precision it computes, and what it refuses."""

from __future__ import annotations

import math
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import analognoise.training as training
from analognoise import allocator
from analognoise.errors import MethodError
from analognoise.training import ASAM, SAM, SAMSON
from tests.training.sharpness import (
    METHODS,
    Net,
    _one_thread,  # noqa: F401
    closure_of,
)


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
