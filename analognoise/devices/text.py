"""From the text of a profile's file to the profile, or to everything that is wrong in the file."""

from __future__ import annotations

import copy
import re
import tomllib
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from analognoise.devices.brackets import unclosed
from analognoise.devices.contents import RANGE_UNKNOWN, clashes
from analognoise.devices.laws import law_of
from analognoise.devices.problems import Path, Trouble, dotted, more, troubles
from analognoise.devices.profile import DeviceProfile
from analognoise.devices.sections import Conductance
from analognoise.errors import Finding, ProfileError

if TYPE_CHECKING:
    from analognoise.devices.places import Place, Places

_FIELD = re.compile(r"""\s*(?:[\w-]+\s*\.\s*)*["']?([\w-]+)["']?\s*=""")
_COMMA = re.compile(r"=\s*[+-]?\d+,\d+\s*(#.*)?$")
# What stands in for a broken field while the rest is looked into: nothing, where it has a default; then what
# every curve and every number of seconds takes; at last the whole section goes.
_STAND_INS = (None, 0.0, 1.0)


def profile_of_text(text: str, where: str, folder: Any) -> DeviceProfile:
    """The profile that a TOML text describes.

    Args:
        text: the whole file.
        where: what error messages call the file.
        folder: where the CSV files lie that tables name.

    Raises:
        ProfileError: with one sentence about one problem, and all of them as its ``findings``.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise _error(_broken(text, folder), where) from None
    try:
        profile = DeviceProfile.model_validate(data, context={"folder": folder})
        law_of(profile)
    except ValidationError as error:
        raise _error(_findings(text, data, folder, troubles(error, DeviceProfile)), where) from None
    except ProfileError as error:
        trouble = Trouble(("law", "name"), f"law cannot be used: {error}", "wrong")
        raise _error(_findings(text, data, folder, [trouble]), where) from error
    return profile


def _error(findings: list[Finding], where: str) -> ProfileError:
    # An unknown field tells more than what is missing because of it.
    first = min(findings, key=lambda finding: not finding.text.startswith(("not valid", "unknown")))
    if not first.path and first.line is not None:
        place = f", line {first.line}, column {first.column}"
    else:
        place = f", line {first.line}" if first.line is not None else ""
    others = more(len(findings) - 1, "; 'analognoise profiles check' lists all")
    return ProfileError(f"{where}{place}: {first.text}{others}", findings)


def _findings(text: str, data: dict[str, Any], folder: Any, found: list[Trouble]) -> list[Finding]:
    """Everything wrong in a text that is valid TOML, in its order; what has no line comes last."""
    from analognoise.devices.places import Places

    places = Places(text)
    whole = copy.deepcopy(data)  # which the search mends
    found = _all(data, {"folder": folder}, found, places)
    found += _by_section(whole, folder, found, places)
    findings = [_finding(trouble, places) for trouble in found]
    return sorted(findings, key=lambda finding: (finding.line is None, finding.line, finding.column))


def _finding(trouble: Trouble, places: Places) -> Finding:
    find = places.key if trouble.kind == "unknown" else places.value
    place: Place | tuple[None, None] = find(trouble.path) or (None, None)
    return Finding(dotted(trouble.path), trouble.text, *place)


def _by_section(data: dict[str, Any], folder: Any, known: list[Trouble], places: Places) -> list[Trouble]:
    """What other mistakes hid: wrong in a section by itself, or with two sections that exclude each other."""
    context: dict[str, Any] = {"folder": folder}
    base: dict[str, Any] = {"name": "unnamed", "conductance": data.get("conductance")}
    try:
        Conductance.model_validate(base["conductance"])
    except ValidationError:
        base["conductance"] = {"unit": "uS", "g_max": 1.0}
        context[RANGE_UNKNOWN] = True
    found = []
    for name, section in data.items():
        if name in base or not isinstance(section, dict):
            continue
        alone = {**base, name: copy.deepcopy(section)}
        try:
            DeviceProfile.model_validate(alone, context=context)
        except ValidationError as error:
            wrong = [trouble for trouble in troubles(error, DeviceProfile) if trouble.kind != "missing"]
            found += _all(alone, context, wrong, places)
    for problem in clashes([name for name in data if isinstance(data[name], dict)]):
        found.append(Trouble((problem.field,), f"{problem.field} {problem.text}", "wrong"))
    paths = {trouble.path for trouble in known}
    # What is wrong with a field, or with a field inside it, has been said.
    told = {path[:2] for path in paths}
    fresh = {
        trouble.path: trouble
        for trouble in found
        if trouble.path not in paths and (len(trouble.path) == 1 or trouble.path[:2] not in told)
    }
    return list(fresh.values())


def _all(
    data: dict[str, Any], context: dict[str, Any], first: list[Trouble], places: Places
) -> list[Trouble]:
    """What is wrong at first, and what shows itself once that is out of the way.

    A curve is compared with the range of conductance, and a section with another, only when each is in order
    by itself. So whatever is broken is replaced, or left out, until the rest is valid.
    """
    found, fresh, tried = list(first), first, dict[Path, int]()
    while fresh and _mend(data, fresh, tried):
        try:
            DeviceProfile.model_validate(data, context=context)
            break
        except ValidationError as error:
            fresh = troubles(error, DeviceProfile)
        known = {trouble.path[:2] for trouble in found}
        # Only what the user wrote can be wrong; what is missing now may be missing because it was left out.
        found += [
            trouble
            for trouble in fresh
            if trouble.kind != "missing" and trouble.path[:2] not in known and places.has(trouble.path[:2])
        ]
    return found


def _mend(data: dict[str, Any], broken: list[Trouble], tried: dict[Path, int]) -> bool:
    """Put something else in the place of each broken field; False where nothing can stand in for one."""
    for trouble in broken:
        section, *fields = trouble.path
        if not fields:
            if section == "name":
                data["name"] = "unnamed"
            elif data.pop(str(section), None) is None or section == "conductance":
                return False
            continue
        field, table = fields[0], data.get(str(section))
        if not isinstance(table, dict):
            continue  # gone already
        if trouble.kind == "unknown" and len(fields) == 1:
            table.pop(field, None)
        elif section == "conductance":
            if field != "unit":
                return False  # every curve depends on its range
            table["unit"] = "uS"
        else:
            path = trouble.path[:2]
            step = tried[path] = tried.get(path, -1) + 1
            if step == len(_STAND_INS):
                del data[str(section)]
            elif _STAND_INS[step] is None:
                table.pop(field, None)
            else:
                table[field] = _STAND_INS[step]
    return True


def _broken(text: str, folder: Any) -> list[Finding]:
    """Everything wrong in a text that is not valid TOML.

    A line that cannot be read is left out, so that those after it are looked into as well.
    """
    findings: list[Finding] = []
    lines, lost = text.split("\n"), list[str]()
    while True:
        try:
            data = tomllib.loads("\n".join(lines))
            break
        except tomllib.TOMLDecodeError as error:
            reason, line, column = _syntax(str(error), lines)
        bracket = unclosed(lines)
        if bracket is not None and bracket.first <= line and (name := _FIELD.match(lines[bracket.first - 1])):
            findings.append(Finding("", f"not valid TOML: {bracket.text}", bracket.line, bracket.column))
            lost.append(name[1])
            lines[bracket.first - 1 : bracket.last] = [""] * (bracket.last - bracket.first + 1)
            continue
        wrong = lines[line - 1]
        if _COMMA.search(wrong):
            reason += " (numbers have a point, as in 0.5)"
        if findings and not wrong.strip():
            return findings  # left out already, so that the mistake is somewhere before it
        findings.append(Finding("", f"not valid TOML: {reason}", line, column))
        name = _FIELD.match(wrong)
        if reason.startswith(("unclosed array", "unterminated")) or (name is None and "[" in wrong):
            return findings  # where a list or text ends, or to which table the next lines belong, is unknown
        if reason.startswith("invalid value") and not wrong[: column - 1].strip(" \t[{"):
            return findings  # a list goes on to here that was meant to end before
        if name is not None:
            lost.append(name[1])
        lines[line - 1] = ""
    try:
        DeviceProfile.model_validate(data, context={"folder": folder})
    except ValidationError as error:
        found = [t for t in troubles(error, DeviceProfile) if t.kind != "missing" or t.path[-1] not in lost]
        findings += _findings("\n".join(lines), data, folder, found)
    return sorted(findings, key=lambda finding: (finding.line is None, finding.line, finding.column))


def _syntax(message: str, lines: list[str]) -> tuple[str, int, int]:
    """The reason, line and column in an error of ``tomllib``."""
    match = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", message, re.DOTALL)
    reason = match[1] if match else message
    reason = f"{reason[:1].lower()}{reason[1:]}"
    if match and match[2]:
        return reason, int(match[2]), int(match[3])
    end = max(1, len("\n".join(lines).splitlines()))
    return f"{reason}, at the end of the file", end, len(lines[end - 1]) + 1
