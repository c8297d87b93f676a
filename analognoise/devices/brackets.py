"""Brackets that a TOML text opens and never closes, found where they open.

A parser notices them only lines later, where something comes that cannot stand in a list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_TOKEN = re.compile(r'"""|\'\'\'|"(?:\\.|[^"\\])*"|\'[^\']*\'|#.*|[][{}]')
_HEADING = re.compile(r"\s*\[\[?\s*[A-Za-z_][\w.\"' -]*\]\]?\s*(#.*)?$")
_FIELD = re.compile(r"\s*[A-Za-z_][\w.\"'-]*\s*=")
_CLOSES = {"]": "[", "}": "{"}


class Unclosed(NamedTuple):
    """A bracket that is not closed.

    Attributes:
        line: of what is to be said, counted from 1.
        column: likewise.
        text: what is wrong.
        first: the line that holds the outermost bracket that is open there.
        last: the last line that belongs to the broken value.
    """

    line: int
    column: int
    text: str
    first: int
    last: int


class _Open(NamedTuple):
    bracket: str
    line: int
    column: int


def unclosed(lines: Sequence[str]) -> Unclosed | None:
    """The first bracket of a text that is not closed where it must be, None where there is none."""
    stack: list[_Open] = []
    for number, line, tokens in _tokens(lines):
        if stack and (_HEADING.match(line) or _FIELD.match(line)):
            return _list(stack, number - 1)
        for column, token in tokens:
            if token in "[{":
                stack.append(_Open(token, number, column))
            elif stack and stack[-1].bracket == _CLOSES[token]:
                stack.pop()
            elif stack:
                inner = stack[-1]
                text = f"{token} stands where the {inner.bracket} of line {inner.line} must be closed before"
                return Unclosed(number, column, text, stack[0].line, number)
        if stack and stack[-1].bracket == "{":
            text = (
                "this { is not closed before the line ends: a table { … } stays on one line "
                "(only a list inside it may go on)"
            )
            inner = stack[-1]
            return Unclosed(inner.line, inner.column, text, stack[0].line, _end(lines, stack, number))
    return _list(stack, len(lines)) if stack else None


def _list(stack: Sequence[_Open], last: int) -> Unclosed:
    inner = stack[-1]
    return Unclosed(inner.line, inner.column, f"this {inner.bracket} is not closed", stack[0].line, last)


def _end(lines: Sequence[str], stack: Sequence[_Open], broken: int) -> int:
    """The line that closes all open brackets, where one does before the next heading."""
    depth = len(stack)
    for number, line, tokens in _tokens(lines[broken:]):
        if _HEADING.match(line):
            break
        for _, token in tokens:
            depth += 1 if token in "[{" else -1
        if depth == 0:
            return broken + number
    return broken


def _tokens(lines: Sequence[str]) -> Iterator[tuple[int, str, list[tuple[int, str]]]]:
    """Number, text and brackets of each line, those in texts and comments left out."""
    within = ""  # the quotes of a text over several lines
    for number, line in enumerate(lines, 1):
        found, place = [], 0
        continued = bool(within)
        while True:
            if within:
                end = line.find(within, place)
                if end < 0:
                    break
                place, within = end + 3, ""
            match = _TOKEN.search(line, place)
            if match is None:
                break
            place = match.end()
            if match[0] in ('"""', "'''"):
                within = match[0]
            elif match[0] in "[]{}":
                found.append((match.start() + 1, match[0]))
        yield number, "" if continued else line, found
