"""Input that the command line must understand, or refuse with the right name: paths, callables, names."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from safetensors.torch import load_file, save_file

from analognoise.cli import main
from analognoise.devices.catalog import split_profiles
from analognoise.errors import nearest

MINE = """
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    def build():
        return nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 3))

    def _data(seed, samples):
        x = torch.randn(samples, 20, generator=torch.Generator().manual_seed(seed))
        return TensorDataset(x, x[:, :3].argmax(1))

    def batches():
        return DataLoader(_data(1, 40), batch_size=20)

    def shuffled():
        return DataLoader(_data(1, 40), batch_size=20, shuffle=True)

    def breaks(output, batch):
        return {}["nothing"]

    def bad_pair(output, batch):
        return "high"

    def breaks_late(output, batch):
        raise_ = batch[0][0, 0] == _data(1, 40).tensors[0][20, 0]
        return (1 / 0 if raise_ else 1.0), len(output)

    def bad_forward(model, batch):
        return model(batch["x"])

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other, self.head = nn.Linear(12, 6), nn.Linear(8, 6), nn.Linear(12, 3)

        def forward(self, a, b):
            return self.head(torch.relu(torch.cat([self.one(a), self.other(b)], 1)))

    def two():
        return Two()

    def nested():
        x, y = _data(1, 40).tensors
        return [((x[i:i + 20, :12], x[i:i + 20, 12:]), y[i:i + 20]) for i in (0, 20)]

    def both(model, batch):
        return model(*batch[0])

    def squares(output, target):
        return ((output - nn.functional.one_hot(target, 3)) ** 2).mean()

    def bad_loss(output, target):
        return output.no_such_method()

    def nan():
        return [(x.masked_fill(x == x[3, 4], float("nan")), y) for x, y in batches()]

    def arrays():
        return [tuple(part.numpy() for part in batch) for batch in batches()]
"""
PROFILE = """
    schema = 1
    name = "{name}"
    [conductance]
    unit = "uS"
    g_max = 50.0
    [programming]
    sigma = 1.0
"""
MODEL = ["--model", "mine:build", "--weights", "weights.safetensors"]
EVALUATE = ["evaluate", *MODEL, "--data", "mine:batches", "--profile", "gaussian", "--chips", "2"]
TRAIN = ["train", "--model", "mine:build", "--data", "mine:batches", "--epochs", "1", "--out", "out"]
SENSITIVITY = ["sensitivity", *EVALUATE[1:], "--out", "out"]
COMPARE = ["compare", "--methods", "sgd", "--epochs", "1", "--chips", "1", "--seeds", "1", "--out", "out"]


@pytest.fixture
def home(home: Path) -> Path:
    """With weights that fit, too."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    save_file(model.state_dict(), home / "weights.safetensors")
    return home


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a refused command says; nothing may have been written."""
    before = sorted(path for path in Path().rglob("*") if "__pycache__" not in path.parts)
    capsys.readouterr()
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert sorted(path for path in Path().rglob("*") if "__pycache__" not in path.parts) == before
    return line


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ([*EVALUATE, "--out", ""], "--out"),
        ([*TRAIN[:-1], ""], "--out"),
        ([*COMPARE[:-1], " ", "--profile", "ideal"], "--out"),
        ([*EVALUATE, "--weights", ""], "--weights"),
        (["report", ""], "FOLDER"),
    ],
)
def test_an_empty_path_is_not_the_present_folder(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], option: str
) -> None:
    message = error_of(capsys, *arguments)
    assert option in message
    assert "empty" in message


def test_a_folder_of_weights_is_said_to_be_one(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "trained").mkdir()
    base = [*EVALUATE, "--weights", "trained"]
    assert error_of(capsys, *base).endswith("'trained' is a folder: name the safetensors file in it")
    (home / "weights.safetensors").rename(home / "trained" / "model.safetensors")
    assert "'trained/model.safetensors'" in error_of(capsys, *base)


@pytest.mark.parametrize(
    ("found", "known", "meant"),
    [
        ("IDEAL", ["gaussian", "ideal"], "ideal"),
        ("SGD", ["sgd", "sam"], "sgd"),
        ("T_0", ["t_0", "nu_mean"], "t_0"),
        ("weight", ["Weight"], "Weight"),
        ("a", ["a", "A"], "a"),
    ],
)
def test_capitals_do_not_hide_what_was_meant(found: str, known: list[str], meant: str) -> None:
    assert nearest(found, known) == f" (did you mean {meant!r}?)"


def test_far_names_are_not_suggested() -> None:
    assert nearest("zzz", ["sgd", "sam"]) == ""


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [([*EVALUATE, "--profile", "IDEAL"], "ideal"), ([*TRAIN, "--method", "SGD"], "sgd")],
)
def test_names_in_capitals(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], meant: str
) -> None:
    assert f"(did you mean '{meant}'?)" in error_of(capsys, *arguments)


@pytest.mark.parametrize("command", [EVALUATE, SENSITIVITY])
@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("breaks", ["the metric 'breaks' failed (KeyError: 'nothing')"]),
        ("bad_pair", ["the metric 'bad_pair' returned a str", "(sum, count)"]),
    ],
)
def test_an_error_in_a_metric_is_the_metrics(
    home: Path, capsys: pytest.CaptureFixture[str], command: list[str], metric: str, words: list[str]
) -> None:
    message = error_of(capsys, *command, "--metric", f"mine:{metric}")
    assert all(word in message for word in words)
    assert "cannot compute" not in message


def test_an_error_in_a_metric_in_a_later_batch(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(capsys, *EVALUATE, "--metric", "mine:breaks_late")
    assert "batch 1: the metric 'breaks_late' failed (ZeroDivisionError" in message


def test_an_error_in_a_loss_or_a_forward_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the loss 'bad_loss' failed (AttributeError" in error_of(capsys, *TRAIN, "--loss", "mine:bad_loss")
    for base in (TRAIN, EVALUATE):
        message = error_of(capsys, *base, "--forward", "mine:bad_forward")
        assert "forward 'bad_forward' with Sequential cannot compute the first batch (TypeError" in message


@pytest.mark.parametrize(
    ("command", "option"), [(EVALUATE, "--data"), (SENSITIVITY, "--data"), (TRAIN, "--validation")]
)
def test_data_that_shuffle_are_named(
    home: Path, capsys: pytest.CaptureFixture[str], command: list[str], option: str
) -> None:
    message = error_of(capsys, *command, option, "mine:shuffled")
    assert "data 'mine:shuffled': the data loader shuffles" in message


def test_nested_batches_with_a_forward_of_ones_own(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--model", "mine:two", "--data", "mine:nested"]
    train = ["train", *own, "--validation", "mine:nested", "--epochs", "2", "--out", "trained", "--json"]
    message = error_of(capsys, *train)
    assert "'mine:nested'" in message
    assert "--forward" in message
    assert main([*train, "--forward", "mine:both", "--loss", "mine:squares", "--metric", "loss"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metric"] == "loss"
    assert found["settings"]["loss"].startswith("mine:squares mine.squares ")
    # The loss that was trained is the mean square: below its value for outputs of zero from the start.
    assert 0 < found["history"]["train_loss"][1] < found["history"]["train_loss"][0]
    expected = measure_squares(Path("trained/model.safetensors"))
    assert found["validation"] == pytest.approx(expected, rel=1e-6)
    weights = ["--weights", "trained/model.safetensors", "--forward", "mine:both"]
    command = ["evaluate", *own, *weights, "--profile", "ideal", "--chips", "1", "--json"]
    assert main(command) == 0
    (evaluation,) = json.loads(capsys.readouterr().out)["evaluations"]
    assert evaluation["over_time"][0]["mean"] == evaluation["digital"]
    # Another loss is another run.
    assert "loss" in error_of(capsys, *train, "--forward", "mine:both", "--metric", "accuracy")


def measure_squares(file: Path) -> float:
    """The mean square over the data, by hand."""
    import mine

    model = mine.two()
    model.load_state_dict(load_file(file))
    with torch.no_grad():
        values = [float(mine.squares(model(*inputs), labels)) for inputs, labels in mine.nested()]
    return sum(values) / len(values)


def test_batches_of_arrays(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = []
    for data in ("batches", "arrays"):
        assert main([*EVALUATE, "--data", f"mine:{data}", "--json"]) == 0
        values.append(json.loads(capsys.readouterr().out)["evaluations"][0]["over_time"])
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (EVALUATE, "--data"),
        ([*EVALUATE, "--out", "out", "--force"], "--data"),
        (SENSITIVITY, "--data"),
        (TRAIN, "--validation"),
    ],
)
def test_nan_in_data_are_found_before_anything_is_replaced(
    home: Path, capsys: pytest.CaptureFixture[str], command: list[str], option: str
) -> None:
    if "--force" in command:
        assert main([argument for argument in command if argument != "--force"]) == 0
    message = error_of(capsys, *command, option, "mine:nan")
    assert "data 'mine:nan', batch 0: 1 value is NaN or infinite" in message


@pytest.mark.parametrize("command", [EVALUATE, SENSITIVITY, [*COMPARE, "--profile", "ideal"]])
def test_a_slip_in_the_number_of_chips_does_not_run_forever(
    home: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    message = error_of(capsys, *command, "--chips", "1000000000")
    assert "chips" in message
    assert "at most 100000" in message


def test_a_slip_in_the_number_of_seeds(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(capsys, *COMPARE, "--profile", "ideal", "--seeds", "20261122")
    assert "--seeds must be at most 1000, found 20261122 (one seed alone: 20261122,)" in message


def test_commas_in_a_profiles_path(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "a,b").mkdir()
    (home / "a,b" / "c, d.toml").write_text(dedent(PROFILE.format(name="mine")))
    file = "a,b/c, d.toml"
    assert split_profiles(f"ideal, {file} ,gaussian@10%,,{file}@3%") == [
        "ideal",
        file,
        "gaussian@10%",
        f"{file}@3%",
    ]
    assert split_profiles(f"head={file},rest=ideal") == [f"head={file}", "rest=ideal"]
    assert split_profiles(",") == []
    for given, names in (
        (f"{file},ideal", ["mine", "ideal"]),
        (f"{file}@2%", ["mine@2%"]),
        (f"0={file},2=ideal", ["mine+ideal"]),
    ):
        assert main([*EVALUATE, "--profile", given, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["evaluations"]
        assert [item["profile"] for item in found][1:] == names


def test_torchrun_would_do_everything_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["profiles", "list"]) == 0  # a cluster's variable alone says nothing about this program
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert main(["profiles", "list"]) == 2
    assert "torchrun started this command as 2 processes" in capsys.readouterr().err
