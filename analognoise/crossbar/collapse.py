"""Pairs merged after programming and split again at drift, as aihwkit does: for comparing with it, no more.

aihwkit keeps one net weight of each pair after programming. At drift it splits the net weight into a pair
anew, with one device at g_min, scaled so that the largest net weight of the tile (noise included) maps to
g_max. What is lost: the noise of the device that should be near g_min.
"""

from __future__ import annotations

import torch
from torch import Tensor

from analognoise.crossbar.mapping import full_scale, to_devices, to_weights
from analognoise.devices.laws import law_of
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import ConversionError


def check_collapse(profile: DeviceProfile) -> None:
    """Nothing, where a device is used in pairs and all of them work.

    Raises:
        ConversionError: where not.
    """
    if profile.faults is not None:
        raise ConversionError(
            "collapse_pairs merges pairs as aihwkit does, which has no faults, but profile "
            f"{profile.name!r} has [faults]: leave one of them out"
        )
    if profile.mapping.cell not in (None, "pair"):
        raise ConversionError(
            f"collapse_pairs merges pairs of devices, but profile {profile.name!r} has "
            f"mapping.cell = {profile.mapping.cell!r}, one device for each weight: leave it out"
        )


def merge_pairs(
    state: Tensor, coefficients: Tensor | None, scale: Tensor, profile: DeviceProfile
) -> tuple[Tensor, Tensor]:
    """Merge the pairs of a programmed tile into net weights and split these again.

    A device whose law draws it from its target at every age (``retention``) is left as it is: aihwkit's model
    of it has no use for the merged weight either.

    Args:
        state: what the law wrote, ``[devices, groups, columns, rows]``.
        coefficients: likewise.
        scale: weight units per conductance unit.
        profile: a device in pairs.

    Returns:
        State and scale of the pairs that drift.
    """
    law = law_of(profile)
    if not law.state_is_programmed:
        return state, scale
    one = torch.ones_like(scale[:1, :1])
    net = to_weights(law.programmed(state, coefficients), one, profile)
    largest = net.abs().amax().reshape(1, 1, 1)
    factor = torch.where(largest > 0, largest / full_scale(profile), one)
    return to_devices(net, factor, profile), scale * factor
