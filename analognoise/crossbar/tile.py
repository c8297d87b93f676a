"""One crossbar array, before and after programming."""

from __future__ import annotations

import torch
from torch import Tensor

from analognoise.crossbar.compensation import check_compensation, global_factor, read_out
from analognoise.crossbar.mapping import scales, to_pairs, to_weights
from analognoise.devices import physics
from analognoise.devices.profile import DeviceProfile
from analognoise.seeds import Stream, nanoseconds

_SMALL = 1 << 15


class CrossbarTile:
    """An array of device pairs that can be programmed with a block of weights.

    Args:
        profile: the device; its ``tile`` section bounds the array.
        compensation: ``"global"`` (per tile) or ``"none"``.
    """

    def __init__(self, profile: DeviceProfile, compensation: str = "global") -> None:
        self.profile = profile
        self.compensation = check_compensation(compensation)

    def program(self, weights: Tensor, stream: Stream, layer_max: Tensor | None = None) -> ProgrammedTile:
        """Write the weights' target conductances once, with programming noise, and draw every device's drift
        coefficient.

        Args:
            weights: ``[columns, rows]`` or ``[groups, columns, rows]``, any float type; computed in float32.
            stream: the key of this tile on this chip; the process is filled in here.
            layer_max: max|w| of the whole layer, used by profiles with ``scale = "layer"``.
        """
        profile = self.profile
        if weights.ndim == 2:
            weights = weights.unsqueeze(0)
        weights = weights.detach().float()
        device = weights.device
        scale = scales(weights, profile, layer_max)
        target = to_pairs(weights, scale, profile)
        shape = tuple(target.shape)
        normal = stream.at(process="program").normal(shape, device) if profile.programming else None
        programmed = physics.program(target, profile, normal)
        normal = stream.at(process="drift").normal(shape, device) if profile.drift else None
        nu = physics.drift_coefficients(target, profile, normal)
        return ProgrammedTile(profile, self.compensation, programmed, nu, scale, stream)


class ProgrammedTile:
    """One programmed draw of a tile: its devices' conductances and drift coefficients, fixed for good.

    Attributes:
        programmed: ``[2, groups, columns, rows]`` conductances right after programming (G+ first), in the
            profile's unit.
        nu: drift coefficients of the same shape, or None for a device without drift.
        scale: weight units per conductance unit.
        stream: key of the tile; the read noise of a drift time is drawn from it at that time.
    """

    def __init__(
        self,
        profile: DeviceProfile,
        compensation: str,
        programmed: Tensor,
        nu: Tensor | None,
        scale: Tensor,
        stream: Stream,
    ) -> None:
        self.profile = profile
        self.compensation = compensation
        self.programmed = programmed
        self.nu = nu
        self.scale = scale
        self.stream = stream
        # Generators differ between device types: read noise goes on being drawn where the chip was
        # programmed.
        self.drawn_on = programmed.device
        self.reference = read_out(self.programmed_weights())
        # The relative read noise is the same at all times; large tiles compute it anew to save the memory.
        small = programmed.numel() <= _SMALL
        self._read_sigma = physics.relative_read_sigma(programmed, profile) if small else None

    def programmed_weights(self) -> Tensor:
        """Net weights ``[groups, columns, rows]`` right after programming: no drift, no read noise."""
        return to_weights(self.programmed, self.scale)

    def conductances_at(self, seconds: float) -> Tensor:
        """Conductances ``[2, groups, columns, rows]`` at a drift time, with the read noise accumulated until
        then.

        The same time always gives the same numbers, whatever times were asked for before.
        """
        drifted = physics.drift(self.programmed, self.nu, seconds, self.profile)
        if self.profile.read is None:
            return drifted
        stream = self.stream.at(process="read", time_ns=nanoseconds(seconds))
        normal = stream.normal(tuple(drifted.shape), self.drawn_on).to(drifted.device)
        return physics.read(
            drifted, self.programmed, seconds, self.profile, normal, relative_sigma=self._read_sigma
        )

    def weights_at(self, seconds: float) -> Tensor:
        """Net weights ``[groups, columns, rows]`` at a drift time, times the factor of the drift
        compensation.
        """
        weights = to_weights(self.conductances_at(seconds), self.scale)
        if self.compensation == "global":
            weights *= global_factor(self.reference, read_out(weights))
        return weights

    def to(self, device: torch.device) -> ProgrammedTile:
        """Move the tile's state; what is drawn later stays the same."""
        self.programmed = self.programmed.to(device)
        self.nu = None if self.nu is None else self.nu.to(device)
        self.scale = self.scale.to(device)
        self.reference = self.reference.to(device)
        if isinstance(self._read_sigma, Tensor):
            self._read_sigma = self._read_sigma.to(device)
        return self
