"""What can be known of an executor before it is given work."""

from __future__ import annotations

import os
from concurrent.futures import Executor, Future
from typing import Any

from analognoise.errors import DataError, WorkerError
from analognoise.pool.scheduler import capacity, is_dask
from analognoise.printing import kind_of


def check_executor(executor: Any, threads: int = 1) -> None:
    """Raise unless tasks can be given to an executor; its workers start on the way.

    Args:
        executor: what was given as one.
        threads: of torch, in every task.

    Raises:
        DataError: when it is none, gives no futures, or its processes would hang.
        WorkerError: when it is shut down or broken.
    """
    if not isinstance(executor, Executor):
        raise DataError(
            f"executor is {kind_of(executor)}: give a concurrent.futures.Executor, for example "
            "ProcessPoolExecutor(4), or client.get_executor() of a Dask client"
        )
    context = getattr(executor, "_mp_context", None)
    if threads > 1 and context is not None and context.get_start_method() == "fork":
        # OpenMP's threads do not live on in a forked process, which then waits for them for ever.
        raise DataError(
            f"the {type(executor).__name__} forks its processes, and they would hang computing with "
            f"{threads} threads of torch: give it mp_context=multiprocessing.get_context('spawn'), or call "
            "torch.set_num_threads(1) before"
        )
    try:
        given = executor.submit(os.getpid)
    except Exception as error:  # Dask's client has a class of its own for being closed
        raise closed(executor, error) from error
    if not isinstance(given, Future):
        raise DataError(
            f"the submit of the {type(executor).__name__} returned a {type(given).__name__}, expected a "
            "concurrent.futures.Future: give an executor that keeps to that interface"
        )


def enough(workers: int | Executor, jobs: int) -> int | Executor:
    """No more processes than there are jobs."""
    return workers if isinstance(workers, Executor) else max(1, min(workers, jobs))


def size_of(executor: Executor) -> int:
    """How many tasks an executor runs at once, as far as it says."""
    if is_dask(executor):
        return max(1, capacity(executor))
    count = getattr(executor, "count", getattr(executor, "_max_workers", None))
    return count if isinstance(count, int) else os.cpu_count() or 1


def closed(executor: Executor, error: BaseException) -> WorkerError:
    """What to tell of an executor that takes no tasks."""
    return WorkerError(
        f"the {type(executor).__name__} takes no tasks ({error}): give an executor that is open, and keep it "
        "open until the call is over"
    )
