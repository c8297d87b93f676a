"""One crossbar array, before and after programming."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from analognoise.crossbar.collapse import check_collapse, merge_pairs
from analognoise.crossbar.compensation import check_compensation, factor, read_out
from analognoise.crossbar.faults import StuckDevices, draw_faults
from analognoise.crossbar.mapping import scales, to_devices, to_weights
from analognoise.crossbar.periphery.irdrop import behind_wires
from analognoise.crossbar.periphery.readnoise import weight_variance
from analognoise.devices.catalog import load_profile
from analognoise.devices.draws import Draws
from analognoise.devices.laws import law_of, write
from analognoise.devices.profile import DeviceProfile
from analognoise.seeds import Stream, nanoseconds

_SMALL = 1 << 15


def make_tile(device: DeviceProfile | str, compensation: str, collapse_pairs: bool) -> CrossbarTile:
    """Tiles for layers of one device, given as a profile, the name of a shipped one, or a file."""
    return CrossbarTile(load_profile(device), compensation, collapse_pairs)


class CrossbarTile:
    """An array of devices that can be programmed with a block of weights.

    Args:
        profile: the device; its ``tile`` section bounds the array.
        compensation: ``"global"`` (one factor per tile), ``"column"`` (one per column) or ``"none"``.
        collapse_pairs: merge pairs after programming and split them again, as aihwkit does; for comparing
            with it.
    """

    engine = "analognoise"

    def __init__(
        self, profile: DeviceProfile, compensation: str = "global", collapse_pairs: bool = False
    ) -> None:
        self.profile = profile
        self.compensation = check_compensation(compensation)
        self.collapse_pairs = collapse_pairs
        if collapse_pairs:
            check_collapse(profile)

    @property
    def settings(self) -> dict[str, Any]:
        """What beside profile and compensation makes the numbers, as plain values; empty by default."""
        return {"collapse_pairs": True} if self.collapse_pairs else {}

    def program(self, weights: Tensor, stream: Stream, layer_max: Tensor | None = None) -> ProgrammedTile:
        """Write the weights' target conductances once, with programming noise, and fix every device's drift
        and the faults.

        Args:
            weights: ``[columns, rows]`` or ``[groups, columns, rows]``, any float type; computed in float32.
            stream: the key of this tile on this chip; the process is filled in here.
            layer_max: the absolute weight of the whole layer that maps to g_max
                (:func:`analognoise.crossbar.mapping.largest`), used by profiles with ``scale = "layer"``.
        """
        profile = self.profile
        scale, target = self.targets(weights, layer_max)
        state, coefficients = write(profile, target, Draws(stream, target.shape, target.device))
        faults = draw_faults(target, scale, profile, stream)
        if self.collapse_pairs:
            state, scale = merge_pairs(state, coefficients, scale, profile)
        return ProgrammedTile(profile, self.compensation, state, coefficients, scale, stream, faults)

    def targets(self, weights: Tensor, layer_max: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scale and target conductances ``[devices, groups, columns, rows]`` of the weights, as for
        :meth:`program`.
        """
        weights = as_block(weights)
        scale = scales(weights, self.profile, layer_max)
        return scale, to_devices(weights, scale, self.profile)


def as_block(weights: Tensor) -> Tensor:
    """Weights as they are mapped: ``[groups, columns, rows]``, float32, without gradients."""
    block = weights if weights.ndim == 3 else weights.unsqueeze(0)
    if block.dtype is torch.float32 and not block.requires_grad:
        return block
    return block.detach().float()


class Reading(NamedTuple):
    """What a tile computes with at some time.

    Attributes:
        weights: net weights ``[groups, columns, rows]``, times the factor of the drift compensation.
        scale: weight units per conductance unit, likewise.
        variance: of the net weights at one product, where the largest is 1; None without read noise of
            products.
    """

    weights: Tensor
    scale: Tensor
    variance: Tensor | None


_levels_kept = False


@contextmanager
def levels_kept(kept: bool) -> Iterator[None]:
    """Whether small tiles programmed inside keep what their read noise has in common at all times: for chips
    that are read at many times. No number depends on it.
    """
    global _levels_kept
    before, _levels_kept = _levels_kept, kept
    try:
        yield
    finally:
        _levels_kept = before


class ProgrammedTile:
    """One programmed draw of a tile: what its devices hold and how each will drift, fixed for good.

    Attributes:
        state: what programming wrote, ``[devices, groups, columns, rows]`` in the profile's unit (G+ first):
            conductances, or for a device whose retention is known by age its targets.
        coefficients: a number for each device that governs its drift (drift exponents; the device's normal
            for relaxation and retention), or None for a device without drift.
        scale: weight units per conductance unit.
        stream: key of the tile; the read noise of a drift time is drawn from it at that time.
        faults: the devices that are stuck, whatever was written to them; None where all are healthy.
    """

    def __init__(
        self,
        profile: DeviceProfile,
        compensation: str,
        state: Tensor,
        coefficients: Tensor | None,
        scale: Tensor,
        stream: Stream,
        faults: StuckDevices | None = None,
    ) -> None:
        self.profile = profile
        self.compensation = compensation
        self.state = state
        self.coefficients = coefficients
        self.scale = scale
        self.stream = stream
        self.faults = faults
        # Generators differ between device types: read noise goes on being drawn where the chip was
        # programmed.
        self.drawn_on = state.device
        self._reference: Tensor | None = None
        # What read noise has in common at all times: two values per weight, kept where they save time.
        kept = _levels_kept and state.numel() <= _SMALL
        self._level = law_of(profile).level(state, coefficients) if kept else None

    def __getstate__(self) -> dict[str, Any]:
        # Small tiles that were programmed together share their memory, which each would take along whole.
        return {
            key: value.clone() if isinstance(value, Tensor) and _is_part(value) else value
            for key, value in vars(self).items()
        }

    @property
    def reference(self) -> Tensor:
        """The read-out right after programming, which drift is compensated by."""
        if self._reference is None:
            self.reading(None)
        assert self._reference is not None
        return self._reference

    @reference.setter
    def reference(self, value: Tensor) -> None:
        self._reference = value

    @property
    def programmed(self) -> Tensor:
        """Conductances ``[devices, groups, columns, rows]`` right after programming, without drift."""
        return self._with_faults(law_of(self.profile).programmed(self.state, self.coefficients))

    def programmed_weights(self) -> Tensor:
        """Net weights ``[groups, columns, rows]`` right after programming: no drift, no read noise."""
        return self.reading(None).weights

    def conductances_at(self, seconds: float) -> Tensor:
        """Conductances ``[devices, groups, columns, rows]`` at a drift time, with the read noise accumulated
        until then.

        The same time always gives the same numbers, whatever times were asked for before.
        """
        law, draws = law_of(self.profile), self._draws(seconds)
        return self._with_faults(law.conductances(self.state, self.coefficients, seconds, draws, self._level))

    def _draws(self, seconds: float) -> Draws:
        stream = self.stream.at(time_ns=nanoseconds(seconds))
        return Draws(stream, self.state.shape, self.state.device, self.drawn_on)

    def weights_at(self, seconds: float) -> Tensor:
        """Net weights ``[groups, columns, rows]`` at a drift time, times the factor of the drift
        compensation.
        """
        return self.reading(seconds).weights

    def weights_through(self, times: Sequence[float]) -> Tensor | list[Tensor]:
        """:meth:`weights_at` each of several drift times; of small tiles in one set of operations, bit for
        bit the same.
        """
        found = self._pairs_through(times)
        if found is None:
            return [self.weights_at(seconds) for seconds in times]
        weights = to_weights(found, self.scale, self.profile)
        if self.compensation != "none":
            # Each by itself: a reduction along some axes of a larger tensor would add up in another order.
            now = torch.stack([read_out(part, self.compensation) for part in weights])
            weights *= factor(self.reference, now).view(len(times), *self.reference.shape or (1, 1, 1))
        return weights

    def _pairs_through(self, times: Sequence[float]) -> Tensor | None:
        """Conductances ``[devices, times, groups, columns, rows]``, where that is known to save time and
        nothing but a sum over the pairs is to follow.
        """
        plain = self.faults is None and self.profile.wire_ratios is None
        if self._level is None or not plain or self.profile.mapping.cell not in (None, "pair"):
            return None
        law = law_of(self.profile)

        def draw(process: str, seconds: float) -> Tensor:
            return self._draws(seconds)(process)

        return law.conductances_through(self.state, self.coefficients, times, draw, self._level)

    def reading(self, seconds: float | None, devices: Tensor | None = None) -> Reading:
        """What the tile computes with at a drift time, or right after programming (None).

        Args:
            seconds: drift time.
            devices: :meth:`conductances_at` that time, where they are known already.
        """
        spent = False
        if devices is None:
            devices = self.programmed if seconds is None else self.conductances_at(seconds)
            # A law of somebody else's may keep what it gives.
            spent = self.profile.law is None and devices.data_ptr() != self.state.data_ptr()
        devices = behind_wires(devices, self.profile)
        around, scale = self.profile.surroundings, self.scale
        variance = weight_variance(devices, self.profile) if around and around.w_noise else None
        weights = to_weights(devices, scale, self.profile, spent)
        room = devices[1] if spent and len(devices) > 1 else None
        del devices  # large, and not needed any more
        if seconds is None and self._reference is None:
            self._reference = read_out(weights, self.compensation, room)
        if seconds is not None and self.compensation != "none":
            alpha = factor(self.reference, read_out(weights, self.compensation, room))
            weights *= alpha
            scale = scale * alpha
        return Reading(weights, scale, variance)

    @property
    def stuck_weights(self) -> Tensor | None:
        """Which weights ``[groups, columns, rows]`` have a stuck device of their own; None where none has."""
        if self.faults is None:
            return None
        found = self.faults.where(tuple(self.state.shape)).any(dim=0)
        return found[:, :-1] if self.profile.mapping.cell == "offset-column" else found

    def to(self, device: torch.device) -> ProgrammedTile:
        """Move the tile's state; what is drawn later stays the same."""
        self._reference = self.reference.to(device)  # before the state: sums differ between devices
        self.state = self.state.to(device)
        self.coefficients = None if self.coefficients is None else self.coefficients.to(device)
        self.scale = self.scale.to(device)
        self.faults = None if self.faults is None else self.faults.to(device)
        if isinstance(self._level, Tensor):
            self._level = self._level.to(device)
        return self

    def _with_faults(self, conductances: Tensor) -> Tensor:
        return conductances if self.faults is None else self.faults.put(conductances)


def _is_part(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() > tensor.nbytes
