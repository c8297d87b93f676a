"""The devices that a job puts a model's layers on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analognoise.devices import DeviceProfile, load_profile
from analognoise.devices.catalog import split_profiles
from analognoise.devices.profile import drift_times
from analognoise.devices.whatif import Changes
from analognoise.errors import ProfileError

_UNCHANGED = Changes()


@dataclass(frozen=True)
class Placement:
    """The device that a model's layers are put on, or one device by pattern of layer names.

    Attributes:
        devices: by pattern; a single one under None.
    """

    devices: dict[str | None, DeviceProfile]

    @property
    def profile(self) -> DeviceProfile | dict[str, DeviceProfile]:
        """What ``convert_to_analog`` takes."""
        return self.devices.get(None) or {str(key): device for key, device in self.devices.items()}

    @property
    def has_drift(self) -> bool:
        """Whether anything depends on time."""
        return any(device.has_drift for device in self.devices.values())

    def times(self, times: str | None) -> tuple[float, ...]:
        """Drift times in seconds to evaluate at: those given, or those of the devices; 0 s alone where
        nothing depends on time.

        Raises:
            ProfileError: when a device is not known at one of them.
            UnitError: when a time cannot be read.
        """
        seconds = drift_times(self.devices.values() if self.has_drift else (), times)
        return seconds if self.has_drift else (0.0,)

    @property
    def by_layer(self) -> dict[str, str] | None:
        """Names of the devices by pattern; None where all layers have the same."""
        return None if None in self.devices else {str(key): d.name for key, d in self.devices.items()}


def load_placements(texts: Sequence[str], changes: Changes = _UNCHANGED) -> list[Placement]:
    """Devices by name or file, or ``PATTERN=PROFILE,PATTERN=PROFILE`` for a device by layer.

    Args:
        texts: as the user wrote them.
        changes: to each device that they concern.

    Raises:
        ProfileError: when none is given, one cannot be loaded or changed so, or results of two could not be
            told apart.
    """
    if not texts:
        raise ProfileError("no profile given: name at least one, for example --profile pcm-ibm")
    placements = [_placement(text) for text in texts]
    if changes:
        devices = changes.apply([device for item in placements for device in item.devices.values()])
        rest = iter(devices)
        placements = [Placement({key: next(rest) for key in item.devices}) for item in placements]
    known: dict[str, str] = {}
    seen: dict[frozenset[str], str] = {}
    for text, placement in zip(texts, placements, strict=True):
        names = frozenset(device.name for device in placement.devices.values())
        if names in seen:
            both = ", ".join(sorted(names))
            raise ProfileError(
                f"profiles {seen[names]!r} and {text!r} are both named {both!r}: "
                "results go by that name, so give each its own"
            )
        seen[names] = text
        for device in placement.devices.values():
            if known.setdefault(device.name, device.digest) != device.digest:
                raise ProfileError(
                    f"two different profiles in {', '.join(map(repr, texts))} are named {device.name!r}: "
                    "results go by that name, so give each its own"
                )
    return placements


def contents(placements: Iterable[Placement]) -> dict[str, Any]:
    """The devices by name, as run.json holds them."""
    return {
        device.name: {"digest": device.digest, "content": device.as_dict()}
        for placement in placements
        for device in placement.devices.values()
    }


def _placement(text: str) -> Placement:
    if "=" not in text or Path(text).is_file():
        return Placement({None: load_profile(text)})
    devices: dict[str | None, DeviceProfile] = {}
    for part in split_profiles(text):
        pattern, equals, profile = (word.strip() for word in part.partition("="))
        if not (equals and pattern and profile):
            raise ProfileError(
                f"profile {text!r}: found {part.strip()!r} where PATTERN=PROFILE is expected, "
                "for example 'features.*=pcm-ibm,classifier=ideal'"
            )
        if pattern in devices:
            raise ProfileError(f"profile {text!r}: the pattern {pattern!r} is there twice, leave one out")
        devices[pattern] = load_profile(profile)
    return Placement(devices)
