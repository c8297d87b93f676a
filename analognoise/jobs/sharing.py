"""Who shares the work of a command: processes on this machine, or a Dask cluster."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

from analognoise.errors import DataError
from analognoise.evaluation.checks import whole_number
from analognoise.pool import WorkerProcesses, connected


@contextmanager
def sharing(workers: int, scheduler: str | None) -> Iterator[Executor | None]:
    """The executor that ``--workers`` and ``--scheduler`` ask for; None for this process alone.

    Args:
        workers: number of processes.
        scheduler: address of a Dask scheduler.

    Raises:
        DataError: when both are given, or the number is none.
        MissingPackageError: without Dask.
        WorkerError: when the scheduler does not answer.
    """
    whole_number("--workers", workers, 1)
    with cluster(workers if workers > 1 else None, scheduler) as executor:
        if executor is not None or workers == 1:
            yield executor
        else:
            with WorkerProcesses(workers) as processes:
                yield processes


@contextmanager
def cluster(workers: int | None, scheduler: str | None) -> Iterator[Executor | None]:
    """The executor that ``--scheduler`` asks for, or None.

    Args:
        workers: number of processes, if it was given.
        scheduler: address of a Dask scheduler.

    Raises:
        DataError, MissingPackageError, WorkerError: as :func:`sharing`.
    """
    if scheduler is None:
        yield None
        return
    if workers is not None:
        raise DataError(
            f"--workers {workers} are processes on this machine, --scheduler {scheduler} is a cluster: leave "
            "one of them out"
        )
    with connected(scheduler) as executor:
        yield executor
