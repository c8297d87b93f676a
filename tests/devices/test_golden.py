"""Every shipped profile gives the golden values: mean and spread of a device at its drift times."""

import csv
import sys
from pathlib import Path

import pytest
import torch

from analognoise.devices import list_profiles, load_profile
from analognoise.devices.laws import law_of
from analognoise.seeds import Stream

sys.path.insert(0, str(Path(__file__).parent))
import golden

DEVICES = 400_000
with golden.TABLE.open(encoding="utf-8") as file:
    ROWS = [tuple(row.values()) for row in csv.DictReader(file)]


def test_the_table_is_that_of_the_closed_forms():
    recomputed = golden.rows()
    assert len(recomputed) == len(ROWS)
    for row, (name, target, time, mean, std) in zip(ROWS, recomputed, strict=True):
        assert row[:3] == (name, str(target), time)
        assert (float(row[3]), float(row[4])) == pytest.approx((mean, std), rel=1e-5, abs=1e-9)


def test_the_table_has_every_shipped_profile_at_four_conductances_and_its_ages():
    assert {row[0] for row in ROWS} == set(list_profiles())
    for name in list_profiles():
        targets = {float(row[1]) for row in ROWS if row[0] == name}
        conductance = load_profile(name).conductance
        assert len(targets) == 4
        assert (min(targets), max(targets)) == (conductance.g_min, conductance.g_max)


@pytest.mark.parametrize("name", list_profiles())
def test_devices_have_the_mean_and_the_spread_of_the_table(name):
    profile = load_profile(name)
    law = law_of(profile)
    for number, target in enumerate(dict.fromkeys(float(row[1]) for row in ROWS if row[0] == name)):
        stream = Stream(1, "", layer=name, tile=number)
        state, coefficients = law.write(
            torch.full((DEVICES,), target), lambda process, s=stream: s.at(process=process).normal((DEVICES,))
        )
        for row in ROWS:
            if row[0] != name or float(row[1]) != target:
                continue
            if row[2] == "programmed":
                found = law.programmed(state, coefficients)
            else:
                seconds = float(row[2])
                found = law.conductances(
                    state,
                    coefficients,
                    seconds,
                    lambda process, s=stream, t=seconds: s.at(process=process, time_ns=int(t * 1e9)).normal(
                        (DEVICES,)
                    ),
                )
            found = found.double()
            mean, std = float(row[3]), float(row[4])
            deviation = (found - mean) ** 2
            # Four and a half standard errors of the sample mean and of the sample variance, and float32.
            assert abs(float(found.mean()) - mean) <= 4.5 * std / DEVICES**0.5 + 2e-6 * target + 1e-12, row
            error = float(deviation.std()) / DEVICES**0.5
            assert abs(float(deviation.mean()) - std**2) <= 4.5 * error + 1e-5 * std**2 + 1e-10, row
