"""What a device does from programming to read, as one object: the built-in laws, and those of other packages.

A tile asks its profile's law three things: to write target conductances, for the state that was written, and
for the conductances at a drift time. Which law that is follows from the sections of the profile. A law that
no curve expresses is a subclass of :class:`DeviceLaw` in a package of one's own, announced as an entry point
of the group ``analognoise.laws``; a profile names it in its section ``[law]``. docs/plugins.md has a complete
example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar

import torch
from torch import Tensor

from analognoise.devices import physics
from analognoise.devices.physics import Level
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import ProfileError, nearest

GROUP = "analognoise.laws"

Draw = Callable[[str], Tensor]
"""Standard normals for every device, by process: "program", "drift" or "read"."""


class DeviceLaw:
    """What one device does; override what your device does otherwise than the sections of its profile say.

    All conductances are tensors of any shape in the profile's unit; arguments must not be changed. ``normal``
    is a tensor of independent standard normals of the same shape, None for a process that the law does not
    draw for. (Other distributions come from it by their quantile function, for example ``torch.special.ndtr``
    gives uniform numbers.) Nothing needs to be differentiable.

    Args:
        profile: the profile whose section ``[law]`` names this law.
        parameters: what stands in that section besides the name, as keyword arguments.

    Attributes:
        profile: the profile.
        draws: the processes that need random numbers, among "program", "drift" and "read"; by default those
            whose sections the profile has. "program" and "drift" are drawn once for a chip, "read" at every
            drift time.
        state_is_programmed: whether the state that :meth:`write` gives is the programmed conductance itself,
            so that it may be replaced by another.
    """

    draws: frozenset[str]
    state_is_programmed: ClassVar[bool] = True

    def __init__(self, profile: DeviceProfile, **parameters: Any) -> None:
        if parameters:
            raise ProfileError(f"{type(self).__name__} has no parameter {next(iter(parameters))!r}")
        self.profile = profile
        if "draws" not in vars(type(self)):
            needed = {"program": profile.programming, "drift": profile.drift, "read": profile.read}
            self.draws = frozenset(process for process, section in needed.items() if section is not None)

    def program(self, target: Tensor, normal: Tensor | None) -> Tensor:
        """Conductances right after programming to these targets."""
        return physics.program(target, self.profile, normal)

    def coefficients(self, target: Tensor, normal: Tensor | None) -> Tensor | None:
        """A number that is fixed for each device at programming and governs its drift; None without."""
        return physics.drift_coefficients(target, self.profile, normal)

    def drift(self, programmed: Tensor, coefficients: Tensor | None, seconds: float) -> Tensor:
        """Conductances after a drift time, without read noise."""
        return physics.drift(programmed, coefficients, seconds, self.profile)

    def read(self, drifted: Tensor, programmed: Tensor, seconds: float, normal: Tensor | None) -> Tensor:
        """Conductances with the read noise that has accumulated until then."""
        return physics.read(drifted, programmed, seconds, self.profile, normal)

    def write(self, target: Tensor, draw: Draw) -> tuple[Tensor, Tensor | None]:
        """What programming fixes for each device: a state and a coefficient, kept by the tile for good."""
        state = self.program(target, draw("program") if "program" in self.draws else None)
        return state, self.coefficients(target, draw("drift") if "drift" in self.draws else None)

    def programmed(self, state: Tensor, coefficients: Tensor | None) -> Tensor:
        """Conductances right after programming, from what was written."""
        return physics.limit(state, self.profile)

    def conductances(
        self,
        state: Tensor,
        coefficients: Tensor | None,
        seconds: float,
        draw: Draw,
        level: Level | None = None,
    ) -> Tensor:
        """Conductances at a drift time, from what was written.

        Args:
            state: what :meth:`write` gave.
            coefficients: likewise.
            seconds: drift time, >= 0.
            draw: random numbers of this drift time.
            level: what :meth:`level` gave, where it is known already.
        """
        drifted = self.drift(state, coefficients, seconds)
        if "read" in self.draws:
            drifted = self._read(drifted, self.programmed(state, coefficients), seconds, draw("read"), level)
        return physics.limit(drifted, self.profile)

    def conductances_through(
        self,
        state: Tensor,
        coefficients: Tensor | None,
        times: Sequence[float],
        draw: Callable[[str, float], Tensor],
        level: Level | None,
    ) -> Tensor | None:
        """Conductances ``[devices, times, groups, columns, rows]`` at several drift times in one set of
        operations, equal bit for bit to those of :meth:`conductances`; None for a law that does one time
        after the other.

        Args:
            state: ``[devices, groups, columns, rows]``, what :meth:`write` gave.
            coefficients: likewise.
            times: drift times, >= 0.
            draw: random numbers by process and drift time.
            level: as in :meth:`conductances`.
        """
        return None

    def level(self, state: Tensor, coefficients: Tensor | None) -> Level | None:
        """What the read noise of all drift times has in common, worth keeping for small tiles; None for a law
        that keeps nothing.
        """
        return None

    def _read(
        self, drifted: Tensor, programmed: Tensor, seconds: float, normal: Tensor, level: Level | None
    ) -> Tensor:
        return self.read(drifted, programmed, seconds, normal)


class _BuiltIn(DeviceLaw):
    """Programming noise, drift by a power law and read noise, as the sections of the profile say."""

    def level(self, state: Tensor, coefficients: Tensor | None) -> Level | None:
        return physics.relative_read_sigma(self.programmed(state, coefficients), self.profile)

    def _read(
        self, drifted: Tensor, programmed: Tensor, seconds: float, normal: Tensor, level: Level | None
    ) -> Tensor:
        return physics.read(drifted, programmed, seconds, self.profile, normal, relative_sigma=level)


class _PowerLaw(_BuiltIn):
    """The same where all times can be computed at once."""

    def conductances_through(
        self,
        state: Tensor,
        coefficients: Tensor | None,
        times: Sequence[float],
        draw: Callable[[str, float], Tensor],
        level: Level | None,
    ) -> Tensor | None:
        profile = self.profile
        if profile.read is not None and profile.read.sigma is not None:
            return None
        state, nu = state.unsqueeze(1), None if coefficients is None else coefficients.unsqueeze(1)
        drifted = physics.drift(state, nu, times, profile)
        if profile.read is None:
            drifted = drifted.expand(-1, len(times), -1, -1, -1)
        else:
            if isinstance(level, Tensor):
                level = level.unsqueeze(1)
            normal = torch.stack([draw("read", time) for time in times], dim=1)
            programmed = self.programmed(state, nu)
            drifted = physics.read(drifted, programmed, times, profile, normal, relative_sigma=level)
        return physics.limit(drifted, profile)


class _Relaxation(_BuiltIn):
    """Programming noise, and relaxation by the logarithm of time: each device has its own normal."""

    def __init__(self, profile: DeviceProfile) -> None:
        super().__init__(profile)
        self.draws |= {"drift"}

    def coefficients(self, target: Tensor, normal: Tensor | None) -> Tensor | None:
        return normal

    def drift(self, programmed: Tensor, coefficients: Tensor | None, seconds: float) -> Tensor:
        return physics.relax(programmed, coefficients, seconds, self.profile)


class _Retention(_BuiltIn):
    """Deviations from the target, known by age: the state is the target, the coefficient the normal."""

    state_is_programmed = False

    def __init__(self, profile: DeviceProfile) -> None:
        super().__init__(profile)
        self.draws |= {"program"}

    def write(self, target: Tensor, draw: Draw) -> tuple[Tensor, Tensor | None]:
        return target, draw("program")

    def programmed(self, state: Tensor, coefficients: Tensor | None) -> Tensor:
        return physics.limit(physics.retain(state, coefficients, None, self.profile), self.profile)

    def drift(self, programmed: Tensor, coefficients: Tensor | None, seconds: float) -> Tensor:
        return physics.retain(programmed, coefficients, seconds, self.profile)


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
        kind = _Relaxation if profile.relaxation else _Retention if profile.retention else _PowerLaw
        return kind(profile)
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
