"""Every field of a TOML text is found where it stands, however it is written."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from analognoise.devices.places import Places

TEXT = """\
# a comment
schema = 1
'lit' . "k.1".low = 3   # dotted, quoted
text = \"\"\"
[read]  # no table
a = 1
\"\"\"

[read]
  pieces = [  # on several lines
    { below = 0.3, curve = "log", q.r = -1.5 },
    # nothing here
    { curve = [1, [20, 300]] }, ]
"µ = [" = ["µµ", "after"]
"""
MORE = """
[a.b]
c = 1
[[x.y]]
z = 1
[[x.y]]
z = 22
[x.y.deep]
q = 5
[[x.y.many]]
[[x.y.many]]
last = true
"""


def everything(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every path below a value, with what stands there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, item in items:
        yield (*path, step), item
        yield from everything(item, (*path, step))


def rest(text: str, place: tuple[int, int] | None) -> str:
    assert place is not None
    line, column = place
    return text.split("\n")[line - 1][column - 1 :]


def test_each_key_and_value_stands_where_it_is_said() -> None:
    places = Places(TEXT + MORE)
    starts = {
        ("schema",): ("schema = 1", "1"),
        ("lit",): ("'lit' .", "'lit' ."),
        ("lit", "k.1", "low"): ("'lit' .", "3 "),
        ("text",): ("text =", '"""'),
        ("read",): ("read]", "read]"),
        ("read", "pieces"): ("pieces =", "[  # on"),
        ("read", "pieces", 0): ("{ below", "{ below"),
        ("read", "pieces", 0, "below"): ("below", "0.3"),
        ("read", "pieces", 0, "q", "r"): ("q.r", "-1.5"),
        ("read", "pieces", 1, "curve"): ("curve = [1", "[1, "),
        ("read", "pieces", 1, "curve", 1): ("[20", "[20"),
        ("read", "pieces", 1, "curve", 1, 1): ("300]", "300]"),
        ("read", "µ = ["): ('"µ = ["', '["µµ"'),
        ("read", "µ = [", 1): ('"after"', '"after"'),
        ("a", "b", "c"): ("c = 1", "1"),
        ("x", "y", 0, "z"): ("z = 1", "1"),
        ("x", "y", 1, "z"): ("z = 22", "22"),
        ("x", "y", 1, "deep", "q"): ("q = 5", "5"),
        ("x", "y", 1, "many", 1, "last"): ("last", "true"),
    }
    for path, (key, value) in starts.items():
        assert rest(TEXT + MORE, places.key(path)).startswith(key), path
        assert rest(TEXT + MORE, places.value(path)).startswith(value), path
    assert places.key(("read",)) == (9, 2)


def test_what_is_not_there_is_looked_for_around_it() -> None:
    places = Places(TEXT + MORE)
    assert places.value(("read", "t_read")) == places.key(("read",)) == (9, 2)
    assert places.value(("read", "pieces", 0, "min")) == places.key(("read", "pieces", 0))
    assert places.value(("nothing", "here")) is None
    assert places.has(("read", "pieces"))
    assert not places.has(("read", "t_read"))


@pytest.mark.parametrize(
    "text",
    [
        TEXT + MORE,
        TEXT.replace("\n", "\r\n"),
        *(
            path.read_text(encoding="utf-8")
            for path in sorted((Path(__file__).parents[2] / "hardware_profiles").glob("*.toml"))
        ),
        (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"),
        'a = [\n 1,\n\n 2 ]\n[b."c"]\n"d\\u00b5" = {}\n[b.e]\n',
        "",
    ],
)
def test_every_value_that_tomllib_reads_has_a_place(text: str) -> None:
    places = Places(text)
    for path, value in everything(tomllib.loads(text)):
        if isinstance(value, (dict, list)):
            continue  # one that was only made by a table below it has no line of its own
        assert places.has(path), path
        # A number stands there as it was read.
        if isinstance(value, int | float) and not isinstance(value, bool):
            first = rest(text, places.value(path)).replace(",", " ").split()[0].strip("[]{}")
            assert float(first) == value
