"""What a device does from programming to read, as one object that another package can write anew.

A law that no curve expresses is a subclass of :class:`DeviceLaw` in a package of one's own, announced as an
entry point of the group ``analognoise.laws``; a profile names it in its section ``[law]``. docs/plugins.md
has a complete example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor

from analognoise.devices import physics
from analognoise.devices.physics import Level
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import ProfileError

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
