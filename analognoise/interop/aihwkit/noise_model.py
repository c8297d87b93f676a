"""A device profile as a noise model of aihwkit."""

from __future__ import annotations

from typing import Any

import torch
from aihwkit.inference.converter.base import BaseConductanceConverter
from aihwkit.inference.noise.base import BaseNoiseModel
from torch import Tensor

from analognoise.crossbar.collapse import check_collapse, merge_pairs
from analognoise.crossbar.mapping import scales, to_devices, to_weights
from analognoise.devices.law import Draw
from analognoise.devices.laws import law_of, write
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import ConversionError


class ProfileConverter(BaseConductanceConverter):
    """Weights of a tile to conductances and back as a profile's section [mapping] says.

    Args:
        profile: the device.
        layer_max: the weight that maps to g_max, for a profile with ``mapping.scale = "layer"``; None takes
            the largest of the tile.

    Attributes:
        g_max: largest conductance, in the profile's unit; a name that aihwkit's own converters have.
        g_min: smallest conductance.
    """

    def __init__(self, profile: DeviceProfile, layer_max: float | None = None) -> None:
        self.profile = profile
        self.layer_max = layer_max
        self.g_max = profile.conductance.g_max
        self.g_min = profile.conductance.g_min

    def __str__(self) -> str:
        return f"{type(self).__name__}(profile={self.profile.name})"

    @torch.no_grad()
    def targets(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Target conductances ``[devices, 1, outputs, inputs]`` of weights ``[outputs, inputs]``, and their
        scale.
        """
        block = weights.detach().unsqueeze(0)
        largest = None if self.layer_max is None else block.new_tensor(self.layer_max)
        scale = scales(block, self.profile, largest)
        return to_devices(block, scale, self.profile), scale

    @torch.no_grad()
    def convert_to_conductances(self, weights: Tensor) -> tuple[list[Tensor], dict[str, Any]]:
        """Conductances ``[outputs, inputs]`` of each device of a cell (G+, then G-), and what the way back
        needs.
        """
        target, scale = self.targets(weights)
        return [device[0] for device in target], {"scale": scale}

    @torch.no_grad()
    def convert_back_to_weights(self, conductances: list[Tensor], params: dict[str, Any]) -> Tensor:
        """Weights ``[outputs, inputs]`` that the conductances hold."""
        return to_weights(torch.stack(list(conductances)).unsqueeze(1), params["scale"], self.profile)[0]


class ProfileNoiseModel(BaseNoiseModel):
    """A device profile in the form that aihwkit's inference tiles ask for.

    aihwkit's own models turn each pair into one net weight after programming and split it again at drift, so
    that the noise of the device that should be near g_min is lost. This one keeps what every device holds,
    unless ``collapse_pairs`` asks for aihwkit's way. Made by :func:`analognoise.interop.aihwkit.
    to_noise_model`.

    Args:
        profile: the device.
        collapse_pairs: merge pairs after programming, and split them again at drift.
        layer_max: as for :class:`ProfileConverter`.

    Raises:
        ConversionError: for a device with faults, or for pairs to merge where it is not used in pairs.

    Attributes:
        profile: the device.
        collapse_pairs: as given.
        g_converter: a :class:`ProfileConverter`.
        g_max: largest conductance, in the profile's unit.
    """

    def __init__(
        self, profile: DeviceProfile, collapse_pairs: bool = False, layer_max: float | None = None
    ) -> None:
        if profile.faults is not None:
            raise ConversionError(
                f"profile {profile.name!r} has [faults], which aihwkit's inference tiles cannot have: take "
                "the engine 'analognoise', or the profile without them, profile.replace({'faults': None})"
            )
        if collapse_pairs:
            check_collapse(profile)
        super().__init__(ProfileConverter(profile, layer_max))
        self.profile = profile
        self.collapse_pairs = collapse_pairs
        self.g_max = profile.conductance.g_max

    def __str__(self, exclude_keys: Any = None, keys: Any = None) -> str:
        return f"{type(self).__name__}(profile={self.profile.name}, collapse_pairs={self.collapse_pairs})"

    @torch.no_grad()
    def apply_noise(self, weights: Tensor, t_inference: float) -> Tensor:
        """Weights ``[outputs, inputs]`` of a fresh chip at a drift time in seconds."""
        return self.apply_drift_noise(*self.apply_programming_noise(weights), t_inference)

    @torch.no_grad()
    def apply_programming_noise(self, weights: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """Weights ``[outputs, inputs]`` right after programming, and what was fixed for each device.

        Returns:
            The weights, and the state, coefficients and scale that :meth:`apply_drift_noise` takes.
        """
        target, scale = self.g_converter.targets(weights)
        law = law_of(self.profile)
        state, coefficients = write(self.profile, target, _drawing(target))
        if self.collapse_pairs:
            state, scale = merge_pairs(state, coefficients, scale, self.profile)
        net = to_weights(law.programmed(state, coefficients), scale, self.profile)
        return net[0], [state, coefficients, scale]

    @torch.no_grad()
    def apply_drift_noise(
        self, weights: Tensor, drift_noise_parameters: list[Tensor | None], t_inference: float
    ) -> Tensor:
        """Weights ``[outputs, inputs]`` at a drift time in seconds, with new read noise at every call.

        Args:
            weights: not used: what each device holds stands in the parameters.
            drift_noise_parameters: what :meth:`apply_programming_noise` gave.
            t_inference: seconds since programming.

        Raises:
            ProfileError: outside of the times at which the device is known.
        """
        self.profile.check_time(t_inference)
        state, coefficients, scale = drift_noise_parameters
        assert state is not None
        assert scale is not None
        law = law_of(self.profile)
        conductances = law.conductances(state, coefficients, t_inference, _drawing(state))
        return to_weights(conductances, scale, self.profile)[0]

    @torch.no_grad()
    def generate_drift_coefficients(self, g_target: Tensor) -> tuple[Tensor, Tensor | None]:
        """State and coefficient of each device of a tensor of targets, for
        :meth:`apply_drift_noise_to_conductance`.
        """
        return write(self.profile, g_target, _drawing(g_target))

    @torch.no_grad()
    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        """Programmed conductances of devices with these targets, in the profile's unit."""
        law = law_of(self.profile)
        return law.programmed(*write(self.profile, g_target, _drawing(g_target)))

    @torch.no_grad()
    def apply_drift_noise_to_conductance(
        self, g_prog: Tensor, drift_noise_param: Any, t_inference: float
    ) -> Tensor:
        """Conductances at a drift time of devices that were programmed to ``g_prog``.

        Of a device whose retention is known by age the state in ``drift_noise_param`` counts, not ``g_prog``.
        """
        self.profile.check_time(t_inference)
        target, coefficients = drift_noise_param
        law = law_of(self.profile)
        state = g_prog if law.state_is_programmed else target
        return law.conductances(state, coefficients, t_inference, _drawing(g_prog))


def _drawing(like: Tensor) -> Draw:
    """Standard normals from torch's global generators, as aihwkit's own noise models draw."""
    return lambda process: torch.randn_like(like)
