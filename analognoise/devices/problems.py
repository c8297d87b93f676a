"""From what pydantic finds wrong to one sentence: where, what was found and what would be right."""

from __future__ import annotations

import json
import math
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from analognoise.errors import ProfileError, nearest

# What is right, by pydantic's type of error; {…} are filled from the error's context.
_EXPECTED = {
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "string_type": "text in quotes",
    "string_pattern_mismatch": "of letters, digits and . _ + -, without spaces",
    "model_type": "a table of fields",
    "tuple_type": "a list",
    "too_short": "a list of at least {min_length}",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "literal_error": "{expected}",
}


class Problem(ValueError):
    """Something wrong that a validator found, before it is known in which file.

    Attributes:
        field: dotted path of the field, relative to what was being validated; may be empty.
        text: what was found and what would be right, as the rest of a sentence that begins with the field.
    """

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field, self.text = field, text


class Nested(ValueError):
    """The problems of a part that was validated by itself, such as a curve."""

    def __init__(self, model: type[BaseModel], error: ValidationError) -> None:
        super().__init__(str(error))
        self.model, self.error = model, error


def explain(error: ValidationError, model: type[BaseModel], where: str) -> ProfileError:
    """One sentence about the first problem, with the number of the others.

    Args:
        error: what pydantic raised.
        model: the class that was validated.
        where: the file, or whatever else tells the user which profile is meant.
    """
    found = list(_problems(error, model, ""))
    # A misspelt field is reported as unknown and as missing: "unknown" tells more.
    found.sort(key=lambda sentence: not sentence.startswith("unknown"))
    others = len(found) - 1
    more = f" ({others} more problem{'s' if others > 1 else ''} in it)" if others else ""
    return ProfileError(f"{where}: {found[0]}{more}")


def show(value: object, limit: int = 60) -> str:
    """A value as TOML writes it, shortened."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    try:
        text = json.dumps(value, ensure_ascii=False)
    except TypeError:
        text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _problems(error: ValidationError, model: type[BaseModel], prefix: str) -> list[str]:
    sentences: list[str] = []
    for item in error.errors():
        path = prefix
        for step in item["loc"]:
            path = f"{path}[{step}]" if isinstance(step, int) else f"{path}.{step}" if path else step
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, Nested):
            sentences += _problems(cause.error, cause.model, path)
        elif isinstance(cause, Problem):
            field = ".".join(part for part in (path, cause.field) if part)
            sentences.append(f"{field} {cause.text}")
        else:
            sentences.append(_sentence(item, path, model))
    return sentences


def _sentence(item: Any, path: str, model: type[BaseModel]) -> str:
    kind, value, loc = item["type"], item["input"], item["loc"]
    if kind == "extra_forbidden":
        known = _names(_table(model, loc[:-1]))
        hint = _elsewhere(loc[-1], model) or nearest(loc[-1], known) or f": known here are {', '.join(known)}"
        return f"unknown field {path}{'' if isinstance(value, (dict, list)) else f' = {show(value)}'}{hint}"
    meaning = _meaning(model, loc)
    if kind == "missing":
        return f"field {path} is missing{meaning and f': it must be {meaning}'}"
    expected = _EXPECTED.get(kind)
    if expected is None:
        return f"{path} is {show(value)}: {item['msg']}"
    right = expected.format(**item.get("ctx", {}))
    return f"{path or 'the profile'} is {show(value)} but must be {right}{meaning and f' ({meaning})'}"


def _names(model: type[BaseModel]) -> list[str]:
    """The fields of a table as a file writes them."""
    return [field.alias or name for name, field in model.model_fields.items()]


def _table(model: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel]:
    """The class of the sub-table at ``loc``; ``model`` itself where there is none."""
    for step in loc:
        field = model.model_fields.get(str(step))
        for candidate in (field.annotation, *get_args(field.annotation)) if field else ():
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
                break
    return model


def _meaning(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """What a field holds, where its class says so."""
    fields = _table(model, loc[:-1]).model_fields
    return (loc and loc[-1] in fields and fields[str(loc[-1])].description) or ""


def _elsewhere(name: str, model: type[BaseModel]) -> str:
    """The clause that says in which table a field belongs which stands in a wrong one."""
    for section in _names(model):
        table = _table(model, (section,))
        if table is not model and name in _names(table):
            return f": it belongs in [{section}]"
    return ""
