"""What the devices of a profile do, as means and standard deviations over many of them.

Nothing here knows a profile's sections: its law is run on a fixed set of numbers that fill the normal
distribution evenly, so the same code serves built-in laws and plug-ins, and clamping at zero counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.special import ndtri
from scipy.stats import qmc
from torch import Tensor

from analognoise.devices.laws import law_of, write
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import ProfileError
from analognoise.units import format_time

_PROCESSES = ("program", "drift", "read")
_DEVICES = 2048


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over devices, float64, one of each for every target (and time)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, devices: Tensor) -> Spread:
        """That of the last dimension."""
        first = devices[..., :1]  # taken out, so that devices that are all the same are so without rounding
        return cls(first[..., 0] + (devices - first).mean(-1), devices.std(-1, correction=0))


@dataclass(frozen=True)
class Behaviour:
    """What devices do that were programmed to some targets.

    Attributes:
        targets: target conductances, shape (targets,).
        times: drift times in seconds.
        programmed: conductance right after programming, shape (targets,).
        coefficients: drift coefficient that the law gives each device, shape (targets,); None without.
        drifted: conductance without read noise, shape (times, targets).
        read: conductance with read noise, as a chip computes with it, shape (times, targets).
        read_noise: standard deviation of the read noise alone, shape (times, targets).
    """

    targets: Tensor
    times: tuple[float, ...]
    programmed: Spread
    coefficients: Spread | None
    drifted: Spread
    read: Spread
    read_noise: Tensor


def behaviour(profile: DeviceProfile, targets: Sequence[float], times: Sequence[float]) -> Behaviour:
    """What devices of a profile do, all in its unit of conductance.

    Standard deviations agree with closed forms within 1 %, where there are any.

    Args:
        profile: the device.
        targets: target conductances, from g_min to g_max.
        times: drift times in seconds, at least one, within the profile's validity.

    Raises:
        ProfileError: when the profile names a law that cannot be used, or that gives infinite conductances.
    """
    law = law_of(profile)
    goal = torch.tensor(targets, dtype=torch.float64)
    each = goal[:, None].repeat(1, _DEVICES)
    normals = dict(zip(_PROCESSES, _normals(), strict=True))

    def draw(process: str) -> Tensor:
        return normals[process].repeat(len(goal), 1)

    def quiet(process: str) -> Tensor:
        return torch.zeros_like(each)

    with torch.no_grad():
        state, coefficients = write(profile, each, draw)
        programmed = law.programmed(state, coefficients)
        drifted = [law.conductances(state, coefficients, time, quiet) for time in times]
        read = [law.conductances(state, coefficients, time, draw) for time in times]
    for time, conductances in zip(times, read, strict=True):
        if not conductances.isfinite().all():
            raise ProfileError(
                f"profile {profile.name!r} gives conductances that are not finite after {format_time(time)}: "
                "say in its [validity] up to when it holds"
            )
    noise = [(loud - silent).square().mean(-1).sqrt() for loud, silent in zip(read, drifted, strict=True)]
    return Behaviour(
        targets=goal,
        times=tuple(times),
        programmed=Spread.of(programmed),
        coefficients=None if coefficients is None else Spread.of(coefficients),
        drifted=Spread.of(torch.stack(drifted)),
        read=Spread.of(torch.stack(read)),
        read_noise=torch.stack(noise),
    )


@cache
def _normals() -> Tensor:
    """Numbers for each process that fill the normal distribution evenly, shape (processes, devices).

    Their means are exactly 0, their standard deviations 1 and their correlations 0.
    """
    points = qmc.Sobol(len(_PROCESSES), scramble=True, rng=0).random(_DEVICES)
    normals = ndtri(points)
    normals -= normals.mean(0)
    factor = np.linalg.cholesky(normals.T @ normals / _DEVICES)
    return torch.from_numpy(np.linalg.solve(factor, normals.T))
