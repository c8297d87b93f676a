"""Short-term read noise: what devices fluctuate by from one product to the next."""

from __future__ import annotations

from torch import Tensor

from analognoise.crossbar.mapping import full_scale
from analognoise.devices.profile import DeviceProfile


def weight_variance(devices: Tensor, profile: DeviceProfile) -> Tensor:
    """Variance of each cell's net weight at one product, ``[groups, columns, rows]``, where the largest
    weight is 1.

    The noise of an output is a sum over independent devices. So it is drawn there, with the exact variance
    Σ x² · variance, instead of a fresh copy of the array for every vector. (Columns that share the devices of
    an offset column are drawn independently of each other.)

    Args:
        devices: ``[devices, groups, columns, rows]``, conductances at the time of the product.
        profile: its ``periphery.w_noise`` is the standard deviation of one device in parts of g_max - g_min,
            a curve of G / g_max; negative conductances count as 0.
    """
    assert profile.surroundings is not None
    assert profile.surroundings.w_noise is not None
    sigma = profile.surroundings.w_noise.of_conductance(profile.conductance.g_max)
    span = profile.conductance.g_max - profile.conductance.g_min
    own = sigma(devices.clamp(min=0)).square_().mul_((span / full_scale(profile)) ** 2)
    if profile.mapping.cell == "offset-column":
        return own[0, :, :-1] + own[0, :, -1:]
    if profile.mapping.cell == "offset-digital":
        return own[0]
    total = own[0] + own[1]
    if profile.mapping.pairs:
        total *= profile.mapping.pairs[0] ** 2
        for number, significance in enumerate(profile.mapping.pairs[1:], 1):
            total.add_(own[2 * number] + own[2 * number + 1], alpha=significance**2)
    return total
