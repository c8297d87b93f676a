"""Jobs in this process or in several, with the same results, and an end to both when something dies."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, Protocol

import torch

from analognoise.errors import AnalogNoiseError


class Job(Protocol):
    """A piece of work that can be pickled."""

    @property
    def title(self) -> str:
        """What the job does, in words."""

    def run(self, emit: Callable[[Any], None]) -> Any:
        """Do it; hand what is found on the way to ``emit``, and return the result."""


Found = Callable[[Any, Any], None]
Done = Callable[[Any, Any], Iterable[Any]]


def run_jobs(jobs: Iterable[Job], workers: int, found: Found, done: Done) -> None:
    """Run jobs, and those that follow from their results, one after the other or in worker processes.

    Every job computes with one thread wherever it runs, because sums depend on the number of threads. If a
    worker dies, or this function is left by an exception (KeyboardInterrupt too), the other workers are
    ended.

    Args:
        jobs: in the order to begin them.
        workers: number of processes; 1 works in this one.
        found: ``found(job, payload)`` gets what a job emits, in this process.
        done: ``done(job, result)`` gets a job's result, after all that it emitted, and returns jobs that
            follow; they are begun next.

    Raises:
        AnalogNoiseError: when a worker process dies.
        Exception: whatever a job raises.
    """
    waiting = deque(jobs)
    if workers > 1:
        _in_processes(waiting, workers, found, done)
        return
    with one_thread():
        while waiting:
            job = waiting.popleft()
            result = job.run(lambda payload, job=job: found(job, payload))  # type: ignore[misc]
            waiting.extendleft(reversed(list(done(job, result))))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch computes with one thread inside, and with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_processes(waiting: deque[Job], workers: int, found: Found, done: Done) -> None:
    context = multiprocessing.get_context("spawn")
    pipe = context.SimpleQueue()
    inbox: queue.SimpleQueue[tuple[str, Any, Any]] = queue.SimpleQueue()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(pipe,))
    # Emitted payloads and results come by different ways; both end in the inbox, and this process waits
    # there.
    threading.Thread(target=_read, args=(pipe, inbox), daemon=True).start()
    running: dict[int, Job] = {}
    number = 0
    try:
        while waiting or running:
            # One more than there are workers, so that none has to wait for the next.
            while waiting and len(running) <= workers:
                job = waiting.popleft()
                running[number] = job
                try:
                    future = pool.submit(_run, number, job)
                except BrokenProcessPool as error:
                    raise AnalogNoiseError(_death(running.values(), workers)) from error
                future.add_done_callback(lambda future, number=number: _ended(future, number, inbox))  # type: ignore[misc]
                number += 1
            kind, index, payload = inbox.get()
            if kind == "error":
                # A broken pool fails every open future, also that of a job whose result is here already.
                if isinstance(payload, BrokenProcessPool):
                    raise AnalogNoiseError(_death(running.values(), workers)) from payload
                raise payload
            job = running[index]
            if kind == "found":
                found(job, payload)
            else:
                del running[index]
                waiting.extendleft(reversed(list(done(job, payload))))
    except BaseException:
        _end(pool)
        raise
    pool.shutdown()
    pipe.put(None)


def _death(running: Iterable[Job], workers: int) -> str:
    titles = "; ".join(job.title for job in list(running)[:workers])
    return (
        f"a worker process died (killed, or out of memory?) during: {titles}. What was finished is kept: "
        "the same call goes on "
        "from there, with workers=1 if memory is short. In a script of your own, call it under if __name__ "
        "== '__main__'"
    )


def _ended(future: Future[Any], number: int, inbox: queue.SimpleQueue[tuple[str, Any, Any]]) -> None:
    if future.cancelled():
        return
    error = future.exception()
    # A result travels with the payloads, behind the last of them; here only errors are passed on.
    if error is not None:
        inbox.put(("error", number, error))


def _read(pipe: Any, inbox: queue.SimpleQueue[tuple[str, Any, Any]]) -> None:
    with contextlib.suppress(EOFError, OSError):
        while (item := pipe.get()) is not None:
            inbox.put(item)


def _end(pool: ProcessPoolExecutor) -> None:
    processes = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(5)
        if process.is_alive():
            process.kill()


# In the workers.

_pipe: Any = None


def _start(pipe: Any) -> None:
    global _pipe
    _pipe = pipe
    torch.set_num_threads(1)
    # Ctrl-C goes to the whole group of processes; the parent ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End when the parent is gone, however it went: nobody would ever read the results."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _run(number: int, job: Job) -> None:
    result = job.run(lambda payload: _pipe.put(("found", number, payload)))
    _pipe.put(("done", number, result))
