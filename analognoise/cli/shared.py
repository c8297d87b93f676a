"""What the commands share: how they are declared, read their lists, print, and are interrupted."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from analognoise.errors import DataError

if TYPE_CHECKING:
    from analognoise.jobs.output import Output  # pandas takes a while to load

_MOST_SEEDS = 1000


def new_app(**settings: Any) -> typer.Typer:
    """A group of commands."""
    return typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )


def examples(*lines: str) -> str:
    """The end of a command's help: command lines that work."""
    return "\n\n".join(["[bold]Examples[/]", *(f"analognoise {line}" for line in lines)])


class Interrupted(Exception):
    """Ctrl-C, or a request to terminate.

    Args:
        resumable: whether the same command goes on from here.
        signal: which of the two.
        replaced: whether ``--force`` has done its work.
        kept: what the command goes on from.
    """

    def __init__(
        self, resumable: bool, signal: int, replaced: bool = True, kept: str = "what is finished was kept"
    ) -> None:
        super().__init__()
        self.resumable, self.signal, self.replaced, self.kept = resumable, signal, replaced, kept

    def sentence(self, arguments: Sequence[str]) -> str:
        """What to tell the user, who gave these arguments."""
        if not self.resumable:
            return "interrupted: nothing was kept"
        # By force it would begin anew; without, what is still there from another run would be in its way.
        command = shlex.join(
            ["analognoise", *(word for word in arguments if word != "--force" or not self.replaced)]
        )
        return f"interrupted: {self.kept}, run the same command again to go on:\n  {command}"


class _Terminated(KeyboardInterrupt):
    """Somebody asked this process to end: it ends as by Ctrl-C, tidily."""


@contextmanager
def interruptible(resumable: bool, replacing: Path | None = None) -> Iterator[None]:
    """Have Ctrl-C, and the signal to terminate, end the program tidily, and say how to go on.

    Args:
        resumable: whether the same command goes on from where it was.
        replacing: the folder that ``--force`` empties first, if it was given.
    """

    def stop(number: int, frame: object) -> None:
        raise _Terminated

    here = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if here else None
    left = _run_in(replacing)
    try:
        yield
    except KeyboardInterrupt as stopped:
        terminated = isinstance(stopped, _Terminated)
        now = _run_in(replacing)
        # A training replaces what is there when it is done; what it goes on from until then is a checkpoint.
        replaced = left.isdisjoint(now) or any(name == "training.checkpoint" for name, *_ in now - left)
        number = signal.SIGTERM if terminated else signal.SIGINT
        # What a job knows better it has noted.
        kept = getattr(stopped, "__notes__", ["what is finished was kept"])[0]
        raise Interrupted(resumable, number, replaced, kept) from None
    finally:
        if here:
            signal.signal(signal.SIGTERM, before)


def _run_in(folder: Path | None) -> set[tuple[str, int, int]]:
    """The files in a folder that say whose run it holds, told apart from later ones of the same name."""
    found: set[tuple[str, int, int]] = set()
    if folder is None:
        return found
    for name in ("run.json", "results.csv", "training.checkpoint"):
        with suppress(OSError):
            status = (folder / name).stat()
            found.add((name, status.st_ino, status.st_mtime_ns))
    return found


def split(values: list[str]) -> list[str]:
    """The parts of an option that may be given several times, and with commas."""
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def profile_list(values: list[str]) -> list[str]:
    """As ``split``, but files with commas and PATTERN=PROFILE,… (one device by layer) stay whole."""
    from analognoise.devices.catalog import split_profiles

    return [part for value in values for part in ([value] if "=" in value else split_profiles(value))]


def seed_list(text: str) -> tuple[int, ...]:
    """``3`` means 0, 1, 2; ``0,4,7`` and ``4,`` mean themselves.

    Raises:
        DataError: when it is neither.
    """
    parts = [part.strip() for part in text.split(",")]
    if not any(parts) or not all(part.isascii() and part.isdigit() for part in parts if part):
        raise DataError(
            f"--seeds {text!r} is neither a number of seeds nor a list of them: write for example 3 or 0,1,7"
        )
    if len(parts) == 1:
        if int(text) < 1:
            raise DataError(f"--seeds must be at least 1, found {text}")
        if int(text) > _MOST_SEEDS:
            raise DataError(f"--seeds must be at most {_MOST_SEEDS}, found {text} (one seed alone: {text},)")
        return tuple(range(int(text)))
    return tuple(int(part) for part in parts if part)


def note(text: str) -> None:
    """Tell the user something beside the results."""
    print(text, file=sys.stderr, flush=True)


def show(result: Any, as_json: bool) -> None:
    """Print what a job found: as JSON, or for people."""
    if as_json:
        print(json.dumps(result.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
        return
    result.show(Console(highlight=False))


def carry_out(
    job: Callable[..., Output],
    as_json: bool,
    *,
    resumable: bool,
    out: Path | None,
    force: bool,
    **settings: Any,
) -> None:
    """Run the job of a command and print what it found; exit status 1 where a part of it failed.

    Args:
        job: what the command does.
        as_json: whether to print plain values.
        resumable: whether a call that was interrupted can be gone on with.
        out: the job's folder.
        force: whether what another run left there is replaced.
        settings: of the job, besides.
    """
    with interruptible(resumable, replacing=out if resumable and force else None):
        result = job(out=out, force=force, **settings, say=note)
    show(result, as_json)
    if result.failed:
        raise typer.Exit(1)
