"""Chips measured by workers: the rows of one process alone, whatever dies on the way."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from torch import Tensor, nn

from analognoise.conversion import convert_to_analog
from analognoise.errors import DataError, ResultsError, WorkerError
from analognoise.evaluation.blocks import split
from analognoise.evaluation.montecarlo import evaluate_drift
from analognoise.evaluation.sensitivity import layer_sensitivity
from analognoise.pool import WorkerProcesses, connected, run_jobs
from analognoise.pool import run as pool_run
from analognoise.pool.processes import _work
from analognoise.pool.travel import perform
from analognoise.pool.warned import this_process
from tests.pool.deadly import Deadly

# Workers cannot import this module: what it defines goes to them by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
TIMES = (1.0, 86400.0)
pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    """Computes with a buffer that it writes into whenever it is called, and can draw from the global
    generator.
    """

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Linear(16, 5)
        self.noise = noise
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = x - 0.1 * self.calls
        if self.noise:
            x = x + self.noise * torch.randn_like(x)
        return self.last(torch.relu(self.norm(self.first(x))))


def network(noise: float = 0.0, devices: str = "pcm-ibm") -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return convert_to_analog(Net(noise).eval(), devices)


@pytest.fixture(scope="module")
def batches() -> list[tuple[Tensor, Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        x = torch.randn(90, 12)
    return list(zip(x.split(40), (x[:, :5].argmax(1)).split(40), strict=True))


def forking() -> Executor:
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))


def measured(model: nn.Module, batches: Any, path: Path | None = None, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return evaluate_drift(model, batches, TIMES, chips=options.pop("chips", 7), out=path, **options)


@pytest.mark.parametrize("make", [forking, lambda: ThreadPoolExecutor(3)], ids=["processes", "threads"])
@pytest.mark.parametrize("case", ["plain", "draws", "recalibrated", "loss", "stratified"])
def test_rows_and_file_are_those_of_one_process(
    make: Callable[[], Executor], case: str, batches: Any, tmp_path: Path
) -> None:
    model = network(0.3 if case == "draws" else 0.0)
    options: dict[str, Any] = {"metric": "loss"} if case == "loss" else {}
    if case == "stratified":
        options = {"sampling": "stratified"}
    if case == "recalibrated":
        with torch.random.fork_rng():
            options = {"recalibrate": "affine", "calibration": [torch.randn(30, 12)]}
    alone = measured(model, batches, tmp_path / "alone.csv", **options)
    state, before = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    with make() as executor:
        shared = measured(model, batches, tmp_path / "shared.csv", executor=executor, **options)
        assert executor.submit(torch.get_num_threads).result() == 1
    assert shared.rows == alone.rows
    assert shared.run_id == alone.run_id
    assert (tmp_path / "shared.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # More chips than before are added, by workers too.
    with make() as executor:
        measured(model, batches, tmp_path / "shared.csv", chips=9, executor=executor, **options)
    measured(model, batches, tmp_path / "alone.csv", chips=9, **options)
    assert (tmp_path / "shared.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()


def test_what_a_killed_worker_had_is_done_again(batches: Any, tmp_path: Path) -> None:
    model, metric = network(), Deadly(tmp_path, 4, 1)
    alone = measured(model, batches, tmp_path / "alone.csv", metric=metric)
    with WorkerProcesses(2) as executor:
        shared = measured(model, batches, tmp_path / "shared.csv", metric=metric, executor=executor)
    assert len(list(tmp_path.glob("death-*"))) == 1
    assert shared.rows == alone.rows
    assert (tmp_path / "shared.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
    # Seven blocks and two or three processes: once each. (One more would be the parent's check.)
    processes = {file.name.split("-")[1] for file in tmp_path.glob("unpickled-*")}
    assert len(processes) <= 3


def test_a_pool_that_broke_is_replaced(batches: Any, tmp_path: Path) -> None:
    model, metric = network(), Deadly(tmp_path, 0, 1)
    alone = measured(model, batches, metric=metric)
    with forking() as executor, pytest.warns(UserWarning, match=r"which broke it .* 2 worker processes of"):
        shared = evaluate_drift(model, batches, TIMES, chips=7, metric=metric, executor=executor)
    assert shared.rows == alone.rows


def test_a_task_that_kills_every_worker_is_named_and_what_was_done_is_kept(
    batches: Any, tmp_path: Path
) -> None:
    model, metric = network(), Deadly(tmp_path, 0, 100)
    path = tmp_path / "rows.csv"
    with (
        WorkerProcesses(1) as executor,
        pytest.raises(WorkerError, match=r"during: chips? 0 .*of pcm-ibm; it was tried 3 times.*goes on"),
    ):
        measured(model, batches, path, metric=metric, executor=executor)
    # Two tasks are with one worker at a time: the first is given up at its third death, and its neighbour has
    # died twice by then, or a third time while the pool was ended.
    assert 5 <= len(list(tmp_path.glob("death-*"))) <= 6
    assert not path.exists()  # not even chip 0 was complete
    alone = measured(model, batches, path, metric=metric)
    assert alone.rows == measured(model, batches, metric=metric).rows


class Odd(Exception):
    """An exception that pickle cannot bring back."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


def nan_later(output: Tensor, batch: Any) -> tuple[Tensor, int]:
    parent = multiprocessing.parent_process()
    return output.sum() * (float("nan") if parent is not None else 1), len(output)


def odd_later(model: nn.Module, batch: Any) -> Tensor:
    if multiprocessing.parent_process() is not None:
        raise Odd(1, 2)
    return model(batch[0])


def test_errors_in_workers_are_told_here(batches: Any) -> None:
    with forking() as executor, pytest.raises(DataError, match=r"chip \d at 1 \w+: .*nan"):
        measured(network(), batches, metric=nan_later, executor=executor)
    with forking() as executor, pytest.raises(WorkerError, match="Odd: 1 and 2"):
        measured(network(), batches, forward=odd_later, executor=executor)


class Disconnected(Executor):
    """As Dask's, whose client's error is no RuntimeError."""

    def submit(self, *_: Any, **__: Any) -> Any:
        raise Exception("Client is closed")


class NoFutures(Executor):
    def submit(self, *_: Any, **__: Any) -> Any:
        return "later"


def test_executors_that_cannot_work_are_told_before_anything_is(batches: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    closed = ThreadPoolExecutor(1)
    closed.shutdown()
    with pytest.raises(WorkerError, match=r"ThreadPoolExecutor takes no tasks .*after shutdown"):
        measured(network(), batches, path, executor=closed)
    with pytest.raises(DataError, match=r"executor is an int: give a concurrent\.futures\.Executor"):
        measured(network(), batches, path, executor=4)
    with pytest.raises(WorkerError, match=r"Disconnected takes no tasks \(Client is closed\)"):
        measured(network(), batches, path, executor=Disconnected())
    with pytest.raises(DataError, match=r"submit of the NoFutures returned a str, expected a concurrent"):
        measured(network(), batches, path, executor=NoFutures())
    model = network()
    model.first.guard = threading.Lock()
    words = r"the model cannot be sent to workers: at 'first' \(attribute 'guard', a lock\): TypeError: "
    with ThreadPoolExecutor(1) as executor, pytest.raises(DataError, match=words):
        measured(model, batches, path, executor=executor)
    assert not path.exists()


def forbidding(part: Any) -> Callable[..., None]:
    return lambda *_: part.locked()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda first, lock: setattr(first, "_guard", lock), r"at 'first' \(attribute '_guard', a lock\)"),
        (
            lambda first, lock: setattr(first.weight, "guard", lock),
            r"at 'first' \(attribute 'guard' of its 'weight', a lock\)",
        ),
        (
            lambda first, lock: first.register_forward_pre_hook(forbidding(lock)),
            r"at 'first' \(forward pre hook 'forbidding\.<locals>\.<lambda>'\)",
        ),
    ],
    ids=["private", "parameter", "hook"],
)
def test_whatever_of_a_model_cannot_be_sent_is_named(
    spoil: Callable[[Any, Any], Any], words: str, batches: Any
) -> None:
    model = network()
    spoil(model.first, threading.Lock())
    with ThreadPoolExecutor(1) as executor, pytest.raises(DataError, match=words):
        measured(model, batches, executor=executor)


def test_forked_processes_of_several_threads_are_refused(batches: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    torch.set_num_threads(2)
    with forking() as executor, pytest.raises(DataError, match=r"they would hang computing with 2 threads"):
        measured(network(), batches, path, executor=executor)
    assert not path.exists()


def test_workers_of_other_versions_are_refused(batches: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = pool_run.versions() | {"torch": "1.0"}
    monkeypatch.setattr(pool_run, "versions", lambda: other)
    with ThreadPoolExecutor(1) as executor, pytest.raises(WorkerError, match=r"has torch .* from torch 1\.0"):
        measured(network(), batches, executor=executor)


class Loaded:
    """A job that notes how many are being loaded beside it."""

    title, exclusive = "a job", False
    now = most = 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        kind = Loaded
        kind.now += 1
        kind.most = max(kind.most, kind.now)
        time.sleep(0.02)
        kind.now -= 1

    def __getstate__(self) -> dict[str, Any]:
        return {"something": 1}  # without a state nothing is set

    def run(self, emit: Callable[[Any], None]) -> None:
        """Nothing else."""


def test_threads_of_one_worker_load_jobs_one_after_the_other() -> None:
    # Loading imports modules: two threads of a fresh Dask worker would meet half of one.
    content = pickle.dumps(Loaded())
    with ThreadPoolExecutor(4) as executor:
        given = [
            executor.submit(perform, content, {}, 1, pool_run.versions(), this_process()) for _ in range(8)
        ]
        assert [pickle.loads(future.result())[0] for future in given] == ["done"] * 8
    assert Loaded.most == 1


@pytest.mark.parametrize("make", [forking, lambda: ThreadPoolExecutor(2)], ids=["processes", "threads"])
def test_layers_are_ranked_alike(make: Callable[[], Executor], batches: Any, tmp_path: Path) -> None:
    def ranked(name: str, **options: Any) -> Any:
        # A metric that only cloudpickle takes.
        scale = torch.ones(())

        def metric(output: Tensor, batch: Any) -> tuple[Tensor, int]:
            return scale * (output.argmax(1) == batch[1]).sum(), len(output)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return layer_sensitivity(
                Net().eval(),
                "pcm-ibm",
                batches,
                TIMES,
                chips=3,
                metric=metric,
                out=tmp_path / name,
                **options,
            )

    with torch.random.fork_rng():
        torch.manual_seed(0)
        alone = ranked("alone.csv")
        torch.manual_seed(0)
        with make() as executor:
            shared = ranked("shared.csv", executor=executor)
    assert shared.frame.equals(alone.frame)
    assert (tmp_path / "shared.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
    with ThreadPoolExecutor(1) as executor, pytest.raises(DataError, match="workers=2 and an executor"):
        layer_sensitivity(Net(), "pcm-ibm", batches, workers=2, executor=executor)


def test_an_interrupt_of_the_terminal_while_workers_start_leaves_them_alone(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with WorkerProcesses(1) as executor:
        for delay in (0.0, 0.2):  # in the interpreter's own start, and in imports
            task = executor.submit(time.sleep, 0)
            while not executor._processes:
                time.sleep(0.001)
            time.sleep(delay)
            [worker] = executor._processes.values()
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGINT)
            assert task.result(60) is None
            worker.kill()
            with pytest.raises(BrokenExecutor):
                executor.submit(time.sleep, 0).result(60)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("emits", [False, True])
def test_a_worker_that_nobody_listens_to_any_more_ends_without_a_word(
    emits: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    worker = context.Process(target=_work, args=(there,))
    worker.start()
    there.close()
    work = (slowly_told, (), {}, True) if emits else (time.sleep, (0.3,), {}, False)
    here.send_bytes(cloudpickle.dumps(work))
    here.close()
    worker.join(60)
    assert worker.exitcode == 1
    assert capfd.readouterr().err == ""


def slowly_told(emit: Callable[[Any], None]) -> None:
    time.sleep(0.3)
    emit(1)


def test_blocks_are_whole_chips_in_order_and_neither_tiny_nor_few() -> None:
    places = [(0, 86400.0), *((chip, time) for chip in range(1, 41) for time in TIMES)]
    for seconds, workers in ((1e-6, 2), (0.2, 2), (30.0, 2), (1e-6, 100)):
        blocks = split(places, seconds, workers)
        assert [place for block in blocks for place in block] == places
        assert all(one[-1][0] < other[0][0] for one, other in pairwise(blocks))
        sizes = {len({chip for chip, _ in block}) for block in blocks[:-1]}
        assert len(sizes) == 1
        assert seconds * len(TIMES) * sizes.pop() < 1 + 2 * seconds
        assert len(blocks) >= min(4 * workers, 41) * 0.75


def test_a_second_writer_is_refused_before_it_computes(batches: Any, tmp_path: Path) -> None:
    path, seen = tmp_path / "rows.csv", []

    def metric(output: Tensor, batch: Any) -> tuple[Tensor, int]:
        if path.exists() and not seen:
            seen.append(path.stat().st_size)
            with pytest.raises(ResultsError, match="another process is writing"):
                evaluate_drift(network(), batches, TIMES, chips=2, out=path)
        return output.sum(), len(output)

    measured(network(), batches, path, metric=metric, chips=2)
    assert seen == [0]


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "silent", "nonsense"])
def test_a_scheduler_that_does_not_answer(address: str) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections, and says nothing
        words = "did not answer within 0.5 s"
        if address == "silent":
            address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        elif address == "nonsense":
            words = "'nonsense' is no address"
        with pytest.raises(WorkerError, match=words), connected(address, timeout=0.5):
            pass


def test_something_else_at_the_address_of_a_scheduler() -> None:
    import socket
    import threading

    def answer(server: socket.socket) -> None:  # as HTTP proxies do; read as Dask's it announces 3 EiB
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.recv(4096)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, args=(server,), daemon=True).start()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(WorkerError, match=rf"what answers at '{address}' is no Dask"), connected(address):
            pass


@pytest.mark.filterwarnings("ignore")
def test_a_dask_cluster_of_which_a_worker_is_killed(batches: Any, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    model, metric = network(), Deadly(tmp_path, 4, 1)
    alone = measured(model, batches, tmp_path / "alone.csv", metric=metric)
    options: dict[str, Any] = {"host": "127.0.0.1", "dashboard_address": None, "silence_logs": 50}
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=2, processes=True, **options) as cluster,
        connected(cluster.scheduler_address) as executor,
    ):
        worker = cluster.workers[0].worker_address
        with pytest.raises(WorkerError, match=r"no Dask scheduler \(a worker of Dask\)"), connected(worker):
            pass
        shared = measured(model, batches, tmp_path / "shared.csv", metric=metric, executor=executor)
    assert len(list(tmp_path.glob("death-*"))) == 1
    assert shared.rows == alone.rows
    assert (tmp_path / "shared.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()


class Told:
    """A job that warns, of something else when it is the last."""

    exclusive = False

    def __init__(self, number: int) -> None:
        self.number = number

    @property
    def title(self) -> str:
        return f"job {self.number}"

    def run(self, emit: Callable[[Any], None]) -> int:
        class OwnWarning(RuntimeWarning):
            """Unknown at home."""

        warnings.warn("the last" if self.number == 5 else "as always", OwnWarning, stacklevel=1)
        return os.getpid()


@pytest.mark.parametrize("make", [forking, lambda: WorkerProcesses(2)], ids=["pool", "own"])
def test_warnings_of_workers_are_given_here_once(
    make: Callable[[], Executor], capfd: pytest.CaptureFixture[str]
) -> None:
    results: list[int] = []
    with make() as executor, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jobs = [Told(number) for number in range(6)]
        run_jobs(jobs, executor, lambda *_: None, lambda _, result: results.append(result) or [])
    assert os.getpid() not in results
    assert len(results) == 6
    usual, last = sorted(
        (item for item in caught if "said by" in str(item.message)), key=lambda w: str(w.message)
    )
    assert str(usual.message).startswith("as always (said by a worker, during: job ")
    assert str(last.message) == "the last (said by a worker, during: job 5)"
    assert {usual.category, last.category} == {RuntimeWarning}
    assert usual.filename == __file__
    assert "as always" not in capfd.readouterr().err


def test_warnings_of_threads_are_given_as_they_are() -> None:
    shown = warnings.showwarning
    with ThreadPoolExecutor(2) as executor, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_jobs([Told(1), Told(2)], executor, lambda *_: None, lambda *_: [])
    assert [str(item.message) for item in caught] == ["as always", "as always"]
    assert warnings.showwarning is shown


def fail() -> None:
    raise OSError("no licence")


@pytest.mark.parametrize(
    "make",
    [
        lambda: ThreadPoolExecutor(1, initializer=fail),
        lambda: ProcessPoolExecutor(1, multiprocessing.get_context("fork"), initializer=fail),
    ],
    ids=["threads", "processes"],
)
def test_an_initializer_that_fails_is_told(make: Callable[[], Executor]) -> None:
    words = r"PoolExecutor is broken \(.*its initializer failed.*whose initializer works"
    with make() as executor, pytest.raises(WorkerError, match=words):
        run_jobs([Told(1)], executor, lambda *_: None, lambda *_: [])


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_without_workers_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr("analognoise.pool.scheduler.PATIENCE", 0.4)
    options: dict[str, Any] = {"dashboard_address": None, "silence_logs": 50}
    with (
        distributed.LocalCluster(n_workers=0, processes=False, **options) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
        pytest.warns(UserWarning, match="has no workers any more: waiting 0.4 s"),
        pytest.raises(
            WorkerError, match=r"'inproc://\S+' has had no workers for 0.4 s: start some.*run again"
        ),
    ):
        run_jobs([Told(1)], client.get_executor(pure=False), lambda *_: None, lambda *_: [])


def test_chips_in_growing_numbers_are_shared_too(batches: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"chips": 10, "metric": "loss", "precision": 0.002, "max_chips": 60}
    alone = measured(network(), batches, tmp_path / "alone.csv", **options)
    with forking() as executor:
        shared = measured(network(), batches, tmp_path / "shared.csv", executor=executor, **options)
    assert len(alone.rows) > 2 * 10
    assert shared.rows == alone.rows
    assert (tmp_path / "shared.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
