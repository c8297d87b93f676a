"""A training that goes on from a checkpoint gives, bit for bit, what one left alone gives."""

from __future__ import annotations

import functools
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import analognoise as an
from analognoise.errors import DataError, ResultsError
from analognoise.tasks.base import TensorBatches
from analognoise.training import resuming
from analognoise.training.checkpoint import Checkpoint

X = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)
EPOCHS, STEPS = 5, 3


class Stopped(BaseException):
    """As by Ctrl-C."""


class Net(nn.Module):
    """Has running statistics, dropout, a buffer that no state dict holds, and draws from every generator."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.one, self.norm, self.drop = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.3)
        self.two = nn.Linear(16, 3)
        self.register_buffer("count", torch.zeros(()), persistent=False)
        self.forwards = self.stop = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += self.training
        if self.training and self.forwards == self.stop:
            raise Stopped
        x = self.drop(self.norm(self.one(x)).relu())
        if self.training:
            self.count += 1
            # In the first step, which decides whether second passes repeat these numbers, and in few others.
            if (int(self.count) - 1) // 2 % 4 == 0:
                x = x + 0.1 * random.random() + 0.1 * np.random.rand()
        return self.two(x) * (1 + 0.01 * self.count)


class Data:
    """Batches in an order of its own each time."""

    def __init__(self) -> None:
        self.order: Any = None

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for part in np.split(self.permutation(), STEPS):
            yield X[part], Y[part]

    def permutation(self) -> Any:
        return self.order.permutation(len(X))


class OfNumpy(Data):
    def __init__(self) -> None:
        self.order = np.random.default_rng(3)


class OfOldNumpy(Data):
    def __init__(self) -> None:
        self.order = np.random.RandomState(3)


class OfPython(Data):
    def __init__(self) -> None:
        self.parts = [random.Random(3)]

    def permutation(self) -> Any:
        found = list(range(len(X)))
        self.parts[0].shuffle(found)
        return np.array(found)


class Counting(Data):
    """Keeps a number that nobody sees."""

    def __init__(self) -> None:
        self.number = 0

    def permutation(self) -> Any:
        self.number += 1
        return np.random.default_rng(self.number).permutation(len(X))


class OfItsOwn(Counting):
    def state_dict(self) -> dict[str, Any]:
        return {"number": np.array([self.number])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number = int(state["number"][0])


def loader(generator: torch.Generator | None = None, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), 32, shuffle=True, generator=generator, **options)


LOADERS: dict[str, Callable[[], Any]] = {
    "global generator": loader,
    "generator of its own": lambda: loader(torch.Generator().manual_seed(5)),
    "workers": lambda: loader(num_workers=1),
    "workers that stay": lambda: loader(num_workers=1, persistent_workers=True),
    "set_epoch": lambda: TensorBatches(X, Y, 32, seed=3),
    "numpy": OfNumpy,
    "old numpy": OfOldNumpy,
    "python": OfPython,
    "state_dict": OfItsOwn,
}
METHODS = ["sgd", "noise+clip", "profile-noise", "rwp", "sam", "samson:warmup=0.5", "asam+noise", "vant"]
METHODS += ["qat", "saq+clip"]
Result = tuple[dict[str, Tensor], an.training.history.History]


@pytest.fixture(autouse=True)
def after_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "PAUSE", 0.0)
    monkeypatch.setattr(resuming, "SHARE", 0.0)


def train(data: Any, method: str = "sgd", stop: int = 0, **options: Any) -> Result:
    model = Net()
    model.stop = stop
    profile = an.load_profile("pcm-ibm") if method.startswith("profile") else None
    settings = {"epochs": EPOCHS, "lr": 0.05, "validation": [(X, Y)], "profile": profile} | options
    history = an.fit(model, data, recipe=method, **settings)
    assert history.trained is not None
    state = {**history.trained.state_dict(), "count": history.trained.get_buffer("count")}
    return {name: value.clone() for name, value in state.items()}, history


def stopped(file: Path, data: Any, method: str = "sgd", epoch: int = 3, **options: Any) -> None:
    """A training that ends in the second step of an epoch."""
    passes = an.parse_method(method).gradients_per_step
    with pytest.raises(Stopped):
        train(data, method, stop=((epoch - 1) * STEPS + 1) * passes + 1, checkpoint=file, **options)
    assert header(file)["epoch"] == epoch - 1


def header(file: Path) -> dict[str, Any]:
    with file.open("rb") as content:
        return dict(json.loads(content.readline()))


def assert_same(one: Result, other: Result) -> None:
    for name, value in one[0].items():
        assert torch.equal(value, other[0][name]), name
    assert one[1] == other[1]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on(method: str, tmp_path: Path) -> None:
    whole = train(loader(), method)
    for epoch in (2, 4):
        file = tmp_path / f"{epoch}"
        stopped(file, loader(), method, epoch)
        random.seed(1)  # another process's
        assert_same(whole, train(loader(), method, checkpoint=file))


@pytest.mark.parametrize("name", LOADERS)
def test_data_go_on_in_their_order(name: str, tmp_path: Path) -> None:
    whole = train(LOADERS[name]())
    stopped(tmp_path / "file", LOADERS[name]())
    assert_same(whole, train(LOADERS[name](), checkpoint=tmp_path / "file"))


def test_one_that_is_stopped_again_and_again(tmp_path: Path) -> None:
    whole = train(loader(), "sam")
    for epoch in (2, 3, 5):
        model = Net()
        model.stop = 2 * STEPS + 2  # of its own forwards
        with pytest.raises(Stopped):
            an.fit(
                model,
                loader(),
                recipe="sam",
                epochs=EPOCHS,
                lr=0.05,
                validation=[(X, Y)],
                checkpoint=tmp_path / "file",
            )
        assert header(tmp_path / "file")["epoch"] == epoch - 1 if epoch < 5 else EPOCHS - 2
    assert_same(whole, train(loader(), "sam", checkpoint=tmp_path / "file"))


def test_noise_and_ranges_of_converters_go_on(tmp_path: Path) -> None:
    profile = an.load_profile("pcm-ibm").replace(
        {
            "periphery": {
                "dac": {"bits": 6, "range": "learned"},
                "adc": {"bits": 8, "range": "calibrated"},
                "out_noise": 0.1,
            }
        }
    )

    def learn(file: Path, stop: int = 0) -> Result:
        model = Net()
        model.stop = stop
        analog = an.convert_to_analog(model, profile, inplace=True)
        an.calibrate_(analog, [(X, Y)])
        model.forwards = 0
        with an.periphery_in_training(analog, seed=2):
            history = an.fit(analog, loader(), recipe="sgd", epochs=3, lr=0.05, checkpoint=file)
        found = {name: value.detach().clone() for name, value in an.learned_ranges(analog).items()}
        return {**analog.state_dict(), **found}, history

    whole = learn(tmp_path / "whole")
    with pytest.raises(Stopped):
        learn(tmp_path / "file", stop=2 * STEPS + 1)
    assert_same(whole, learn(tmp_path / "file"))


def test_one_that_was_finished_gives_its_model_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    monkeypatch.setattr(resuming, "PAUSE", 3600.0)  # but for the last epoch
    whole = train(loader(), checkpoint=file)
    content = file.read_bytes()
    called: list[int] = []
    again = train(loader(), checkpoint=file, on_epoch=lambda epoch: called.append(epoch.epoch))
    assert_same(whole, again)
    assert not called
    assert file.read_bytes() == content


def test_not_more_often_than_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, written = 0.0, []
    monkeypatch.setattr(resuming, "PAUSE", 2.0)
    monkeypatch.setattr(resuming, "SHARE", 20.0)
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def write(self: Any, training: Any, epoch: int, content: Any) -> None:
        nonlocal now
        written.append(epoch)
        now += 0.25

    monkeypatch.setattr("analognoise.training.checkpoint.Checkpoint.write", write)

    def on_epoch(epoch: Any) -> None:
        nonlocal now
        now += 1.0

    train(loader(), checkpoint=tmp_path / "file", epochs=13, on_epoch=on_epoch)
    # Two seconds after the start, then every 20 × 0.25 s, and at the end.
    assert written == [2, 7, 12, 13]


def test_data_that_hide_where_they_are_are_found_out(tmp_path: Path) -> None:
    file = tmp_path / "file"
    stopped(file, Counting())
    before = file.read_bytes()
    with pytest.raises(DataError, match=r"do not go on as they did when .*file was written: epoch 3 begins"):
        train(Counting(), checkpoint=file)
    assert file.read_bytes() == before


def damaged(content: bytes) -> Iterator[tuple[bytes, str]]:
    line, _, state = content.partition(b"\n")
    yield line + b"\n" + state[:1000] + bytes([state[1000] ^ 1]) + state[1001:], "it is not what was written"
    yield content[:-1], "it is not what was written"
    yield line[:40], "its first line does not say so"
    yield b"", "its first line does not say so"
    yield b"\x80\x02" + content, "its first line does not say so"
    yield content.replace(b'checkpoint": 1', b'checkpoint": 9', 1), "has format 9, this version reads 1"


def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    stopped(file, loader())
    for content, words in damaged(file.read_bytes()):
        file.write_bytes(content)
        with pytest.raises(ResultsError, match=f"^checkpoint {re.escape(str(file))} .*{words}: delete it"):
            train(loader(), checkpoint=file)
        assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr": 0.1}, "lr is 0.05 there and 0.1 now"),
        ({"method": "sam"}, "method is 'sgd' there and 'sam' now"),
        ({"epochs": 6}, "epochs is 5 there and 6 now"),
        ({"metric": "loss"}, "metric is 'accuracy' there and 'loss' now"),
        ({"validation": None}, "validation data is 'some' there and 'none' now"),
        (
            {"loss": nn.functional.multi_margin_loss},
            r"loss is '.*cross_entropy \w+' there and '.*margin_loss \w+' now",
        ),
        ({"forward": lambda model, batch: model(batch[0])}, "forward is '' there and '.*' now"),
    ],
)
def test_another_training_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    stopped(file, loader())
    with pytest.raises(ResultsError, match=rf"is of another training \({words}\): delete it to begin anew"):
        train(loader(), checkpoint=file, **change)


def test_another_number_of_threads_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    stopped(file, loader())
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        with pytest.raises(
            ResultsError, match=rf"torch.set_num_threads\({before}\) goes on with it\): delete"
        ):
            train(loader(), checkpoint=file)
    finally:
        torch.set_num_threads(before)


def test_what_a_loss_knows_of_the_model_is_no_part_of_the_loss(tmp_path: Path) -> None:
    def go(file: Path, stop: int, factor: float) -> None:
        model = Net()
        nn.init.normal_(model.one.weight)  # not seeded: the checkpoint has the weights
        model.stop = stop

        def loss(output: Tensor, target: Tensor) -> Tensor:
            return nn.functional.cross_entropy(output, target) + factor * model.one.weight.norm()

        an.fit(model, loader(), recipe="sgd", epochs=EPOCHS, lr=0.05, loss=loss, checkpoint=file)

    file = tmp_path / "file"
    with pytest.raises(Stopped):
        go(file, STEPS + 2, 0.1)
    with pytest.raises(ResultsError, match="loss is"):
        go(file, 0, 0.2)
    go(file, 0, 0.1)


@pytest.mark.parametrize("part", ["dropout", "forward", "type", "frozen"])
def test_a_model_of_other_parts_is_refused(part: str, tmp_path: Path) -> None:
    class Other(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x).relu())

    file = tmp_path / "file"
    stopped(file, loader())
    model = Other() if part == "forward" else Net()
    words = r"is of another \w+ \(other layers, other settings of one, or another forward\)"
    if part == "dropout":
        model.drop.p = 0.4
    elif part == "frozen":
        model.one.bias.requires_grad_(False)
    elif part == "type":
        model.double()
        words = r"'one.weight' is \(16, 6\) float32 there and \(16, 6\) float64 now"
    options: dict[str, Any] = {"recipe": "sgd", "epochs": EPOCHS, "lr": 0.05, "validation": [(X, Y)]}
    with pytest.raises(ResultsError, match=words):
        an.fit(model, loader(), checkpoint=file, **options)


@pytest.mark.parametrize("name", LOADERS)
def test_one_that_was_finished_with_other_data_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    whole = train(LOADERS[name](), checkpoint=file)
    assert_same(whole, train(LOADERS[name](), checkpoint=file))
    with pytest.raises(DataError, match=r"are not those that .*file was written with: their first batch is"):
        train([(X[:32], Y[:32])] * STEPS, checkpoint=file)


def test_called_again_with_the_same_loader(tmp_path: Path) -> None:
    data = loader(torch.Generator().manual_seed(5))
    whole = train(data, checkpoint=tmp_path / "file")
    assert_same(whole, train(data, checkpoint=tmp_path / "file"))


def noisy(generator: torch.Generator, batch: Any) -> Any:
    x, y = torch.utils.data.default_collate(batch)
    return x + 0.1 * torch.randn(x.shape, generator=generator), y


class Noisy:
    def __init__(self, generator: torch.Generator) -> None:
        self.found = {"noise": [generator]}

    def collate(self, batch: Any) -> Any:
        return noisy(self.found["noise"][0], batch)


@pytest.mark.parametrize(
    "collate",
    [
        lambda generator: functools.partial(noisy, generator),
        lambda generator: lambda batch: noisy(generator, batch),
        lambda generator: Noisy(generator).collate,
    ],
)
def test_generators_are_found_where_functions_hold_them(collate: Any, tmp_path: Path) -> None:
    def data() -> Any:
        return loader(collate_fn=collate(torch.Generator().manual_seed(5)))

    whole = train(data())
    stopped(tmp_path / "file", data())
    assert_same(whole, train(data(), checkpoint=tmp_path / "file"))


class Odd(Net):
    """Draws from a generator of its own, and keeps buffers that its forward makes, and lets grow."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = torch.Generator().manual_seed(7)
        self.register_buffer("grows", torch.ones(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if "made" not in self._buffers:
            self.register_buffer("made", torch.zeros(()), persistent=False)
        if self.training:
            self.made += 1
            self.grows = torch.ones(int(self.made))
            x = x + 0.1 * torch.randn(x.shape, generator=self.noise)
        return super().forward(x) + self.grows.sum()


def test_what_a_model_makes_in_its_forward_goes_on(tmp_path: Path) -> None:
    def go(file: Path | None, stop: int = 0) -> Result:
        model = Odd()
        model.stop = stop
        history = an.fit(model, loader(), recipe="sgd", epochs=EPOCHS, lr=0.05, checkpoint=file)
        return {**model.state_dict(), "made": model.made, "grows": model.grows}, history

    whole = go(None)
    with pytest.raises(Stopped):
        go(tmp_path / "file", 2 * STEPS + 1)
    assert_same(whole, go(tmp_path / "file"))


def test_one_training_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with Checkpoint(file).held():
        with pytest.raises(ResultsError, match=r"^another process is training with checkpoint .*file: wait"):
            train(loader(), checkpoint=file)
        train(loader(), checkpoint=tmp_path / "other")
    train(loader(), checkpoint=file)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "other"}


def test_the_first_line_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "file"
    stopped(file, loader())
    line, _, state = file.read_bytes().partition(b"\n")
    for name in ("epoch", "training", "about", "sha256"):
        for change in ({}, {name: [1]}):
            content = {key: value for key, value in json.loads(line).items() if key != name} | change
            file.write_bytes(json.dumps(content).encode() + b"\n" + state)
            with pytest.raises(ResultsError, match=f"file is damaged: its first line says {name!r} is"):
                train(loader(), checkpoint=file)


@pytest.mark.parametrize("name", ["", 5, True])
def test_a_checkpoint_has_a_name(name: Any) -> None:
    with pytest.raises(DataError, match="a checkpoint is the name of a file, found"):
        train(loader(), checkpoint=name)


def test_another_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    stopped(file, loader())
    for other, words in (
        (nn.Linear(6, 3), r"Linear \('weight' is missing there and \(3, 6\) float32 now\)"),
        (Net(), r"Net \('two.weight' is \(3, 16\) float32 there and \(4, 16\) float32 now\)"),
    ):
        if isinstance(other, Net):
            other.two = nn.Linear(16, 4)
        before = {name: value.clone() for name, value in other.state_dict().items()}
        with pytest.raises(ResultsError, match=f"file does not fit {words}: delete it to begin anew"):
            an.fit(
                other, loader(), recipe="sgd", epochs=EPOCHS, lr=0.05, validation=[(X, Y)], checkpoint=file
            )
        for name, value in other.state_dict().items():
            assert torch.equal(value, before[name])


def test_a_state_that_no_file_can_hold_is_said_and_the_training_goes_on(tmp_path: Path) -> None:
    class Odd(OfItsOwn):
        def state_dict(self) -> dict[str, Any]:
            return {"number": self}

    file = tmp_path / "file"
    with pytest.warns(
        UserWarning, match="goes on without a checkpoint: .*more than tensors and plain values"
    ):
        found = train(Odd(), checkpoint=file)
    assert_same(train(Odd()), found)
    assert not file.exists()


def test_a_folder_that_is_not_there_is_said_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"^cannot write .*nowhere/file: .*nowhere is not a folder$"):
        train(loader(), stop=1, checkpoint=tmp_path / "nowhere" / "file")
