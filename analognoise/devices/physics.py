"""What one device does: programming, drift and read, as functions of whole tensors of devices.

All conductances are in the profile's unit, of any shape and on any device, float32 or float64; the result has the same shape and type.
``normal`` always is a tensor of independent standard normal numbers of the same shape. Where the profile lacks an effect, its function
returns its input as it is, and takes None for ``normal``. Arguments are never changed, but a result may be one of them. The functions are
not differentiable: call them without gradients.

Formulas: Nandakumar et al., ICECS 2019, doi 10.1109/ICECS46596.2019.8964852; the same as in aihwkit's ``PCMLikeNoiseModel``, per device.

What depends on the target (or on the programmed conductance) alone may be computed once and handed in for every chip (or time):
``programming_sigma``, ``drift_moments``, ``relative_read_sigma``.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

from analognoise.devices.curves import Log
from analognoise.devices.profile import MIN_DRIFT_X, DeviceProfile

# A number where a curve is constant.
Level: TypeAlias = Tensor | float


def program(
    target: Tensor, profile: DeviceProfile, normal: Tensor | None, *, sigma: Level | None = None
) -> Tensor:
    """Programmed conductances G_P = G_T + sigma(G_T / g_max) · N, clamped at zero where the profile says so.

    Args:
        target: target conductances G_T >= 0.
        profile: the device.
        normal: standard normals; None if ``profile.programming`` is None.
        sigma: what ``programming_sigma(target, profile)`` gave before, to save computing it again.
    """
    if profile.programming is None:
        return target
    assert normal is not None, "programming noise needs normal numbers"
    if sigma is None:
        sigma = programming_sigma(target, profile)
    if isinstance(sigma, Tensor):
        programmed = torch.addcmul(target, sigma, normal)
    else:
        programmed = torch.add(target, normal, alpha=sigma)
    return programmed.clamp_(min=0) if profile.programming.clamp_at_zero else programmed


def programming_sigma(target: Tensor, profile: DeviceProfile) -> Level:
    """Standard deviation of programming at each target, in the unit of conductance; 0.0 without programming noise."""
    if profile.programming is None:
        return 0.0
    sigma = profile.programming.sigma
    constant = sigma.constant
    return sigma.function(1 / profile.conductance.g_max)(target) if constant is None else constant


def drift_coefficients(
    target: Tensor,
    profile: DeviceProfile,
    normal: Tensor | None,
    *,
    moments: tuple[Level, Level] | None = None,
) -> Tensor | None:
    """Drift exponents nu = abs(nu_mean + nu_std · N), both of max(G_T / g_max, 1e-7); None if the device does not drift.

    Args:
        target: target (not programmed) conductances G_T >= 0.
        profile: the device.
        normal: standard normals; None if ``profile.drift`` is None.
        moments: what ``drift_moments(target, profile)`` gave before, to save computing it again.
    """
    if profile.drift is None:
        return None
    assert normal is not None, "drift exponents need normal numbers"
    mean, std = drift_moments(target, profile) if moments is None else moments
    if isinstance(mean, Tensor):
        nu = (
            torch.addcmul(mean, std, normal)
            if isinstance(std, Tensor)
            else torch.add(mean, normal, alpha=std)
        )
    else:
        nu = (normal * std).add_(mean)
    return nu.abs_()


def drift_moments(target: Tensor, profile: DeviceProfile) -> tuple[Level, Level]:
    """nu_mean and nu_std at each target; (0.0, 0.0) without drift."""
    if profile.drift is None:
        return 0.0, 0.0
    mean, std = profile.drift.nu_mean, profile.drift.nu_std
    factor = 1 / profile.conductance.g_max
    if mean.constant is not None and std.constant is not None:
        return mean.constant, std.constant
    positive = target.clamp(min=MIN_DRIFT_X * profile.conductance.g_max)
    if mean.constant is None and std.constant is None and isinstance(mean, Log) and isinstance(std, Log):
        log = positive.log_()
        return mean.of_log(factor)(log), std.of_log(factor)(log)
    return (
        mean.function(factor)(positive) if mean.constant is None else mean.constant,
        std.function(factor)(positive) if std.constant is None else std.constant,
    )


def drift(programmed: Tensor, nu: Tensor | None, seconds: float, profile: DeviceProfile) -> Tensor:
    """Drifted conductances G(t) = G_P · ((seconds + t_0) / t_0)^(-nu), without read noise.

    Args:
        programmed: conductances G_P right after programming.
        nu: what ``drift_coefficients`` gave; None if the device does not drift.
        seconds: drift time, >= 0.
        profile: the device.
    """
    if profile.drift is None or nu is None or seconds == 0:
        return programmed
    return torch.mul(nu, -math.log1p(seconds / profile.drift.t_0)).exp_().mul_(programmed)


def read(
    drifted: Tensor,
    programmed: Tensor,
    seconds: float,
    profile: DeviceProfile,
    normal: Tensor | None,
    *,
    relative_sigma: Level | None = None,
) -> Tensor:
    """Conductances with the 1/f noise that has accumulated: G(t) · (1 + Q(G_P / g_max) · growth(t) · N), clamped at zero.

    Args:
        drifted: conductances G(t) at that time.
        programmed: conductances G_P right after programming.
        seconds: drift time, >= 0.
        profile: the device.
        normal: standard normals; None if ``profile.read`` is None.
        relative_sigma: what ``relative_read_sigma(programmed, profile)`` gave before, to save computing it again.
    """
    if profile.read is None:
        return drifted
    assert normal is not None, "read noise needs normal numbers"
    growth = read_growth(seconds, profile)
    if relative_sigma is None:
        relative_sigma = relative_read_sigma(programmed, profile)
    if isinstance(relative_sigma, Tensor):
        conductance = torch.addcmul(drifted, relative_sigma * normal, drifted, value=growth)
    else:
        conductance = torch.addcmul(drifted, normal, drifted, value=relative_sigma * growth)
    return conductance.clamp_(min=0) if profile.read_clamps_at_zero else conductance


def relative_read_sigma(programmed: Tensor, profile: DeviceProfile) -> Level:
    """Q at abs(G_P) / g_max: relative standard deviation of read noise before its growth in time; 0.0 without read noise."""
    if profile.read is None:
        return 0.0
    curve = profile.read.relative_sigma
    constant = curve.constant
    if constant is not None:
        return constant
    signed = profile.programming is not None and not profile.programming.clamp_at_zero
    return curve.function(1 / profile.conductance.g_max)(programmed.abs() if signed else programmed)


def read_growth(seconds: float, profile: DeviceProfile) -> float:
    """sqrt(max(0, ln((t + t_read) / (2 t_read)))) at t = seconds + t_0, the growth of 1/f noise; 0.0 without read noise."""
    if profile.read is None:
        return 0.0
    t_read = profile.read.t_read
    return math.sqrt(max(0.0, math.log((seconds + profile.read_t_0 + t_read) / (2 * t_read))))
