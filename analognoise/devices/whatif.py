"""What if a device were a little different: fields changed and effects scaled, as the command line asks.

A changed profile carries its changes in its name, ``pcm-ibm(drift.t_0=10,programming*2)``, so that rows and
tables tell it from the original.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_args

from pydantic import ValidationError

from analognoise.devices.base import Frozen, canonical_json
from analognoise.devices.periphery import PERIPHERIES
from analognoise.devices.problems import show
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import ProfileError, nearest

EFFECTS = ("programming", "drift", "read")
# They say nothing about the device, or are what rows go by.
_FIXED = ("schema", "name", "technology", "description", "source")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_PLAIN = re.compile(r"[A-Za-z0-9._+-]+")


@dataclass(frozen=True)
class Changes:
    """Changes to a profile.

    Attributes:
        fields: new values by dotted path, ``{"drift.t_0": 10}``.
        factors: factors by effect, ``{"programming": 2.0}``; see :meth:`DeviceProfile.scaled`.
        periphery: a preset in place of the profile's own periphery, before anything else; None leaves it.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)
    periphery: str | None = None

    @classmethod
    def parse(
        cls, settings: Iterable[str] = (), factors: Iterable[str] = (), periphery: str | None = None
    ) -> Changes:
        """Read ``drift.t_0=10`` and ``programming=2,drift=0.5``; values as in TOML, words without quotes.

        Raises:
            ProfileError: naming the text, and what would be right.
        """
        fields: dict[str, Any] = {}
        for text in settings:
            path, equals, value = (part.strip() for part in text.partition("="))
            if not (path and equals and value):
                raise ProfileError(
                    f"--set {text!r} is not of the form FIELD=VALUE: write for example drift.t_0=10"
                )
            if path in fields:
                raise ProfileError(f"--set {path} is given twice: leave one out")
            if path.partition(".")[0] in _FIXED:
                raise ProfileError(
                    f"--set {text!r}: {path} cannot be changed, it is no property of the device"
                )
            fields[path] = _value(path, value)
        scales: dict[str, float] = {}
        for text in (part.strip() for given in factors for part in given.split(",")):
            effect, equals, value = (part.strip() for part in text.partition("="))
            if not (effect and equals and value):
                raise ProfileError(
                    f"--scale {text!r} is not of the form EFFECT=FACTOR: write for example programming=2"
                )
            if effect not in EFFECTS:
                raise ProfileError(
                    f"--scale {text!r}: unknown effect {effect!r}{nearest(effect, EFFECTS)}: known are "
                    f"{', '.join(EFFECTS)}"
                )
            if effect in scales:
                raise ProfileError(f"--scale {effect} is given twice: leave one out")
            scales[effect] = _factor(text, value)
        if periphery is not None and periphery not in PERIPHERIES:
            raise ProfileError(
                f"--periphery {periphery!r} is unknown{nearest(periphery, PERIPHERIES)}: known are "
                f"{', '.join(PERIPHERIES)}"
            )
        return cls(fields, scales, periphery)

    def __bool__(self) -> bool:
        return bool(self.fields or self.factors or self.periphery)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for run.json; empty where nothing is changed."""
        found = {"set": dict(self.fields), "scale": dict(self.factors), "periphery": self.periphery}
        return {name: values for name, values in found.items() if values}

    def apply(self, profiles: Sequence[DeviceProfile]) -> list[DeviceProfile]:
        """The profiles, each with those changes that concern it: ``ideal`` has no drift to change, but it can
        be given faults.

        Raises:
            ProfileError: when a change concerns none of them, a field does not exist, or a changed profile is
                not valid.
        """
        profiles = [self._surrounded(profile) for profile in profiles]
        for path in self.fields:
            if not any(_concerns(path, profile) for profile in profiles):
                section = path.partition(".")[0]
                known = [
                    name for name in DeviceProfile.model_fields if name not in (*_FIXED, "schema_version")
                ]
                if section in known:
                    raise ProfileError(f"--set {path}: {_none_of(profiles)} has a [{section}]")
                raise ProfileError(
                    f"--set {path}: there is no section {section!r}{nearest(section, known)}: known are "
                    f"{', '.join(known)}"
                )
        for effect in self.factors:
            if not any(_has(effect, profile) for profile in profiles):
                raise ProfileError(f"--scale {effect}: {_none_of(profiles)} has such an effect")
        return [self._applied(profile) for profile in profiles]

    def _surrounded(self, profile: DeviceProfile) -> DeviceProfile:
        """The profile with the periphery that is asked for."""
        if self.periphery is None:
            return profile
        changed = profile.replace({"periphery": {"preset": self.periphery}})
        if changed == profile:
            return profile
        base, at, level = profile.name.partition("@")
        return changed.replace({"name": f"{base}({self.periphery}){at}{level}"})

    def _applied(self, profile: DeviceProfile) -> DeviceProfile:
        fields = {path: value for path, value in self.fields.items() if _concerns(path, profile)}
        factors = {effect: factor for effect, factor in self.factors.items() if _has(effect, profile)}
        if not (fields or factors):
            return profile
        changed = profile.replace(fields) if fields else profile
        changed = changed.scaled(**factors) if factors else changed
        parts = [f"{path}={_short(value)}" for path, value in fields.items()]
        parts += [f"{effect}*{factor:g}" for effect, factor in factors.items()]
        base, at, level = profile.name.partition("@")
        return changed.replace({"name": f"{base}({','.join(parts)}){at}{level}"})


def _concerns(path: str, profile: DeviceProfile) -> bool:
    section, dot, _ = path.partition(".")
    if not dot:
        return section in DeviceProfile.model_fields
    return section in profile.as_dict() or _can_be_added(section)


@cache
def _can_be_added(section: str) -> bool:
    """Whether a section needs none of its fields: every device can be given faults, but a drift needs
    exponents.
    """
    field = DeviceProfile.model_fields.get(section)
    for kind in get_args(field.annotation) if field else ():
        if isinstance(kind, type) and issubclass(kind, Frozen):
            with contextlib.suppress(ValidationError):
                kind()
                return True
    return False


def _has(effect: str, profile: DeviceProfile) -> bool:
    return profile.scaled(**{effect: 0.5}) != profile


def _none_of(profiles: Sequence[DeviceProfile]) -> str:
    names = ", ".join(repr(profile.name) for profile in profiles)
    return f"neither of the profiles {names}" if len(profiles) > 1 else f"no profile here ({names})"


def _value(path: str, text: str) -> Any:
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        found = {}
    if found.keys() == {"value"}:
        return found["value"]
    if _WORD.fullmatch(text):
        return text
    raise ProfileError(
        f"--set {path}={text}: the value is not TOML: write a number, a word, other text in quotes, true, a "
        'list [1, 2] or a table { curve = "power", … }; a file beside the profile, such as a yield map, is '
        "named in a copy of the profile's own file"
    )


def _factor(text: str, value: str) -> float:
    try:
        factor = float(value)
    except ValueError:
        factor = math.nan
    if not 0 <= factor < math.inf:
        raise ProfileError(f"--scale {text!r}: the factor is {value!r}, expected a number, at least 0")
    return factor


def _short(value: Any) -> str:
    """A value for a name; of a list or table a digest, because names are short."""
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    text = value if isinstance(value, str) else show(value)
    return (
        text
        if _PLAIN.fullmatch(text)
        else f"#{hashlib.sha256(canonical_json(value).encode()).hexdigest()[:8]}"
    )
