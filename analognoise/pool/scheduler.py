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
_ANSWER, _WORKERS = "answer", "workers"


@contextlib.contextmanager
def connected(address: str, timeout: float = TIMEOUT) -> Iterator[Executor]:
    """An executor on a Dask cluster, while it is connected.

    Args:
        address: of the scheduler, as in ``tcp://10.0.0.1:8786``.
        timeout: seconds to wait for its answer, and for its first worker.

    Raises:
        MissingPackageError: without Dask.
        WorkerError: when the scheduler does not answer, something else does, or it has no workers.
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
    except WorkerError:
        raise
    except Exception as error:  # whatever becomes of bytes that mean something else, a MemoryError included
        raise _another(address, _first_line(error)) from error
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
    """See who answers: a worker would be taken for a scheduler, and fail much later."""
    from distributed.comm import connect
    from distributed.security import Security

    comm = await connect(address, timeout=timeout, **Security().get_connection_args("client"))
    try:
        await comm.write({"op": "identity", "reply": True})
        found = await comm.read()
    finally:
        await comm.close()
    if not isinstance(found, dict) or "workers" not in found:
        kind = found.get("type") if isinstance(found, dict) else None
        raise _another(address, f"a {str(kind).lower()} of Dask" if kind else "it does not say what it is")


def _another(address: str, who: str) -> WorkerError:
    return WorkerError(
        f"what answers at {address!r} is no Dask scheduler ({who}): give the address that 'dask scheduler' "
        "prints, as in tcp://10.0.0.1:8786"
    )


def is_dask(executor: Executor) -> bool:
    """Whether an executor is a Dask cluster's."""
    return type(executor).__module__.partition(".")[0] == "distributed"


def capacity(executor: Any) -> int:
    """How many tasks a Dask cluster runs at once now.

    Raises:
        WorkerError: when its scheduler does not answer.
    """
    client = executor._client
    try:
        threads: dict[str, int] = client.sync(client.scheduler.ncores, callback_timeout=TIMEOUT)
    except TimeoutError as error:
        raise WorkerError(
            f"the Dask scheduler {client.scheduler.address!r} did not answer within {TIMEOUT:g} s: see what "
            "it is at, and run again to go on; what was finished is kept"
        ) from error
    return sum(threads.values())


class Attendance:
    """Whether a Dask cluster still answers and has workers: without, its tasks wait for ever.

    Args:
        executor: the cluster's.

    Attributes:
        interval: seconds from one :meth:`check` to the next.
    """

    def __init__(self, executor: Any) -> None:
        self.interval = min(_INTERVAL, PATIENCE)
        self._client = executor._client
        self._since = 0.0
        self._lacking = ""

    def check(self) -> None:
        """Look; tell what is lacking, first by a warning.

        Raises:
            WorkerError: when something was for :data:`PATIENCE` seconds.
        """
        began, before = monotonic(), self._lacking
        self._lacking = self._look()
        if not self._lacking:
            return
        address = self._client.scheduler.address
        now, then = "has no workers", "has had no workers"
        advice = f"start some with 'dask worker {address}'"
        if self._lacking == _ANSWER:
            now, then, advice = "does not answer", "has not answered", "see what it is at"
        if self._lacking != before:
            self._since = began
            warnings.warn(
                f"the Dask scheduler {address!r} {now} any more: waiting {PATIENCE:g} s ({advice})",
                stacklevel=9,
            )
        elif monotonic() - self._since >= PATIENCE:
            raise WorkerError(
                f"the Dask scheduler {address!r} {then} for {PATIENCE:g} s: {advice}, and run again to go "
                "on; what was finished is kept"
            )

    def _look(self) -> str:
        """What is lacking, if anything."""
        client = self._client
        try:
            there = client.sync(client.scheduler.ncores, callback_timeout=TIMEOUT)
        except TimeoutError:  # connected, but nobody is at the other end
            return _ANSWER
        except (OSError, RuntimeError):
            return ""  # a scheduler that is gone itself cancels its tasks, which is told then
        return "" if there else _WORKERS


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
