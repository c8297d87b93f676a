"""Finding profiles: by the name of a shipped one, or by the path of a TOML file.

``@LEVEL`` behind either asks for a noise level: ``gaussian@10%`` and ``gaussian@0.1`` are
``at_noise_level(0.1)``.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import math
import os
import re
from importlib.resources.abc import Traversable
from pathlib import Path

from analognoise.devices.profile import DeviceProfile
from analognoise.devices.text import profile_of_text
from analognoise.errors import ProfileError, nearest

_FOLDER = "hardware_profiles"


def list_profiles() -> list[str]:
    """The names of the shipped profiles, sorted."""
    return list(_shipped())


def load_profile(profile: str | os.PathLike[str] | DeviceProfile) -> DeviceProfile:
    """A device profile, checked.

    Args:
        profile: the name of a shipped profile or the path of a ``.toml`` file, either with ``@LEVEL`` behind
            it
            (``"gaussian@10%"``, ``"my.toml@0.1"``); or a profile, which is returned as it is.

    Raises:
        ProfileError: when no such profile or file exists, the file is not TOML or not a valid profile, or the
            level
            cannot be read. The message names the file, its line, the field, the value found and what would
            be right; the error's ``findings`` hold everything that is wrong in the file.
    """
    if isinstance(profile, DeviceProfile):
        return profile
    if not isinstance(profile, (str, os.PathLike)):
        raise ProfileError(
            f"a profile is a name, a path or a DeviceProfile, found {type(profile).__name__}"
            + (": DeviceProfile.from_dict makes one of it" if isinstance(profile, dict) else "")
        )
    text = os.fspath(profile)
    if "@" in text and not Path(text).exists():
        base, _, level = text.rpartition("@")
        fraction = _parse_level(level, text)
        return _load(base).at_noise_level(fraction)
    return _load(text)


def split_profiles(text: str) -> list[str]:
    """Profiles between commas: names, files, ``PATTERN=PROFILE``; a file with commas stays whole."""
    parts, found = text.split(","), []
    while parts:
        ends = range(len(parts), 1, -1)
        end = next((end for end in ends if _names_file(",".join(parts[:end]))), 1)
        found.append(",".join(parts[:end]).strip())
        del parts[:end]
    return [part for part in found if part]


def _names_file(text: str) -> bool:
    for name in (text, text.partition("=")[2]):
        for path in (name, name.rpartition("@")[0]):
            with contextlib.suppress(OSError, ValueError):  # too long, or no path at all
                if path.strip() and Path(path.strip()).expanduser().is_file():
                    return True
    return False


def _load(text: str) -> DeviceProfile:
    shipped = _shipped()
    if text in shipped:
        return _read(shipped[text], text)
    path = Path(text).expanduser()
    if path.is_file():
        return _read(path, text)
    if text and path.is_dir():
        raise ProfileError(
            f"profile {text!r} is a folder: name a .toml file in it, or one of {', '.join(shipped)}"
        )
    if text.lower().endswith(".toml") or len(path.parts) > 1:
        raise ProfileError(f"profile file {text} does not exist")
    beside = path.with_suffix(".toml") if text else path
    hint = f" (did you mean the file {beside}?)" if beside.is_file() else nearest(text, shipped)
    raise ProfileError(
        f"unknown profile {text!r}{hint}: known are {', '.join(shipped)}, "
        f"and a file of your own by its path, for example my-device.toml"
    )


def _read(file: Traversable | Path, where: str) -> DeviceProfile:
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ProfileError(
            f"{where} is not UTF-8 text (byte {error.start}): a profile is a TOML file"
        ) from None
    except OSError as error:
        raise ProfileError(f"{where} cannot be read: {error.strerror}") from None
    return profile_of_text(content, where, file.parent if isinstance(file, Path) else _folder())


def _parse_level(level: str, text: str) -> float:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(%?)\s*", level, re.IGNORECASE)
    fraction = float(match[1]) / (100 if match[2] else 1) if match else math.nan
    if not 0 <= fraction <= 1:
        raise ProfileError(
            f"noise level {level!r} of profile {text!r} is not between 0 and 100 % of g_max: "
            f"write for example gaussian@10% or gaussian@0.1"
        )
    return fraction


def _shipped() -> dict[str, Traversable]:
    """The files of the shipped profiles by name, sorted."""
    files = sorted(_folder().iterdir(), key=lambda file: file.name.removesuffix(".toml"))
    return {file.name[: -len(".toml")]: file for file in files if file.name.endswith(".toml")}


def _folder() -> Traversable:
    """The folder of the shipped profiles: in the installed package, or at the top of a source checkout."""
    package = importlib.resources.files("analognoise")
    for folder in (package.joinpath(_FOLDER), Path(__file__).parents[2] / _FOLDER):
        if folder.is_dir():
            return folder
    raise ProfileError(
        f"the shipped profiles are missing: {package} has no folder {_FOLDER}, so install it again"
    )
