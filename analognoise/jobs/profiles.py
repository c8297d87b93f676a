"""The commands about profile files of one's own: begin one, check some, describe all to an editor."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from analognoise.devices import DeviceProfile, load_profile
from analognoise.devices.schema import profile_schema
from analognoise.errors import Finding, ProfileError, ResultsError
from analognoise.files import write_whole
from analognoise.jobs.output import Output
from analognoise.printing import counted

_START = importlib.resources.files("analognoise.devices").joinpath("new_profile.toml")
_EXAMPLE_NAME = "my-device"


@dataclass(frozen=True)
class Started(Output):
    """A profile file that was begun.

    Attributes:
        file: its path as it was given.
        name: the name of the profile in it.
    """

    file: str
    name: str

    def parts(self) -> Iterable[RenderableType]:
        """What to do next."""
        yield f"{self.file}: written, with example figures; put those of your device in their place, then"
        yield f"  analognoise profiles check {self.file}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Checked:
    """One profile that was checked.

    Attributes:
        file: its file or name as it was given.
        profile: what is in it; None where something is wrong.
        findings: everything that is wrong.
    """

    file: str
    profile: DeviceProfile | None
    findings: tuple[Finding, ...]

    def lines(self) -> Iterable[str]:
        """A line that it is valid, or one for each finding, which begins as compilers' messages do."""
        if self.profile is not None:
            effects = _and(effects_of(self.profile))
            name, digest = self.profile.name, self.profile.digest[:12]
            yield f"{self.file}: valid, {name!r} with {effects} (digest {digest})"
        for finding in self.findings:
            place = "" if finding.line is None else f":{finding.line}:{finding.column}"
            yield f"{self.file}{place}: {finding.text}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        known = self.profile and {
            "name": self.profile.name,
            "technology": self.profile.technology,
            "effects": effects_of(self.profile),
            "digest": self.profile.digest,
        }
        problems = [asdict(finding) for finding in self.findings]
        return {"file": self.file, "valid": not problems, **(known or {}), "problems": problems}


@dataclass(frozen=True)
class CheckedProfiles(Output):
    """Several profiles that were checked."""

    checked: tuple[Checked, ...]

    @property
    def error(self) -> str:
        """One sentence that counts what is wrong; empty where all is valid."""
        wrong = [one for one in self.checked if one.findings]
        count = sum(len(one.findings) for one in wrong)
        problems = counted(count, "problem")
        if len(self.checked) == 1:
            return f"{self.checked[0].file} is not valid: {problems}" if wrong else ""
        verb = "is" if len(wrong) == 1 else "are"
        return f"{len(wrong)} of {len(self.checked)} profiles {verb} not valid: {problems}" if wrong else ""

    def parts(self) -> Iterable[RenderableType]:
        """A line for each profile that is valid, and for each problem of the others."""
        for one in self.checked:
            yield from one.lines()

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"profiles": [one.to_dict() for one in self.checked]}


@dataclass(frozen=True)
class Schema(Output):
    """The JSON Schema of profile files."""

    def parts(self) -> Iterable[RenderableType]:
        """Nothing: it is for machines alone."""
        return ()

    def to_dict(self) -> dict[str, Any]:
        """The schema."""
        return profile_schema()


def start_profile(file: str, force: bool = False) -> Started:
    """Write a commented profile with example figures, which is valid as it stands.

    Args:
        file: where; the profile is named after it.
        force: replace a file that is there.

    Raises:
        ResultsError: when the file exists, does not end in ``.toml``, or cannot be written.
    """
    path = Path(file).expanduser()
    if path.suffix != ".toml":
        raise ResultsError(f"a profile's file must end in .toml, found {file!r}: write {path.name}.toml")
    if path.is_dir():
        raise ResultsError(f"{file} is a folder: name a file in it, such as {path / 'my-device.toml'}")
    if path.exists() and not force:
        raise ResultsError(f"{file} exists already: name another file, or replace it with --force")
    if not path.parent.is_dir():
        raise ResultsError(f"cannot write {file}: the folder {path.parent} does not exist")
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", path.stem).lstrip("._+-") or _EXAMPLE_NAME
    text = _START.read_text(encoding="utf-8")
    write_whole(path, text.replace(f'name = "{_EXAMPLE_NAME}"', f'name = "{name}"', 1).encode())
    return Started(file, name)


def check_profiles(files: Sequence[str]) -> CheckedProfiles:
    """Load profiles, by file or name, and say everything that is wrong in any of them."""
    return CheckedProfiles(tuple(_check(file) for file in files))


def _check(file: str) -> Checked:
    try:
        return Checked(file, load_profile(file), ())
    except ProfileError as error:
        return Checked(file, None, error.findings or (Finding("", str(error)),))


def effects_of(profile: DeviceProfile) -> list[str]:
    """The sections of a profile that say what a device does."""
    names = ("programming", "drift", "relaxation", "retention", "read", "law", "faults", "periphery")
    return [name for name in names if getattr(profile, name) is not None]


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words) or "no noise"
