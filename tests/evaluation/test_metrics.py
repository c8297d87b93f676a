"""Metrics against a loop over samples, and what they refuse."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from analognoise.errors import DataError
from analognoise.evaluation.metrics import Metric, add_up, default_forward, final_value

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR)


def labels(*shape: int, classes: int = 5) -> Tensor:
    return torch.randint(classes, shape, generator=GENERATOR)


def measured(name: Any, batches: list[tuple[Any, Any]]) -> tuple[float, float, float]:
    metric = Metric.of(name)
    parts = [metric.measure(output, batch) for output, batch in batches]
    again = [metric.measure(o, b, float(c)) for (o, b), (_, c) in zip(batches, parts, strict=True)]
    assert add_up(metric, *zip(*again, strict=True)) == add_up(metric, *zip(*parts, strict=True))
    total, count = add_up(metric, *zip(*parts, strict=True))
    return total, count, final_value(metric, total, count)


def test_accuracy_counts_hits() -> None:
    outputs, targets = [normal(7, 5), normal(4, 5)], [labels(7), labels(4)]
    hits = sum(
        int(o[i].argmax()) == int(y[i]) for o, y in zip(outputs, targets, strict=True) for i in range(len(y))
    )
    batches = [(o, (None, y)) for o, y in zip(outputs, targets, strict=True)]
    assert measured("accuracy", batches) == (hits, 11, hits / 11)


def test_loss_and_perplexity_add_up_over_unequal_batches() -> None:
    outputs, targets = [normal(7, 5), normal(2, 5)], [labels(7), labels(2)]
    batches = [(o, (None, y)) for o, y in zip(outputs, targets, strict=True)]
    mean = functional.cross_entropy(torch.cat(outputs).double(), torch.cat(targets)).item()
    total, count, value = measured("loss", batches)
    assert count == 9
    assert value == total / 9 == pytest.approx(mean, rel=1e-6)
    # the mean of the two batches' perplexities, or of their means, would be something else
    assert measured("perplexity", batches)[2] == pytest.approx(math.exp(mean), rel=1e-6)


@pytest.mark.parametrize("name", ["accuracy", "loss"])
def test_language_model_shapes_and_ignored_labels(name: str) -> None:
    logits, targets = normal(3, 4, 6), labels(3, 4, classes=6)
    targets[0, 1] = targets[2, 3] = -100
    logits[0, 1] = math.nan  # a fully masked position: its scores do not matter
    kept = targets != -100
    _, count, value = measured(name, [(SimpleNamespace(logits=logits), {"x": 0, "labels": targets})])
    assert count == 10
    if name == "accuracy":
        assert value == (logits[kept].argmax(-1) == targets[kept]).double().mean().item()
    else:
        assert value == pytest.approx(functional.cross_entropy(logits[kept], targets[kept]).item(), rel=1e-6)


def test_segmentation_shapes() -> None:
    logits, targets = normal(2, 5, 3, 4), labels(2, 3, 4)
    total, count, _ = measured("accuracy", [(logits, (None, targets))])
    assert (total, count) == ((logits.argmax(1) == targets).sum(), 24)


@pytest.mark.parametrize("key", ["labels", "label", "y"])
@pytest.mark.parametrize("wrap", [lambda z: z, lambda z: {"logits": z}, lambda z: SimpleNamespace(logits=z)])
def test_dicts_and_outputs_with_logits(key: str, wrap: Any) -> None:
    logits, targets = normal(6, 5), labels(6)
    assert measured("accuracy", [(wrap(logits), {key: targets})])[0] == (logits.argmax(1) == targets).sum()


def test_half_precision_is_added_up_in_full() -> None:
    logits, targets = normal(500, 5).bfloat16(), labels(500)
    expected = functional.cross_entropy(logits.double(), targets).item()
    assert measured("loss", [(logits, (None, targets))])[2] == pytest.approx(expected, rel=1e-6)
    assert (
        measured(
            "accuracy", [(torch.eye(2).half()[labels(4000, classes=1)], (None, labels(4000, classes=1)))]
        )[0]
        == 4000
    )


@pytest.mark.parametrize(
    "result", [(3, 4), [3.0, 4], (torch.tensor(3), torch.tensor(4)), (torch.ones(1) * 3, 4.0)]
)
def test_own_metric(result: Any) -> None:
    def hits(output: Any, batch: Any) -> Any:
        assert (output, batch) == ("output", "batch")
        return result

    assert Metric.of(hits).name == "hits"
    assert measured(hits, [("output", "batch")] * 2) == (6.0, 8.0, 0.75)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (3.0, "returned a float, expected a pair"),
        (None, "returned a NoneType"),
        ((1, 2, 3), "returned a tuple of 3"),
        (torch.ones(2), r"returned a Tensor of shape \(2,\), expected a pair"),
        ((torch.ones(2), 2), r"sum of shape \(2,\)"),
        ((1, "2"), "count of type str"),
        ((1 + 2j, 1), "sum of type complex"),
        ((np.complex128(1 + 2j), 1), "sum of type complex128, expected one number"),
        ((torch.tensor(1 + 2j), 1), r"sum of type torch\.complex64"),
        ((1, np.timedelta64(1, "s")), "count of type timedelta64"),
        ((10**400, 1), "sum that is too large for a float .an int of 1329 bits"),
        ((torch.empty((), device="meta"), 1), "sum on the 'meta' device"),
        ((math.nan, 1), "batch 1: .*sum nan"),
        ((torch.tensor(math.inf), 1), "batch 1: .*sum inf"),
        ((1, 0), "batch 1: .*count 0"),
        ((1, -2), "batch 1: .*count -2"),
    ],
)
def test_own_metric_that_returns_something_else(result: Any, words: str) -> None:
    metric = Metric.of(lambda output, batch: output)
    with pytest.raises(DataError, match=words):
        add_up(metric, *zip(*[metric.measure(r, None) for r in ((1, 1), result)], strict=True))


@pytest.mark.parametrize(
    ("output", "batch", "words"),
    [
        (normal(4, 5), (None, labels(3)), r"\(4, 5\) do not fit labels of shape \(3,\)"),
        (normal(4), (None, labels(4)), "do not fit"),
        (normal(4, 1), (None, labels(4, classes=1)), "one score per sample"),
        (normal(4, 5), (None, normal(4)), "labels are torch.float32"),
        (normal(4, 5), (None, normal(4, 5)), "labels are torch.float32"),
        (normal(4, 5), (None, labels(4) + 5), "is not a class of a model with 5 classes"),
        (normal(4, 5), (None, labels(4) - 5), "label -[1-5] is not a class"),
        (normal(2, 5, 5), (None, labels(2, 5)), "which axis is the class"),
        (normal(4, 5), normal(4), "found a Tensor, expected"),
        (normal(4, 5), {"x": normal(4)}, "no labels.*found .'x'."),
        ("text", (None, labels(4)), "output is a str"),
        (SimpleNamespace(logits=3), (None, labels(4)), "output is a SimpleNamespace"),
        ((normal(4, 5), 0), (None, labels(4)), "output is a tuple"),
    ],
)
@pytest.mark.parametrize("name", ["accuracy", "loss", "perplexity"])
def test_outputs_and_labels_that_do_not_fit(name: str, output: Any, batch: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Metric.of(name).measure(output, batch)


def test_unshifted_labels_of_a_language_model_are_refused() -> None:
    tokens = labels(2, 4)
    with pytest.raises(DataError, match="shift them"):
        Metric.of("perplexity").measure(normal(2, 4, 5), {"input_ids": tokens, "labels": tokens.clone()})
    shifted = torch.cat([tokens[:, 1:], torch.full((2, 1), -100)], 1)
    Metric.of("perplexity").measure(normal(2, 4, 5), {"input_ids": tokens, "labels": shifted})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["accuracy", "loss"])
def test_a_broken_output_does_not_pass_for_a_wrong_answer(name: str, bad: float) -> None:
    metric, broken, targets = Metric.of(name), normal(4, 5), labels(4)
    broken[2, (int(targets[2]) + 1) % 5] = bad
    parts = [metric.measure(output, (None, targets)) for output in (normal(4, 5), broken)]
    with pytest.raises(DataError, match=r"batch 1: .*NaN or infinite"):
        add_up(metric, *zip(*parts, strict=True))


def test_no_label_counts() -> None:
    metric = Metric.of("accuracy")
    ignored = (normal(4, 5), (None, torch.full((4,), -100)))
    with pytest.raises(DataError, match="no label counts"):
        add_up(metric, *zip(metric.measure(*ignored), strict=True))
    assert measured("accuracy", [ignored, (normal(4, 5), (None, labels(4)))])[1] == 4


def test_perplexity_too_large_for_a_float() -> None:
    with pytest.raises(DataError, match="no finite perplexity"):
        final_value(Metric.of("perplexity"), 8000.0, 10.0)


@pytest.mark.parametrize(
    ("given", "words"),
    [("acuracy", "did you mean 'accuracy'"), (3, "metric is an int"), ("", "unknown metric")],
)
def test_unknown_metrics(given: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Metric.of(given)


def test_an_own_metric_does_not_take_a_built_in_name() -> None:
    def accuracy(output: Any, batch: Any) -> tuple[int, int]:
        return 1, 1

    assert Metric.of(accuracy).name == "accuracy (own)"


def test_default_forward() -> None:
    model = nn.Linear(2, 3)
    x = normal(4, 2)
    assert torch.equal(default_forward(model, (x, labels(4))), model(x))
    assert torch.equal(default_forward(model, [x, labels(4)]), model(x))
    assert torch.equal(default_forward(model, {"input": x, "labels": labels(4)}), model(x))
    for batch, words in (
        (x, "found a Tensor"),
        ((x,), "of 1 parts"),
        ((x, x, x), "of 3 parts"),
        ("text", "found a str"),
    ):
        with pytest.raises(DataError, match=words):
            default_forward(model, batch)
