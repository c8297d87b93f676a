"""Measurements that a known profile would give."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest
import torch

from analognoise.devices import DeviceProfile, physics
from analognoise.seeds import Stream

Measure = Callable[..., pd.DataFrame]


def measure(
    profile: DeviceProfile,
    targets: Sequence[float],
    devices: int,
    ages: Sequence[float],
    repeats: int,
    seed: int,
) -> pd.DataFrame:
    """Reads of ``devices`` devices at each target, ``repeats`` times at each age since programming."""
    stream = Stream(seed, "measured")
    target = torch.tensor(np.repeat(targets, devices), dtype=torch.float64)
    shape = (len(target),)
    programmed = physics.program(target, profile, stream.at(layer="program").normal(shape).double())
    nu = physics.drift_coefficients(target, profile, stream.at(layer="drift").normal(shape).double())
    t_0 = profile.drift.t_0 if profile.drift else ages[0]
    parts = []
    for age in ages:
        drifted = physics.drift(programmed, nu, age - t_0, profile)
        for repeat in range(repeats):
            normal = stream.at(layer="read", time_ns=round(age * 1e9), step=repeat).normal(shape).double()
            read = physics.read(drifted, programmed, age - t_0, profile, normal)
            names = [f"d{index}" for index in range(len(target))]
            columns = {"device": names, "target_uS": target, "time_s": age, "conductance_uS": read}
            parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(name="measure", scope="session")
def measure_fixture() -> Measure:
    return measure
