"""Warnings that are given in workers, brought home: there they are said once, where somebody reads them."""

from __future__ import annotations

import os
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TextIO


class Warned(NamedTuple):
    """A warning, and where it was given."""

    text: str
    category: type[Warning]
    file: str
    line: int


class _Kept(threading.local):
    """The warnings of the job that a thread is at; None when it is at none."""

    warnings: list[Warned] | None = None


_KEPT = _Kept()
_before = warnings.showwarning


def this_process() -> str:
    """What tells this process from all others."""
    return f"{socket.gethostname()} {os.getpid()}"


@contextmanager
def warnings_kept(home: str) -> Iterator[list[Warned]]:
    """What this thread warns of inside, each once; nothing in the process that the work comes from, where
    warnings are seen anyway.

    Args:
        home: :func:`this_process` where the work comes from.
    """
    found: list[Warned] = []
    if home == this_process():
        yield found
        return
    _listen()
    _KEPT.warnings = found
    try:
        yield found
    finally:
        _KEPT.warnings = None


def _listen() -> None:
    """Have warnings shown by :func:`_show`. For good: what one thread puts back, another would miss."""
    global _before
    if warnings.showwarning is not _show:
        _before, warnings.showwarning = warnings.showwarning, _show


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    kept = _KEPT.warnings
    if kept is None:
        _before(message, category, filename, lineno, file, line)
        return
    # A class of some package might be unknown at home.
    builtin = next(kind for kind in category.__mro__ if kind.__module__ == "builtins")
    given = Warned(str(message), builtin, filename, lineno)
    if given not in kept:
        kept.append(given)


def say(warned: Warned, during: str) -> None:
    """Give a worker's warning here.

    Args:
        warned: the warning.
        during: what the worker was at.
    """
    text = f"{warned.text} (said by a worker, during: {during})"
    warnings.warn_explicit(text, warned.category, warned.file, warned.line)
