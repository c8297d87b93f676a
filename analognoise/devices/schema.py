"""The JSON Schema of profile files, made from the models, for editors that complete and check."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import JsonSchemaMode, models_json_schema

from analognoise.devices.base import Frozen
from analognoise.devices.curves import CURVES
from analognoise.devices.profile import DeviceProfile

# What editors understand best; it has no keyword that is missed here.
_DIALECT = "http://json-schema.org/draft-07/schema#"
_PLACE = "#/definitions/"
_PROFILE = "One memory technology. A section that is absent is an effect that the device has not."
_KIND = "the kind of the curve"
_BELOW = "where this piece ends: it holds for x < below; the last piece has none"
_CSV = "file beside the profile that holds the points: two columns x,y; # begins a comment"


def profile_schema() -> dict[str, Any]:
    """The schema (draft 7) of a profile's file, as nested dictionaries.

    It knows every field, its type and its limits. What hangs on several fields at once, as that a curve must
    not be negative within the range of conductance, only loading the profile tells.
    """
    kinds = list(CURVES.values())
    models: list[tuple[type[Frozen], JsonSchemaMode]] = [(DeviceProfile, "validation")]
    models += [(kind, "validation") for kind in kinds]
    made = models_json_schema(models, ref_template=f"{_PLACE}{{model}}")[1]
    parts: dict[str, Any] = {name: _tidy(part) for name, part in sorted(made["$defs"].items())}
    profile = {**parts.pop(DeviceProfile.__name__), "description": _PROFILE}
    for kind in kinds:
        _complete(parts[kind.__name__])
    parts["Curve"] = {"anyOf": [{"type": "number"}, *({"$ref": _PLACE + kind.__name__} for kind in kinds)]}
    parts["Piece"] = {"anyOf": [_piece(parts[kind.__name__]) for kind in kinds]}
    about = {"$schema": _DIALECT, "title": "Device profile of analognoise"}
    return {**about, **profile, "definitions": parts}


def _tidy(part: Any) -> Any:
    """A part of what pydantic makes, without titles and nulls, which TOML has not, and with references."""
    if isinstance(part, list):
        return [_tidy(item) for item in part]
    if not isinstance(part, dict):
        return part
    part = {key: value for key, value in part.items() if key != "title" or isinstance(value, dict)}
    if part.get("default", 0) is None or isinstance(part.get("default"), dict):
        del part["default"]  # of a whole section it is that of its fields
    if "$comment" in part:
        part["$ref"] = _PLACE + part.pop("$comment")
    options = [option for option in part.get("anyOf", ()) if option != {"type": "null"}]
    if len(options) == 1:
        (option,) = options
        del part["anyOf"]
        part = {**option, **part}
        return _tidy(part)
    if "$ref" in part and len(part) > 1:
        part = {"allOf": [{"$ref": part.pop("$ref")}], **part}  # beside a reference nothing is read
    if isinstance(part.get("description"), str):
        part["description"] = " ".join(part["description"].replace("``", "").split())
    return {key: _tidy(options if key == "anyOf" else value) for key, value in part.items()}


def _complete(kind: dict[str, Any]) -> None:
    """Say of a curve what its model does not: it names itself, and its points may stand in a CSV file."""
    kind["properties"]["curve"] = {"const": kind["properties"]["curve"]["const"], "description": _KIND}
    required = ["curve", *kind.get("required", ())]
    if "x" in required:
        kind["properties"]["csv"] = {"type": "string", "description": _CSV}
        kind["oneOf"] = [{"required": ["x", "y"]}, {"required": ["csv"]}]
        required = ["curve"]
    kind["required"] = required


def _piece(part: dict[str, Any]) -> dict[str, Any]:
    """A curve as it stands in ``pieces``: with ``below``."""
    properties = {name: field for name, field in part["properties"].items() if name != "reference"}
    return {**part, "properties": {"below": {"type": "number", "description": _BELOW}, **properties}}
