"""Progress bars on standard error, for work that lasts longer than two seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[..., None]
PATIENCE = 2.0


@contextmanager
def progress_bar(description: str, total: int, enabled: bool = True) -> Iterator[Advance]:
    """Yield ``advance(steps=1, note="", total=None)``; the bar appears once the work has lasted two seconds,
    on standard error.

    Args:
        description: what is being done.
        total: number of steps, which ``advance`` may correct.
        enabled: False gives a function that does nothing.
    """
    if not enabled:
        yield lambda steps=1, note="", total=None: None
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(description, total=total, note="")
    begun, shown = time.monotonic(), False

    def advance(steps: int = 1, note: str = "", total: int | None = None) -> None:
        nonlocal shown
        bar.update(task, advance=steps, note=note, total=total)
        if not shown and time.monotonic() - begun > PATIENCE:
            bar.start()
            shown = True

    try:
        yield advance
    finally:
        if shown:
            bar.stop()
