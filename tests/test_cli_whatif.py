"""--set and --scale on the command line: rows, tables and run.json tell changed devices from originals."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from analognoise import convert_to_analog, evaluate_drift, load_profile
from analognoise.cli import main
from analognoise.devices.whatif import Changes

MINE = """
    import torch
    from torch import nn

    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 3))

    def batches():
        x = torch.randn(60, 20, generator=torch.Generator().manual_seed(1))
        return [(x, x[:, :3].argmax(1))]
"""
MODEL = ["--model", "mine:build", "--data", "mine:batches", "--times", "1h", "--chips", "3", "--out", "out"]
CHANGES = ["--set", "drift.t_0=10", "--scale", "programming=2,read=0"]
NAME = "pcm-ibm(drift.t_0=10,programming*2,read*0)"


def test_evaluate_and_report(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *MODEL, "--profile", "pcm-ibm,ideal", *CHANGES]) == 0
    import mine

    profile = load_profile("pcm-ibm").replace({"drift.t_0": 10.0}).scaled(programming=2.0, read=0.0)
    expected = evaluate_drift(convert_to_analog(mine.build(), profile), mine.batches(), ["1h"], chips=3)
    rows = pd.read_csv("out/results.csv")
    assert list(rows["profile"]) == [NAME] * 3 + ["ideal"] * 3
    assert list(rows["value"][:3]) == [row.value for row in expected.rows]
    run = json.loads(Path("out/run.json").read_text())
    assert run["settings"]["set"] == {"drift.t_0": 10}
    assert run["settings"]["scale"] == {"programming": 2.0, "read": 0.0}
    assert run["profiles"][NAME]["content"]["drift"]["t_0"] == 10.0
    # The table on the terminal, its Markdown and the report made again carry the whole name.
    assert NAME in capsys.readouterr().out
    assert NAME in Path("out/summary.md").read_text()
    assert main(["report", "out"]) == 0
    assert NAME in capsys.readouterr().out
    # The original beside it: both are there.
    assert main(["evaluate", *MODEL, "--profile", "pcm-ibm", "--out", "other"]) == 0
    assert set(pd.read_csv("other/results.csv")["profile"]) == {"pcm-ibm"}
    assert main(["evaluate", *MODEL, "--profile", "pcm-ibm"]) == 2
    assert "another run" in capsys.readouterr().err


def test_noise_levels_of_a_changed_device_are_a_family(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profiles = ["--profile", "gaussian@5%,gaussian@10%", "--set", "tile.rows=8"]
    assert main(["evaluate", *MODEL, *profiles]) == 0
    text = Path("out/summary.md").read_text()
    assert text.count("## Accuracy on gaussian(tile.rows=8)") == 1
    assert "@" not in text.split("## Accuracy")[1].split("\n")[0]
    assert Path("out/accuracy_over_level.png").is_file()


def test_faults(home: Path) -> None:
    rates = ["--set", "faults.stuck_at_g_min=0.05", "--set", "faults.stuck_at_g_max=0.02"]
    assert main(["evaluate", *MODEL, "--profile", "pcm-ibm,ideal", *rates]) == 0
    import mine

    faults = {"faults.stuck_at_g_min": 0.05, "faults.stuck_at_g_max": 0.02}
    expected = evaluate_drift(
        convert_to_analog(mine.build(), load_profile("pcm-ibm").replace(faults)),
        mine.batches(),
        ["1h"],
        chips=3,
    )
    rows = pd.read_csv("out/results.csv")
    name = "(faults.stuck_at_g_min=0.05,faults.stuck_at_g_max=0.02)"
    assert list(rows["profile"]) == [f"pcm-ibm{name}"] * 3 + [f"ideal{name}"] * 3
    assert list(rows["value"][:3]) == [row.value for row in expected.rows]
    assert rows["value"][3:].nunique() > 1  # chips differ by their faults alone
    run = json.loads(Path("out/run.json").read_text())
    assert run["settings"]["set"] == faults
    assert run["profiles"][f"ideal{name}"]["content"]["faults"]["stuck_at_g_min"] == 0.05


def test_sensitivity(home: Path) -> None:
    assert main(["sensitivity", *MODEL, "--profile", "pcm-ibm", *CHANGES]) == 0
    assert set(pd.read_csv("out/results.csv")["profile"]) == {NAME}
    run = json.loads(Path("out/run.json").read_text())
    assert run["settings"]["scale"] == {"programming": 2.0, "read": 0.0}
    assert run["profiles"][NAME]["digest"] == run["settings"]["profiles"][NAME]
    assert NAME in Path("out/sensitivity.md").read_text()


def test_compare_beside_the_original(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["compare", "--profile", "pcm-ibm", "--methods", "profile-noise", "--epochs", "1", "--seeds", "1"]
    base += ["--chips", "2", "--times", "1h", "--workers", "1", "--out", "out"]
    assert main(base) == 0
    assert main([*base, *CHANGES]) == 0
    said = capsys.readouterr().err
    assert "keeps 2 rows that an earlier call asked for and this one does not (profile pcm-ibm)" in said
    assert list(dict.fromkeys(pd.read_csv("out/results.csv")["profile"])) == [NAME, "pcm-ibm"]
    assert list(dict.fromkeys(pd.read_csv("out/summary.csv")["profile"])) == [NAME]
    run = json.loads(Path("out/run.json").read_text())
    assert run["profiles"][NAME]["content"]["drift"]["t_0"] == 10.0
    assert len(list(Path("out/models").glob("*.safetensors"))) == 2


def test_profiles_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profiles", "show", "pcm-ibm", *CHANGES, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["profile"]["name"], found["profile"]["drift"]["t_0"]) == (NAME, 10.0)
    assert main(["profiles", "show", "pcm-ibm", *CHANGES]) == 0
    assert NAME in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", *MODEL, "--profile", "pcm-ibm"],
        ["sensitivity", *MODEL, "--profile", "pcm-ibm"],
        ["compare", "--profile", "pcm-ibm", "--out", "out"],
        ["profiles", "show", "pcm-ibm"],
    ],
)
def test_a_field_that_is_not_there(
    home: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert main([*command, "--set", "drift.t0=10"]) == 2
    assert "unknown field drift.t0 = 10 (did you mean 't_0'?)" in capsys.readouterr().err
    assert not Path("out").exists()


def test_train_for_a_changed_device(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["train", "--model", "mine:build", "--data", "mine:batches", "--epochs", "2", "--lr", "0.05"]
    device = ["--method", "profile-noise", "--profile", "pcm-ibm"]
    assert main([*base, *device, "--out", "plain"]) == 0
    assert main([*base, *device, *CHANGES, "--out", "changed"]) == 0
    settings = json.loads(Path("changed/run.json").read_text())["settings"]
    [profile] = Changes.parse(CHANGES[1:2], CHANGES[3:]).apply([load_profile("pcm-ibm")])
    assert settings["profile"] == {"name": NAME, "digest": profile.digest}
    assert settings["set"] == {"drift.t_0": 10}
    models = [load_file(f"{name}/model.safetensors") for name in ("plain", "changed")]
    assert not torch.equal(*(model["0.weight"] for model in models))
    capsys.readouterr()
    assert main([*base, *CHANGES, "--out", "out"]) == 2
    assert "--set and --scale change the device to train for" in capsys.readouterr().err
