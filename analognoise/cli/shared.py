"""What the commands share: how they are declared, read their lists, print, and are interrupted."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

from analognoise.errors import DataError

_MOST_SEEDS = 1000
GO_ON = "interrupted: run the same command again to go on"


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
    """Ctrl-C, with what there is to say about it."""


@contextmanager
def interruptible(text: str) -> Iterator[None]:
    """Have Ctrl-C inside end the program with this text."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(text) from None


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
