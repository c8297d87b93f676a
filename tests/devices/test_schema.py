"""The JSON Schema says of a profile what the models say, and the published file is in step with them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from analognoise.devices import DeviceProfile
from analognoise.devices.schema import profile_schema
from analognoise.errors import ProfileError

FOLDER = Path(__file__).parents[2] / "hardware_profiles"
PUBLISHED = FOLDER / "profile.schema.json"
SCHEMA = profile_schema()
PCM = (FOLDER / "pcm-ibm.toml").read_text(encoding="utf-8")


def validator() -> Draft7Validator:
    Draft7Validator.check_schema(SCHEMA)
    return Draft7Validator(SCHEMA)


def test_the_published_file_is_in_step_with_the_models() -> None:
    """If not: analognoise profiles schema > hardware_profiles/profile.schema.json"""
    expected = json.dumps(SCHEMA, indent=2, ensure_ascii=False) + "\n"
    assert PUBLISHED.read_text(encoding="utf-8") == expected


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_profile_is_valid(path: Path) -> None:
    validator().validate(tomllib.loads(path.read_text(encoding="utf-8")))


def test_the_starting_file_is_valid() -> None:
    text = files("analognoise.devices").joinpath("new_profile.toml").read_text(encoding="utf-8")
    validator().validate(tomllib.loads(text))


def both(text: str) -> tuple[bool, bool]:
    """Whether the schema, and whether the models, take a profile."""
    data = tomllib.loads(text)
    try:
        DeviceProfile.from_dict(data)
    except ProfileError:
        return validator().is_valid(data), False
    return validator().is_valid(data), True


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("g_max = 25.0", "gmax = 25.0"),
        ("g_max = 25.0", "g_max = -25.0"),
        ("g_max = 25.0", 'g_max = "25"'),
        ("g_max = 25.0\n", ""),
        ('unit = "uS"', 'unit = "mS"'),
        ('name = "pcm-ibm"', 'name = "my device"'),
        ('name = "pcm-ibm"', ""),
        ("schema = 1", "schema = 2"),
        ("[programming]", "[programing]"),
        ('scale = "column"', 'scale = "row"'),
        ("clamp_at_zero = true", "clamp_at_zero = 1"),
        ("t_0 = 20.0", "t_0 = 0.0"),
        ("t_0 = 20.0", 't_0 = "20s"'),
        ("rows = 512", "rows = 0"),
        ("rows = 512", "rows = 1.5"),
        ('curve = "polynomial", coefficients', 'curve = "polinomial", coefficients'),
        ('curve = "polynomial", coefficients', "coefficients"),
        ('curve = "polynomial", coefficients', 'curve = "log", coefficients'),
        ("coefficients = [0.26348, 1.9650, -1.1731]", "coefficients = []"),
        ("coefficients = [0.26348, 1.9650, -1.1731]", "coefficients = [true]"),
        ("exponent = -0.65", 'exponent = "a"'),
        ("exponent = -0.65", "exponent = -0.65, zzz = 1"),
        ("exponent = -0.65", "exponent = -0.65, scale = -1.0"),
        ("t_0 = 20.0\nnu_mean = {", "t_0 = 20.0\nnu_mean = true # {"),
    ],
)
def test_what_is_broken_is_invalid(old: str, new: str) -> None:
    assert PCM.count(old) >= 1
    assert both(PCM.replace(old, new, 1)) == (False, False)


@pytest.mark.parametrize(
    ("curve", "right"),
    [
        ("0.5", True),
        ("1", True),
        ('{ curve = "constant", value = 1, min = 0, max = 3.5, scale = 2 }', True),
        ('{ curve = "table", x = [0, 1], y = [0.1, 0.2] }', True),
        ('{ curve = "table", x = [0, 1] }', False),
        ('{ curve = "table" }', False),
        ('{ curve = "saturation", amplitude = 1.0, knee = 0.5, reference = 3 }', True),
        ('{ curve = "saturation", amplitude = 1.0, knee = 0.0 }', False),
        ('{ curve = "piecewise", pieces = [{ below = 0.3, curve = "constant", value = 1 }, '
         '{ curve = "log", slope = 1, intercept = 2 }] }', True),
        ('{ curve = "piecewise", pieces = [{ below = 0.3, value = 1 }] }', False),
        ('{ curve = "piecewise", pieces = [3] }', False),
        ('{ curve = "piecewise", pieces = [] }', False),
        ('{ curve = "piecewise", pieces = [{ belwo = 0.3, curve = "constant", value = 1 }] }', False),
        ('"a"', False),
        ("[1]", False),
    ],
)  # fmt: skip
def test_curves(curve: str, right: bool) -> None:
    text = f'name = "x"\n[conductance]\nunit = "uS"\ng_max = 3\n[programming]\nsigma = {curve}\n'
    assert both(text) == (right, right)


def test_points_in_a_file_are_as_good_as_points() -> None:
    text = (
        'name = "x"\n[conductance]\nunit = "uS"\ng_max = 3\n[programming]\nsigma = { curve = "table", csv = '
    )
    assert validator().is_valid(tomllib.loads(text + '"points.csv" }'))
    assert not validator().is_valid(tomllib.loads(text + "3 }"))
    assert not validator().is_valid(tomllib.loads(text + '"points.csv", x = [0], y = [1] }'))


@pytest.mark.parametrize(
    ("section", "right"),
    [
        ('[validity]\nmeasured = ["1s", 86400]\nextrapolate = true', True),
        ("[validity]\nmeasured = 3", False),
        ('[mapping]\ncell = "pair"\npairs = [1, 0.5]\nclip_percentile = 99.9', True),
        ('[mapping]\ncell = "triple"', False),
        ("[mapping]\nclip_percentile = 101", False),
        ('[retention]\nages = ["1s", 3600]\nsigma = [0.1, { curve = "constant", value = 0.2 }]', True),
        ('[retention]\nages = ["1s"]\nsigma = 0.1', False),
        ("[relaxation]\nshift = -0.1\nsigma = 0.4\nsigma_slope = 0.04", True),
        ("[relaxation]\nshift = -0.1", False),
        ('[read]\ngrowth = "none"\nsigma = 0.1', True),
        ('[read]\ngrowth = "some"\nsigma = 0.1', False),
        ('[law]\nname = "mine"\nown = [1, 2]', True),
        ("[law]\nown = 1", False),
    ],
)
def test_sections(section: str, right: bool) -> None:
    assert both(f'name = "x"\n{section}\n[conductance]\nunit = "uS"\ng_max = 3\n') == (right, right)


def fields(part: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property in a schema."""
    if isinstance(part, dict):
        for name, field in part.get("properties", {}).items():
            yield f"{path}.{name}", field
        for key, value in part.items():
            yield from fields(value, f"{path}.{key}")
    elif isinstance(part, list):
        for index, value in enumerate(part):
            yield from fields(value, f"{path}[{index}]")


def test_every_field_is_described() -> None:
    bare = []
    for path, field in fields(SCHEMA):
        reference = field.get("$ref", "").rsplit("/")[-1]
        if not (field.get("description") or SCHEMA["definitions"].get(reference, {}).get("description")):
            bare.append(path)
    assert bare == []
    assert "seconds" in SCHEMA["definitions"]["Drift"]["properties"]["t_0"]["description"]


def test_unknown_fields_are_forbidden_everywhere_but_among_the_parameters_of_a_law() -> None:
    open_ended = [
        name
        for name, part in SCHEMA["definitions"].items()
        if part.get("type") == "object" and part.get("additionalProperties") is not False
    ]
    assert open_ended == ["Law"]
    assert SCHEMA["additionalProperties"] is False
