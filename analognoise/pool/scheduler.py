"""A Dask cluster as an executor; Dask is only imported when one is asked for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor
from time import monotonic
from typing import Any

from analognoise.errors import MissingPackageError, WorkerError

TIMEOUT = 10.0
# Workers that are started anew, by a nanny or a batch system, are back by then.
PATIENCE = 60.0
_INTERVAL = 5.0


@contextlib.contextmanager
def connected(address: str, timeout: float = TIMEOUT) -> Iterator[Executor]:
    """An executor on a Dask cluster, while it is connected.

    Args:
        address: of the scheduler, as in ``tcp://10.0.0.1:8786``.
        timeout: seconds to wait for its answer, and for its first worker.

    Raises:
        MissingPackageError: without Dask.
        WorkerError: when the scheduler does not answer, or has no workers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingPackageError(
            "a Dask scheduler needs dask.distributed, which is not installed: pip install 'analognoise[dask]'"
        ) from error
    try:
        # A client's own timeout is over once the connection is made, whoever is at its other end.
        asyncio.run(asyncio.wait_for(_greet(address, timeout), timeout))
        client = Client(address, timeout=timeout, set_as_default=False)
    except (ValueError, TypeError) as error:
        raise WorkerError(
            f"{address!r} is no address of a Dask scheduler ({_first_line(error)}): write it as in "
            "tcp://10.0.0.1:8786"
        ) from error
    except OSError as error:  # TimeoutError is one
        raise WorkerError(
            f"the Dask scheduler {address!r} did not answer within {timeout:g} s ({_first_line(error)}): "
            "give the address that 'dask scheduler' prints, as in tcp://10.0.0.1:8786"
        ) from error
    try:
        try:
            client.wait_for_workers(1, timeout)
        except OSError as error:
            raise WorkerError(
                f"the Dask scheduler {address!r} had no worker within {timeout:g} s: start some with "
                f"'dask worker {address}'"
            ) from error
        yield client.get_executor(pure=False)
    finally:
        # A scheduler that is gone is told once, by whoever needed it.
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
        client.close(timeout)


async def _greet(address: str, timeout: float) -> None:
    from distributed.comm import connect
    from distributed.security import Security

    comm = await connect(address, timeout=timeout, **Security().get_connection_args("client"))
    await comm.close()


def is_dask(executor: Executor) -> bool:
    """Whether an executor is a Dask cluster's."""
    return type(executor).__module__.partition(".")[0] == "distributed"


def capacity(executor: Any) -> int:
    """How many tasks a Dask cluster runs at once now."""
    return sum(executor._client.nthreads().values())


class Attendance:
    """Whether a Dask cluster still has workers: without any, its tasks wait for ever.

    Args:
        executor: the cluster's.

    Attributes:
        interval: seconds from one :meth:`check` to the next.
    """

    def __init__(self, executor: Any) -> None:
        self.interval = min(_INTERVAL, PATIENCE)
        self._client = executor._client
        self._since: float | None = None

    def check(self) -> None:
        """Look; tell when there is none, first by a warning.

        Raises:
            WorkerError: when there was none for :data:`PATIENCE` seconds.
        """
        if self._there():
            self._since = None
            return
        address = self._client.scheduler.address
        if self._since is None:
            self._since = monotonic()
            warnings.warn(
                f"the Dask scheduler {address!r} has no workers any more: waiting {PATIENCE:g} s for one "
                f"(start some with 'dask worker {address}')",
                stacklevel=9,
            )
        elif monotonic() - self._since >= PATIENCE:
            raise WorkerError(
                f"the Dask scheduler {address!r} has had no workers for {PATIENCE:g} s: start some with "
                f"'dask worker {address}', and run again to go on; what was finished is kept"
            )

    def _there(self) -> bool:
        client = self._client
        try:
            return bool(client.sync(client.scheduler.ncores, callback_timeout=TIMEOUT))
        except (OSError, RuntimeError):
            return True  # a scheduler that is gone itself cancels its tasks, which is told then


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
