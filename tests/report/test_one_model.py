"""Figures of one trained model, by its metric's unit."""

import pytest

from analognoise.report.one_model import figure, heading


@pytest.mark.parametrize(
    ("metric", "title", "shown"),
    [
        ("accuracy", "accuracy (%)", "94.30"),
        ("top5_accuracy", "top5_accuracy (%)", "94.30"),
        ("loss", "loss", "0.943"),
        ("inaccuracy", "inaccuracy", "0.943"),
    ],
)
def test_accuracies_are_shown_in_percent_and_other_metrics_as_they_are(
    metric: str, title: str, shown: str
) -> None:
    assert heading(metric) == title
    assert figure(metric, 0.943) == shown
