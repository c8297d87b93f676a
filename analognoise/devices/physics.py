"""What one device does: programming, drift and read, as functions of whole tensors of devices.

All conductances are in the profile's unit, of any shape, float32 or float64, on any torch device; a result
has the same shape, type and place. ``normal`` is always a tensor of independent standard normal numbers of
the same shape. Where the profile lacks an effect, its function returns its input as it is and needs no
``normal``. Arguments are never changed, but a result may be one of them. Nothing here is differentiable: call
it without gradients.

Formulas: Nandakumar et al., ICECS 2019, doi 10.1109/ICECS46596.2019.8964852; per device the same as those of
aihwkit's ``PCMLikeNoiseModel``.

What depends on the target alone, or on the programmed conductance alone, can be computed once and handed in
for every chip, or for every time: ``programming_sigma``, ``drift_moments``, ``relative_read_sigma``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from analognoise.devices.base import BaseCurve
from analognoise.devices.contents import MIN_DRIFT_X
from analognoise.devices.curves import Log
from analognoise.devices.profile import DeviceProfile

Level: TypeAlias = Tensor | float
"""A value for each device, or one number where it is the same for all."""

Times: TypeAlias = float | Sequence[float]
"""A drift time in seconds; or several, which then lie along the second axis of a result, after the axis of
the devices of a cell: ``[devices, times, groups, columns, rows]``. Every other argument has that axis, too,
of length 1 where it is the same for all times. The numbers are those of each time by itself, bit for bit."""


def program(
    target: Tensor,
    profile: DeviceProfile,
    normal: Tensor | None,
    *,
    sigma: Level | None = None,
    spent: bool = False,
) -> Tensor:
    """Programmed conductances G_P = G_T + sigma(G_T / g_max) · N, clamped at zero where the profile says so.

    Args:
        target: target conductances G_T >= 0.
        profile: the device.
        normal: standard normals; None if ``profile.programming`` is None.
        sigma: ``programming_sigma(target, profile)``, where it is known already.
        spent: whether the memory of ``normal`` may become that of the result.
    """
    if profile.programming is None:
        return target
    normal = _given(normal, "programming")
    out = normal if spent else None
    if sigma is None:
        sigma = programming_sigma(target, profile)
        out = sigma if out is None and isinstance(sigma, Tensor) else out
    if isinstance(sigma, Tensor):
        programmed = torch.addcmul(target, sigma, normal, out=out)
    else:
        programmed = torch.add(target, normal, alpha=sigma, out=out)
    return programmed.clamp_(min=0) if profile.programming.clamp_at_zero else programmed


def programming_sigma(target: Tensor, profile: DeviceProfile) -> Level:
    """Standard deviation of programming at each target, in the unit of conductance; 0.0 if there is none."""
    return _level(profile.programming.sigma, target, profile) if profile.programming else 0.0


def written_sigma(target: Tensor, profile: DeviceProfile) -> Level:
    """Standard deviation right after programming at each target, that of the first age for a retention."""
    curve = profile.programming_sigma
    return 0.0 if curve is None else _level(curve, target, profile)


def drift_coefficients(
    target: Tensor,
    profile: DeviceProfile,
    normal: Tensor | None,
    *,
    moments: tuple[Level, Level] | None = None,
    spent: bool = False,
) -> Tensor | None:
    """Drift exponents nu = abs(nu_mean + nu_std · N), both of max(G_T / g_max, 1e-7); None without drift.

    Args:
        target: target (not programmed) conductances G_T >= 0.
        profile: the device.
        normal: standard normals; None if ``profile.drift`` is None.
        moments: ``drift_moments(target, profile)``, where they are known already.
        spent: as in :func:`program`.
    """
    if profile.drift is None:
        return None
    normal = _given(normal, "drift")
    mean, std = drift_moments(target, profile) if moments is None else moments
    out = normal if spent else None
    if not isinstance(mean, Tensor):
        nu = torch.mul(normal, std, out=out).add_(mean)
    else:
        out = mean if out is None and moments is None else out
        if isinstance(std, Tensor):
            nu = torch.addcmul(mean, std, normal, out=out)
        else:
            nu = torch.add(mean, normal, alpha=std, out=out)
    return nu.abs_()


def drift_moments(target: Tensor, profile: DeviceProfile) -> tuple[Level, Level]:
    """nu_mean and nu_std at each target; (0.0, 0.0) without drift."""
    if profile.drift is None:
        return 0.0, 0.0
    mean, std = profile.drift.nu_mean, profile.drift.nu_std
    if mean.constant is not None and std.constant is not None:
        return mean.constant, std.constant
    g_max = profile.conductance.g_max
    positive = target.clamp(min=MIN_DRIFT_X * g_max)
    if isinstance(mean, Log) and isinstance(std, Log) and mean.constant is None and std.constant is None:
        # The logarithm is most of the work.
        log = positive.log_()
        first = mean.of_log(1 / mean.unit(g_max))(log)
        return first, std.of_log(1 / std.unit(g_max))(log, out=log)
    return _level(mean, positive, profile), _level(std, positive, profile)


def drift(programmed: Tensor, nu: Tensor | None, seconds: Times, profile: DeviceProfile) -> Tensor:
    """Drifted conductances G(t) = G_P · ((seconds + t_0) / t_0)^(-nu), without read noise.

    Args:
        programmed: conductances G_P right after programming.
        nu: what ``drift_coefficients`` gave; None if ``profile.drift`` is None.
        seconds: drift time, >= 0, or several.
        profile: the device.
    """
    if profile.drift is None or seconds == 0:
        return programmed
    nu, t_0 = _given(nu, "drift"), profile.drift.t_0
    return torch.mul(nu, _each(lambda time: -math.log1p(time / t_0), seconds, nu)).exp_().mul_(programmed)


def relax(programmed: Tensor, normal: Tensor | None, seconds: float, profile: DeviceProfile) -> Tensor:
    """Relaxed conductances G_P + shift · ln t + max(0, sigma + sigma_slope · ln t) · N, without read noise.

    The form of Falcone et al. 2025 (arXiv 2502.04524), per device as in aihwkit's ``ReRamCMONoiseModel``.
    Curves are taken at max(G_P, 0).

    Args:
        programmed: conductances G_P right after programming.
        normal: standard normals, the same for all times; None if ``profile.relaxation`` is None.
        seconds: drift time t, >= 0; at 0 nothing has relaxed.
        profile: the device.
    """
    section = profile.relaxation
    if section is None or seconds == 0:
        return programmed
    normal, log = _given(normal, "relaxation"), math.log(seconds)
    shift = _level_within(section.shift, programmed, profile)
    slope = _level_within(section.sigma_slope, programmed, profile)
    sigma = slope * log + _level_within(section.sigma, programmed, profile)
    sigma = sigma.clamp_(min=0) if isinstance(sigma, Tensor) else max(0.0, sigma)
    relaxed = (sigma * normal).add_(shift * log).add_(programmed)
    return relaxed.clamp_(min=0) if section.clamp_at_zero else relaxed


def retain(target: Tensor, normal: Tensor | None, seconds: float | None, profile: DeviceProfile) -> Tensor:
    """Conductances G_T + shift(G_T, t) + sigma(G_T, t) · N of a device that is known at some ages.

    Args:
        target: target conductances G_T >= 0.
        normal: standard normals, the same for all times; None if ``profile.retention`` is None.
        seconds: drift time, or None for right after programming, which the first age stands for.
        profile: the device.
    """
    section = profile.retention
    if section is None:
        return target
    normal = _given(normal, "retention")
    kept = torch.mul(normal, retention_level(section.sigma, target, seconds, profile).clamp_(min=0))
    kept += target
    if section.shift is not None:
        kept += retention_level(section.shift, target, seconds, profile)
    return kept.clamp_(min=0) if section.clamp_at_zero else kept


def retention_level(
    curves: Sequence[BaseCurve], target: Tensor, seconds: float | None, profile: DeviceProfile
) -> Tensor:
    """The value at a drift time of what ``profile.retention`` knows at its ages, at each target.

    Args:
        curves: one for each age, such as ``profile.retention.sigma``.
        target: target conductances G_T >= 0.
        seconds: drift time, or None for right after programming.
        profile: a profile with a retention.
    """
    assert profile.retention is not None
    first, second, share = profile.retention.around(seconds)
    g_max = profile.conductance.g_max
    level = curves[first].of_conductance(g_max)(target)
    if second != first:
        level.lerp_(curves[second].of_conductance(g_max)(target), share)
    return level


def limit(conductance: Tensor, profile: DeviceProfile) -> Tensor:
    """Conductances within g_min and g_max where the device cannot leave them; a new tensor if any changes."""
    section = profile.conductance
    return conductance.clamp(section.g_min, section.g_max) if section.clamp_to_range else conductance


def read(
    drifted: Tensor,
    programmed: Tensor,
    seconds: Times,
    profile: DeviceProfile,
    normal: Tensor | None,
    *,
    relative_sigma: Level | None = None,
    spent: bool = False,
) -> Tensor:
    """Conductances with accumulated 1/f noise, G(t) + s · growth · N, clamped at zero.

    s is G(t) · Q(abs(G_P) / g_max) where the profile has ``read.relative_sigma`` Q, and ``read.sigma`` at
    max(G(t), 0) where it has that.

    Args:
        drifted: conductances G(t) at that time.
        programmed: conductances G_P right after programming.
        seconds: drift time, >= 0; the noise is there at 0, too. Or several, for a ``read.relative_sigma``.
        profile: the device.
        normal: standard normals; None if ``profile.read`` is None.
        relative_sigma: Q, ``relative_read_sigma(programmed, profile)``, where it is known already.
        spent: as in :func:`program`.
    """
    if profile.read is None:
        return drifted
    normal = _given(normal, "read")
    if profile.read.sigma is not None:
        assert isinstance(seconds, (int, float)), "one time after the other"
        sigma = _level_within(profile.read.sigma, drifted, profile)
        noisy = torch.add(drifted, normal * sigma, alpha=read_growth(seconds, profile))
        return noisy.clamp_(min=0) if profile.read_clamps_at_zero else noisy
    fresh = relative_sigma is None
    if relative_sigma is None:
        relative_sigma = relative_read_sigma(programmed, profile)
    level = 1.0 if isinstance(relative_sigma, Tensor) else relative_sigma
    growth = _each(lambda time: level * read_growth(time, profile), seconds, normal)
    noise = normal
    if isinstance(relative_sigma, Tensor):
        own = fresh and relative_sigma.shape == normal.shape
        room = normal if spent else relative_sigma if own else None
        noise = torch.mul(relative_sigma, normal, out=room)
    out = noise if spent or noise is not normal else None
    if isinstance(growth, Tensor):
        noise = torch.mul(noise, growth, out=out)
        noisy = torch.addcmul(drifted, noise, drifted, out=noise)
    else:
        noisy = torch.addcmul(drifted, noise, drifted, value=growth, out=out)
    return noisy.clamp_(min=0) if profile.read_clamps_at_zero else noisy


def relative_read_sigma(programmed: Tensor, profile: DeviceProfile) -> Level:
    """Q(abs(G_P) / g_max), the relative standard deviation of read noise before it grows; 0.0 without, and
    where ``read.sigma`` stands in its place.
    """
    if profile.read is None or profile.read.relative_sigma is None:
        return 0.0
    section = profile.programming or profile.retention
    if section and not section.clamp_at_zero and profile.read.relative_sigma.constant is None:
        programmed = programmed.abs()
    return _level(profile.read.relative_sigma, programmed, profile)


def read_growth(seconds: float, profile: DeviceProfile) -> float:
    """How 1/f noise grows: sqrt(max(0, ln((t + t_read) / (2 t_read)))), t = seconds + t_0; 1.0 where noise
    does not grow, 0.0 without read noise.
    """
    if profile.read is None:
        return 0.0
    t_read = profile.read.t_read
    if t_read is None or profile.read.growth == "none":
        return 1.0
    return math.sqrt(max(0.0, math.log((seconds + profile.read_t_0 + t_read) / (2 * t_read))))


def _each(function: Callable[[float], float], seconds: Times, like: Tensor) -> Level:
    """A function of the time; of several times a tensor that broadcasts along their axis."""
    if isinstance(seconds, (int, float)):
        return function(seconds)
    values = torch.tensor([function(time) for time in seconds], dtype=like.dtype, device=like.device)
    return values.view(-1, *(1,) * (like.ndim - 2))


def _level(curve: BaseCurve, conductance: Tensor, profile: DeviceProfile) -> Level:
    constant = curve.constant
    return curve.of_conductance(profile.conductance.g_max)(conductance) if constant is None else constant


def _level_within(curve: BaseCurve, conductance: Tensor, profile: DeviceProfile) -> Level:
    """A curve in the unit, at conductances that noise may have taken out of the range in which it is known: a
    negative one counts as 0, and where devices cannot leave their range one outside as its nearest end.
    """
    if curve.constant is not None:
        return curve.constant
    return _level(curve, limit(conductance, profile).clamp(min=0), profile)


def _given(tensor: Tensor | None, effect: str) -> Tensor:
    if tensor is None:
        raise TypeError(
            f"the profile has a section [{effect}], so its random numbers must be given and not None"
        )
    return tensor
