"""What people read: numbers with their nouns, and results that rich can draw as text, without colours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from rich.console import Console, RenderableType

WIDTH = 110


def as_text(drawn: RenderableType, width: int = WIDTH) -> str:
    """A table, or whatever rich can draw, as plain lines of at most ``width`` characters."""
    console = Console(width=width, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(drawn)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def counted(number: int, noun: str) -> str:
    """A number with its noun: ``"1 tile"``, ``"3,728 devices"``, ``"2 batches"``."""
    ending = "es" if noun.endswith(("s", "tch")) else "s"
    return f"{number:,} {noun}{ending * (number != 1)}"


def kind_of(value: object) -> str:
    """The type of a value with its article: ``"an int"``, ``"a lock"``."""
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


class Printed(ABC):
    """Base of results whose text is what rich draws of them; a dataclass needs ``repr=False`` to keep it."""

    text_width: ClassVar[int] = WIDTH

    @abstractmethod
    def __rich_console__(self, console: Console, options: Any) -> Any: ...

    def __str__(self) -> str:
        return as_text(self, self.text_width)

    __repr__ = __str__


def number(value: float, form: str) -> str:
    """A number by a format, for people: with a minus sign (``"−0.4"``), where files have a hyphen."""
    return signed(format(value, form))


def signed(text: str) -> str:
    """A formatted number with a minus sign in place of a hyphen before it."""
    return "−" + text[1:] if text.startswith("-") else text
