"""The law of a profile: a built-in one, or that of another package.

A tile asks its profile's law three things: to write target conductances, for the state that was written, and
for the conductances at a drift time. Which law that is follows from the sections of the profile.
"""

from __future__ import annotations

from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points

from torch import Tensor

from analognoise.devices.builtin import built_in
from analognoise.devices.law import DeviceLaw, Draw
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import ProfileError, nearest

GROUP = "analognoise.laws"


def write(profile: DeviceProfile, target: Tensor, draw: Draw) -> tuple[Tensor, Tensor | None]:
    """What programming fixes for each device, by the profile's law: state and coefficient.

    What a law of another package gives is looked at once, here, before anything is computed with it.

    Raises:
        ProfileError: when such a law gives another shape than its targets have, no tensor of numbers, or
            numbers that are not finite.
    """
    law = law_of(profile)
    state, coefficients = law.write(target, draw)
    if profile.law is not None:
        _check_written(profile.law.name, "program", state, target)
        if coefficients is not None:
            _check_written(profile.law.name, "coefficients", coefficients, target)
    return state, coefficients


def _check_written(name: str, method: str, found: object, target: Tensor) -> None:
    if not isinstance(found, Tensor):
        wrong = f"{type(found).__name__}, but must give a tensor"
    elif found.shape != target.shape:
        wrong = f"the shape {list(found.shape)}, but must give that of its targets, {list(target.shape)}"
    elif not found.isfinite().all():
        count = int((~found.isfinite()).sum())
        wrong = f"{count:,} of {found.numel():,} numbers that are not finite, but must give none"
    else:
        return
    raise ProfileError(f"law {name!r}: {method} gives {wrong}")


@lru_cache(maxsize=256)
def law_of(profile: DeviceProfile) -> DeviceLaw:
    """The law of a profile.

    Raises:
        ProfileError: when its section ``[law]`` names none that is installed, that cannot be imported or that
            refuses its parameters.
    """
    if profile.law is None:
        return built_in(profile)
    name, parameters = profile.law.name, profile.law.parameters
    law = load_law(name)
    try:
        return law(profile, **parameters)
    except ProfileError:
        raise
    except Exception as error:
        raise ProfileError(
            f"law {name!r} refuses its parameters {parameters}: {type(error).__name__}: {error}"
        ) from error


def list_laws() -> dict[str, EntryPoint]:
    """The laws that installed packages announce, by name; none of them is imported."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


@cache
def load_law(name: str) -> type[DeviceLaw]:
    """The class behind a name.

    Raises:
        ProfileError: when no installed package announces it, it cannot be imported, or it is no
            :class:`DeviceLaw`.
    """
    known = list_laws()
    if name not in known:
        raise ProfileError(
            f"no installed package announces the law {name!r}{nearest(name, known)}: known are "
            f"{', '.join(known) or 'none'} (entry points of the group {GROUP!r})"
        )
    point = known[name]
    package = point.dist.name if point.dist else "an unknown package"
    try:
        law = point.load()
    except Exception as error:
        raise ProfileError(
            f"law {name!r} of {package} ({point.value}) cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(law, type) and issubclass(law, DeviceLaw)):
        raise ProfileError(
            f"law {name!r} of {package} ({point.value}) is no subclass of analognoise.DeviceLaw"
        )
    return law
