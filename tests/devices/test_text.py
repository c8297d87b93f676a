"""A broken profile file tells everything that is wrong in it at once, each with its line."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import pytest

from analognoise.devices import DeviceProfile, load_profile
from analognoise.devices.text import profile_of_text
from analognoise.errors import Finding, ProfileError

GOOD = """\
schema = 1
name = "mine"

[conductance]
unit = "uS"
g_max = 25.0

[programming]
sigma = { curve = "polynomial", coefficients = [0.3, 1.0] }

[drift]
t_0 = 20.0
nu_mean = 0.05
nu_std = { curve = "piecewise", pieces = [
    { below = 0.5, curve = "constant", value = 0.02 },
    { curve = "log", slope = -0.01, intercept = 0.01 },
] }

[read]
t_read = 250e-9
relative_sigma = { curve = "power", coefficient = 0.01, exponent = -0.6, max = 0.2 }
"""


def findings(folder: Path, *changes: tuple[str, str]) -> tuple[str, list[tuple[int | None, int | None, str]]]:
    """The message about GOOD with some text replaced, and line, column, path of everything found."""
    text = GOOD
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    return str(caught.value), [(found.line, found.column, found.path) for found in caught.value.findings]


def test_the_text_is_good() -> None:
    import tomllib

    assert DeviceProfile.from_dict(tomllib.loads(GOOD)).name == "mine"


def test_everything_wrong_is_found_at_once(tmp_path: Path) -> None:
    message, found = findings(
        tmp_path,
        ('unit = "uS"', 'unit = "mS"'),
        ("t_0 = 20.0", 't_0 = "20s"'),
        ("value = 0.02", 'value = "a"'),
        ("slope = -0.01,", "slpoe = -0.01,"),
        ("t_read = 250e-9", "t_read = 0\nzzz = 1"),
    )
    assert found == [
        (5, 8, "conductance.unit"),
        (12, 7, "drift.t_0"),
        (15, 48, "drift.nu_std.pieces[0].value"),
        (16, 22, "drift.nu_std.pieces[1].slpoe"),
        (20, 10, "read.t_read"),
        (21, 1, "read.zzz"),
    ]
    # One of them is the message; an unknown field explains others, so it comes first.
    assert message.startswith(
        f"{tmp_path / 'mine.toml'}, line 16: unknown field drift.nu_std.pieces[1].slpoe"
    )
    assert message.endswith("(5 more problems in it; 'analognoise profiles check' lists all)")


def test_what_only_a_valid_rest_shows_is_found_too(tmp_path: Path) -> None:
    """Whether a curve fits the range is asked last; no other mistake hides it."""
    _, found = findings(
        tmp_path,
        ("0.3, 1.0]", "-0.3, 0.1]"),  # negative
        ("t_0 = 20.0", "t_0 = 0"),
        ("nu_mean = 0.05", "nu_mean = 50.0"),  # no exponent
        (", max = 0.2", ""),  # infinite at 0
        ('unit = "uS"', 'unit = "mS"'),
        ('name = "mine"', 'name = "my device"'),
    )
    assert [path for *_, path in found] == [
        "name",
        "conductance.unit",
        "programming.sigma",
        "drift.t_0",
        "drift.nu_mean",
        "read.relative_sigma",
    ]
    assert [line for line, *_ in found] == [2, 5, 9, 12, 13, 21]


def test_nothing_is_invented_while_looking_further(tmp_path: Path) -> None:
    """Leaving a broken curve's limit out would make it infinite, a broken g_max every figure too large."""
    _, found = findings(tmp_path, ("max = 0.2", 'max = "0.2"'))
    assert found == [(21, 80, "read.relative_sigma.max")]
    _, found = findings(tmp_path, ("g_max = 25.0", "g_max = -25.0"))
    assert found == [(6, 9, "conductance.g_max")]
    _, found = findings(tmp_path, ("g_max = 25.0", "gmax = 25.0"))
    assert found == [(6, 1, "conductance.gmax")]
    _, found = findings(tmp_path, ("[conductance]\nunit", "conductance = 3\nunit"))
    assert {path for *_, path in found} == {"conductance", "unit", "g_max"}


def test_a_missing_section_has_no_line(tmp_path: Path) -> None:
    text = "\n".join(line for line in GOOD.split("\n") if line not in ('unit = "uS"', "g_max = 25.0"))
    (tmp_path / "mine.toml").write_text(text.replace("[conductance]", ""), encoding="utf-8")
    with pytest.raises(ProfileError) as caught:
        load_profile(tmp_path / "mine.toml")
    text = "field conductance is missing: it must be a table with unit, g_max and g_min"
    assert caught.value.findings == (Finding("conductance", text),)
    assert str(caught.value) == f"{tmp_path / 'mine.toml'}: {text}"


def test_lines_that_are_no_toml_are_all_found_with_what_else_is_wrong(tmp_path: Path) -> None:
    message, found = findings(
        tmp_path,
        ("g_max = 25.0", "g_max = 25,0"),
        ("t_0 = 20.0", "t_0 = 20 s"),
        ("nu_mean = 0.05", "nu_mean = true"),
        ("t_read = 250e-9", "t_read = 250ns\nt_read = 1"),
    )
    assert [(line, path) for line, _, path in found] == [
        (6, ""),
        (12, ""),
        (13, "drift.nu_mean"),
        (20, ""),
    ]
    assert "line 6, column 11: not valid TOML: expected newline" in message


@pytest.mark.parametrize(
    ("old", "new", "line", "rest"),
    [
        ("[drift]", "[drift", 11, []),
        ('name = "mine"', 'name = """mine', 21, []),
        ("] }\n\n[read]", "}\n\n[read]", 17, [20]),
        ("0.3, 1.0] }", "0.3, 1.0", 9, [20]),
        ("0.3, 1.0] }", "0.3, 1.0,", 9, [20]),
        ("0.3, 1.0] }", "0.3, 1.0]", 9, [20]),
        ("0.3, 1.0] }", "\n0.3, 1.0]\n}", 9, [22]),
        ('= { curve = "polynomial", ', '= {\n  curve = "polynomial",\n  ', 9, [22]),
    ],
)
def test_an_open_bracket_is_reported_where_it_opens_and_hides_nothing_later(
    tmp_path: Path, old: str, new: str, line: int, rest: list[int]
) -> None:
    message, found = findings(tmp_path, (old, new), ("250e-9", "-250e-9"))
    assert [place for place, *_ in found] == [line, *rest]
    assert len(rest) == 0 or "closed" in message


def test_a_table_over_several_lines_is_told_to_stay_on_one(tmp_path: Path) -> None:
    message, found = findings(tmp_path, ("slope = -0.01, ", "slope = -0.01,\n    "))
    assert found == [(16, 5, "")]
    assert "a table { … } stays on one line" in message


def test_one_section_hides_no_other(tmp_path: Path) -> None:
    """Whatever is wrong in a section by itself is said, however broken the range and the others are."""
    _, found = findings(
        tmp_path,
        ("g_max = 25.0", "g_max = 3\ng_min = 5"),
        ("nu_mean = 0.05", "nu_mean = -0.05"),
        ("t_read = 250e-9", "t_read = 250e-9\nsigma = 1.0"),
    )
    assert [path for *_, path in found] == ["conductance.g_min", "drift.nu_mean", "read.sigma"]
    more = """
[retention]
ages = ["1d", "2d"]
sigma = [1, 2, 3]

[mapping]
scale = "row"
pairs = [1.0, -2]

[faults]
stuck_at_g_min = 0.7
stuck_at_g_max = 0.7
map = "no.npy"

[validity]
measured = ["1s", "1d"]
default_times = ["5d"]
extrapolate = false
"""
    _, found = findings(tmp_path, ("exponent = -0.6, max = 0.2 }\n", "exponent = -0.6, max = 0.2 }\n" + more))
    assert [path for *_, path in found] == [
        "programming",
        "retention",
        "retention.sigma",
        "mapping.scale",
        "mapping.pairs[1]",
        "faults.stuck_at_g_max",
        "faults.map",
        "validity.default_times",
    ]


def test_a_profile_that_is_no_file_has_findings_without_lines() -> None:
    with pytest.raises(ProfileError) as caught:
        DeviceProfile.from_dict({"name": "x", "conductance": {"unit": "uS", "g_max": -1}, "zzz": 1})
    assert [found.path for found in caught.value.findings] == ["zzz", "conductance.g_max"]
    assert all(found.line is None for found in caught.value.findings)
    assert "zzz" in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.findings) == (str(caught.value), caught.value.findings)


def test_a_text_that_ends_too_early_ends_the_search(tmp_path: Path) -> None:
    """The last line is to blame, whatever is left out of it."""
    for end in ("[tile]\nrows = {", "[tile]\nrows =", "[tile", 'x = "', "x = [", "x = [1,\n\n", "=", "a.b."):
        (tmp_path / "mine.toml").write_text(GOOD + end, encoding="utf-8")
        with pytest.raises(ProfileError) as caught:
            load_profile(tmp_path / "mine.toml")
        assert len(caught.value.findings) == 1
        assert (caught.value.findings[0].line or 0) >= 22


def test_whatever_a_text_holds_it_is_a_profile_or_has_findings_with_places() -> None:
    rng = random.Random(0)
    pieces = [
        '"',
        "[",
        "]",
        "{",
        "}",
        "=",
        ",",
        "\n",
        "x",
        "-",
        "1e400",
        "nan",
        "true",
        '"""',
        "µ",
        "#",
        "\\",
    ]
    broken = 0
    for _ in range(200):
        text = GOOD
        for _ in range(rng.choice([1, 2, 4])):
            place = rng.randrange(len(text))
            if rng.random() < 0.5:
                text = text[:place] + text[place + rng.choice([1, 2, 20]) :]
            else:
                text = text[:place] + rng.choice(pieces) + text[place:]
        lines = text.split("\n")
        try:
            profile_of_text(text, "mine.toml", None)
            found: tuple[Finding, ...] | None = None
        except ProfileError as error:
            found = error.findings
        if found is not None:
            broken += 1
            assert len(set(found)) == len(found) > 0
            for finding in found:
                assert finding.text
                if finding.line is not None and finding.column is not None:
                    assert 1 <= finding.column <= len(lines[finding.line - 1]) + 2
    assert broken > 100
