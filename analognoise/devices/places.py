"""Where in a TOML file a field stands. ``tomllib`` reads values but keeps no places; tree-sitter keeps them.

Only the way to an error message leads here, so tree-sitter is imported here and nowhere else.
"""

from __future__ import annotations

import tomllib
from typing import TypeAlias

import tree_sitter_toml
from tree_sitter import Language, Node, Parser

from analognoise.devices.problems import Path

Place: TypeAlias = tuple[int, int]
"""Line and column, both counted from 1, the column in characters."""

_KEYS = ("bare_key", "quoted_key", "dotted_key")


class Places:
    """The places of all fields and values of a TOML text that ``tomllib`` can read.

    Args:
        text: the whole file.
    """

    def __init__(self, text: str) -> None:
        self._lines = text.encode().split(b"\n")
        self._keys: dict[Path, Place] = {}
        self._values: dict[Path, Place] = {}
        self._lengths: dict[Path, int] = {}  # of arrays of tables, so far
        parser = Parser(Language(tree_sitter_toml.language()))
        for node in parser.parse(text.encode()).root_node.named_children:
            if node.type == "pair":
                self._pair(node, ())
            elif node.type in ("table", "table_array_element"):
                self._table(node)

    def has(self, path: Path) -> bool:
        """Whether the text holds a field or a list item with this path."""
        return path in self._keys

    def key(self, path: Path) -> Place | None:
        """The place of a field's name, or of the part that should hold it; None for the file as a whole."""
        return self._nearest(self._keys, path)

    def value(self, path: Path) -> Place | None:
        """The place of a field's value; that of its name, or of the part around it, where there is none."""
        return self._values[path] if path in self._values else self.key(path)

    @staticmethod
    def _nearest(places: dict[Path, Place], path: Path) -> Place | None:
        parts = (path[:length] for length in range(len(path), 0, -1))
        return next((places[part] for part in parts if part in places), None)

    def _table(self, node: Node) -> None:
        head = next(child for child in node.named_children if child.type in _KEYS)
        *parents, last = _names(head)
        path = (*self._latest(parents), last)
        self._enter(path, self._place(head))
        if node.type == "table_array_element":
            index = self._lengths[path] = self._lengths.get(path, -1) + 1
            path = (*path, index)
            self._enter(path, self._place(head))
        for child in node.named_children:
            if child.type == "pair":
                self._pair(child, path)

    def _latest(self, names: Path | list[str]) -> Path:
        """A path of names, with the index of the last item behind each that is an array of tables."""
        path: Path = ()
        for name in names:
            path = (*path, name)
            if path in self._lengths:
                path = (*path, self._lengths[path])
        return path

    def _pair(self, node: Node, parent: Path) -> None:
        head, value = (child for child in node.named_children if child.type != "comment")
        path = (*parent, *_names(head))
        for length in range(len(parent) + 1, len(path) + 1):
            self._enter(path[:length], self._place(head))
        self._value(value, path)

    def _value(self, node: Node, path: Path) -> None:
        self._values[path] = self._place(node)
        items = [child for child in node.named_children if child.type != "comment"]
        if node.type == "inline_table":
            for item in items:
                self._pair(item, path)
        elif node.type == "array":
            for index, item in enumerate(items):
                self._enter((*path, index), self._place(item))
                self._value(item, (*path, index))

    def _enter(self, path: Path, place: Place) -> None:
        self._keys.setdefault(path, place)

    def _place(self, node: Node) -> Place:
        row, column = node.start_point
        return row + 1, len(self._lines[row][:column].decode()) + 1


def _names(key: Node) -> list[str]:
    """The names in a key, of which ``tomllib`` knows how to read quotes and escapes."""
    table = tomllib.loads(f"{(key.text or b'').decode()} = 0")
    names = []
    while isinstance(table, dict):
        ((name, table),) = table.items()
        names.append(name)
    return names
