"""Jobs, and those that follow from their results, wherever there is somebody to do them."""

from __future__ import annotations

import queue
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from concurrent.futures.thread import BrokenThreadPool
from contextlib import contextmanager
from typing import Any, Protocol

from analognoise.errors import WorkerError
from analognoise.pool.executors import closed, size_of
from analognoise.pool.processes import WorkerProcesses
from analognoise.pool.scheduler import Attendance, is_dask
from analognoise.pool.travel import Shared, check_travel, dumps, loads_at_home, perform, threads_set, versions
from analognoise.pool.warned import Warned, say, this_process
from analognoise.printing import counted

# A task that takes its worker with it takes three.
ATTEMPTS = 3
_SENDINGS = 10


class Job(Protocol):
    """A piece of work that can be pickled. Done again it emits the same, in the same order.

    What it has in common with others are attributes of the type :class:`analognoise.pool.Shared`. It may have
    ``exclusive = False``: then it can go on beside others in threads of one process, using none of what these
    share (generators, warnings).
    """

    @property
    def title(self) -> str:
        """What the job does, in words."""

    def run(self, emit: Callable[[Any], None]) -> Any:
        """Do it; hand what is found on the way to ``emit``, and return the result."""


Found = Callable[[Any, Any], None]
Done = Callable[[Any, Any], Iterable[Any]]
# What happened ("emitted" or "ended"), to which job, in which attempt, and what was emitted.
_Event = tuple[str, int, Future[bytes] | None, Any]


def run_jobs(
    jobs: Iterable[Job], workers: int | Executor, found: Found, done: Done, threads: int = 1
) -> None:
    """Run jobs, and those that follow from their results, one after the other or at once elsewhere.

    Every job computes with the same number of threads wherever it runs, because sums depend on it. A job
    whose worker dies is begun again elsewhere, and found on the way is then only what is new. When this
    function is left by an exception (KeyboardInterrupt too), worker processes of its own are ended, and what
    waits in another executor is cancelled.

    Args:
        jobs: in the order to begin them.
        workers: number of processes (1 works in this one), or any executor. Processes of our own hand on at
            once what a job finds on its way, other executors only with its result.
        found: ``found(job, payload)`` gets what a job emits, in this process.
        done: ``done(job, result)`` gets a job's result, after all that it emitted, and returns jobs that
            follow; they are begun next.
        threads: of torch, in every job.

    Raises:
        WorkerError: when workers die of a job :data:`ATTEMPTS` times, have other versions, or the executor
            is shut down or lost.
        Exception: whatever a job raises.
    """
    waiting = deque(jobs)
    if isinstance(workers, Executor):
        _Dispatch(workers, threads).run(waiting, found, done)
    elif workers > 1:
        with WorkerProcesses(workers) as executor:
            _Dispatch(executor, threads).run(waiting, found, done)
    else:
        with threads_set(threads):
            while waiting:
                job = waiting.popleft()
                result = job.run(lambda payload, job=job: found(job, payload))  # type: ignore[misc]
                waiting.extendleft(reversed(list(done(job, result))))


class _Running:
    """A job that somebody has, and what came of it so far."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.content = _pickled(job)
        self.future: Future[bytes] | None = None
        self.attempts = 0
        self.sent = 0  # how often with what it shares
        self.emitted = 0  # by the present attempt
        self.delivered = 0  # to this process, by all of them


class _Dispatch:
    """One call's way of giving jobs to an executor."""

    def __init__(self, executor: Executor, threads: int) -> None:
        self.executor, self.threads = executor, threads
        self.own: WorkerProcesses | None = None  # in place of an executor that broke
        self.running: dict[int, _Running] = {}
        self.versions = versions()
        # Some more than there are workers, so that none has to wait for the next.
        self.window = size_of(executor) + (1 if isinstance(executor, WorkerProcesses) else size_of(executor))
        # Everything that happens anywhere ends here, and this process waits for it.
        self.inbox: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._number = 0
        self._warned: set[Warned] = set()

    def run(self, waiting: deque[Job], found: Found, done: Done) -> None:
        """See :func:`run_jobs`."""
        with self._cleared():
            while waiting or self.running:
                while waiting and len(self.running) < self.window:
                    self.running[self._number] = _Running(waiting.popleft())
                    self._submit(self._number)
                    self._number += 1
                kind, number, future, payload = self._next()
                task = self.running.get(number)
                if task is None or task.future is not future:
                    continue  # of an attempt that was given up
                if kind == "emitted":
                    self._deliver(task, payload, found)
                    continue
                assert future is not None
                answer = self._answer(number, task, future)
                if answer is None:
                    continue
                emitted, result = answer
                for item in emitted:
                    self._deliver(task, item, found)
                del self.running[number]
                waiting.extendleft(reversed(list(done(task.job, result))))

    def _next(self) -> _Event:
        """What happens next, anywhere.

        Raises:
            WorkerError: when nothing will, because a cluster has no workers any more.
        """
        if not is_dask(self.executor):
            return self.inbox.get()
        attendance = Attendance(self.executor)
        while True:
            try:
                return self.inbox.get(timeout=attendance.interval)
            except queue.Empty:
                attendance.check()

    @contextmanager
    def _cleared(self) -> Iterator[None]:
        """Nothing of this call goes on after it, as far as that can be had."""
        try:
            yield
        except BaseException:
            for task in self.running.values():
                if task.future is not None:
                    task.future.cancel()
            if self.own is not None:
                self.own.end()
            raise
        if self.own is not None:
            self.own.shutdown()

    def _submit(self, number: int, shared: dict[str, bytes] | None = None) -> None:
        task = self.running[number]
        task.emitted = 0
        executor = self.own or self.executor
        given = (task.content, shared or {}, self.threads, self.versions, this_process())
        try:
            if isinstance(executor, WorkerProcesses):
                # The future is known only after it was submitted: what is emitted names it by a list.
                name: list[Future[bytes]] = []
                ready = queue.SimpleQueue[None]()

                def emitted(payload: Any) -> None:
                    if not name:
                        ready.get()
                    self.inbox.put(("emitted", number, name[0], payload))

                future = executor.submit_emitting(emitted, perform, *given)
                name.append(future)
                ready.put(None)
            else:
                future = executor.submit(perform, *given)
        except BrokenExecutor as error:
            self._replace(error)
            self._submit(number, shared)
            return
        except Exception as error:
            raise closed(executor, error) from error
        task.future = future
        future.add_done_callback(lambda future: self.inbox.put(("ended", number, future, None)))

    def _deliver(self, task: _Running, payload: Any, found: Found) -> None:
        task.emitted += 1
        if task.emitted > task.delivered:
            task.delivered += 1
            found(task.job, payload)

    def _answer(self, number: int, task: _Running, future: Future[bytes]) -> tuple[list[Any], Any] | None:
        """What a job found and its result; None when it was sent again."""
        if future.cancelled():
            raise WorkerError(
                f"{task.job.title}: the task was cancelled (the executor was shut down, or the connection to "
                "the scheduler was lost); what was finished is kept: run again to go on"
            )
        error = future.exception()
        if error is not None:
            self._failed(number, task, error)
            return None
        kind, payload, warned = loads_at_home(future.result())
        for item in warned:
            if item not in self._warned:
                self._warned.add(item)
                say(item, task.job.title)
        if kind == "missing":
            task.sent += 1
            if task.sent > _SENDINGS:
                raise WorkerError(f"{task.job.title}: workers do not keep what was sent to them")
            self._submit(number, {item.key: item.bytes for item in shared_by(task.job)})
            return None
        if kind == "error":
            raise payload
        return payload

    def _failed(self, number: int, task: _Running, error: BaseException) -> None:
        """Begin a job again whose worker died.

        Raises:
            WorkerError: when that was tried often enough, or something else was the matter.
        """
        if isinstance(error, BrokenExecutor):
            task.attempts += 1
            if task.attempts < ATTEMPTS:
                if not isinstance(self.own or self.executor, WorkerProcesses):
                    self._replace(error)
                self._submit(number)
                return
        # Dask itself begins the tasks of a worker that died again, and gives up with this.
        died = isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker"
        if died:
            raise WorkerError(
                f"a worker process died (killed, or out of memory?) during: {task.job.title}; it was tried "
                f"{ATTEMPTS} times or more. What was finished is kept: the same call goes on from "
                "there, with fewer workers if memory is short. In a script of your own, call it under "
                "if __name__ == '__main__'"
            ) from error
        if isinstance(error, Exception):
            raise WorkerError(
                f"{task.job.title}: the executor could not run the task ({type(error).__name__}: {error}); "
                "workers need the same packages as here"
            ) from error
        raise error

    def _replace(self, error: BaseException) -> None:
        """Go on in processes of our own where the user's executor broke: it takes nothing more."""
        count = size_of(self.executor)
        if is_dask(self.executor) or isinstance(self.executor, WorkerProcesses):
            raise closed(self.executor, error) from error
        if getattr(self.executor, "_initializer", None) is not None or isinstance(error, BrokenThreadPool):
            raise WorkerError(
                f"the {type(self.executor).__name__} is broken ({error}): either its initializer "
                "failed, or a worker died, and others would have to begin without that initializer. What was "
                "finished is kept: run again with an executor whose initializer works, or without one"
            ) from error
        self.own = WorkerProcesses(count)
        warnings.warn(
            f"a worker of the {type(self.executor).__name__} died, which broke it ({error}): the "
            f"work goes on in {counted(count, 'worker process')} of its own",
            stacklevel=9,
        )


def shared_by(job: Job) -> list[Shared]:
    """What a job has in common with others."""
    return [value for value in vars(job).values() if isinstance(value, Shared)]


def _pickled(job: Job) -> bytes:
    try:
        return dumps(job)
    except Exception:
        check_travel({f"job ({job.title})": job})
        raise
