"""From what pydantic finds wrong to sentences: where, what was found and what would be right."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias, get_args

from pydantic import BaseModel, ValidationError

from analognoise.errors import Finding, ProfileError, nearest

Path: TypeAlias = tuple[str | int, ...]
"""Names of fields and indices of list items, as pydantic's ``loc``."""

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
    "less_than_equal": "at most {le:g}",
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


class Trouble(NamedTuple):
    """One thing wrong, before it is known on which line.

    Attributes:
        path: of the field.
        text: the whole sentence.
        kind: "unknown" and "missing" fields, or "wrong" values.
    """

    path: Path
    text: str
    kind: str


def explain(error: ValidationError, model: type[BaseModel], where: str) -> ProfileError:
    """The error about a profile that is no file: one sentence about the first problem, the others counted.

    Args:
        error: what pydantic raised.
        model: the class that was validated.
        where: whatever tells the user which profile is meant.
    """
    found = troubles(error, model)
    found.sort(key=lambda trouble: trouble.kind != "unknown")  # which tells more than what is missing
    message = f"{where}: {found[0].text}{more(len(found) - 1)}"
    return ProfileError(message, [Finding(dotted(trouble.path), trouble.text) for trouble in found])


def more(others: int, hint: str = "") -> str:
    """The clause that counts the problems which a message does not tell."""
    return f" ({others} more problem{'s' if others > 1 else ''} in it{hint})" if others else ""


def dotted(path: Path) -> str:
    """A path as messages write it: ``programming.sigma.pieces[0].below``."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def troubles(error: ValidationError, model: type[BaseModel]) -> list[Trouble]:
    """Everything that pydantic found wrong, parts that were validated by themselves included.

    A misspelt field is unknown, and missing under its right name: that is one thing wrong.
    """
    found = list(_troubles(error, model, ()))
    unknown = [trouble.path for trouble in found if trouble.kind == "unknown"]
    return [trouble for trouble in found if trouble.kind != "missing" or not _misspelt(trouble.path, unknown)]


def show(value: object, limit: int = 60) -> str:
    """A value as TOML writes it, shortened."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    try:
        text = json.dumps(value, ensure_ascii=False)
    except TypeError:
        text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _troubles(error: ValidationError, model: type[BaseModel], prefix: Path) -> Iterator[Trouble]:
    for item in error.errors():
        path = (*prefix, *item["loc"])
        cause = item.get("ctx", {}).get("error")
        if item["type"] == "too_short" and len(item["input"]) >= item["ctx"]["min_length"]:
            continue  # it counts only the items that are valid, and says of the others what is wrong
        if isinstance(cause, Nested):
            yield from _troubles(cause.error, cause.model, path)
        elif isinstance(cause, Problem):
            path = (*path, *_steps(cause.field))
            yield Trouble(path, f"{dotted(path)} {cause.text}", "wrong")
        else:
            kind = {"extra_forbidden": "unknown", "missing": "missing"}.get(item["type"], "wrong")
            yield Trouble(path, _sentence(item, dotted(path), model), kind)


def _misspelt(missing: Path, unknown: Iterable[Path]) -> bool:
    """Whether one of the unknown fields of the same table is close to the name of the missing one."""
    beside = [str(path[-1]) for path in unknown if path[:-1] == missing[:-1]]
    return any(nearest(name, [str(missing[-1])]) for name in beside)


def _steps(field: str) -> Path:
    """``pieces[0].below`` as a path."""
    found = re.findall(r"\[(\d+)\]|([^.\[\]]+)", field)
    return tuple(int(index) if index else name for index, name in found)


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
