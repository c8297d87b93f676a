"""A Dask scheduler that is there and does not answer is not waited for for ever."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import cloudpickle
import pytest

from analognoise.errors import WorkerError
from analognoise.pool import connected, run_jobs
from analognoise.pool.executors import size_of

pytest.importorskip("distributed")
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def scheduler() -> Iterator[tuple[str, int]]:
    """Address and process of a scheduler with one worker."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    host, port = address.split(":")
    options = ["--no-dashboard", "--host", host]
    command = [sys.executable, "-m", "distributed.cli.dask_{}"]
    programs = [
        [part.format("scheduler") for part in command] + [*options, "--port", port],
        [part.format("worker") for part in command] + [*options, f"tcp://{address}", "--no-nanny"],
    ]
    with ExitStack() as stack:
        started = []
        for program in programs:
            process = stack.enter_context(subprocess.Popen(program, stderr=subprocess.DEVNULL))
            stack.callback(process.kill)  # what is stopped, too
            started.append(process)
        yield f"tcp://{address}", started[0].pid


class Number:
    """A job that gives its number."""

    exclusive = False

    def __init__(self, number: int) -> None:
        self.number = number

    @property
    def title(self) -> str:
        return f"number {self.number}"

    def run(self, emit: Callable[[Any], None]) -> int:
        return self.number


def test_a_scheduler_that_freezes_is_told_and_what_was_found_is_kept(
    scheduler: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, process = scheduler
    found: list[int] = []

    def freeze(job: Number, result: int) -> list[Number]:
        found.append(result)
        if len(found) == 2:
            os.kill(process, signal.SIGSTOP)
            # Not before: one that is only slow, on a busy machine, would be given up, too.
            monkeypatch.setattr("analognoise.pool.scheduler.TIMEOUT", 0.5)
            monkeypatch.setattr("analognoise.pool.scheduler.PATIENCE", 1.0)
        return [Number(len(found))]

    with connected(address, timeout=60) as executor:
        monkeypatch.setattr("analognoise.pool.scheduler._INTERVAL", 1.0)
        with (
            pytest.warns(UserWarning, match="does not answer any more: waiting 1 s"),
            pytest.raises(WorkerError, match=r"has not answered for 1 s: .* what was finished is kept"),
        ):
            run_jobs([Number(0)], executor, lambda *_: None, freeze)
        assert found == [0, 1]
        with pytest.raises(WorkerError, match=r"did not answer within 0\.5 s"):
            size_of(executor)
    with pytest.raises(WorkerError, match=r"did not answer within 0\.5 s"), connected(address, timeout=0.5):
        pass
