"""``analognoise compare``: a comparison with progress on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from analognoise.comparison import Comparison, Event
from analognoise.comparison import compare as compare_on_chips
from analognoise.devices import load_profile
from analognoise.devices.whatif import Changes
from analognoise.errors import ProfileError
from analognoise.jobs.output import Output
from analognoise.jobs.setup import Say, WhatIf
from analognoise.jobs.sharing import cluster
from analognoise.progress import Advance, progress_bar


@dataclass(frozen=True)
class Compared(Output):
    """A comparison that was shown or stored."""

    comparison: Comparison

    @property
    def failed(self) -> bool:
        """Whether a training broke down."""
        return bool(self.comparison.failed)

    def parts(self) -> Iterable[RenderableType]:
        """Where the files are; the tables come before, by :meth:`show`."""
        yield f"results: {self.comparison.folder} ({', '.join(self._names())})"

    def _names(self) -> list[str]:
        return sorted(path.name for path in self.comparison.paths.values())

    def show(self, console: Console) -> None:
        """Print the tables."""
        self.comparison.print(console)
        super().show(console)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return self.comparison.to_dict()


def compare_methods(
    task: str,
    *,
    profiles: Sequence[str],
    changes: WhatIf = ((), (), None),
    methods: Sequence[str],
    out: Path,
    workers: int | None = None,
    scheduler: str | None = None,
    say: Say = print,
    **settings: Any,
) -> Compared:
    """Compare methods, saying what is reused and what fails, with a progress bar.

    Args:
        task: a task's name, or ``module:callable``.
        profiles: names or files.
        changes: of profiles, as ``--set``, ``--scale`` and ``--periphery`` take them.
        methods: recipes.
        out: output folder.
        workers: processes; None takes one per core.
        scheduler: address of a Dask scheduler whose workers share the work.
        say: gets lines for the user.
        settings: as :func:`analognoise.comparison.compare`.

    Raises:
        AnalogNoiseError: as :func:`analognoise.comparison.compare`.
    """
    by_layer = next((text for text in profiles if "=" in text and not Path(text).is_file()), None)
    if by_layer is not None:
        raise ProfileError(
            f"profile {by_layer!r}: compare puts all layers on one device; 'analognoise evaluate' takes one "
            "by layer"
        )
    devices = Changes.parse(*changes).apply([load_profile(profile) for profile in profiles])
    return with_progress(
        compare_on_chips,
        task,
        profiles=devices,
        methods=methods,
        out=out,
        workers=workers,
        scheduler=scheduler,
        say=say,
        **settings,
    )


def with_progress(
    compare: Callable[..., Comparison],
    task: str,
    *,
    workers: int | None,
    scheduler: str | None,
    say: Say,
    **settings: Any,
) -> Compared:
    """Run a comparison of any kind, saying what is reused and what fails, with a progress bar.

    Args:
        compare: :func:`analognoise.compare` or its like.
        task: a task's name, or ``module:callable``.
        workers: processes; None takes one per core.
        scheduler: address of a Dask scheduler whose workers share the work.
        say: gets lines for the user.
        settings: as ``compare`` takes them.

    Raises:
        AnalogNoiseError: as ``compare``.
    """
    with cluster(workers, scheduler) as executor, ExitStack() as stack:
        progress = _Progress(stack, say)
        found = compare(task, workers=workers, executor=executor, on_event=progress.event, **settings)
    return Compared(found)


class _Progress:
    """Turns a comparison's events into a progress bar and lines."""

    def __init__(self, stack: ExitStack, say: Say) -> None:
        self.stack, self.say = stack, say
        self.advance: Advance | None = None
        self.done = 0
        self.note = ""
        # Where there is no terminal to draw a bar on, a line for each piece of work takes its place.
        self.bar = sys.stderr.isatty()

    def event(self, event: Event) -> None:
        """Take one event."""
        if event.kind == "plan":
            self.say(f"comparison: {event.message}")
            if event.total:
                self.advance = self.stack.enter_context(progress_bar("comparison", event.total, self.bar))
        elif event.kind in ("reused", "kept", "failed", "warning"):
            self.say(f"{event.kind}: {event.message}")
        elif event.kind in ("trained", "evaluated", "sharpness"):
            # The bar has room for what was done, not for how well.
            self.note = event.message.rsplit(": ", 1)[0]
            if not self.bar:
                self.say(f"{event.kind}: {event.message}")
        if self.advance is not None and event.kind != "done":
            self.advance(event.done - self.done, note=self.note)
            self.done = event.done
