"""What travels between processes, as bytes, and what a worker does with it.

An executor only ever sees bytes: so nothing depends on how it pickles, threads get copies of their own, and
an error that cannot be pickled is still told. What many jobs have in common travels once per worker: a job
that finds it missing says so, and is sent again with it.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import platform
import socket
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import cloudpickle
import torch
from cloudpickle import cloudpickle as parts

from analognoise.culprit import culprit
from analognoise.errors import DataError, WorkerError
from analognoise.pool.warned import this_process, warnings_kept

# How many shared things a worker keeps: what it works on now, and what came before.
_KEPT = 2


class _Held(threading.local):
    """Shared things that came here, by key; each thread has copies of its own: models have a state."""

    def __init__(self) -> None:
        self.values: OrderedDict[str, Any] = OrderedDict()


_HELD = _Held()
# The process's generators, warnings and thread count are one for all of its threads.
_ALONE = threading.Lock()
# Modules that import each other are torn apart when two threads of a fresh worker begin with different ones.
_LOADING = threading.Lock()


class Missing(Exception):
    """A worker has not got something shared yet."""


class Shared:
    """What many jobs have in common, and every worker gets once.

    Args:
        value: in this process the thing itself, in others a copy of it as it is when first sent.
    """

    def __init__(self, value: Any) -> None:
        self.key = uuid.uuid4().hex
        self._value = value
        self._bytes: bytes | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"key": self.key}

    @property
    def value(self) -> Any:
        """The thing.

        Raises:
            Missing: in a worker that has not got it.
        """
        if "_value" in vars(self):
            return self._value
        if self.key not in _HELD.values:
            raise Missing(self.key)
        _HELD.values.move_to_end(self.key)
        return _HELD.values[self.key]

    @property
    def bytes(self) -> bytes:
        """The thing, pickled once."""
        if self._bytes is None:
            self._bytes = dumps(self._value)
        return self._bytes


def dumps(thing: Any) -> bytes:
    """A thing as bytes; what a script or notebook defines goes along by value."""
    return bytes(cloudpickle.dumps(thing))


class _AtHome(pickle.Unpickler):
    """Reads what may come from this very process, and leaves the classes that are here as they are.

    cloudpickle gives those of a script or notebook anew what they hold, methods with copies of their globals.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        with parts._DYNAMIC_CLASS_TRACKER_LOCK:
            self._known = set(parts._DYNAMIC_CLASS_TRACKER_BY_CLASS)

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return self._filled if found is parts._class_setstate else found

    def _filled(self, kind: type, state: Any) -> type:
        return kind if kind in self._known else parts._class_setstate(kind, state)


def loads_at_home(content: bytes) -> Any:
    """The thing of :func:`dumps`, in the process whose classes it may use."""
    return _AtHome(content).load()


def check_travel(things: Mapping[str, Any]) -> None:
    """Raise unless everything can be sent to another process.

    Args:
        things: by what a user calls them.

    Raises:
        DataError: naming what cannot be sent, and the part of it where that is known.
    """
    for name, thing in things.items():
        problem = _problem(thing)
        if problem is None:
            continue
        where = ""
        if isinstance(thing, torch.nn.Module):
            where = culprit(thing, lambda part: _problem(part) is not None)
        raise DataError(
            f"the {name} cannot be sent to workers: {where}{': ' if where else ''}{type(problem).__name__}: "
            f"{problem}; keep open files, locks, generators and compiled functions out of it, or compute in "
            "this process alone (workers=1, no executor)"
        ) from problem


def _problem(thing: Any) -> Exception | None:
    try:
        dumps(thing)
    except Exception as error:
        return error
    return None


def versions() -> dict[str, str]:
    """What equal results depend on, besides the work itself."""
    from analognoise import __version__  # not at the top: the package's map of names imports this module

    return {
        "analognoise": __version__,
        "torch": torch.__version__.partition("+")[0],
        "python": ".".join(platform.python_version_tuple()[:2]),
        "machine": platform.machine(),
    }


@contextlib.contextmanager
def threads_set(count: int) -> Iterator[None]:
    """torch computes with ``count`` threads inside, and with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread() -> contextlib.AbstractContextManager[None]:
    """torch computes with one thread inside, and with as many as before afterwards."""
    return threads_set(1)


def perform(
    job: bytes,
    shared: Mapping[str, bytes],
    threads: int,
    expected: Mapping[str, str],
    home: str,
    emit: Callable[[Any], None] | None = None,
) -> bytes:
    """Do a job in a worker; this is what executors are given.

    Args:
        job: pickled.
        shared: of what it shares with others, what came along, by key.
        threads: of torch.
        expected: :func:`versions` where the job comes from.
        home: the process that it comes from; any other keeps the job's warnings for it.
        emit: takes what is found on the way; without one that goes back with the result.

    Returns:
        One of ``("done", (found on the way, result), warnings)``, ``("missing", None, warnings)`` and
        ``("error", exception, warnings)``, pickled.
    """
    with warnings_kept(home) as warned:
        kind, payload = _performed(job, shared, threads, expected, emit, home == this_process())
    return dumps((kind, payload, warned))


def _performed(
    job: bytes,
    shared: Mapping[str, bytes],
    threads: int,
    expected: Mapping[str, str],
    emit: Callable[[Any], None] | None,
    at_home: bool,
) -> tuple[str, Any]:
    loads = loads_at_home if at_home else pickle.loads
    try:
        _check_versions(expected)
        with _LOADING:
            for key, content in shared.items():
                if key not in _HELD.values:
                    _HELD.values[key] = loads(content)
                while len(_HELD.values) > _KEPT:
                    _HELD.values.popitem(last=False)
            work = loads(job)
    except WorkerError as error:
        return "error", error
    except Exception as error:
        text = (
            f"a job cannot be loaded by a worker on {socket.gethostname()} ({type(error).__name__}: "
            f"{error}): install there what it needs, or keep model and functions in a module that every "
            "worker can import"
        )
        return "error", WorkerError(text)
    collected: list[Any] = []
    try:
        with _ALONE if getattr(work, "exclusive", True) else contextlib.nullcontext(), threads_set(threads):
            result = work.run(collected.append if emit is None else emit)
        return "done", (collected, result)
    except Missing:
        return "missing", None
    except Exception as error:
        return "error", _portable(error)


def _check_versions(expected: Mapping[str, str]) -> None:
    for name, here in versions().items():
        if here != expected[name]:
            raise WorkerError(
                f"a worker on {socket.gethostname()} has {name} {here}, the work comes from {name} "
                f"{expected[name]}: results would differ; use the same everywhere"
            )


def _portable(error: Exception) -> Exception:
    """The error, or one that says the same where it does not survive the way."""
    try:
        again = loads_at_home(dumps(error))
    except Exception:
        again = None
    if type(again) is type(error) and str(again) == str(error):
        return error
    told = WorkerError(f"{type(error).__name__}: {error}")
    for note in getattr(error, "__notes__", ()):
        told.add_note(note)
    return told
