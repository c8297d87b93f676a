"""What makes a stored row another run's: values that functions and modules work with, threads, versions."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from analognoise.conversion import convert_to_analog
from analognoise.errors import ResultsError
from analognoise.evaluation.montecarlo import evaluate_drift
from analognoise.fingerprint import name_of

X = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
BATCHES = [(X, torch.arange(20) % 3)]
TEMPERATURE = 1.0


class Net(nn.Module):
    """A network whose forward uses plain attributes."""

    def __init__(self, gain: Any = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.calls = 0
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.b(torch.relu(self.a(x)) * self.gain)


def make(kind: Callable[[], nn.Module] = Net) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return convert_to_analog(kind(), "pcm-ibm").eval()


def run(model: nn.Module, **options: Any) -> Any:
    return evaluate_drift(model, BATCHES, **({"times": [60.0], "chips": 2, "metric": "loss"} | options))


def closed(value: Any) -> Callable:
    return lambda output, batch: (float(output.sum()) * (value == value), 1)


def nested(value: Any) -> Callable:
    inner = closed(value)
    return lambda output, batch: inner(output, batch)


def default(value: Any) -> Callable:
    def score(output: Any, batch: Any, scale: Any = value) -> tuple[float, int]:
        return scale, 1

    return score


def keyword(value: Any) -> Callable:
    def score(output: Any, batch: Any, *, scale: Any = value) -> tuple[float, int]:
        return scale, 1

    return score


def partial(value: Any) -> Callable:
    return functools.partial(lambda scale, output, batch: (scale, 1), value)


def partial_keyword(value: Any) -> Callable:
    return functools.partial(lambda output, batch, scale: (scale, 1), scale=value)


class Score:
    def __init__(self, scale: Any) -> None:
        self.scale = scale

    def __call__(self, output: Any, batch: Any) -> tuple[Any, int]:
        return self.scale, 1

    def method(self, output: Any, batch: Any) -> tuple[Any, int]:
        return self.scale, 1


@dataclass
class Settings:
    scale: Any


def method(value: Any) -> Callable:
    return Score(value).method


def in_settings(value: Any) -> Callable:
    return closed(Settings(value))


def in_dict(value: Any) -> Callable:
    return closed({"scale": [value]})


def module(value: Any) -> Callable:
    return closed(Net(value))


KINDS = [
    closed, nested, default, keyword, partial, partial_keyword, Score, method, in_settings, in_dict,
]  # fmt: skip


@pytest.mark.parametrize("kind", [*KINDS, module])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1.0, 2.0),
        ("a", "b"),
        ((1, 2), (1, 3)),
        (torch.zeros(2000), torch.zeros(2000).index_fill(0, torch.tensor([1000]), 1e-3)),
        (np.arange(3000), np.arange(3000) + (np.arange(3000) == 1500)),
        (lambda x: x + 1, lambda x: x + 2),
    ],
)
def test_what_a_function_works_with_is_part_of_its_name(kind: Callable, one: Any, other: Any) -> None:
    if kind is module:
        torch.manual_seed(0)
    first = name_of(kind(one))
    if kind is module:
        torch.manual_seed(0)
    second = name_of(kind(other))
    if kind is module:
        torch.manual_seed(0)
    assert first != second
    assert name_of(kind(one)) == first


def test_weights_of_a_model_in_a_closure_count() -> None:
    teacher = Net()
    before = name_of(closed(teacher))
    with torch.no_grad():
        teacher.a.weight[0, 0] += 1
    assert name_of(closed(teacher)) != before


def test_a_plain_global_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def score(output: Any, batch: Any) -> tuple[float, int]:
        return TEMPERATURE, 1

    before = name_of(score)
    monkeypatch.setitem(globals(), "TEMPERATURE", 2.0)
    assert name_of(score) != before


def test_what_a_call_assigns_does_not_count() -> None:
    calls = 0

    class Counting(Score):
        calls = 0

        def __call__(self, output: Any, batch: Any) -> tuple[Any, int]:
            self.calls += 1
            self._note()
            return super().__call__(output, batch)

        def _note(self) -> None:
            self.last = self.calls

    def score(output: Any, batch: Any) -> tuple[float, int]:
        nonlocal calls
        calls += 1
        return 1.0, 1

    counting, itself = Counting(1.0), []
    itself.append(itself)  # and what refers to itself has an end
    before = name_of(score), name_of(counting), name_of(closed(itself))
    score(None, None), counting(None, None)
    assert (name_of(score), name_of(counting), name_of(closed(itself))) == before


def test_names_are_the_same_in_another_process() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_identity as t\n"
        "from analognoise.fingerprint import name_of\n"
        "print(name_of(t.closed({'a', 'b', 'c'})), name_of(t.Score(object())))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent)],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


@pytest.mark.parametrize("kind", [closed, Score])
def test_a_metric_with_another_value_does_not_get_the_stored_rows(tmp_path: Path, kind: Callable) -> None:
    path = tmp_path / "results.csv"
    run(make(), metric=kind(1.0), out=path)
    assert run(make(), metric=kind(1.0), out=path).reused == 2
    with pytest.raises(
        ResultsError, match=r"but this is run .*another model, profile, data, metric, forward"
    ):
        run(make(), metric=kind(2.0), out=path)


@pytest.mark.parametrize("gain", [2.0, (1.0,), torch.ones(()), "1", None])
def test_a_plain_attribute_of_the_model_is_part_of_the_run(gain: Any) -> None:
    ids = []
    for value in (1.0, gain, 1.0):
        model = make()
        model.gain = value
        if gain == "1" or gain is None or isinstance(gain, tuple):  # only to be told apart
            model.forward = lambda x, m=model: m.b(torch.relu(m.a(x)))
        ids.append(run(model).run_id)
    assert ids[0] == ids[2] != ids[1]


def test_an_edited_forward_of_the_model_is_another_run() -> None:
    class Other(Net):
        __qualname__ = Net.__qualname__

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)) * self.gain) * 2

    Other.__name__ = "Net"
    Other.__module__ = Net.__module__
    assert run(make(Other)).run_id != run(make()).run_id


def test_a_model_goes_on_after_its_forward_has_counted(tmp_path: Path) -> None:
    model = make()
    run(model, out=tmp_path / "results.csv")
    assert model.calls > 0
    assert run(model, out=tmp_path / "results.csv").reused == 2


def test_the_digital_metric_is_computed_anew_and_must_agree(tmp_path: Path) -> None:
    """Even where the digest cannot tell two forwards apart."""
    scale = [1.0]

    class Hidden:
        def __getattr__(self, name: str) -> float:
            return scale[0]

    path, hidden = tmp_path / "results.csv", Hidden()
    forward = functools.partial(lambda hidden, m, b: m(b[0]) * hidden.scale, hidden)
    first = run(make(), forward=forward, out=path)
    before = path.read_bytes()
    scale[0] = 1 + 1e-8  # another machine's rounding
    assert run(make(), forward=forward, out=path).rows == first.rows
    scale[0] = 1.5
    for chips in (2, 3):
        with pytest.raises(
            ResultsError, match=r"digital loss is .* here, but .*results.csv.*another file"
        ) as e:
            run(make(), forward=forward, out=path, chips=chips)
        assert repr(first.digital) in str(e.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("reused", [True, False])
def test_the_thread_count_is_part_of_the_run_and_named(tmp_path: Path, reused: bool) -> None:
    path = tmp_path / "results.csv"
    torch.set_num_threads(2)
    try:
        first = run(make(), out=path, method="sam" if reused else "")
    finally:
        torch.set_num_threads(1)
    assert run(make()).run_id != first.run_id
    with pytest.raises(ResultsError, match=r"2 threads there, 1 here: torch.set_num_threads\(2\)"):
        run(make(), out=path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 8}, r"\(seed 0 there, 8 here\)"),
        ({"method": "sam"}, r"\(method '' there, 'sam' here\)"),
        ({"training_seed": 3}, r"\(training seed None there, 3 here\)"),
        ({"metric": "accuracy"}, r"\(metric 'loss' there, 'accuracy' here\)"),
        ({"forward": lambda m, b: m(b[0])}, rf"torch {torch.__version__}, 1 thread, device cpu, seed 0\)"),
    ],
)
def test_a_refusal_says_what_differs(tmp_path: Path, change: dict, words: str) -> None:
    path = tmp_path / "results.csv"
    run(make(), out=path)
    with pytest.raises(ResultsError, match=words.replace("+", r"\+")):
        run(make(), out=path, **change)


def test_a_refusal_says_that_the_profile_differs(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    run(make(), out=path)
    other = convert_to_analog(Net(), "ideal").eval()
    with pytest.raises(ResultsError, match=r"\(profile 'pcm-ibm' there, 'ideal' here\)"):
        run(other, out=path)
