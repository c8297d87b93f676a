"""Which data an evaluation takes: the same batches in every pass, or a refusal that says what to change."""

from __future__ import annotations

import pickle
import random
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from analognoise.batches import same_content
from analognoise.errors import DataError
from analognoise.evaluation.data import EvaluationData, tensors, to_device
from analognoise.pool.travel import dumps

CPU = torch.device("cpu")
X = torch.arange(20.0).view(10, 2)
Y = torch.arange(10) % 3
SET = TensorDataset(X, Y)
OWN = np.random.default_rng(0)


class Transformed(Dataset):
    """Samples with a transform applied at each look."""

    def __init__(self, transform: Callable[[Tensor], Tensor]) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(X[index]), Y[index]


class Streamed(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(X, Y, strict=True)


class Shared(Streamed):
    """Each worker reads its own part."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        yield from list(super().__iter__())[worker.id :: worker.num_workers]


class Listed(torch.utils.data.Sampler):
    """Gives the indices, or batches of them, that it was given."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __iter__(self) -> Iterator:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class Again:
    """An iterable that gives another list at each pass."""

    def __init__(self, *passes: list) -> None:
        self.passes, self.number = passes, 0

    def __iter__(self) -> Iterator:
        self.number += 1
        return iter(self.passes[min(self.number, len(self.passes)) - 1])


def equal(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


@pytest.mark.parametrize("cache_bytes", [1 << 20, 0])
@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(SET, batch_size=4),
        DataLoader(SET, batch_sampler=BatchSampler(SequentialSampler(SET), 4, drop_last=False)),
        DataLoader(Streamed(), batch_size=4),
        DataLoader(SET, batch_size=5, drop_last=True),  # drops nothing
        DataLoader(SET, batch_sampler=Listed([9, 0], [2, 1, 3], [4, 5, 6, 7, 8])),  # each sample once
        DataLoader(SET, sampler=DistributedSampler(SET, num_replicas=1, rank=0, shuffle=False)),
        [(X[:4], Y[:4]), (X[4:], Y[4:])],
        Again([(X[:4], Y[:4]), (X[4:], Y[4:])]),
    ],
)
def test_every_pass_gives_the_loaders_batches(loader: Any, cache_bytes: int) -> None:
    data = EvaluationData(loader, CPU, cache_bytes)
    assert data.cached == (cache_bytes > 0)
    for _ in range(3):
        batches = list(data)
        assert len(batches) == data.batches
        assert all(map(equal, batches, loader))


def test_workers_change_nothing() -> None:
    plain, workers = (EvaluationData(DataLoader(SET, batch_size=4, num_workers=n), CPU) for n in (0, 1))
    assert plain.fingerprint == workers.fingerprint


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (DataLoader(SET, batch_size=4, shuffle=True), "shuffles.*RandomSampler.*shuffle=False"),
        (DataLoader(SET, sampler=SubsetRandomSampler(range(8))), "shuffles.*SubsetRandomSampler"),
        (DataLoader(SET, sampler=WeightedRandomSampler(torch.ones(10), 10)), "WeightedRandomSampler"),
        (
            DataLoader(SET, batch_sampler=BatchSampler(RandomSampler(SET), 4, drop_last=False)),
            "shuffles.*RandomSampler",
        ),
        (DataLoader(SET, batch_size=4, drop_last=True), "leaves out 2 of 10 samples.*drop_last=False"),
        (
            DataLoader(SET, batch_sampler=BatchSampler(SequentialSampler(SET), 3, drop_last=True)),
            "leaves out 1 of 10",
        ),
        (DataLoader(Streamed(), batch_size=4, drop_last=True), "may leave out samples"),
        (
            DataLoader(SET, sampler=Listed(*range(5)), batch_size=4),
            "a Listed, leaves out 5 of 10 samples: .*Subset",
        ),
        (DataLoader(SET, sampler=Listed(*range(10), 0), batch_size=4), "a Listed, repeats 1: "),
        (
            DataLoader(SET, sampler=Listed(*range(9), 0), batch_size=4),
            "leaves out 1 of 10 samples and repeats 1",
        ),
        (DataLoader(SET, sampler=Listed(0, 1), batch_size=None), "leaves out 8 of 10"),
        (DataLoader(SET, batch_sampler=Listed([0, 1], [2, 3])), "a Listed, leaves out 6 of 10"),
        (
            DataLoader(SET, sampler=DistributedSampler(SET, num_replicas=2, rank=0, shuffle=False)),
            "a DistributedSampler, leaves out 5 of 10",
        ),
        (
            DataLoader(Streamed(), batch_size=4, num_workers=2),
            "every batch 2 times: each of its 2 workers .*get_worker_info",
        ),
        (SET, "TensorDataset.*DataLoader"),
        (iter([(X, Y)]), "read only once"),
        (((x, y) for x, y in [(X, Y)]), "generator that can be read only once"),
        ([], "no batch"),
        (DataLoader(TensorDataset(X[:0], Y[:0])), "no batch"),
        ({"x": X}, "dict"),
        (X, "Tensor"),
        (None, "NoneType"),
        (7, "int"),
        (Again([(X, Y), (X, Y)], [(X, Y)]), "first pass .* gave 2 batches and a second 1"),
        (Again([(X, Y)], [(X, Y), (X, Y)]), "first pass .* gave 1 batches and a second 2"),
        (Again([(X, Y), (X, Y)], [(X, Y), (X + 1, Y)]), "batch 1 .* differs between two passes"),
        (Again([(X, Y)], [(X.double(), Y)]), "batch 0 .* differs"),
        (Again([(X, Y)], [(X.view(2, 10), Y)]), "batch 0 .* differs"),
        ([(X, lambda: 0)], "batch 0 holds a function"),
    ],
)
def test_other_data_is_refused(loader: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        EvaluationData(loader, CPU)


def test_a_stream_that_workers_share_is_taken() -> None:
    data = EvaluationData(DataLoader(Shared(), batch_size=3, num_workers=2), CPU)
    assert sorted(int(x) for batch in data for x in batch[0][:, 0]) == X[:, 0].tolist()


@pytest.mark.parametrize(
    "noise",
    [
        lambda x: x + torch.rand(()),
        lambda x: x + random.random(),
        lambda x: x + np.random.random(),
        lambda x: x + OWN.random(),
    ],
)
def test_random_augmentation_is_found_whatever_draws_it(noise: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(DataError, match="shuffles or augments at random"):
        EvaluationData(DataLoader(Transformed(noise), batch_size=4), CPU)
    assert EvaluationData(DataLoader(Transformed(lambda x: x * 2), batch_size=4), CPU).batches == 3


def test_a_loader_that_shuffles_out_of_sight_is_found() -> None:
    class Sampler(torch.utils.data.Sampler):
        def __iter__(self) -> Iterator[int]:
            return iter(torch.randperm(10).tolist())

        def __len__(self) -> int:
            return 10

    with pytest.raises(DataError, match="differs between two passes"):
        EvaluationData(DataLoader(SET, sampler=Sampler(), batch_size=4), CPU)


def test_uncached_data_that_ends_early_is_found() -> None:
    data = EvaluationData(Again([(X, Y)] * 3, [(X, Y)] * 3, [(X, Y)] * 2, [(X, Y)] * 4), CPU, cache_bytes=0)
    with pytest.raises(DataError, match="gave 2 batches, the first one 3"):
        list(data)
    with pytest.raises(DataError, match="gave more batches, the first one 3"):
        list(data)


def test_fingerprint_tells_data_apart() -> None:
    batches = [(X[:5], Y[:5]), (X[5:], Y[5:])]
    changed = X.clone()
    changed[9, 1] += 1e-5
    others = [
        [(changed[:5], Y[:5]), (changed[5:], Y[5:])],
        [(X[:5], Y[:5]), (X[5:], Y[5:] + 1)],
        [(X[:4], Y[:4]), (X[4:], Y[4:])],
        batches[::-1],
        batches[:1],
        [(X[:5], Y[:5].int()), (X[5:], Y[5:])],
        [{"x": x, "y": y} for x, y in batches],
        [{"input": x, "y": y} for x, y in batches],
    ]
    prints = [EvaluationData(loader, CPU).fingerprint for loader in [batches, *others]]
    assert len(set(prints)) == len(prints)
    assert EvaluationData([(X[:5].clone(), Y[:5]), (X[5:], Y[5:])], CPU).fingerprint == prints[0]


def test_generators_are_left_as_found() -> None:
    own = torch.Generator().manual_seed(3)
    loader = DataLoader(SET, batch_size=4, generator=own)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), own.get_state()
    data = EvaluationData(loader, CPU, cache_bytes=0)
    assert torch.equal(torch.get_rng_state(), states[0])
    list(data)
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
    assert torch.equal(own.get_state(), states[3])


def test_a_list_s_batches_are_kept_as_they_are_and_a_loader_s_are_copied() -> None:
    data = EvaluationData([(X, Y)], CPU)
    assert [own.data_ptr() for own in next(iter(data))] == [X.data_ptr(), Y.data_ptr()]
    next(data.copies())[0].fill_(70)
    assert not (X == 70).any()

    class OneBuffer:
        """Fills the same memory with one batch after the other."""

        room = torch.empty(2, *X.shape[1:])

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for x, y in zip(X.split(2), Y.split(2), strict=True):
                yield self.room[: len(x)].copy_(x), y

    cached = list(EvaluationData(OneBuffer(), CPU))
    assert torch.equal(torch.cat([x for x, _ in cached]), X)


class Graph:
    """A batch that moves itself, as those of torch_geometric do."""

    def __init__(self) -> None:
        self.places: list[str] = []

    def clone(self) -> Graph:
        return Graph()

    def to(self, device: torch.device) -> Graph:
        self.places.append(device.type)
        return self


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_what_a_list_holds_is_copied_where_it_cannot_be_used_as_it_is(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X.numpy())
    mapped, graph = np.load(tmp_path / "x.npy", mmap_mode="r"), Graph()  # a write to it would end the process
    gaps = torch.randn(10, 4)[:, ::2]
    first, second, third = next(iter(EvaluationData([(mapped, gaps, graph)], CPU)))
    first.fill_(7)
    assert np.array_equal(mapped, X)
    assert second.is_contiguous()
    assert torch.equal(second, gaps)
    assert third is not graph
    assert not graph.places


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0])
def test_slices_of_one_tensor_travel_once(cache_bytes: int) -> None:
    x, y = torch.randn(1000, 64), torch.arange(1000)
    batches = [(x[start : start + 50], {"y": y[start : start + 50]}) for start in range(0, 1000, 50)]
    data = EvaluationData(batches, CPU, cache_bytes)
    sent = dumps(data)
    assert len(sent) < 1.2 * (x.nbytes + y.nbytes)
    again = pickle.loads(sent)
    assert all(equal(one, [two[0], two[1]["y"]]) for one, two in zip(again, batches, strict=True))
    assert again.fingerprint == data.fingerprint


@dataclass
class Sample:
    x: torch.Tensor
    rest: dict[str, torch.Tensor]


class Slotted:
    __slots__ = ("rest", "x")

    def __init__(self, x: torch.Tensor, rest: dict[str, torch.Tensor]) -> None:
        self.x, self.rest = x, rest


@pytest.mark.parametrize("kind", [Sample, Slotted])
@pytest.mark.parametrize("cache_bytes", [1 << 30, 0])
def test_slices_in_objects_are_copied_and_travel_once(kind: Callable, cache_bytes: int) -> None:
    x, y = torch.randn(1000, 64), torch.arange(1000)
    parts = [slice(start, start + 50) for start in range(0, 1000, 50)]
    data = EvaluationData([kind(x[part], {"y": y[part]}) for part in parts], CPU, cache_bytes)
    if cache_bytes:
        assert all(batch.x.untyped_storage().nbytes() == 50 * 64 * 4 for batch in data)
    sent = dumps(data)
    assert len(sent) < 1.3 * (x.nbytes + y.nbytes)
    again = list(pickle.loads(sent))
    assert torch.equal(torch.cat([batch.x for batch in again]), x)
    assert torch.equal(torch.cat([batch.rest["y"] for batch in again]), y)


def test_objects_are_known_by_what_their_tensors_hold() -> None:
    x = torch.randn(20, 3)
    one, other = Sample(x[:10], {"y": x[10:]}), Sample(x[:10].clone(), {"y": x[10:].clone()})
    assert same_content(one, other)
    assert EvaluationData([one], CPU).fingerprint == EvaluationData([other], CPU).fingerprint
    other.rest["y"][3, 1] += 1
    assert not same_content(one, other)
    assert EvaluationData([one], CPU).fingerprint != EvaluationData([other], CPU).fingerprint


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0])
def test_a_batch_that_was_written_into_is_named(cache_bytes: int) -> None:
    x = X.clone()
    data = EvaluationData([(x[:4], Y[:4]), (x[4:], Y[4:])], CPU, cache_bytes)
    for _, (part, _) in zip(range(2), data, strict=False):
        part.clamp_(max=20)  # changes nothing
    given = iter(data)
    next(given)
    next(given)[0].mul_(2)
    with pytest.raises(DataError, match="batch 1 of the data was changed by a pass"):
        next(given)


def test_conjugate_views_are_data_like_any() -> None:
    values = torch.randn(4, 3, dtype=torch.complex64)
    assert EvaluationData([values.conj()], CPU).fingerprint == (
        EvaluationData([values.conj().resolve_conj()], CPU).fingerprint
    )


def test_nested_batches_move_as_a_whole() -> None:
    Pair = namedtuple("Pair", "x y")
    batch = {"a": [X, (Y, "text")], "b": Pair(X.numpy(), 3), "c": None}
    moved = to_device(batch, torch.device("meta"))
    assert [t.device.type for t in tensors(moved)] == ["meta"] * 3
    assert moved["a"][1][1] == "text"
    assert isinstance(moved["b"], Pair)
    assert moved["b"].y == 3
    assert moved["c"] is None
