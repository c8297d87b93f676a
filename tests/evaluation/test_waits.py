"""Where a program waits for a device: what would stall a GPU is counted on the processor.

torch computes on a GPU while Python goes on, until Python asks for a value. Those moments are seen here by
the operations that give one (``item`` and whatever calls it, ``equal``, indexing by a mask) and the methods
that copy values out.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import analognoise as an
from analognoise.conversion import sample_chip
from analognoise.evaluation import passes

ATEN = torch.ops.aten
GIVES_A_VALUE = {ATEN._local_scalar_dense.default, ATEN.equal.default, ATEN.nonzero.default}
COPIES_OUT = ("tolist", "numpy", "cpu", "__array__")
TIMES = ("1s", "1d")
PERIPHERY = {
    "dac": {"bits": 8, "range": "fixed", "bound": 3.0},
    "adc": {"bits": 8, "range": "fixed", "bound": 10.0},
    "out_noise": 0.04,
}


class Waits(TorchDispatchMode):
    """Counts them by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masked = func is ATEN.index.Tensor and any(i is not None and i.dtype is torch.bool for i in args[1])
        if func in GIVES_A_VALUE or masked:
            self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    counter = Waits()

    def counted(name: str) -> Any:
        original = getattr(torch.Tensor, name)

        def method(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            # What checksums of weights look at on a processor stays on any other device.
            if self.dtype is not torch.int64 or name != "numpy":
                counter.found[name] += 1
            return original(self, *args, **kwargs)

        return method

    for name in COPIES_OUT:
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    return counter


def network(profile: an.DeviceProfile) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 20), nn.Linear(20, 3)
    )
    return an.convert_to_analog(model.eval(), profile)


def of_an_evaluation(waits: Waits, profile: an.DeviceProfile, batches: int, chips: int) -> Counter[str]:
    data = [(torch.randn(2, 1, 8, 8), torch.randint(3, (2,))) for _ in range(batches)]
    model = network(profile)
    waits.found.clear()
    with waits:
        an.evaluate_drift(model, data, times=TIMES, chips=chips)
    return waits.found.copy()


@pytest.mark.parametrize("periphery", [None, PERIPHERY], ids=["products", "converters"])
def test_an_evaluation_waits_once_a_chip_and_once_a_pass(waits: Waits, periphery: Any) -> None:
    profile = an.load_profile("pcm-ibm").replace({"periphery": periphery})
    few = of_an_evaluation(waits, profile, batches=2, chips=3)
    assert few.total() > 0  # labels are checked, digests taken
    more = of_an_evaluation(waits, profile, batches=2, chips=13)
    more.subtract(few)
    assert {what: count for what, count in more.items() if count} == {
        "aten._local_scalar_dense.default": 10 * 3,  # three weights; on a GPU they are asked for together
        "tolist": 10 * len(TIMES),  # the metric, after the last batch
    }


def test_batches_are_waited_for_in_the_first_pass_alone(waits: Waits) -> None:
    profile = an.load_profile("pcm-ibm")
    for chips in (1, 5):
        few = of_an_evaluation(waits, profile, batches=2, chips=chips)
        many = of_an_evaluation(waits, profile, batches=12, chips=chips)
        many.subtract(few)
        # Each batch's labels are looked at twice, the digest of the data takes both of its tensors, and both
        # are compared with what the model left of them.
        assert {what: count for what, count in many.items() if count} == {
            "aten._local_scalar_dense.default": 20,
            "aten.equal.default": 20,
            "cpu": 20,
            "numpy": 20,
        }


@pytest.mark.parametrize("act", ["program", "sample"])
def test_the_weights_of_all_layers_are_checked_by_one_wait(act: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        "analognoise.layers.programmable.as_numbers",
        lambda sums: asked.append(len(sums)) or [0.0] * len(sums),
    )
    model = network(an.load_profile("pcm-ibm"))
    if act == "program":
        an.program_(model)
    else:
        sample_chip(model, seed=0, step=0, seconds=1.0)
    assert asked == [3]


class Timeline:
    """A metric and a forward that note when they begin, and when what they gave is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, broken: int | None = None) -> None:
        self.found: list[str] = []
        self.broken = broken
        values = passes.Measured.values

        def asked(pending: passes.Measured) -> Any:
            self.found.append("asked")
            return values(pending)

        monkeypatch.setattr(passes.Measured, "values", asked)

    def forward(self, model: nn.Module, batch: Any) -> torch.Tensor:
        if self.found.count("begun") == self.broken:
            raise RuntimeError("broken")
        self.found.append("begun")
        scores: torch.Tensor = model(batch[0])
        return scores


def of_few_chips(**options: Any) -> list[float]:
    torch.manual_seed(1)
    data = [(torch.randn(64, 1, 8, 8), torch.randint(3, (64,)))]
    model = network(an.load_profile("pcm-ibm"))
    report = an.evaluate_drift(model, data, times=TIMES, chips=3, metric="loss", **options)
    return [row.value for row in report.rows]


@pytest.mark.parametrize("behind", [0, 1], ids=["processor", "device"])
def test_what_a_pass_gave_is_asked_for_when_the_next_was_begun(
    monkeypatch: pytest.MonkeyPatch, behind: int
) -> None:
    """On a device of its own; a processor has nothing to do meanwhile."""
    expected = of_few_chips()
    monkeypatch.setitem(passes._BEHIND, "cpu", behind)
    timeline = Timeline(monkeypatch)
    assert of_few_chips(forward=timeline.forward) == expected
    assert len(set(expected)) == 3 * len(TIMES)
    of_chips = {
        0: ["begun", "asked"] * 6,
        1: ["begun", *["begun", "asked"] * 5, "asked"],
    }
    assert timeline.found[-12:] == of_chips[behind]


@pytest.mark.parametrize("behind", [0, 1], ids=["processor", "device"])
def test_what_was_begun_before_an_error_is_kept(
    monkeypatch: pytest.MonkeyPatch, behind: int, tmp_path: Path
) -> None:
    monkeypatch.setitem(passes._BEHIND, "cpu", behind)
    before = Timeline(monkeypatch)
    expected = of_few_chips(forward=before.forward, out=tmp_path / "whole.csv")
    # The first pass over the third chip.
    broken = Timeline(monkeypatch, broken=before.found.count("begun") - 2)
    with pytest.raises(RuntimeError, match="broken"):
        of_few_chips(forward=broken.forward, out=tmp_path / "rows.csv")
    rows = pd.read_csv(tmp_path / "rows.csv", comment="#")
    assert rows["value"].tolist() == expected[:4]
