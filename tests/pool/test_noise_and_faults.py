"""Noise on computations and faults in memories, measured by workers: the rows of one process alone."""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from torch import Tensor, nn

import analognoise as an
from analognoise.errors import DataError, WorkerError
from analognoise.pool import WorkerProcesses
from tests.pool.deadly import Deadly

# Workers cannot import this module: what it defines goes to them by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
DATA = [
    (torch.randn(40, 6, generator=torch.Generator().manual_seed(seed)), torch.arange(40) % 3)
    for seed in (1, 2)
]
LEVELS = (0.1, 1.0)
RATES = (1e-2, 1e-1)
pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    """Computes with a buffer that it writes into whenever it is called, and can draw from the global
    generator.
    """

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.first, self.last, self.noise = nn.Linear(6, 16), nn.Linear(16, 3), noise
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = x - 0.3 * self.calls
        if self.noise:
            x = x + self.noise * torch.randn_like(x)
        return self.last(torch.relu(self.first(x)))


def network(noise: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(noise).eval()


def on_a_chip() -> nn.Module:
    profile = an.load_profile("pcm-ibm").replace({"periphery": {"out_noise": 0.05}})
    return an.drift_to_(an.program_(an.convert_to_analog(network(), profile), seed=3), "1d").eval()


def fused() -> nn.Module:
    """With a fast path of torch's that is switched off while there is noise on its layers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
        return nn.Sequential(nn.Unflatten(1, (3, 2)), nn.Flatten(), layer, nn.Linear(6, 3)).eval()


def noise(model: nn.Module | None = None, **options: Any) -> an.NoiseReport:
    options = {"sigmas": LEVELS, "repeats": 5, "per_layer": True, "fluctuating": True} | options
    return an.evaluate_noise(model or network(), options.pop("data", DATA), **options)


def faults(model: nn.Module | None = None, **options: Any) -> an.FaultReport:
    options = {"rates": RATES, "chips": 7} | options
    return an.evaluate_faults(model or an.quantize(network(), 4), options.pop("data", DATA), **options)


def forking() -> Executor:
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))


CASES: dict[str, tuple[Callable[..., Any], Callable[[], nn.Module], dict[str, Any]]] = {
    "noise": (noise, network, {}),
    "noise, a forward that draws": (
        noise,
        lambda: network(0.3),
        {"metric": "loss", "kind": "multiplicative"},
    ),
    "noise on a chip": (noise, on_a_chip, {"kind": "mixed", "multiplicative": 0.2}),
    "noise in fused layers": (noise, fused, {"metric": "loss"}),
    "faults": (faults, lambda: an.quantize(network(), 4), {}),
    "faults, a forward that draws": (faults, lambda: an.quantize(network(0.3), 4), {"metric": "loss"}),
}


@pytest.mark.parametrize("make", [forking, lambda: ThreadPoolExecutor(3)], ids=["processes", "threads"])
@pytest.mark.parametrize("case", CASES)
def test_rows_and_file_are_those_of_one_process(
    make: Callable[[], Executor], case: str, tmp_path: Path
) -> None:
    evaluate, build, options = CASES[case]
    model = build()
    alone = evaluate(model, out=tmp_path / "alone.csv", **options)
    state, before = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    with make() as executor:
        shared = evaluate(model, out=tmp_path / "shared.csv", executor=executor, **options)
        assert executor.submit(os.getpid).result()  # it is left open
    assert (shared, shared.reused) == (alone, 0)
    assert len({row.value for row in shared.rows}) > 3
    written = (tmp_path / "alone.csv").read_bytes()
    assert (tmp_path / "shared.csv").read_bytes() == written
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled()
    # What is there is gone on with by workers, too.
    lines = written.splitlines(keepends=True)
    (tmp_path / "shared.csv").write_bytes(b"".join(lines[:7]))
    with make() as executor:
        rest = evaluate(model, out=tmp_path / "shared.csv", executor=executor, **options)
    assert (rest.rows, rest.reused) == (alone.rows, 6)
    assert (tmp_path / "shared.csv").read_bytes() == written


def test_rows_are_appended_while_others_are_measured(tmp_path: Path) -> None:
    path, seen = tmp_path / "rows.csv", []

    class Counted(ThreadPoolExecutor):
        def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Any:
            seen.append(path.read_bytes().count(b"\n") if path.exists() else 0)
            return super().submit(function, *arguments, **named)

    with Counted(1) as executor:
        faults(out=path, chips=40, executor=executor)
    assert path.read_bytes().count(b"\n") == 81
    assert sorted(seen) == seen
    assert max(seen) > 20  # of the last blocks, two at a time


@pytest.mark.parametrize("evaluate", [noise, faults])
def test_what_a_killed_worker_had_is_done_again(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    metric = Deadly(tmp_path, 4, 1)
    alone = evaluate(metric=metric, out=tmp_path / "alone.csv")
    with WorkerProcesses(2) as executor:
        shared = evaluate(metric=metric, out=tmp_path / "shared.csv", executor=executor)
    assert (tmp_path / "death-0").exists()
    assert shared.rows == alone.rows
    assert (tmp_path / "shared.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()


class Broken(nn.Module):
    """Computes as a network does, and gives NaN from some forward of a worker on."""

    def __init__(self, quantized: bool) -> None:
        super().__init__()
        self.net = an.quantize(network(), 4) if quantized else network()
        self.home, self.count = os.getpid(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += os.getpid() != self.home
        return self.net(x) * (float("nan") if self.count > 3 else 1.0)


@pytest.mark.parametrize(
    ("evaluate", "where"),
    [(noise, r"repeat \d at sigma 0?\.?1: batch 1"), (faults, r"chip \d at rate 0\.\d+: ")],
)
def test_an_error_of_a_worker_says_where_it_came_up(
    evaluate: Callable[..., Any], where: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    with forking() as executor, pytest.raises(DataError, match=rf"{where}.*holds NaN"):
        evaluate(Broken(evaluate is faults), out=path, executor=executor)
    lines = path.read_text().splitlines() if path.exists() else []
    assert all(re.match(r"[0-9a-f]{16},", line) for line in lines[1:])


@pytest.mark.parametrize("evaluate", [noise, faults])
def test_executors_that_cannot_work_are_told_before_anything_is(
    evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    with pytest.raises(DataError, match=r"executor is an int: give a concurrent\.futures\.Executor"):
        evaluate(out=path, executor=4)
    closed = ThreadPoolExecutor(1)
    closed.shutdown()
    with pytest.raises(WorkerError, match="the ThreadPoolExecutor takes no tasks"):
        evaluate(out=path, executor=closed)
    lock = threading.Lock()

    def forward(model: nn.Module, batch: Any) -> Tensor:
        with lock:
            return model(batch[0])

    with (
        ThreadPoolExecutor(1) as executor,
        pytest.raises(DataError, match="the forward cannot be sent to wor"),
    ):
        evaluate(out=path, executor=executor, forward=forward)
    assert not path.exists()


@pytest.mark.parametrize("evaluate", [noise, faults])
def test_contexts_that_workers_would_not_compute_in_are_refused(
    evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    model = an.quantize(network(), 4) if evaluate is faults else network()
    path = tmp_path / "rows.csv"
    options: dict[str, Any] = {"chips": 2} if evaluate is faults else {"layers": ["first"], "repeats": 2}
    with ThreadPoolExecutor(1) as executor:
        with (
            an.computing_noise(model, 1.0, layers=["last"]),
            pytest.raises(DataError, match=r"inside a computing_noise, which does not go along to workers"),
        ):
            evaluate(model, executor=executor, out=path, **options)
        with (
            torch.autocast("cpu", dtype=torch.bfloat16),
            pytest.raises(DataError, match=r"torch\.autocast does not go along to workers: enter it in"),
        ):
            evaluate(model, executor=executor, out=path, **options)
        assert not path.exists()
        # What a forward enters goes along.
        alone, shared = (
            evaluate(model, metric="loss", forward=in_bfloat16, executor=some, **options)
            for some in (None, executor)
        )
    assert alone == shared
    assert alone.rows != evaluate(model, metric="loss", **options).rows


def in_bfloat16(model: nn.Module, batch: Any) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model(batch[0])
