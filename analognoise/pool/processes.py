"""Worker processes of our own: one that dies is replaced, and only the task that it had fails."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any

_PATIENCE = 5.0


class WorkerDied(BrokenExecutor):
    """The process that had the task is gone."""


class WorkerProcesses(Executor):
    """Processes on this machine that outlive the death of one of them.

    ``ProcessPoolExecutor`` fails every task when one process dies, and takes no more. Here the task that was
    running there fails with :class:`WorkerDied`, and a new process takes the next. Every process has a pipe
    of its own, so that none waits for what another one held. They ignore Ctrl-C, which goes to all
    processes of a terminal (the parent ends them), and end by themselves when the parent is gone, however it
    went.

    Args:
        count: number of processes; each is started with its first task.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._closed = False
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._processes: dict[int, SpawnProcess] = {}
        self._threads: list[threading.Thread] = []
        atexit.register(self.end)  # before multiprocessing waits for its children

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn(*args, **kwargs)`` in a process."""
        return self._put(fn, args, kwargs, None)

    def submit_emitting(
        self, emitted: Callable[[Any], None], fn: Callable[..., Any], /, *args: Any
    ) -> Future[Any]:
        """Run ``fn(*args, emit)`` in a process; what it hands to ``emit`` goes to ``emitted`` here, in a
        thread.
        """
        return self._put(fn, args, {}, emitted)

    def _put(
        self, fn: Callable[..., Any], args: Any, kwargs: Any, emitted: Callable[[Any], None] | None
    ) -> Future[Any]:
        task = _Task(pickle.dumps((fn, args, kwargs, emitted is not None)), emitted)
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._tasks.put(task)
            if len(self._threads) < self.count:
                name = f"worker-{len(self._threads)}"
                thread = threading.Thread(target=self._serve, args=(len(self._threads),), name=name)
                thread.daemon = True
                self._threads.append(thread)
                thread.start()
        return task.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks; the processes end with the last of those that are there."""
        atexit.unregister(self.end)
        with self._lock:
            self._closed = True
        if cancel_futures:
            with contextlib.suppress(queue.Empty):
                while True:
                    task = self._tasks.get_nowait()
                    if task is not None:
                        task.future.cancel()
        for _ in self._threads:
            self._tasks.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def end(self) -> None:
        """End the processes now, whatever they do."""
        self._ended.set()
        with self._lock:
            processes = list(self._processes.values())
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(_PATIENCE)
            if process.is_alive():
                process.kill()
        self.shutdown(cancel_futures=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.shutdown()
        else:
            self.end()

    def _serve(self, number: int) -> None:
        """Give one process after another's death the tasks; runs in a thread of the process's own."""
        connection: Connection | None = None
        while (task := self._tasks.get()) is not None:
            if not task.future.set_running_or_notify_cancel():
                continue
            try:
                if connection is None:
                    connection = self._start(number)
                connection.send_bytes(task.content)
                outcome = None
                while outcome is None:
                    kind, payload = pickle.loads(connection.recv_bytes())
                    if kind == "emitted":
                        if task.emitted is not None:
                            task.emitted(payload)
                    else:
                        outcome = kind, payload
            except Exception as error:  # a pipe whose other end is gone, or a process that did not start
                if connection is not None:
                    connection.close()
                    connection = None
                code = self._remove(number)
                how = f"its exit code was {code}" if code is not None else f"{type(error).__name__}: {error}"
                task.future.set_exception(WorkerDied(how))
                continue
            if outcome[0] == "result":
                task.future.set_result(outcome[1])
            else:
                task.future.set_exception(outcome[1])
        if connection is not None:
            connection.close()
        self._remove(number)

    def _start(self, number: int) -> Connection:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        resource_tracker.ensure_running()  # it would lift what is blocked below
        # Not a daemon: those may have no children, and data loaders may.
        process = context.Process(target=_work, args=(there,), name=f"analognoise-worker-{number}")
        with self._lock:
            if self._ended.is_set():
                raise WorkerDied("the pool was ended")
            # Ctrl-C waits until the process ignores it: importing takes it seconds.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._processes[number] = process
        there.close()
        return here

    def _remove(self, number: int) -> int | None:
        with self._lock:
            process = self._processes.pop(number, None)
        if process is None:
            return None
        process.join(_PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
        return process.exitcode


class _Task:
    def __init__(self, content: bytes, emitted: Callable[[Any], None] | None) -> None:
        self.content, self.emitted = content, emitted
        self.future: Future[Any] = Future()


# In the workers.


def _work(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_follow_parent, daemon=True).start()

    def send(content: bytes) -> None:
        try:
            connection.send_bytes(content)
        except OSError:
            os._exit(1)  # the parent is gone, which :func:`_follow_parent` has not seen yet

    def emit(payload: Any) -> None:
        send(pickle.dumps(("emitted", payload)))

    while True:
        try:
            content = connection.recv_bytes()
        except (EOFError, OSError):
            os._exit(0)  # taking torch down takes seconds
        try:
            fn, args, kwargs, emits = pickle.loads(content)
            answer = pickle.dumps(("result", fn(*args, emit) if emits else fn(*args, **kwargs)))
        except Exception as error:
            try:
                answer = pickle.dumps(("error", error))
                pickle.loads(answer)
            except Exception:
                answer = pickle.dumps(("error", RuntimeError(f"{type(error).__name__}: {error}")))
        send(answer)


def _follow_parent() -> None:
    """End when the parent is gone, however it went: nobody would ever read the results."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
