"""``analognoise profiles fit`` as its user sees it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analognoise.cli import main
from analognoise.devices import load_profile


@pytest.fixture(scope="module")
def measurements(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 devices at four targets, first read after 10 s, with drift, three reads at each age."""
    generator = np.random.default_rng(0)
    target = np.repeat([2.0, 4.0, 7.0, 10.0], 50)
    programmed = target + 0.3 * generator.standard_normal(200)
    nu = 0.05 + 0.01 * generator.standard_normal(200)
    rows = []
    for age in (10.0, 3600.0):
        for _ in range(3):
            read = programmed * (age / 10) ** -nu * (1 + 0.03 * generator.standard_normal(200))
            rows += [(f"d{i}", target[i], age, round(read[i], 5)) for i in range(200)]
    path = tmp_path_factory.mktemp("fit") / "measurements.csv"
    pd.DataFrame(rows, columns=["device", "target_uS", "time_s", "conductance_uS"]).to_csv(path, index=False)
    return path


def test_a_profile_and_its_picture_in_one_command(
    measurements: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my-device.toml"
    command = ["profiles", "fit", str(measurements), "-o", str(out), "--curve", "sigma=constant"]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert f"{measurements}: 1,200 reads of 200 devices at 4 targets from 2 to 10" in shown.out
    assert "Curves of x = G / 10, with 95 % intervals" in shown.out
    assert "programming.sigma" in shown.out
    assert "What these measurements cannot tell:\n- Drift after 1 h, the last age" in shown.out
    assert f"profile: {out}" in shown.out
    assert "fitting" in shown.err
    profile = load_profile(out)
    assert profile.name == "my-device"
    assert profile.programming.sigma.constant == pytest.approx(0.3, abs=4 * 0.3 / np.sqrt(400))
    assert (tmp_path / "my-device.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["my-device.png", "my-device.toml"]
    assert main(["profiles", "check", str(out)]) == 0
    capsys.readouterr()

    before = out.read_bytes()
    assert main(command) == 2
    assert f"error: {out} exists: name another file, or replace it with --force" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main([*command, "--force", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["profile"]["programming"]["sigma"]["curve"] == "constant"
    assert said["curves"][0]["parameters"][0]["name"] == "value"
    assert said["measured"]["devices"] == 200


def test_wrong_use_is_one_sentence_and_writes_nothing(
    measurements: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nano = tmp_path / "nano.csv"
    frame = pd.read_csv(measurements)
    frame.assign(conductance_uS=frame["conductance_uS"] * 1000).to_csv(nano, index=False)
    for arguments, message in [
        ([str(measurements), "-o", str(tmp_path / "my.json")], "must end in .toml"),
        ([str(measurements), "-o", str(tmp_path / "no" / "my.toml")], "does not exist"),
        (
            [str(measurements), "-o", str(tmp_path / "my.toml"), "--curve", "log"],
            "write for example nu_mean=log",
        ),
        ([str(measurements), "-o", str(tmp_path / "my.toml"), "--duplicates", "ask"], "refuse, drop, keep"),
        ([str(measurements), "-o", str(tmp_path / "my.toml"), "--seed", "-1"], "seed is -1 but must be"),
        ([str(tmp_path / "gone.csv"), "-o", str(tmp_path / "my.toml")], "gone.csv cannot be read"),
        ([str(nano), "-o", str(tmp_path / "my.toml")], "is it in nS? Then name it conductance_nS"),
    ]:
        assert main(["profiles", "fit", *arguments]) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert message in errors[0]
    assert [file.name for file in tmp_path.iterdir()] == ["nano.csv"]


def test_answering_the_question_about_units(measurements: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(measurements)
    nano = tmp_path / "nano.csv"
    frame.assign(conductance_uS=(frame["conductance_uS"] * 1000).round(2)).to_csv(nano, index=False)
    constant = [
        part
        for name in ("sigma", "nu_mean", "nu_std", "relative_sigma")
        for part in ("--curve", f"{name}=constant")
    ]
    common = ["--name", "same", *constant]
    for path, more in ((measurements, []), (nano, ["--conductance-unit", "nS"])):
        out = tmp_path / f"{path.stem}.toml"
        assert main(["profiles", "fit", str(path), "-o", str(out), *common, *more]) == 0
    assert load_profile(tmp_path / "nano.toml") == load_profile(tmp_path / "measurements.toml")
