"""Which layers go on the chip, on the command line: sensitivity, --digital, a profile by layer."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import analognoise as an
from analognoise.errors import ProfileError
from analognoise.jobs.placements import load_placements
from tests.command import Run

MINE = """
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.features(x))

    def build():
        return Net()

    def test_loader():
        x = torch.randn(120, 20, generator=torch.Generator().manual_seed(1))
        return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=60)

    def task():
        from analognoise import Task
        from analognoise.tasks.base import TensorBatches
        x = torch.randn(120, 20, generator=torch.Generator().manual_seed(2))
        y = x[:, :3].argmax(1)
        def build(seed):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                return Net()
        return Task(name="mine", description="a test", build=build,
                    train=lambda seed, batch_size=None: TensorBatches(x, y, batch_size or 40, seed=seed),
                    validation=TensorBatches(x, y, 120), test=TensorBatches(x, y, 120),
                    epochs=2, lr=0.05, batch_size=40, n_classes=3)
"""
MODEL = ["--model", "mine:build", "--weights", "weights.safetensors", "--data", "mine:test_loader"]
LAYERS = ["features.0", "features.2", "head"]


@pytest.fixture
def home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With weights that fit, too."""
    monkeypatch.syspath_prepend(str(home))
    import mine

    torch.manual_seed(0)
    save_file(mine.build().state_dict(), home / "weights.safetensors")
    return home


def run_json(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_sensitivity_writes_what_the_report_says(run: Run, home: Path) -> None:
    base = ["sensitivity", *MODEL, "--profile", "gaussian@20%", "--chips", 3, "--seed", 4, "--out", "out"]
    result = run(*base, "--json")
    assert (result.status, result.err) == (0, "")
    found = json.loads(result.out)
    import mine

    model = mine.build()
    model.load_state_dict(load_file("weights.safetensors"))
    report = an.layer_sensitivity(model, "gaussian@20%", mine.test_loader(), times=["0s"], chips=3, seed=4)
    assert [row["layer"] for row in found["layers"]] == list(report.frame["layer"])
    assert [row["alone"] for row in found["layers"]] == list(report.frame["alone"])
    assert sorted(report.frame["layer"]) == LAYERS
    files = {path.name for path in (home / "out").iterdir()}
    assert files == {"sensitivity.csv", "sensitivity.md", "sensitivity.png", "results.csv", "run.json"}
    pd.testing.assert_frame_equal(pd.read_csv("out/sensitivity.csv"), report.frame, check_dtype=False)
    text = Path("out/sensitivity.md").read_text()
    assert "| features.0 |" in text
    assert "features.0.bias (32 parameters)" in text
    written = run_json(home / "out")
    assert (written["job"], written["settings"]["chips"]) == ("sensitivity", 3)
    assert written["model"]["profiles"]["gaussian@20%"]["devices"] == 2 * (640 + 512 + 48)


def test_sensitivity_goes_on_where_it_stopped(run: Run, home: Path) -> None:
    base = ["sensitivity", *MODEL, "--profile", "pcm-ibm", "--chips", 2, "--out", "out"]
    assert run(*base).status == 0
    before = {path.name: path.read_bytes() for path in (home / "out").iterdir()}
    lines = before["results.csv"].splitlines(keepends=True)
    assert len(lines) == 1 + 7 * 2
    for name in before:
        (home / "out" / name).unlink()
    (home / "out" / "results.csv").write_bytes(b"".join(lines[:6]))
    again = run(*base)
    assert again.err == "sensitivity: reused 5 of 14 results in out\n"
    assert {path.name: path.read_bytes() for path in (home / "out").iterdir()} == before
    for layer in LAYERS:
        assert layer in again.out
    other = run(*base, "--seed", 1)
    assert (other.status, other.out) == (2, "")
    assert "holds another run" in other.err
    assert run(*base, "--seed", 1, "--force").status == 0


def test_digital_layers_stay_digital(run: Run, home: Path) -> None:
    base = ["evaluate", *MODEL, "--profile", "pcm-ibm", "--times", "1h", "--chips", 2, "--out", "out"]
    result = run(*base, "--digital", "head*", "--digital", "features.0")
    assert result.status == 0, result.err
    assert "Digital: features.0 (672 parameters, 38,400 MACs)" in " ".join(result.out.split())
    written = run_json(home / "out")
    assert written["settings"]["digital"] == ["head*", "features.0"]
    model = written["model"]["profiles"]["pcm-ibm"]
    assert [layer["name"] for layer in model["layers"]] == ["features.2"]
    share = 512 / (640 + 512 + 48)
    assert model["mac_share"] == pytest.approx(share)
    assert f"{100 * share:.1f} % of the multiply-accumulates" in " ".join(result.out.split())
    text = (home / "out" / "summary.md").read_text()
    assert f"{100 * share:.1f} % of the multiply-accumulates" in text
    assert "| features.0      |        672 | 38,400 | left out of the conversion |" in text
    assert run("report", "out").status == 0
    assert (home / "out" / "summary.md").read_text() == text
    import mine

    network = mine.build()
    network.load_state_dict(load_file("weights.safetensors"))
    analog = an.convert_to_analog(network, "pcm-ibm", filter_fn=lambda _, name: name == "features.2")
    report = an.evaluate_drift(analog, mine.test_loader(), times="1h", chips=2)
    assert list(pd.read_csv("out/results.csv")["value"]) == [row.value for row in report.rows]
    other = run(*base)
    assert (other.status, "holds another run" in other.err) == (2, True)


@pytest.mark.parametrize("command", ["evaluate", "sensitivity", "compare", "train"])
@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["haed"], "pattern 'haed' matches no layer (did you mean 'head'?): the convertible layers are"),
        (["head", "faetures*"], "(did you mean 'features'?)"),
        (["*"], "'*' to be kept digital matches all 3 convertible layers"),
    ],
)
def test_a_pattern_that_cannot_be_is_an_error(
    run: Run, home: Path, command: str, patterns: list[str], words: str
) -> None:
    own = ["--task", "mine:task", "--out", "out"]
    arguments = {
        "evaluate": [*MODEL, "--profile", "ideal", "--out", "out"],
        "sensitivity": [*MODEL, "--profile", "ideal", "--out", "out"],
        "compare": [*own, "--profile", "ideal", "--methods", "sgd", "--workers", 1],
        "train": own,
    }
    digital = [word for pattern in patterns for word in ("--digital", pattern)]
    result = run(command, *arguments[command], *digital)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert words in result.err
    assert not (home / "out").exists()


def test_training_leaves_digital_layers_without_clipping(run: Run, home: Path) -> None:
    base = ["train", "--task", "mine:task", "--method", "clip:clip=1", "--epochs", 3]
    assert run(*base, "--out", "all").status == 0
    assert run(*base, "--digital", "head", "--out", "some").status == 0
    everywhere = load_file("all/model.safetensors")
    some = load_file("some/model.safetensors")
    assert everywhere.keys() == some.keys()

    def spread(weights: dict, name: str) -> float:
        weight = weights[f"{name}.weight"]
        return float(weight.abs().max() / weight.std())

    assert spread(everywhere, "head") < 1.3  # clipped to one standard deviation again and again
    assert spread(some, "features.0") < 1.3
    assert spread(some, "head") > 1.4
    assert run_json(home / "some")["settings"]["digital"] == ["head"]
    assert "digital" not in run_json(home / "all")["settings"]
    other = run(*base, "--out", "some")
    assert (other.status, "holds another run (digital is" in other.err) == (2, True)


def test_compare_keeps_layers_digital_in_training_and_on_chips(run: Run, home: Path) -> None:
    base = ["compare", "--task", "mine:task", "--profile", "gaussian@20%", "--methods", "profile-noise"]
    base += ["--seeds", "0,", "--chips", 2, "--epochs", 1, "--workers", 1]
    assert run(*base, "--out", "all").status == 0
    result = run(*base, "--digital", "head", "--out", "some")
    assert result.status == 0, result.err
    assert "Digital: head (51 parameters, 5,760 MACs)" in " ".join(result.out.split())
    written = run_json(home / "some")
    assert written["settings"]["digital"] == ["head"]
    model = written["model"]["profiles"]["gaussian@20%"]
    assert [layer["name"] for layer in model["layers"]] == ["features.0", "features.2"]
    assert "are on tiles: 2 layers" in (home / "some" / "summary.md").read_text()
    weights = [load_file(next((home / name / "models").glob("*.safetensors"))) for name in ("all", "some")]
    assert not torch.equal(weights[0]["head.weight"], weights[1]["head.weight"])
    import mine

    network = mine.build()
    network.load_state_dict(weights[1])
    analog = an.convert_to_analog(network, "gaussian@20%", filter_fn=lambda _, name: name != "head")
    report = an.evaluate_drift(analog, mine.task().test, times=["0s"], chips=2)
    assert list(pd.read_csv("some/results.csv")["value"]) == [row.value for row in report.rows]


def test_a_profile_by_layer(run: Run, home: Path) -> None:
    by_layer = "features.*=gaussian@20%,head=ideal"
    result = run(
        *["evaluate", *MODEL, "--profile", by_layer, "--profile", "ideal", "--chips", 2, "--out", "out"]
    )
    assert result.status == 0, result.err
    rows = pd.read_csv("out/results.csv")
    assert list(dict.fromkeys(rows["profile"])) == ["gaussian@20%+ideal", "ideal"]
    written = run_json(home / "out")
    assert written["settings"]["by_layer"] == [{"features.*": "gaussian@20%", "head": "ideal"}]
    layers = written["model"]["profiles"]["gaussian@20%+ideal"]["layers"]
    assert [layer["profile"] for layer in layers] == ["gaussian@20%", "gaussian@20%", "ideal"]
    result = run("sensitivity", *MODEL, "--profile", by_layer, "--chips", 2, "--out", "ranked", "--json")
    assert result.status == 0, result.err
    found = {row["layer"]: row for row in json.loads(result.out)["layers"]}
    assert found["head"]["alone"] == found["head"]["regained"] == 0
    assert found["features.0"]["alone"] > 0


@pytest.mark.parametrize(
    ("profiles", "words"),
    [
        (["a=ideal,b"], "found 'b' where PATTERN=PROFILE is expected"),
        (["a=,b=ideal"], "found 'a='"),
        (["a=ideal,a=pcm-ibm"], "the pattern 'a' is there twice"),
        (["a=idael"], "unknown profile 'idael' (did you mean 'ideal'?)"),
        (["a=ideal,b=pcm-ibm", "a=pcm-ibm,b=ideal"], "are both named 'ideal, pcm-ibm'"),
        ([], "no profile given"),
    ],
)
def test_profiles_by_layer_that_cannot_be(profiles: list[str], words: str) -> None:
    with pytest.raises(ProfileError) as error:
        load_placements(profiles)
    assert words in str(error.value)


def test_compare_takes_no_profile_by_layer(run: Run, home: Path) -> None:
    result = run("compare", "--profile", "head=ideal", "--out", "out")
    assert result.status == 2
    assert "compare puts all layers on one device" in result.err
    assert not (home / "out").exists()


def test_help_of_sensitivity_shows_an_example(run: Run) -> None:
    text = run("sensitivity", "--help").out
    assert "analognoise sensitivity" in text.split("Examples")[1]
    for option in ("--digital", "--chips", "--times", "--json", "--force"):
        assert option in text
