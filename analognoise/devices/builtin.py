"""The laws that the sections of a profile express."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import TypeGuard

import torch
from torch import Tensor

from analognoise.devices import physics
from analognoise.devices.draws import OF_ONE_THREAD, Draws
from analognoise.devices.law import DeviceLaw, Draw
from analognoise.devices.physics import Level
from analognoise.devices.profile import DeviceProfile

# Devices that are computed at once where a tile has more than twice as many.
_PIECE = 3 << 14
# Floats that torch's kernels take in one go; what is left over at the end of a thread's part may round
# otherwise.
_GRAIN = 32


def built_in(profile: DeviceProfile) -> DeviceLaw:
    """The law that the sections of a profile express."""
    kind = _Relaxation if profile.relaxation else _Retention if profile.retention else _PowerLaw
    return kind(profile)


class _BuiltIn(DeviceLaw):
    """Programming noise, drift by a power law and read noise, as the sections of the profile say.

    Each device is computed by itself. So the numbers of a large tile are drawn and used a piece at a time:
    held whole, with what is computed from them, they would be the most that an evaluation of a small model
    needs at once. Not a bit depends on it.
    """

    def program(self, target: Tensor, normal: Tensor | None, spent: bool = False) -> Tensor:
        return physics.program(target, self.profile, normal, spent=spent)

    def coefficients(self, target: Tensor, normal: Tensor | None, spent: bool = False) -> Tensor | None:
        return physics.drift_coefficients(target, self.profile, normal, spent=spent)

    def write(self, target: Tensor, draw: Draw) -> tuple[Tensor, Tensor | None]:
        if not self._cut(draw, target):
            return super().write(target, draw)
        state = self._in_pieces(self.program, "program", draw, target)
        assert state is not None
        return state, self._in_pieces(self.coefficients, "drift", draw, target)

    def conductances(
        self,
        state: Tensor,
        coefficients: Tensor | None,
        seconds: float,
        draw: Draw,
        level: Level | None = None,
    ) -> Tensor:
        if level is not None or not self._cut(draw, state):
            return super().conductances(state, coefficients, seconds, draw, level)

        def read(state: Tensor, nu: Tensor | None, normal: Tensor | None, spent: bool = False) -> Tensor:
            drifted, programmed = self.drift(state, nu, seconds), self.programmed(state, nu)
            noisy = physics.read(drifted, programmed, seconds, self.profile, normal, spent=spent)
            return physics.limit(noisy, self.profile)

        found = self._in_pieces(read, "read", draw, state, coefficients)
        assert found is not None
        return found

    def _cut(self, draw: Draw, devices: Tensor) -> TypeGuard[Draws]:
        """Whether the numbers come in pieces: of a large tile that torch's threads share evenly."""
        count = devices.numel()
        if not (count > 2 * _PIECE and isinstance(draw, Draws) and draw.come_in_pieces):
            return False
        part = ceil(count / min(torch.get_num_threads(), ceil(count / OF_ONE_THREAD)))
        return count % _GRAIN == part % _GRAIN == 0 and devices.is_contiguous()

    def _in_pieces(
        self, function: Callable[..., Tensor | None], process: str, draw: Draws, *devices: Tensor | None
    ) -> Tensor | None:
        """A function of tensors of the devices (the first is one) and of the normals of a process."""
        if process not in self.draws:
            return function(*devices, None)
        (first, *_) = devices
        assert first is not None
        threads = torch.get_num_threads()
        most = _PIECE if threads == 1 else threads * OF_ONE_THREAD
        found = torch.empty_like(first)
        for normal, *own in draw.pieces(process, most, found, *devices):
            result = function(*own, normal, spent=True)
            if result is not None and result is not normal:
                normal.copy_(result)
        return found

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

    def coefficients(self, target: Tensor, normal: Tensor | None, spent: bool = False) -> Tensor | None:
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
